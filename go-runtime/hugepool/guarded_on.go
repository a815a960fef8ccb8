//go:build layerkit_debug

package hugepool

import (
	"fmt"
	"os"
	"unsafe"
)

// In the debug build a pool hands out each address once: every block has ordinary pages of its own,
// ends at their end, and loses them when it is freed. A pool that has handed out its size is full.
const isDebug = true

type guarded struct {
	next  int         // first page that was never handed out
	sizes map[int]int // by the block's start: its size; -1 once it was freed
}

func (g *guarded) take(a *area, n int) ([]byte, error) {
	unit := os.Getpagesize()
	pages := (n + unit - 1) / unit * unit
	start := g.next + pages - (n+LineSize-1)&^(LineSize-1)
	if g.next+pages+unit > len(a.memory) {
		return nil, fmt.Errorf("%w: the debug build uses no address twice", ErrFull)
	}
	guard := a.memory[g.next+pages : g.next+pages+unit]
	if err := protect(guard); err != nil {
		return nil, fmt.Errorf("hugepool: protect: %w", err)
	}
	g.next += pages + unit
	if g.sizes == nil {
		g.sizes = map[int]int{}
	}
	g.sizes[start] = n
	return a.memory[start : start+n : start+n], nil
}

func (g *guarded) free(a *area, block []byte) int {
	at := int(uintptr(unsafe.Pointer(unsafe.SliceData(block))) -
		uintptr(unsafe.Pointer(unsafe.SliceData(a.memory))))
	n, ok := g.sizes[at]
	if !ok || n < 0 {
		panic("hugepool: free of what is no block, or twice")
	}
	unit := os.Getpagesize()
	first := at &^ (unit - 1)
	if err := protect(a.memory[first : (at+n+unit-1)&^(unit-1)]); err != nil {
		panic(fmt.Sprintf("hugepool: protect: %v", err))
	}
	g.sizes[at] = -1
	return n
}
