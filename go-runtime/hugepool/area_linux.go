package hugepool

import (
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"syscall"
	"unsafe"
)

// area is one mapping; memory is its part that begins at a huge page.
type area struct {
	mapped  []byte
	memory  []byte
	backing Backing
}

// enabledFile says whether the kernel has transparent huge pages: [never] means that madvise
// succeeds and does nothing. See Documentation/admin-guide/mm/transhuge.rst of Linux.
var enabledFile = "/sys/kernel/mm/transparent_hugepage/enabled"

func mapArea(size int) (area, error) {
	const flags = syscall.MAP_ANON | syscall.MAP_PRIVATE
	const access = syscall.PROT_READ | syscall.PROT_WRITE
	if !isDebug {
		mapped, err := syscall.Mmap(-1, 0, size, access, flags|syscall.MAP_HUGETLB)
		if err == nil {
			if touch(mapped) {
				return area{mapped: mapped, memory: mapped, backing: HugeTLB}, nil
			}
			if err := syscall.Munmap(mapped); err != nil {
				return area{}, fmt.Errorf("unmap: %w", err)
			}
		}
	}
	mapped, err := syscall.Mmap(-1, 0, size+PageSize, access, flags)
	if err != nil {
		return area{}, err
	}
	start := int(-uintptr(unsafe.Pointer(unsafe.SliceData(mapped))) & (PageSize - 1))
	found := area{mapped: mapped, memory: mapped[start : start+size : start+size], backing: Ordinary}
	if grantsHuge() && syscall.Madvise(found.memory, syscall.MADV_HUGEPAGE) == nil {
		found.backing = Transparent
	}
	return found, nil
}

// touch has the kernel give each page now: a cgroup's limit of huge pages shows at the first touch
// only, by SIGBUS, which would end the process later. See hugetlb.rst of cgroup-v1.
func touch(memory []byte) (done bool) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if recover() != nil {
			done = false
		}
	}()
	for at := 0; at < len(memory); at += PageSize {
		memory[at] = 0
	}
	return true
}

func grantsHuge() bool {
	raw, err := os.ReadFile(enabledFile)
	return err == nil && !strings.Contains(string(raw), "[never]")
}

func (a *area) unmap() error {
	return syscall.Munmap(a.mapped)
}
