package breaker

import (
	"fmt"
	"time"

	"example.com/layerkit/go-runtime/portrait"
)

const (
	// fewest requests of a slow streak: one slow request is no illness
	fewestRequests = 10
	// learnLooks with requests are taken before allocation is judged
	learnLooks = 30
	// learnRate is the weight of a look in what is learned
	learnRate = 0.05
	// trivialAlloc is an allocation rate that harms nobody, whatever was learned
	trivialAlloc = 64 << 20
)

// rules judge one look after the other.
type rules struct {
	options Options

	slowSince   time.Time // zero: not slow
	slowCount   uint64
	greedySince time.Time
	usual       float64 // learned bytes a request
	learned     int     // looks
	goroutines  int     // at the last look; 0: none yet
}

// forget begins new streaks; what was learned stays.
func (r *rules) forget() {
	r.slowSince, r.greedySince, r.slowCount, r.goroutines = time.Time{}, time.Time{}, 0, 0
}

// check is why the handler is ill, "" if it is not.
func (r *rules) check(look portrait.Look, window portrait.Window) string {
	slow := r.checkLatency(look, window)
	growing := r.checkGoroutines(look)
	greedy := r.checkAlloc(look, window)
	for _, reason := range []string{slow, growing, greedy} {
		if reason != "" {
			return reason
		}
	}
	return ""
}

// checkLatency: a second without requests says nothing, and neither ends a streak nor begins one.
func (r *rules) checkLatency(look portrait.Look, window portrait.Window) string {
	o := r.options
	if o.Latency < 0 || (window.Requests == 0 && window.InFlight == 0) {
		return ""
	}
	if window.Requests > 0 && window.P99 <= o.Latency {
		r.slowSince, r.slowCount = time.Time{}, 0
		return ""
	}
	if window.Requests == 0 { // all of them still run
		return ""
	}
	if r.slowSince.IsZero() {
		r.slowSince = look.Time
	}
	r.slowCount += window.Requests
	if look.Time.Sub(r.slowSince) >= o.LatencyFor && r.slowCount >= fewestRequests {
		return fmt.Sprintf("p99 is %v, above %v for %v", window.P99, o.Latency, o.LatencyFor)
	}
	return ""
}

func (r *rules) checkGoroutines(look portrait.Look) string {
	o, before := r.options, r.goroutines
	r.goroutines = look.Goroutines
	if o.Goroutines < 0 || before == 0 || look.Seconds <= 0 {
		return ""
	}
	growth := float64(look.Goroutines-before) / look.Seconds
	if look.Goroutines > o.Goroutines && growth > o.GoroutineGrowth {
		return fmt.Sprintf("%d goroutines, %.0f more a second", look.Goroutines, growth)
	}
	return ""
}

// checkAlloc learns what a request allocates while all is well, and judges by it. What a look of an
// ill handler shows is not learned.
func (r *rules) checkAlloc(look portrait.Look, window portrait.Window) string {
	o := r.options
	if o.AllocRate > 0 && window.AllocRate > o.AllocRate {
		return r.greedy(look, fmt.Sprintf("allocates %.0f MB/s", window.AllocRate/1e6))
	}
	if window.Requests == 0 || o.AllocFactor < 0 {
		return ""
	}
	each := window.AllocRate * look.Seconds / float64(window.Requests)
	if r.learned >= learnLooks && each > o.AllocFactor*r.usual && window.AllocRate > trivialAlloc {
		return r.greedy(look, fmt.Sprintf("allocates %.0f KB a request, usually %.0f", each/1e3, r.usual/1e3))
	}
	r.greedySince = time.Time{}
	if r.learned++; r.learned <= learnLooks {
		r.usual += (each - r.usual) / float64(r.learned)
	} else {
		r.usual += (each - r.usual) * learnRate
	}
	return ""
}

func (r *rules) greedy(look portrait.Look, reason string) string {
	if r.greedySince.IsZero() {
		r.greedySince = look.Time
	}
	if look.Time.Sub(r.greedySince) >= r.options.AllocFor {
		return reason
	}
	return ""
}
