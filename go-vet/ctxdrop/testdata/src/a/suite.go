package a

import (
	"context"
	"testing"
)

func suite(ctx context.Context, t *testing.T) { use(context.Background()) }
