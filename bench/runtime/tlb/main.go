// Command tlb reads a table of 1 GB at random: on Go's heap, and in a hugepool. It prints JSON.
package main

import (
	"encoding/json"
	"flag"
	"log"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"time"

	"example.com/layerkit/go-runtime/hugepool"
)

type result struct {
	Backing string    `json:"backing"`
	Each    []float64 `json:"ns"` // a read, in each round
}

func main() {
	size := flag.Int("size", 1<<30, "bytes")
	where := flag.String("where", "heap", "heap or pool")
	rounds := flag.Int("rounds", 5, "rounds")
	flag.Parse()
	found := result{Backing: "heap"}
	var table []uint64
	if *where == "pool" {
		pool, err := hugepool.New(*size)
		if err != nil {
			log.Fatal(err)
		}
		if table, err = hugepool.Make[uint64](pool, *size/8); err != nil {
			log.Fatal(err)
		}
		found.Backing = pool.Stats().Backing.String()
	} else {
		table = make([]uint64, *size/8)
	}
	debug.SetGCPercent(-1)
	// Each value is the place of the next: a read waits for the one before, so that latency shows
	for at := range table {
		table[at] = uint64(at)
	}
	for at := len(table) - 1; at > 0; at-- { // Sattolo's shuffle: one cycle over all
		other := rand.IntN(at)
		table[at], table[other] = table[other], table[at]
	}
	const reads = 10_000_000
	at := uint64(0)
	for range *rounds {
		started := time.Now()
		for range reads {
			at = table[at]
		}
		found.Each = append(found.Each, float64(time.Since(started).Nanoseconds())/reads)
	}
	sink = at
	if err := json.NewEncoder(os.Stdout).Encode(found); err != nil {
		log.Fatal(err)
	}
}

var sink uint64
