package serve

import (
	"context"
	"encoding/json"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"example.com/layerkit/go-runtime/warm"
)

const (
	warmTimeout = 10 * time.Second // for all steps of one /warmz
	warmPause   = time.Second      // within it /warmz tells of the last time: nobody may wear it out
)

// probes answers the three paths and passes everything else on.
type probes struct {
	next     http.Handler
	own      map[string]http.HandlerFunc
	steps    *warm.Set
	self     *self
	draining atomic.Bool
	cold     atomic.Bool // and to be waited for
	mu       sync.Mutex
	last     report
	lastTime time.Time
}

// report is the answer of /warmz.
type report struct {
	Seconds float64       `json:"seconds"`
	Steps   []warm.Result `json:"steps"`
}

func newProbes(next http.Handler, s *settings, self *self) *probes {
	p := &probes{next: next, steps: s.steps, self: self}
	p.own = map[string]http.HandlerFunc{
		"/healthz": p.health, "/readyz": p.ready, "/warmz": p.warm,
	}
	for path := range p.own {
		if hasPattern(next, path) {
			delete(p.own, path)
		}
	}
	for _, one := range s.requests {
		s.steps.Add(one.name(), func(ctx context.Context) error { return one.send(ctx, next, self) })
	}
	p.cold.Store(s.waitWarm)
	return p
}

// hasPattern says whether the handler is a ServeMux with a pattern for just this path, or wraps one
// (portrait, breaker).
func hasPattern(handler http.Handler, path string) bool {
	for {
		wrapper, ok := handler.(interface{ Unwrap() http.Handler })
		if !ok {
			break
		}
		handler = wrapper.Unwrap()
	}
	mux, ok := handler.(*http.ServeMux)
	if !ok {
		return false
	}
	request, err := http.NewRequest(http.MethodGet, path, nil)
	if err != nil {
		return false
	}
	_, pattern := mux.Handler(request)
	return pattern == path || pattern == "GET "+path
}

func (p *probes) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		if own, ok := p.own[r.URL.Path]; ok {
			w.Header().Set("Cache-Control", "no-store")
			own(w, r)
			return
		}
	}
	if p.self.isOwn(r) {
		r = markWarm(r)
	}
	p.next.ServeHTTP(w, r)
}

func (p *probes) health(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, map[string]string{"status": "ok"})
}

func (p *probes) ready(w http.ResponseWriter, _ *http.Request) {
	switch {
	case p.draining.Load():
		answer(w, http.StatusServiceUnavailable, map[string]string{"status": "draining"})
	case p.cold.Load():
		answer(w, http.StatusServiceUnavailable, map[string]string{"status": "warming"})
	default:
		answer(w, http.StatusOK, map[string]string{"status": "ready"})
	}
}

// warm answers 200 also when a step failed: the instance is no worse than without the probe.
func (p *probes) warm(w http.ResponseWriter, r *http.Request) {
	answer(w, http.StatusOK, p.warmUp(r.Context()))
}

// warmUp runs all steps, one caller at a time; who comes soon after gets the same report. They run
// to their end though the caller has gone.
func (p *probes) warmUp(ctx context.Context) report {
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Since(p.lastTime) < warmPause {
		return p.last
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), warmTimeout)
	defer cancel()
	started := time.Now()
	steps := p.steps.Run(ctx)
	p.last = report{time.Since(started).Seconds(), steps}
	p.lastTime = time.Now()
	p.cold.Store(false)
	return p.last
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // the prober has gone
}
