package compat

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/trace"

	"github.com/pgretry/pgretry"
	"github.com/pgretry/pgretry/internal/drivertest/parity"
	"github.com/pgretry/pgretry/internal/pgserver/pgtest"
)

func pgxConfig(tb testing.TB, dsn string) pgx.ConnConfig {
	tb.Helper()
	config, err := pgx.ParseConfig(dsn)
	if err != nil {
		tb.Fatal(err)
	}
	return *config
}

func openPgx(tb testing.TB, dsn string, options ...pgretry.Option) *sql.DB {
	tb.Helper()
	connector, err := pgretry.NewConnector(stdlib.GetConnector(pgxConfig(tb, dsn)), options...)
	if err != nil {
		tb.Fatal(err)
	}
	return sql.OpenDB(connector)
}

func TestDatabaseSQLSeesPgx(t *testing.T) {
	for name, options := range map[string][]pgretry.Option{
		"plain":   nil,
		"otelsql": {pgretry.WithTracerProvider(trace.NewTracerProvider()), pgretry.WithMeterProvider(metric.NewMeterProvider())},
	} {
		t.Run(name, func(t *testing.T) {
			dsn := pgtest.DSN(t)
			parity.Run(t, parity.Opener{
				Raw: func(t *testing.T) *sql.DB {
					return closedAtLast(t, sql.OpenDB(stdlib.GetConnector(pgxConfig(t, dsn))))
				},
				Wrapped: func(t *testing.T) *sql.DB {
					// The driver's own question would be among pgx's prepared statements.
					return closedAtLast(t, openPgx(t, dsn, append([]pgretry.Option{pgretry.WithCommitOutcome(pgretry.CommitReport)}, options...)...))
				},
			}, lostScenarios...)
		})
	}
}

// In these scenarios connections are lost, or COMMIT is cut off: database/sql must not see
// what pgx shows there.
var lostScenarios = []parity.Exception{
	{Scenario: "cancelled during next", Reason: "a lost connection is told as one"},
	{Scenario: "cancelled during a prepared statement", Reason: "a lost connection is told as one"},
	{Scenario: "cancelled during a statement of a transaction", Reason: "a lost connection is told as one"},
	{Scenario: "lost connection in a transaction", Reason: "a lost connection is told as one, after a replay"},
	{Scenario: "cancelled during commit", Reason: "an unknown outcome is told as one"},
}

// closedAtLast closes a database when the test ends. The suite does so as well,
// except where pgx panics, as it does on an empty statement with arguments.
func closedAtLast(t *testing.T, db *sql.DB) *sql.DB {
	t.Helper()
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

const accounts = `CREATE TABLE account (id int PRIMARY KEY, balance int NOT NULL)`

// prepare opens a database with pgx inside and two accounts in it.
func prepare(t *testing.T) *sql.DB {
	t.Helper()
	db := openPgx(t, pgtest.DSN(t))
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, statement := range []string{accounts, `INSERT INTO account VALUES (1, 100), (2, 100)`} {
		if _, err := db.Exec(statement); err != nil {
			t.Fatal(err)
		}
	}
	return db
}

// collide runs two transfers in opposite directions, both of which hold their
// first account before either asks for its second, and returns their errors.
// transfer calls locked in between. There is one deadlock at least: the loser may
// be back before the winner has what it waits for.
func collide(t *testing.T, transfer func(ctx context.Context, from, to int, locked func()) error) (errs [2]error) {
	t.Helper()
	var met, done sync.WaitGroup
	met.Add(2)
	for i := range 2 {
		done.Go(func() {
			var once sync.Once
			errs[i] = transfer(t.Context(), 1+i, 2-i, func() {
				once.Do(func() {
					met.Done()
					met.Wait()
				})
			})
		})
	}
	done.Wait()
	return errs
}

const (
	takeOne = `UPDATE account SET balance = balance - 1 WHERE id = $1`
	giveOne = `UPDATE account SET balance = balance + 1 WHERE id = $1`
)

func moveTogether(ctx context.Context, tx *sql.Tx, from, to int, locked func()) error {
	if _, err := tx.ExecContext(ctx, takeOne, from); err != nil {
		return err
	}
	locked()
	_, err := tx.ExecContext(ctx, giveOne, to)
	return err
}

func TestClosuresSurviveADeadlockWithPgx(t *testing.T) {
	db := prepare(t)
	for name, transfer := range map[string]func(ctx context.Context, from, to int, locked func()) error{
		"RunInTx": func(ctx context.Context, from, to int, locked func()) error {
			return pgretry.RunInTx(ctx, db, nil, func(ctx context.Context, tx *sql.Tx) error {
				return moveTogether(ctx, tx, from, to, locked)
			})
		},
		"RunInTx with the error hidden": func(ctx context.Context, from, to int, locked func()) error {
			return pgretry.RunInTx(ctx, db, nil, func(ctx context.Context, tx *sql.Tx) error {
				if err := moveTogether(ctx, tx, from, to, locked); err != nil {
					return fmt.Errorf("hidden: %v", err) //nolint:errorlint // that is the point
				}
				return nil
			})
		},
		"RunInTx with the error swallowed": func(ctx context.Context, from, to int, locked func()) error {
			return pgretry.RunInTx(ctx, db, nil, func(ctx context.Context, tx *sql.Tx) error {
				_ = moveTogether(ctx, tx, from, to, locked)
				return nil // COMMIT gives pgx.ErrTxCommitRollback
			})
		},
		"Retry": func(ctx context.Context, from, to int, locked func()) error {
			return pgretry.Retry(ctx, func(ctx context.Context) error {
				tx, err := db.BeginTx(ctx, nil)
				if err != nil {
					return err
				}
				defer tx.Rollback()
				if err := moveTogether(ctx, tx, from, to, locked); err != nil {
					return err
				}
				return tx.Commit()
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			before, err := pgretry.StatsOf(db)
			if err != nil {
				t.Fatal(err)
			}
			if errs := collide(t, transfer); errs != [2]error{} {
				t.Errorf("the errors are %v", errs)
			}
			after, err := pgretry.StatsOf(db)
			if err != nil || after.RetriesBySQLState["40P01"] == before.RetriesBySQLState["40P01"] || after.Committed != before.Committed+2 {
				t.Errorf("stats are %+v, were %+v, %v", after, before, err)
			}
		})
	}
	var a, b int
	if err := db.QueryRow(`SELECT max(balance) FILTER (WHERE id = 1), max(balance) FILTER (WHERE id = 2) FROM account`).Scan(&a, &b); err != nil || a != 100 || b != 100 {
		t.Errorf("balances are %d and %d, %v", a, b, err)
	}
}

func TestWriteSkewAtCommitIsRetriedWithPgx(t *testing.T) {
	db := prepare(t)
	runs := 0
	err := pgretry.RunInTx(t.Context(), db, &sql.TxOptions{Isolation: sql.LevelSerializable}, func(ctx context.Context, tx *sql.Tx) error {
		runs++
		var sum int
		if err := tx.QueryRowContext(ctx, `SELECT sum(balance) FROM account`).Scan(&sum); err != nil {
			return err
		}
		if runs == 1 {
			// Another session reads the same and writes the other account.
			other, err := db.BeginTx(context.Background(), &sql.TxOptions{Isolation: sql.LevelSerializable})
			if err != nil {
				return err
			}
			defer other.Rollback()
			if err := other.QueryRow(`SELECT sum(balance) FROM account`).Scan(&sum); err != nil {
				return err
			}
			if _, err := other.Exec(takeOne, 2); err != nil {
				return err
			}
			if _, err := tx.ExecContext(ctx, takeOne, 1); err != nil {
				return err
			}
			return other.Commit()
		}
		_, err := tx.ExecContext(ctx, takeOne, 1)
		return err
	})
	if err != nil || runs != 2 {
		t.Errorf("RunInTx gives %v after %d runs", err, runs)
	}
}

func TestATerminatedBackendIsReplacedWithPgx(t *testing.T) {
	db := prepare(t)
	runs := 0
	err := pgretry.RunInTx(t.Context(), db, nil, func(ctx context.Context, tx *sql.Tx) error {
		runs++
		var pid int
		if err := tx.QueryRowContext(ctx, `SELECT pg_backend_pid()`).Scan(&pid); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, takeOne, 1); err != nil {
			return err
		}
		if runs == 1 {
			var gone bool
			if err := db.QueryRow(`SELECT pg_terminate_backend($1, 10000)`, pid).Scan(&gone); err != nil || !gone {
				return fmt.Errorf("backend %d is still there: %w", pid, err)
			}
		}
		_, err := tx.ExecContext(ctx, takeOne, 1)
		return err
	})
	var balance int
	if err != nil || runs != 2 {
		t.Fatalf("RunInTx gives %v after %d runs", err, runs)
	}
	if err := db.QueryRow(`SELECT balance FROM account WHERE id = 1`).Scan(&balance); err != nil || balance != 98 {
		t.Errorf("the balance is %d, %v", balance, err)
	}
}

// With pgx a cancelled COMMIT may have taken effect: a trigger that waits for a
// lock keeps it in flight until its context is cancelled.
func TestACommitCancelledInFlightIsUnknownWithPgx(t *testing.T) {
	db := prepare(t)
	for _, statement := range []string{
		`CREATE FUNCTION wait_for_lock() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_xact_lock(4711); RETURN NULL; END $$`,
		`CREATE CONSTRAINT TRIGGER late AFTER UPDATE ON account DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION wait_for_lock()`,
	} {
		if _, err := db.Exec(statement); err != nil {
			t.Fatal(err)
		}
	}
	holder, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Rollback()
	if _, err := holder.Exec(`SELECT pg_advisory_xact_lock(4711)`); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	runs := 0
	done := make(chan error, 1)
	go func() {
		done <- pgretry.RunInTx(ctx, db, nil, func(ctx context.Context, tx *sql.Tx) error {
			runs++
			_, err := tx.ExecContext(ctx, takeOne, 1)
			return err
		})
	}()
	for waiting := 0; waiting == 0; {
		if err := holder.QueryRow(`SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted`).Scan(&waiting); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	err = <-done
	var unknown *pgretry.CommitUnknownError
	if !errors.As(err, &unknown) || errors.Is(err, context.Canceled) || runs != 1 {
		t.Errorf("RunInTx gives %v after %d runs", err, runs)
	}
}

func TestTheServersErrorIsPgxsOwn(t *testing.T) {
	db := prepare(t)
	_, err := db.Exec(`INSERT INTO account VALUES (1, 1)`)
	if pgErr, ok := err.(*pgconn.PgError); !ok || pgErr.Code != "23505" { //nolint:errorlint // gorm does it like that
		t.Errorf("the error is %#v", err)
	}
	err = pgretry.RunInTx(t.Context(), db, nil, func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '40001'; END $$`)
		return err
	}, pgretry.WithPolicy(pgretry.Policy{MaxAttempts: 2, BaseDelay: 1}))
	var pgErr *pgconn.PgError
	var retry *pgretry.RetryError
	if !errors.As(err, &retry) || retry.Attempts != 2 || !errors.As(err, &pgErr) || pgErr.Code != "40001" {
		t.Errorf("the error is %v", err)
	}
}
