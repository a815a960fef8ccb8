//go:build !linux

package hugepool

// area lies on Go's heap where there are no huge pages to ask for: for a developer's laptop.
type area struct {
	memory  []byte
	backing Backing
}

func mapArea(size int) (area, error) {
	return area{memory: make([]byte, size), backing: Ordinary}, nil
}

func (a *area) unmap() error { return nil }
