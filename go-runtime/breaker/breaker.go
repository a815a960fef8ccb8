// Package breaker turns requests away from a handler that is ill, before it takes the process with
// it, and lets a few through to see whether it is well again.
//
//	p := portrait.New()
//	handler := breaker.New(p, p.Wrap("feed", feed), breaker.Options{})
//
// It opens when, by the portrait's looks of once a second,
//   - the 99th percentile of the latency was above Latency for LatencyFor, or
//   - there are more than Goroutines goroutines, and they grow by more than GoroutineGrowth a
//     second, or
//   - each request allocates AllocFactor times what it usually does, which is learned, for AllocFor;
//     or the handler allocates more than AllocRate, if that is set.
//
// Open, it answers 503 with Retry-After. After OpenFor it is half open: Probes requests go through,
// one at a time. If all end well it closes; if one does not it opens again, for twice as long.
package breaker

import (
	"log"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"example.com/layerkit/go-runtime/internal/answer"
	"example.com/layerkit/go-runtime/portrait"
)

// Options are the thresholds; the zero value of each is its default, a negative one turns its rule
// off.
type Options struct {
	Latency         time.Duration // default 500 ms
	LatencyFor      time.Duration // default 30 s
	Goroutines      int           // default 5,000
	GoroutineGrowth float64       // a second; default 50
	AllocFactor     float64       // of the learned bytes a request; default 10
	AllocFor        time.Duration // default 10 s
	AllocRate       float64       // bytes a second; default off: a busy JSON handler has 318 MB/s
	OpenFor         time.Duration // default 5 s
	OpenMost        time.Duration // what OpenFor doubles up to; default 60 s
	Probes          int           // default 5
	Log             func(format string, args ...any)
}

func (o Options) filled() Options {
	setDuration := func(value *time.Duration, usual time.Duration) {
		if *value == 0 {
			*value = usual
		}
	}
	setFloat := func(value *float64, usual float64) {
		if *value == 0 {
			*value = usual
		}
	}
	setDuration(&o.Latency, 500*time.Millisecond)
	setDuration(&o.LatencyFor, 30*time.Second)
	setDuration(&o.AllocFor, 10*time.Second)
	setDuration(&o.OpenFor, 5*time.Second)
	setDuration(&o.OpenMost, time.Minute)
	setFloat(&o.GoroutineGrowth, 50)
	setFloat(&o.AllocFactor, 10)
	if o.Goroutines == 0 {
		o.Goroutines = 5000
	}
	if o.Probes <= 0 {
		o.Probes = 5
	}
	if o.Log == nil {
		o.Log = log.Printf
	}
	return o
}

// State is how a breaker stands.
type State int

// The states.
const (
	Closed   State = iota // all requests go through
	HalfOpen              // probes do
	Open                  // none do
)

func (s State) String() string { return [...]string{"closed", "half open", "open"}[s] }

// Breaker is a handler before another one. Safe for use by several goroutines.
type Breaker struct {
	next    http.Handler
	name    string
	options Options
	now     func() time.Time

	isClosed atomic.Bool // as state says: a request of a healthy handler takes no lock

	mu      sync.Mutex
	state   State
	reason  string
	until   time.Time     // open: when it becomes half open
	openFor time.Duration // the next time
	probing bool          // half open: a probe is on its way
	good    int           // half open: probes that ended well
	rules   rules
}

// New is a breaker before a handler of the portrait; it follows the portrait's looks from now on.
func New(p *portrait.Portrait, handler *portrait.Handler, options Options) *Breaker {
	b := newBreaker(handler, handler.Name(), options, time.Now)
	p.Watch(b.follow)
	return b
}

// Guard is all of it in a line: next watched under a name by a portrait of its own, with a breaker
// before it, and the portrait's page at GET /debug/layerkit.
//
//	serve.Main(breaker.Guard("feed", mux, breaker.Options{}))
func Guard(name string, next http.Handler, options Options) http.Handler {
	p := portrait.New()
	return guard{New(p, p.Wrap(name, next), options), p.Page()}
}

type guard struct {
	*Breaker
	page http.Handler
}

func (g guard) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/debug/layerkit" && r.Method == http.MethodGet {
		g.page.ServeHTTP(w, r)
		return
	}
	g.Breaker.ServeHTTP(w, r)
}

// Unwrap is the handler behind the breaker.
func (b *Breaker) Unwrap() http.Handler { return b.next }

func newBreaker(next http.Handler, name string, options Options, now func() time.Time) *Breaker {
	o := options.filled()
	b := &Breaker{
		next: next, name: name, options: o, now: now, openFor: o.OpenFor, rules: rules{options: o},
	}
	b.isClosed.Store(true)
	return b
}

// State is how it stands, and why if it is not closed.
func (b *Breaker) State() (State, string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.passTime()
	return b.state, b.reason
}

// ServeHTTP lets a request through, or answers 503.
func (b *Breaker) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if b.isClosed.Load() {
		b.next.ServeHTTP(w, r)
		return
	}
	isProbe, wait := b.enter()
	if wait > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int((wait+time.Second-1)/time.Second)))
		http.Error(w, "the function is ill, try later", http.StatusServiceUnavailable)
		return
	}
	if !isProbe {
		b.next.ServeHTTP(w, r)
		return
	}
	started, probe := b.now(), answer.Wrap(w)
	defer func() { b.leave(probe.Status() < 500 && b.isQuick(b.now().Sub(started))) }()
	b.next.ServeHTTP(probe, r)
	probe.End()
}

func (b *Breaker) isQuick(took time.Duration) bool {
	return b.options.Latency < 0 || took <= b.options.Latency
}

// enter says whether a request is a probe, or how long to wait before trying again.
func (b *Breaker) enter() (isProbe bool, wait time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.passTime()
	switch {
	case b.state == Closed:
		return false, 0
	case b.state == HalfOpen && !b.probing:
		b.probing = true
		return true, 0
	case b.state == HalfOpen:
		return false, time.Second
	default:
		return false, max(b.until.Sub(b.now()), time.Millisecond)
	}
}

// leave ends a probe.
func (b *Breaker) leave(isGood bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.probing = false
	if b.state != HalfOpen {
		return
	}
	if !isGood {
		b.open("a probe failed: " + b.reason)
		return
	}
	if b.good++; b.good >= b.options.Probes {
		b.options.Log("layerkit: breaker of %s is closed again", b.name)
		b.state, b.reason, b.openFor = Closed, "", b.options.OpenFor
		b.isClosed.Store(true)
		b.rules.forget()
	}
}

// passTime makes an open breaker half open when its time is over.
func (b *Breaker) passTime() {
	if b.state == Open && !b.now().Before(b.until) {
		b.state, b.good, b.probing = HalfOpen, 0, false
	}
}

func (b *Breaker) open(reason string) {
	b.isClosed.Store(false)
	b.state, b.reason = Open, reason
	b.until = b.now().Add(b.openFor)
	b.options.Log("layerkit: breaker of %s is open for %v: %s", b.name, b.openFor, reason)
	b.openFor = min(2*b.openFor, b.options.OpenMost)
}

// follow takes one look of the portrait.
func (b *Breaker) follow(look portrait.Look) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.passTime()
	if reason := b.rules.check(look, look.Handlers[b.name]); reason != "" && b.state == Closed {
		b.open(reason)
		b.rules.forget()
	}
}
