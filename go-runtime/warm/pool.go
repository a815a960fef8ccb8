package warm

import (
	"context"
	"runtime"
	"sync"
)

// perWorker is how many values Prefill makes for each processor: one in use, one to spare.
const perWorker = 2

// Prefill puts new values into pool, enough for all processors to work at once, and returns how
// many. Two collections later those that nobody used are gone again (sync.Pool says so), so it
// belongs into a step, where every probe repeats it. Without pool.New it does nothing.
func Prefill(pool *sync.Pool) int {
	if pool.New == nil {
		return 0
	}
	count := perWorker * runtime.GOMAXPROCS(0)
	values := make([]any, count)
	for at := range values {
		values[at] = pool.Get() // what is there already is counted, not made twice
	}
	for _, value := range values {
		pool.Put(value)
	}
	return count
}

// Pool is a sync.Pool of one type, filled by the default set's step.
type Pool[T any] struct {
	pool  sync.Pool
	reset func(*T)
	undo  func()
}

// NewPool is a pool whose values create makes; reset (nil: nothing) clears one that comes back, so
// that no request sees what another left.
func NewPool[T any](name string, create func() *T, reset func(*T)) *Pool[T] {
	p := &Pool[T]{reset: reset}
	p.pool.New = func() any { return create() }
	p.undo = Add(name, func(context.Context) error {
		Prefill(&p.pool)
		return nil
	})
	return p
}

// Get is a value that nobody else has.
func (p *Pool[T]) Get() *T { return p.pool.Get().(*T) }

// Put gives a value back; it must not be used after. Nil is not kept.
func (p *Pool[T]) Put(value *T) {
	if value == nil {
		return
	}
	if p.reset != nil {
		p.reset(value)
	}
	p.pool.Put(value)
}

// Close takes the pool's step out of the default set.
func (p *Pool[T]) Close() { p.undo() }
