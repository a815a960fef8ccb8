package serve

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"example.com/layerkit/go-runtime/breaker"
	"example.com/layerkit/go-runtime/internal/note"
	"example.com/layerkit/go-runtime/warm"
)

// started is a handler being served: its URL, and stop, which drains it and gives Serve's error.
func started(t *testing.T, handler http.Handler, options ...Option) (url string, stop func() error) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- ServeListener(ctx, listener, handler, append([]Option{ownSteps()}, options...)...)
	}()
	stop = sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
	t.Cleanup(func() { _ = stop() })
	return "http://" + listener.Addr().String(), stop
}

// ownSteps keeps a test's steps out of the default set.
func ownSteps() Option { return func(s *settings) { s.steps = &warm.Set{} } }

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	response, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, strings.TrimSpace(string(body))
}

func text(body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, body) }
}

func TestDrainFinishesRunningRequests(t *testing.T) {
	begun, release := make(chan struct{}), make(chan struct{})
	url, stop := started(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(begun)
		<-release
		_, _ = fmt.Fprint(w, r.Context().Err())
	}))
	answers := make(chan string, 1)
	go func() {
		response, err := http.Get(url)
		if err != nil {
			answers <- err.Error()
			return
		}
		defer response.Body.Close()
		body, _ := io.ReadAll(response.Body)
		answers <- string(body)
	}()
	<-begun
	time.AfterFunc(50*time.Millisecond, func() { close(release) })
	if err := stop(); err != nil {
		t.Errorf("drain: got %v, want nil", err)
	}
	if got := <-answers; got != "<nil>" {
		t.Errorf("answer: got %q, want a context that is not done", got)
	}
}

func TestADrainThatTakesTooLongCancelsRequests(t *testing.T) {
	begun, cancelled := make(chan struct{}), make(chan struct{})
	url, stop := started(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(begun)
		<-r.Context().Done()
		close(cancelled)
	}), DrainTimeout(10*time.Millisecond))
	go func() {
		if response, err := http.Get(url); err == nil {
			response.Body.Close()
		}
	}()
	<-begun
	if err := stop(); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("drain: got %v, want deadline exceeded", err)
	}
	<-cancelled
}

func TestProbes(t *testing.T) {
	url, stop := started(t, text("mine"), DrainDelay(300*time.Millisecond))
	for path, want := range map[string]string{
		"/healthz": `{"status":"ok"}`, "/readyz": `{"status":"ready"}`, "/": "mine", "/healthz/x": "mine",
	} {
		if status, body := get(t, url+path); status != 200 || body != want {
			t.Errorf("%s: got %d %s, want %s", path, status, body, want)
		}
	}
	response, err := http.Post(url+"/healthz", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if body, _ := io.ReadAll(response.Body); string(body) != "mine" {
		t.Errorf("POST /healthz: got %s", body)
	}
	go stop()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		status, body := get(t, url+"/readyz")
		if status == 503 && body == `{"status":"draining"}` {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("draining: got %d %s", status, body)
		}
	}
}

func TestAHandlersOwnProbesStay(t *testing.T) {
	mux := http.NewServeMux()
	mux.Handle("GET /healthz", text("my health"))
	mux.Handle("/", text("the rest"))
	for name, handler := range map[string]http.Handler{
		"bare": mux, "guarded": breaker.Guard("fn", mux, breaker.Options{}),
	} {
		url, _ := started(t, handler)
		if _, body := get(t, url+"/healthz"); body != "my health" {
			t.Errorf("%s, /healthz: got %s", name, body)
		}
		if _, body := get(t, url+"/readyz"); body != `{"status":"ready"}` {
			t.Errorf("%s, /readyz: got %s", name, body)
		}
	}
}

func TestWarmzRunsStepsAndRequests(t *testing.T) {
	var warmCount, realCount atomic.Int32
	steps := &warm.Set{}
	steps.Add("bad", func(context.Context) error { return errors.New("no host") })
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if IsWarm(r) && r.FormValue("name") == "x" && string(body) == "hi" {
			warmCount.Add(1)
		} else {
			realCount.Add(1)
		}
		_, _ = io.WriteString(w, "ok")
	})
	p := newProbes(handler, &settings{steps: steps, requests: []warmRequest{{"PUT", "/?name=x", "hi"}}}, nil)
	got := p.warmUp(context.Background())
	if len(got.Steps) < 2 || got.Steps[0].Error != "no host" || got.Steps[1].Error != "" {
		t.Errorf("got %+v", got)
	}
	if warmCount.Load() == 0 || realCount.Load() != 0 {
		t.Errorf("warm requests: %d, others: %d", warmCount.Load(), realCount.Load())
	}
	before := warmCount.Load()
	if p.warmUp(context.Background()); warmCount.Load() != before {
		t.Error("a second probe at once runs all again")
	}
}

func TestAWarmRequestThatFailsIsToldNotFatal(t *testing.T) {
	for name, handler := range map[string]http.HandlerFunc{
		"panic":      func(http.ResponseWriter, *http.Request) { panic("oh") },
		"status 500": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) },
	} {
		url, _ := started(t, handler, WarmRequest("GET", "/", ""))
		status, body := get(t, url+"/warmz")
		var got report
		if err := json.Unmarshal([]byte(body), &got); err != nil || status != 200 {
			t.Fatalf("got %d %s", status, body)
		}
		if len(got.Steps) != 1 || !strings.Contains(got.Steps[0].Error, name) {
			t.Errorf("got %s, want %s", body, name)
		}
	}
	bad := warmRequest{"GET", "no path", ""}
	if err := bad.send(context.Background(), text(""), nil); err == nil {
		t.Error("a malformed request: got no error")
	}
}

func TestWarmRequestsComeOverConnections(t *testing.T) {
	var direct, wired, strange atomic.Int32
	url, _ := started(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		switch {
		case !IsWarm(r) || r.Header.Get(warmHeader) != "" || string(body) != "hi":
			strange.Add(1)
		case r.RemoteAddr == "127.0.0.1:0":
			direct.Add(1)
		default:
			wired.Add(1)
		}
	}), WarmRequest("PUT", "/", "hi"))
	get(t, url+"/warmz")
	if direct.Load() == 0 || wired.Load() < wireRounds || strange.Load() != 0 {
		t.Errorf("direct %d, over connections %d, strange %d", direct.Load(), wired.Load(), strange.Load())
	}
	request, _ := http.NewRequest("PUT", url, strings.NewReader("hi"))
	request.Header.Set(warmHeader, "guessed")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if strange.Load() != 1 {
		t.Error("a stranger's request counts as warm")
	}
}

// hidden is a listener of a kind that the server does not know how to reach.
type hidden struct{ net.Listener }

func TestAListenerThatCannotBeReachedIsWarmedDirectly(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	if newSelf(hidden{listener}) != nil {
		t.Error("reached")
	}
	var count atomic.Int32
	handler := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { count.Add(1) })
	gone := &self{"tcp", "127.0.0.1:1", "token"}
	if err := (warmRequest{"GET", "/", ""}).send(t.Context(), handler, gone); err != nil || count.Load() == 0 {
		t.Errorf("got %v after %d requests", err, count.Load())
	}
}

func TestReadyWaitsUntilItIsWarm(t *testing.T) {
	release := make(chan struct{})
	steps := &warm.Set{}
	steps.Add("slow", func(context.Context) error { <-release; return nil })
	p := newProbes(text(""), &settings{steps: steps, waitWarm: true}, nil)
	if !p.cold.Load() {
		t.Error("not cold at the start")
	}
	close(release)
	p.warmUp(context.Background())
	if p.cold.Load() {
		t.Error("still cold")
	}
}

func TestNonsenseInTheEnvironmentIsSaidAndLeft(t *testing.T) {
	note.Forget()
	var out bytes.Buffer
	log.SetOutput(&out)
	defer log.SetOutput(os.Stderr)
	t.Setenv("PORT", "http")
	t.Setenv("LAYERKIT_DRAIN_DELAY", "soon")
	if got := port(); got != defaultPort {
		t.Errorf("port: got %s", got)
	}
	if got := makeSettings(nil); got.drainDelay != 0 {
		t.Errorf("drain delay: got %v", got.drainDelay)
	}
	for _, name := range []string{"PORT", "LAYERKIT_DRAIN_DELAY"} {
		if !strings.Contains(out.String(), name) {
			t.Errorf("log without %s: %s", name, out.String())
		}
	}
}

func ExampleServeListener() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	stop() // a function stops when its context is done
	fmt.Println(ServeListener(ctx, listener, http.NotFoundHandler()))
	// Output: <nil>
}

func BenchmarkFront(b *testing.B) {
	p := newProbes(text("ok"), &settings{steps: &warm.Set{}}, &self{token: "token"})
	request, _ := http.NewRequest(http.MethodGet, "/feed", nil)
	for b.Loop() {
		p.ServeHTTP(&discard{header: http.Header{}}, request)
	}
}
