package lockcall_test

import (
	"testing"

	"golang.org/x/tools/go/analysis/analysistest"

	"example.com/layerkit/go-vet/lockcall"
)

func TestFindings(t *testing.T) {
	analysistest.Run(t, analysistest.TestData(), lockcall.Analyzer, "a")
}
