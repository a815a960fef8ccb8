// A reverse proxy.
package main

import (
	"crypto/tls"
	"log"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"sync/atomic"
	"time"
)

var served atomic.Int64

func handle(w http.ResponseWriter, r *http.Request) {
	to, err := url.Parse("http://127.0.0.1:9000")
	if err != nil {
		http.Error(w, err.Error(), 500)
		return
	}
	if a, err := netip.ParseAddrPort(r.RemoteAddr); err == nil && !a.Addr().IsLoopback() {
		http.Error(w, "who are you", http.StatusForbidden)
		return
	}
	served.Add(1)
	proxy := &httputil.ReverseProxy{
		Rewrite:       func(p *httputil.ProxyRequest) { p.SetURL(to); p.SetXForwarded() },
		FlushInterval: time.Second,
		Transport:     &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13}},
	}
	proxy.ServeHTTP(w, r)
}

func main() {
	http.HandleFunc("/", handle)
	log.Fatal(http.ListenAndServe("127.0.0.1:8080", nil))
}
