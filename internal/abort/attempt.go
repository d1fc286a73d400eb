package abort

import (
	"context"

	"github.com/pgretry/pgretry/internal/bridge"
)

// attemptOf returns which attempt of a closure runs under ctx, or 0 if that is not
// known: there is none, or no driver that has them.
func attemptOf(ctx context.Context) int {
	if bridge.Attempt == nil {
		return 0
	}
	return bridge.Attempt(ctx)
}
