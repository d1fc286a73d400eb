package certainty

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lib/pq"

	"github.com/pgretry/pgretry/internal/pgserver"
)

// commitTogether is how many transactions meet a disaster together, at most.
const commitTogether = 8

// together says how many transactions of so many shall meet a disaster together: there
// should be a round of each kind.
func together(trials int) int { return min(commitTogether, max(trials/4, 2)) }

// killedBackend kills one backend: the server ends all others and recovers by itself.
func killedBackend(ctx context.Context, r *commitRun, trials int, result *CommitResult) error {
	return r.crashes(ctx, trials, result, func(ctx context.Context, c *commitRound) error {
		if err := r.server.KillBackend(c.pids[0]); err != nil {
			return err
		}
		return commitAwait(ctx, func() (bool, error) {
			var left int
			err := r.admin.Load().QueryRowContext(ctx, `SELECT count(*) FROM pg_stat_activity WHERE pid = ANY($1) AND backend_xid IS NOT NULL`,
				pq.Array(c.pids)).Scan(&left)
			return err == nil && left == 0, err
		})
	})
}

// killedServer kills the postmaster and starts it again.
func killedServer(ctx context.Context, r *commitRun, trials int, result *CommitResult) error {
	return r.crashes(ctx, trials, result, func(ctx context.Context, _ *commitRound) error {
		if err := r.server.Kill(); err != nil {
			return err
		}
		return r.server.Restart(ctx, pgserver.Immediate)
	})
}

// crashes lets rounds of transactions meet a crash. crash returns when the server has
// recovered.
func (r *commitRun) crashes(ctx context.Context, trials int, result *CommitResult, crash func(context.Context, *commitRound) error) (err error) {
	address, err := commitAddress(r.server.DSN())
	if err != nil {
		return err
	}
	lanes, err := r.lanes(together(trials), address)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeCommitLanes(lanes)) }()
	writers, err := startCommitWriters(ctx, r.server.DSN())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, writers.close()) }()
	return r.rounds(ctx, lanes, trials, result, commitDisaster{
		// Their commits would write what the transactions did to disk as well.
		begin: func(c *commitRound) error {
			if c.quiet() {
				writers.rest()
			}
			return nil
		},
		strike: func(ctx context.Context, c *commitRound) error {
			defer writers.goOn()
			if c.shut() {
				c.refuse(true)
				defer c.refuse(false)
			}
			close(c.proceed)
			if err := commitPause(ctx, lanes[0].chance.upTo(2*time.Millisecond)); err != nil {
				return err
			}
			if err := crash(ctx, c); err != nil {
				return fmt.Errorf("crash: %w", err)
			}
			writers.goOn()
			return writers.awaitMore(ctx, 2*len(c.trials))
		},
	})
}
