// Command sample runs the passes over a module's packages from their sources alone, for
// bench/vet_sample.py: `go vet` compiles all that a module depends on first, which takes most of an
// hour for a large one. What other modules declare is checked without the bodies of functions, so
// the types are the same; the passes export no facts, so the findings are, too.
//
//	sample FOLDER PATTERN...
//
// prints a JSON line for each finding, with paths relative to the folder.
package main

import (
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/tools/go/analysis"
	"golang.org/x/tools/go/packages"

	"example.com/layerkit/go-vet/ctxblock"
	"example.com/layerkit/go-vet/ctxcall"
	"example.com/layerkit/go-vet/ctxdrop"
	"example.com/layerkit/go-vet/ctxgo"
	"example.com/layerkit/go-vet/lockcall"
)

const mode = packages.NeedName | packages.NeedFiles | packages.NeedCompiledGoFiles |
	packages.NeedImports | packages.NeedDeps | packages.NeedTypes | packages.NeedSyntax |
	packages.NeedTypesInfo | packages.NeedTypesSizes

type finding struct {
	Place    string `json:"place"`
	Analyzer string `json:"analyzer"`
	Message  string `json:"message"`
}

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: sample FOLDER PATTERN...")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(folder string, patterns []string) error {
	folder, err := filepath.Abs(folder)
	if err != nil {
		return err
	}
	loaded, err := packages.Load(&packages.Config{Mode: mode, Dir: folder, ParseFile: parse(folder)},
		patterns...)
	if err != nil {
		return err
	}
	out, broken := json.NewEncoder(os.Stdout), 0
	for _, one := range loaded {
		if len(one.Errors) > 0 {
			broken++
			fmt.Fprintf(os.Stderr, "%s: %v\n", one.PkgPath, one.Errors[0])
			continue
		}
		for _, found := range check(one) {
			found.Place = strings.TrimPrefix(found.Place, folder+string(filepath.Separator))
			if err := out.Encode(found); err != nil {
				return err
			}
		}
	}
	fmt.Fprintf(os.Stderr, "%d packages, %d of them left out for errors\n", len(loaded), broken)
	return nil
}

// parse parses files; those outside of the folder lose the bodies of their functions.
func parse(folder string) func(*token.FileSet, string, []byte) (*ast.File, error) {
	return func(files *token.FileSet, name string, source []byte) (*ast.File, error) {
		file, err := parser.ParseFile(files, name, source, parser.ParseComments)
		if file == nil || strings.HasPrefix(name, folder+string(filepath.Separator)) {
			return file, err
		}
		for _, one := range file.Decls {
			if declared, ok := one.(*ast.FuncDecl); ok {
				declared.Body = nil
			}
		}
		file.Comments = nil
		return file, err
	}
}

func check(one *packages.Package) []finding {
	var found []finding
	for _, analyzer := range []*analysis.Analyzer{
		ctxgo.Analyzer, ctxblock.Analyzer, ctxcall.Analyzer, ctxdrop.Analyzer, lockcall.Analyzer,
	} {
		pass := &analysis.Pass{
			Analyzer: analyzer, Fset: one.Fset, Files: one.Syntax, Pkg: one.Types,
			TypesInfo: one.TypesInfo, TypesSizes: one.TypesSizes,
			ResultOf: map[*analysis.Analyzer]any{}, ReadFile: os.ReadFile,
			Report: func(d analysis.Diagnostic) {
				at := one.Fset.Position(d.Pos)
				found = append(found, finding{
					fmt.Sprintf("%s:%d:%d", at.Filename, at.Line, at.Column), analyzer.Name, d.Message,
				})
			},
		}
		if _, err := analyzer.Run(pass); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %s: %v\n", one.PkgPath, analyzer.Name, err)
		}
	}
	return found
}
