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

// explaining is words of a comment that says why another context is taken.
var explaining = []string{"context", "ctx", "cancel", "background", "detach", "deadline", "timeout"}

// IsExplained says whether a comment above the line speaks of the context, and not as of something
// to be done: who wrote it down has thought of it.
func IsExplained(pass *analysis.Pass, node ast.Node) bool {
	here := pass.Fset.Position(node.Pos())
	for _, file := range pass.Files {
		if node.Pos() < file.FileStart || node.Pos() > file.FileEnd {
			continue
		}
		for _, group := range file.Comments {
			isAbove := pass.Fset.Position(group.End()).Line == here.Line-1 &&
				pass.Fset.Position(group.Pos()).Column <= here.Column // not behind the code of that line
			text := group.Text()
			if isAbove && !hasAny(text, "TODO", "FIXME", "XXX", "?") &&
				hasAny(strings.ToLower(text), explaining...) {
				return true
			}
		}
	}
	return false
}

func hasAny(text string, words ...string) bool {
	for _, word := range words {
		if strings.Contains(text, word) {
			return true
		}
	}
	return false
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
