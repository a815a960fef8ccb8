// Package ctxdrop finds context.Background() and context.TODO() where a context is at hand: what is
// called then neither ends with its caller nor knows its deadline, trace and values.
package ctxdrop

import (
	"go/ast"
	"go/token"
	"go/types"
	"strings"

	"golang.org/x/tools/go/analysis"

	"example.com/layerkit/go-vet/internal/at"
)

// Analyzer is the pass.
var Analyzer = &analysis.Analyzer{
	Name: "ctxdrop",
	Doc:  "find context.Background() in functions that have a context",
	URL:  "https://pkg.go.dev/context",
	Run:  run,
}

func run(pass *analysis.Pass) (any, error) {
	at.Functions(pass, func(f *at.Function) {
		name := f.Context(pass.TypesInfo)
		if name == "" || f.IsBeside() || cleansUp(f) {
			return
		}
		check(pass, f, name)
	})
	return nil, nil
}

func check(pass *analysis.Pass, f *at.Function, name string) {
	done, mixed := doneAfter(f.Body), mixedWithOthers(pass, f)
	excused := map[ast.Node]bool{} // what is not looked into
	at.Own(f.Body, func(node ast.Node) bool {
		switch node := node.(type) {
		case *ast.DeferStmt, *ast.GoStmt:
			return false // clean-up, or what goes on when the function is over
		case *ast.IfStmt:
			if comparesWithNil(pass, node.Cond) {
				excused[node.Body] = true
			}
			excuseOverwriting(pass, node.Body, excused)
		case *ast.BinaryExpr: // what both contexts say is compared
			return !at.UsesContext(pass.TypesInfo, node.X) || !at.UsesContext(pass.TypesInfo, node.Y)
		case *ast.AssignStmt:
			excuseAssigned(pass, node, mixed, excused)
		case *ast.ReturnStmt:
			for _, result := range node.Results {
				excuseMaker(result, excused)
			}
		case *ast.BlockStmt:
			return !excused[node]
		case *ast.CompositeLit:
			return !isOwnContext(pass, node)
		case *ast.CommClause:
			if channel, sends := at.Comm(node); channel != nil && !sends && at.IsDone(channel) {
				return false // from there on the context is no help
			}
		case *ast.CallExpr:
			callee := at.Name(at.Callee(pass.TypesInfo, node))
			if outlives(pass, node, callee) || contextCount(pass, node) > 1 {
				for _, argument := range node.Args {
					excused[ast.Unparen(argument)] = true
				}
			}
			if excused[node] {
				return false
			}
			if callee == "context.Background" && at.IsExplained(pass, node) {
				return true
			}
			if (callee == "context.Background" || callee == "context.TODO") && node.Pos() < done {
				at.Report(pass, node, "%s() drops %s, which is at hand: pass %s, or "+
					"context.WithoutCancel(%s) to what must outlive it", callee, name, name, name)
			}
		}
		return true
	})
}

// contextCount is how many of a call's arguments are contexts: with more than one, something is
// carried over from one to the other.
func contextCount(pass *analysis.Pass, call *ast.CallExpr) int {
	count := 0
	for _, argument := range call.Args {
		if kind := pass.TypesInfo.TypeOf(argument); kind != nil && at.IsContext(kind) {
			count++
		}
	}
	return count
}

// mixedWithOthers is the variables that are given to a call beside another context.
func mixedWithOthers(pass *analysis.Pass, f *at.Function) map[*types.Var]bool {
	found := map[*types.Var]bool{}
	at.Own(f.Body, func(node ast.Node) bool {
		if call, ok := node.(*ast.CallExpr); ok && contextCount(pass, call) > 1 {
			for _, argument := range call.Args {
				if variable := at.Variable(pass.TypesInfo, argument); variable != nil {
					found[variable] = true
				}
			}
		}
		return true
	})
	return found
}

// excuseAssigned excuses a context that gets values of others before it is used, and the one of what
// is made to be kept in a field: `s.client = client.New(context.Background())`. Clients hold on to it.
func excuseAssigned(
	pass *analysis.Pass, node *ast.AssignStmt, mixed map[*types.Var]bool, excused map[ast.Node]bool,
) {
	for from, to := range node.Lhs {
		if from >= len(node.Rhs) {
			break
		}
		if _, isField := to.(*ast.SelectorExpr); isField {
			excuseMaker(node.Rhs[from], excused)
		}
		if mixed[at.Variable(pass.TypesInfo, to)] {
			excused[ast.Unparen(node.Rhs[from])] = true
		}
	}
}

// excuseMaker excuses the arguments of a call of a function whose name begins with New.
func excuseMaker(expr ast.Expr, excused map[ast.Node]bool) {
	call, ok := ast.Unparen(expr).(*ast.CallExpr)
	if !ok {
		return
	}
	if selector, ok := call.Fun.(*ast.SelectorExpr); ok && strings.HasPrefix(selector.Sel.Name, "New") {
		for _, argument := range call.Args {
			excused[ast.Unparen(argument)] = true
		}
	}
}

// excuseOverwriting excuses `ctx = context.Background()` in a branch: some cases are cut off by will.
func excuseOverwriting(pass *analysis.Pass, body *ast.BlockStmt, excused map[ast.Node]bool) {
	for _, statement := range body.List {
		assign, ok := statement.(*ast.AssignStmt)
		if !ok || assign.Tok != token.ASSIGN || len(assign.Rhs) != 1 {
			continue
		}
		if kind := pass.TypesInfo.TypeOf(assign.Lhs[0]); kind != nil && at.IsContext(kind) {
			excused[ast.Unparen(assign.Rhs[0])] = true
		}
	}
}

// doneAfter is where the function first waits for the end of a context with nothing else to wait
// for: what comes after is its clean-up.
func doneAfter(body *ast.BlockStmt) token.Pos {
	found := body.End()
	at.Own(body, func(node ast.Node) bool {
		if _, ok := node.(*ast.SelectStmt); ok {
			return false
		}
		if channel := at.Received(node); channel != nil && at.IsDone(channel) && node.Pos() < found {
			found = node.Pos()
		}
		return true
	})
	return found
}

var outliving = []string{
	"start", "spawn", "monitor", "watch", "background",
	"release", "clean", "close", "delete", "remove", "rollback", "abort", "stop", "shutdown", "unlock",
	"exit", "quit", "terminate",
}

// cleansUp says whether the name of the function, or of the one around it, says that it cleans up,
// also after a context that is done.
func cleansUp(f *at.Function) bool {
	for f.Outer != nil {
		f = f.Outer
	}
	declared, ok := f.Node.(*ast.FuncDecl)
	if !ok {
		return false
	}
	name := strings.ToLower(declared.Name.Name)
	for _, part := range []string{"release", "cleanup", "rollback", "abort", "shutdown", "unlock"} {
		if strings.Contains(name, part) {
			return true
		}
	}
	return false
}

// outlives says whether a call is meant to outlive its caller: it makes a context that is ended by
// hand, takes a request's context away, or its name says that it begins something or cleans up: startMonitor, Release.
func outlives(pass *analysis.Pass, call *ast.CallExpr, full string) bool {
	switch full {
	case "context.WithCancel", "context.WithCancelCause", "net/http.Request.WithContext":
		return true
	}
	callee := at.Callee(pass.TypesInfo, call)
	if callee == nil {
		return false
	}
	name := strings.ToLower(callee.Name())
	for _, begin := range outliving {
		if strings.HasPrefix(name, begin) {
			return true
		}
	}
	return strings.Contains(name, "shutdown")
}

// isOwnContext says whether a literal makes a context of the package's own: what stands in it for
// the one that it wraps is chosen with care.
func isOwnContext(pass *analysis.Pass, literal *ast.CompositeLit) bool {
	kind := pass.TypesInfo.TypeOf(literal)
	if kind == nil {
		return false
	}
	methods := types.NewMethodSet(types.NewPointer(kind))
	return methods.Lookup(nil, "Deadline") != nil && methods.Lookup(nil, "Done") != nil &&
		methods.Lookup(nil, "Err") != nil && methods.Lookup(nil, "Value") != nil
}

// comparesWithNil says whether a condition asks if a context is nil.
func comparesWithNil(pass *analysis.Pass, cond ast.Expr) bool {
	found := false
	ast.Inspect(cond, func(node ast.Node) bool {
		if binary, ok := node.(*ast.BinaryExpr); ok && binary.Op == token.EQL {
			kind := pass.TypesInfo.TypeOf(binary.X)
			id, isIdent := binary.Y.(*ast.Ident)
			found = found || (isIdent && id.Name == "nil" && kind != nil && at.IsContext(kind))
		}
		return true
	})
	return found
}
