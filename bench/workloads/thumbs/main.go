// Thumbnails of pictures.
package main

import (
	"image"
	"image/color"
	"image/draw"
	"image/gif"
	"image/jpeg"
	"image/png"
	"log"
	"net/http"
)

func handle(w http.ResponseWriter, r *http.Request) {
	src, format, err := image.Decode(http.MaxBytesReader(w, r.Body, 1<<22))
	if err != nil {
		http.Error(w, format+err.Error(), http.StatusBadRequest)
		return
	}
	dst := image.NewRGBA(image.Rect(0, 0, 64, 64))
	draw.Draw(dst, dst.Bounds(), image.NewUniform(color.Gray{200}), image.Point{}, draw.Src)
	draw.Draw(dst, dst.Bounds(), src, src.Bounds().Min, draw.Over)
	switch r.URL.Query().Get("as") {
	case "jpeg":
		_ = jpeg.Encode(w, dst, &jpeg.Options{Quality: 80})
	case "gif":
		_ = gif.Encode(w, dst, nil)
	default:
		_ = png.Encode(w, dst)
	}
}

func main() {
	http.HandleFunc("/", handle)
	log.Fatal(http.ListenAndServe("127.0.0.1:8080", nil))
}
