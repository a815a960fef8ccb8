package warm

import (
	"context"
	"fmt"
	"sync/atomic"
)

// Lazy is a value that is made once: by the first Get, or by the step that NewLazy adds to the
// default set. A failure is not kept: the next Get tries again.
type Lazy[T any] struct {
	name string
	load func(context.Context) (T, error)
	made atomic.Pointer[T]
	turn chan struct{} // holds one token: who has it makes the value
	undo func()
}

// NewLazy is a Lazy whose value load makes, of the default set. Load gets the context of whoever
// asks first, without its cancellation: others wait for the same value.
func NewLazy[T any](name string, load func(context.Context) (T, error)) *Lazy[T] {
	lazy := &Lazy[T]{name: name, load: load, turn: newTurn()}
	lazy.undo = Add(name, func(ctx context.Context) error {
		_, err := lazy.Get(ctx)
		return err
	})
	return lazy
}

func newTurn() chan struct{} {
	turn := make(chan struct{}, 1)
	turn <- struct{}{}
	return turn
}

// Get is the value, made now if it was not made before. It returns early, with ctx's error, when
// ctx is done before the value is there; the making goes on for the next.
func (l *Lazy[T]) Get(ctx context.Context) (T, error) {
	if made := l.made.Load(); made != nil {
		return *made, nil
	}
	select {
	case <-l.turn:
	case <-ctx.Done():
		var none T
		return none, context.Cause(ctx)
	}
	if made := l.made.Load(); made != nil {
		l.turn <- struct{}{}
		return *made, nil
	}
	return l.makeIt(ctx)
}

// makeIt makes the value in a goroutine of its own, which gives the turn back.
func (l *Lazy[T]) makeIt(ctx context.Context) (T, error) {
	type outcome struct {
		value T
		err   error
		fault any // a panic, which the caller gets
	}
	ended := make(chan outcome, 1)
	go func() {
		var o outcome
		defer func() {
			if o.fault = recover(); o.fault == nil && o.err == nil {
				l.made.Store(&o.value)
			}
			l.turn <- struct{}{}
			ended <- o
		}()
		o.err = fmt.Errorf("%s: ended by runtime.Goexit", l.name) // unless it returns
		o.value, o.err = l.load(context.WithoutCancel(ctx))
	}()
	select {
	case o := <-ended:
		if o.fault != nil {
			panic(o.fault)
		}
		return o.value, o.err
	case <-ctx.Done():
		var none T
		return none, context.Cause(ctx)
	}
}

// IsMade says whether the value is there.
func (l *Lazy[T]) IsMade() bool { return l.made.Load() != nil }

// Forget drops the value: the next Get makes it anew.
func (l *Lazy[T]) Forget() { l.made.Store(nil) }

// Close takes the step of NewLazy out of the default set.
func (l *Lazy[T]) Close() { l.undo() }
