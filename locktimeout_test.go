package pgretry

import (
	"context"
	"database/sql"
	"errors"
	"net/url"
	"sync/atomic"
	"testing"
)

// impatient opens a database whose sessions wait for no lock longer than that. Nobody
// finds their deadlocks, as none does between servers.
func (a *arena) impatient(lockTimeout string, options ...Option) *sql.DB {
	a.Helper()
	u, err := url.Parse(a.dsn)
	if err != nil {
		a.Fatal(err)
	}
	parameters := u.Query()
	parameters.Set("lock_timeout", lockTimeout)
	parameters.Set("deadlock_timeout", "1h")
	u.RawQuery = parameters.Encode()
	db, err := Open(u.String(), append([]Option{WithContention(ContentionLimit), WithAlsoRetry("55P03")}, options...)...)
	if err != nil {
		a.Fatal(err)
	}
	a.Cleanup(func() {
		if err := db.Close(); err != nil {
			a.Error(err)
		}
	})
	return db
}

func TestAWaitThatEndsByTheApplicationsOwnTimeoutIsTreatedLikeADeadlock(t *testing.T) {
	take := func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `UPDATE account SET balance = balance - 1 WHERE id = 1`)
		return err
	}
	for name, run := range map[string]func(ctx context.Context, db *sql.DB) error{
		"replay":  func(ctx context.Context, db *sql.DB) error { return inTx(ctx, db, take) },
		"closure": func(ctx context.Context, db *sql.DB) error { return RunInTx(ctx, db, nil, take) },
		"closure that wraps the error": func(ctx context.Context, db *sql.DB) error {
			return RunInTx(ctx, db, nil, func(ctx context.Context, tx *sql.Tx) error {
				if err := take(ctx, tx); err != nil {
					return errors.Join(errors.New("take one"), err)
				}
				return nil
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := enter(t, nil, bank)
			a.rivalDoes(`BEGIN`, `UPDATE account SET balance = balance + 10 WHERE id = 1`)
			var retries atomic.Int64
			db := a.impatient("20ms", WithOnRetry(func(context.Context, Event) {
				if retries.Add(1) == 2*optInRetries {
					a.rivalDoes(`COMMIT`)
				}
			}))
			if err := run(t.Context(), db); err != nil {
				t.Errorf("the transaction fails: %v", err)
			}
			a.is("109", `SELECT balance FROM account WHERE id = 1`)
			s, err := StatsOf(db)
			if err != nil || len(s.Kinds) != 1 || s.Kinds[0].Deadlocks < 2*optInRetries || s.RetriesBySQLState["55P03"]+s.Replays != retries.Load() {
				t.Errorf("the statistics are %+v, %v, after %d retries", s, err, retries.Load())
			}
		})
	}
}

func TestALockThatIsNotWaitedForIsTriedAgainSeldom(t *testing.T) {
	a := enter(t, nil, bank)
	a.rivalDoes(`BEGIN`, `UPDATE account SET balance = balance + 10 WHERE id = 1`)
	db := a.impatient("20ms")
	runs := 0
	err := RunInTx(t.Context(), db, nil, func(ctx context.Context, tx *sql.Tx) error {
		runs++
		_, err := tx.ExecContext(ctx, `SELECT FROM account WHERE id = 1 FOR UPDATE NOWAIT`)
		return err
	})
	if sqlState(err) != "55P03" || runs != 1+optInRetries {
		t.Errorf("RunInTx gives %v after %d runs", err, runs)
	}
	a.rivalDoes(`ROLLBACK`)
	if s, err := StatsOf(db); err != nil || len(s.Kinds) != 0 {
		t.Errorf("the statistics are %+v, %v", s, err)
	}
}

func TestAWaitThatEndsIsTheApplicationsAffairUnlessItWantsARetry(t *testing.T) {
	a := enter(t, nil, bank)
	a.rivalDoes(`BEGIN`, `UPDATE account SET balance = balance + 10 WHERE id = 1`)
	db := a.impatient("20ms", WithAlsoRetry())
	runs := 0
	err := RunInTx(t.Context(), db, nil, func(ctx context.Context, tx *sql.Tx) error {
		runs++
		_, err := tx.ExecContext(ctx, `UPDATE account SET balance = balance - 1 WHERE id = 1`)
		return err
	})
	if sqlState(err) != "55P03" || runs != 1 {
		t.Errorf("RunInTx gives %v after %d runs", err, runs)
	}
	a.rivalDoes(`ROLLBACK`)
}

// When a transaction gives up waiting, others go on that waited for it, and commit later.
// What they change must not be overwritten on the strength of what was read before, as the
// deadlock would have prevented.
func TestWhatARivalChangesAfterAWaitThatEndedIsNotOverwritten(t *testing.T) {
	a := enter(t, nil, ledger)
	a.balancing(a.impatient("300ms"))
}

// The rival has written nothing yet when the wait ends, so that it has no number.
func TestWhatARivalBeginsToChangeAfterAWaitThatEndedIsNotOverwritten(t *testing.T) {
	a := enter(t, nil, ledger, `CREATE TABLE second_gate (n int)`)
	const lockSecond = `LOCK TABLE second_gate IN EXCLUSIVE MODE`
	third := a.beginOn(a.plain, sql.LevelReadCommitted)
	third.does(lockSecond)

	tx := a.beginOn(a.impatient("300ms"), sql.LevelReadCommitted)
	if got := tx.sees(`SELECT balance FROM account WHERE id = 3`); got != "100" {
		t.Fatal(got)
	}
	tx.does(lockGate)
	over := a.meets(opponent{wants: lockGate, then: []string{lockSecond, `UPDATE account SET balance = balance - 50 WHERE id = 3`}})
	released := make(chan struct{})
	go func() {
		defer close(released)
		a.until(`SELECT EXISTS (SELECT FROM pg_stat_activity WHERE $1 = ANY (pg_blocking_pids(pid)))`, a.pid)
		if err := third.Commit(); err != nil {
			t.Error(err)
		}
	}()
	_, err := tx.Exec(lockSecond)
	if err == nil {
		_, err = tx.Exec(`UPDATE account SET balance = $1 WHERE id = 3`, 100+10)
	}
	tx.ends(err, func() { over(); <-released })
}
