package gctune

import (
	"math"
	"runtime"
	"runtime/debug"
	"slices"
	"testing"
	"time"
)

const mib = 1 << 20

func TestDecide(t *testing.T) {
	o := Options{Low: 50, High: 400, Share: 1, PauseGoal: time.Millisecond}
	for name, c := range map[string]struct {
		last, now State
		want      int
	}{
		"free memory, to the top":    {State{}, State{Cycles: 1, Live: 10 * mib, Limit: 1000 * mib}, 400},
		"what just fits":             {State{}, State{Cycles: 1, Live: 100 * mib, Limit: 300 * mib}, 200},
		"others need room, too":      {State{}, State{Cycles: 1, Live: 100 * mib, Other: 50 * mib, Limit: 300 * mib}, 150},
		"roots count as alive":       {State{}, State{Cycles: 1, Live: 100 * mib, Roots: 100 * mib, Limit: 300 * mib}, 100},
		"near the limit":             {State{}, State{Cycles: 1, Live: 100 * mib, Limit: 120 * mib}, 50},
		"over the limit":             {State{}, State{Cycles: 1, Live: 100 * mib, Limit: 80 * mib}, 50},
		"nothing alive":              {State{}, State{Cycles: 1, Limit: 80 * mib}, 400},
		"it grew, and is looked at":  {State{Cycles: 1, Live: 50 * mib}, State{Cycles: 2, Live: 100 * mib, Limit: 300 * mib}, 200},
		"it grows between looks":     {State{Cycles: 1, Live: 50 * mib}, State{Cycles: 11, Live: 100 * mib, Limit: 300 * mib}, 106},
		"it shrinks":                 {State{Cycles: 1, Live: 200 * mib}, State{Cycles: 2, Live: 100 * mib, Limit: 300 * mib}, 200},
		"long pauses, fewer of them": {State{}, State{Cycles: 1, Live: 100 * mib, Limit: 300 * mib, Pause: time.Second}, 300},
		"no limit":                   {State{}, State{Cycles: 1, Live: 10 * mib, Limit: math.MaxInt64}, 200},
	} {
		t.Run(name, func(t *testing.T) {
			if got := Decide(o, c.last, c.now); got != c.want {
				t.Errorf("got %d, want %d", got, c.want)
			}
		})
	}
}

func TestDecideStaysBetweenItsBounds(t *testing.T) {
	for _, live := range []int64{0, 1, mib, 1 << 40, math.MaxInt64 / 4} {
		for _, limit := range []int64{0, 1, mib, 1 << 40, math.MaxInt64 - 1, math.MaxInt64} {
			for _, o := range []Options{{}, {Low: 20, High: 10}, {Share: math.NaN()}, {Low: 1, High: 1000}} {
				got := Decide(o, State{}, State{Cycles: 1, Live: live, Limit: limit})
				full := o.filled()
				if got < full.Low || got > full.High {
					t.Errorf("live %d, limit %d, %+v: got %d", live, limit, o, got)
				}
			}
		}
	}
}

func TestSmallChangesAreLeft(t *testing.T) {
	lives := []int64{100 * mib, 101 * mib, 102 * mib, 150 * mib, 400 * mib}
	at := -1
	read := func() State {
		at++
		return State{Cycles: uint64(at), Live: lives[max(0, min(at, len(lives))-1)], Limit: 400 * mib}
	}
	done, tick := make(chan struct{}), make(chan time.Time)
	var sets []int
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		tune(Options{Low: 50, High: 400, Share: 1}, read, func(n int) { sets = append(sets, n) }, done, tick)
	}()
	for range lives {
		tick <- time.Time{}
	}
	close(done)
	<-ended
	want := []int{300, 50} // 101 and 102 MiB alive change nothing
	if len(sets) != 3 || sets[0] != want[0] || sets[2] != want[1] {
		t.Errorf("got %v, want 300, one between, 50", sets)
	}
	if !slices.IsSortedFunc(sets, func(a, b int) int { return b - a }) {
		t.Errorf("got %v, want a fall", sets)
	}
}

func TestStartAndStop(t *testing.T) {
	t.Setenv("GOGC", "")
	old := debug.SetGCPercent(77)
	defer debug.SetGCPercent(old)
	limit := debug.SetMemoryLimit(1 << 30)
	defer debug.SetMemoryLimit(limit)
	stop := Start(Options{Interval: time.Millisecond})
	for end := time.Now().Add(20 * time.Second); gogc() != 400; runtime.GC() {
		if time.Now().After(end) {
			t.Fatalf("GOGC: got %d, want 400", gogc())
		}
		time.Sleep(time.Millisecond)
	}
	stop()
	stop()
	if got := gogc(); got != 77 {
		t.Errorf("GOGC after stop: got %d, want 77", got)
	}
}

func TestTheEnvironmentWins(t *testing.T) {
	t.Setenv("GOGC", "33")
	old := debug.SetGCPercent(33)
	defer debug.SetGCPercent(old)
	stop := Start(Options{Interval: time.Millisecond})
	defer stop()
	runtime.GC()
	time.Sleep(5 * time.Millisecond)
	if got := gogc(); got != 33 {
		t.Errorf("GOGC: got %d, want 33", got)
	}
}

func TestReadSeesTheHeap(t *testing.T) {
	r := newReader()
	first := r.read()
	data := make([]byte, 64*mib)
	runtime.GC()
	got := r.read()
	if got.Live < 64*mib || got.Cycles <= first.Cycles || got.Other < 0 || got.Pause <= 0 {
		t.Errorf("got %+v", got)
	}
	runtime.KeepAlive(data)
}

func TestWhatTheHeapHasFreeIsNotUsedBesidesIt(t *testing.T) {
	r := newReader()
	old := debug.SetGCPercent(-1)
	defer debug.SetGCPercent(old)
	data := make([][]byte, 1024)
	for at := range data {
		data[at] = make([]byte, 128<<10)
	}
	full := r.read()
	clear(data)
	runtime.GC() // 128 MiB are free now, most of them not yet given back
	if got := r.read(); got.Other > full.Other+16*mib {
		t.Errorf("besides the heap: got %d MiB, before %d", got.Other/mib, full.Other/mib)
	}
}

func gogc() int {
	old := debug.SetGCPercent(100)
	debug.SetGCPercent(old)
	return old
}

func BenchmarkLook(b *testing.B) {
	r := newReader()
	for b.Loop() {
		_ = r.read()
	}
}
