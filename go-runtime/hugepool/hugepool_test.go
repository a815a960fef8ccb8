//go:build !layerkit_debug

package hugepool

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"unsafe"
)

func newPool(t testing.TB, size int) *Pool {
	t.Helper()
	p, err := New(size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func TestClasses(t *testing.T) {
	for n := 1; n <= largest; n = n*17/16 + 1 {
		class := classOf(n)
		if class < n || class%LineSize != 0 || (n > 4*LineSize && class > n*5/4) {
			t.Fatalf("%d: class %d", n, class)
		}
		if n >= LineSize && n&(n-1) == 0 && class != n {
			t.Fatalf("power of two %d: class %d", n, class)
		}
	}
}

// TestBlocksNeverOverlap takes and frees at random, and keeps a mark in each block.
func TestBlocksNeverOverlap(t *testing.T) {
	p := newPool(t, 16*PageSize)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	var blocks [][]byte
	for round := range 4_000 {
		if len(blocks) > 0 && random.IntN(2) == 0 {
			at := random.IntN(len(blocks))
			block := blocks[at]
			for _, b := range block {
				if b != block[0] {
					t.Fatalf("round %d: another block wrote into this one", round)
				}
			}
			p.Free(block)
			blocks = slices.Delete(blocks, at, at+1)
			continue
		}
		n := 1 + random.IntN(1<<random.IntN(22))
		block, err := p.Alloc(n)
		if errors.Is(err, ErrFull) {
			continue
		}
		if err != nil || len(block) != n {
			t.Fatalf("round %d: %d bytes of %d, %v", round, len(block), n, err)
		}
		address := int(uintptr(unsafe.Pointer(&block[0])))
		if address%LineSize != 0 || (n > largest && address%PageSize != 0) {
			t.Fatalf("%d bytes at %#x", n, address)
		}
		for at, b := range block {
			if b != 0 {
				t.Fatalf("round %d: byte %d is %d, want 0", round, at, b)
			}
		}
		for at := range block {
			block[at] = byte(round)
		}
		blocks = append(blocks, block)
	}
	for _, block := range blocks {
		p.Free(block)
	}
	if got := p.Stats(); got.Used != 0 || got.Blocks != 0 || got.FreePage != 16 {
		t.Errorf("all freed: got %+v", got)
	}
}

func TestAFullPoolSaysSo(t *testing.T) {
	p := newPool(t, PageSize)
	if _, err := p.Alloc(PageSize + 1); !errors.Is(err, ErrFull) {
		t.Errorf("too large: got %v", err)
	}
	block, err := p.Alloc(PageSize)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Alloc(1); !errors.Is(err, ErrFull) {
		t.Errorf("no page left: got %v", err)
	}
	p.Free(block)
	if _, err := p.Alloc(1); err != nil {
		t.Errorf("after Free: got %v", err)
	}
	for _, n := range []int{0, -1} {
		if _, err := New(n); err == nil {
			t.Errorf("New(%d): got no error", n)
		}
	}
}

func panics(t *testing.T, what string, do func()) {
	t.Helper()
	defer func() {
		if recover() == nil {
			t.Errorf("%s: no panic", what)
		}
	}()
	do()
}

func TestWrongFreesPanic(t *testing.T) {
	p := newPool(t, 4*PageSize)
	small, _ := p.Alloc(100)
	large, _ := p.Alloc(PageSize + 1)
	panics(t, "inside of a block", func() { p.Free(small[1:]) })
	panics(t, "inside of a large block", func() { p.Free(large[PageSize:]) })
	panics(t, "Go's memory", func() { p.Free(make([]byte, 100)) })
	panics(t, "nothing", func() { p.Free(nil) })
	p.Free(small)
	p.Free(large)
	panics(t, "twice", func() { p.Free(small) })
	panics(t, "large, twice", func() { p.Free(large) })
}

func TestMakeTakesNoPointers(t *testing.T) {
	p := newPool(t, PageSize)
	type flat struct {
		ID    uint64
		Parts [4]float32
	}
	values, err := Make[flat](p, 1000)
	if err != nil || len(values) != 1000 {
		t.Fatalf("got %d, %v", len(values), err)
	}
	values[999].ID = 1
	FreeSlice(p, values)
	if got := p.Stats().Blocks; got != 0 {
		t.Errorf("blocks: got %d", got)
	}
	for name, err := range map[string]error{
		"string": second(Make[string](p, 1)), "pointer": second(Make[*int](p, 1)),
		"struct": second(Make[struct{ Names []string }](p, 1)), "any": second(Make[any](p, 1)),
	} {
		if err == nil || !strings.Contains(err.Error(), "pointers") {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if _, err := Make[uint64](p, 1<<60); !errors.Is(err, ErrFull) {
		t.Errorf("a size that overflows: got %v", err)
	}
}

func second[T any](_ T, err error) error { return err }

func TestCloseTwice(t *testing.T) {
	p := newPool(t, PageSize)
	if err := errors.Join(p.Close(), p.Close()); err != nil {
		t.Error(err)
	}
	if _, err := p.Alloc(1); err == nil {
		t.Error("alloc after Close: got no error")
	}
}

func ExampleMake() {
	pool, err := New(1 << 20)
	if err != nil {
		panic(err)
	}
	defer pool.Close()
	scores, err := Make[float32](pool, 1000)
	fmt.Println(len(scores), scores[999], err)
	FreeSlice(pool, scores)
	// Output: 1000 0 <nil>
}

func BenchmarkAllocFree(b *testing.B) {
	p := newPool(b, 16*PageSize)
	for b.Loop() {
		block, err := p.Alloc(1024)
		if err != nil {
			b.Fatal(err)
		}
		p.Free(block)
	}
}
