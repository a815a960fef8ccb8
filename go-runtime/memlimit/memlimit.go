// Package memlimit tells Go's garbage collector how much memory the function may use, by the
// function's cgroup. Without that Go lets the heap double whatever the limit is, and the kernel
// kills the process.
//
// The limit is memory.high where it is set, else a share of memory.max (cgroup v2) or of
// memory.limit_in_bytes (v1), the tightest on the way up; of both, the less. GOMEMLIMIT in the
// environment wins. The share leaves room for what Go's limit does not count and the kernel does:
// the binary's pages, memory of mmap, socket buffers, files in tmpfs.
//
// GOMAXPROCS is not set here: since 1.25 Go reads the cgroup's processor quota itself.
package memlimit

import (
	"fmt"
	"math"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"

	"example.com/layerkit/go-runtime/internal/cgroup"
	"example.com/layerkit/go-runtime/internal/environ"
	"example.com/layerkit/go-runtime/internal/note"
)

const (
	// DefaultShare is what of a killing limit Go may use.
	DefaultShare = 0.9
	// Least is the least limit that is set: with less, Go would do nothing but collect.
	Least = 8 << 20
	// shareVariable of the environment is another share.
	shareVariable = "LAYERKIT_MEMORY_SHARE"
)

// Limit is a memory limit for Go, in bytes, and where it comes from: "GOMEMLIMIT", "memory.high",
// "memory.max", "memory.limit_in_bytes". Without any limit both are zero.
type Limit struct {
	Bytes  int64
	Source string
}

func (l Limit) String() string {
	if l.Source == "" {
		return "none"
	}
	return fmt.Sprintf("%d bytes by %s", l.Bytes, l.Source)
}

// Find is the limit that the cgroup below root gives; root is "/" but in tests. Of a limit that
// kills, share is taken. What cannot be read counts as no limit; the error says what it was.
func Find(root string, share float64) (Limit, error) {
	memory, err := cgroup.ReadMemory(root)
	limit := Limit{}
	if memory.Max > 0 {
		limit = Limit{int64(float64(memory.Max) * share), "memory.max"}
		if memory.Version == 1 {
			limit.Source = "memory.limit_in_bytes"
		}
	}
	if memory.High > 0 && (limit.Bytes == 0 || memory.High < limit.Bytes) {
		limit = Limit{memory.High, "memory.high"}
	}
	return limit, err
}

// Set gives Go the limit of this process's cgroup, and returns it with an undo. With a limit by
// GOMEMLIMIT, or none at all, nothing is changed. What is wrong is logged once.
func Set() (Limit, func()) {
	return SetFrom("/")
}

// SetFrom is Set for the cgroup below root.
func SetFrom(root string) (Limit, func()) {
	if text := os.Getenv("GOMEMLIMIT"); text != "" {
		return Limit{debug.SetMemoryLimit(-1), "GOMEMLIMIT"}, func() {}
	}
	limit, err := Find(root, share())
	if err != nil {
		note.Once("memlimit", "memory limit: %v", err)
	}
	if limit.Bytes == 0 {
		return Limit{}, func() {}
	}
	if limit.Bytes < Least {
		note.Once("memlimit least", "memory limit: %s is less than %d bytes: not set", limit, Least)
		return Limit{}, func() {}
	}
	old := debug.SetMemoryLimit(limit.Bytes)
	return limit, func() { debug.SetMemoryLimit(old) }
}

// share is LAYERKIT_MEMORY_SHARE, or DefaultShare.
func share() float64 {
	const want = "a number from 0.1 to 1"
	return environ.Get(shareVariable, DefaultShare, want, func(text string) (float64, bool) {
		value, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
		return value, err == nil && value >= 0.1 && value <= 1 // NaN is neither
	})
}

// reserved is what Reserve took off the limit, in bytes.
var (
	reserveMu sync.Mutex
	reserved  int64
	before    int64 // the limit without it
)

// Reserve takes bytes off the memory limit that holds, for memory that Go does not count: mappings,
// memory of C. Undo puts them back. Without a limit, and with one by GOMEMLIMIT, it does nothing;
// what is left is Least bytes or more.
func Reserve(bytes int64) (undo func()) {
	reserveMu.Lock()
	defer reserveMu.Unlock()
	now := debug.SetMemoryLimit(-1)
	if now == math.MaxInt64 || bytes <= 0 || os.Getenv("GOMEMLIMIT") != "" {
		return func() {}
	}
	if reserved == 0 {
		before = now
	}
	reserve(bytes)
	var once sync.Once
	return func() {
		once.Do(func() {
			reserveMu.Lock()
			defer reserveMu.Unlock()
			reserve(-bytes)
		})
	}
}

func reserve(bytes int64) {
	reserved += bytes
	debug.SetMemoryLimit(max(before-reserved, min(Least, before)))
}
