package memlimit

import (
	"bytes"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"

	"example.com/layerkit/go-runtime/internal/note"
)

const mib = 1 << 20

// root writes a cgroup v2 tree with these limits.
func root(t testing.TB, high, most string) string {
	t.Helper()
	folder := t.TempDir()
	for name, text := range map[string]string{
		"proc/self/cgroup":          "0::/fn\n",
		"proc/self/mountinfo":       "30 24 0:26 / /cg rw - cgroup2 cgroup2 rw\n",
		"cg/fn/memory.high":         high,
		"cg/fn/memory.max":          most,
		"cg/fn/cgroup.subtree_ctrl": "",
	} {
		path := filepath.Join(folder, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return folder
}

func TestFind(t *testing.T) {
	for name, c := range map[string]struct {
		high, most string
		want       Limit
	}{
		"a share of max":            {"max", "104857600", Limit{90 * mib, "memory.max"}},
		"high, whole":               {"52428800", "104857600", Limit{50 * mib, "memory.high"}},
		"high above max is no help": {"104857600", "104857600", Limit{90 * mib, "memory.max"}},
		"high alone":                {"52428800", "max", Limit{50 * mib, "memory.high"}},
		"none":                      {"max", "max", Limit{}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Find(root(t, c.high, c.most), DefaultShare)
			if err != nil || got != c.want {
				t.Errorf("got %v, %v, want %v", got, err, c.want)
			}
		})
	}
}

func TestSetAndUndo(t *testing.T) {
	t.Setenv("GOMEMLIMIT", "")
	was := debug.SetMemoryLimit(-1)
	limit, undo := SetFrom(root(t, "max", "104857600"))
	if got := debug.SetMemoryLimit(-1); got != limit.Bytes || got != 90*mib {
		t.Errorf("limit: got %d, want %d", got, 90*mib)
	}
	undo()
	if got := debug.SetMemoryLimit(-1); got != was {
		t.Errorf("undone: got %d, want %d", got, was)
	}
}

func TestNothingIsSet(t *testing.T) {
	for name, c := range map[string]struct{ variable, high, most, source string }{
		"the environment wins": {"1GiB", "max", "104857600", "GOMEMLIMIT"},
		"too little to live":   {"", "max", "1048576", ""},
		"zero":                 {"", "0", "0", ""},
		"nonsense":             {"", "x", "-1", ""},
		"no limit":             {"", "max", "max", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("GOMEMLIMIT", c.variable)
			was := debug.SetMemoryLimit(-1)
			limit, undo := SetFrom(root(t, c.high, c.most))
			defer undo()
			if got := debug.SetMemoryLimit(-1); got != was || limit.Source != c.source {
				t.Errorf("got %d by %q, want %d by %q", got, limit.Source, was, c.source)
			}
		})
	}
}

func TestNonsenseIsSaidOnce(t *testing.T) {
	note.Forget()
	var out bytes.Buffer
	log.SetOutput(&out)
	defer log.SetOutput(os.Stderr)
	for range 2 {
		for _, text := range []string{"many", "NaN", "0", "-1", "1.5", "1e999"} {
			t.Setenv(shareVariable, text)
			if got := share(); got != DefaultShare {
				t.Errorf("%s: got %v", text, got)
			}
		}
	}
	if got := strings.Count(out.String(), shareVariable); got != 1 {
		t.Errorf("log: %s", out.String())
	}
}

func TestShareOfTheEnvironment(t *testing.T) {
	t.Setenv(shareVariable, " 0.5 ")
	if got := share(); got != 0.5 {
		t.Errorf("got %v, want 0.5", got)
	}
}

func TestReserveAndUndo(t *testing.T) {
	t.Setenv("GOMEMLIMIT", "")
	was := debug.SetMemoryLimit(100 * mib)
	defer debug.SetMemoryLimit(was)
	undoOne, undoTwo := Reserve(30*mib), Reserve(20*mib)
	if got := debug.SetMemoryLimit(-1); got != 50*mib {
		t.Errorf("both reserved: got %d, want %d", got, 50*mib)
	}
	undoOne()
	undoOne()
	if got := debug.SetMemoryLimit(-1); got != 80*mib {
		t.Errorf("one undone: got %d, want %d", got, 80*mib)
	}
	undoAll := Reserve(1 << 40)
	if got := debug.SetMemoryLimit(-1); got != Least {
		t.Errorf("more than there is: got %d, want %d", got, Least)
	}
	undoAll()
	undoTwo()
	if got := debug.SetMemoryLimit(-1); got != 100*mib {
		t.Errorf("all undone: got %d, want %d", got, 100*mib)
	}
}

func ExampleSet() {
	limit, undo := Set()
	defer undo()
	fmt.Println(limit.Bytes >= 0)
	// Output: true
}
