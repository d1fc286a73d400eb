package pgretry

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/pgretry/pgretry/internal/drivertest"
)

// begunElsewhere is a transaction helper that gives BEGIN another context than its
// statements, as upper/db's does.
func begunElsewhere(ctx context.Context, db *sql.DB, work func(context.Context, *sql.Tx) error) error {
	return inTx(context.Background(), db, func(_ context.Context, tx *sql.Tx) error { return work(ctx, tx) })
}

// newTimedFixture has the real clock, by which a transaction is older than a closure or not.
func newTimedFixture(t *testing.T, options ...Option) *fixture {
	t.Helper()
	f := newFixture(t, options...)
	f.connector.config.now = time.Now
	f.Rows("pg_catalog.pg_foreign_table", set())
	return f
}

func TestATransactionThatBeginsUnderAnotherContextIsRunAgain(t *testing.T) {
	for name, c := range map[string]struct {
		options []Option
		fail    int // how often, until the closure has to run again
	}{
		"not replayed": {[]Option{WithMode(ModeClosure)}, 1},
		"replayed":     {[]Option{WithPolicy(Policy{MaxAttempts: 2})}, 2},
	} {
		for _, calls := range []drivertest.Call{drivertest.Exec, drivertest.RowsNext, drivertest.Commit} {
			f := newTimedFixture(t, c.options...)
			f.Fail(calls, serverErr("40001")).Times(c.fail)
			runs := 0
			err := Retry(t.Context(), func(ctx context.Context) error {
				runs++
				return begunElsewhere(ctx, f.db, transfer)
			})
			if err != nil || runs != 2 {
				t.Errorf("%s, %s: Retry gives %v after %d runs", name, calls, err, runs)
			}
			if s, err := StatsOf(f.db); err != nil || s.RetriesBySQLState["40001"] != 1 {
				t.Errorf("%s, %s: %d retries are counted, %v, want 1", name, calls, s.RetriesBySQLState["40001"], err)
			}
		}
	}
}

func TestAReplayThatHidesTheConflictSparesTheClosure(t *testing.T) {
	f := newTimedFixture(t)
	f.Fail(drivertest.Exec, serverErr("40001")).Matching("last").Times(2)
	runs := 0
	err := Retry(t.Context(), func(ctx context.Context) error {
		runs++
		return begunElsewhere(ctx, f.db, transfer)
	})
	if err != nil || runs != 1 || len(f.Log(drivertest.Begin)) != 3 {
		t.Errorf("Retry gives %v after %d runs with %d BEGINs", err, runs, len(f.Log(drivertest.Begin)))
	}
}

func TestWhatWasCommittedUnderAnotherContextIsNotDoneAgain(t *testing.T) {
	conflict := serverErr("40001")
	for name, first := range map[string]string{"a transaction": "UPDATE one", "COMMIT sent as a statement": "COMMIT"} {
		f := newTimedFixture(t, WithMode(ModeClosure))
		f.Fail(drivertest.Exec, conflict).Matching("last")
		runs := 0
		err := Retry(t.Context(), func(ctx context.Context) error {
			runs++
			_ = begunElsewhere(ctx, f.db, func(ctx context.Context, tx *sql.Tx) error {
				_, err := tx.ExecContext(ctx, first)
				return err
			})
			return inTx(ctx, f.db, transfer)
		})
		if !errors.Is(err, ErrAlreadyCommitted) || !errors.Is(err, conflict) || !strings.Contains(err.Error(), name) || runs != 1 {
			t.Errorf("%s: Retry gives %v after %d runs", name, err, runs)
		}
	}
}

func TestACommitWithoutAnswerUnderAnotherContextIsNeverRepeated(t *testing.T) {
	f := newTimedFixture(t)
	f.Fail(drivertest.Commit, driver.ErrBadConn).Drops()
	runs := 0
	err := Retry(t.Context(), func(ctx context.Context) error {
		runs++
		return begunElsewhere(ctx, f.db, transfer)
	})
	var unknown *CommitUnknownError
	if !errors.As(err, &unknown) || runs != 1 {
		t.Errorf("Retry gives %v after %d runs", err, runs)
	}
}

func TestATransactionLeftOpenUnderAnotherContextIsNotRunAgain(t *testing.T) {
	f := newTimedFixture(t, WithMode(ModeClosure))
	f.connector.config.closing = time.Millisecond
	f.Fail(drivertest.Exec, serverErr("40001"))
	var left *sql.Tx
	err := Retry(t.Context(), func(ctx context.Context) (err error) {
		if left, err = f.db.BeginTx(context.Background(), nil); err != nil {
			return err
		}
		_, err = left.ExecContext(ctx, "UPDATE")
		return err
	})
	if !errors.Is(err, ErrTxStillOpen) || len(f.Log(drivertest.Begin)) != 1 {
		t.Errorf("Retry gives %v", err)
	}
	if err := left.Rollback(); err != nil {
		t.Error(err)
	}
}

func TestATransactionOlderThanTheClosureIsNotTheClosures(t *testing.T) {
	f := newTimedFixture(t, WithMode(ModeClosure))
	f.Fail(drivertest.Exec, serverErr("40001")).Matching("last").Times(1)
	outer, inner := 0, 0
	err := Retry(t.Context(), func(ctx context.Context) error {
		outer++
		return begunElsewhere(ctx, f.db, func(ctx context.Context, tx *sql.Tx) error {
			return Retry(ctx, func(ctx context.Context) error {
				inner++
				return transfer(ctx, tx)
			})
		})
	})
	if err != nil || outer != 2 || inner != 2 {
		t.Errorf("Retry gives %v after %d runs of the outer closure and %d of the inner one, want 2 and 2", err, outer, inner)
	}

	f.Fail(drivertest.Exec, serverErr("40001")).Matching("last")
	err = inTx(t.Context(), f.db, func(ctx context.Context, tx *sql.Tx) error {
		return Retry(ctx, func(ctx context.Context) error { return transfer(ctx, tx) })
	})
	if !errors.Is(err, ErrNotObserved) {
		t.Errorf("Retry gives %v, want to hear that the transaction is not the closure's", err)
	}
}
