// Package gctune moves GOGC by what the function does: high while memory is free, lower as the heap
// nears the memory limit.
//
// Go collects when the heap has grown by GOGC percent over what was alive. A low GOGC collects more
// often, a high one lets more garbage lie; a fixed one is wrong for a function whose live heap is
// small against its limit (it collects without need) and for one whose live heap is large (the
// doubled heap does not fit). The tuner sets what just fits:
//
//	GOGC = 100 * (room - live) / (live + stacks + globals)
//
// where room is the share of the memory limit that the heap may fill, less what Go uses besides it,
// and live is what the last collection found. Where collections come faster than looks, live is what
// it will have grown to at the last collection before the next look. GOGC ends between Low and High.
// Where Low does not fit, Go's own memory limit collects as often as it must. A lower GOGC would add
// collections to that and free nothing, so the tuner never fights the limit.
//
// All it knows comes from runtime/metrics, which stops nothing. Setting GOGC stops the world for
// some microseconds, so small changes are left.
// Source: runtime/mgcpacer.go (heap goal) and runtime/metrics/description.go, go1.26.
package gctune

import (
	"math"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"example.com/layerkit/go-runtime/internal/note"
)

// Options of a tuner; the zero value of each is its default.
type Options struct {
	Low      int           // percent: GOGC is never set lower; default 100, as Go's own
	High     int           // percent: nor higher; default 400
	Share    float64       // of the memory limit that Go's memory may fill; default 0.97, as Go's own
	Interval time.Duration // between two looks; default 100 ms
	// PauseGoal is for the 99th percentile of the pauses of a look's collections; default 10 ms.
	// Pauses over it mean that collections are too heavy for the machine as it is: fewer of them.
	PauseGoal time.Duration
}

// unlimitedHigh is High where there is no memory limit: nobody said that memory is free.
const unlimitedHigh = 200

// change is the least relative change of GOGC that is made.
const change = 0.1

// heapFloor is a heap that Go does not collect below at GOGC=100 (4 MiB, runtime/mgcpacer.go).
const heapFloor = 4 << 20

func (o Options) filled() Options {
	if o.Low <= 0 {
		o.Low = 100
	}
	if o.High <= 0 {
		o.High = 400
	}
	if o.High < o.Low {
		o.High = o.Low
	}
	if !(o.Share > 0 && o.Share <= 1) {
		o.Share = 0.97 // memoryLimitHeapGoalHeadroomPercent of runtime/mgcpacer.go is 3
	}
	if o.Interval <= 0 {
		o.Interval = 100 * time.Millisecond
	}
	if o.PauseGoal <= 0 {
		o.PauseGoal = 10 * time.Millisecond
	}
	return o
}

// Start tunes until stop is called, which puts the old GOGC back. With GOGC in the environment it
// does nothing: that wins.
func Start(options Options) (stop func()) {
	if os.Getenv("GOGC") != "" {
		return func() {}
	}
	reader := newReader()
	if !reader.works {
		note.Once("gctune", "gc tuner: this Go release lacks the metrics it needs: GOGC stays")
		return func() {}
	}
	done, ended := make(chan struct{}), make(chan struct{})
	old := debug.SetGCPercent(100)
	go func() {
		defer close(ended)
		tune(options.filled(), reader.read, set, done, time.Tick(options.filled().Interval))
	}()
	var once sync.Once
	return func() {
		once.Do(func() {
			close(done)
			<-ended
			debug.SetGCPercent(old)
		})
	}
}

func set(percent int) { debug.SetGCPercent(percent) }

// State is what a decision is made of; sizes are bytes.
type State struct {
	Cycles uint64        // collections so far
	Live   int64         // what the last collection found alive
	Roots  int64         // stacks and globals, which count as alive for the heap's goal
	Other  int64         // what Go uses besides the heap's objects
	Limit  int64         // Go's memory limit; math.MaxInt64 for none
	Pause  time.Duration // p99 of the pauses for collections since the last look; 0 for none
}

// tune looks at each tick and sets what Decide says, if that is a change worth its pause.
func tune(o Options, read func() State, set func(int), done <-chan struct{}, tick <-chan time.Time) {
	last, now := read(), 100
	for {
		select {
		case <-done:
			return
		case <-tick:
		}
		state := read()
		if state.Cycles == last.Cycles {
			continue
		}
		want := Decide(o, last, state)
		if math.Abs(float64(want-now)) >= change*float64(now) || (want == o.Low && now != want) {
			set(want)
			now = want
		}
		last = state
	}
}

// Decide is the rule: the GOGC for what was seen at the last look and is seen now. See the package
// comment.
func Decide(o Options, last, now State) int {
	o = o.filled()
	high := o.High
	if now.Limit == math.MaxInt64 {
		return between(o.Low, unlimitedHigh, min(high, unlimitedHigh))
	}
	live := now.Live
	if cycles := int64(now.Cycles - last.Cycles); now.Live > last.Live && last.Cycles > 0 && cycles > 1 {
		live += (now.Live - last.Live) / cycles * (cycles - 1) // before the next look as since the last
	}
	room := int64(o.Share*float64(now.Limit)) - now.Other
	base := max(live+now.Roots, heapFloor)
	fits := 100 * float64(room-live) / float64(base)
	if now.Pause > o.PauseGoal && fits > float64(o.Low) {
		fits *= 1.5 // collect less often than is comfortable: Go's limit still holds
	}
	if math.IsNaN(fits) || fits < float64(o.Low) {
		return o.Low
	}
	return between(o.Low, int(min(fits, float64(high))), high)
}

func between(low, value, high int) int { return max(low, min(value, high)) }
