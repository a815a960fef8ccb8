package gctune

import (
	"math"
	"runtime/metrics"
	"time"
)

// The metrics that are read, in the order of names.
const (
	cycles = iota
	live
	stacks
	globals
	objects
	unused
	free
	total
	released
	limit
	pauses
	count
)

var names = [count]string{
	cycles:   "/gc/cycles/total:gc-cycles",
	live:     "/gc/heap/live:bytes",
	stacks:   "/gc/scan/stack:bytes",
	globals:  "/gc/scan/globals:bytes",
	objects:  "/memory/classes/heap/objects:bytes",
	unused:   "/memory/classes/heap/unused:bytes",
	free:     "/memory/classes/heap/free:bytes",
	total:    "/memory/classes/total:bytes",
	released: "/memory/classes/heap/released:bytes",
	limit:    "/gc/gomemlimit:bytes",
	pauses:   "/sched/pauses/total/gc:seconds",
}

// reader reads a State; not for use by several goroutines.
type reader struct {
	samples [count]metrics.Sample
	works   bool
	before  []uint64 // counts of the pauses at the last read
}

func newReader() *reader {
	r := &reader{works: true}
	for at, name := range names {
		r.samples[at].Name = name
	}
	metrics.Read(r.samples[:])
	for at := range r.samples {
		want := metrics.KindUint64
		if at == pauses {
			want = metrics.KindFloat64Histogram
		}
		r.works = r.works && r.samples[at].Value.Kind() == want
	}
	return r
}

func (r *reader) size(at int) int64 {
	return int64(min(r.samples[at].Value.Uint64(), math.MaxInt64))
}

func (r *reader) read() State {
	metrics.Read(r.samples[:])
	heap := r.size(objects) + r.size(unused) + r.size(free) // what it gave back may be free for long
	return State{
		Cycles: r.samples[cycles].Value.Uint64(),
		Live:   r.size(live),
		Roots:  r.size(stacks) + r.size(globals),
		Other:  max(0, r.size(total)-r.size(released)-heap),
		Limit:  r.size(limit),
		Pause:  r.pause(),
	}
}

// pause is the 99th percentile of the pauses since the last read: the upper bound of its bucket.
func (r *reader) pause() time.Duration {
	histogram := r.samples[pauses].Value.Float64Histogram()
	if len(r.before) != len(histogram.Counts) {
		r.before = make([]uint64, len(histogram.Counts))
	}
	var seen uint64
	for at, n := range histogram.Counts {
		seen += n - r.before[at]
	}
	left := seen - seen*99/100 // as many are at or above it
	found := time.Duration(0)
	for at := len(histogram.Counts) - 1; at >= 0 && seen > 0; at-- {
		n := histogram.Counts[at] - r.before[at]
		if n >= left {
			bound := histogram.Buckets[at+1]
			if math.IsInf(bound, 1) {
				bound = histogram.Buckets[at]
			}
			found = time.Duration(bound * float64(time.Second))
			break
		}
		left -= n
	}
	copy(r.before, histogram.Counts)
	return found
}
