package ctxblock_test

import (
	"testing"

	"golang.org/x/tools/go/analysis/analysistest"

	"example.com/layerkit/go-vet/ctxblock"
)

func TestFindings(t *testing.T) {
	analysistest.Run(t, analysistest.TestData(), ctxblock.Analyzer, "a")
}
