// Formats Go source.
package main

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"io"
	"log"
	"net/http"
)

func handle(w http.ResponseWriter, r *http.Request) {
	src, _ := io.ReadAll(r.Body)
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, "in.go", src, parser.ParseComments)
	if err != nil {
		http.Error(w, err.Error(), 400)
		return
	}
	count := 0
	ast.Inspect(file, func(n ast.Node) bool {
		if _, ok := n.(*ast.FuncDecl); ok {
			count++
		}
		return true
	})
	var out bytes.Buffer
	_ = format.Node(&out, set, file)
	fmt.Fprintf(w, "// %d functions\n%s", count, out.Bytes())
}

func main() {
	http.HandleFunc("/", handle)
	log.Fatal(http.ListenAndServe("127.0.0.1:8080", nil))
}
