// Command FUNCTION answers HTTP requests with JSON. It listens on $PORT, 8080 if that is not set,
// answers the probes /healthz, /readyz and /warmz, tells how it does at /debug/layerkit, answers 503
// while it is ill, and finishes running requests when it is told to stop.
package main

import (
	"encoding/json"
	"log"
	"net/http"

	_ "example.com/layerkit/go-runtime/auto" // memory limit and GOGC by the cgroup
	"example.com/layerkit/go-runtime/breaker"
	"example.com/layerkit/go-runtime/serve"
)

type answer struct {
	Message string `json:"message"`
}

func handle(w http.ResponseWriter, r *http.Request) {
	name := r.URL.Query().Get("name")
	if name == "" {
		name = "world"
	}
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(answer{Message: "hello, " + name}); err != nil {
		log.Printf("write answer: %v", err)
	}
}

func main() {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /", handle)
	watched := breaker.Guard("FUNCTION", mux, breaker.Options{})
	serve.Main(watched, serve.WarmRequest("GET", "/?name=warm", ""))
}
