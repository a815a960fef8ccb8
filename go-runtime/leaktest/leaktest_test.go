package leaktest

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime/pprof"
	"strings"
	"testing"
	"time"
)

// fake is a test that Check watches.
type fake struct {
	testing.TB
	cleanups []func()
	errors   []string
	failed   bool
}

func (f *fake) Helper()           {}
func (f *fake) Cleanup(do func()) { f.cleanups = append(f.cleanups, do) }
func (f *fake) Failed() bool      { return f.failed }
func (f *fake) Errorf(format string, args ...any) {
	f.errors = append(f.errors, fmt.Sprintf(format, args...))
}

// run is what Check says of a test that does this.
func run(do func(), failed bool) []string {
	f := &fake{failed: failed}
	Check(f)
	do()
	for _, one := range f.cleanups {
		one()
	}
	return f.errors
}

func leakHere(stop chan struct{}) { <-stop }

func TestALeakIsToldWithItsStack(t *testing.T) {
	stop := make(chan struct{})
	defer close(stop)
	got := run(func() { go leakHere(stop) }, false)
	if len(got) != 1 || !strings.Contains(got[0], "leakHere") {
		t.Errorf("got %q", got)
	}
}

// stuck waits for a channel that nobody else knows.
func stuck() { <-make(chan int) }

func TestTheLeakProfileIsSure(t *testing.T) {
	if pprof.Lookup("goroutineleak") == nil {
		t.Skip("this Go has no goroutine leak profile: GOEXPERIMENT=goroutineleakprofile in 1.26")
	}
	got := run(func() { go stuck() }, false)
	if len(got) != 1 || !strings.Contains(got[0], "nothing can wake it") {
		t.Errorf("got %q", got)
	}
}

func TestWhatEndsInTimeIsNoLeak(t *testing.T) {
	got := run(func() { go time.Sleep(100 * time.Millisecond) }, false)
	if len(got) != 0 {
		t.Errorf("got %q", got)
	}
}

func TestWhatWasThereBeforeIsNotTold(t *testing.T) {
	stop := make(chan struct{})
	defer close(stop)
	go leakHere(stop)
	if got := run(func() {}, false); len(got) != 0 {
		t.Errorf("got %q", got)
	}
}

func TestAFailedTestIsLeftAlone(t *testing.T) {
	stop := make(chan struct{})
	defer close(stop)
	if got := run(func() { go leakHere(stop) }, true); len(got) != 0 {
		t.Errorf("got %q", got)
	}
}

func TestAServerAndItsClientLeaveNothing(t *testing.T) {
	got := run(func() {
		server := httptest.NewServer(http.NotFoundHandler())
		defer server.Close()
		response, err := http.Get(server.URL)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, response.Body)
		response.Body.Close()
	}, false)
	if len(got) != 0 {
		t.Errorf("got %q", got)
	}
}

func ExampleCheck() {
	t := &fake{} // your *testing.T
	Check(t)
	done := make(chan struct{})
	go close(done)
	<-done
	for _, cleanup := range t.cleanups {
		cleanup()
	}
	fmt.Println(t.errors)
	// Output: []
}
