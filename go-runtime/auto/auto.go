// Package auto sets up the process when it is imported, for its side effects only:
//
//	import _ "example.com/layerkit/go-runtime/auto"
//
// It gives Go the memory limit of the cgroup (package memlimit) and tunes GOGC within it (package
// gctune). GOMEMLIMIT and GOGC in the environment win. LAYERKIT_RUNTIME=off turns all of it off.
// Whatever is wrong is said once in the log; the function starts with Go's defaults.
package auto

import (
	"example.com/layerkit/go-runtime/gctune"
	"example.com/layerkit/go-runtime/internal/environ"
	"example.com/layerkit/go-runtime/internal/note"
	"example.com/layerkit/go-runtime/memlimit"
)

// Limit is the memory limit that holds.
var Limit memlimit.Limit

var undo = start()

// Undo takes back what the import did, for a test or a program that knows better.
func Undo() { undo() }

func start() (undo func()) {
	defer func() {
		if what := recover(); what != nil { // never keep a function from starting
			note.Once("auto", "runtime: %v", what)
			undo = func() {}
		}
	}()
	isOn := environ.Get("LAYERKIT_RUNTIME", true, "on or off", func(text string) (bool, bool) {
		return text == "on", text == "on" || text == "off"
	})
	if !isOn {
		return func() {}
	}
	limit, undoLimit := memlimit.Set()
	Limit = limit
	stop := gctune.Start(gctune.Options{})
	return func() { stop(); undoLimit() }
}
