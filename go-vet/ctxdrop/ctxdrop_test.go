package ctxdrop_test

import (
	"testing"

	"golang.org/x/tools/go/analysis/analysistest"

	"example.com/layerkit/go-vet/ctxdrop"
)

func TestFindings(t *testing.T) {
	analysistest.Run(t, analysistest.TestData(), ctxdrop.Analyzer, "a")
}
