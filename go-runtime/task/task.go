// Package task runs functions that serve no HTTP: a job that runs once and ends, and a worker that
// answers one line after the other. Both stop when the node says so.
package task

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"

	"example.com/layerkit/go-runtime/internal/environ"
)

// MaxLine is the longest line that a worker reads, in bytes.
const MaxLine = 1 << 20

// usualDeadline is how long a job may take where $DEADLINE says nothing.
const usualDeadline = 5 * time.Minute

// Main runs job for func main: its context ends with SIGTERM, SIGINT, or after $DEADLINE (a
// duration; default 5m). An error ends the process with status 1.
func Main(job func(context.Context) error) {
	ctx, stop := Context()
	err := job(ctx)
	stop()
	if err != nil {
		log.Fatal(err)
	}
}

// Context is the context of Main.
func Context() (context.Context, context.CancelFunc) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	ctx, cancel := context.WithTimeoutCause(ctx, deadline(), errors.New("deadline is over"))
	return ctx, func() { cancel(); stop() }
}

func deadline() time.Duration { return environ.Duration("DEADLINE", usualDeadline, 1) }

// MainLines runs Lines for func main: from standard input to standard output, $WORKERS at once
// (default: two for each processor), until the input ends or SIGTERM.
func MainLines(work func(context.Context, []byte) []byte) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	err := Lines(ctx, os.Stdin, os.Stdout, workers(), work)
	stop()
	if err != nil && !errors.Is(err, context.Canceled) {
		log.Fatal(err)
	}
}

func workers() int {
	usual := 2 * runtime.GOMAXPROCS(0)
	return environ.Get("WORKERS", usual, "a number above 0", func(text string) (int, bool) {
		count, err := strconv.Atoi(text)
		return count, err == nil && count >= 1
	})
}

// Lines gives each line of in to work, count at once, and writes what it returns as a line; nothing
// for nil. Answers come in the order in which they are ready. When ctx is done no more lines are
// begun, those that run are finished, and the error is ctx's; a read from in that never returns is
// left behind.
func Lines(
	ctx context.Context, in io.Reader, out io.Writer, count int,
	work func(context.Context, []byte) []byte,
) error {
	lines, failed := make(chan []byte), make(chan error, 1)
	reading, stopReading := context.WithCancel(ctx)
	defer stopReading()
	go read(reading, in, lines, failed)
	writer := &lineWriter{out: out}
	var all sync.WaitGroup
	for range max(count, 1) {
		all.Add(1)
		go func() {
			defer all.Done()
			for line := range untilDone(reading, lines) {
				if writer.write(work(context.WithoutCancel(ctx), line)) != nil {
					stopReading() // nobody hears the answers
				}
			}
		}()
	}
	all.Wait()
	if writer.err != nil {
		return fmt.Errorf("write answer: %w", writer.err)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := <-failed; err != nil {
		return fmt.Errorf("read tasks: %w", err)
	}
	return nil
}

// read sends lines until in ends, fails, or ctx is done; then how it ended.
func read(ctx context.Context, in io.Reader, lines chan<- []byte, failed chan<- error) {
	defer close(lines)
	scanner := bufio.NewScanner(in)
	scanner.Buffer(nil, MaxLine)
	for scanner.Scan() {
		line := append([]byte(nil), scanner.Bytes()...)
		select {
		case lines <- line:
		case <-ctx.Done():
			failed <- nil
			return
		}
	}
	failed <- scanner.Err()
}

// untilDone is the lines that come before ctx is done.
func untilDone(ctx context.Context, lines <-chan []byte) func(yield func([]byte) bool) {
	return func(yield func([]byte) bool) {
		for {
			select {
			case <-ctx.Done():
				return
			case line, open := <-lines:
				if !open || !yield(line) {
					return
				}
			}
		}
	}
}

// lineWriter writes whole lines from many goroutines; after a failure nothing more.
type lineWriter struct {
	mu  sync.Mutex
	out io.Writer
	err error
}

func (w *lineWriter) write(line []byte) error {
	if line == nil {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		_, w.err = w.out.Write(append(line, '\n'))
	}
	return w.err
}
