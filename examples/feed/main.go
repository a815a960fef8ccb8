// Command feed ranks items for a user. Its table of item vectors, 1 GB, lies in a pool of huge pages
// outside of Go's heap: the collector never looks at it, and a row that is read at random costs the
// processor's address cache little. $FEED_ROWS makes it smaller.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"math/rand/v2"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync"

	_ "example.com/layerkit/go-runtime/auto" // memory limit and GOGC by the cgroup
	"example.com/layerkit/go-runtime/breaker"
	"example.com/layerkit/go-runtime/hugepool"
	"example.com/layerkit/go-runtime/serve"
	"example.com/layerkit/go-runtime/warm"
)

const (
	width      = 16                 // numbers of a vector
	usualRows  = (1 << 30) / 4 / 16 // 1 GB of float32
	candidates = 500                // rows that a request looks at
	most       = 100                // items of an answer
)

type vector [width]float32

// items is the table, made by the first request or by the probe before it.
var items = warm.NewLazy("items", load)

func load(context.Context) ([]vector, error) {
	count := usualRows
	if text := os.Getenv("FEED_ROWS"); text != "" {
		if rows, err := strconv.Atoi(text); err != nil || rows < 1 || rows > usualRows {
			log.Printf("FEED_ROWS: got %.40q, want a number from 1 to %d", text, usualRows)
		} else {
			count = rows
		}
	}
	pool, err := hugepool.New(count * width * 4)
	if err != nil {
		return nil, err
	}
	table, err := hugepool.Make[vector](pool, count)
	if err != nil {
		return nil, errors.Join(err, pool.Close())
	}
	fill(table)
	log.Printf("%d items on %v pages", count, pool.Stats().Backing)
	return table, nil
}

// fill makes vectors that are the same at each start: a real service would read a file.
func fill(table []vector) {
	workers := runtime.GOMAXPROCS(0)
	part := (len(table) + workers - 1) / workers
	var all sync.WaitGroup
	for first := 0; first < len(table); first += part {
		all.Add(1)
		go func() {
			defer all.Done()
			for row := first; row < min(first+part, len(table)); row++ {
				fillRow(&table[row], uint64(row))
			}
		}()
	}
	all.Wait()
}

func fillRow(row *vector, seed uint64) {
	random := rand.NewPCG(seed, 1)
	for at := range row {
		row[at] = float32(int64(random.Uint64())) / (1 << 63)
	}
}

type scored struct {
	Item  int     `json:"item"`
	Score float32 `json:"score"`
}

var buffers = warm.NewPool("scores", func() *[]scored {
	buffer := make([]scored, 0, candidates)
	return &buffer
}, func(buffer *[]scored) { *buffer = (*buffer)[:0] })

// rank is the n best of the user's candidates.
func rank(table []vector, user uint64, n int, buffer []scored) []scored {
	var taste vector
	fillRow(&taste, user)
	random := rand.New(rand.NewPCG(user, 2))
	for range candidates {
		item := random.IntN(len(table))
		score := float32(0)
		for at, value := range table[item] {
			score += value * taste[at]
		}
		buffer = append(buffer, scored{item, score})
	}
	slices.SortFunc(buffer, func(a, b scored) int {
		return cmp.Or(cmp.Compare(b.Score, a.Score), cmp.Compare(a.Item, b.Item))
	})
	buffer = slices.Compact(buffer)
	return buffer[:min(n, len(buffer))]
}

func feed(w http.ResponseWriter, r *http.Request) {
	user, err := strconv.ParseUint(r.FormValue("user"), 10, 64)
	if err != nil {
		http.Error(w, "user must be a number", http.StatusBadRequest)
		return
	}
	n := 10
	if text := r.FormValue("n"); text != "" {
		if n, err = strconv.Atoi(text); err != nil || n < 1 || n > most {
			http.Error(w, fmt.Sprintf("n must be from 1 to %d", most), http.StatusBadRequest)
			return
		}
	}
	table, err := items.Get(r.Context())
	if err != nil {
		http.Error(w, "the items are not there", http.StatusServiceUnavailable)
		log.Printf("items: %v", err)
		return
	}
	buffer := buffers.Get()
	defer buffers.Put(buffer)
	*buffer = rank(table, user, n, *buffer)
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(*buffer); err != nil {
		log.Printf("write answer: %v", err)
	}
}

func main() {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /feed", feed)
	watched := breaker.Guard("feed", mux, breaker.Options{})
	serve.Main(watched, serve.WaitWarm(), serve.WarmRequest("GET", "/feed?user=1", ""))
}
