package breaker

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"example.com/layerkit/go-runtime/portrait"
)

// world is a breaker with a clock of its own, before a handler that does what it is told.
type world struct {
	*Breaker
	clock  time.Time
	status int
	took   time.Duration
}

func newWorld(o Options) *world {
	w := &world{clock: time.Unix(1e9, 0), status: 200}
	o.Log = func(string, ...any) {}
	next := http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		w.clock = w.clock.Add(w.took)
		if w.status == 0 {
			panic(http.ErrAbortHandler)
		}
		rw.WriteHeader(w.status)
	})
	w.Breaker = newBreaker(next, "fn", o, func() time.Time { return w.clock })
	return w
}

// look passes a second in which the handler did like that.
func (w *world) look(goroutines int, window portrait.Window) {
	w.clock = w.clock.Add(time.Second)
	w.follow(portrait.Look{
		Time: w.clock, Seconds: 1, Goroutines: goroutines,
		Handlers: map[string]portrait.Window{"fn": window},
	})
}

func (w *world) looks(n int, window portrait.Window) {
	for range n {
		w.look(100, window)
	}
}

func (w *world) ask() *httptest.ResponseRecorder {
	recorder := httptest.NewRecorder()
	defer func() { _ = recover() }()
	w.ServeHTTP(recorder, httptest.NewRequest("GET", "/", nil))
	return recorder
}

func (w *world) is(t *testing.T, want State, reason string) {
	t.Helper()
	if got, why := w.State(); got != want || !strings.Contains(why, reason) {
		t.Errorf("got %v because %q, want %v because %q", got, why, want, reason)
	}
}

var (
	well = portrait.Window{Requests: 100, P99: 20 * time.Millisecond, AllocRate: 1e6}
	slow = portrait.Window{Requests: 100, P99: 600 * time.Millisecond, AllocRate: 1e6}
)

func TestItOpensWhenItIsSlowForLong(t *testing.T) {
	w := newWorld(Options{})
	w.looks(30, slow)
	w.is(t, Closed, "")
	w.looks(1, slow)
	w.is(t, Open, "p99")
}

func TestAGoodSecondEndsTheStreak(t *testing.T) {
	w := newWorld(Options{})
	w.looks(29, slow)
	w.looks(1, well)
	w.looks(29, slow)
	w.is(t, Closed, "")
}

func TestASecondWithoutRequestsSaysNothing(t *testing.T) {
	w := newWorld(Options{})
	w.looks(20, slow)
	w.looks(5, portrait.Window{})
	w.looks(6, slow)
	w.is(t, Open, "p99")
}

func TestOneSlowRequestIsNoIllness(t *testing.T) {
	w := newWorld(Options{})
	w.look(1, portrait.Window{Requests: 1, P99: time.Minute})
	w.looks(100, portrait.Window{})
	w.look(1, portrait.Window{Requests: 1, P99: time.Minute})
	w.is(t, Closed, "")
}

func TestItOpensWhenGoroutinesGrow(t *testing.T) {
	for name, c := range map[string]struct {
		counts []int
		want   State
	}{
		"many and more":          {[]int{5100, 5200}, Open},
		"many that stay":         {[]int{9000, 9050, 9100}, Closed},
		"few that grow":          {[]int{100, 4000}, Closed},
		"many at the first look": {[]int{9000}, Closed},
	} {
		w := newWorld(Options{})
		for _, n := range c.counts {
			w.look(n, well)
		}
		if got, _ := w.State(); got != c.want {
			t.Errorf("%s: got %v, want %v", name, got, c.want)
		}
	}
}

func TestItLearnsWhatARequestAllocates(t *testing.T) {
	w := newWorld(Options{})
	busy := portrait.Window{Requests: 60_000, P99: time.Millisecond, AllocRate: 318e6}
	w.looks(learnLooks, busy)
	busier := busy
	busier.Requests, busier.AllocRate = 600_000, 3180e6 // ten times the load is not greedy
	w.looks(60, busier)
	w.is(t, Closed, "")
	greedy := busy
	greedy.Requests = 1000
	w.looks(10, greedy)
	w.is(t, Closed, "")
	w.looks(1, greedy)
	w.is(t, Open, "a request")
}

func TestAFixedAllocationRateIsAnOption(t *testing.T) {
	w := newWorld(Options{AllocRate: 10e6, AllocFor: time.Second})
	w.looks(2, portrait.Window{Requests: 10, AllocRate: 11e6})
	w.is(t, Open, "11 MB/s")
}

func TestRulesCanBeTurnedOff(t *testing.T) {
	w := newWorld(Options{Latency: -1, Goroutines: -1, AllocFactor: -1})
	w.looks(100, slow)
	w.look(100_000, slow)
	w.look(200_000, portrait.Window{Requests: 1, AllocRate: 1e12})
	w.is(t, Closed, "")
}

// opened is a world whose breaker has just opened.
func opened(o Options) *world {
	w := newWorld(o)
	w.looks(31, slow)
	return w
}

func TestOpenItAnswers503WithRetryAfter(t *testing.T) {
	w := opened(Options{})
	got := w.ask()
	if got.Code != 503 || got.Header().Get("Retry-After") != "5" {
		t.Errorf("got %d, Retry-After %q", got.Code, got.Header().Get("Retry-After"))
	}
}

func TestProbesCloseIt(t *testing.T) {
	w := opened(Options{})
	w.clock = w.clock.Add(5 * time.Second)
	for n := range 5 {
		w.is(t, HalfOpen, "p99")
		if got := w.ask(); got.Code != 200 {
			t.Fatalf("probe %d: got %d", n, got.Code)
		}
	}
	w.is(t, Closed, "")
}

func TestOneProbeAtATime(t *testing.T) {
	w := opened(Options{})
	w.clock = w.clock.Add(5 * time.Second)
	if isProbe, wait := w.enter(); !isProbe || wait != 0 {
		t.Fatalf("first: got %v, %v", isProbe, wait)
	}
	if got := w.ask(); got.Code != 503 {
		t.Errorf("second: got %d", got.Code)
	}
	w.leave(true)
	if got := w.ask(); got.Code != 200 {
		t.Errorf("third: got %d", got.Code)
	}
}

func TestABadProbeOpensItForLonger(t *testing.T) {
	for name, spoil := range map[string]func(*world){
		"status 500": func(w *world) { w.status = 500 },
		"panic":      func(w *world) { w.status = 0 },
		"slow":       func(w *world) { w.took = time.Second },
	} {
		w := opened(Options{OpenMost: 15 * time.Second})
		spoil(w)
		for _, wait := range []time.Duration{5, 10, 15, 15} {
			w.clock = w.clock.Add(wait*time.Second - time.Millisecond)
			if got, _ := w.State(); got != Open {
				t.Errorf("%s: %v before %d s", name, got, wait)
			}
			w.clock = w.clock.Add(time.Millisecond)
			w.ask()
			w.is(t, Open, "a probe failed")
		}
	}
}

func TestAWholeBreakerOverAPortrait(t *testing.T) {
	p := portrait.New()
	defer p.Close()
	b := New(p, p.Wrap("fn", http.NotFoundHandler()), Options{})
	recorder := httptest.NewRecorder()
	b.ServeHTTP(recorder, httptest.NewRequest("GET", "/", nil))
	if recorder.Code != 404 {
		t.Errorf("got %d", recorder.Code)
	}
}

func TestGuardServesThePage(t *testing.T) {
	guarded := Guard("fn", http.NotFoundHandler(), Options{})
	for path, want := range map[string]int{"/x": 404, "/debug/layerkit": 200} {
		recorder := httptest.NewRecorder()
		guarded.ServeHTTP(recorder, httptest.NewRequest("GET", path, nil))
		if recorder.Code != want {
			t.Errorf("%s: got %d, want %d", path, recorder.Code, want)
		}
		if want == 200 && !strings.Contains(recorder.Body.String(), `"fn"`) {
			t.Errorf("page: got %s", recorder.Body)
		}
	}
}

func ExampleNew() {
	p := portrait.New()
	defer p.Close()
	b := New(p, p.Wrap("fn", http.NotFoundHandler()), Options{Latency: time.Second})
	state, _ := b.State()
	fmt.Println(state)
	// Output: closed
}

func BenchmarkClosed(b *testing.B) {
	w := newWorld(Options{})
	recorder, request := httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil)
	b.ReportAllocs()
	for b.Loop() {
		w.ServeHTTP(recorder, request)
	}
}
