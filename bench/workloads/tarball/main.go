// Lists a tar file.
package main

import (
	"archive/tar"
	"compress/bzip2"
	"compress/gzip"
	"compress/lzw"
	"fmt"
	"io"
	"log"
	"net/http"
)

func handle(w http.ResponseWriter, r *http.Request) {
	var in io.Reader = r.Body
	switch r.Header.Get("Content-Encoding") {
	case "bzip2":
		in = bzip2.NewReader(in)
	case "compress":
		in = lzw.NewReader(in, lzw.LSB, 8)
	default:
		z, err := gzip.NewReader(in)
		if err != nil {
			http.Error(w, err.Error(), 400)
			return
		}
		in = z
	}
	files := tar.NewReader(in)
	for {
		h, err := files.Next()
		if err != nil {
			return
		}
		fmt.Fprintf(w, "%s %d %s\n", h.Name, h.Size, h.ModTime)
	}
}

func main() {
	http.HandleFunc("/", handle)
	log.Fatal(http.ListenAndServe("127.0.0.1:8080", nil))
}
