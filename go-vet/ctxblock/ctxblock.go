// Package ctxblock finds waits that do not end when the context does: a select without a case for
// ctx.Done(), a receive from a channel that others may never send to.
//
// It is silent of channels that the function made itself (somebody in it sends), of those that say
// by their name that work is to stop, of timers, and of chan struct{}: receiving from a semaphore
// does not wait.
package ctxblock

import (
	"go/ast"
	"go/types"

	"golang.org/x/tools/go/analysis"

	"example.com/layerkit/go-vet/internal/at"
)

// Analyzer is the pass.
var Analyzer = &analysis.Analyzer{
	Name: "ctxblock",
	Doc:  "find selects and receives that do not end with the context of their function",
	URL:  "https://pkg.go.dev/context",
	Run:  run,
}

func run(pass *analysis.Pass) (any, error) {
	channels := at.FindChannels(pass)
	at.Functions(pass, func(f *at.Function) {
		name := f.Context(pass.TypesInfo)
		if name == "" || f.IsBeside() {
			return
		}
		var visit func(ast.Node) bool
		visit = func(node ast.Node) bool {
			switch node := node.(type) {
			case *ast.DeferStmt, *ast.GoStmt:
				return false
			case *ast.ForStmt:
				if node.Cond != nil && drains(pass, node.Cond) {
					return false
				}
			case *ast.SelectStmt:
				checkSelect(pass, channels, f, node, name)
				for _, one := range node.Body.List {
					for _, statement := range one.(*ast.CommClause).Body {
						at.Own(statement, visit)
					}
				}
				return false
			}
			return checkReceive(pass, f, node, name)
		}
		at.Own(f.Body, visit)
	})
	return nil, nil
}

func checkSelect(
	pass *analysis.Pass, channels at.Channels, f *at.Function, statement *ast.SelectStmt, name string,
) {
	clauses, hasDefault := at.Clauses(statement)
	if hasDefault || len(clauses) == 0 {
		return
	}
	for _, clause := range clauses {
		channel, sends := at.Comm(clause)
		if channel == nil || at.IsDone(channel) || at.IsTimer(pass.TypesInfo, channel) || isOwn(pass, f, channel) {
			return
		}
		if sends && isBuffered(pass, channels, channel) {
			return
		}
	}
	at.Report(pass, statement, "select waits though %s is done: add case <-%s.Done()", name, name)
}

func checkReceive(pass *analysis.Pass, f *at.Function, node ast.Node, name string) bool {
	channel := at.Received(node)
	if channel == nil {
		return true
	}
	_, isCall := ast.Unparen(channel).(*ast.CallExpr)
	if isCall || at.IsDone(channel) || at.IsTimer(pass.TypesInfo, channel) || isOwn(pass, f, channel) ||
		isSignal(pass, channel) || f.GivesBack(channel) {
		return true
	}
	at.Report(pass, node, "receive waits though %s is done: select on it and <-%s.Done()", name, name)
	return true
}

// isOwn says whether the channel is a variable of the function or of one around it, but not a
// parameter.
func isOwn(pass *analysis.Pass, f *at.Function, channel ast.Expr) bool {
	id, ok := ast.Unparen(channel).(*ast.Ident)
	if !ok {
		return false
	}
	variable := at.Variable(pass.TypesInfo, id)
	if variable == nil {
		return false
	}
	for ; f != nil; f = f.Outer {
		if f.Body.Pos() <= variable.Pos() && variable.Pos() < f.Body.End() {
			return true
		}
	}
	return false
}

func isSignal(pass *analysis.Pass, channel ast.Expr) bool {
	kind := at.Element(pass.TypesInfo, channel)
	if kind == nil {
		return false
	}
	structure, ok := kind.Underlying().(*types.Struct)
	return ok && structure.NumFields() == 0
}

func isBuffered(pass *analysis.Pass, channels at.Channels, channel ast.Expr) bool {
	return !channels.IsUnbuffered(pass.TypesInfo, channel)
}

// drains says whether a loop's condition looks at how many values a channel holds.
func drains(pass *analysis.Pass, cond ast.Expr) bool {
	found := false
	at.Own(cond, func(node ast.Node) bool {
		if call, ok := node.(*ast.CallExpr); ok && len(call.Args) == 1 {
			id, isIdent := call.Fun.(*ast.Ident)
			found = found ||
				(isIdent && id.Name == "len" && at.Element(pass.TypesInfo, call.Args[0]) != nil)
		}
		return !found
	})
	return found
}
