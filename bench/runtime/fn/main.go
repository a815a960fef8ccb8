// Command fn is a hello function in the ways that bench/functions.py compares: bare net/http, with
// serve and auto, with portrait and breaker before the handler, and with TLS on the next port, whose
// certificate and roots are read when they are needed, by a probe, or at the start.
package main

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"text/template"

	_ "example.com/layerkit/go-runtime/auto"
	"example.com/layerkit/go-runtime/breaker"
	"example.com/layerkit/go-runtime/portrait"
	"example.com/layerkit/go-runtime/serve"
	"example.com/layerkit/go-runtime/warm"
	"example.com/layerkit/go-runtime/warm/warmtls"
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

// secure serves the handler by TLS on the port after $PORT, and checks as a client of other servers
// would against the system's roots.
func secure(next http.Handler, isEager bool) {
	folder := os.Getenv("CERTIFICATES")
	certificate := warmtls.NewCertificate(folder+"/cert.pem", folder+"/key.pem")
	warmtls.Roots()
	if isEager {
		if err := warm.Err(warm.Default.Run(context.Background())); err != nil {
			log.Fatal(err)
		}
	}
	port, err := strconv.Atoi(os.Getenv("PORT"))
	if err != nil {
		log.Fatal(err)
	}
	listener, err := tls.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port+1),
		&tls.Config{GetCertificate: certificate.Get})
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := x509.SystemCertPool(); err != nil {
			log.Print(err)
		}
		next.ServeHTTP(w, r)
	})))
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
	case "tls", "tls-eager":
		go secure(mux, mode == "tls-eager")
		serve.Main(mux)
	case "watched":
		p := portrait.New()
		serve.Main(breaker.New(p, p.Wrap("hello", mux), breaker.Options{}))
	default:
		log.Fatalf("mode %s", mode)
	}
}
