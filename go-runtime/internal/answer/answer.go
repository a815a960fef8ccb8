// Package answer notes the status of an HTTP answer on its way.
package answer

import (
	"bufio"
	"io"
	"net"
	"net/http"
)

// Writer is a ResponseWriter that knows the status of what went through it. Until the handler has
// returned (End) or written, the status is 500: that is what a panic leaves.
// http.ResponseController finds what it wraps by Unwrap.
type Writer struct {
	http.ResponseWriter
	status int
	wrote  bool
}

// Wrap is a Writer before w.
func Wrap(w http.ResponseWriter) *Writer {
	return &Writer{ResponseWriter: w, status: http.StatusInternalServerError}
}

// Status is the status of the answer.
func (w *Writer) Status() int { return w.status }

// End notes that the handler returned: one that wrote nothing answered 200.
func (w *Writer) End() { w.setOK() }

// Unwrap is for http.ResponseController.
func (w *Writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteHeader notes the status; 1xx come before the answer.
func (w *Writer) WriteHeader(status int) {
	if !w.wrote && status >= 200 {
		w.status, w.wrote = status, true
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *Writer) Write(data []byte) (int, error) {
	w.setOK()
	return w.ResponseWriter.Write(data)
}

// ReadFrom keeps sendfile for who has it.
func (w *Writer) ReadFrom(from io.Reader) (int64, error) {
	w.setOK()
	return io.Copy(w.ResponseWriter, from)
}

// Flush is for handlers that ask for http.Flusher.
func (w *Writer) Flush() {
	w.setOK()
	if flusher, ok := w.ResponseWriter.(http.Flusher); ok {
		flusher.Flush()
	}
}

// Hijack is for handlers that ask for http.Hijacker, as libraries of web sockets do. From then on the
// connection is the handler's, and the status 101.
func (w *Writer) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, buffered, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err == nil {
		w.status, w.wrote = http.StatusSwitchingProtocols, true
	}
	return conn, buffered, err
}

func (w *Writer) setOK() {
	if !w.wrote {
		w.status, w.wrote = http.StatusOK, true
	}
}
