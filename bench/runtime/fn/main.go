// Command fn is a hello function in the ways that bench/runtime.py compares: bare net/http, with
// serve and auto, and with portrait and breaker before the handler.
package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"log"
	"net"
	"net/http"
	"os"
	"regexp"
	"text/template"

	_ "example.com/layerkit/go-runtime/auto"
	"example.com/layerkit/go-runtime/breaker"
	"example.com/layerkit/go-runtime/portrait"
	"example.com/layerkit/go-runtime/serve"
)

type answer struct {
	Message string            `json:"message"`
	Tags    map[string]string `json:"tags"`
}

// hello answers with a small JSON object, as the hello handler of the platform does.
func hello(w http.ResponseWriter, r *http.Request) {
	name := r.URL.Query().Get("name")
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(answer{"hello, " + name, map[string]string{"via": r.Method}})
}

var (
	word = regexp.MustCompile(`\pL+`)
	page = template.Must(template.New("page").Parse(`{{range .}}{{.}} {{end}}`))
)

// heavy uses more of the standard library, so that a first request has more to touch.
func heavy(w http.ResponseWriter, r *http.Request) {
	sum := sha256.Sum256([]byte(r.URL.RawQuery))
	_ = page.Execute(w, word.FindAllString("some words of a text "+hex.EncodeToString(sum[:]), -1))
}

func main() {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /", hello)
	mux.HandleFunc("GET /heavy", heavy)
	switch mode := os.Args[1]; mode {
	case "bare":
		listener, err := net.Listen("tcp", "127.0.0.1:"+os.Getenv("PORT"))
		if err != nil {
			log.Fatal(err)
		}
		log.Fatal(http.Serve(listener, mux))
	case "serve":
		serve.Main(mux, serve.WarmRequest("GET", "/?name=warm", ""), serve.WarmRequest("GET", "/heavy?x", ""))
	case "watched":
		p := portrait.New()
		serve.Main(breaker.New(p, p.Wrap("hello", mux), breaker.Options{}))
	default:
		log.Fatalf("mode %s", mode)
	}
}
