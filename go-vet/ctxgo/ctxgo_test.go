package ctxgo_test

import (
	"testing"

	"golang.org/x/tools/go/analysis/analysistest"

	"example.com/layerkit/go-vet/ctxgo"
)

func TestFindings(t *testing.T) {
	analysistest.Run(t, analysistest.TestData(), ctxgo.Analyzer, "a")
}
