// Markdown to HTML by goldmark.
package main

import (
	"bytes"
	"io"
	"log"
	"net/http"

	"github.com/yuin/goldmark"
)

func handle(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	var out bytes.Buffer
	if err := goldmark.Convert(body, &out); err != nil {
		http.Error(w, err.Error(), 400)
		return
	}
	_, _ = w.Write(out.Bytes())
}

func main() {
	http.HandleFunc("/", handle)
	log.Fatal(http.ListenAndServe("127.0.0.1:8080", nil))
}
