package serve

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"sync"
)

const (
	warmAgent = "layerkit-warm"
	// warmRounds is how often each processor sends a warm request: the first fills caches, later
	// ones run what the first has grown (stacks, pools).
	warmRounds = 3
)

type warmKey struct{}

// IsWarm says whether a request is one of WarmRequest, so that a handler can leave out what only a
// real caller should cause: an entry in a ledger, a mail.
func IsWarm(r *http.Request) bool { return r.Context().Value(warmKey{}) != nil }

type warmRequest struct{ method, target, body string }

func (w warmRequest) name() string { return fmt.Sprintf("request %s %s", w.method, w.target) }

// send runs the request through the handler on all processors. A status from 500 on is an error, as
// is a panic.
func (w warmRequest) send(ctx context.Context, handler http.Handler) error {
	count := runtime.GOMAXPROCS(0)
	errs := make([]error, count)
	var all sync.WaitGroup
	for worker := range count {
		all.Add(1)
		go func() {
			defer all.Done()
			for range warmRounds {
				if errs[worker] = w.sendOnce(ctx, handler); errs[worker] != nil || ctx.Err() != nil {
					return
				}
			}
		}()
	}
	all.Wait()
	return errors.Join(errs...)
}

func (w warmRequest) sendOnce(ctx context.Context, handler http.Handler) (err error) {
	defer func() {
		if what := recover(); what != nil {
			err = fmt.Errorf("panic: %v", what)
		}
	}()
	request, err := w.parse()
	if err != nil {
		return err
	}
	writer := discard{header: http.Header{}, status: http.StatusOK}
	handler.ServeHTTP(&writer, request.WithContext(context.WithValue(ctx, warmKey{}, true)))
	if writer.status >= 500 {
		return fmt.Errorf("status %d", writer.status)
	}
	return nil
}

// parse makes the request as if it had come over a connection.
func (w warmRequest) parse() (*http.Request, error) {
	text := fmt.Sprintf("%s %s HTTP/1.1\r\nHost: localhost\r\nUser-Agent: %s\r\nContent-Length: %d\r\n\r\n%s",
		w.method, w.target, warmAgent, len(w.body), w.body)
	request, err := http.ReadRequest(bufio.NewReader(strings.NewReader(text)))
	if err != nil {
		return nil, fmt.Errorf("warm request: %w", err)
	}
	request.RemoteAddr = "127.0.0.1:0"
	return request, nil
}

// discard is a ResponseWriter that keeps the status only.
type discard struct {
	header http.Header
	status int
	wrote  bool
}

func (d *discard) Header() http.Header { return d.header }

func (d *discard) WriteHeader(status int) {
	if !d.wrote && status >= 200 {
		d.status, d.wrote = status, true
	}
}

func (d *discard) Write(data []byte) (int, error) {
	d.WriteHeader(http.StatusOK)
	return len(data), nil
}

// Flush is for handlers that stream.
func (d *discard) Flush() {}
