// Package serve runs an HTTP handler the way a function should: on $PORT, with timeouts, and with a
// graceful drain when the node stops it.
package serve

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

const (
	defaultPort   = "8080"
	headerTimeout = 10 * time.Second // a client that drips headers holds no connection
	drainTimeout  = 25 * time.Second // below the 30 s that Kubernetes waits before it kills
)

// Serve answers requests on $HOST:$PORT until SIGTERM or SIGINT, then finishes running ones. It
// returns nil after a clean drain.
func Serve(handler http.Handler) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	port := os.Getenv("PORT")
	if port == "" {
		port = defaultPort
	}
	listener, err := net.Listen("tcp", net.JoinHostPort(os.Getenv("HOST"), port))
	if err != nil {
		return fmt.Errorf("listen on port %s: %w", port, err)
	}
	return ServeListener(ctx, listener, handler)
}

// ServeListener is Serve on a listener that is open already; it drains when ctx is done.
func ServeListener(ctx context.Context, listener net.Listener, handler http.Handler) error {
	server := &http.Server{Handler: handler, ReadHeaderTimeout: headerTimeout}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	if err := server.Shutdown(drain); err != nil {
		return fmt.Errorf("drain: %w", err)
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
