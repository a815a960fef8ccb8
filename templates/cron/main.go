// Command FUNCTION runs one job and ends: whoever starts it (cron, a Kubernetes CronJob) decides
// when. Its exit status says whether the job was done; SIGTERM and $DEADLINE cancel it.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"os/signal"
	"syscall"
	"time"
)

type report struct {
	Job   string `json:"job"`
	Items int    `json:"items"`
}

// job does the work; it must return soon after ctx is done.
func job(ctx context.Context) (report, error) {
	done := report{Job: "FUNCTION"}
	for range 3 {
		select {
		case <-ctx.Done():
			return done, ctx.Err()
		case <-time.After(10 * time.Millisecond):
			done.Items++
		}
	}
	return done, nil
}

func main() {
	if err := run(); err != nil {
		log.Fatal(err)
	}
}

func run() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	deadline := 5 * time.Minute
	if text := os.Getenv("DEADLINE"); text != "" {
		parsed, err := time.ParseDuration(text)
		if err != nil {
			return fmt.Errorf("DEADLINE: %w", err)
		}
		deadline = parsed
	}
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	done, err := job(ctx)
	if err != nil {
		return fmt.Errorf("job stopped after %d items: %w", done.Items, err)
	}
	return json.NewEncoder(os.Stdout).Encode(done)
}
