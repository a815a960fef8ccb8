// Routes by go-chi.
package main

import (
	"encoding/json"
	"log"
	"net/http"

	"github.com/go-chi/chi/v5"
)

func handle(w http.ResponseWriter, r *http.Request) {
	m := chi.NewRouter()
	m.Get("/users/{id}", func(w http.ResponseWriter, r *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]string{"id": chi.URLParam(r, "id")})
	})
	m.ServeHTTP(w, r)
}

func main() {
	http.HandleFunc("/", handle)
	log.Fatal(http.ListenAndServe("127.0.0.1:8080", nil))
}
