// A feed in XML.
package main

import (
	"encoding/xml"
	"log"
	"net/http"
	"time"
)

type item struct {
	XMLName xml.Name  `xml:"item"`
	Title   string    `xml:"title"`
	Date    time.Time `xml:"date,attr"`
}

func handle(w http.ResponseWriter, r *http.Request) {
	var in []item
	if err := xml.NewDecoder(r.Body).Decode(&in); err != nil {
		in = append(in, item{Title: err.Error(), Date: time.Now()})
	}
	w.Header().Set("Content-Type", "application/xml")
	enc := xml.NewEncoder(w)
	enc.Indent("", "  ")
	_ = enc.Encode(in)
}

func main() {
	http.HandleFunc("/", handle)
	log.Fatal(http.ListenAndServe("127.0.0.1:8080", nil))
}
