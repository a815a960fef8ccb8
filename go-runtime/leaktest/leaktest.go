// Package leaktest fails a test that leaves goroutines behind.
//
//	func TestFeed(t *testing.T) {
//		leaktest.Check(t)
//		...
//
// A goroutine that was not there at Check and still is at the end of the test, after a time to end,
// is told with its stack. Where the Go release has the goroutine leak profile (an experiment in
// 1.26: GOEXPERIMENT=goroutineleakprofile), those that can never go on are told as such, and at
// once. Tests that run in parallel see each other's goroutines: use Main there.
package leaktest

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"runtime"
	"runtime/pprof"
	"strings"
	"time"
)

// Patience is how long goroutines may take to end.
const Patience = 2 * time.Second

// TB is what Check needs of testing.TB.
type TB interface {
	Helper()
	Cleanup(func())
	Failed() bool
	Errorf(format string, args ...any)
}

// Check has the test fail at its end if goroutines are left that were not there before. Nothing is
// said of a test that has failed already.
func Check(t TB) {
	t.Helper()
	before := map[string]bool{}
	for _, one := range list() {
		before[one.id] = true
	}
	t.Cleanup(func() {
		t.Helper()
		if t.Failed() {
			return
		}
		for _, one := range wait(before, Patience) {
			t.Errorf("leaktest: goroutine left behind%s:\n%s", one.sure(), one.stack)
		}
	})
}

// Main runs the tests of a package, and then fails if goroutines are left:
//
//	func TestMain(m *testing.M) { leaktest.Main(m) }
func Main(m interface{ Run() int }) {
	status := m.Run()
	if status == 0 {
		for _, one := range wait(nil, Patience) {
			fmt.Fprintf(os.Stderr, "leaktest: goroutine left behind%s:\n%s\n", one.sure(), one.stack)
			status = 1
		}
	}
	os.Exit(status)
}

// wait is the goroutines that are still there after some patience; connections that only wait to be
// used again are closed first.
func wait(before map[string]bool, patience time.Duration) []goroutine {
	http.DefaultClient.CloseIdleConnections()
	end := time.Now().Add(patience)
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		var left []goroutine
		for _, one := range list() {
			if !before[one.id] && !one.isKnown() {
				left = append(left, one)
			}
		}
		stuck := findStuck()
		isSure := len(left) > 0
		for at := range left {
			left[at].isStuck = stuck[left[at].place()]
			isSure = isSure && left[at].isStuck
		}
		if len(left) == 0 || isSure || time.Now().After(end) {
			return left
		}
		time.Sleep(pause)
	}
}

// goroutine is one stack of runtime.Stack.
type goroutine struct {
	id      string
	stack   string
	isStuck bool
}

func (g goroutine) sure() string {
	if g.isStuck {
		return ", and nothing can wake it"
	}
	return ""
}

// list is all goroutines but the one that asks.
func list() []goroutine {
	raw := make([]byte, 64<<10)
	for {
		n := runtime.Stack(raw, true)
		if n < len(raw) {
			raw = raw[:n]
			break
		}
		raw = make([]byte, 2*len(raw))
	}
	var found []goroutine
	for at, stack := range strings.Split(strings.TrimSpace(string(raw)), "\n\n") {
		id, _, ok := strings.Cut(strings.TrimPrefix(stack, "goroutine "), " ")
		if ok && at > 0 { // the first is the caller's
			found = append(found, goroutine{id: id, stack: stack})
		}
	}
	return found
}

// known are goroutines of Go itself and of its testing that end with the process.
var known = []string{
	"created by testing.", "testing.(*M).", "testing.Main(", "testing.runTests", "testing.tRunner(",
	"created by runtime", "created by os/signal.", "os/signal.signal_recv", "runtime.goexit0",
	"runtime/trace.Start", "created by runtime/pprof.", "runtime.ReadTrace",
	"created by internal/poll.", "created by log/syslog",
}

func (g goroutine) isKnown() bool {
	for _, text := range known {
		if strings.Contains(g.stack, text) {
			return true
		}
	}
	return false
}

// place is where a goroutine waits: the function and line of its own that is on top.
func (g goroutine) place() string {
	lines := strings.Split(g.stack, "\n")
	for at := 1; at+1 < len(lines); at += 2 {
		if name := strings.TrimSpace(lines[at]); !strings.HasPrefix(name, "runtime.") {
			where, _, _ := strings.Cut(strings.TrimSpace(lines[at+1]), " ")
			return where
		}
	}
	return ""
}

// findStuck is the places of goroutines that the leak profile knows, empty where there is no such
// profile. Reading it collects garbage. See runtime/pprof, go1.26: goroutineleak.
func findStuck() map[string]bool {
	found := map[string]bool{}
	profile := pprof.Lookup("goroutineleak")
	if profile == nil {
		return found
	}
	var text bytes.Buffer
	if err := profile.WriteTo(&text, 2); err != nil {
		return found
	}
	for _, stack := range strings.Split(text.String(), "\n\n") {
		head, _, _ := strings.Cut(stack, "\n")
		if strings.Contains(head, "leaked") {
			found[goroutine{stack: stack}.place()] = true
		}
	}
	return found
}
