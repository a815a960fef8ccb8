// Package ctxgo finds goroutines that outlive the context of the function that starts them: they
// neither get it nor watch it, and run in an endless loop, by a ticker, or wait to send what nobody
// receives any more.
package ctxgo

import (
	"go/ast"
	"go/token"
	"go/types"

	"golang.org/x/tools/go/analysis"

	"example.com/layerkit/go-vet/internal/at"
)

// Analyzer is the pass.
var Analyzer = &analysis.Analyzer{
	Name: "ctxgo",
	Doc:  "find goroutines that do not end with the context of their function",
	URL:  "https://pkg.go.dev/context",
	Run:  run,
}

func run(pass *analysis.Pass) (any, error) {
	channels, bodies := at.FindChannels(pass), findBodies(pass)
	at.Functions(pass, func(f *at.Function) {
		name := f.Context(pass.TypesInfo)
		if name == "" {
			return
		}
		at.Own(f.Body, func(node ast.Node) bool {
			statement, ok := node.(*ast.GoStmt)
			if !ok {
				return true
			}
			body := bodyOf(pass, bodies, statement.Call)
			if body == nil || at.UsesContext(pass.TypesInfo, statement.Call) ||
				at.UsesContext(pass.TypesInfo, body) {
				return true
			}
			if why := runsOn(pass, body); why != "" {
				at.Report(pass, statement, "goroutine runs on when %s is done: it %s; pass %s and watch "+
					"%s.Done()", name, why, name, name)
			} else if channel := stuckSend(pass, channels, f, body); channel != "" {
				at.Report(pass, statement, "goroutine stays when the select leaves by another case: nobody "+
					"receives from %s then; give it a buffer of 1, or watch %s.Done()", channel, name)
			}
			return true
		})
	})
	return nil, nil
}

// findBodies is the bodies of the package's functions and methods.
func findBodies(pass *analysis.Pass) map[*types.Func]*ast.BlockStmt {
	found := map[*types.Func]*ast.BlockStmt{}
	for _, file := range pass.Files {
		for _, one := range file.Decls {
			if declared, ok := one.(*ast.FuncDecl); ok && declared.Body != nil {
				if object, ok := pass.TypesInfo.Defs[declared.Name].(*types.Func); ok {
					found[object] = declared.Body
				}
			}
		}
	}
	return found
}

func bodyOf(
	pass *analysis.Pass, bodies map[*types.Func]*ast.BlockStmt, call *ast.CallExpr,
) *ast.BlockStmt {
	if literal, ok := ast.Unparen(call.Fun).(*ast.FuncLit); ok {
		return literal.Body
	}
	return bodies[at.Callee(pass.TypesInfo, call)]
}

// runsOn says why a body never ends, "" if it may.
func runsOn(pass *analysis.Pass, body *ast.BlockStmt) string {
	why := ""
	at.Own(body, func(node ast.Node) bool {
		switch node := node.(type) {
		case *ast.GoStmt:
			return false
		case *ast.ForStmt:
			if node.Cond == nil && !leaves(pass, node.Body) {
				why = "loops without an end"
			}
		case *ast.RangeStmt:
			if isTicks(pass, node.X) && !leaves(pass, node.Body) {
				why = "loops over a ticker, which is never closed"
			}
		}
		return why == ""
	})
	return why
}

// isTicks says whether an expression is the channel of a ticker.
func isTicks(pass *analysis.Pass, expr ast.Expr) bool {
	switch expr := ast.Unparen(expr).(type) {
	case *ast.SelectorExpr:
		kind := pass.TypesInfo.TypeOf(expr.X)
		return expr.Sel.Name == "C" && kind != nil && at.IsNamed(kind, "time", "Ticker")
	case *ast.CallExpr:
		return at.Name(at.Callee(pass.TypesInfo, expr)) == "time.Tick"
	}
	return false
}

// leaves says whether a loop's body can leave the loop: by return, goto, break, panic, or a call
// that ends the goroutine or the process. An unknown channel that it receives from counts, too:
// closing may be how it is ended, by a panic or a check that is not seen here.
func leaves(pass *analysis.Pass, body *ast.BlockStmt) bool {
	found := false
	depth := 0 // of what an unlabeled break leaves instead
	var visit func(ast.Node) bool
	visit = func(node ast.Node) bool {
		switch node := node.(type) {
		case *ast.ReturnStmt:
			found = true
		case *ast.BranchStmt:
			found = found || node.Tok == token.GOTO ||
				(node.Tok == token.BREAK && (node.Label != nil || depth == 0))
		case *ast.CallExpr:
			found = found || ends(pass, node)
		case *ast.ForStmt, *ast.RangeStmt, *ast.SwitchStmt, *ast.TypeSwitchStmt, *ast.SelectStmt:
			depth++
			for _, child := range children(node) {
				at.Own(child, visit)
			}
			depth--
			return false
		}
		return !found
	}
	at.Own(body, visit)
	return found
}

// children is the parts of a statement that breaks out of itself.
func children(node ast.Node) []ast.Node {
	switch node := node.(type) {
	case *ast.ForStmt:
		return []ast.Node{node.Body}
	case *ast.RangeStmt:
		return []ast.Node{node.Body}
	case *ast.SwitchStmt:
		return []ast.Node{node.Body}
	case *ast.TypeSwitchStmt:
		return []ast.Node{node.Body}
	case *ast.SelectStmt:
		return []ast.Node{node.Body}
	}
	return nil
}

func ends(pass *analysis.Pass, call *ast.CallExpr) bool {
	if id, ok := call.Fun.(*ast.Ident); ok && id.Name == "panic" {
		return true
	}
	switch at.Name(at.Callee(pass.TypesInfo, call)) {
	case "os.Exit", "runtime.Goexit", "log.Fatal", "log.Fatalf", "log.Fatalln", "log.Panic",
		"log.Panicf", "syscall.Exit":
		return true
	}
	return false
}

// stuckSend is the name of an unbuffered channel that the function made and that the body sends to
// without a select, while the function receives only in selects with another way out.
func stuckSend(
	pass *analysis.Pass, channels at.Channels, f *at.Function, body *ast.BlockStmt,
) string {
	sent := map[*types.Var]bool{}
	at.Own(body, func(node ast.Node) bool {
		switch node := node.(type) {
		case *ast.SelectStmt:
			return false
		case *ast.SendStmt:
			if channels.IsUnbuffered(pass.TypesInfo, node.Chan) {
				if variable := at.Variable(pass.TypesInfo, node.Chan); isLocal(f, variable) {
					sent[variable] = true
				}
			}
		}
		return true
	})
	for variable := range sent {
		if receivesOnlyWithWayOut(pass, f, variable) {
			return variable.Name()
		}
	}
	return ""
}

func isLocal(f *at.Function, variable *types.Var) bool {
	return variable != nil && f.Body.Pos() <= variable.Pos() && variable.Pos() < f.Body.End()
}

// receivesOnlyWithWayOut says whether all receives from a channel stand in selects of the function
// that may leave by a Done or a timer, and the case for that leaves without receiving.
func receivesOnlyWithWayOut(pass *analysis.Pass, f *at.Function, variable *types.Var) bool {
	inSelect, other := false, false
	var visit func(ast.Node) bool
	visit = func(node ast.Node) bool {
		switch node := node.(type) {
		case *ast.SelectStmt:
			clauses, _ := at.Clauses(node)
			has, out := false, false
			for _, clause := range clauses {
				channel, sends := at.Comm(clause)
				if !sends && channel != nil && at.Variable(pass.TypesInfo, channel) == variable {
					has = true
				} else if leavesFunction(clause) {
					out = true
				}
				for _, statement := range clause.Body {
					ast.Inspect(statement, visit)
				}
			}
			if has && out {
				inSelect = true
			} else if has {
				other = true
			}
			return false
		case *ast.RangeStmt:
			if at.Variable(pass.TypesInfo, node.X) == variable {
				other = true
			}
		case *ast.CallExpr: // somebody else may receive
			for _, argument := range node.Args {
				other = other || at.Variable(pass.TypesInfo, argument) == variable
			}
		case *ast.ReturnStmt:
			for _, result := range node.Results {
				other = other || at.Variable(pass.TypesInfo, result) == variable
			}
		}
		if channel := at.Received(node); channel != nil {
			other = other || at.Variable(pass.TypesInfo, channel) == variable
		}
		return true
	}
	ast.Inspect(f.Body, visit)
	return inSelect && !other
}

// leavesFunction says whether a clause ends with a return.
func leavesFunction(clause *ast.CommClause) bool {
	if len(clause.Body) == 0 {
		return false
	}
	_, ok := clause.Body[len(clause.Body)-1].(*ast.ReturnStmt)
	return ok
}
