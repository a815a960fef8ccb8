// Package at says what is at hand in a function: a context, a request, and what its statements do.
package at

import (
	"go/ast"
	"go/token"
	"go/types"
	"strings"
	"unicode"

	"golang.org/x/tools/go/analysis"
)

// Function is a declared function or a literal, with the functions around it.
type Function struct {
	Node    ast.Node // *ast.FuncDecl or *ast.FuncLit
	Type    *ast.FuncType
	Body    *ast.BlockStmt
	Outer   *Function // of a literal; nil for a declared function
	IsGo    bool      // a literal that a go statement runs
	IsDefer bool      // a literal that a defer statement runs
	IsKept  bool      // a literal that is returned, stored or registered: it may run when its function is over
}

// Functions calls visit for each function of the package that has a body, outer ones first; those
// of generated files and of tests, also of suites that import testing, are left out: nobody reads
// the findings there.
func Functions(pass *analysis.Pass, visit func(*Function)) {
	for _, file := range pass.Files {
		name := pass.Fset.Position(file.Package).Filename
		if strings.HasSuffix(name, "_test.go") || ast.IsGenerated(file) || imports(file, "testing") {
			continue
		}
		for _, one := range file.Decls {
			if declared, ok := one.(*ast.FuncDecl); ok && declared.Body != nil {
				walk(&Function{Node: declared, Type: declared.Type, Body: declared.Body}, visit)
			}
		}
	}
}

func imports(file *ast.File, path string) bool {
	for _, one := range file.Imports {
		if one.Path.Value == `"`+path+`"` {
			return true
		}
	}
	return false
}

func walk(f *Function, visit func(*Function)) {
	visit(f)
	inGo, inDefer, kept := map[*ast.FuncLit]bool{}, map[*ast.FuncLit]bool{}, map[*ast.FuncLit]bool{}
	keep := func(values ...ast.Expr) {
		for _, value := range values {
			if literal, ok := ast.Unparen(value).(*ast.FuncLit); ok {
				kept[literal] = true
			}
		}
	}
	returned := returnedNames(f.Body)
	ast.Inspect(f.Body, func(node ast.Node) bool {
		switch node := node.(type) {
		case *ast.ReturnStmt:
			keep(node.Results...)
		case *ast.CompositeLit:
			keep(node.Elts...)
		case *ast.KeyValueExpr:
			keep(node.Value)
		case *ast.AssignStmt:
			for at, to := range node.Lhs {
				if id, local := to.(*ast.Ident); (!local || returned[id.Name]) && at < len(node.Rhs) {
					keep(node.Rhs[at])
				}
			}
		case *ast.CallExpr:
			if registers(node) {
				keep(node.Args...)
			}
		case *ast.GoStmt:
			if literal, ok := ast.Unparen(node.Call.Fun).(*ast.FuncLit); ok {
				inGo[literal] = true
			}
		case *ast.DeferStmt:
			if literal, ok := ast.Unparen(node.Call.Fun).(*ast.FuncLit); ok {
				inDefer[literal] = true
			}
		case *ast.FuncLit:
			walk(&Function{
				Node: node, Type: node.Type, Body: node.Body, Outer: f,
				IsGo: inGo[node], IsDefer: inDefer[node], IsKept: kept[node],
			}, visit)
			return false
		}
		return true
	})
}

// returnedNames is the names that the function's own return statements give.
func returnedNames(body *ast.BlockStmt) map[string]bool {
	found := map[string]bool{}
	Own(body, func(node ast.Node) bool {
		if statement, ok := node.(*ast.ReturnStmt); ok {
			for _, result := range statement.Results {
				if id, ok := ast.Unparen(result).(*ast.Ident); ok {
					found[id.Name] = true
				}
			}
		}
		return true
	})
	return found
}

// registering begins the names of functions that keep a function for later: OnClose, WithLogger.
var registering = []string{
	"new", "on", "with", "set", "add", "register", "subscribe", "handle", "notify", "schedule", "every",
	"after", "before",
}

func registers(call *ast.CallExpr) bool {
	name := ""
	switch fun := ast.Unparen(call.Fun).(type) {
	case *ast.Ident:
		name = fun.Name
	case *ast.SelectorExpr:
		name = fun.Sel.Name
	}
	for _, begin := range registering {
		rest, ok := strings.CutPrefix(strings.ToLower(name), begin)
		if ok && (rest == "" || len(begin) > 4 || !unicode.IsLower(rune(name[len(begin)]))) {
			return true
		}
	}
	return false
}

// Own calls visit for the nodes of a function's body, without those of literals in it.
func Own(body ast.Node, visit func(ast.Node) bool) {
	ast.Inspect(body, func(node ast.Node) bool {
		if _, ok := node.(*ast.FuncLit); ok {
			return false
		}
		return node == nil || visit(node)
	})
}

// Context is the name of what gives the function a context: a parameter of its own or of a function
// around it, of type context.Context or *http.Request (then with `.Context()`); "" for none. A
// literal that is kept has only its own: when it runs, the others may be done.
func (f *Function) Context(info *types.Info) string {
	for at := f; at != nil; at = at.Outer {
		for _, field := range at.Type.Params.List {
			for _, name := range field.Names {
				if name.Name == "_" {
					continue
				}
				switch kind := info.TypeOf(field.Type); {
				case IsContext(kind):
					return name.Name
				case IsNamed(kind, "net/http", "Request"):
					return name.Name + ".Context()"
				}
			}
		}
		if at.IsKept {
			break
		}
	}
	return ""
}

// IsBeside says whether the function runs beside the declared one around it or when that is over, as
// far as can be seen: it is, or lies in, a literal that a go or defer statement runs.
func (f *Function) IsBeside() bool {
	for ; f != nil; f = f.Outer {
		if f.IsGo || f.IsDefer {
			return true
		}
	}
	return false
}

// IsContext says whether a type is context.Context.
func IsContext(kind types.Type) bool { return IsNamed(kind, "context", "Context") }

// IsNamed says whether a type, or what it points to, is that one.
func IsNamed(kind types.Type, path, name string) bool {
	if pointer, ok := types.Unalias(kind).(*types.Pointer); ok {
		kind = pointer.Elem()
	}
	named, ok := types.Unalias(kind).(*types.Named)
	if !ok {
		return false
	}
	object := named.Obj()
	return object.Name() == name && object.Pkg() != nil && object.Pkg().Path() == path
}

// Callee is the function or method that a call calls, nil where that is not known.
func Callee(info *types.Info, call *ast.CallExpr) *types.Func {
	var id *ast.Ident
	switch fun := ast.Unparen(call.Fun).(type) {
	case *ast.Ident:
		id = fun
	case *ast.SelectorExpr:
		id = fun.Sel
	default:
		return nil
	}
	found, _ := info.Uses[id].(*types.Func)
	return found
}

// Name is a callee as `path.Function` or `path.Type.Method`, "" for nil.
func Name(f *types.Func) string {
	if f == nil || f.Pkg() == nil {
		return ""
	}
	receiver := f.Signature().Recv()
	if receiver == nil {
		return f.Pkg().Path() + "." + f.Name()
	}
	kind := receiver.Type()
	if pointer, ok := kind.(*types.Pointer); ok {
		kind = pointer.Elem()
	}
	if named, ok := types.Unalias(kind).(*types.Named); ok && named.Obj().Pkg() != nil {
		return named.Obj().Pkg().Path() + "." + named.Obj().Name() + "." + f.Name()
	}
	return ""
}

// UsesContext says whether a node names a value of type context.Context, or asks a request for it.
func UsesContext(info *types.Info, node ast.Node) bool {
	found := false
	ast.Inspect(node, func(node ast.Node) bool {
		if expr, ok := node.(ast.Expr); ok && !found {
			if kind := info.TypeOf(expr); kind != nil && IsContext(kind) {
				found = true
			}
		}
		return !found
	})
	return found
}

// IsDone says whether an expression is a channel that says that work is to stop, or one that serves
// as a lock: `x.Done()`, or one whose name says so.
func IsDone(expr ast.Expr) bool {
	switch expr := ast.Unparen(expr).(type) {
	case *ast.CallExpr:
		if selector, ok := expr.Fun.(*ast.SelectorExpr); ok {
			return isStopName(selector.Sel.Name)
		}
		if id, ok := expr.Fun.(*ast.Ident); ok {
			return isStopName(id.Name)
		}
	case *ast.SelectorExpr:
		return isStopName(expr.Sel.Name)
	case *ast.Ident:
		return isStopName(expr.Name)
	}
	return false
}

var stopNames = []string{
	"done", "quit", "stop", "clos", "exit", "cancel", "shutdown", "term", "kill", "end", "finish",
	"dead", "abort", "death", "dying", "leaving", "wait", "ready", "sig",
	"mu", "mutex", "lock", "sem", "token", // a channel as a lock: it is given back soon
}

// EndsSomething says whether a function's name says that it stops or closes something.
func (f *Function) EndsSomething() bool {
	declared, ok := f.Node.(*ast.FuncDecl)
	return ok && isStopName(declared.Name.Name)
}

func isStopName(name string) bool {
	name = strings.ToLower(name)
	for _, part := range stopNames {
		if strings.HasSuffix(name, part) || (len(part) > 3 && strings.Contains(name, part)) {
			return true
		}
	}
	return false
}

// Received is the channel of a receive expression or statement, nil for other nodes.
func Received(node ast.Node) ast.Expr {
	if unary, ok := node.(*ast.UnaryExpr); ok && unary.Op == token.ARROW {
		return unary.X
	}
	return nil
}

// Comm is the channel of a select's clause, and whether it sends; nil for default.
func Comm(clause *ast.CommClause) (channel ast.Expr, sends bool) {
	switch comm := clause.Comm.(type) {
	case *ast.SendStmt:
		return comm.Chan, true
	case *ast.ExprStmt:
		return Received(ast.Unparen(comm.X)), false
	case *ast.AssignStmt:
		return Received(ast.Unparen(comm.Rhs[0])), false
	}
	return nil, false
}

// Clauses is the clauses of a select, and whether it has a default.
func Clauses(statement *ast.SelectStmt) (clauses []*ast.CommClause, hasDefault bool) {
	for _, one := range statement.Body.List {
		clause := one.(*ast.CommClause)
		if clause.Comm == nil {
			hasDefault = true
		} else {
			clauses = append(clauses, clause)
		}
	}
	return clauses, hasDefault
}

// Variable is the variable that an expression names, nil for others.
func Variable(info *types.Info, expr ast.Expr) *types.Var {
	switch expr := ast.Unparen(expr).(type) {
	case *ast.Ident:
		found, _ := info.ObjectOf(expr).(*types.Var)
		return found
	case *ast.SelectorExpr:
		found, _ := info.ObjectOf(expr.Sel).(*types.Var)
		return found
	}
	return nil
}

// GivesBack says whether the function sends to the channel, too, perhaps when it ends: then the
// channel is a lock, or holds a value that one at a time may have.
func (f *Function) GivesBack(channel ast.Expr) bool {
	text, found := types.ExprString(channel), false
	ast.Inspect(f.Body, func(node ast.Node) bool {
		send, ok := node.(*ast.SendStmt)
		found = found || (ok && types.ExprString(send.Chan) == text)
		return !found
	})
	return found
}
