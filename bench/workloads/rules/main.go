// Redacts text by regular expressions.
package main

import (
	"fmt"
	"log"
	"net/http"
	"regexp"
	"sort"
	"strings"
	"text/scanner"
)

var rules = map[string]*regexp.Regexp{
	"mail":  regexp.MustCompile(`(?i)\b[\w.+-]+@[\w-]+\.[a-z]{2,}\b`),
	"phone": regexp.MustCompile(`\+?\d[\d ()-]{6,}\d`),
	"card":  regexp.MustCompile(`\b(?:\d[ -]?){13,16}\b`),
}

func handle(w http.ResponseWriter, r *http.Request) {
	text := r.FormValue("text")
	names := make([]string, 0, len(rules))
	for name := range rules {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		text = rules[name].ReplaceAllString(text, "<"+name+">")
	}
	var s scanner.Scanner
	s.Init(strings.NewReader(text))
	words := 0
	for t := s.Scan(); t != scanner.EOF; t = s.Scan() {
		words++
	}
	fmt.Fprintf(w, "%d %s", words, text)
}

func main() {
	http.HandleFunc("/", handle)
	log.Fatal(http.ListenAndServe("127.0.0.1:8080", nil))
}
