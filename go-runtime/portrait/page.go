package portrait

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// Totals is how one handler did since it was wrapped.
type Totals struct {
	Requests uint64        `json:"requests"`
	Errors   uint64        `json:"errors"`
	InFlight int64         `json:"in_flight"`
	P50      time.Duration `json:"p50_ns"`
	P90      time.Duration `json:"p90_ns"`
	P99      time.Duration `json:"p99_ns"`
	Alloc    uint64        `json:"alloc_bytes"`
	Last     Window        `json:"last_second"`
}

type document struct {
	Go         string            `json:"go"`
	Goroutines int               `json:"goroutines"`
	AllocRate  float64           `json:"alloc_bytes_per_second"`
	HeapLive   uint64            `json:"heap_live_bytes"`
	Handlers   map[string]Totals `json:"handlers"`
}

// Page answers with JSON, or with Prometheus text for who prefers text/plain or asks for
// ?format=prometheus. It tells what a function does: keep it from strangers.
func (p *Portrait) Page() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		if wantsText(r) {
			w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
			var text bytes.Buffer
			p.writeText(&text)
			_, _ = text.WriteTo(w)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		encoder := json.NewEncoder(w)
		encoder.SetIndent("", "  ")
		_ = encoder.Encode(p.document())
	})
}

func wantsText(r *http.Request) bool {
	if format := r.URL.Query().Get("format"); format != "" {
		return format == "prometheus"
	}
	accept := r.Header.Get("Accept")
	return strings.Contains(accept, "text/plain") || strings.Contains(accept, "openmetrics")
}

func (p *Portrait) document() document {
	last := p.Last()
	d := document{
		Go: runtime.Version(), Goroutines: runtime.NumGoroutine(), AllocRate: last.AllocRate,
		HeapLive: last.HeapLive, Handlers: map[string]Totals{},
	}
	for _, m := range p.sorted() {
		all := m.latency.read()
		d.Handlers[m.name] = Totals{
			Requests: all.total(), Errors: m.statuses[5].Load(), InFlight: m.inFlight.Load(),
			P50: all.quantile(0.5), P90: all.quantile(0.9), P99: all.quantile(0.99),
			Alloc: m.alloc.Load(), Last: last.Handlers[m.name],
		}
	}
	return d
}

// textBounds are the buckets that Prometheus gets, in seconds; finer ones would be 217 series a
// handler.
var textBounds = []float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10}

// writeText writes the exposition format of Prometheus, version 0.0.4.
func (p *Portrait) writeText(w io.Writer) {
	head := func(name, kind, help string) {
		fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
	}
	all := p.sorted()
	head("layerkit_handler_seconds", "histogram", "Time to answer.")
	for _, m := range all {
		m.writeHistogram(w)
	}
	head("layerkit_handler_requests_total", "counter", "Answers by class of status.")
	for _, m := range all {
		for class := range m.statuses {
			if n := m.statuses[class].Load(); n > 0 {
				fmt.Fprintf(w, "layerkit_handler_requests_total{handler=%s,class=\"%dxx\"} %d\n",
					label(m.name), class, n)
			}
		}
	}
	head("layerkit_handler_in_flight", "gauge", "Requests that run.")
	for _, m := range all {
		fmt.Fprintf(w, "layerkit_handler_in_flight{handler=%s} %d\n", label(m.name), m.inFlight.Load())
	}
	head("layerkit_handler_alloc_bytes_total", "counter", "Allocated, shared out by running time.")
	for _, m := range all {
		fmt.Fprintf(w, "layerkit_handler_alloc_bytes_total{handler=%s} %d\n", label(m.name), m.alloc.Load())
	}
	head("layerkit_goroutines", "gauge", "Goroutines of the process.")
	fmt.Fprintf(w, "layerkit_goroutines %d\n", runtime.NumGoroutine())
}

func (m *measures) writeHistogram(w io.Writer) {
	all := m.latency.read()
	var below uint64
	at := 0
	for _, bound := range textBounds {
		for at < bucketCount && upperBound(at).Seconds() <= bound {
			below += all.buckets[at]
			at++
		}
		fmt.Fprintf(w, "layerkit_handler_seconds_bucket{handler=%s,le=\"%s\"} %d\n",
			label(m.name), strconv.FormatFloat(bound, 'g', -1, 64), below)
	}
	total := all.total()
	fmt.Fprintf(w, "layerkit_handler_seconds_bucket{handler=%s,le=\"+Inf\"} %d\n", label(m.name), total)
	fmt.Fprintf(w, "layerkit_handler_seconds_sum{handler=%s} %g\n", label(m.name), all.sum.Seconds())
	fmt.Fprintf(w, "layerkit_handler_seconds_count{handler=%s} %d\n", label(m.name), total)
}

// label quotes a label's value as the exposition format wants it.
func label(text string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`).Replace(text) + `"`
}
