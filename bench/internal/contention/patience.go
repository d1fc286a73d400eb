package contention

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pgretry/pgretry/bench/internal/load"
	"github.com/pgretry/pgretry/bench/internal/peer"
	"github.com/pgretry/pgretry/bench/internal/result"
	"github.com/pgretry/pgretry/bench/internal/target"
	"github.com/pgretry/pgretry/internal/workload"
)

// MeasurePatience runs the plan's workload as it is, without think time, for storm, and then, in the
// same *sql.DB, transactions that take their locks in order and hold them for the think time. None
// of those deadlocks; each waits for others, and one that is aborted is aborted falsely.
func MeasurePatience(ctx context.Context, server *target.Server, p Plan, system peer.System, storm time.Duration) (seen result.Patience, err error) {
	seen = result.Patience{Conditions: p.Conditions, System: system.ID}
	defer func() {
		if err != nil {
			err = fmt.Errorf("patience of %s, %s: %w", system.ID, p.Conditions, err)
		}
	}()
	patient, err := named(p.Seed, p.Workload, workload.Ordered(), workload.Pausing(load.Think(p.Think)))
	if err != nil {
		return seen, err
	}
	stormy := p
	stormy.Think = 0
	c, err := enter(ctx, server, stormy, system)
	if err != nil {
		return seen, err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	stormy.Warmup, stormy.Window, stormy.OurPatience = 0, storm, 0
	if err := c.turn(ctx, stormy.load(system)); err != nil {
		return seen, err
	}
	c.Workload = patient
	if err := c.turn(ctx, p.load(system)); err != nil {
		return seen, err
	}
	seen.Storm, seen.Run, seen.Violation = c.seen.Rounds[0], c.seen.Rounds[1], c.seen.Violation
	return seen, nil
}
