// Package runtime is the module that layerkit's functions import: small helpers around the standard
// library, without dependencies.
//
//	auto      import _: the cgroup's memory limit for Go, and GOGC tuned within it
//	serve     an HTTP handler with probes and a graceful drain
//	task      a job that runs once, a worker that answers lines
//	warm      values made at the first request, or before it by a probe
//	hugepool  tables outside of the heap, on huge pages
//	portrait  how each handler does: a page, Prometheus text, traces, profile labels
//	breaker   turns requests away while a handler is ill
//	memlimit  the memory limit alone
//	gctune    the tuner alone
//
// Only package auto has side effects on import. The environment wins over the module, every setter
// returns an undo, and nothing in it keeps a function from starting.
package runtime
