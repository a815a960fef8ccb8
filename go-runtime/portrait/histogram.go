package portrait

import (
	"math/bits"
	"sync/atomic"
	"time"
)

const (
	perOctave   = 8  // buckets a doubling: a value is told to 12.5 % at worst
	firstOctave = 10 // 1 µs; what is below falls into bucket 0
	octaves     = 27 // up to 137 s; what is above falls into the last bucket
	bucketCount = octaves*perOctave + 1
	shardCount  = 8 // counters that processors do not share, as far as they can be told apart
)

// histogram counts durations. Adding costs two atomic additions in a shard.
type histogram struct {
	shards [shardCount]shard
}

type shard struct {
	counts [bucketCount]atomic.Uint64
	sum    atomic.Uint64 // ns
	_      [64]byte
}

// counts is a histogram at one moment, or what came between two.
type counts struct {
	buckets [bucketCount]uint64
	sum     time.Duration
}

func bucketOf(d time.Duration) int {
	if d < 1<<firstOctave {
		return 0
	}
	octave := bits.Len64(uint64(d)) - 1
	within := int(uint64(d)>>(octave-3)) & (perOctave - 1)
	return min((octave-firstOctave)*perOctave+within+1, bucketCount-1)
}

// upperBound is the duration that bucket at lies below.
func upperBound(at int) time.Duration {
	octave, within := at/perOctave+firstOctave, at%perOctave
	return time.Duration((perOctave + uint64(within)) << octave / perOctave)
}

func (h *histogram) add(shard int, d time.Duration) {
	one := &h.shards[shard%shardCount]
	one.counts[bucketOf(d)].Add(1)
	one.sum.Add(uint64(max(d, 0)))
}

func (h *histogram) read() *counts {
	c := &counts{}
	for s := range h.shards {
		for at := range c.buckets {
			c.buckets[at] += h.shards[s].counts[at].Load()
		}
		c.sum += time.Duration(h.shards[s].sum.Load())
	}
	return c
}

// since is what came after old.
func (c *counts) since(old *counts) *counts {
	found := &counts{sum: c.sum - old.sum}
	for at := range c.buckets {
		found.buckets[at] = c.buckets[at] - old.buckets[at]
	}
	return found
}

func (c *counts) total() (n uint64) {
	for _, one := range c.buckets {
		n += one
	}
	return n
}

// quantile is an upper bound of the duration that share q of the requests did not exceed; 0 for
// none.
func (c *counts) quantile(q float64) time.Duration {
	total := c.total()
	if total == 0 {
		return 0
	}
	rank := uint64(q*float64(total-1)) + 1
	var seen uint64
	for at, n := range c.buckets {
		if seen += n; seen >= rank {
			return upperBound(at)
		}
	}
	return upperBound(bucketCount - 1)
}
