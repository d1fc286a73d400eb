package pgretry

import (
	"context"

	"github.com/pgretry/pgretry/internal/bridge"
)

func init() {
	bridge.Attempt = func(ctx context.Context) int {
		if a := attemptFrom(ctx); a != nil {
			return a.number
		}
		return 0
	}
}
