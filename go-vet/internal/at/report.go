package at

import (
	"go/ast"
	"go/token"
	"strings"

	"golang.org/x/tools/go/analysis"
)

// allow begins a comment that takes a finding back: `//layerkit:allow NAME reason`, on the line or
// on the one above it. Without a reason it allows nothing.
const allow = "//layerkit:allow "

// Report reports a finding, unless a comment allows it.
func Report(pass *analysis.Pass, node ast.Node, format string, args ...any) {
	if !isAllowed(pass, node.Pos()) {
		pass.Reportf(node.Pos(), format, args...)
	}
}

func isAllowed(pass *analysis.Pass, pos token.Pos) bool {
	line := pass.Fset.Position(pos).Line
	for _, file := range pass.Files {
		if pos < file.FileStart || pos > file.FileEnd {
			continue
		}
		for _, group := range file.Comments {
			for _, comment := range group.List {
				name, reason, _ := strings.Cut(strings.TrimPrefix(comment.Text, allow), " ")
				at := pass.Fset.Position(comment.Pos()).Line
				if strings.HasPrefix(comment.Text, allow) && name == pass.Analyzer.Name &&
					strings.TrimSpace(reason) != "" && (at == line || at == line-1) {
					return true
				}
			}
		}
	}
	return false
}
