package pgretrytest_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/lib/pq"

	"github.com/pgretry/pgretry"
	"github.com/pgretry/pgretry/internal/pgserver/pgtest"
	"github.com/pgretry/pgretry/pgretrytest"
)

// fast makes attempts follow each other at once.
var fast = pgretry.WithPolicy(pgretry.Policy{BaseDelay: time.Microsecond, MaxDelay: time.Microsecond})

func closedAtLast(t *testing.T, db *sql.DB) *sql.DB {
	t.Helper()
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

// open returns a database with two accounts in it whose transactions are aborted as the
// options say, and the connector that does it.
func open(t *testing.T, options ...pgretrytest.Option) (*sql.DB, *pgretrytest.Connector) {
	t.Helper()
	inner, err := pq.NewConnector(pgtest.DSN(t))
	if err != nil {
		t.Fatal(err)
	}
	aborting, err := pgretrytest.NewConnector(inner, options...)
	if err != nil {
		t.Fatal(err)
	}
	connector, err := pgretry.NewConnector(aborting, fast)
	if err != nil {
		t.Fatal(err)
	}
	db := closedAtLast(t, sql.OpenDB(connector))
	aborting.Pause()
	mustExec(t, db, `CREATE TABLE account (id int PRIMARY KEY, balance int NOT NULL)`)
	mustExec(t, db, `INSERT INTO account VALUES (1, 100), (2, 100)`)
	aborting.Resume()
	return db, aborting
}

type executor interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

func mustExec(t *testing.T, e executor, query string, args ...any) {
	t.Helper()
	if _, err := e.ExecContext(t.Context(), query, args...); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
}

const (
	takeOne = `UPDATE account SET balance = balance - 1 WHERE id = $1`
	giveOne = `UPDATE account SET balance = balance + 1 WHERE id = $1`
)

// move is two statements.
func move(ctx context.Context, tx *sql.Tx) error {
	if _, err := tx.ExecContext(ctx, takeOne, 1); err != nil {
		return err
	}
	_, err := tx.ExecContext(ctx, giveOne, 2)
	return err
}

// moved returns how much the second account has got.
func moved(t *testing.T, db *sql.DB) int {
	t.Helper()
	var n int
	if err := db.QueryRowContext(t.Context(), `SELECT balance - 100 FROM account WHERE id = 2`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestEachTransactionIsAbortedAtItsPointsAndThenGetsThrough(t *testing.T) {
	for name, test := range map[string]struct {
		options []pgretrytest.Option
		want    pgretrytest.Counts
	}{
		"nowhere":        {nil, pgretrytest.Counts{}},
		"at a statement": {[]pgretrytest.Option{pgretrytest.AtStatement(2)}, pgretrytest.Counts{Statements: 3}},
		"at COMMIT":      {[]pgretrytest.Option{pgretrytest.AtCommit()}, pgretrytest.Counts{Commits: 3}},
		"at several points": {
			[]pgretrytest.Option{pgretrytest.AtCommit(), pgretrytest.AtStatement(1), pgretrytest.AtStatement(1)},
			pgretrytest.Counts{Statements: 6, Commits: 3},
		},
		"too far": {[]pgretrytest.Option{pgretrytest.AtStatement(3)}, pgretrytest.Counts{}},
	} {
		for way, transaction := range map[string]func(t *testing.T, db *sql.DB) error{
			"RunInTx": func(t *testing.T, db *sql.DB) error { return pgretry.RunInTx(t.Context(), db, nil, move) },
			"replay": func(t *testing.T, db *sql.DB) error {
				tx, err := db.BeginTx(t.Context(), nil)
				if err != nil {
					return err
				}
				defer tx.Rollback()
				if err := move(t.Context(), tx); err != nil {
					return err
				}
				return tx.Commit()
			},
		} {
			t.Run(name+" by "+way, func(t *testing.T) {
				db, aborting := open(t, test.options...)
				for range 3 {
					if err := transaction(t, db); err != nil {
						t.Error(err)
					}
				}
				if got := aborting.Counts(); got != test.want {
					t.Errorf("aborted are %+v, want %+v", got, test.want)
				}
				aborting.Pause()
				if n := moved(t, db); n != 3 {
					t.Errorf("%d were moved in 3 transactions", n)
				}
			})
		}
	}
}

// Closures on many connections at once are told apart by their attempts.
func TestClosuresAtOnceAreEachAbortedOnce(t *testing.T) {
	const workers, rounds = 4, 5
	db, aborting := open(t, pgretrytest.AtStatement(1))
	var all sync.WaitGroup
	for range workers {
		all.Go(func() {
			for range rounds {
				err := pgretry.RunInTx(t.Context(), db, nil, func(ctx context.Context, tx *sql.Tx) error {
					_, err := tx.ExecContext(ctx, giveOne, 2)
					return err
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if got, want := aborting.Counts(), (pgretrytest.Counts{Statements: workers * rounds}); got != want {
		t.Errorf("aborted are %+v, want %+v", got, want)
	}
}

func TestTransactionIsHeldUpAsLongAsTheProbabilitySays(t *testing.T) {
	const rounds = 200
	db, aborting := open(t, pgretrytest.WithProbability(0.5), pgretrytest.WithSeed(1))
	for range rounds {
		if err := pgretry.RunInTx(t.Context(), db, nil, move); err != nil {
			t.Fatal(err)
		}
	}
	// One abort on average, with a variance of two.
	got := aborting.Counts()
	if n := got.Total(); n < rounds-60 || n > rounds+60 {
		t.Errorf("%d transactions were aborted %d times", rounds, n)
	}
	// Two of three calls are statements.
	if got.Commits < got.Total()/5 || got.Commits > got.Total()/2 {
		t.Errorf("aborted are %+v", got)
	}
	if got.Rows != 0 || got.Lone != 0 {
		t.Errorf("aborted are %+v", got)
	}
}

func TestWithCertaintyRetriesAreExhausted(t *testing.T) {
	db, aborting := open(t, pgretrytest.WithProbability(1), pgretrytest.WithSQLStates("40P01"), pgretrytest.WithoutCommit())
	err := pgretry.RunInTx(t.Context(), db, nil, move, pgretry.WithPolicy(pgretry.Policy{MaxAttempts: 3}))
	var server *pq.Error
	if !errors.Is(err, pgretry.ErrExhausted) || !errors.As(err, &server) || server.Code != "40P01" {
		t.Errorf("the error is %v", err)
	}
	if got := aborting.Counts(); got.Total() != 3 || got.Commits != 0 {
		t.Errorf("aborted are %+v", got)
	}
}

func TestRowsAndLoneStatementsAreAborted(t *testing.T) {
	db, aborting := open(t, pgretrytest.WithProbability(0.5), pgretrytest.WithLoneProbability(0.5))
	for range 20 {
		err := pgretry.RunInTx(t.Context(), db, nil, func(ctx context.Context, tx *sql.Tx) error {
			rows, err := tx.QueryContext(ctx, `SELECT id FROM account ORDER BY id`)
			if err != nil {
				return err
			}
			defer rows.Close()
			for rows.Next() {
			}
			return rows.Err()
		})
		if err != nil {
			t.Error(err)
		}
		if n := moved(t, db); n != 0 {
			t.Errorf("%d were moved", n)
		}
	}
	if got := aborting.Counts(); got.Rows == 0 || got.Lone == 0 {
		t.Errorf("aborted are %+v", got)
	}
}

// Before it executes a write again pgretry asks whether there are foreign tables. If that
// were aborted it would not dare.
func TestWhatPgretryAsksByItselfIsLeftAlone(t *testing.T) {
	const rounds = 50
	db, aborting := open(t, pgretrytest.WithLoneProbability(0.5))
	for range rounds {
		mustExec(t, db, giveOne, 2)
	}
	aborting.Pause()
	if n := moved(t, db); n != rounds || aborting.Counts().Lone == 0 {
		t.Errorf("%d of %d were moved, aborted are %+v", n, rounds, aborting.Counts())
	}
}

func TestSameSeedMeansSameAborts(t *testing.T) {
	var all [3][]int64
	for i, seed := range []uint64{5, 5, 6} {
		db, aborting := open(t, pgretrytest.WithProbability(0.5), pgretrytest.WithSeed(seed))
		for range 30 {
			if err := pgretry.RunInTx(t.Context(), db, nil, move); err != nil {
				t.Fatal(err)
			}
			all[i] = append(all[i], aborting.Counts().Total())
		}
	}
	if !slices.Equal(all[0], all[1]) || slices.Equal(all[0], all[2]) {
		t.Errorf("aborts are\n%v,\n%v and, with another seed,\n%v", all[0], all[1], all[2])
	}
}

func TestPausedConnectorLetsEverythingThrough(t *testing.T) {
	db, aborting := open(t, pgretrytest.WithProbability(1), pgretrytest.AtStatement(1), pgretrytest.WithLoneProbability(1))
	aborting.Pause()
	if err := pgretry.RunInTx(t.Context(), db, nil, move); err != nil {
		t.Error(err)
	}
	if got := aborting.Counts(); got != (pgretrytest.Counts{}) {
		t.Errorf("aborted are %+v", got)
	}
	aborting.Resume()
	if err := pgretry.RunInTx(t.Context(), db, nil, move, pgretry.WithMode(pgretry.ModeOff)); err == nil {
		t.Error("nothing is aborted any more")
	}
}

func TestDatabasesOpenedByNameAreAbortedAndCountedTogether(t *testing.T) {
	aborting := pgretrytest.WrapDriver(&pq.Driver{}, pgretrytest.AtStatement(2))
	name := fmt.Sprintf("postgres-aborting-%d", time.Now().UnixNano())
	sql.Register(name, pgretry.WrapDriver(aborting, fast))
	for range 2 {
		db, err := sql.Open(name, pgtest.DSN(t))
		if err != nil {
			t.Fatal(err)
		}
		closedAtLast(t, db)
		aborting.Pause()
		mustExec(t, db, `CREATE TABLE account (id int PRIMARY KEY, balance int NOT NULL)`)
		mustExec(t, db, `INSERT INTO account VALUES (1, 100), (2, 100)`)
		aborting.Resume()
		if err := pgretry.RunInTx(t.Context(), db, nil, move); err != nil {
			t.Error(err)
		}
		if n := moved(t, db); n != 1 {
			t.Errorf("%d were moved", n)
		}
	}
	if got, want := aborting.Counts(), (pgretrytest.Counts{Statements: 2}); got != want {
		t.Errorf("aborted are %+v, want %+v", got, want)
	}
}

func TestCopyPassesThrough(t *testing.T) {
	db, aborting := open(t, pgretrytest.AtCommit())
	err := pgretry.RunInTx(t.Context(), db, nil, func(ctx context.Context, tx *sql.Tx) error {
		stmt, err := tx.PrepareContext(ctx, `COPY account (id, balance) FROM STDIN`)
		if err != nil {
			return err
		}
		for id := 3; id < 6; id++ {
			if _, err := stmt.ExecContext(ctx, id, 0); err != nil {
				return err
			}
		}
		if _, err := stmt.ExecContext(ctx); err != nil {
			return err
		}
		return stmt.Close()
	})
	var n int
	if err != nil {
		t.Fatal(err)
	}
	if err := db.QueryRow(`SELECT count(*) FROM account`).Scan(&n); err != nil || n != 5 || aborting.Counts().Commits != 1 {
		t.Errorf("%d accounts, %v; aborted are %+v", n, err, aborting.Counts())
	}
}

func TestWrongOptionsAreErrors(t *testing.T) {
	inner, err := pq.NewConnector(pgtest.DSN(t))
	if err != nil {
		t.Fatal(err)
	}
	for name, options := range map[string][]pgretrytest.Option{
		"statement 0":                 {pgretrytest.AtStatement(0)},
		"less than nothing":           {pgretrytest.WithProbability(-0.1)},
		"more than certain":           {pgretrytest.WithLoneProbability(1.1)},
		"no SQLSTATE":                 {pgretrytest.WithSQLStates()},
		"a SQLSTATE nobody retries":   {pgretrytest.WithSQLStates("40001", "42601")},
		"COMMIT wanted and ruled out": {pgretrytest.AtCommit(), pgretrytest.WithoutCommit()},
		"nil":                         {nil},
	} {
		if _, err := pgretrytest.NewConnector(inner, options...); err == nil {
			t.Errorf("%s is no error of NewConnector", name)
		}
		if _, err := pgretrytest.WrapDriver(&pq.Driver{}, options...).OpenConnector(""); err == nil {
			t.Errorf("%s is no error of the driver", name)
		}
	}
	if _, err := pgretrytest.NewConnector(nil); err == nil {
		t.Error("no connector is no error")
	}
	if _, err := pgretrytest.WrapDriver(nil).OpenConnector(""); err == nil {
		t.Error("no driver is no error")
	}
}

// old is a driver from before connectors.
type old struct{ driver.Driver }

func TestDriverWithoutConnectorsIsWrappedAsWell(t *testing.T) {
	aborting := pgretrytest.WrapDriver(old{&pq.Driver{}}, pgretrytest.WithLoneProbability(1))
	conn, err := aborting.Open(pgtest.DSN(t))
	if err != nil {
		t.Fatal(err)
	}
	_, err = conn.(driver.ExecerContext).ExecContext(t.Context(), `SELECT 1`, nil)
	if pgretry.Classify(err, pgretry.PhaseStatement) != pgretry.ClassRetryable {
		t.Errorf("the error is %v", err)
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
}
