package hugepool

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const misuse = `package main

import "example.com/layerkit/go-runtime/hugepool"

func main() {
	pool, err := hugepool.New(1 << 20)
	if err != nil {
		panic(err)
	}
	block, err := pool.Alloc(100)
	if err != nil {
		panic(err)
	}
	block[99] = 1
	pool.Free(block)
	println("freed")
	block[50] = 2
	println("not caught")
}
`

// TestUseAfterFreeIsCaughtInTheDebugBuild runs a program that does it, in both builds.
func TestUseAfterFreeIsCaughtInTheDebugBuild(t *testing.T) {
	if testing.Short() {
		t.Skip("builds a program twice")
	}
	folder, err := os.MkdirTemp(".", "misuse") // in this module, so that it can import it
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(folder)
	if err := os.WriteFile(filepath.Join(folder, "main.go"), []byte(misuse), 0o600); err != nil {
		t.Fatal(err)
	}
	for tags, want := range map[string]bool{"": false, "layerkit_debug": true} {
		out, err := exec.Command("go", "run", "-tags="+tags, "./"+folder).CombinedOutput()
		caught := err != nil && strings.Contains(string(out), "freed\n") &&
			strings.Contains(string(out), "fault") && !strings.Contains(string(out), "not caught")
		if caught != want {
			t.Errorf("tags %q: caught is %v, want %v: %v\n%s", tags, caught, want, err, out)
		}
	}
}
