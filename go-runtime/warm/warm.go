// Package warm moves work out of a function's start: what a request needs is made when the first
// request comes, or before it, when a probe asks the function to warm up.
//
//	var config = warm.NewLazy("config", loadConfig)
//
//	func handle(w http.ResponseWriter, r *http.Request) {
//		settings, err := config.Get(r.Context())
//		...
//
// Package serve runs the steps of this package at /warmz.
package warm

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"
)

// Step makes something ready; it may run any number of times, at the same time as requests.
type Step func(context.Context) error

// Result is how one step went.
type Result struct {
	Name    string  `json:"name"`
	Seconds float64 `json:"seconds"`
	Error   string  `json:"error,omitempty"`
}

// Set is a number of steps. The zero value is empty and ready.
type Set struct {
	mu    sync.Mutex
	next  int
	steps map[int]named
}

type named struct {
	name string
	step Step
}

// Default is the set of NewLazy, of Add, and of serve's /warmz.
var Default Set

// Add adds a step to the default set; undo takes it out again.
func Add(name string, step Step) (undo func()) { return Default.Add(name, step) }

// Add adds a step; undo takes it out again.
func (s *Set) Add(name string, step Step) (undo func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.steps == nil {
		s.steps = map[int]named{}
	}
	key := s.next
	s.next++
	s.steps[key] = named{name, step}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.steps, key)
	}
}

// Run runs all steps, as many at once as there are processors, and returns when they have ended or
// ctx is done: then with an error for what still runs. Results are in the order of Add. A step that
// panics has failed; the others go on.
func (s *Set) Run(ctx context.Context) []Result {
	s.mu.Lock()
	keys := make([]int, 0, len(s.steps))
	for key := range s.steps {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	steps := make([]named, len(keys))
	for at, key := range keys {
		steps[at] = s.steps[key]
	}
	s.mu.Unlock()

	turns := make(chan struct{}, runtime.GOMAXPROCS(0))
	running := make([]chan Result, len(steps))
	for at, one := range steps {
		running[at] = make(chan Result, 1)
		go func() {
			turns <- struct{}{}
			defer func() { <-turns }()
			running[at] <- one.run(ctx)
		}()
	}
	results := make([]Result, len(steps))
	for at, one := range steps {
		select {
		case results[at] = <-running[at]:
		case <-ctx.Done():
			select { // it may have ended at the same moment
			case results[at] = <-running[at]:
			default:
				results[at] = Result{Name: one.name, Error: context.Cause(ctx).Error()}
			}
		}
	}
	return results
}

func (n named) run(ctx context.Context) (result Result) {
	started := time.Now()
	result.Name = n.name
	defer func() {
		result.Seconds = time.Since(started).Seconds()
		if what := recover(); what != nil {
			result.Error = fmt.Sprintf("panic: %v", what)
		}
	}()
	if err := ctx.Err(); err != nil {
		result.Error = err.Error()
	} else if err := n.step(ctx); err != nil {
		result.Error = err.Error()
	}
	return result
}

// Err joins the errors of results; nil if there are none.
func Err(results []Result) error {
	var errs []error
	for _, one := range results {
		if one.Error != "" {
			errs = append(errs, fmt.Errorf("warm %s: %s", one.Name, strings.TrimSpace(one.Error)))
		}
	}
	return errors.Join(errs...)
}
