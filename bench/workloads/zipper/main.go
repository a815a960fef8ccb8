// Packs what it is sent into a zip file.
package main

import (
	"archive/zip"
	"bytes"
	"io"
	"log"
	"net/http"
)

func handle(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	var out bytes.Buffer
	z := zip.NewWriter(&out)
	f, err := z.Create("upload.bin")
	if err != nil {
		http.Error(w, err.Error(), 500)
		return
	}
	_, _ = f.Write(body)
	_ = z.Close()
	back, err := zip.NewReader(bytes.NewReader(out.Bytes()), int64(out.Len()))
	if err != nil || len(back.File) != 1 {
		http.Error(w, "no archive", 500)
		return
	}
	_, _ = w.Write(out.Bytes())
}

func main() {
	http.HandleFunc("/", handle)
	log.Fatal(http.ListenAndServe("127.0.0.1:8080", nil))
}
