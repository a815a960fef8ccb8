package task

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

func upper(_ context.Context, line []byte) []byte { return bytes.ToUpper(line) }

func TestLinesAnswersEach(t *testing.T) {
	var out bytes.Buffer
	if err := Lines(t.Context(), strings.NewReader("a\nb\n\nc"), &out, 3, upper); err != nil {
		t.Fatal(err)
	}
	got := strings.Split(out.String(), "\n")
	slices.Sort(got)
	if want := []string{"", "", "A", "B", "C"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestLinesStopsAndFinishesWhatRuns(t *testing.T) {
	in, feed := io.Pipe() // never ends
	defer feed.Close()
	ctx, cancel := context.WithCancel(t.Context())
	go func() { _, _ = io.WriteString(feed, "x\n") }()
	var out bytes.Buffer
	err := Lines(ctx, in, &out, 1, func(work context.Context, line []byte) []byte {
		cancel()
		time.Sleep(10 * time.Millisecond)
		return fmt.Appendf(nil, "%s %v", line, work.Err())
	})
	if !errors.Is(err, context.Canceled) || out.String() != "x <nil>\n" {
		t.Errorf("got %v, %q", err, out.String())
	}
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestLinesEndsWhenNobodyListens(t *testing.T) {
	in, feed := io.Pipe()
	go func() {
		for {
			if _, err := io.WriteString(feed, "x\n"); err != nil {
				return
			}
		}
	}()
	defer in.Close()
	if err := Lines(t.Context(), in, brokenWriter{}, 2, upper); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("got %v, want closed pipe", err)
	}
}

func TestLinesRefusesEndlessOnes(t *testing.T) {
	long := strings.Repeat("x", MaxLine+1)
	if err := Lines(t.Context(), strings.NewReader(long), io.Discard, 1, upper); err == nil {
		t.Error("got no error")
	}
}

func TestNonsenseInTheEnvironmentIsLeft(t *testing.T) {
	for _, text := range []string{"x", "0", "-3", "1e9"} {
		t.Setenv("WORKERS", text)
		t.Setenv("DEADLINE", text)
		if got := workers(); got < 1 {
			t.Errorf("WORKERS=%s: got %d", text, got)
		}
		if got := deadline(); got != usualDeadline {
			t.Errorf("DEADLINE=%s: got %v", text, got)
		}
	}
}

func TestTheDeadlineEndsTheContext(t *testing.T) {
	t.Setenv("DEADLINE", "1ms")
	ctx, stop := Context()
	defer stop()
	<-ctx.Done()
	if got := context.Cause(ctx).Error(); got != "deadline is over" {
		t.Errorf("got %q", got)
	}
}

func ExampleLines() {
	err := Lines(context.Background(), strings.NewReader("hello"), os.Stdout, 1, upper)
	fmt.Println(err)
	// Output:
	// HELLO
	// <nil>
}
