// Package serve runs an HTTP handler the way a function should: on $HOST:$PORT, with time-outs,
// probes, and a graceful drain when the node stops it.
//
//	func main() {
//		serve.Main(handler, serve.WarmRequest("GET", "/?name=warm", ""))
//	}
//
// Probes, unless the handler is a ServeMux with patterns of its own for them:
//
//	/healthz  200 while the process answers
//	/readyz   200 while requests should come here; 503 once it drains, and with WaitWarm before
//	          it is warm
//	/warmz    runs the steps of package warm and the warm requests, answers with how each went;
//	          at most once a second
//
// A keep-alive probe at /warmz keeps an instance warm: what the first request needs is there.
package serve

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"example.com/layerkit/go-runtime/internal/environ"
	"example.com/layerkit/go-runtime/warm"
)

const (
	defaultPort   = "8080"
	headerTimeout = 10 * time.Second  // a client that drips headers holds no connection
	idleTimeout   = 120 * time.Second // above the 60 s of most load balancers: they close first
	drainTimeout  = 25 * time.Second  // below the 30 s that Kubernetes waits before it kills
)

// Option changes how a handler is served.
type Option func(*settings)

type settings struct {
	drainDelay   time.Duration
	drainTimeout time.Duration
	waitWarm     bool
	requests     []warmRequest
	steps        *warm.Set
}

// DrainDelay keeps answering for that long after SIGTERM, with /readyz at 503, so that load
// balancers stop sending first. Default: $LAYERKIT_DRAIN_DELAY, else 0.
func DrainDelay(d time.Duration) Option { return func(s *settings) { s.drainDelay = d } }

// DrainTimeout is how long running requests may take to end; default 25 s.
func DrainTimeout(d time.Duration) Option { return func(s *settings) { s.drainTimeout = d } }

// WaitWarm runs what /warmz runs at the start, and holds /readyz at 503 until it has ended.
func WaitWarm() Option { return func(s *settings) { s.waitWarm = true } }

// WarmRequest has /warmz send this request to the handler a few times on each processor, directly
// and over connections to the own listener, with the header `User-Agent: layerkit-warm`, so that
// code, pools and caches are touched. It must be harmless. IsWarm tells it apart.
func WarmRequest(method, target, body string) Option {
	return func(s *settings) { s.requests = append(s.requests, warmRequest{method, target, body}) }
}

func makeSettings(options []Option) *settings {
	s := &settings{drainTimeout: drainTimeout, steps: &warm.Default}
	s.drainDelay = environ.Duration("LAYERKIT_DRAIN_DELAY", 0, 0)
	for _, option := range options {
		option(s)
	}
	return s
}

// Main is Serve for func main: it ends the process, with status 1 after an error.
func Main(handler http.Handler, options ...Option) {
	if err := Serve(handler, options...); err != nil {
		log.Fatal(err)
	}
}

// Serve answers requests on $HOST:$PORT until SIGTERM or SIGINT, then finishes running ones. It
// returns nil after a clean drain. A second signal ends the process at once.
func Serve(handler http.Handler, options ...Option) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	context.AfterFunc(ctx, stop) // from then on a signal does what it does without us
	listener, err := net.Listen("tcp", net.JoinHostPort(os.Getenv("HOST"), port()))
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	log.Printf("listening on %s", listener.Addr())
	return ServeListener(ctx, listener, handler, options...)
}

// ServeListener is Serve on a listener that is open already; it drains when ctx is done.
func ServeListener(
	ctx context.Context, listener net.Listener, handler http.Handler, options ...Option,
) error {
	s := makeSettings(options)
	work, cancelWork := context.WithCancel(context.WithoutCancel(ctx))
	defer cancelWork() // what runs when the drain gives up
	front := newProbes(handler, s, newSelf(listener))
	server := &http.Server{
		Handler:           front,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		BaseContext:       func(net.Listener) context.Context { return work },
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	if s.waitWarm {
		go front.warmUp(work)
	}
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	front.draining.Store(true)
	select {
	case err := <-served:
		return err
	case <-time.After(s.drainDelay):
	}
	return drain(server, s.drainTimeout, served)
}

func drain(server *http.Server, patience time.Duration, served <-chan error) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil {
		return fmt.Errorf("drain: %w", errors.Join(err, server.Close()))
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// port is $PORT where it is a port.
func port() string {
	return environ.Get("PORT", defaultPort, "a number up to 65535", func(text string) (string, bool) {
		_, err := strconv.ParseUint(text, 10, 16)
		return text, err == nil
	})
}
