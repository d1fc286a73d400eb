package compat

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/pgretry/pgretry"
	"github.com/pgretry/pgretry/internal/abort"
	"github.com/pgretry/pgretry/internal/drivertest/parity"
	"github.com/pgretry/pgretry/internal/pgserver/pgtest"
	"github.com/pgretry/pgretry/pgretrytest"
)

var fast = pgretry.WithPolicy(pgretry.Policy{BaseDelay: time.Microsecond, MaxDelay: time.Microsecond})

// openAborting opens a database over pgx with two accounts in it, whose transactions
// are aborted as the options say.
func openAborting(t *testing.T, options ...pgretrytest.Option) (*sql.DB, *pgretrytest.Connector) {
	t.Helper()
	aborting, err := pgretrytest.NewConnector(stdlib.GetConnector(pgxConfig(t, pgtest.DSN(t))), options...)
	if err != nil {
		t.Fatal(err)
	}
	connector, err := pgretry.NewConnector(aborting, fast)
	if err != nil {
		t.Fatal(err)
	}
	db := closedAtLast(t, sql.OpenDB(connector))
	aborting.Pause()
	for _, statement := range []string{accounts, `INSERT INTO account VALUES (1, 100), (2, 100)`} {
		if _, err := db.Exec(statement); err != nil {
			t.Fatal(err)
		}
	}
	aborting.Resume()
	return db, aborting
}

func TestConnectorThatAbortsShowsPgx(t *testing.T) {
	dsn := pgtest.DSN(t)
	parity.Run(t, parity.Opener{
		Raw: func(t *testing.T) *sql.DB {
			return closedAtLast(t, sql.OpenDB(stdlib.GetConnector(pgxConfig(t, dsn))))
		},
		Wrapped: func(t *testing.T) *sql.DB {
			connector, err := abort.NewConnector(stdlib.GetConnector(pgxConfig(t, dsn)))
			if err != nil {
				t.Fatal(err)
			}
			return closedAtLast(t, sql.OpenDB(connector))
		},
	})
}

// readAndMove reads rows, half of them and all of them, and moves one from the first
// account to the second with a prepared statement.
func readAndMove(ctx context.Context, tx *sql.Tx) error {
	for _, wanted := range []int{1, 2} {
		if err := readSome(ctx, tx, wanted); err != nil {
			return err
		}
	}
	if _, err := tx.ExecContext(ctx, takeOne, 1); err != nil {
		return err
	}
	stmt, err := tx.PrepareContext(ctx, giveOne)
	if err != nil {
		return err
	}
	defer func() { _ = stmt.Close() }() // whatever it says was said before
	_, err = stmt.ExecContext(ctx, 2)
	return err
}

func readSome(ctx context.Context, tx *sql.Tx, wanted int) error {
	rows, err := tx.QueryContext(ctx, `SELECT id FROM account ORDER BY id`)
	if err != nil {
		return err
	}
	defer rows.Close()
	for id := 1; id <= wanted; id++ {
		var got int
		if !rows.Next() {
			return errors.Join(rows.Err(), fmt.Errorf("there is no account %d", id))
		}
		if err := rows.Scan(&got); err != nil || got != id {
			return errors.Join(err, fmt.Errorf("account %d instead of %d", got, id))
		}
	}
	return rows.Close()
}

func TestTransactionsOverPgxGetThroughAborts(t *testing.T) {
	const rounds = 60
	for way, transaction := range map[string]func(ctx context.Context, db *sql.DB) error{
		"RunInTx": func(ctx context.Context, db *sql.DB) error {
			return pgretry.RunInTx(ctx, db, nil, readAndMove)
		},
		"replay": func(ctx context.Context, db *sql.DB) error { return inTx(ctx, ctx, db) },
	} {
		t.Run(way, func(t *testing.T) {
			db, aborting := openAborting(t, pgretrytest.WithProbability(0.5), pgretrytest.WithLoneProbability(0.5))
			for range rounds {
				if err := transaction(t.Context(), db); err != nil {
					t.Error(err)
				}
				if _, err := db.ExecContext(t.Context(), takeOne, 2); err != nil {
					t.Error(err)
				}
			}
			if got := aborting.Counts(); got.Statements == 0 || got.Rows == 0 || got.Commits == 0 || got.Lone == 0 {
				t.Errorf("aborted are %+v", got)
			}
			aborting.Pause()
			var a, b int
			if err := db.QueryRow(`SELECT max(balance) FILTER (WHERE id = 1), max(balance) FILTER (WHERE id = 2) FROM account`).Scan(&a, &b); err != nil || a != 100-rounds || b != 100 {
				t.Errorf("balances are %d and %d, %v", a, b, err)
			}
		})
	}
}

// inTx runs the transaction without a closure.
func inTx(ctx, begin context.Context, db *sql.DB) error {
	tx, err := db.BeginTx(begin, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if err := readAndMove(ctx, tx); err != nil {
		return err
	}
	return tx.Commit()
}

func TestAbortsOverPgxComeAtTheirPointsWithPgxsErrors(t *testing.T) {
	db, aborting := openAborting(t, pgretrytest.AtStatement(4), pgretrytest.AtCommit(), pgretrytest.AtStatement(1), pgretrytest.WithSQLStates("40P01"))
	for attempt, want := range []pgretrytest.Counts{
		{Statements: 1}, {Statements: 1, Commits: 1}, {Statements: 2, Commits: 1}, {Statements: 2, Commits: 1},
	} {
		err := inTx(t.Context(), pgretry.ContextWithoutReplay(t.Context()), db)
		if last := attempt == 3; last != (err == nil) {
			t.Errorf("attempt %d gives %v", attempt+1, err)
		}
		if pgErr, ok := err.(*pgconn.PgError); err != nil && (!ok || pgErr.Code != "40P01") { //nolint:errorlint // it has to be the error itself
			t.Errorf("attempt %d gives %#v", attempt+1, err)
		}
		if got := aborting.Counts(); got != want {
			t.Errorf("after attempt %d aborted are %+v, want %+v", attempt+1, got, want)
		}
	}
}

func TestPgxsDriverIsAbortedByItsName(t *testing.T) {
	aborting := pgretrytest.WrapDriver(stdlib.GetDefaultDriver(), pgretrytest.AtCommit())
	name := fmt.Sprintf("pgx-aborting-%d", time.Now().UnixNano())
	sql.Register(name, pgretry.WrapDriver(aborting, fast))
	db, err := sql.Open(name, pgtest.DSN(t))
	if err != nil {
		t.Fatal(err)
	}
	closedAtLast(t, db)
	err = pgretry.RunInTx(t.Context(), db, nil, func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `CREATE TABLE made (n int)`)
		return err
	})
	if err != nil || aborting.Counts() != (pgretrytest.Counts{Commits: 1}) {
		t.Errorf("RunInTx gives %v, aborted are %+v", err, aborting.Counts())
	}
}
