// Takes a multipart upload.
package main

import (
	"crypto/md5"
	"encoding/csv"
	"io"
	"log"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net/http"
	"path/filepath"
)

func handle(w http.ResponseWriter, r *http.Request) {
	form, err := r.MultipartReader()
	if err != nil {
		http.Error(w, err.Error(), 400)
		return
	}
	out := csv.NewWriter(w)
	defer out.Flush()
	for {
		part, err := form.NextPart()
		if err != nil {
			return
		}
		_ = out.Write(describe(part))
	}
}

func describe(part *multipart.Part) []string {
	sum := md5.New()
	n, _ := io.Copy(sum, quotedprintable.NewReader(part))
	kind := mime.TypeByExtension(filepath.Ext(part.FileName()))
	return []string{part.FileName(), kind, string(rune('0' + n%10)), string(sum.Sum(nil))}
}

func main() {
	http.HandleFunc("/", handle)
	log.Fatal(http.ListenAndServe("127.0.0.1:8080", nil))
}
