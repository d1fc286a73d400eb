package compat

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/trace"

	"github.com/pgretry/pgretry"
	"github.com/pgretry/pgretry/internal/pgserver/pgtest"
)

// bothWays runs a test with pgx inside, without and with otelsql in the path.
func bothWays(t *testing.T, test func(t *testing.T, db *sql.DB)) {
	t.Helper()
	for name, options := range map[string][]pgretry.Option{
		"plain": nil,
		"otelsql": {
			pgretry.WithStatementSpans(),
			pgretry.WithTracerProvider(trace.NewTracerProvider()),
			pgretry.WithMeterProvider(metric.NewMeterProvider()),
		},
	} {
		t.Run(name, func(t *testing.T) {
			db := closedAtLast(t, openPgx(t, pgtest.DSN(t), options...))
			execAll(t, db, accounts, `INSERT INTO account VALUES (1, 100), (2, 100)`)
			test(t, db)
		})
	}
}

func execAll(t *testing.T, db *sql.DB, statements ...string) {
	t.Helper()
	for _, statement := range statements {
		if _, err := db.Exec(statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
}

func wantBalance(t *testing.T, db *sql.DB, id, want int) {
	t.Helper()
	var balance int
	if err := db.QueryRow(`SELECT balance FROM account WHERE id = $1`, id).Scan(&balance); err != nil || balance != want {
		t.Errorf("the balance of account %d is %d, want %d, %v", id, balance, want, err)
	}
}

func wantRetries(t *testing.T, db *sql.DB, sqlState string, want int64) {
	t.Helper()
	stats, err := pgretry.StatsOf(db)
	if err != nil || stats.RetriesBySQLState[sqlState] != want || stats.Retries != want {
		t.Errorf("stats are %+v, %v, want %d retries because of %q", stats, err, want, sqlState)
	}
}

func TestAStatementThatCannotBeSerializedIsRetriedWithPgx(t *testing.T) {
	bothWays(t, func(t *testing.T, db *sql.DB) {
		runs := 0
		err := pgretry.RunInTx(t.Context(), db, &sql.TxOptions{Isolation: sql.LevelRepeatableRead}, func(ctx context.Context, tx *sql.Tx) error {
			runs++
			var balance int
			if err := tx.QueryRowContext(ctx, `SELECT balance FROM account WHERE id = 1`).Scan(&balance); err != nil {
				return err
			}
			if runs == 1 {
				// Another session, hence without the closure's context, changes what
				// the snapshot shows as it was.
				if _, err := db.Exec(takeOne, 1); err != nil {
					return err
				}
			}
			_, err := tx.ExecContext(ctx, `UPDATE account SET balance = $1 WHERE id = 1`, balance*2)
			return err
		})
		if err != nil || runs != 2 {
			t.Errorf("RunInTx gives %v after %d runs", err, runs)
		}
		wantBalance(t, db, 1, 198)
		wantRetries(t, db, "40001", 1)
	})
}

func TestAConflictOfADeferredTriggerAtCommitIsRetriedWithPgx(t *testing.T) {
	bothWays(t, func(t *testing.T, db *sql.DB) {
		execAll(t, db,
			`CREATE SEQUENCE tries`,
			`CREATE FUNCTION conflict_once() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
				IF nextval('tries') = 1 THEN RAISE EXCEPTION 'scripted' USING ERRCODE = '40001'; END IF;
				RETURN NULL;
			END $$`,
			`CREATE CONSTRAINT TRIGGER late AFTER UPDATE ON account DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION conflict_once()`)
		statements := 0
		err := pgretry.RunInTx(t.Context(), db, nil, func(ctx context.Context, tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, takeOne, 1)
			if err == nil {
				statements++ // so that it is COMMIT that fails
			}
			return err
		})
		if err != nil || statements != 2 {
			t.Errorf("RunInTx gives %v after %d statements", err, statements)
		}
		wantBalance(t, db, 1, 99)
		wantRetries(t, db, "40001", 1)
	})
}

// pgx makes an error of its own when the server answers COMMIT with ROLLBACK. It
// leads to no SQLSTATE, so what the driver saw before must tell whether the
// transaction is run again.
func TestACommitThatPgxFindsRolledBackIsRetriedOnlyAfterAConflict(t *testing.T) {
	const raise = `DO $$ BEGIN RAISE EXCEPTION 'scripted' USING ERRCODE = '%s'; END $$`
	bothWays(t, func(t *testing.T, db *sql.DB) {
		swallow := func(sqlState string, conflicts int) (runs int, err error) {
			err = pgretry.RunInTx(t.Context(), db, nil, func(ctx context.Context, tx *sql.Tx) error {
				if runs++; runs > conflicts {
					return nil
				}
				if _, err := tx.ExecContext(ctx, fmt.Sprintf(raise, sqlState)); err == nil {
					t.Error("nothing to swallow")
				}
				return nil
			})
			return runs, err
		}
		if runs, err := swallow("40001", 1); err != nil || runs != 2 {
			t.Errorf("after a conflict RunInTx gives %v after %d runs", err, runs)
		}
		if runs, err := swallow("23505", 1); !errors.Is(err, pgx.ErrTxCommitRollback) || runs != 1 {
			t.Errorf("after another error RunInTx gives %v after %d runs", err, runs)
		}
	})
}

func TestACommitOverATerminatedConnectionIsRunAgainWithPgx(t *testing.T) {
	bothWays(t, func(t *testing.T, db *sql.DB) {
		runs := 0
		err := pgretry.RunInTx(t.Context(), db, nil, func(ctx context.Context, tx *sql.Tx) error {
			var pid int
			if err := tx.QueryRowContext(ctx, `SELECT pg_backend_pid()`).Scan(&pid); err != nil {
				return err
			}
			if runs++; runs > 1 {
				return nil // it has read, and nothing else: there is no doubt
			}
			var gone bool
			if err := db.QueryRow(`SELECT pg_terminate_backend($1, 10000)`, pid).Scan(&gone); err != nil || !gone {
				return fmt.Errorf("backend %d is still there: %w", pid, err)
			}
			return nil
		})
		if err != nil || runs != 2 {
			t.Errorf("RunInTx gives %v after %d runs", err, runs)
		}
	})
}

func TestACancelledStatementIsNotRunAgainWithPgx(t *testing.T) {
	bothWays(t, func(t *testing.T, db *sql.DB) {
		holder, err := db.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer holder.Rollback()
		if _, err := holder.Exec(takeOne, 1); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		pids, done := make(chan int, 1), make(chan error, 1)
		go func() {
			done <- pgretry.RunInTx(ctx, db, nil, func(ctx context.Context, tx *sql.Tx) error {
				var pid int
				if err := tx.QueryRowContext(ctx, `SELECT pg_backend_pid()`).Scan(&pid); err != nil {
					return err
				}
				pids <- pid // a second run would hang here
				_, err := tx.ExecContext(ctx, takeOne, 1)
				return err
			})
		}()
		var pid int
		select {
		case pid = <-pids:
		case err := <-done:
			t.Fatalf("RunInTx ends before it waits for the account: %v", err)
		}
		for waiting := false; !waiting; {
			if err := holder.QueryRow(`SELECT count(*) > 0 FROM pg_locks WHERE pid = $1 AND NOT granted`, pid).Scan(&waiting); err != nil {
				t.Fatal(err)
			}
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("RunInTx gives %v", err)
		}
		if err := holder.Commit(); err != nil {
			t.Error(err)
		}
		wantBalance(t, db, 1, 99)
		wantRetries(t, db, "", 0)
	})
}

func TestAConflictThatGoesOnLeadsToPgxsErrorWithItsFields(t *testing.T) {
	bothWays(t, func(t *testing.T, db *sql.DB) {
		err := pgretry.Retry(t.Context(), func(ctx context.Context) error {
			tx, err := db.BeginTx(ctx, nil)
			if err != nil {
				return err
			}
			defer tx.Rollback()
			_, err = tx.ExecContext(ctx, `DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '40P01', DETAIL = 'the detail'; END $$`)
			return err
		}, pgretry.WithPolicy(pgretry.Policy{MaxAttempts: 3, BaseDelay: 1}))
		var pgErr *pgconn.PgError
		var retry *pgretry.RetryError
		if !errors.As(err, &retry) || retry.Attempts != 3 || !errors.Is(err, pgretry.ErrExhausted) || retry.SQLState() != "40P01" {
			t.Errorf("the error is %v", err)
		}
		if !errors.As(err, &pgErr) || pgErr.Code != "40P01" || pgErr.Detail != "the detail" || pgErr.Severity != "ERROR" {
			t.Errorf("pgx's error is %+v", pgErr)
		}
	})
}
