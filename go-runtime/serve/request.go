package serve

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
)

const (
	warmAgent = "layerkit-warm"
	// warmHeader has the token by which a server knows its own requests
	warmHeader = "Layerkit-Warm"
	// wireRounds is how often each processor sends a warm request over a connection, after one
	// straight to the handler: the first fills caches, later ones run what it has grown (stacks,
	// pools). What a first request then still lacks is measured by bench/functions.py.
	wireRounds = 3
)

type warmKey struct{}

// IsWarm says whether a request is one of WarmRequest, so that a handler can leave out what only a
// real caller should cause: an entry in a ledger, a mail.
func IsWarm(r *http.Request) bool { return r.Context().Value(warmKey{}) != nil }

func markWarm(r *http.Request) *http.Request {
	return r.WithContext(context.WithValue(r.Context(), warmKey{}, true))
}

type warmRequest struct{ method, target, body string }

func (w warmRequest) name() string { return fmt.Sprintf("request %s %s", w.method, w.target) }

// send runs the request on all processors: straight through the handler, then over connections of
// the server's own (nil: none), which warm what lies before the handler. A status from 500 on is an
// error, as is a panic. Connections that fail are not: the handler is warm without them.
func (w warmRequest) send(ctx context.Context, handler http.Handler, self *self) error {
	errs := make([]error, runtime.GOMAXPROCS(0))
	var all sync.WaitGroup
	for worker := range errs {
		all.Add(1)
		go func() {
			defer all.Done()
			if errs[worker] = w.sendOnce(ctx, handler); errs[worker] == nil && self != nil {
				_ = self.send(ctx, w)
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
	handler.ServeHTTP(&writer, markWarm(request.WithContext(ctx)))
	if writer.status >= 500 {
		return fmt.Errorf("status %d", writer.status)
	}
	return nil
}

// text is the request as it comes over a connection.
func (w warmRequest) text(token string) string {
	return fmt.Sprintf("%s %s HTTP/1.1\r\nHost: localhost\r\nUser-Agent: %s\r\n%s: %s\r\nContent-Length: %d\r\n\r\n%s",
		w.method, w.target, warmAgent, warmHeader, token, len(w.body), w.body)
}

// parse makes the request as if it had come over a connection.
func (w warmRequest) parse() (*http.Request, error) {
	request, err := http.ReadRequest(bufio.NewReader(strings.NewReader(w.text(""))))
	if err != nil {
		return nil, fmt.Errorf("warm request: %w", err)
	}
	request.Header.Del(warmHeader)
	request.RemoteAddr = "127.0.0.1:0"
	return request, nil
}

// self is the server as it reaches itself.
type self struct {
	network, address, token string
}

// newSelf is for plain TCP and unix sockets; nil for other listeners, which may speak TLS.
func newSelf(listener net.Listener) *self {
	switch listener.(type) {
	case *net.TCPListener, *net.UnixListener:
		address := listener.Addr()
		return &self{address.Network(), address.String(), rand.Text()}
	}
	return nil
}

// isOwn says whether the server sent this request, and takes the token off it.
func (s *self) isOwn(r *http.Request) bool {
	if s == nil || r.Header.Get(warmHeader) != s.token {
		return false
	}
	r.Header.Del(warmHeader)
	return true
}

// send sends a request again and again over one connection, as a client that keeps it would.
func (s *self) send(ctx context.Context, w warmRequest) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, s.network, s.address)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	reader := bufio.NewReader(conn)
	for range wireRounds {
		if _, err := io.WriteString(conn, w.text(s.token)); err != nil {
			return err
		}
		response, err := http.ReadResponse(reader, &http.Request{Method: w.method})
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, response.Body)
		response.Body.Close()
		if err != nil || response.Close {
			return err
		}
	}
	return nil
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
