// Package environ reads settings from the environment. Nonsense is said once in the log, and the
// usual value taken: no variable keeps a function from starting.
package environ

import (
	"os"
	"time"

	"example.com/layerkit/go-runtime/internal/note"
)

// Get is what parse makes of a variable; usual where the variable is empty, or parse refuses it.
// want says what it should have been.
func Get[T any](name string, usual T, want string, parse func(string) (T, bool)) T {
	text := os.Getenv(name)
	if text == "" {
		return usual
	}
	value, ok := parse(text)
	if !ok {
		note.Once(name, "%s: got %.40q, want %s: taking %v", name, text, want, usual)
		return usual
	}
	return value
}

// Duration is a variable like 30s, of at least least.
func Duration(name string, usual, least time.Duration) time.Duration {
	return Get(name, usual, "a duration like 30s", func(text string) (time.Duration, bool) {
		value, err := time.ParseDuration(text)
		return value, err == nil && value >= least
	})
}
