// Command FUNCTION reads tasks, one JSON object a line, from standard input and writes one answer a
// line. $WORKERS of them run at once; SIGTERM stops reading, and running tasks are finished.
package main

import (
	"context"
	"encoding/json"
	"strings"

	_ "example.com/layerkit/go-runtime/auto" // memory limit and GOGC by the cgroup
	"example.com/layerkit/go-runtime/task"
)

type order struct {
	ID   string `json:"id"`
	Text string `json:"text"`
}

type answer struct {
	ID     string `json:"id"`
	Result string `json:"result,omitempty"`
	Error  string `json:"error,omitempty"`
}

// work does one task.
func work(_ context.Context, line []byte) []byte {
	var got order
	reply := answer{}
	if err := json.Unmarshal(line, &got); err != nil {
		reply.Error = err.Error()
	} else {
		reply = answer{ID: got.ID, Result: strings.ToUpper(got.Text)}
	}
	raw, _ := json.Marshal(reply) // strings alone always can
	return raw
}

func main() { task.MainLines(work) }
