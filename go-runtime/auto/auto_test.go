package auto

import (
	"runtime/debug"
	"testing"
)

func TestOffChangesNothing(t *testing.T) {
	t.Setenv("LAYERKIT_RUNTIME", "off")
	was := debug.SetMemoryLimit(-1)
	start()()
	if got := debug.SetMemoryLimit(-1); got != was {
		t.Errorf("got %d, want %d", got, was)
	}
}

func TestUndoPutsBack(t *testing.T) {
	Undo()
	t.Setenv("LAYERKIT_RUNTIME", "loud") // nonsense is as if it were not there
	t.Setenv("GOGC", "")
	old := debug.SetGCPercent(66)
	defer debug.SetGCPercent(old)
	start()()
	if got := debug.SetGCPercent(66); got != 66 {
		t.Errorf("GOGC: got %d, want 66", got)
	}
}
