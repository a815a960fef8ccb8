package portrait

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime/pprof"
	"runtime/trace"
	"strings"
	"testing"
	"time"
)

func TestBucketsHoldWhatTheyShould(t *testing.T) {
	for d := time.Duration(0); d < 100*time.Second; d = d*9/8 + 1 {
		at := bucketOf(d)
		if d >= upperBound(at) {
			t.Fatalf("%v: bucket %d ends at %v", d, at, upperBound(at))
		}
		if at > 0 && d < upperBound(at-1) {
			t.Fatalf("%v: bucket %d begins at %v", d, at, upperBound(at-1))
		}
		if at > 0 && float64(upperBound(at)) > 1.126*float64(upperBound(at-1)) {
			t.Fatalf("bucket %d is too wide: %v to %v", at, upperBound(at-1), upperBound(at))
		}
	}
	if got := bucketOf(1000 * time.Hour); got != bucketCount-1 {
		t.Errorf("an age: bucket %d", got)
	}
}

func TestQuantiles(t *testing.T) {
	var h histogram
	for n := range 1000 {
		h.add(n, time.Duration(n+1)*time.Millisecond)
	}
	c := h.read()
	for q, want := range map[float64]time.Duration{
		0: time.Millisecond, 0.5: 500 * time.Millisecond, 0.99: 990 * time.Millisecond, 1: time.Second,
	} {
		if got := c.quantile(q); got < want || float64(got) > 1.13*float64(want) {
			t.Errorf("%v: got %v, want %v and an eighth at most", q, got, want)
		}
	}
	if got := c.since(c).quantile(0.5); got != 0 {
		t.Errorf("of nothing: got %v", got)
	}
}

// ask sends one request to a handler.
func ask(h http.Handler) *httptest.ResponseRecorder {
	recorder := httptest.NewRecorder()
	h.ServeHTTP(recorder, httptest.NewRequest("GET", "/", nil))
	return recorder
}

func read(t *testing.T, p *Portrait) document {
	t.Helper()
	var d document
	if err := json.Unmarshal(ask(p.Page()).Body.Bytes(), &d); err != nil {
		t.Fatal(err)
	}
	return d
}

func TestThePageShowsWhatWasAnswered(t *testing.T) {
	p := New()
	defer p.Close()
	ok := p.Wrap("feed", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "hi")
	}))
	quiet := p.Wrap("feed", http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	bad := p.Wrap("feed", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusEarlyHints)
		w.WriteHeader(502)
	}))
	ask(ok)
	ask(quiet)
	ask(bad)
	got := read(t, p).Handlers["feed"]
	if got.Requests != 3 || got.Errors != 1 || got.InFlight != 0 || got.P50 <= 0 {
		t.Errorf("got %+v", got)
	}
}

func TestAPanicCountsAndGoesOn(t *testing.T) {
	p := New()
	defer p.Close()
	h := p.Wrap("x", http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		panic(http.ErrAbortHandler)
	}))
	func() {
		defer func() {
			if got := recover(); got != http.ErrAbortHandler {
				t.Errorf("recovered %v", got)
			}
		}()
		ask(h)
	}()
	if got := read(t, p).Handlers["x"]; got.Errors != 1 || got.InFlight != 0 {
		t.Errorf("got %+v", got)
	}
}

func TestPrometheusText(t *testing.T) {
	p := New()
	defer p.Close()
	ask(p.Wrap("a\"b\\\n", http.NotFoundHandler()))
	recorder := httptest.NewRecorder()
	request := httptest.NewRequest("GET", "/", nil)
	request.Header.Set("Accept", "application/openmetrics-text,text/plain;q=0.5")
	p.Page().ServeHTTP(recorder, request)
	text := recorder.Body.String()
	for _, want := range []string{
		`layerkit_handler_seconds_count{handler="a\"b\\\n"} 1`,
		`layerkit_handler_seconds_bucket{handler="a\"b\\\n",le="+Inf"} 1`,
		`layerkit_handler_requests_total{handler="a\"b\\\n",class="4xx"} 1`,
		"# TYPE layerkit_handler_seconds histogram", "layerkit_goroutines ",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in:\n%s", want, text)
		}
	}
}

func TestAllocationIsSharedOutByRunningTime(t *testing.T) {
	p := New()
	defer p.Close()
	var keep []byte
	greedy := p.Wrap("greedy", http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		for range 64 {
			keep = make([]byte, 1<<20)
			time.Sleep(time.Millisecond)
		}
	}))
	p.Wrap("idle", http.NotFoundHandler())
	process := newProcess()
	ask(greedy)
	look, _ := p.look(process.last.Add(time.Second), process)
	if got := look.Handlers["greedy"].AllocRate; got < 60<<20 || look.Handlers["idle"].AllocRate != 0 {
		t.Errorf("got %+v", look.Handlers)
	}
	_ = keep
}

func TestProfilesAndTracesNameTheHandler(t *testing.T) {
	p := New()
	defer p.Close()
	var out, profile bytes.Buffer
	if err := trace.Start(&out); err != nil {
		t.Skip("another trace runs")
	}
	ask(p.Wrap("named-handler", http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		trace.Log(r.Context(), "k", "v")
		_ = pprof.Lookup("goroutine").WriteTo(&profile, 1)
	})))
	trace.Stop()
	if !bytes.Contains(out.Bytes(), []byte("named-handler")) {
		t.Error("no task in the trace")
	}
	if !strings.Contains(profile.String(), `"handler":"named-handler"`) {
		t.Error("no label in the profile")
	}
}

func TestAStreamingHandlerStillStreams(t *testing.T) {
	p := New()
	defer p.Close()
	server := httptest.NewServer(p.Wrap("x", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := http.NewResponseController(w).SetWriteDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Error(err)
		}
		_, _ = io.WriteString(w, "first")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})))
	defer server.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	request, _ := http.NewRequestWithContext(ctx, "GET", server.URL, nil)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	got := make([]byte, 5)
	if _, err := io.ReadFull(response.Body, got); err != nil || string(got) != "first" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestWatchersGetLooks(t *testing.T) {
	p := New()
	looks := make(chan Look, 8)
	p.Watch(func(l Look) { looks <- l })
	ask(p.Wrap("x", http.NotFoundHandler()))
	if got := <-looks; got.Handlers["x"].Requests != 1 || got.Goroutines == 0 {
		t.Errorf("got %+v", got)
	}
	p.Close()
	p.Close()
}

func ExamplePortrait() {
	p := New()
	defer p.Close()
	hello := p.Wrap("hello", http.NotFoundHandler())
	ask(hello)
	fmt.Println(p.document().Handlers["hello"].Requests)
	// Output: 1
}

func TestASocketHasNoLatency(t *testing.T) {
	p := New()
	defer p.Close()
	server := httptest.NewServer(p.Wrap("socket", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\n\r\n")
		conn.Close()
	})))
	defer server.Close()
	response, err := http.Get(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	m := p.sorted()[0]
	for end := time.Now().Add(10 * time.Second); m.statuses[1].Load() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not counted")
		}
	}
	if got := m.latency.read().total(); got != 0 {
		t.Errorf("latencies: got %d, want none", got)
	}
}

func BenchmarkBare(b *testing.B) {
	benchmark(b, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
}

func BenchmarkMeasured(b *testing.B) {
	p := New()
	defer p.Close()
	benchmark(b, p.Wrap("x", http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})))
}

func benchmark(b *testing.B, h http.Handler) {
	w, r := httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil)
	for b.Loop() {
		h.ServeHTTP(w, r)
	}
}
