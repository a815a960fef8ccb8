// Counts lines of a log; slog, expvar, pprof.
package main

import (
	"bufio"
	"context"
	"expvar"
	"flag"
	"fmt"
	"log"
	"log/slog"
	"net/http"
	"net/http/pprof"
	"os"
	"os/signal"
	"sync"
	"time"
)

var lines = expvar.NewInt("lines")

func handle(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/profile" {
		pprof.Index(w, r)
		return
	}
	slog.Info("request", "path", r.URL.Path, "took", time.Millisecond)
	expvar.Handler().ServeHTTP(w, r)
}

func init() {
	level := flag.String("level", "info", "log level")
	flag.Parse()
	slog.SetDefault(slog.New(slog.NewJSONHandler(os.Stderr, nil).WithGroup(*level)))
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	var wg sync.WaitGroup
	wg.Go(func() {
		defer stop()
		for s := bufio.NewScanner(os.Stdin); s.Scan() && ctx.Err() == nil; {
			lines.Add(1)
			fmt.Println(s.Text())
		}
	})
}

func main() {
	http.HandleFunc("/", handle)
	log.Fatal(http.ListenAndServe("127.0.0.1:8080", nil))
}
