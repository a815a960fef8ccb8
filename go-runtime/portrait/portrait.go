// Package portrait shows how a function's handlers do: latency, requests that run, errors, what
// they allocate, goroutines; as JSON and Prometheus text, as tasks and regions of runtime/trace, and
// as labels of profiles.
//
//	p := portrait.New()
//	defer p.Close()
//	mux.Handle("GET /feed", p.Wrap("feed", feed))
//	mux.Handle("GET /debug/layerkit", p.Page())
//
// Allocation is measured for the process, once a second, and shared out by the time that each
// handler's requests ran in that second: Go does not count it by goroutine.
package portrait

import (
	"context"
	"math/rand/v2"
	"net/http"
	"runtime/pprof"
	"runtime/trace"
	"sync"
	"sync/atomic"
	"time"

	"example.com/layerkit/go-runtime/internal/answer"
)

// Interval is between two looks of a portrait.
const Interval = time.Second

// Portrait measures the handlers that it wraps.
type Portrait struct {
	mu       sync.Mutex
	handlers map[string]*measures
	watchers []func(Look)
	last     Look
	stop     chan struct{}
	stopped  sync.Once
}

// New is a portrait that looks once each Interval until Close.
func New() *Portrait {
	p := &Portrait{handlers: map[string]*measures{}, stop: make(chan struct{})}
	go p.watch(time.NewTicker(Interval))
	return p
}

// Close ends the looking; handlers go on.
func (p *Portrait) Close() { p.stopped.Do(func() { close(p.stop) }) }

// measures is what is counted under one name.
type measures struct {
	name     string
	labels   context.Context // with the profile labels, made once
	epoch    time.Time
	latency  histogram
	statuses [6]atomic.Uint64 // by class; 0: other
	inFlight atomic.Int64
	busy     atomic.Int64 // ns that ended requests ran
	begun    atomic.Int64 // sum of the starts of running ones, ns since epoch
	alloc    atomic.Uint64
	before   seen // at the last look
}

// Handler is a measured handler.
type Handler struct {
	*measures
	next http.Handler
}

// Wrap measures next under a name. Handlers of one name are measured together.
func (p *Portrait) Wrap(name string, next http.Handler) *Handler {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := p.handlers[name]
	if m == nil {
		m = &measures{
			name:   name,
			labels: pprof.WithLabels(context.Background(), pprof.Labels("handler", name)),
			epoch:  time.Now(),
			before: seen{counts: &counts{}},
		}
		p.handlers[name] = m
	}
	return &Handler{m, next}
}

// Name is the name that the handler is measured under.
func (h *Handler) Name() string { return h.name }

// Unwrap is the handler that is measured.
func (h *Handler) Unwrap() http.Handler { return h.next }

// ServeHTTP measures one request. One that panics counts as status 500; one whose connection the
// handler takes over (Hijack) has no latency.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if trace.IsEnabled() {
		ctx, task := trace.NewTask(r.Context(), h.name)
		defer task.End()
		defer trace.StartRegion(ctx, "serve").End()
		r = r.WithContext(ctx)
	}
	started := time.Since(h.epoch)
	h.inFlight.Add(1)
	h.begun.Add(int64(started))
	measured := answer.Wrap(w)
	pprof.SetGoroutineLabels(h.labels)
	defer func() { h.end(started, measured.Status()) }()
	h.next.ServeHTTP(measured, r)
	measured.End()
}

// unlabeled is what net/http's goroutines have; asking a request's context, five deep, costs more.
var unlabeled = context.Background()

func (m *measures) end(started time.Duration, status int) {
	pprof.SetGoroutineLabels(unlabeled)
	took := time.Since(m.epoch) - started
	if status != http.StatusSwitchingProtocols { // how long a socket stays open is no latency
		m.latency.add(int(rand.Uint32()), took)
	}
	m.statuses[class(status)].Add(1)
	m.busy.Add(int64(took))
	m.begun.Add(-int64(started))
	m.inFlight.Add(-1)
}

func class(status int) int {
	if status >= 100 && status < 600 {
		return status / 100
	}
	return 0
}

// busyTime is for how long requests have run in all, those that run still included.
func (m *measures) busyTime() time.Duration {
	running := time.Duration(m.inFlight.Load())*time.Since(m.epoch) - time.Duration(m.begun.Load())
	return time.Duration(m.busy.Load()) + max(0, running)
}
