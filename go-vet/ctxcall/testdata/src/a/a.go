package a

import (
	"context"
	"database/sql"
	"net"
	"net/http"
	"os"
	"os/exec"
	"syscall"
)

func calls(ctx context.Context, db *sql.DB, client *http.Client) {
	http.Get("http://x")             // want `net/http.Get takes no context, and ctx is at hand`
	client.Post("http://x", "", nil) // want `net/http.Client.Post takes no context`
	http.NewRequest("GET", "x", nil) // want `use http.NewRequestWithContext`
	db.Query("select 1")             // want `use QueryContext`
	db.Begin()                       // want `use BeginTx`
	net.Dial("tcp", "x:1")           // want `DialContext`
	exec.Command("true")             // want `use exec.CommandContext`
	db.QueryContext(ctx, "select 1")
	exec.CommandContext(ctx, "true")
	go func() {
		http.Get("http://x") // want `ctx is at hand`
	}()
	defer func() {
		db.Exec("rollback")
	}()
}

func handler(w http.ResponseWriter, r *http.Request) {
	http.Get("http://x") // want `r.Context\(\) is at hand`
}

func later(ctx context.Context) *http.Request {
	request, _ := http.NewRequest("GET", "x", nil)
	return request.WithContext(ctx)
}

func none() { http.Get("http://x") }

func do(context.Context, *http.Request) {}

func given(ctx context.Context) {
	request, _ := http.NewRequest("GET", "x", nil)
	do(ctx, request)
}

func daemon(ctx context.Context) error {
	command := exec.Command("true")
	command.SysProcAttr = &syscall.SysProcAttr{}
	return command.Start()
}

func makes(ctx context.Context) (*http.Request, error) { return http.NewRequest("GET", "x", nil) }

func endsItItself(ctx context.Context) error {
	command := exec.Command("sleep", "1000")
	if err := command.Start(); err != nil {
		return err
	}
	go func() {
		<-ctx.Done()
		_ = command.Process.Signal(os.Interrupt)
	}()
	return command.Wait()
}
