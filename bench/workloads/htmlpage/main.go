// A page from html/template.
package main

import (
	"html/template"
	"log"
	"net/http"
	"strings"
)

var page = template.Must(template.New("page").Funcs(template.FuncMap{"up": strings.ToUpper}).Parse(
	`<h1>{{.Title | up}}</h1><ul>{{range .Items}}<li><a href="/{{.}}">{{.}}</a></li>{{end}}</ul>`))

func handle(w http.ResponseWriter, r *http.Request) {
	_ = page.Execute(w, struct {
		Title string
		Items []string
	}{r.URL.Query().Get("title"), strings.Split(r.URL.Query().Get("items"), ",")})
}

func main() {
	http.HandleFunc("/", handle)
	log.Fatal(http.ListenAndServe("127.0.0.1:8080", nil))
}
