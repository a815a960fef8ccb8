// Command FUNCTION reads tasks, one JSON object a line, from standard input and writes one answer a
// line. $WORKERS goroutines work at once; SIGTERM stops reading, and running tasks are finished.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

const maxTask = 1 << 20 // bytes of one line

type task struct {
	ID   string `json:"id"`
	Text string `json:"text"`
}

type answer struct {
	ID     string `json:"id"`
	Result string `json:"result,omitempty"`
	Error  string `json:"error,omitempty"`
}

// work does one task.
func work(line string) answer {
	var t task
	if err := json.Unmarshal([]byte(line), &t); err != nil {
		return answer{Error: err.Error()}
	}
	return answer{ID: t.ID, Result: strings.ToUpper(t.Text)}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	count := 4
	if text := os.Getenv("WORKERS"); text != "" {
		parsed, err := strconv.Atoi(text)
		if err != nil || parsed < 1 {
			log.Fatalf("WORKERS: got %q, want a number above 0", text)
		}
		count = parsed
	}
	if err := run(ctx, os.Stdin, os.Stdout, count); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, in io.Reader, out io.Writer, count int) error {
	lines := make(chan string)
	failed := make(chan error, 1)
	go func() { // ends with the process if the input never does
		defer close(lines)
		scanner := bufio.NewScanner(in)
		scanner.Buffer(nil, maxTask)
		for scanner.Scan() {
			select {
			case lines <- scanner.Text():
			case <-ctx.Done():
				return
			}
		}
		failed <- scanner.Err()
	}()

	var mu sync.Mutex
	encoder := json.NewEncoder(out)
	var workers sync.WaitGroup
	for range count {
		workers.Add(1)
		go func() {
			defer workers.Done()
			for {
				select {
				case <-ctx.Done():
					return
				case line, open := <-lines:
					if !open {
						return
					}
					result := work(line)
					mu.Lock()
					err := encoder.Encode(result)
					mu.Unlock()
					if err != nil {
						log.Printf("write answer: %v", err)
					}
				}
			}
		}()
	}
	workers.Wait()
	select {
	case err := <-failed:
		if err != nil {
			return fmt.Errorf("read tasks: %w", err)
		}
	default:
	}
	return nil
}
