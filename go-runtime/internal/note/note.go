// Package note says each thing that is wrong with a function's surroundings once, in its log. The
// function goes on with Go's defaults: the runtime never keeps it from starting.
package note

import (
	"fmt"
	"log"
	"strings"
	"sync"
)

var said sync.Map // key -> struct{}

// Once logs one line for the first call with this key, and nothing after.
func Once(key, format string, args ...any) {
	if _, was := said.LoadOrStore(key, struct{}{}); !was {
		text := strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", "; ")
		log.Printf("layerkit: %s", text)
	}
}

// Forget lets all be said again: for tests, which look at what is said.
func Forget() { said.Clear() }
