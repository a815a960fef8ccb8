package portrait

import (
	"io"
	"net/http"
)

// writer notes the status of an answer. http.ResponseController finds what it wraps by Unwrap.
type writer struct {
	http.ResponseWriter
	status int
	wrote  bool
}

func (w *writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *writer) WriteHeader(status int) {
	if !w.wrote && status >= 200 { // 1xx come before the answer
		w.status, w.wrote = status, true
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *writer) Write(data []byte) (int, error) {
	w.setOK()
	return w.ResponseWriter.Write(data)
}

// ReadFrom keeps sendfile for who has it.
func (w *writer) ReadFrom(from io.Reader) (int64, error) {
	w.setOK()
	return io.Copy(w.ResponseWriter, from)
}

// Flush is for handlers that ask for http.Flusher.
func (w *writer) Flush() {
	w.setOK()
	if flusher, ok := w.ResponseWriter.(http.Flusher); ok {
		flusher.Flush()
	}
}

func (w *writer) setOK() {
	if !w.wrote {
		w.status, w.wrote = http.StatusOK, true
	}
}
