package abort_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/lib/pq"

	"github.com/pgretry/pgretry/internal/abort"
	"github.com/pgretry/pgretry/internal/drivertest/parity"
	"github.com/pgretry/pgretry/internal/pgserver/pgtest"
)

// open returns a database with one connection at most, with the table item in it.
func open(t *testing.T, options ...abort.Option) (*sql.DB, *abort.Connector) {
	t.Helper()
	inner, err := pq.NewConnector(pgtest.DSN(t))
	if err != nil {
		t.Fatal(err)
	}
	connector, err := abort.NewConnector(inner, options...)
	if err != nil {
		t.Fatal(err)
	}
	db := sql.OpenDB(connector)
	db.SetMaxOpenConns(1)
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	connector.Inject(false)
	mustExec(t, db, `CREATE TABLE item (n int)`)
	connector.Inject(true)
	return db, connector
}

type executor interface {
	Exec(query string, args ...any) (sql.Result, error)
}

func mustExec(t *testing.T, e executor, query string) {
	t.Helper()
	if _, err := e.Exec(query); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
}

func items(t *testing.T, db *sql.DB, connector *abort.Connector) int {
	t.Helper()
	connector.Inject(false)
	defer connector.Inject(true)
	var n int
	if err := db.QueryRow(`SELECT count(*) FROM item`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// isConflict says whether the error is one that this package makes the server raise.
func isConflict(err error) bool {
	serverError, ok := err.(*pq.Error) //nolint:errorlint // programs do it, so it has to be the error itself
	return ok && (serverError.Code == "40001" || serverError.Code == "40P01") && strings.Contains(serverError.Message, "injected")
}

func isAborted(err error) bool {
	serverError, ok := errors.AsType[*pq.Error](err)
	return ok && serverError.Code == "25P02"
}

func TestWithoutInjectionDatabaseSQLSeesTheInnerDriver(t *testing.T) {
	dsn := pgtest.DSN(t)
	parity.Run(t, parity.Opener{
		Raw: func(t *testing.T) *sql.DB {
			db, err := sql.Open("postgres", dsn)
			if err != nil {
				t.Fatal(err)
			}
			return db
		},
		Wrapped: func(t *testing.T) *sql.DB {
			inner, err := pq.NewConnector(dsn)
			if err != nil {
				t.Fatal(err)
			}
			connector, err := abort.NewConnector(inner)
			if err != nil {
				t.Fatal(err)
			}
			return sql.OpenDB(connector)
		},
		CopyIn: true,
	})
}

// steps are the calls that the transaction in the next test makes, with the kind
// of each. A step returns the error that the application would see.
var steps = []struct {
	kind abort.Kind
	name string
}{
	{abort.Exec, "exec"},
	{abort.Query, "query"},
	{abort.Next, "next"},
	{abort.Next, "next"},
	{abort.Close, "close"},
	{abort.Query, "query to the end"},
	{abort.Next, "next to the end"},
	{abort.Next, "end"},
	{abort.Prepare, "prepare"},
	{abort.StmtExec, "stmt exec"},
	{abort.StmtQuery, "stmt query"},
	{abort.Next, "stmt next"},
	{abort.Close, "stmt close"},
	{abort.Commit, "commit"},
}

// run makes the calls and returns the name of the one that failed, with its error.
// A transaction that fails before COMMIT is handed over for a look and rolled back.
func run(t *testing.T, db *sql.DB, failed func(*sql.Tx)) (string, error) {
	t.Helper()
	tx, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	step, err := statements(t, tx)
	if err != nil {
		failed(tx)
		if err := tx.Rollback(); err != nil {
			t.Errorf("rollback after a failed %s: %v", step, err)
		}
		return step, err
	}
	return "commit", tx.Commit()
}

func statements(t *testing.T, tx *sql.Tx) (string, error) {
	t.Helper()
	if _, err := tx.Exec(`INSERT INTO item VALUES ($1)`, 1); err != nil {
		return "exec", err
	}
	rows, err := tx.Query(`SELECT n FROM generate_series(1, 5) n`)
	if err != nil {
		return "query", err
	}
	for want := 1; want <= 2; want++ {
		var n int
		if !rows.Next() {
			return "next", errors.Join(rows.Err(), rows.Close())
		}
		if err := rows.Scan(&n); err != nil || n != want {
			t.Errorf("row %d, %v instead of %d", n, err, want)
		}
	}
	if err := rows.Close(); err != nil {
		return "close", err
	}
	if rows, err = tx.Query(`SELECT 1`); err != nil {
		return "query to the end", err
	}
	defer rows.Close()
	if !rows.Next() {
		return "next to the end", rows.Err()
	}
	if rows.Next() {
		t.Error("there is a second row")
	}
	if err := rows.Err(); err != nil {
		return "end", err
	}
	stmt, err := tx.Prepare(`INSERT INTO item VALUES ($1) RETURNING n`)
	if err != nil {
		return "prepare", err
	}
	defer func() {
		if err := stmt.Close(); err != nil {
			t.Error(err)
		}
	}()
	if _, err := stmt.Exec(2); err != nil {
		return "stmt exec", err
	}
	row, err := stmt.Query(3)
	if err != nil {
		return "stmt query", err
	}
	if !row.Next() {
		return "stmt next", errors.Join(row.Err(), row.Close())
	}
	return "stmt close", row.Close()
}

func TestExactlyTheCallAskedForFails(t *testing.T) {
	for i, want := range steps {
		t.Run(fmt.Sprintf("%d %s", i+1, want.name), func(t *testing.T) {
			db, connector := open(t, abort.WithAbortAt(2, i+1))
			for transaction := 1; transaction <= 3; transaction++ {
				looked := false
				step, err := run(t, db, func(tx *sql.Tx) {
					looked = true
					if _, err := tx.Exec(`SELECT 1`); !isAborted(err) {
						t.Errorf("the block is not aborted: a statement says %v", err)
					}
				})
				if transaction != 2 {
					if err != nil {
						t.Errorf("transaction %d: %s: %v", transaction, step, err)
					}
					continue
				}
				if unjoined := unjoin(err); step != want.name || !isConflict(unjoined) {
					t.Errorf("%s: %#v", step, err)
				}
				if looked == (want.kind == abort.Commit) {
					t.Errorf("failed before COMMIT: %v", looked)
				}
			}
			if n := items(t, db, connector); n != 2*3 {
				t.Errorf("%d rows of two transactions that insert 3", n)
			}
			if got := connector.Injected(); !maps.Equal(got, abort.Counts{want.kind: 1}) {
				t.Errorf("injected %v", got)
			}
		})
	}
}

// unjoin returns the only error in a join.
func unjoin(err error) error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok && len(joined.Unwrap()) == 1 {
		return joined.Unwrap()[0]
	}
	return err
}

func TestSavepointUndoesTheAbort(t *testing.T) {
	db, connector := open(t, abort.WithAbortAt(1, 3))
	tx, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	mustExec(t, tx, `INSERT INTO item VALUES (1)`)
	mustExec(t, tx, `SAVEPOINT here`)
	if _, err := tx.Exec(`INSERT INTO item VALUES (2)`); !isConflict(err) {
		t.Fatal(err)
	}
	mustExec(t, tx, `ROLLBACK TO here`)
	mustExec(t, tx, `INSERT INTO item VALUES (3)`)
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	if n := items(t, db, connector); n != 2 {
		t.Errorf("%d rows", n)
	}
}

func TestWhatCannotFailOnAServerDoesNot(t *testing.T) {
	db, _ := open(t, abort.WithProbability(1), abort.WithLoneProbability(1))
	tx, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(`SAVEPOINT here`); !isConflict(err) {
		t.Error(err)
	}
	if _, err := tx.Exec(`SELECT 1`); !isAborted(err) {
		t.Error(err)
	}
	if _, err := tx.Exec(`ROLLBACK TO here`); isConflict(err) || isAborted(err) {
		t.Error(err)
	}
	if err := tx.Rollback(); err != nil {
		t.Error(err)
	}
	for _, text := range []string{`BEGIN`, `COMMIT`, `BEGIN`, `ROLLBACK`} {
		mustExec(t, db, text)
	}
}

func TestBlockBegunByAStatementIsABlock(t *testing.T) {
	db, connector := open(t, abort.WithAbortAt(1, 2))
	mustExec(t, db, `BEGIN`)
	mustExec(t, db, `INSERT INTO item VALUES (1)`)
	if _, err := db.Exec(`INSERT INTO item VALUES (2)`); !isConflict(err) {
		t.Error(err)
	}
	mustExec(t, db, `COMMIT`)
	mustExec(t, db, `INSERT INTO item VALUES (3)`)
	if n := items(t, db, connector); n != 1 {
		t.Errorf("%d rows", n)
	}
}

func TestLoneStatementFailsBeforeItTookEffect(t *testing.T) {
	db, connector := open(t, abort.WithLoneProbability(1))
	if _, err := db.Exec(`INSERT INTO item VALUES (1)`); !isConflict(err) {
		t.Error(err)
	}
	if _, err := db.Exec(`INSERT INTO item VALUES ($1)`, 1); !isConflict(err) {
		t.Error(err)
	}
	var n int
	if err := db.QueryRow(`INSERT INTO item VALUES (1) RETURNING n`).Scan(&n); !isConflict(err) {
		t.Error(err)
	}
	stmt, err := db.Prepare(`INSERT INTO item VALUES (1)`)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stmt.Exec(); !isConflict(err) {
		t.Error(err)
	}
	if err := stmt.Close(); err != nil {
		t.Error(err)
	}
	if got := connector.Injected(); !maps.Equal(got, abort.Counts{abort.Lone: 4}) {
		t.Errorf("injected %v", got)
	}
	if n := items(t, db, connector); n != 0 {
		t.Errorf("%d rows", n)
	}
}

func TestInjectionCanBeSwitchedOff(t *testing.T) {
	db, connector := open(t, abort.WithProbability(1), abort.WithLoneProbability(1))
	connector.Inject(false)
	if step, err := run(t, db, func(*sql.Tx) {}); err != nil {
		t.Errorf("%s: %v", step, err)
	}
	connector.Inject(true)
	if step, err := run(t, db, func(*sql.Tx) {}); step != "exec" || !isConflict(err) {
		t.Errorf("%s: %v", step, err)
	}
}

// outcomes runs transactions one after the other and lists how they ended.
func outcomes(t *testing.T, seed uint64) (list []string, counts abort.Counts) {
	t.Helper()
	db, connector := open(t, abort.WithSeed(seed), abort.WithProbability(0.1))
	for range 40 {
		step, err := run(t, db, func(*sql.Tx) {})
		state := ""
		if serverError, ok := errors.AsType[*pq.Error](err); ok {
			state = string(serverError.Code)
		}
		list = append(list, step+state)
	}
	return list, connector.Injected()
}

func TestChoicesAreAFunctionOfTheSeed(t *testing.T) {
	first, counts := outcomes(t, 1)
	again, countsAgain := outcomes(t, 1)
	if !slices.Equal(first, again) || !maps.Equal(counts, countsAgain) {
		t.Errorf("the same seed gave\n%v and\n%v", first, again)
	}
	if other, _ := outcomes(t, 2); slices.Equal(first, other) {
		t.Error("another seed gave the same")
	}
	for _, state := range []string{"40001", "40P01"} {
		if !slices.ContainsFunc(first, func(s string) bool { return strings.HasSuffix(s, state) }) {
			t.Errorf("no %s among %v", state, first)
		}
	}
}

func TestConnectionsCanBeUsedAtOnce(t *testing.T) {
	db, connector := open(t, abort.WithProbability(0.05), abort.WithLoneProbability(0.5))
	db.SetMaxOpenConns(4)
	var all sync.WaitGroup
	var mu sync.Mutex
	committed, failed := 0, int64(0)
	for range 4 {
		all.Go(func() {
			for range 25 {
				step, err := run(t, db, func(*sql.Tx) {})
				mu.Lock()
				switch {
				case err == nil:
					committed++
				case isConflict(unjoin(err)):
					failed++
				default:
					t.Errorf("%s: %v", step, err)
				}
				mu.Unlock()
			}
		})
	}
	all.Wait()
	if committed == 0 || failed == 0 || connector.Injected().Total() != failed {
		t.Errorf("%d committed, %d failed, injected %v", committed, failed, connector.Injected())
	}
	if n := items(t, db, connector); n != committed*3 {
		t.Errorf("%d rows of %d transactions that insert 3", n, committed)
	}
}

func TestWrongOptionsAreErrors(t *testing.T) {
	inner, err := pq.NewConnector(pgtest.DSN(t))
	if err != nil {
		t.Fatal(err)
	}
	for name, option := range map[string]abort.Option{
		"negative probability": abort.WithProbability(-0.1),
		"too likely":           abort.WithLoneProbability(1.1),
		"call 0":               abort.WithAbortAt(1, 0),
		"statement 0":          abort.WithStatementPoint(0),
		"no SQLSTATE":          abort.WithSQLStates(),
		"a warning":            abort.WithSQLStates("01000"),
		"a quote":              abort.WithSQLStates("4000'"),
	} {
		if _, err := abort.NewConnector(inner, option); err == nil {
			t.Errorf("%s is no error", name)
		}
	}
	if _, err := abort.NewConnector(inner, abort.WithCommitPoint(), abort.WithoutCommit()); err == nil {
		t.Error("COMMIT asked for and ruled out is no error")
	}
	if _, err := abort.NewConnector(nil); err == nil {
		t.Error("no connector is no error")
	}
}

// bare is a connector to connections without optional interfaces.
type bare struct{ driver.Connector }

func (b bare) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := b.Connector.Connect(ctx)
	return struct{ driver.Conn }{conn}, err
}

func TestConnectionWithoutOptionalInterfacesIsAbortedAsWell(t *testing.T) {
	inner, err := pq.NewConnector(pgtest.DSN(t))
	if err != nil {
		t.Fatal(err)
	}
	connector, err := abort.NewConnector(bare{inner}, abort.WithStatementPoint(2), abort.WithCommitPoint())
	if err != nil {
		t.Fatal(err)
	}
	db := sql.OpenDB(connector)
	defer db.Close()
	db.SetMaxOpenConns(1)
	connector.Inject(false)
	mustExec(t, db, `CREATE TABLE item (n int)`)
	connector.Inject(true)
	for _, want := range []string{"query", "commit", ""} {
		step, err := run(t, db, func(*sql.Tx) {})
		if want == "" && err != nil || want != "" && (step != want || !isConflict(unjoin(err))) {
			t.Errorf("%s: %v, want an abort at %q", step, err, want)
		}
	}
	if n := items(t, db, connector); n != 3 {
		t.Errorf("%d rows", n)
	}
}
