package at

import (
	"go/ast"
	"go/constant"
	"go/types"

	"golang.org/x/tools/go/analysis"
)

// Channels is what a package's own code says of the channels that it makes.
type Channels struct {
	buffered, unbuffered map[*types.Var]bool
}

// FindChannels looks at each make(chan T) that is given to a variable or a field.
func FindChannels(pass *analysis.Pass) Channels {
	c := Channels{map[*types.Var]bool{}, map[*types.Var]bool{}}
	note := func(to, value ast.Expr) {
		call, ok := ast.Unparen(value).(*ast.CallExpr)
		if !ok || len(call.Args) == 0 {
			return
		}
		if id, ok := call.Fun.(*ast.Ident); !ok || id.Name != "make" {
			return
		}
		variable := Variable(pass.TypesInfo, to)
		kind := pass.TypesInfo.TypeOf(call.Args[0])
		if variable == nil || kind == nil {
			return
		}
		if _, ok := kind.Underlying().(*types.Chan); !ok {
			return
		}
		if len(call.Args) == 1 || isZero(pass, call.Args[1]) {
			c.unbuffered[variable] = true
		} else {
			c.buffered[variable] = true
		}
	}
	for _, file := range pass.Files {
		ast.Inspect(file, func(node ast.Node) bool {
			switch node := node.(type) {
			case *ast.AssignStmt:
				for at := range min(len(node.Lhs), len(node.Rhs)) {
					note(node.Lhs[at], node.Rhs[at])
				}
			case *ast.ValueSpec:
				for at := range min(len(node.Names), len(node.Values)) {
					note(node.Names[at], node.Values[at])
				}
			case *ast.KeyValueExpr:
				if key, ok := node.Key.(*ast.Ident); ok {
					note(key, node.Value)
				}
			}
			return true
		})
	}
	return c
}

func isZero(pass *analysis.Pass, expr ast.Expr) bool {
	value := pass.TypesInfo.Types[expr].Value
	return value != nil && constant.Sign(value) == 0
}

// IsUnbuffered says whether all that is known of a channel is that it has no buffer.
func (c Channels) IsUnbuffered(info *types.Info, channel ast.Expr) bool {
	variable := Variable(info, channel)
	return variable != nil && c.unbuffered[variable] && !c.buffered[variable]
}

// IsBuffered says whether all that is known of a channel is that it has a buffer: then its owner
// knows what is in it, and a receive or send may well not wait.
func (c Channels) IsBuffered(info *types.Info, channel ast.Expr) bool {
	variable := Variable(info, channel)
	return variable != nil && c.buffered[variable] && !c.unbuffered[variable]
}

// Element is the type of what a channel carries, nil for what is no channel.
func Element(info *types.Info, channel ast.Expr) types.Type {
	kind := info.TypeOf(channel)
	if kind == nil {
		return nil
	}
	if found, ok := kind.Underlying().(*types.Chan); ok {
		return found.Elem()
	}
	return nil
}

// IsTimer says whether a channel carries times, so is of a timer or ticker, or made for a clock.
func IsTimer(info *types.Info, channel ast.Expr) bool {
	kind := Element(info, channel)
	return kind != nil && IsNamed(kind, "time", "Time")
}
