package pgretry

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/cenkalti/backoff/v4"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/pgretry/pgretry/internal/drivertest"
)

func TestARollbackThatFailsIsToldUnlessTheConnectionIsGone(t *testing.T) {
	business, broken := errors.New("out of stock"), errors.New("cannot roll back")
	for _, rollbackErr := range []error{broken, driver.ErrBadConn} {
		f := newFixture(t)
		f.Fail(drivertest.Rollback, rollbackErr).Drops()
		err := RunInTx(t.Context(), f.db, nil, func(context.Context, *sql.Tx) error { return business })
		if !errors.Is(err, business) || errors.Is(err, broken) != errors.Is(rollbackErr, broken) || errors.Is(err, driver.ErrBadConn) {
			t.Errorf("RunInTx gives %v", err)
		}
		if rollbackErr == driver.ErrBadConn && err != business { //nolint:errorlint // the very same
			t.Errorf("RunInTx gives %v, want the very same", err)
		}
	}
}

func TestANestedCallOnAnotherSQLConnIsATransactionOfItsOwn(t *testing.T) {
	f := newFixture(t)
	c, err := f.db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	err = RunInTx(t.Context(), f.db, nil, func(ctx context.Context, outer *sql.Tx) error {
		return RunInTx(ctx, c, nil, func(_ context.Context, inner *sql.Tx) error {
			if inner == outer {
				t.Error("the nested call joins, although another session was chosen")
			}
			return nil
		})
	})
	if err := errors.Join(err, c.Close()); err != nil {
		t.Error(err)
	}
}

func TestANestedCallThatAsksForNothingInParticularJoinsAnyTransaction(t *testing.T) {
	f := newFixture(t)
	err := RunInTx(t.Context(), f.db, &sql.TxOptions{Isolation: sql.LevelSerializable}, func(ctx context.Context, _ *sql.Tx) error {
		return RunInTx(ctx, f.db, &sql.TxOptions{}, func(context.Context, *sql.Tx) error { return nil })
	})
	if err != nil {
		t.Error(err)
	}
}

func TestAWaitThatTheContextEndsIsToldAndCounted(t *testing.T) {
	o := newObservatory(t)
	var decisions []Decision
	f := newFixture(t, append(o.options(), WithOnRetry(func(_ context.Context, e Event) { decisions = append(decisions, e.Decision) }))...)
	f.Fail(drivertest.Exec, serverErr("40001"))
	ctx, cancel := context.WithCancel(t.Context())
	f.onWait = cancel
	_ = RunInTx(ctx, f.db, nil, transfer)
	if !slices.Equal(decisions, []Decision{DecisionRetried, DecisionExhausted}) {
		t.Errorf("the decisions are %v", decisions)
	}
	if s, _ := StatsOf(f.db); s.Closures != 1 || s.Exhausted != 1 {
		t.Errorf("stats are %+v", s)
	}
	if !slices.ContainsFunc(o.spans.GetSpans(), func(s tracetest.SpanStub) bool {
		return s.Name == spanTransaction && value(s, keyOutcome) == "exhausted"
	}) {
		t.Errorf("the transaction's span is not ended:\n%s", o.tree())
	}
}

func TestRetriesOfRetryCountForTheDatabaseItMet(t *testing.T) {
	f := newFixture(t)
	f.Fail(drivertest.Exec, serverErr("40001")).Times(1)
	if err := Retry(t.Context(), func(ctx context.Context) error { return inTx(ctx, f.db, transfer) }); err != nil {
		t.Fatal(err)
	}
	if s, _ := StatsOf(f.db); s.Retries != 1 || s.RetriesBySQLState["40001"] != 1 {
		t.Errorf("stats are %+v", s)
	}
	f.Fail(drivertest.Exec, driver.ErrBadConn).Drops()
	for f.connector.budget.take() {
	}
	runs := 0
	err := Retry(t.Context(), func(ctx context.Context) error { runs++; return inTx(ctx, f.db, transfer) })
	if !errors.Is(err, ErrExhausted) || runs != 1 {
		t.Errorf("Retry gives %v after %d runs: it does not draw on the database's budget", err, runs)
	}
}

func TestAContextThatEndsWhileATransactionIsWaitedForIsTheReason(t *testing.T) {
	f := newFixture(t)
	f.Fail(drivertest.Exec, serverErr("40001"))
	ctx, cancel := context.WithCancel(t.Context())
	var left *sql.Tx
	err := Retry(ctx, func(ctx context.Context) error {
		tx, err := f.db.BeginTx(context.WithoutCancel(ctx), nil)
		if err != nil {
			return err
		}
		left = tx
		_, err = tx.ExecContext(ctx, "UPDATE")
		time.AfterFunc(0, func() {
			for a := attemptFrom(ctx); ; runtime.Gosched() {
				a.mu.Lock()
				waits := a.closed != nil
				a.mu.Unlock()
				if waits {
					cancel()
					return
				}
			}
		})
		return err
	})
	if !errors.Is(err, ErrExhausted) || !errors.Is(err, context.Canceled) || errors.Is(err, ErrTxStillOpen) {
		t.Errorf("Retry gives %v", err)
	}
	if err := left.Rollback(); err != nil {
		t.Error(err)
	}
}

func TestAServerThatIsNotThereDrawsOnTheBudget(t *testing.T) {
	f := newFixture(t)
	for f.connector.budget.take() {
	}
	f.Fail(drivertest.Connect, fmt.Errorf("dial: %w", errConnRefused))
	err := RunInTx(t.Context(), f.db, nil, transfer)
	if !errors.Is(err, ErrExhausted) || len(f.waits) != 0 {
		t.Errorf("RunInTx gives %v, waited %v", err, f.waits)
	}
}

// refusing begins nothing, as when database/sql's own goroutine could not connect.
type refusing struct{ *sql.DB }

func (refusing) BeginTx(context.Context, *sql.TxOptions) (*sql.Tx, error) {
	return nil, fmt.Errorf("dial: %w", errConnRefused)
}

func TestAConnectionThatNobodySawFailIsJudgedByItsError(t *testing.T) {
	f := newFixture(t)
	err := RunInTx(t.Context(), refusing{f.db}, nil, transfer)
	var retry *RetryError
	if !errors.As(err, &retry) || retry.Class != ClassNotStarted || len(f.waits) != unavailableRetries {
		t.Errorf("RunInTx gives %v, waited %v", err, f.waits)
	}
}

func TestAConflictInBeginIsAConflict(t *testing.T) {
	f := newFixture(t)
	f.Fail(drivertest.Begin, serverErr("40001")).Times(1)
	if err := RunInTx(t.Context(), f.db, nil, transfer); err != nil || !slices.Equal(f.waits, []time.Duration{10 * time.Millisecond}) {
		t.Errorf("RunInTx gives %v, waited %v", err, f.waits)
	}
}

func TestTheConflictIsInFrontOfItsSymptom(t *testing.T) {
	for name, hide := range map[string]func(context.Context, *sql.Tx) error{
		"25P02":  func(ctx context.Context, tx *sql.Tx) error { _, err := tx.ExecContext(ctx, "UPDATE more"); return err },
		"COMMIT": func(context.Context, *sql.Tx) error { return nil },
	} {
		f := newFixture(t, WithPolicy(Policy{MaxAttempts: 1}))
		conflict := serverErr("40001")
		f.Fail(drivertest.Exec, conflict).Matching("first")
		err := RunInTx(t.Context(), f.db, nil, func(ctx context.Context, tx *sql.Tx) error {
			_, _ = tx.ExecContext(ctx, "UPDATE first")
			return hide(ctx, tx)
		})
		if !errors.Is(err, conflict) || sqlState(err) != "40001" {
			t.Errorf("%s: RunInTx gives %v with SQLSTATE %q", name, err, sqlState(err))
		}
	}
}

func TestACommitThatTheServersEndInterruptedIsUnknownForRetryToo(t *testing.T) {
	f := newFixture(t)
	f.Fail(drivertest.Commit, &drivertest.Error{Severity: "FATAL", Code: "57P01", Message: "terminating connection"}).Drops()
	err := Retry(t.Context(), func(ctx context.Context) error { return inTx(ctx, f.db, transfer) })
	var unknown *CommitUnknownError
	if !errors.As(err, &unknown) {
		t.Errorf("Retry gives %v", err)
	}
}

func TestRetryRunsAgainAfterAnythingThatTheDriverSaw(t *testing.T) {
	for name, c := range map[string]struct {
		calls drivertest.Call
		err   error
		hide  bool
		opts  []Option
	}{
		"a server that is not there":           {drivertest.Connect, fmt.Errorf("dial: %w", errConnRefused), false, nil},
		"a lost connection":                    {drivertest.Exec, driver.ErrBadConn, false, nil},
		"a lost connection, hidden":            {drivertest.Exec, driver.ErrBadConn, true, nil},
		"a lock that is not available, opt-in": {drivertest.Exec, serverErr("55P03"), false, []Option{WithAlsoRetry("55P03")}},
	} {
		f := newFixture(t, c.opts...)
		f.Fail(c.calls, c.err).Times(1)
		runs := 0
		err := Retry(t.Context(), func(ctx context.Context) error {
			runs++
			err := inTx(ctx, f.db, transfer)
			if err != nil && c.hide {
				return fmt.Errorf("could not: %v", err) //nolint:errorlint // that is the point
			}
			return err
		})
		// The options of the database are known only once it was met.
		if err != nil || runs != 2 {
			t.Errorf("%s: Retry gives %v after %d runs", name, err, runs)
		}
	}
}

// negative is a BackOff that does not know what it wants.
type negative struct{ backoff.ZeroBackOff }

func (negative) NextBackOff() time.Duration { return -5 }

func TestANegativeWaitIsNone(t *testing.T) {
	f := newFixture(t, WithBackOff(func() backoff.BackOff { return &negative{} }))
	f.Fail(drivertest.Exec, serverErr("40001")).Times(1)
	if err := RunInTx(t.Context(), f.db, nil, transfer); err != nil || !slices.Equal(f.waits, []time.Duration{0}) {
		t.Errorf("RunInTx gives %v, waited %v", err, f.waits)
	}
}

func TestAnInnerUnknownCommitIsTheLastWord(t *testing.T) {
	f, other := newFixture(t), newFixture(t)
	f.Fail(drivertest.Exec, serverErr("40001"))
	other.Fail(drivertest.Commit, driver.ErrBadConn).Drops()
	err := RunInTx(t.Context(), f.db, nil, func(ctx context.Context, tx *sql.Tx) error {
		_, _ = tx.ExecContext(ctx, "UPDATE")
		return RunInTx(ctx, other.db, nil, transfer)
	})
	var unknown *CommitUnknownError
	if !errors.As(err, &unknown) || errors.Is(err, ErrAlreadyCommitted) {
		t.Errorf("RunInTx gives %v", err)
	}
}

func TestSeeingTheDatabaseIsNotSeeingTheFailure(t *testing.T) {
	f := newFixture(t)
	f.Fail(drivertest.Exec, serverErr("40001")).Matching("UPDATE")
	err := Retry(t.Context(), func(ctx context.Context) error {
		if _, err := f.db.ExecContext(ctx, "SELECT 1"); err != nil {
			return err
		}
		_, err := f.db.ExecContext(t.Context(), "UPDATE")
		return err
	})
	if !errors.Is(err, ErrNotObserved) {
		t.Errorf("Retry gives %v", err)
	}
}

func TestARefusalIsTold(t *testing.T) {
	var events []Event
	f := newFixture(t, WithOnRetry(func(_ context.Context, e Event) { events = append(events, e) }))
	f.Fail(drivertest.Commit, serverErr("40001"))
	_ = RunInTx(t.Context(), f.db, nil, func(ctx context.Context, _ *sql.Tx) error {
		_, err := f.db.ExecContext(ctx, "INSERT")
		return err
	})
	if len(events) != 1 || events[0].Decision != DecisionRefused || events[0].Reason != RefusedAlreadyCommitted {
		t.Errorf("the events are %+v", events)
	}
}

func TestALostConnectionOfTheClosuresOwnIsNotTheDatabases(t *testing.T) {
	for _, own := range []error{io.EOF, errConnRefused, driver.ErrBadConn} {
		f := newFixture(t)
		runs := 0
		err := RunInTx(t.Context(), f.db, nil, func(context.Context, *sql.Tx) error { runs++; return own })
		if err != own || runs != 1 { //nolint:errorlint // the very same
			t.Errorf("RunInTx gives %v after %d runs, want %v", err, runs, own)
		}
	}
}

func TestATransactionBesideTheOneOfRunInTxIsNotDoneAgain(t *testing.T) {
	f := newFixture(t)
	f.Fail(drivertest.Exec, serverErr("40001")).Matching("last")
	err := RunInTx(t.Context(), f.db, nil, func(ctx context.Context, tx *sql.Tx) error {
		if err := inTx(ctx, f.db, func(context.Context, *sql.Tx) error { return nil }); err != nil {
			return err
		}
		return transfer(ctx, tx)
	})
	if !errors.Is(err, ErrAlreadyCommitted) || len(f.Log(drivertest.Begin)) != 2 {
		t.Errorf("RunInTx gives %v after %d transactions", err, len(f.Log(drivertest.Begin)))
	}
}

func TestWhatMayHaveBeenCommittedIsNotDoneAgain(t *testing.T) {
	f := newFixture(t)
	f.Fail(drivertest.Commit, driver.ErrBadConn).Drops().Times(1)
	f.Fail(drivertest.Exec, serverErr("40001")).Matching("last")
	runs := 0
	err := Retry(t.Context(), func(ctx context.Context) error {
		runs++
		_ = inTx(ctx, f.db, func(ctx context.Context, tx *sql.Tx) error { return steps(ctx, tx, "UPDATE") })
		return inTx(ctx, f.db, transfer)
	})
	if !errors.Is(err, ErrAlreadyCommitted) || runs != 1 {
		t.Errorf("Retry gives %v after %d runs", err, runs)
	}
}

func TestWhatAnInnerLoopTookBackDoesNotBindTheOuterOne(t *testing.T) {
	f := newFixture(t)
	f.Fail(drivertest.RowsNext, serverErr("40001")).Matching("INSERT").Times(1)
	f.Fail(drivertest.Exec, serverErr("40001")).Matching("last").Times(1)
	outer, inner := 0, 0
	err := Retry(t.Context(), func(ctx context.Context) error {
		outer++
		err := Retry(ctx, func(ctx context.Context) error {
			if inner++; inner > 1 {
				return nil
			}
			var id int
			return f.db.QueryRowContext(ctx, "INSERT INTO t VALUES (1) RETURNING id").Scan(&id)
		})
		if err != nil {
			return err
		}
		return inTx(ctx, f.db, transfer)
	})
	if err != nil || outer != 2 {
		t.Errorf("Retry gives %v after %d runs", err, outer)
	}
}

func TestALoneConflictThatTheClosureGotOverIsNotRetried(t *testing.T) {
	f := newFixture(t)
	f.Fail(drivertest.Exec, serverErr("40P01")).Matching("UPDATE").Times(1)
	business := errors.New("out of stock")
	runs := 0
	err := Retry(t.Context(), func(ctx context.Context) error {
		runs++
		_, _ = f.db.ExecContext(ctx, "UPDATE")
		_, _ = f.db.ExecContext(ctx, "SELECT 1")
		return business
	})
	if err != business || runs != 1 { //nolint:errorlint // the very same
		t.Errorf("Retry gives %v after %d runs", err, runs)
	}
}

func TestARollbackAndChainGoesOnInANewTransaction(t *testing.T) {
	business := errors.New("out of stock")
	for _, end := range []error{nil, business} {
		f := newFixture(t)
		f.Fail(drivertest.Exec, serverErr("40001")).Matching("first").Times(1)
		if end == nil {
			f.Fail(drivertest.Exec, serverErr("40001")).Matching("last").Times(1)
		}
		runs := 0
		err := RunInTx(t.Context(), f.db, nil, func(ctx context.Context, tx *sql.Tx) error {
			runs++
			_, _ = tx.ExecContext(ctx, "UPDATE first")
			for _, text := range []string{"ROLLBACK AND CHAIN", "INSERT", "UPDATE last"} {
				if _, err := tx.ExecContext(ctx, text); err != nil {
					return err
				}
			}
			return end
		})
		if want := 1; err != end || end == nil && runs != 2 || end != nil && runs != want { //nolint:errorlint // the very same
			t.Errorf("RunInTx gives %v after %d runs, want %v", err, runs, end)
		}
	}
}
