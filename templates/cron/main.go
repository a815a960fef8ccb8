// Command FUNCTION runs one job and ends: whoever starts it (cron, a Kubernetes CronJob) decides
// when. Its exit status says whether the job was done; SIGTERM and $DEADLINE cancel it.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	_ "example.com/layerkit/go-runtime/auto" // memory limit and GOGC by the cgroup
	"example.com/layerkit/go-runtime/task"
)

type report struct {
	Job   string `json:"job"`
	Items int    `json:"items"`
}

// job does the work; it must return soon after ctx is done.
func job(ctx context.Context) error {
	done := report{Job: "FUNCTION"}
	for range 3 {
		select {
		case <-ctx.Done():
			return fmt.Errorf("job stopped after %d items: %w", done.Items, context.Cause(ctx))
		case <-time.After(10 * time.Millisecond):
			done.Items++
		}
	}
	return json.NewEncoder(os.Stdout).Encode(done)
}

func main() { task.Main(job) }
