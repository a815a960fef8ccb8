//go:build !layerkit_debug

package hugepool

const isDebug = false

// guarded is for the debug build.
type guarded struct{}

func (*guarded) take(*area, int) ([]byte, error) { return nil, nil }

func (*guarded) free(*area, []byte) int { return 0 }
