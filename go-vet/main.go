// Command go-vet holds the passes of `layerkit vet`, as a tool of go vet:
//
//	go vet -vettool=go-vet ./...
package main

import (
	"golang.org/x/tools/go/analysis/unitchecker"

	"example.com/layerkit/go-vet/ctxblock"
	"example.com/layerkit/go-vet/ctxcall"
	"example.com/layerkit/go-vet/ctxdrop"
	"example.com/layerkit/go-vet/ctxgo"
	"example.com/layerkit/go-vet/lockcall"
)

func main() {
	unitchecker.Main(
		ctxgo.Analyzer, ctxblock.Analyzer, ctxcall.Analyzer, ctxdrop.Analyzer, lockcall.Analyzer,
	)
}
