package certainty

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/pgretry/pgretry/internal/faultproxy"
	"github.com/pgretry/pgretry/internal/pgserver"
)

// synchronous makes commits wait for a standby of that name, for none if it is "".
func (r *commitRun) synchronous(ctx context.Context, standby, level string) error {
	for _, text := range []string{
		fmt.Sprintf(`ALTER SYSTEM SET synchronous_commit = '%s'`, level),
		fmt.Sprintf(`ALTER SYSTEM SET synchronous_standby_names = '%s'`, standby),
		`SELECT pg_reload_conf()`,
	} {
		if err := r.do(ctx, text); err != nil {
			return err
		}
	}
	if standby == "" {
		return nil
	}
	// Settings come into force when every process has got around to it: until a commit
	// is seen to wait, the next may not.
	return commitAwait(ctx, func() (bool, error) {
		probe, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		defer cancel()
		// Whether a wait that is cancelled is an error is the driver's affair.
		_, err := r.admin.Load().ExecContext(probe, `BEGIN; SET LOCAL synchronous_commit = '`+level+`'; INSERT INTO companion VALUES ('probe'); COMMIT`)
		return probe.Err() != nil && ctx.Err() == nil, err
	})
}

// waiting waits until the transactions that have these names all wait for a standby.
func (r *commitRun) waiting(ctx context.Context, names ...string) error {
	for _, name := range names {
		err := commitAwait(ctx, func() (bool, error) {
			var n int
			err := r.ask(ctx, `SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND wait_event = 'SyncRep'`, []any{name}, &n)
			return err == nil && n > 0, err
		})
		if err != nil {
			return fmt.Errorf("wait until %s waits for a standby: %w", name, err)
		}
	}
	return nil
}

// inSyncRep does something when COMMIT waits for the standby.
func inSyncRep(do func(*commitTrial)) func(*commitTrial, faultproxy.Message) faultproxy.Action {
	return func(t *commitTrial, _ faultproxy.Message) faultproxy.Action {
		t.bystanders.Go(func() {
			if err := t.lane.run.waiting(context.Background(), t.id); err != nil {
				t.fail(err)
			}
			t.strike()
			do(t)
		})
		return faultproxy.Action{}
	}
}

func cutWire(t *commitTrial) { t.lane.proxy.CutAll(t.reset()) }

func giveUp(t *commitTrial) { t.abandon() }

// terminate is what an administrator does who sees a session that hangs.
func terminate(t *commitTrial) {
	if err := t.lane.run.do(context.Background(), terminateText, t.id); err != nil {
		t.fail(err)
	}
}

const terminateText = `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1`

// absentStandby: COMMIT waits for a standby that never comes. What is not replicated
// must not be reported committed, nor ended, which would make it visible.
func absentStandby(do func(*commitTrial)) func(context.Context, *commitRun, int, *CommitResult) error {
	return func(ctx context.Context, r *commitRun, trials int, result *CommitResult) error {
		return r.withoutStandby(ctx, do, trials, result)
	}
}

func (r *commitRun) withoutStandby(ctx context.Context, do func(*commitTrial), trials int, result *CommitResult) (err error) {
	if err := r.synchronous(ctx, "absent", "on"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.synchronous(ctx, "", "on")) }()
	address, err := commitAddress(r.server.DSN())
	if err != nil {
		return err
	}
	lanes, err := r.lanes(min(trials, 2*commitTogether), address)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeCommitLanes(lanes)) }()
	return r.each(ctx, lanes, trials, result, func(l *commitLane) *commitTrial {
		t := l.newTrial(markerWork, commitFault{request: inSyncRep(do)})
		t.strikes, t.nag = 1, false
		t.told = func(ctx context.Context, _ commitClaim) (bool, error) {
			// It would wait for ever.
			return true, r.do(ctx, terminateText, t.id)
		}
		return t
	})
}

// pausingStandby: COMMIT waits for a standby that goes on some time later.
func pausingStandby(ctx context.Context, r *commitRun, trials int, result *CommitResult) (err error) {
	standby, err := r.server.NewStandby(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, standby.Stop()) }()
	replica, err := sql.Open("postgres", standby.DSN())
	if err != nil {
		return fmt.Errorf("open the standby: %w", err)
	}
	defer func() { err = errors.Join(err, replica.Close()) }()
	address, err := commitAddress(r.server.DSN())
	if err != nil {
		return err
	}
	lanes, err := r.lanes(together(trials), address)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeCommitLanes(lanes)) }()

	if err := pauseStandby(ctx, replica); err != nil {
		return err
	}
	if err := r.synchronous(ctx, "standby", "remote_apply"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.synchronous(ctx, "", "on")) }()
	for trials > 0 {
		some := lanes[:min(trials, len(lanes))]
		trials -= len(some)
		if err := pauseStandby(ctx, replica); err != nil {
			return err
		}
		if err := r.whilePaused(ctx, some, replica, result); err != nil {
			return err
		}
	}
	return nil
}

// pauseStandby keeps a standby, of PostgreSQL 14 or later, from applying anything.
func pauseStandby(ctx context.Context, replica *sql.DB) error {
	if _, err := replica.ExecContext(ctx, `SELECT pg_wal_replay_pause()`); err != nil {
		return fmt.Errorf("pause the standby: %w", err)
	}
	err := commitAwait(ctx, func() (paused bool, err error) {
		err = replica.QueryRowContext(ctx, `SELECT pg_get_wal_replay_pause_state() = 'paused'`).Scan(&paused)
		return paused, err
	})
	if err != nil {
		return fmt.Errorf("wait until the standby pauses: %w", err)
	}
	return nil
}

// whilePaused runs a transaction on each lane and lets the standby go on when all wait.
func (r *commitRun) whilePaused(ctx context.Context, lanes []*commitLane, replica *sql.DB, result *CommitResult) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	arrived := make(chan struct{}, len(lanes))
	resumed := make(chan error, 1)
	go func() {
		for range lanes {
			select {
			case <-arrived:
			case <-ctx.Done():
			}
		}
		err := commitPause(ctx, lanes[0].chance.upTo(400*time.Millisecond))
		if err == nil {
			_, err = replica.ExecContext(ctx, `SELECT pg_wal_replay_resume()`)
		}
		resumed <- err
	}()
	err := r.each(ctx, lanes, len(lanes), result, func(l *commitLane) *commitTrial {
		t := l.newTrial(markerWork, commitFault{request: inSyncRep(func(t *commitTrial) {
			cutWire(t)
			arrived <- struct{}{}
		})})
		t.strikes, t.nag = 1, false
		t.told = func(ctx context.Context, claim commitClaim) (bool, error) {
			if claim != commitAffirmed {
				return false, nil
			}
			var n int
			err := replica.QueryRowContext(ctx, `SELECT count(*) FROM marker WHERE id = $1`, t.id).Scan(&n)
			return n == 0, err
		}
		return t
	})
	if err != nil {
		cancel() // not all will come to wait
	}
	return errors.Join(err, <-resumed)
}

// failover ends the primary and promotes its standby, which takes over its address.
func failover(synchronous bool) func(context.Context, *commitRun, int, *CommitResult) error {
	return func(ctx context.Context, r *commitRun, trials int, result *CommitResult) (err error) {
		address, err := commitAddress(r.server.DSN())
		if err != nil {
			return err
		}
		relay, err := startCommitRelay(address)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, relay.close()) }()
		lanes, err := r.lanes(together(trials), relay.address())
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, closeCommitLanes(lanes)) }()
		writers, err := startCommitWriters(ctx, r.server.DSN())
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, writers.close()) }()

		f := &commitFailover{run: r, relay: relay, writers: writers, synchronous: synchronous}
		defer func() { err = errors.Join(err, f.close()) }()
		return r.rounds(ctx, lanes, trials, result, commitDisaster{
			begin:  func(c *commitRound) error { return f.begin(ctx, c) },
			strike: f.strike,
		})
	}
}

// commitFailover leads from one primary to the next.
type commitFailover struct {
	run         *commitRun
	relay       *commitRelay
	writers     *commitWriters
	synchronous bool
	standby     *pgserver.Server // nil between rounds
}

func (f *commitFailover) close() error {
	if f.standby == nil {
		return nil
	}
	return f.standby.Stop()
}

// begin makes a standby.
func (f *commitFailover) begin(ctx context.Context, c *commitRound) (err error) {
	r := f.run
	if f.standby, err = r.server.NewStandby(ctx); err != nil {
		return err
	}
	if f.synchronous {
		if err := r.do(ctx, `ALTER SYSTEM SET synchronous_standby_names = 'standby'`); err != nil {
			return err
		}
		if err := r.do(ctx, `SELECT pg_reload_conf()`); err != nil {
			return err
		}
		err := commitAwait(ctx, func() (bool, error) {
			var n int
			err := r.ask(ctx, `SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'`, nil, &n)
			return n > 0, err
		})
		if err != nil {
			return fmt.Errorf("wait until the standby is synchronous: %w", err)
		}
	}
	if c.quiet() {
		f.writers.rest()
	}
	return nil
}

// reachable is how long the standby may take to confirm what it confirms.
const reachable = time.Second

func (f *commitFailover) strike(ctx context.Context, c *commitRound) error {
	defer f.writers.goOn()
	r := f.run
	f.relay.turnTo("")
	if !f.synchronous && c.shut() {
		// It connects again in a moment, and has missed the commits until then.
		if err := r.do(ctx, `SELECT pg_terminate_backend(pid) FROM pg_stat_replication`); err != nil {
			return err
		}
	}
	close(c.proceed)
	if err := c.someAnswered(ctx); err != nil {
		return err
	}
	former := r.server
	if err := former.Kill(); err != nil {
		return err
	}
	if err := f.standby.Promote(ctx); err != nil {
		return err
	}
	if err := r.serves(f.standby); err != nil {
		return err
	}
	f.standby = nil
	address, err := commitAddress(r.server.DSN())
	if err != nil {
		return err
	}
	if err := f.writers.turnTo(r.server.DSN()); err != nil {
		return err
	}
	f.writers.goOn()
	if err := f.writers.awaitMore(ctx, 2*len(c.trials)); err != nil {
		return err
	}
	f.relay.turnTo(address)
	return former.Stop()
}

// someAnswered waits until the server has answered those COMMITs that reach it, or, as
// the standby may not confirm them, for a moment.
func (c *commitRound) someAnswered(ctx context.Context) error {
	limit := time.NewTimer(reachable)
	defer limit.Stop()
	for _, t := range c.trials {
		if !c.reaches(t) {
			continue
		}
		select {
		case <-c.answered:
		case <-limit.C:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}
