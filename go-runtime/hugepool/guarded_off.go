//go:build !layerkit_debug

package hugepool

const isDebug = false

type guarded struct{}

func (a *area) takeGuarded(int) ([]byte, error) { return nil, nil }

func (a *area) freeGuarded([]byte) int { return 0 }
