// Command heap holds a live heap and serves requests that allocate, at a fixed rate: what collecting
// costs shows in its own CPU time, in the pauses, and in how late requests end. It prints JSON.
package main

import (
	"encoding/json"
	"flag"
	"log"
	"math"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"slices"
	"strconv"
	"strings"
	"time"

	_ "example.com/layerkit/go-runtime/auto"
)

const entrySize = 1 << 10 // bytes of a payload

type entry struct {
	key     uint64
	payload []byte
	next    *entry // entries hang together as those of a cache do
}

type result struct {
	Seconds   float64 `json:"seconds"`
	Requests  int     `json:"requests"`
	P50       float64 `json:"p50"` // s from when a request was due to its end
	P99       float64 `json:"p99"`
	P999      float64 `json:"p999"`
	PauseP99  float64 `json:"pause_p99"` // s
	PauseMax  float64 `json:"pause_max"`
	Cycles    uint64  `json:"cycles"`
	GC        float64 `json:"gc_cpu"`   // s
	User      float64 `json:"user_cpu"` // s
	Peak      int64   `json:"peak"`     // bytes, VmHWM
	LiveBytes uint64  `json:"live"`
	GOGC      int     `json:"gogc"`
	Limit     int64   `json:"limit"`
}

func main() {
	live := flag.Int("live", 100, "MB alive")
	swing := flag.Int("swing", 0, "MB that come and go every 5 s besides")
	rate := flag.Int("rate", 1000, "requests a second")
	garbage := flag.Int("garbage", 16, "KB that a request allocates")
	seconds := flag.Float64("seconds", 10, "duration")
	flag.Parse()

	cache := fill(*live << 20)
	var burst []*entry
	var late []float64
	started := time.Now()
	before := read()
	due := started
	for n := 0; time.Since(started).Seconds() < *seconds; n++ {
		due = started.Add(time.Duration(n) * time.Second / time.Duration(*rate))
		if wait := time.Until(due); wait > 0 {
			time.Sleep(wait)
		}
		serve(cache, *garbage<<10)
		if *swing > 0 {
			burst = moveBurst(burst, *swing<<20, time.Since(started))
		}
		late = append(late, time.Since(due).Seconds())
	}
	after := read()
	slices.Sort(late)
	at := func(q float64) float64 { return late[int(q*float64(len(late)-1))] }
	gogc := debug.SetGCPercent(100)
	found := result{
		Seconds: time.Since(started).Seconds(), Requests: len(late),
		P50: at(0.5), P99: at(0.99), P999: at(0.999),
		Cycles: after.cycles - before.cycles, GC: after.gc - before.gc, User: after.user - before.user,
		Peak: peak(), LiveBytes: after.live, GOGC: gogc, Limit: debug.SetMemoryLimit(-1),
	}
	found.PauseP99, found.PauseMax = pauses(before.pauses, after.pauses)
	if err := json.NewEncoder(os.Stdout).Encode(found); err != nil {
		log.Fatal(err)
	}
	_, _ = cache, burst
}

func fill(size int) []*entry {
	cache := make([]*entry, size/entrySize)
	for at := range cache {
		cache[at] = newEntry()
		if at > 0 {
			cache[at].next = cache[at-1]
		}
	}
	return cache
}

func newEntry() *entry {
	fresh := &entry{key: rand.Uint64(), payload: make([]byte, entrySize-64)}
	for at := 0; at < len(fresh.payload); at += 64 { // untouched memory would count nowhere
		fresh.payload[at] = byte(at)
	}
	return fresh
}

// serve makes garbage, touches the cache, and replaces one entry of it.
func serve(cache []*entry, garbage int) {
	for left := garbage; left > 0; left -= 512 {
		sink = make([]byte, 512)
		sink[0] = byte(left)
	}
	at := rand.IntN(len(cache))
	fresh := newEntry()
	fresh.next = cache[at].next
	cache[at] = fresh
}

var sink []byte

// moveBurst lets memory come within 2.5 s and go at once, every 5 s.
func moveBurst(burst []*entry, size int, at time.Duration) []*entry {
	phase := math.Mod(at.Seconds(), 5)
	if phase > 2.5 {
		return nil
	}
	for want := int(float64(size) * phase / 2.5 / entrySize); len(burst) < want; {
		burst = append(burst, newEntry())
	}
	return burst
}

type reading struct {
	cycles, live uint64
	gc, user     float64
	pauses       *metrics.Float64Histogram
}

func read() reading {
	s := []metrics.Sample{
		{Name: "/gc/cycles/total:gc-cycles"}, {Name: "/gc/heap/live:bytes"},
		{Name: "/cpu/classes/gc/total:cpu-seconds"}, {Name: "/cpu/classes/user:cpu-seconds"},
		{Name: "/sched/pauses/total/gc:seconds"},
	}
	metrics.Read(s)
	h := *s[4].Value.Float64Histogram()
	h.Counts = slices.Clone(h.Counts)
	return reading{s[0].Value.Uint64(), s[1].Value.Uint64(), s[2].Value.Float64(), s[3].Value.Float64(), &h}
}

// pauses is the 99th percentile and the longest of the pauses between two readings, by the upper
// bounds of their buckets.
func pauses(before, after *metrics.Float64Histogram) (p99, longest float64) {
	var all uint64
	for at := range after.Counts {
		all += after.Counts[at] - before.Counts[at]
	}
	var seen uint64
	for at := range after.Counts {
		n := after.Counts[at] - before.Counts[at]
		if n == 0 {
			continue
		}
		bound := after.Buckets[at+1]
		if math.IsInf(bound, 1) {
			bound = after.Buckets[at]
		}
		if seen < (all*99+99)/100 {
			p99 = bound
		}
		seen += n
		longest = bound
	}
	return p99, longest
}

// peak is VmHWM of /proc/self/status.
func peak() int64 {
	raw, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	for _, line := range strings.Split(string(raw), "\n") {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == "VmHWM:" {
			kb, _ := strconv.ParseInt(fields[1], 10, 64)
			return kb << 10
		}
	}
	return 0
}
