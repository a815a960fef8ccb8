//go:build !layerkit_debug

package hugepool

import (
	"os"
	"path/filepath"
	"testing"
)

func TestTheBackingIsToldByTheKernel(t *testing.T) {
	was := enabledFile
	defer func() { enabledFile = was }()
	for text, want := range map[string]Backing{
		"always [madvise] never\n": Transparent, "always madvise [never]\n": Ordinary,
	} {
		enabledFile = filepath.Join(t.TempDir(), "enabled")
		if err := os.WriteFile(enabledFile, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := newPool(t, PageSize).Stats().Backing; got != want && got != HugeTLB {
			t.Errorf("%s: got %v, want %v", text, got, want)
		}
	}
	enabledFile = "/nowhere"
	if got := newPool(t, PageSize).Stats().Backing; got != Ordinary && got != HugeTLB {
		t.Errorf("unreadable: got %v", got)
	}
}
