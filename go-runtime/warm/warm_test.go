package warm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestRunTellsHowEachStepWent(t *testing.T) {
	var set Set
	set.Add("good", func(context.Context) error { return nil })
	set.Add("bad", func(context.Context) error { return errors.New("no host") })
	set.Add("worse", func(context.Context) error { panic("oh") })
	undo := set.Add("gone", func(context.Context) error { t.Error("it ran"); return nil })
	undo()
	var got []string
	results := set.Run(context.Background())
	for _, one := range results {
		got = append(got, one.Name+": "+one.Error)
	}
	if want := []string{"good: ", "bad: no host", "worse: panic: oh"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if err := Err(results); err == nil || !strings.Contains(err.Error(), "warm bad: no host") {
		t.Errorf("Err: got %v", err)
	}
	if err := Err(results[:1]); err != nil {
		t.Errorf("Err of the good one: got %v", err)
	}
}

func TestRunDoesNotWaitForAStuckStep(t *testing.T) {
	var set Set
	block := make(chan struct{})
	defer close(block)
	set.Add("stuck", func(context.Context) error { <-block; return nil })
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if got := set.Run(ctx); got[0].Error != context.DeadlineExceeded.Error() {
		t.Errorf("got %+v", got)
	}
}

func TestLazyIsMadeOnceForAll(t *testing.T) {
	var count atomic.Int32
	lazy := NewLazy("n", func(context.Context) (int, error) {
		time.Sleep(5 * time.Millisecond)
		return int(count.Add(1)), nil
	})
	defer lazy.Close()
	var all sync.WaitGroup
	for range 50 {
		all.Add(1)
		go func() {
			defer all.Done()
			if got, err := lazy.Get(context.Background()); got != 1 || err != nil {
				t.Errorf("got %d, %v", got, err)
			}
		}()
	}
	all.Wait()
	if got := count.Load(); got != 1 {
		t.Errorf("made %d times", got)
	}
}

func TestLazyTriesAgainAfterAFailure(t *testing.T) {
	count := 0
	lazy := NewLazy("n", func(context.Context) (int, error) {
		if count++; count == 1 {
			return 0, errors.New("not yet")
		}
		return count, nil
	})
	defer lazy.Close()
	if _, err := lazy.Get(context.Background()); err == nil || lazy.IsMade() {
		t.Errorf("first: got %v", err)
	}
	if got, err := lazy.Get(context.Background()); got != 2 || err != nil {
		t.Errorf("second: got %d, %v", got, err)
	}
	lazy.Forget()
	if got, _ := lazy.Get(context.Background()); got != 3 {
		t.Errorf("after Forget: got %d, want 3", got)
	}
}

func TestLazyOutlivesTheOneWhoAsked(t *testing.T) {
	open := make(chan struct{})
	lazy := NewLazy("n", func(ctx context.Context) (int, error) { <-open; return 7, ctx.Err() })
	defer lazy.Close()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := lazy.Get(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("impatient: got %v", err)
	}
	close(open)
	if got, err := lazy.Get(context.Background()); got != 7 || err != nil {
		t.Errorf("got %d, %v, want 7", got, err)
	}
}

func TestLazyPanicsForWhoAsked(t *testing.T) {
	lazy := NewLazy("n", func(context.Context) (int, error) { panic("oh") })
	defer lazy.Close()
	for range 2 { // the turn is given back
		func() {
			defer func() {
				if got := recover(); got != "oh" {
					t.Errorf("recovered %v", got)
				}
			}()
			_, _ = lazy.Get(context.Background())
		}()
	}
}

func TestTheDefaultSetMakesLazyValues(t *testing.T) {
	lazy := NewLazy("config", func(context.Context) (string, error) { return "x", nil })
	defer lazy.Close()
	if err := Err(Default.Run(context.Background())); err != nil || !lazy.IsMade() {
		t.Errorf("got %v, made %v", err, lazy.IsMade())
	}
	lazy.Close()
	lazy.Forget()
	Default.Run(context.Background())
	if lazy.IsMade() {
		t.Error("made after Close")
	}
}

func TestPrefillMakesNoMoreThanIsMissing(t *testing.T) {
	made := 0
	pool := sync.Pool{New: func() any { made++; return new(int) }}
	count := Prefill(&pool)
	first := made
	if first == 0 || first > count {
		t.Errorf("made %d of %d", first, count)
	}
	if got := Prefill(&sync.Pool{}); got != 0 {
		t.Errorf("without New: got %d", got)
	}
}

func TestPoolResetsWhatComesBack(t *testing.T) {
	pool := NewPool("buffers", func() *[]byte { return new([]byte) }, func(b *[]byte) { *b = (*b)[:0] })
	defer pool.Close()
	buffer := pool.Get()
	*buffer = append(*buffer, "secret"...)
	pool.Put(buffer)
	pool.Put(nil)
	for range 10 {
		if got := pool.Get(); len(*got) != 0 {
			t.Errorf("got %q", *got)
		}
	}
}

func ExampleNewLazy() {
	greeting := NewLazy("greeting", func(context.Context) (string, error) { return "hello", nil })
	defer greeting.Close()
	text, err := greeting.Get(context.Background())
	fmt.Println(text, err)
	// Output: hello <nil>
}

func BenchmarkLazyGet(b *testing.B) {
	lazy := NewLazy("n", func(context.Context) (int, error) { return 1, nil })
	defer lazy.Close()
	ctx := context.Background()
	for b.Loop() {
		_, _ = lazy.Get(ctx)
	}
}

func BenchmarkPool(b *testing.B) {
	pool := NewPool("buffers", func() *[64]byte { return new([64]byte) }, nil)
	defer pool.Close()
	for b.Loop() {
		pool.Put(pool.Get())
	}
}
