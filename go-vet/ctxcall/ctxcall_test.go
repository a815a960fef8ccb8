package ctxcall_test

import (
	"testing"

	"golang.org/x/tools/go/analysis/analysistest"

	"example.com/layerkit/go-vet/ctxcall"
)

func TestFindings(t *testing.T) {
	analysistest.Run(t, analysistest.TestData(), ctxcall.Analyzer, "a")
}
