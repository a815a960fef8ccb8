// Package lockcall finds calls that may block for long while a lock is held: all who want the lock
// wait for a network, a child process or another goroutine, and a goroutine that needs the lock to
// go on never does.
package lockcall

import (
	"go/ast"
	"go/types"
	"strings"

	"golang.org/x/tools/go/analysis"

	"example.com/layerkit/go-vet/internal/at"
)

// Analyzer is the pass.
var Analyzer = &analysis.Analyzer{
	Name: "lockcall",
	Doc:  "find blocking calls while a lock is held",
	URL:  "https://pkg.go.dev/sync",
	Run:  run,
}

// blocking is calls that wait for something outside of the process, or for a goroutine.
var blocking = map[string]bool{
	"time.Sleep": true, "sync.WaitGroup.Wait": true,
	"net.Dial": true, "net.DialTimeout": true, "net.Dialer.Dial": true, "net.Dialer.DialContext": true,
	"crypto/tls.Dial": true, "crypto/tls.Conn.Handshake": true,
	"os/exec.Cmd.Run": true, "os/exec.Cmd.Wait": true, "os/exec.Cmd.Output": true,
	"os/exec.Cmd.CombinedOutput": true, "os.Process.Wait": true,
	"net/http.Client.Do": true, "net.TCPListener.Accept": true, "net.Listener.Accept": true,
}

func init() {
	for _, name := range []string{"Get", "Head", "Post", "PostForm"} {
		blocking["net/http."+name], blocking["net/http.Client."+name] = true, true
	}
	for _, kind := range []string{"DB", "Tx", "Conn", "Stmt"} {
		for _, name := range []string{"Exec", "Query", "QueryRow", "Prepare", "Ping"} {
			for _, end := range []string{"", "Context"} {
				blocking["database/sql."+kind+"."+name+end] = true
			}
		}
	}
}

func run(pass *analysis.Pass) (any, error) {
	channels := at.FindChannels(pass)
	at.Functions(pass, func(f *at.Function) {
		at.Own(f.Body, func(node ast.Node) bool {
			if list := statements(node); list != nil {
				checkList(pass, channels, f, list)
			}
			return true
		})
	})
	return nil, nil
}

// statements is the list of statements that a node is, nil for others.
func statements(node ast.Node) []ast.Stmt {
	switch node := node.(type) {
	case *ast.BlockStmt:
		return node.List
	case *ast.CaseClause:
		return node.Body
	case *ast.CommClause:
		return node.Body
	}
	return nil
}

// checkList looks, after each lock in a list of statements, at what follows until its unlock.
func checkList(pass *analysis.Pass, channels at.Channels, f *at.Function, list []ast.Stmt) {
	for from, statement := range list {
		lock, method := lockCall(pass, statement)
		if lock == "" || !strings.HasSuffix(method, "Lock") || strings.HasSuffix(method, "Unlock") {
			continue
		}
		unlock := strings.Replace(method, "Lock", "Unlock", 1)
		for _, next := range list[from+1:] {
			if other, name := lockCall(pass, next); other == lock && name == unlock {
				break
			}
			if _, ok := next.(*ast.DeferStmt); ok {
				continue
			}
			if unlocks(pass, next, lock, unlock) {
				continue // one of its branches gives the lock back: which, is not looked into
			}
			report(pass, channels, f, next, lock)
		}
	}
}

// lockCall is the text of what a statement calls Lock, Unlock, RLock or RUnlock of, and which.
func lockCall(pass *analysis.Pass, statement ast.Stmt) (lock, method string) {
	expression, ok := statement.(*ast.ExprStmt)
	if !ok {
		return "", ""
	}
	call, ok := expression.X.(*ast.CallExpr)
	if !ok {
		return "", ""
	}
	return lockOf(pass, call)
}

func lockOf(pass *analysis.Pass, call *ast.CallExpr) (lock, method string) {
	selector, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return "", ""
	}
	switch at.Name(at.Callee(pass.TypesInfo, call)) {
	case "sync.Mutex.Lock", "sync.Mutex.Unlock", "sync.RWMutex.Lock", "sync.RWMutex.Unlock",
		"sync.RWMutex.RLock", "sync.RWMutex.RUnlock":
		return types.ExprString(selector.X), selector.Sel.Name
	}
	return "", ""
}

func unlocks(pass *analysis.Pass, node ast.Node, lock, unlock string) bool {
	found := false
	at.Own(node, func(node ast.Node) bool {
		if call, ok := node.(*ast.CallExpr); ok {
			other, name := lockOf(pass, call)
			found = found || (other == lock && name == unlock)
		}
		return !found
	})
	return found
}

// report reports what blocks in a statement. Waiting for goroutines of the package is no finding
// where the function started them itself (workers that share the work that the lock protects), and
// where it ends what the lock protects.
func report(
	pass *analysis.Pass, channels at.Channels, f *at.Function, node ast.Node, lock string,
) {
	quiet := func(waitedFor ast.Expr) bool {
		return f.EndsSomething() || at.IsDone(waitedFor) || isLocal(pass, f, waitedFor)
	}
	at.Own(node, func(node ast.Node) bool {
		switch node := node.(type) {
		case *ast.GoStmt, *ast.DeferStmt:
			return false
		case *ast.IfStmt:
			if failsToStart(pass, node) {
				return false // Wait does not wait for what never ran
			}
		case *ast.SelectStmt:
			if !hasWayOut(pass, node) && !f.EndsSomething() {
				say(pass, node, lock, "a select")
			}
			return false
		case *ast.SendStmt:
			if channels.IsUnbuffered(pass.TypesInfo, node.Chan) && !quiet(node.Chan) {
				say(pass, node, lock, "a send to "+types.ExprString(node.Chan))
			}
		case *ast.UnaryExpr:
			channel := at.Received(node)
			if channel != nil && !quiet(channel) && !f.GivesBack(channel) &&
				!channels.IsBuffered(pass.TypesInfo, channel) {
				say(pass, node, lock, "a receive from "+types.ExprString(channel))
			}
		case *ast.CallExpr:
			name := at.Name(at.Callee(pass.TypesInfo, node))
			selector, ok := node.Fun.(*ast.SelectorExpr)
			isQuiet := name == "sync.WaitGroup.Wait" && ok && quiet(selector.X)
			if blocking[name] && !isQuiet {
				say(pass, node, lock, name)
			}
		}
		return true
	})
}

// failsToStart says whether an if statement is about a command that did not start:
// if err := c.Start(); err != nil.
func failsToStart(pass *analysis.Pass, statement *ast.IfStmt) bool {
	assign, ok := statement.Init.(*ast.AssignStmt)
	if !ok || len(assign.Rhs) != 1 {
		return false
	}
	call, ok := assign.Rhs[0].(*ast.CallExpr)
	return ok && at.Name(at.Callee(pass.TypesInfo, call)) == "os/exec.Cmd.Start"
}

// isLocal says whether an expression names a variable that the function declares in its body.
func isLocal(pass *analysis.Pass, f *at.Function, expr ast.Expr) bool {
	id, ok := ast.Unparen(expr).(*ast.Ident)
	if !ok {
		return false
	}
	variable := at.Variable(pass.TypesInfo, id)
	return variable != nil && f.Body.Pos() <= variable.Pos() && variable.Pos() < f.Body.End()
}

// hasWayOut says whether a select has a default or waits for a word to stop or a timer, too: its lock
// then keeps others from writing between, as that of a net.Pipe does.
func hasWayOut(pass *analysis.Pass, statement *ast.SelectStmt) bool {
	clauses, found := at.Clauses(statement)
	for _, clause := range clauses {
		channel, sends := at.Comm(clause)
		found = found ||
			(channel != nil && !sends && (at.IsDone(channel) || at.IsTimer(pass.TypesInfo, channel)))
	}
	return found
}

func say(pass *analysis.Pass, node ast.Node, lock, what string) {
	at.Report(pass, node, "%s is held over %s, which may block: unlock first, and lock again after",
		lock, what)
}
