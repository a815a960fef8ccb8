package portrait

import (
	"maps"
	"runtime"
	"runtime/metrics"
	"slices"
	"time"
)

// Look is what a portrait saw at one moment, and since the one before.
type Look struct {
	Time       time.Time         `json:"time"`
	Seconds    float64           `json:"seconds"` // since the last look
	Goroutines int               `json:"goroutines"`
	AllocRate  float64           `json:"alloc_bytes_per_second"` // of the process
	HeapLive   uint64            `json:"heap_live_bytes"`
	Handlers   map[string]Window `json:"handlers"`
}

// Window is how one handler did since the last look.
type Window struct {
	Requests  uint64        `json:"requests"` // ended
	Errors    uint64        `json:"errors"`   // of status 500 and above
	InFlight  int64         `json:"in_flight"`
	P50       time.Duration `json:"p50_ns"`
	P99       time.Duration `json:"p99_ns"`
	AllocRate float64       `json:"alloc_bytes_per_second"` // its share; see the package
}

// seen is what was counted of a handler at a look.
type seen struct {
	counts *counts
	busy   time.Duration
	errors uint64
}

// Watch has watcher called after each look, one after the other: it must be quick.
func (p *Portrait) Watch(watcher func(Look)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.watchers = append(p.watchers, watcher)
}

// Last is the last look.
func (p *Portrait) Last() Look {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.last
}

func (p *Portrait) watch(ticker *time.Ticker) {
	defer ticker.Stop()
	process := newProcess()
	for {
		select {
		case <-p.stop:
			return
		case now := <-ticker.C:
			look, watchers := p.look(now, process)
			for _, watcher := range watchers {
				watcher(look)
			}
		}
	}
}

func (p *Portrait) look(now time.Time, process *process) (Look, []func(Look)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	allocated := process.read()
	look := Look{
		Time: now, Seconds: now.Sub(process.last).Seconds(), Goroutines: runtime.NumGoroutine(),
		HeapLive: process.live(), Handlers: map[string]Window{},
	}
	process.last = now
	if look.Seconds <= 0 {
		look.Seconds = Interval.Seconds()
	}
	look.AllocRate = float64(allocated) / look.Seconds
	busy := map[string]time.Duration{}
	all := time.Duration(0)
	for name, m := range p.handlers {
		at := m.busyTime()
		busy[name] = max(0, at-m.before.busy)
		m.before.busy = at
		all += busy[name]
	}
	for name, m := range p.handlers {
		window := m.window()
		if all > 0 {
			share := float64(busy[name]) / float64(all)
			window.AllocRate = look.AllocRate * share
			m.alloc.Add(uint64(float64(allocated) * share))
		}
		look.Handlers[name] = window
	}
	p.last = look
	return look, slices.Clone(p.watchers)
}

func (m *measures) window() Window {
	now, errors := m.latency.read(), m.statuses[5].Load()
	fresh := now.since(m.before.counts)
	window := Window{
		Requests: fresh.total(),
		Errors:   errors - m.before.errors,
		InFlight: m.inFlight.Load(),
		P50:      fresh.quantile(0.5),
		P99:      fresh.quantile(0.99),
	}
	m.before.counts, m.before.errors = now, errors
	return window
}

// process reads the process's own counters, which stops nothing.
type process struct {
	samples   []metrics.Sample
	allocated uint64
	last      time.Time
}

func newProcess() *process {
	p := &process{last: time.Now(), samples: []metrics.Sample{
		{Name: "/gc/heap/allocs:bytes"}, {Name: "/gc/heap/live:bytes"},
	}}
	p.read()
	return p
}

// read is what was allocated since the last read.
func (p *process) read() uint64 {
	metrics.Read(p.samples)
	now := p.value(0)
	fresh := now - p.allocated
	p.allocated = now
	return fresh
}

func (p *process) live() uint64 { return p.value(1) }

func (p *process) value(at int) uint64 {
	if p.samples[at].Value.Kind() != metrics.KindUint64 {
		return 0 // a release without that metric
	}
	return p.samples[at].Value.Uint64()
}

// sorted is the measures by name.
func (p *Portrait) sorted() []*measures {
	p.mu.Lock()
	defer p.mu.Unlock()
	found := make([]*measures, 0, len(p.handlers))
	for _, name := range slices.Sorted(maps.Keys(p.handlers)) {
		found = append(found, p.handlers[name])
	}
	return found
}
