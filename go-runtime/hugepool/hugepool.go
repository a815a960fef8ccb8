// Package hugepool hands out slices of memory that lies outside of Go's heap, on huge pages where
// the kernel has them: a table of a gigabyte that is read at random then costs one entry of the
// processor's address cache for 2 MiB instead of 4 KiB, and the garbage collector nothing.
//
// Memory comes from anonymous mappings, tried in turn: MAP_HUGETLB (pages that an administrator has
// set aside), transparent huge pages by madvise, ordinary pages. Stats says which it was.
//
// What is handed out must hold no pointers into Go's heap: the collector does not look there. Make
// checks that. A block is used until Free; using it later reads what somebody else writes. Built
// with `-tags layerkit_debug`, each block has pages of its own that Free takes away, so that a use
// after it crashes at the spot.
//
// Go's memory limit does not count this memory and the kernel does: a pool takes its size off the
// limit (memlimit.Reserve) until Close.
package hugepool

import (
	"errors"
	"fmt"
	"math/bits"
	"reflect"
	"sync"
	"unsafe"

	"example.com/layerkit/go-runtime/memlimit"
)

const (
	// PageSize is that of a huge page on amd64, and on arm64 with pages of 4 KiB.
	PageSize = 2 << 20
	// LineSize is the least alignment: a cache line, so that two blocks share none.
	LineSize = 64
	// largest block that shares its page with others
	largest = PageSize / 4
)

// ErrFull is the error of an Alloc that does not fit into the pool's size.
var ErrFull = errors.New("hugepool: full")

// Backing is what kind of pages a pool lies on.
type Backing int

// The kinds, from the best.
const (
	HugeTLB     Backing = iota // explicit huge pages
	Transparent                // the kernel was asked for huge pages, and grants them as it can
	Ordinary                   // 4 KiB
)

func (b Backing) String() string {
	return [...]string{"hugetlb", "transparent", "ordinary"}[b]
}

// Stats is how a pool stands; sizes are bytes.
type Stats struct {
	Backing  Backing
	Size     int // mapped
	Used     int // handed out, by size class
	Blocks   int // handed out
	FreePage int // whole pages that nothing lies on
}

// Pool is memory of a fixed size. Safe for use by several goroutines.
type Pool struct {
	mu      sync.Mutex
	area    area
	pages   []page          // state of each page of the area
	free    map[int][]int32 // by class: pages that have room
	guarded guarded
	used    int
	blocks  int
	unlimit func()
}

// page is one huge page: of a class, part of a large block, or free.
type page struct {
	class int      // block size; 0: free or large
	run   int      // pages of the large block that begins here
	inUse int      // blocks
	taken []uint64 // a bit for each block
}

// New maps a pool of at least size bytes, whole pages. Nothing of it is touched but on HugeTLB.
func New(size int) (*Pool, error) {
	if size <= 0 || size > 1<<46 {
		return nil, fmt.Errorf("hugepool: size %d is out of range", size)
	}
	count := (size + PageSize - 1) / PageSize
	area, err := mapArea(count * PageSize)
	if err != nil {
		return nil, fmt.Errorf("hugepool: map %d bytes: %w", count*PageSize, err)
	}
	return &Pool{
		area:    area,
		pages:   make([]page, count),
		free:    map[int][]int32{},
		unlimit: memlimit.Reserve(int64(count) * PageSize),
	}, nil
}

// classOf is the block size for n bytes: multiples of a cache line, four steps a doubling, so that
// at most a fifth is lost. Powers of two are aligned to themselves.
func classOf(n int) int {
	if n <= 4*LineSize {
		return max(LineSize, (n+LineSize-1)&^(LineSize-1))
	}
	step := 1 << (bits.Len(uint(n-1)) - 3)
	return (n + step - 1) &^ (step - 1)
}

// Alloc is n zero bytes, aligned to LineSize or better: to n's power of two up to 4 KiB if n is
// one, to PageSize above 512 KiB. Where it does not fit the error is ErrFull, and the pool is as it was.
func (p *Pool) Alloc(n int) ([]byte, error) {
	if n <= 0 || n > len(p.pages)*PageSize {
		return nil, fmt.Errorf("%w: %d bytes asked of %d", ErrFull, n, len(p.pages)*PageSize)
	}
	block, err := p.take(n)
	if err != nil {
		return nil, err
	}
	clear(block)
	return block[:n:n], nil
}

func (p *Pool) take(n int) ([]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.area.memory == nil {
		return nil, errors.New("hugepool: closed")
	}
	if isDebug {
		block, err := p.guarded.take(&p.area, n)
		if err == nil {
			p.used, p.blocks = p.used+n, p.blocks+1
		}
		return block, err
	}
	if n > largest {
		return p.takeRun(n)
	}
	return p.takeSmall(classOf(n))
}

func (p *Pool) takeSmall(class int) ([]byte, error) {
	index := p.pageWithRoom(class)
	if index < 0 {
		return nil, fmt.Errorf("%w: no page left for blocks of %d bytes", ErrFull, class)
	}
	one := &p.pages[index]
	for at, word := range one.taken {
		if word == ^uint64(0) {
			continue
		}
		bit := bits.TrailingZeros64(^word)
		block := at*64 + bit
		if block >= PageSize/class {
			break
		}
		one.taken[at] |= 1 << bit
		one.inUse++
		if one.inUse == PageSize/class {
			p.free[class] = p.free[class][:len(p.free[class])-1]
		}
		p.used, p.blocks = p.used+class, p.blocks+1
		start := index*PageSize + block*class
		return p.area.memory[start : start+class : start+class], nil
	}
	panic("hugepool: a page with room has none")
}

// pageWithRoom is a page of that class with a free block, a new one if need be; -1 for none.
func (p *Pool) pageWithRoom(class int) int {
	if list := p.free[class]; len(list) > 0 {
		return int(list[len(list)-1])
	}
	index := p.findRun(1)
	if index >= 0 {
		p.pages[index] = page{class: class, taken: make([]uint64, (PageSize/class+63)/64)}
		p.free[class] = append(p.free[class], int32(index))
	}
	return index
}

func (p *Pool) takeRun(n int) ([]byte, error) {
	count := (n + PageSize - 1) / PageSize
	index := p.findRun(count)
	if index < 0 {
		return nil, fmt.Errorf("%w: no %d pages left in a row", ErrFull, count)
	}
	p.pages[index].run = count
	for at := index + 1; at < index+count; at++ {
		p.pages[at].run = -1
	}
	p.used, p.blocks = p.used+count*PageSize, p.blocks+1
	return p.area.memory[index*PageSize : (index+count)*PageSize], nil
}

// findRun is the first of count free pages in a row; -1 for none. Plain search: a pool has some
// hundred pages, and takes one seldom.
func (p *Pool) findRun(count int) int {
	length := 0
	for at := range p.pages {
		if p.pages[at].class != 0 || p.pages[at].run != 0 {
			length = 0
		} else if length++; length == count {
			return at - count + 1
		}
	}
	return -1
}

// Free gives a block back, whole: what Alloc or Make returned. Twice, or anything else, panics: the
// memory may be somebody else's by now.
func (p *Pool) Free(block []byte) {
	if cap(block) == 0 {
		panic("hugepool: free of nothing")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if isDebug {
		p.used -= p.guarded.free(&p.area, block)
		p.blocks--
		return
	}
	at := int(uintptr(unsafe.Pointer(unsafe.SliceData(block))) -
		uintptr(unsafe.Pointer(unsafe.SliceData(p.area.memory))))
	if p.area.memory == nil || at < 0 || at >= len(p.pages)*PageSize {
		panic("hugepool: free of memory that is not of this pool")
	}
	index := at / PageSize
	one := &p.pages[index]
	switch {
	case one.run > 0 && at%PageSize == 0:
		count := one.run
		for at := index; at < index+count; at++ {
			p.pages[at] = page{}
		}
		p.used, p.blocks = p.used-count*PageSize, p.blocks-1
	case one.class > 0 && at%PageSize%one.class == 0:
		p.freeSmall(index, at%PageSize/one.class)
	default:
		panic("hugepool: free of what is no block, or twice")
	}
}

func (p *Pool) freeSmall(index, block int) {
	one := &p.pages[index]
	mask := uint64(1) << (block % 64)
	if one.taken[block/64]&mask == 0 {
		panic("hugepool: free of what is no block, or twice")
	}
	one.taken[block/64] &^= mask
	p.used, p.blocks = p.used-one.class, p.blocks-1
	if one.inUse == PageSize/one.class {
		p.free[one.class] = append(p.free[one.class], int32(index))
	}
	if one.inUse--; one.inUse == 0 {
		p.dropFromFree(one.class, int32(index))
		*one = page{}
	}
}

func (p *Pool) dropFromFree(class int, index int32) {
	list := p.free[class]
	for at, one := range list {
		if one == index {
			p.free[class] = append(list[:at], list[at+1:]...)
			return
		}
	}
}

// Stats is how the pool stands now.
func (p *Pool) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := Stats{Backing: p.area.backing, Size: len(p.pages) * PageSize, Used: p.used, Blocks: p.blocks}
	for _, one := range p.pages {
		if one.class == 0 && one.run == 0 {
			s.FreePage++
		}
	}
	return s
}

// Close gives all memory back; blocks that are still used are gone with it, and touching one
// crashes.
func (p *Pool) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.area.memory == nil {
		return nil
	}
	err := p.area.unmap()
	p.area.memory = nil
	p.unlimit()
	return err
}

// Make is a slice of count zero values in the pool. T must hold no pointers: no strings, slices,
// maps, interfaces. FreeSlice gives it back.
func Make[T any](p *Pool, count int) ([]T, error) {
	var zero T
	size := int(unsafe.Sizeof(zero))
	if kind := reflect.TypeFor[T](); hasPointers(kind) {
		return nil, fmt.Errorf("hugepool: %v holds pointers, which the collector does not see there", kind)
	}
	if size == 0 || count <= 0 || count > len(p.pages)*PageSize/size {
		return nil, fmt.Errorf("%w: %d values of %d bytes", ErrFull, count, size)
	}
	block, err := p.Alloc(size * count)
	if err != nil {
		return nil, err
	}
	return unsafe.Slice((*T)(unsafe.Pointer(unsafe.SliceData(block))), count), nil
}

// FreeSlice gives back what Make returned.
func FreeSlice[T any](p *Pool, values []T) {
	var zero T
	data := (*byte)(unsafe.Pointer(unsafe.SliceData(values)))
	p.Free(unsafe.Slice(data, cap(values)*int(unsafe.Sizeof(zero))))
}

func hasPointers(kind reflect.Type) bool {
	switch kind.Kind() {
	case reflect.Bool, reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr,
		reflect.Float32, reflect.Float64, reflect.Complex64, reflect.Complex128:
		return false
	case reflect.Array:
		return kind.Len() > 0 && hasPointers(kind.Elem())
	case reflect.Struct:
		for at := range kind.NumField() {
			if hasPointers(kind.Field(at).Type) {
				return true
			}
		}
		return false
	default:
		return true
	}
}
