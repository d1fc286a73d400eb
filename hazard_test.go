package pgretry

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"github.com/pgretry/pgretry/internal/drivertest"
)

func TestATransactionThatTheClosureCommittedItselfIsNotRunAgain(t *testing.T) {
	f := newFixture(t)
	f.Fail(drivertest.Exec, serverErr("40001")).Matching("second").Times(1)
	runs := 0
	err := RunInTx(t.Context(), f.db, nil, func(ctx context.Context, tx *sql.Tx) error {
		runs++
		if _, err := tx.ExecContext(ctx, "INSERT first"); err != nil {
			return err
		}
		if err := tx.Commit(); err != nil {
			return err
		}
		return inTx(ctx, f.db, func(ctx context.Context, tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, "INSERT second")
			return err
		})
	})
	if !errors.Is(err, ErrAlreadyCommitted) || runs != 1 {
		t.Errorf("RunInTx gives %v after %d runs", err, runs)
	}
}

func TestACommitOfTheClosureItselfWithoutAnswerIsNotRunAgain(t *testing.T) {
	f := newFixture(t)
	f.Fail(drivertest.Commit, driver.ErrBadConn).Drops().Times(1)
	f.Fail(drivertest.Exec, serverErr("40001")).Matching("second").Times(1)
	runs := 0
	err := RunInTx(t.Context(), f.db, nil, func(ctx context.Context, tx *sql.Tx) error {
		runs++
		if _, err := tx.ExecContext(ctx, "INSERT first"); err != nil {
			return err
		}
		_ = tx.Commit()
		return inTx(ctx, f.db, func(ctx context.Context, tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, "INSERT second")
			return err
		})
	})
	if err == nil || runs != 1 {
		t.Errorf("RunInTx gives %v after %d runs", err, runs)
	}
}

func TestARawCommitWithoutAnswerIsNotRunAgain(t *testing.T) {
	for name, lost := range map[string]error{"lost": driver.ErrBadConn, "cancelled": context.Canceled} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.Fail(drivertest.Exec, lost).Matching("COMMIT").Times(1).Drops()
			runs := 0
			err := RunInTx(t.Context(), f.db, nil, func(ctx context.Context, tx *sql.Tx) error {
				runs++
				if _, err := tx.ExecContext(ctx, "INSERT"); err != nil {
					return err
				}
				if _, err := tx.ExecContext(ctx, "COMMIT"); err != nil {
					return err
				}
				return nil
			})
			var unknown *CommitUnknownError
			if runs != 1 || !errors.As(err, &unknown) && !errors.Is(err, ErrAlreadyCommitted) {
				t.Errorf("RunInTx gives %v after %d runs", err, runs)
			}
			if s, _ := StatsOf(f.db); s.UnknownCommits != 1 {
				t.Errorf("stats are %+v, want one unknown COMMIT", s)
			}
		})
	}
}

func TestATextThatFailsAfterItsOwnCommitIsNotRunAgain(t *testing.T) {
	db := openReal(t, nil, accounts, "CREATE SEQUENCE calls")
	runs := 0
	err := RunInTx(t.Context(), db, nil, func(ctx context.Context, tx *sql.Tx) error {
		runs++
		if runs > 1 {
			return errors.New("ran again")
		}
		_, err := tx.ExecContext(ctx, `UPDATE account SET balance = balance - 7 WHERE id = 1; COMMIT; DO $$ BEGIN RAISE SQLSTATE '40001'; END $$`)
		return err
	})
	var balance int
	if err := db.QueryRow("SELECT balance FROM account WHERE id = 1").Scan(&balance); err != nil {
		t.Fatal(err)
	}
	if runs != 1 || !errors.Is(err, ErrAlreadyCommitted) {
		t.Errorf("RunInTx gives %v after %d runs, the balance is %d", err, runs, balance)
	}
}

func TestATextThatFailsAfterTheCommitOfARawBlockIsNotRunAgain(t *testing.T) {
	f := newFixture(t)
	f.Fail(drivertest.Exec, serverErr("40001")).Matching("COMMIT; UPDATE").Times(1)
	runs := 0
	err := Retry(t.Context(), func(ctx context.Context) error {
		runs++
		c, err := f.db.Conn(ctx)
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		for _, text := range []string{"BEGIN", "INSERT", "COMMIT; UPDATE"} {
			if _, err := c.ExecContext(ctx, text); err != nil {
				_, _ = c.ExecContext(ctx, "ROLLBACK")
				return err
			}
		}
		return nil
	})
	if runs != 1 || !errors.Is(err, ErrAlreadyCommitted) {
		t.Errorf("Retry gives %v after %d runs", err, runs)
	}
}

func TestACommitAfterAFormFeedIsSeen(t *testing.T) {
	db := openReal(t, nil, accounts)
	for _, space := range []string{"\f"} {
		runs := 0
		err := RunInTx(t.Context(), db, nil, func(ctx context.Context, tx *sql.Tx) error {
			runs++
			if _, err := tx.ExecContext(ctx, "UPDATE account SET balance = balance - 7 WHERE id = 1"); err != nil {
				return err
			}
			if _, err := tx.ExecContext(ctx, space+"COMMIT"); err != nil {
				return err
			}
			if runs > 1 {
				return errors.New("ran again")
			}
			return serverErr("40001")
		})
		var balance int
		if err := db.QueryRow("SELECT balance FROM account WHERE id = 1").Scan(&balance); err != nil {
			t.Fatal(err)
		}
		if runs != 1 || !errors.Is(err, ErrAlreadyCommitted) {
			t.Errorf("%q: RunInTx gives %v after %d runs, the balance is %d", space, err, runs, balance)
		}
	}
}

func TestATransactionThatCommitsWhileItIsWaitedForForbidsAnotherRun(t *testing.T) {
	f := newFixture(t)
	f.Fail(drivertest.Exec, serverErr("40001")).Matching("UPDATE").Times(1)
	var over atomic.Bool
	t.Cleanup(func() { over.Store(true) })
	runs := 0
	err := Retry(t.Context(), func(ctx context.Context) error {
		runs++
		side, err := f.db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		if _, err := side.ExecContext(ctx, "INSERT"); err != nil {
			return err
		}
		a := attemptFrom(ctx)
		go func() { // goes on after the closure has returned
			for {
				a.mu.Lock()
				waitedFor := a.closed != nil
				a.mu.Unlock()
				if waitedFor || over.Load() {
					break
				}
				runtime.Gosched()
			}
			_ = side.Commit()
		}()
		return inTx(ctx, f.db, func(ctx context.Context, tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, "UPDATE")
			return err
		})
	})
	if runs != 1 || !errors.Is(err, ErrAlreadyCommitted) {
		t.Errorf("Retry gives %v after %d runs and %d commits", err, runs, len(f.Log(drivertest.Commit)))
	}
}

func TestALoneWriteUnderWayForbidsAnotherRun(t *testing.T) {
	f := newFixture(t)
	f.connector.config.closing = 100 * time.Millisecond
	insert := f.On(drivertest.Exec).Matching("INSERT").Block()
	f.Fail(drivertest.Exec, serverErr("40001")).Matching("UPDATE").Times(1)
	runs := 0
	done := make(chan error, 2)
	err := Retry(t.Context(), func(ctx context.Context) error {
		runs++
		go func() {
			_, err := f.db.ExecContext(ctx, "INSERT")
			done <- err
		}()
		<-insert.Blocked()
		return inTx(ctx, f.db, func(ctx context.Context, tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, "UPDATE")
			return err
		})
	})
	insert.Release()
	for range runs {
		<-done //nolint:errcheck // of no interest here
	}
	if runs != 1 || err == nil {
		t.Errorf("Retry gives %v after %d runs and %d INSERTs", err, runs, runs)
	}
}

func TestANestedPanicThatIsRecoveredRollsTheWholeBack(t *testing.T) {
	f := newFixture(t)
	err := RunInTx(t.Context(), f.db, nil, func(ctx context.Context, _ *sql.Tx) error {
		func() {
			defer func() { _ = recover() }()
			_ = RunInTx(ctx, f.db, nil, func(ctx context.Context, tx *sql.Tx) error {
				if _, err := tx.ExecContext(ctx, "UPDATE half"); err != nil {
					return err
				}
				panic("no")
			})
		}()
		return nil
	})
	if err == nil || len(f.Log(drivertest.Commit)) != 0 {
		t.Errorf("RunInTx gives %v and commits %d times", err, len(f.Log(drivertest.Commit)))
	}
}

func TestAWrapperThatCannotBeComparedDoesNotPanic(t *testing.T) {
	f := newFixture(t)
	type wrapper struct {
		*sql.DB
		extra any
	}
	w := wrapper{f.db, []string{"a"}}
	defer func() {
		if v := recover(); v != nil {
			t.Errorf("RunInTx panics: %v", v)
		}
	}()
	err := RunInTx(t.Context(), w, nil, func(ctx context.Context, _ *sql.Tx) error {
		return RunInTx(ctx, w, nil, func(_ context.Context, _ *sql.Tx) error { return nil })
	})
	if err != nil {
		t.Error(err)
	}
}

func TestARetryThatUsesTheOuterTransactionLeavesTheConflictToTheOuterLoop(t *testing.T) {
	for name, inner := range map[string]func(context.Context, *fixture, *sql.Tx) error{
		"directly": func(ctx context.Context, _ *fixture, tx *sql.Tx) error {
			return Retry(ctx, func(ctx context.Context) error {
				_, err := tx.ExecContext(ctx, "UPDATE")
				return err
			})
		},
		"joining": func(ctx context.Context, f *fixture, _ *sql.Tx) error {
			return Retry(ctx, func(ctx context.Context) error {
				return RunInTx(ctx, f.db, nil, func(ctx context.Context, tx *sql.Tx) error {
					_, err := tx.ExecContext(ctx, "UPDATE")
					return err
				})
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.Fail(drivertest.Exec, serverErr("40001")).Times(1)
			runs := 0
			err := RunInTx(t.Context(), f.db, nil, func(ctx context.Context, tx *sql.Tx) error {
				runs++
				return inner(ctx, f, tx)
			})
			if err != nil || runs != 2 {
				t.Errorf("RunInTx gives %v after %d runs", err, runs)
			}
		})
	}
}

func TestAFailureBesideTheTransactionThatTheClosureIgnoresDoesNotHideItsError(t *testing.T) {
	f, cache := newFixture(t), newFixture(t)
	cache.Fail(drivertest.Connect, fmt.Errorf("dial: %w", errConnRefused))
	business := errors.New("out of stock")
	runs := 0
	err := RunInTx(t.Context(), f.db, nil, func(ctx context.Context, tx *sql.Tx) error {
		runs++
		_ = cache.db.PingContext(ctx)
		if _, err := tx.ExecContext(ctx, "UPDATE"); err != nil {
			return err
		}
		return business
	})
	if err != business || runs != 1 { //nolint:errorlint // the very same
		t.Errorf("RunInTx gives %v after %d runs", err, runs)
	}
}

func TestAnEmptyStatementInAnAbortedTransactionUndoesNothing(t *testing.T) {
	db := openReal(t, nil)
	for _, text := range []string{"", "-- nothing"} {
		runs := 0
		err := RunInTx(t.Context(), db, nil, func(ctx context.Context, tx *sql.Tx) error {
			if runs++; runs > 1 {
				return nil
			}
			if _, err := tx.ExecContext(ctx, `DO $$ BEGIN RAISE SQLSTATE '40001'; END $$`); err == nil {
				t.Error("no error")
			}
			_, err := tx.ExecContext(ctx, text)
			return err
		})
		if err != nil || runs != 2 {
			t.Errorf("%q: RunInTx gives %v after %d runs", text, err, runs)
		}
	}
}

func TestSpansOfADatabaseThatALeakedGoroutineMeetsAreEnded(t *testing.T) {
	o := newObservatory(t)
	var started, ended atomic.Int64
	o.tracers.RegisterSpanProcessor(counter{&started, &ended})
	f := newFixture(t, WithTracerProvider(o.tracers))
	release, done := make(chan struct{}), make(chan struct{})
	err := Retry(t.Context(), func(ctx context.Context) error {
		go func() {
			defer close(done)
			<-release
			_, _ = f.db.ExecContext(ctx, "SELECT 1")
		}()
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	close(release)
	<-done
	if started.Load() != ended.Load() {
		t.Errorf("%d spans were started and %d ended", started.Load(), ended.Load())
	}
}

type counter struct{ started, ended *atomic.Int64 }

func (c counter) OnStart(context.Context, sdktrace.ReadWriteSpan) { c.started.Add(1) }
func (c counter) OnEnd(sdktrace.ReadOnlySpan)                     { c.ended.Add(1) }
func (counter) Shutdown(context.Context) error                    { return nil }
func (counter) ForceFlush(context.Context) error                  { return nil }

func TestAPlainTransactionOverAStaleConnectionIsMeasuredOnce(t *testing.T) {
	o := newObservatory(t)
	f := newFixture(t, WithMeterProvider(o.meters))
	f.Fail(drivertest.Begin, driver.ErrBadConn).Times(1).Drops()
	if err := inTx(t.Context(), f.db, func(context.Context, *sql.Tx) error { return nil }); err != nil {
		t.Fatal(err)
	}
	var data metricdata.ResourceMetrics
	if err := o.reader.Collect(t.Context(), &data); err != nil {
		t.Fatal(err)
	}
	for _, scope := range data.ScopeMetrics {
		for _, m := range scope.Metrics {
			if m.Name == "pgretry.transaction.duration" {
				if got := points(t, m); got != "{outcome=committed:1 bounds 9}" {
					t.Errorf("measured %s", got)
				}
			}
		}
	}
}

func TestAConflictThatComesWhenAStatementIsClosedIsRetried(t *testing.T) {
	f := newFixture(t)
	f.Fail(drivertest.StmtClose, serverErr("40001")).Times(1)
	runs := 0
	err := Retry(t.Context(), func(ctx context.Context) error {
		runs++
		return inTx(ctx, f.db, func(ctx context.Context, tx *sql.Tx) error {
			s, err := tx.PrepareContext(ctx, "COPY t FROM STDIN")
			if err != nil {
				return err
			}
			if _, err := s.ExecContext(ctx); err != nil {
				return err
			}
			return s.Close()
		})
	})
	if err != nil || runs != 2 {
		t.Errorf("Retry gives %v after %d runs", err, runs)
	}
}

func TestAConnectionLostAsAStatementIsPreparedIsRetried(t *testing.T) {
	f := newFixture(t)
	f.Fail(drivertest.Prepare, driver.ErrBadConn).Drops().Times(3)
	runs := 0
	err := Retry(t.Context(), func(ctx context.Context) error {
		runs++
		s, err := f.db.PrepareContext(ctx, "SELECT 1")
		if err != nil {
			return err
		}
		return s.Close()
	})
	if err != nil || runs != 2 {
		t.Errorf("Retry gives %v after %d runs", err, runs)
	}
}

func TestARawBlockWhoseConnectionIsLostIsRetriedAtOnce(t *testing.T) {
	f := newFixture(t)
	f.connector.config.closing = 10 * time.Millisecond
	f.Fail(drivertest.Exec, driver.ErrBadConn).Matching("UPDATE").Drops().Times(1)
	runs := 0
	err := Retry(t.Context(), func(ctx context.Context) error {
		runs++
		c, err := f.db.Conn(ctx)
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		for _, text := range []string{"BEGIN", "UPDATE", "COMMIT"} {
			if _, err := c.ExecContext(ctx, text); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil || runs != 2 {
		t.Errorf("Retry gives %v after %d runs", err, runs)
	}
}

func TestAConflictUndoneByARawRollbackButHiddenIsRetried(t *testing.T) {
	f := newFixture(t)
	f.Fail(drivertest.Exec, serverErr("40001")).Matching("UPDATE").Times(1)
	runs := 0
	err := RunInTx(t.Context(), f.db, nil, func(ctx context.Context, tx *sql.Tx) error {
		runs++
		if _, err := tx.ExecContext(ctx, "UPDATE"); err != nil {
			_, _ = tx.ExecContext(ctx, "ROLLBACK")
			return fmt.Errorf("no: %v", err) //nolint:errorlint // that is the point
		}
		return nil
	})
	if err != nil || runs != 2 {
		t.Errorf("RunInTx gives %v after %d runs", err, runs)
	}
}

func TestOurParametersAreFoundHoweverTheyAreEncoded(t *testing.T) {
	for _, name := range []string{"postgres://h/d?pgretry%5Fmode=off", "postgres://h/d?%70gretry_mode=off"} {
		d, err := parseDSN(name)
		if err != nil || strings.Contains(d.inner, "mode") || len(d.parameters) != 1 {
			t.Errorf("%s: %+v %v", name, d, err)
		}
	}
}

func TestAClosureThatCommittedItselfIsNotToldOtherwise(t *testing.T) {
	f := newFixture(t)
	ctx, cancel := context.WithCancel(t.Context())
	err := RunInTx(ctx, f.db, nil, func(_ context.Context, tx *sql.Tx) error {
		err := tx.Commit()
		cancel()
		return err
	})
	if err != nil && strings.Contains(err.Error(), "before COMMIT") {
		t.Errorf("committed %d times, but the error is %v", len(f.Log(drivertest.Commit)), err)
	}
}

func TestAnUnknownCommitIsMeasuredThoughTheClosureGoesOn(t *testing.T) {
	o := newObservatory(t)
	f := newFixture(t, WithMeterProvider(o.meters))
	f.Fail(drivertest.Commit, driver.ErrBadConn).Drops()
	_ = Retry(t.Context(), func(ctx context.Context) error {
		_ = inTx(ctx, f.db, transfer)
		return nil
	})
	var data metricdata.ResourceMetrics
	if err := o.reader.Collect(t.Context(), &data); err != nil {
		t.Fatal(err)
	}
	s, _ := StatsOf(f.db)
	found := false
	for _, scope := range data.ScopeMetrics {
		for _, m := range scope.Metrics {
			found = found || m.Name == "pgretry.commit.unknown"
		}
	}
	if s.UnknownCommits != 1 || !found {
		t.Errorf("stats have %d, metrics have it: %t", s.UnknownCommits, found)
	}
}

func TestAContextThatEndsBetweenAttemptsKeepsTheServersError(t *testing.T) {
	f := newFixture(t)
	f.Fail(drivertest.Exec, serverErr("40001"))
	ctx, cancel := context.WithCancel(t.Context())
	f.connector.config.wait = func(context.Context, time.Duration) error { return nil }
	runs := 0
	f.On(drivertest.Begin).At(2).Do(func(*drivertest.Invocation) error { cancel(); return context.Canceled })
	err := RunInTx(ctx, f.db, nil, func(ctx context.Context, tx *sql.Tx) error {
		runs++
		return transfer(ctx, tx)
	})
	if !errors.Is(err, context.Canceled) || sqlState(err) != "40001" {
		t.Errorf("RunInTx gives %v after %d runs", err, runs)
	}
}

func TestAHookThatPanicsLeavesNoSpanOpen(t *testing.T) {
	o := newObservatory(t)
	var started, ended atomic.Int64
	o.tracers.RegisterSpanProcessor(counter{&started, &ended})
	f := newFixture(t, WithTracerProvider(o.tracers), WithOnRetry(func(context.Context, Event) { panic("no") }))
	f.Fail(drivertest.Exec, serverErr("40001"))
	func() {
		defer func() { _ = recover() }()
		_ = RunInTx(t.Context(), f.db, nil, transfer)
	}()
	if started.Load() != ended.Load() {
		t.Errorf("%d spans were started and %d ended", started.Load(), ended.Load())
	}
}

func TestARawCommitThatTheServerRefusesIsAConflict(t *testing.T) {
	db := openReal(t, nil, `CREATE TABLE once (n int); INSERT INTO once VALUES (0);
CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE SQLSTATE '40001'; END $$;
CREATE CONSTRAINT TRIGGER t AFTER UPDATE ON once DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION fail()`)
	runs := 0
	err := RunInTx(t.Context(), db, nil, func(ctx context.Context, tx *sql.Tx) error {
		if runs++; runs > 1 {
			return nil
		}
		if _, err := tx.ExecContext(ctx, "UPDATE once SET n = 1"); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, "COMMIT")
		return err
	})
	if err != nil || runs != 2 {
		t.Errorf("RunInTx gives %v after %d runs", err, runs)
	}
}

func TestARawRollbackIsNotReportedAsUnknown(t *testing.T) {
	a := enter(t, nil, accounts)
	rollsBack := func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "ROLLBACK")
		return err
	}
	plain := inTx(t.Context(), a.plain, rollsBack) // lib/pq reports that there is no transaction any more, pgx does not
	err := RunInTx(t.Context(), a.db, nil, rollsBack)
	var unknown *CommitUnknownError
	if (err == nil) != (plain == nil) || errors.As(err, &unknown) {
		t.Errorf("RunInTx gives %v, %s %v", err, tested.name, plain)
	}
}

func TestAHiddenOptInErrorIsRetried(t *testing.T) {
	f := newFixture(t, WithAlsoRetry("55P03"))
	f.Fail(drivertest.Exec, serverErr("55P03")).Times(1)
	runs := 0
	err := RunInTx(t.Context(), f.db, nil, func(ctx context.Context, tx *sql.Tx) error {
		runs++
		if _, err := tx.ExecContext(ctx, "UPDATE"); err != nil {
			return fmt.Errorf("no: %v", err) //nolint:errorlint // that is the point
		}
		return nil
	})
	if err != nil || runs != 2 {
		t.Errorf("RunInTx gives %v after %d runs", err, runs)
	}
}
