//go:build layerkit_debug

package hugepool

import "syscall"

// protect takes all rights to memory away.
func protect(memory []byte) error { return syscall.Mprotect(memory, syscall.PROT_NONE) }
