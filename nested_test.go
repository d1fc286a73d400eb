package pgretry

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/pgretry/pgretry/internal/drivertest"
)

func TestANestedRunInTxJoinsTheTransaction(t *testing.T) {
	f := newFixture(t)
	f.Fail(drivertest.Exec, serverErr("40001")).Matching("inner").Times(1)
	outerRuns, innerRuns := 0, 0
	err := RunInTx(t.Context(), f.db, &sql.TxOptions{Isolation: sql.LevelSerializable}, func(ctx context.Context, outer *sql.Tx) error {
		outerRuns++
		return RunInTx(ctx, f.db, &sql.TxOptions{Isolation: sql.LevelSerializable}, func(ctx context.Context, inner *sql.Tx) error {
			innerRuns++
			if inner != outer {
				t.Error("the inner function has a transaction of its own")
			}
			_, err := inner.ExecContext(ctx, "UPDATE inner")
			return err
		})
	})
	if err != nil || outerRuns != 2 || innerRuns != 2 || len(f.Log(drivertest.Begin)) != 2 || len(f.Log(drivertest.Commit)) != 1 {
		t.Errorf("RunInTx gives %v after %d and %d runs: %v", err, outerRuns, innerRuns, f.Log())
	}
}

func TestANestedErrorRollsTheWholeBackEvenIfIgnored(t *testing.T) {
	f := newFixture(t)
	business := errors.New("out of stock")
	err := RunInTx(t.Context(), f.db, nil, func(ctx context.Context, tx *sql.Tx) error {
		_ = RunInTx(ctx, f.db, nil, func(context.Context, *sql.Tx) error { return business })
		_, err := tx.ExecContext(ctx, "UPDATE")
		return err
	})
	if err != business || len(f.Log(drivertest.Commit)) != 0 || len(f.Log(drivertest.Rollback)) != 1 { //nolint:errorlint // the very same
		t.Errorf("RunInTx gives %v: %v", err, f.Log())
	}
}

func TestANestedTransactionCannotChangeTheOptions(t *testing.T) {
	for _, c := range []struct {
		outer, inner *sql.TxOptions
		ok           bool
	}{
		{nil, nil, true},
		{nil, &sql.TxOptions{}, true},
		{&sql.TxOptions{Isolation: sql.LevelSerializable}, nil, true},
		{&sql.TxOptions{Isolation: sql.LevelSerializable}, &sql.TxOptions{Isolation: sql.LevelSerializable}, true},
		{&sql.TxOptions{ReadOnly: true}, &sql.TxOptions{ReadOnly: true}, true},
		{&sql.TxOptions{ReadOnly: true}, nil, true},
		{nil, &sql.TxOptions{Isolation: sql.LevelSerializable}, false},
		{&sql.TxOptions{Isolation: sql.LevelRepeatableRead}, &sql.TxOptions{Isolation: sql.LevelSerializable}, false},
		{nil, &sql.TxOptions{ReadOnly: true}, false},
	} {
		f := newFixture(t)
		ran := false
		err := RunInTx(t.Context(), f.db, c.outer, func(ctx context.Context, _ *sql.Tx) error {
			return RunInTx(ctx, f.db, c.inner, func(context.Context, *sql.Tx) error {
				ran = true
				return nil
			})
		})
		if errors.Is(err, ErrNestedOptions) == c.ok || ran != c.ok || (len(f.Log(drivertest.Commit)) == 1) != c.ok {
			t.Errorf("%+v inside %+v gives %v", c.inner, c.outer, err)
		}
	}
}

func TestANestedCallOnTheSameConnOrItsDatabaseJoins(t *testing.T) {
	f := newFixture(t)
	c, err := f.db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, target := range []TxBeginner{c, f.db} {
		err := RunInTx(t.Context(), c, nil, func(ctx context.Context, outer *sql.Tx) error {
			return RunInTx(ctx, target, nil, func(_ context.Context, inner *sql.Tx) error {
				if inner != outer {
					t.Errorf("a nested call on %T does not join", target)
				}
				return nil
			})
		})
		if err != nil {
			t.Error(err)
		}
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

func TestANestedCallOnAWrapperOfTheDatabaseJoins(t *testing.T) {
	f := newFixture(t)
	wrapper := struct { // as in sqlx; the slice keeps it from being compared
		*sql.DB
		_ []string
	}{DB: f.db}
	for _, targets := range [][2]TxBeginner{{wrapper, wrapper}, {f.db, wrapper}, {wrapper, f.db}, {&wrapper, f.db}} {
		err := RunInTx(t.Context(), targets[0], nil, func(ctx context.Context, outer *sql.Tx) error {
			return RunInTx(ctx, targets[1], nil, func(_ context.Context, inner *sql.Tx) error {
				if inner != outer {
					t.Errorf("a nested call on %T inside %T does not join", targets[1], targets[0])
				}
				return nil
			})
		})
		if err != nil {
			t.Error(err)
		}
	}
}

func TestATransactionOnAnotherDatabaseIsItsOwn(t *testing.T) {
	f, other := newFixture(t), newFixture(t)
	other.Fail(drivertest.Exec, serverErr("40P01")).Times(2)
	f.Fail(drivertest.Exec, serverErr("40001")).Matching("last")
	outerRuns, innerRuns := 0, 0
	err := RunInTx(t.Context(), f.db, nil, func(ctx context.Context, tx *sql.Tx) error {
		outerRuns++
		err := RunInTx(ctx, other.db, &sql.TxOptions{Isolation: sql.LevelSerializable}, func(ctx context.Context, inner *sql.Tx) error {
			innerRuns++
			if inner == tx {
				t.Error("a transaction on another database joins")
			}
			_, err := inner.ExecContext(ctx, "UPDATE")
			return err
		})
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, "UPDATE last")
		return err
	})
	if !errors.Is(err, ErrAlreadyCommitted) || sqlState(err) != "40001" || outerRuns != 1 || innerRuns != 3 {
		t.Errorf("RunInTx gives %v after %d and %d runs", err, outerRuns, innerRuns)
	}
}

func TestLoopsDoNotMultiply(t *testing.T) {
	f, other := newFixture(t, WithPolicy(Policy{MaxAttempts: 3})), newFixture(t, WithPolicy(Policy{MaxAttempts: 4}))
	other.Fail(drivertest.Exec, serverErr("40001"))
	err := RunInTx(t.Context(), f.db, nil, func(ctx context.Context, _ *sql.Tx) error {
		return RunInTx(ctx, other.db, nil, transfer)
	})
	var retry *RetryError
	if !errors.As(err, &retry) || retry.Attempts != 4 || len(other.Log(drivertest.Begin)) != 4 || len(f.Log(drivertest.Begin)) != 1 {
		t.Errorf("RunInTx gives %v after %d inner and %d outer attempts", err, len(other.Log(drivertest.Begin)), len(f.Log(drivertest.Begin)))
	}
}

func TestRetryRunsAHelperAgain(t *testing.T) {
	for _, calls := range []drivertest.Call{drivertest.Exec, drivertest.Commit, drivertest.RowsNext} {
		f := newFixture(t)
		f.Fail(calls, serverErr("40001")).Times(2)
		runs := 0
		err := Retry(t.Context(), func(ctx context.Context) error {
			runs++
			return inTx(ctx, f.db, transfer)
		})
		if err != nil || runs != 3 || len(f.waits) != 2 {
			t.Errorf("%s: Retry gives %v after %d runs and %v", calls, err, runs, f.waits)
		}
	}
}

func TestRetryRecognisesAConflictThatTheHelperHid(t *testing.T) {
	for _, calls := range []drivertest.Call{drivertest.Begin, drivertest.Exec, drivertest.Commit} {
		f := newFixture(t)
		f.Fail(calls, serverErr("40P01")).Times(1)
		runs := 0
		err := Retry(t.Context(), func(ctx context.Context) error {
			runs++
			if err := inTx(ctx, f.db, transfer); err != nil {
				return fmt.Errorf("could not transfer: %v", err) //nolint:errorlint // that is the point
			}
			return nil
		})
		if err != nil || runs != 2 {
			t.Errorf("%s: Retry gives %v after %d runs", calls, err, runs)
		}
	}
}

func TestAConflictThatTheClosureGotOverIsNotRetried(t *testing.T) {
	f := newFixture(t)
	f.Fail(drivertest.Exec, serverErr("40P01")).Matching("first").Times(1)
	business := errors.New("out of stock")
	runs := 0
	err := Retry(t.Context(), func(ctx context.Context) error {
		runs++
		_ = inTx(ctx, f.db, transfer) // something that may fail
		return inTx(ctx, f.db, func(context.Context, *sql.Tx) error { return business })
	})
	if !errors.Is(err, business) || errors.Is(err, ErrExhausted) || runs != 1 {
		t.Errorf("Retry gives %v after %d runs", err, runs)
	}
}

func TestWhatWasCommittedIsNotDoneAgain(t *testing.T) {
	conflict := serverErr("40001")
	lone := func(text string) func(context.Context, *sql.DB) error {
		return func(ctx context.Context, db *sql.DB) error {
			_, err := db.ExecContext(ctx, text)
			return err
		}
	}
	query := func(text string) func(context.Context, *sql.DB) error {
		return func(ctx context.Context, db *sql.DB) error {
			rows, err := db.QueryContext(ctx, text)
			if err != nil {
				return err
			}
			return rows.Close()
		}
	}
	prepared := func(text string) func(context.Context, *sql.DB) error {
		return func(ctx context.Context, db *sql.DB) error {
			stmt, err := db.PrepareContext(ctx, text)
			if err != nil {
				return err
			}
			_, err = stmt.ExecContext(ctx)
			return errors.Join(err, stmt.Close())
		}
	}
	onConn := func(texts ...string) func(context.Context, *sql.DB) error {
		return func(ctx context.Context, db *sql.DB) error {
			c, err := db.Conn(ctx)
			if err != nil {
				return err
			}
			for _, text := range texts {
				if _, execErr := c.ExecContext(ctx, text); err == nil && !strings.Contains(text, "refused") {
					err = execErr
				}
			}
			return errors.Join(err, c.Close())
		}
	}
	ignoring := func(code string, first func(context.Context, *sql.DB) error) func(context.Context, *sql.DB) error {
		return func(ctx context.Context, db *sql.DB) error {
			if err := first(ctx, db); sqlState(err) != code && !errors.Is(err, driver.ErrBadConn) {
				return fmt.Errorf("want %s, got %w", code, err)
			}
			return nil
		}
	}
	for _, c := range []struct {
		name  string
		first func(context.Context, *sql.DB) error
		what  string // "" if the closure may run again
	}{
		{"nothing", func(context.Context, *sql.DB) error { return nil }, ""},
		{"a transaction", func(ctx context.Context, db *sql.DB) error {
			return inTx(ctx, db, func(ctx context.Context, tx *sql.Tx) error {
				_, err := tx.ExecContext(ctx, "UPDATE one")
				return err
			})
		}, "a transaction"},
		{"a transaction that failed", func(ctx context.Context, db *sql.DB) error {
			_ = inTx(ctx, db, func(context.Context, *sql.Tx) error { return errors.New("no") })
			return nil
		}, ""},
		{"a COMMIT sent as a statement", func(ctx context.Context, db *sql.DB) error {
			_ = inTx(ctx, db, func(ctx context.Context, tx *sql.Tx) error {
				_, err := tx.ExecContext(ctx, "/* why */ commit")
				return errors.Join(err, errors.New("no"))
			})
			return nil
		}, "COMMIT sent as a statement"},
		{"a COMMIT inside a text that failed", func(ctx context.Context, db *sql.DB) error {
			_ = inTx(ctx, db, func(ctx context.Context, tx *sql.Tx) error {
				_, err := tx.ExecContext(ctx, "UPDATE one; COMMIT; UPDATE refused")
				return err
			})
			return nil
		}, "COMMIT inside a text that failed"},
		{"a COMMIT sent as a statement that the server refused", func(ctx context.Context, db *sql.DB) error {
			_ = inTx(ctx, db, func(ctx context.Context, tx *sql.Tx) error {
				_, err := tx.ExecContext(ctx, "COMMIT /* refused */")
				return err
			})
			return nil
		}, ""},
		{"a COMMIT sent as a statement without an answer", func(ctx context.Context, db *sql.DB) error {
			_ = inTx(ctx, db, func(ctx context.Context, tx *sql.Tx) error {
				_, err := tx.ExecContext(ctx, "COMMIT /* lost */")
				return err
			})
			return nil
		}, "COMMIT inside a text that failed"},
		{"a raw block that ends in a text that failed", onConn("BEGIN", "INSERT INTO t VALUES (1)", "COMMIT; UPDATE refused", "ROLLBACK"), "COMMIT inside a text that failed"},
		{"a lone INSERT", lone("INSERT INTO t VALUES (1)"), "(INSERT)"},
		{"a lone INSERT with RETURNING", query("INSERT INTO t VALUES (1) RETURNING id"), "(INSERT)"},
		{"a prepared INSERT", prepared("INSERT INTO t VALUES (1)"), "(INSERT)"},
		{"a lone SELECT", query("SELECT count(*) FROM t"), ""},
		{"a SELECT of nobody knows what", query("SELECT transfer(1, 2)"), "(SELECT)"},
		{"a data-modifying WITH", query("WITH x AS (DELETE FROM t RETURNING *) SELECT * FROM x"), "(WITH)"},
		{"a CALL", lone("CALL post_orders()"), "(CALL)"},
		{"a SET", lone("SET search_path = a"), ""},
		{"several statements", lone("SELECT 1; INSERT INTO t VALUES (1)"), "(SELECT)"},
		{"an INSERT that the server refused", ignoring("23505", lone("INSERT INTO refused VALUES (1)")), ""},
		{"a CALL that failed in its second half", ignoring("23505", lone("CALL refused()")), "(CALL)"},
		{"an INSERT without an answer", ignoring("", lone("INSERT INTO lost VALUES (1)")), "outcome is unknown (INSERT)"},
		{"a block by raw statements", onConn("BEGIN", "INSERT INTO t VALUES (1)", "COMMIT"), "a transaction"},
		{"a block rolled back by raw statements", onConn("BEGIN", "INSERT INTO t VALUES (1)", "ROLLBACK"), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, idempotent := range []bool{false, true} {
				f := newFixture(t)
				f.Fail(drivertest.Exec, serverErr("23505")).Matching("refused")
				f.Fail(drivertest.Exec, driver.ErrBadConn).Matching("lost")
				f.Fail(drivertest.Exec, conflict).Matching("UPDATE last").Times(1)
				ctx := t.Context()
				if idempotent {
					ctx = ContextWithIdempotence(ctx)
				}
				runs := 0
				err := Retry(ctx, func(ctx context.Context) error {
					runs++
					if err := c.first(ctx, f.db); err != nil {
						t.Error(err)
					}
					return inTx(ctx, f.db, transfer)
				})
				if c.what == "" || idempotent {
					if err != nil || runs != 2 {
						t.Errorf("idempotent %t: Retry gives %v after %d runs, want success after 2", idempotent, err, runs)
					}
					continue
				}
				if !errors.Is(err, ErrAlreadyCommitted) || !errors.Is(err, conflict) || !strings.Contains(err.Error(), c.what) || runs != 1 {
					t.Errorf("Retry gives %v after %d runs, want %q", err, runs, c.what)
				}
				if s, _ := StatsOf(f.db); s.Refusals[RefusedAlreadyCommitted] != 1 {
					t.Errorf("stats are %+v", s)
				}
			}
		})
	}
}

func TestALoneStatementThatFailedAsItsRowsWereReadCommittedNothing(t *testing.T) {
	f := newFixture(t)
	f.Fail(drivertest.RowsNext, serverErr("40001")).Matching("INSERT").Times(1)
	runs := 0
	err := Retry(t.Context(), func(ctx context.Context) error {
		runs++
		var id int64
		return f.db.QueryRowContext(ctx, "INSERT INTO t VALUES (1) RETURNING id").Scan(&id)
	})
	if err != nil || runs != 2 {
		t.Errorf("Retry gives %v after %d runs", err, runs)
	}
}

func TestALoneWriteBesideRunInTxIsNotDoneAgain(t *testing.T) {
	f := newFixture(t)
	f.Fail(drivertest.Commit, serverErr("40001"))
	err := RunInTx(t.Context(), f.db, nil, func(ctx context.Context, _ *sql.Tx) error {
		_, err := f.db.ExecContext(ctx, "INSERT INTO audit VALUES (1)")
		return err
	})
	if !errors.Is(err, ErrAlreadyCommitted) || len(f.Log(drivertest.Begin)) != 1 {
		t.Errorf("RunInTx gives %v", err)
	}
}

func TestRetrySaysSoIfTheClosureIgnoresItsContext(t *testing.T) {
	f := newFixture(t)
	f.Fail(drivertest.Exec, serverErr("40001"))
	runs := 0
	err := Retry(t.Context(), func(context.Context) error {
		runs++
		return inTx(t.Context(), f.db, transfer)
	})
	if !errors.Is(err, ErrNotObserved) || sqlState(err) != "40001" || runs != 1 {
		t.Errorf("Retry gives %v after %d runs", err, runs)
	}
	business := errors.New("out of stock")
	if err := Retry(t.Context(), func(context.Context) error { return business }); err != business { //nolint:errorlint // the very same
		t.Errorf("Retry gives %v, want the error itself: nothing would have been retried", err)
	}
}

func TestRunInTxSaysSoIfTheDatabaseIsNotOurs(t *testing.T) {
	raw := drivertest.New()
	db := sql.OpenDB(raw.Connector())
	err := RunInTx(t.Context(), db, nil, transfer)
	if !errors.Is(err, ErrNotObserved) || !strings.Contains(err.Error(), "sql.Open(pgretry.DriverName") {
		t.Errorf("RunInTx gives %v", err)
	}
	if n := len(raw.Log(drivertest.AnyStatement)); n != 0 || raw.OpenTxs() != 0 {
		t.Errorf("%d statements ran, %d transactions are open", n, raw.OpenTxs())
	}
	if _, err := StatsOf(db); !errors.Is(err, ErrNotObserved) {
		t.Errorf("StatsOf gives %v", err)
	}
	if err := db.Close(); err != nil {
		t.Error(err)
	}
}

func TestRawConnLeadsToTheInnerConnection(t *testing.T) {
	f := newFixture(t)
	c, err := f.db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	err = c.Raw(func(driverConn any) error {
		inner, ok := RawConn(driverConn)
		if !ok || inner == driverConn {
			t.Errorf("RawConn gives %T, %t", inner, ok)
		}
		if _, ok := RawConn(inner); ok {
			t.Error("the inner connection is taken for one of ours")
		}
		return nil
	})
	if err := errors.Join(err, c.Close()); err != nil {
		t.Error(err)
	}
}

// foreign is a wrapper of somebody else's around our connector.
type foreign struct{ driver.Connector }

func (foreign) Driver() driver.Driver { return nil }

func TestADatabaseBehindAnotherWrapperIsFoundByItsCalls(t *testing.T) {
	f := newFixture(t, WithPolicy(Policy{MaxAttempts: 3}))
	db := sql.OpenDB(foreign{f.connector})
	f.Fail(drivertest.Exec, serverErr("40001"))
	err := RunInTx(t.Context(), db, nil, transfer)
	var retry *RetryError
	if !errors.As(err, &retry) || retry.Attempts != 3 || len(f.waits) != 2 {
		t.Errorf("RunInTx gives %v, waited %v: not the database's policy", err, f.waits)
	}
	if err := db.Close(); err != nil {
		t.Error(err)
	}
}

func TestAnOpenTransactionIsNotRunAgain(t *testing.T) {
	f := newFixture(t)
	f.Fail(drivertest.Exec, serverErr("40001"))
	f.connector.config.closing = time.Millisecond
	var left *sql.Tx
	err := Retry(t.Context(), func(ctx context.Context) error {
		tx, err := f.db.BeginTx(context.WithoutCancel(ctx), nil)
		if err != nil {
			return err
		}
		left = tx
		_, err = tx.ExecContext(ctx, "UPDATE")
		return err
	})
	if !errors.Is(err, ErrTxStillOpen) || sqlState(err) != "40001" || len(f.Log(drivertest.Begin)) != 1 {
		t.Errorf("Retry gives %v", err)
	}
	if err := left.Rollback(); err != nil {
		t.Error(err)
	}
}

func TestATransactionLeftToItsContextIsWaitedFor(t *testing.T) {
	f := newFixture(t)
	f.Fail(drivertest.Exec, serverErr("40001")).Times(1)
	runs := 0
	err := Retry(t.Context(), func(ctx context.Context) error {
		runs++
		ctx, cancel := context.WithCancel(ctx)
		defer cancel() // in place of a Rollback
		tx, err := f.db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(context.WithoutCancel(ctx), "UPDATE"); err != nil {
			return err
		}
		return tx.Commit()
	})
	if err != nil || runs != 2 {
		t.Errorf("Retry gives %v after %d runs", err, runs)
	}
}

func TestATransactionBegunInsideAnotherOnOneConnCountsAsCommitted(t *testing.T) {
	f := newFixture(t)
	conflict := serverErr("40001")
	f.Fail(drivertest.Exec, conflict)
	c, err := f.connector.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	runs := 0
	err = Retry(t.Context(), func(ctx context.Context) error {
		runs++
		// database/sql does the same with a *sql.Conn.
		beginner := c.(driver.ConnBeginTx)
		outer, err := beginner.BeginTx(ctx, driver.TxOptions{})
		if err != nil {
			return err
		}
		inner := innerTx{committing{}, outer.(*tx)}
		if err := inner.Commit(); err != nil {
			return err
		}
		if _, err := c.(driver.ExecerContext).ExecContext(ctx, "UPDATE", nil); err == nil {
			t.Error("no conflict")
		}
		return errors.Join(outer.Rollback(), conflict)
	})
	if !errors.Is(err, ErrAlreadyCommitted) || !strings.Contains(err.Error(), "begun inside another") || runs != 1 {
		t.Errorf("Retry gives %v after %d runs", err, runs)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// committing is a transaction that the server has committed.
type committing struct{}

func (committing) Commit() error   { return nil }
func (committing) Rollback() error { return nil }

func TestAClosureThatCommitsByItselfIsNotRunAgain(t *testing.T) {
	f := newFixture(t)
	conflict := serverErr("40001")
	runs := 0
	err := RunInTx(t.Context(), f.db, nil, func(ctx context.Context, tx *sql.Tx) error {
		runs++
		return errors.Join(transfer(ctx, tx), tx.Commit(), conflict)
	})
	if !errors.Is(err, ErrAlreadyCommitted) || !errors.Is(err, conflict) || runs != 1 {
		t.Errorf("RunInTx gives %v after %d runs", err, runs)
	}
	runs = 0
	err = RunInTx(t.Context(), f.db, nil, func(_ context.Context, tx *sql.Tx) error {
		runs++
		return tx.Commit()
	})
	if err != nil || runs != 1 || len(f.Log(drivertest.Commit)) != 2 {
		t.Errorf("RunInTx gives %v after %d runs, though the closure had committed", err, runs)
	}
}
