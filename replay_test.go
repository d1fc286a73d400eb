package pgretry

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lib/pq"

	"github.com/pgretry/pgretry/internal/drivertest"
)

// newFixtureOver is newFixture over a scripted driver of another shape.
func newFixtureOver(t *testing.T, d *drivertest.Driver, options ...Option) *fixture {
	t.Helper()
	f := newFixture(t)
	if err := f.db.Close(); err != nil {
		t.Fatal(err)
	}
	connector, err := NewConnector(d.Connector(), withPins(options)...)
	if err != nil {
		t.Fatal(err)
	}
	f.use(d, connector)
	return f
}

// use puts another connector in the place of the fixture's, with the same clock.
func (f *fixture) use(d *drivertest.Driver, connector *Connector) {
	old := f.connector.config
	connector.config.random, connector.config.now, connector.config.wait = old.random, old.now, old.wait
	known := f.Driver == d
	f.Driver, f.connector, f.db = d, connector, sql.OpenDB(connector)
	if !known {
		f.alone()
	}
}

var (
	commandsWithoutCount = regexp.MustCompile(`^(SAVEPOINT|RELEASE|ROLLBACK|SET|COPY)`)
	commandsInside       = regexp.MustCompile(`^UPDATE inner`)
)

// asksAroundOnly are the driver's own questions.
var asksAroundOnly = regexp.MustCompile(`pg_foreign_table|pg_catalog\.(pg_locks|txid)|SHOW (default_)?transaction_isolation`)

// likePostgres makes the scripted driver answer as a server without foreign tables,
// whose commands other than DML affect no rows.
func (f *fixture) likePostgres() *fixture {
	f.alone()
	f.Rows("pg_foreign_table", drivertest.ResultSet{Columns: drivertest.Columns("yes")})
	f.Rows("pg_catalog.version()", drivertest.ResultSet{Columns: drivertest.Columns("version"), Rows: [][]driver.Value{{"PostgreSQL 15.18 (Debian 15.18-0+deb12u1) on x86_64-pc-linux-gnu"}}})
	f.On(drivertest.AnyExec).MatchingRegexp(commandsWithoutCount).Result(driver.RowsAffected(0))
	return f
}

// holdsNothingWhileWaiting lets the test fail if a wait begins before all is let go.
func (f *fixture) holdsNothingWhileWaiting() *fixture {
	f.onWait = func() {
		if f.OpenTxs() != 0 || f.OpenRows() != 0 {
			f.t.Errorf("while waiting %d transactions and %d cursors are open", f.OpenTxs(), f.OpenRows())
		}
	}
	return f
}

// stats returns the statistics of the fixture's database.
func (f *fixture) stats() Stats {
	f.t.Helper()
	s, err := StatsOf(f.db)
	if err != nil {
		f.t.Fatal(err)
	}
	return s
}

// spot is a call into the driver: the n-th of its kind in an attempt, from 1, for
// a statement with the text in it.
type spot struct {
	name  string
	calls drivertest.Call
	text  string
	n     int // 0 means 1
}

// strike is an error at a spot in one attempt, or in all if that is 0.
type strike struct {
	spot
	attempt int
	err     error
}

// strikes makes calls of transactions fail.
func (f *fixture) strikes(all ...strike) {
	var mu sync.Mutex
	begins, seen := 0, make([]int, len(all))
	f.On(drivertest.AnyCall).Do(func(inv *drivertest.Invocation) error {
		mu.Lock()
		defer mu.Unlock()
		if inv.Call == drivertest.Begin {
			begins++
			clear(seen)
		}
		for i, s := range all {
			if s.calls&inv.Call == 0 || !strings.Contains(inv.Query, s.text) || s.attempt != 0 && s.attempt != begins {
				continue
			}
			if seen[i]++; seen[i] == max(1, s.n) {
				return s.err
			}
		}
		return nil
	})
}

// attempts returns what the server was asked to do in transactions, one list for
// each BEGIN. Whether a statement went prepared or by its text is left out.
func (f *fixture) attempts() (all [][]string) {
	for _, e := range f.Entries() {
		what := ""
		switch {
		case e.Err == driver.ErrSkip, asksAroundOnly.MatchString(e.Query): //nolint:errorlint // drivers must return it bare
			continue
		case e.Call == drivertest.Begin:
			all = append(all, nil)
			what = fmt.Sprintf("BEGIN level %d, read-only %t, for %s", e.Options.Isolation, e.Options.ReadOnly, e.Label)
		case len(all) == 0:
			continue
		case e.Call&drivertest.AnyStatement != 0:
			what = e.Query
			for _, a := range e.Args {
				what += fmt.Sprintf(" %T(%v)", a.Value, a.Value)
			}
		case e.Call == drivertest.Commit, e.Call == drivertest.Rollback:
			what = strings.ToUpper(e.Call.String())
		default:
			continue
		}
		if e.Err != nil && e.Call&drivertest.AnyStatement == 0 {
			what += " failed"
		}
		all[len(all)-1] = append(all[len(all)-1], what)
	}
	return all
}

// fetch reads rows, at most n unless that is negative, and closes them.
func fetch(rows *sql.Rows, n int) (saw []string, err error) {
	columns, err := rows.Columns()
	if err != nil {
		return nil, errors.Join(err, rows.Close())
	}
	for ; n != 0 && rows.Next(); n-- {
		cells := make([]any, len(columns))
		targets := make([]any, len(columns))
		for i := range cells {
			targets[i] = &cells[i]
		}
		if err := rows.Scan(targets...); err != nil {
			return saw, errors.Join(err, rows.Close())
		}
		saw = append(saw, fmt.Sprintf("%#v", cells))
	}
	if err := rows.Err(); err != nil {
		return saw, errors.Join(err, rows.Close())
	}
	return saw, rows.Close()
}

// five is a result of as many rows, no two of which are alike.
var five = drivertest.ResultSet{
	Columns: []drivertest.Column{{Name: "n", DatabaseType: "INT8"}, {Name: "s", DatabaseType: "TEXT"}},
	Rows:    [][]driver.Value{{int64(1), "a"}, {int64(2), nil}, {int64(3), ""}, {int64(0), "d"}, {int64(5), []byte("e")}},
}

// teller is a transaction that uses database/sql in every way there is. It returns
// all that it was shown. closing means that prepared statements are closed as soon as
// they were used.
func teller(ctx context.Context, db *sql.DB, opts *sql.TxOptions, closing bool) (saw []string, err error) {
	ofDB, err := db.PrepareContext(ctx, "UPDATE of_database SET a = $1")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, ofDB.Close()) }()
	tx, err := db.BeginTx(drivertest.WithLabel(ctx, "the teller"), opts)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, tx.Rollback())
		}
	}()
	note := func(what string, shown any) { saw = append(saw, fmt.Sprintf("%s: %v", what, shown)) }
	exec := func(what string, result sql.Result, err error) error {
		if err != nil {
			return err
		}
		n, err := result.RowsAffected()
		note(what, n)
		return err
	}
	read := func(what string, rows *sql.Rows, err error, n int) error {
		if err != nil {
			return err
		}
		cells, err := fetch(rows, n)
		note(what, cells)
		return err
	}

	result, err := tx.ExecContext(ctx, "UPDATE first SET a = $1, b = $2", "x", []byte{1, 2})
	if err := exec("first", result, err); err != nil {
		return nil, err
	}
	bound := tx.StmtContext(ctx, ofDB)
	result, err = bound.ExecContext(ctx, 7)
	if err := exec("of the database", result, err); err != nil {
		return nil, err
	}
	if closing {
		if err := errors.Join(bound.Close(), ofDB.Close()); err != nil {
			return nil, err
		}
	}
	ofTx, err := tx.PrepareContext(ctx, "SELECT of_transaction WHERE a < $1")
	if err != nil {
		return nil, err
	}
	rows, err := ofTx.QueryContext(ctx, 2.5) //nolint:sqlclosecheck // read closes them
	if err := read("of the transaction", rows, err, -1); err != nil {
		return nil, err
	}
	if closing {
		if err := ofTx.Close(); err != nil {
			return nil, err
		}
	}
	rows, err = tx.QueryContext(ctx, "SELECT middle WHERE a > $1", time.Unix(7, 0).UTC())
	if err := read("middle", rows, err, -1); err != nil {
		return nil, err
	}
	rows, err = tx.QueryContext(ctx, "SELECT half")
	if err := read("half", rows, err, 2); err != nil {
		return nil, err
	}
	var n int
	if err := tx.QueryRowContext(ctx, "SELECT row").Scan(&n); err != nil {
		return nil, err
	}
	note("row", n)
	result, err = tx.ExecContext(ctx, "UPDATE last SET a = $1", nil)
	if err := exec("last", result, err); err != nil {
		return nil, err
	}
	return saw, tx.Commit()
}

// tellersSpots are all the spots where a conflict can meet the teller.
var tellersSpots = []spot{
	{name: "first statement", calls: drivertest.AnyExec, text: "first"},
	{name: "statement of the database", calls: drivertest.StmtExec, text: "of_database"},
	{name: "preparing", calls: drivertest.Prepare, text: "of_transaction"},
	{name: "prepared query", calls: drivertest.StmtQuery, text: "of_transaction"},
	{name: "first row of a prepared query", calls: drivertest.RowsNext, text: "of_transaction"},
	{name: "third row of a prepared query", calls: drivertest.RowsNext, text: "of_transaction", n: 3},
	{name: "query", calls: drivertest.AnyQuery, text: "middle"},
	{name: "first row", calls: drivertest.RowsNext, text: "middle"},
	{name: "fourth row", calls: drivertest.RowsNext, text: "middle", n: 4},
	{name: "end of the rows", calls: drivertest.RowsNext, text: "middle", n: 6},
	{name: "closing rows", calls: drivertest.RowsClose, text: "middle"},
	{name: "second row of some", calls: drivertest.RowsNext, text: "half", n: 2},
	{name: "closing rows that were not read to their end", calls: drivertest.RowsClose, text: "half"},
	{name: "QueryRow", calls: drivertest.AnyQuery, text: "row"},
	{name: "scanning QueryRow", calls: drivertest.RowsNext, text: "row"},
	{name: "closing QueryRow", calls: drivertest.RowsClose, text: "row"},
	{name: "last statement", calls: drivertest.AnyExec, text: "last"},
	{name: "COMMIT", calls: drivertest.Commit},
}

// until returns what the server is asked to do in an attempt that ends at the spot,
// given what it is asked in one that ends well.
func (p spot) until(t *testing.T, whole []string) []string {
	t.Helper()
	switch p.calls {
	case drivertest.Begin:
		return []string{whole[0] + " failed"}
	case drivertest.Commit:
		return append(slices.Clone(whole[:len(whole)-1]), "COMMIT failed")
	}
	end := slices.IndexFunc(whole, func(s string) bool { return strings.Contains(s, " "+p.text) })
	if end < 0 {
		t.Fatalf("%s is not in %v", p.text, whole)
	}
	if p.calls != drivertest.Prepare {
		end++
	}
	return append(slices.Clone(whole[:end]), "ROLLBACK")
}

// shapes are inner drivers, and what may be around them.
var shapes = []struct {
	name     string
	features drivertest.Features
	skips    bool // statements go by their text only if they are asked twice
	otelsql  bool
}{
	{name: "lib/pq", features: drivertest.LibPQ},
	{name: "lib/pq inside otelsql", features: drivertest.LibPQ, otelsql: true},
	{name: "pgx", features: drivertest.PGX},
	{name: "no more than BeginTx", features: drivertest.ConnBeginTx},
	{name: "no more than BeginTx inside otelsql", features: drivertest.ConnBeginTx, otelsql: true},
	{name: "statements that have to be prepared", features: drivertest.LibPQ, skips: true},
}

// newShape is a fixture over an inner driver of that shape, with one connection.
func newShape(t *testing.T, shape int, driverOptions []drivertest.Option, options ...Option) *fixture {
	s := shapes[shape]
	if s.otelsql {
		options = append(options, WithTracerProvider(newObservatory(t).tracers))
	}
	driverOptions = append([]drivertest.Option{
		drivertest.WithFeatures(s.features), drivertest.WithTransactionState(pq.ErrInFailedTransaction), drivertest.WithSharedBuffers(),
	}, driverOptions...)
	f := newFixtureOver(t, drivertest.New(driverOptions...), options...).likePostgres()
	f.db.SetMaxOpenConns(1)
	return f
}

// tellersBank is a database for the teller.
func tellersBank(t *testing.T, shape int, options ...Option) *fixture {
	s := shapes[shape]
	f := newShape(t, shape, []drivertest.Option{drivertest.WithOneCursor()}, options...).holdsNothingWhileWaiting()
	for _, text := range []string{"of_transaction", "middle", "half"} {
		f.Rows(text, five)
	}
	f.Affected("first", 3)
	if s.skips {
		f.Fail(drivertest.Exec|drivertest.Query, driver.ErrSkip)
	}
	return f
}

// undisturbed returns what the teller sees and what the server is asked when there
// are no conflicts.
func undisturbed(t *testing.T, opts *sql.TxOptions) (saw, asked []string) {
	t.Helper()
	f := tellersBank(t, 0)
	saw, err := teller(t.Context(), f.db, opts, false)
	if err != nil || len(f.attempts()) != 1 {
		t.Fatalf("the teller gives %v", err)
	}
	return saw, f.attempts()[0]
}

func TestAConflictAnywhereIsNotSeenByTheApplication(t *testing.T) {
	for _, level := range []sql.IsolationLevel{sql.LevelReadCommitted, sql.LevelRepeatableRead, sql.LevelSerializable} {
		opts := &sql.TxOptions{Isolation: level, ReadOnly: true}
		want, whole := undisturbed(t, opts)
		for i, shape := range shapes {
			for _, closing := range []bool{false, true} {
				for _, p := range tellersSpots {
					for _, code := range []string{"40001", "40P01"} {
						t.Run(fmt.Sprintf("%s/%s/closing %t/%s/%s", level, shape.name, closing, p.name, code), func(t *testing.T) {
							f := tellersBank(t, i)
							f.strikes(strike{p, 1, serverErr(code)})
							saw, err := teller(t.Context(), f.db, opts, closing)
							if err != nil || !slices.Equal(saw, want) {
								t.Errorf("the application gets %v and sees\n%v, want\n%v", err, saw, want)
							}
							if got, want := f.attempts(), [][]string{p.until(t, whole), whole}; !slices.EqualFunc(got, want, slices.Equal) {
								t.Errorf("the server is asked\n%v, want\n%v", got, want)
							}
							if !slices.Equal(f.waits, []time.Duration{10 * time.Millisecond}) || f.OpenStmts() != 0 {
								t.Errorf("waited %v, %d statements are left open", f.waits, f.OpenStmts())
							}
							if s := f.stats(); s.Hidden != 1 || s.HiddenBySQLState[code] != 1 || s.Replays != 1 || s.Plain != 1 || s.Protected != 1 || s.PlainConflicts != 0 || s.Attempts != 2 || s.Committed != 1 {
								t.Errorf("stats are %+v", s)
							}
						})
					}
				}
			}
		}
	}
}

func TestASecondConflictDuringTheReplayIsNotSeenEither(t *testing.T) {
	opts := &sql.TxOptions{Isolation: sql.LevelSerializable}
	want, whole := undisturbed(t, opts)
	again := append([]spot{{name: "BEGIN", calls: drivertest.Begin}}, tellersSpots...)
	for i, shape := range shapes {
		for _, first := range tellersSpots {
			for _, second := range again {
				t.Run(shape.name+"/"+first.name+"/"+second.name, func(t *testing.T) {
					f := tellersBank(t, i)
					f.strikes(strike{first, 1, serverErr("40001")}, strike{second, 2, serverErr("40P01")})
					saw, err := teller(t.Context(), f.db, opts, true)
					if err != nil || !slices.Equal(saw, want) {
						t.Errorf("the application gets %v and sees\n%v, want\n%v", err, saw, want)
					}
					if got, want := f.attempts(), [][]string{first.until(t, whole), second.until(t, whole), whole}; !slices.EqualFunc(got, want, slices.Equal) {
						t.Errorf("the server is asked\n%v, want\n%v", got, want)
					}
					if !slices.Equal(f.waits, []time.Duration{10 * time.Millisecond, 20 * time.Millisecond}) {
						t.Errorf("waited %v", f.waits)
					}
				})
			}
		}
	}
}

func TestOnlyWhatTheServerRolledBackIsReplayed(t *testing.T) {
	for _, code := range []string{"23505", "55P03", "57014", "25P02", "40002", "40003", "XX000", "08006"} {
		for _, p := range []spot{{calls: drivertest.Exec, text: "first"}, {calls: drivertest.RowsNext, text: "middle", n: 2}, {calls: drivertest.Commit}} {
			f := tellersBank(t, 0)
			failure := serverErr(code)
			f.strikes(strike{p, 0, failure})
			_, err := teller(t.Context(), f.db, nil, false)
			var server *drivertest.Error
			if !errors.As(err, &server) || server != failure || len(f.attempts()) != 1 || len(f.waits) != 0 { //nolint:errorlint // the very same
				t.Errorf("%s at %s: the application gets %v after %d attempts", code, p.calls, err, len(f.attempts()))
			}
		}
	}
}

func TestErrorsThatAreNoConflictsAreTheVerySame(t *testing.T) {
	for _, failure := range []error{serverErr("23505"), serverErr("25P02"), errors.New("no"), fmt.Errorf("wrapped: %w", serverErr("22012"))} {
		for _, call := range []drivertest.Call{drivertest.Exec, drivertest.Query, drivertest.Prepare, drivertest.RowsNext, drivertest.RowsClose, drivertest.StmtExec, drivertest.Commit} {
			if call == drivertest.Commit && sqlState(failure) == "" {
				continue // nobody knows what it means for COMMIT
			}
			f := newFixture(t)
			f.Fail(call, failure)
			err := func() error {
				tx, err := f.db.BeginTx(t.Context(), nil)
				if err != nil {
					return err
				}
				defer func() { _ = tx.Rollback() }()
				if _, err := tx.ExecContext(t.Context(), "UPDATE"); err != nil {
					return err
				}
				s, err := tx.PrepareContext(t.Context(), "UPDATE")
				if err != nil {
					return err
				}
				if _, err := s.ExecContext(t.Context()); err != nil {
					return err
				}
				rows, err := tx.QueryContext(t.Context(), "SELECT")
				if err != nil {
					return err
				}
				rows.Next()
				if err := rows.Err(); err != nil {
					return err
				}
				if err := rows.Close(); err != nil {
					return err
				}
				return tx.Commit()
			}()
			if err != failure { //nolint:errorlint // the very same
				t.Errorf("%s: the application gets %v, want %v", call, err, failure)
			}
		}
	}
}

func TestWhatTheUserAsksForIsReplayedFourTimes(t *testing.T) {
	f := tellersBank(t, 0, WithAlsoRetry("55P03"))
	f.strikes(strike{spot{calls: drivertest.Exec, text: "last"}, 0, serverErr("55P03")})
	_, err := teller(t.Context(), f.db, nil, false)
	if sqlState(err) != "55P03" || len(f.attempts()) != 5 {
		t.Errorf("the application gets %v after %d attempts", err, len(f.attempts()))
	}
	f = tellersBank(t, 0, WithAlsoRetry("55P03"))
	f.strikes(strike{spot{calls: drivertest.Exec, text: "last"}, 1, serverErr("55P03")})
	if _, err := teller(t.Context(), f.db, nil, false); err != nil {
		t.Error(err)
	}
}

func TestTransactionsAreReplayedOnTheirOwnConnectionByBeginTx(t *testing.T) {
	f := tellersBank(t, 0)
	f.strikes(strike{spot{calls: drivertest.Commit}, 1, serverErr("40001")}, strike{spot{calls: drivertest.Exec, text: "first"}, 2, serverErr("40001")})
	if _, err := teller(t.Context(), f.db, nil, false); err != nil {
		t.Error(err)
	}
	for _, e := range f.Entries() {
		if e.Conn > 1 || e.Call == drivertest.Begin && e.Method != "BeginTx" {
			t.Errorf("%s", e)
		}
	}
}

func TestAnAbortWhileAnExpectedErrorIsReplayedIsAConflict(t *testing.T) {
	for _, asExpected := range []bool{true, false} {
		f := newFixture(t).holdsNothingWhileWaiting()
		f.strikes(
			strike{spot{calls: drivertest.Exec, text: "unique"}, 1, serverErr("23505")},
			strike{spot{calls: drivertest.Exec, text: "unique"}, 2, serverErr("40001")},
			strike{spot{calls: drivertest.Exec, text: "unique"}, 3, serverErr(map[bool]string{true: "23505", false: "23503"}[asExpected])},
			strike{spot{calls: drivertest.Exec, text: "last"}, 1, serverErr("40P01")},
		)
		err := inTx(t.Context(), f.db, func(ctx context.Context, tx *sql.Tx) error {
			return steps(ctx, tx, `SAVEPOINT "a"`, "?INSERT unique", `ROLLBACK TO SAVEPOINT "a"`, `RELEASE "a"`, "UPDATE last")
		})
		if (err == nil) != asExpected || len(f.attempts()) != 3 {
			t.Errorf("as expected %t: the application gets %v after %d attempts", asExpected, err, len(f.attempts()))
		}
		if !asExpected && (sqlState(err) != "40P01" || f.stats().Diverged != 1) {
			t.Errorf("the application gets %v, stats are %+v", err, f.stats())
		}
	}
}

// steps executes texts in the transaction. Those that begin with a question mark may
// fail, and must have in the first attempt.
func steps(ctx context.Context, tx *sql.Tx, texts ...string) error {
	for _, text := range texts {
		text, fails := strings.CutPrefix(text, "?")
		if _, err := tx.ExecContext(ctx, text); (err != nil) != fails {
			return fmt.Errorf("%s: %w", text, err)
		}
	}
	return nil
}

// set returns a result of one column of the type "INT8" with these values.
func set(values ...driver.Value) drivertest.ResultSet {
	s := drivertest.ResultSet{Columns: []drivertest.Column{{Name: "a", DatabaseType: "INT8"}}}
	for _, v := range values {
		if n, ok := v.(int); ok {
			v = int64(n)
		}
		s.Rows = append(s.Rows, []driver.Value{v})
	}
	return s
}

func sets(all ...drivertest.ResultSet) []drivertest.ResultSet { return all }

// column returns a result without rows.
func column(name, databaseType string) drivertest.ResultSet {
	return drivertest.ResultSet{Columns: []drivertest.Column{{Name: name, DatabaseType: databaseType}}}
}

// showing makes the query for what is shown give one thing in the first attempt and another later.
func (f *fixture) showing(first, later []drivertest.ResultSet) {
	f.On(drivertest.AnyQuery).Matching("shown").RowsFunc(func(*drivertest.Invocation) ([]drivertest.ResultSet, error) {
		if len(f.Log(drivertest.Begin)) < 2 {
			return first, nil
		}
		return later, nil
	})
}

func TestAReplayMustShowWhatTheApplicationHasSeen(t *testing.T) {
	const all = -1
	nan := math.Float64frombits(0x7ff8000000000001)
	instant := time.Unix(1, 0)
	for _, c := range []struct {
		name         string
		first, later []drivertest.ResultSet
		read         []int  // of each result set
		what         string // that differs, "" if the replay succeeds
	}{
		{"the same", sets(set(1, 2)), sets(set(1, 2)), []int{all}, ""},
		{"the same, not a number", sets(set(nan)), sets(set(nan)), []int{all}, ""},
		{"no rows", sets(set()), sets(set()), []int{all}, ""},
		{"another value", sets(set(1, 2)), sets(set(1, 3)), []int{all}, "showed something else"},
		{"another type", sets(set(1)), sets(set("1")), []int{all}, "showed something else"},
		{"bytes for text", sets(set("1")), sets(set([]byte("1"))), []int{all}, "showed something else"},
		{"NULL for empty", sets(set("")), sets(set(nil)), []int{all}, "showed something else"},
		{"false for NULL", sets(set(nil)), sets(set(false)), []int{all}, "showed something else"},
		{"0 for false", sets(set(false)), sets(set(0)), []int{all}, "showed something else"},
		{"another zone", sets(set(instant.UTC())), sets(set(instant.In(time.FixedZone("", 3600)))), []int{all}, "showed something else"},
		{"more rows", sets(set(1, 2)), sets(set(1, 2, 3)), []int{all}, "more rows"},
		{"rows where there were none", sets(set()), sets(set(1)), []int{all}, "more rows"},
		{"fewer rows", sets(set(1, 2)), sets(set(1)), []int{all}, "fewer rows"},
		{"other order", sets(set(1, 2)), sets(set(2, 1)), []int{all}, "showed something else"},
		{"a boundary that moved", sets(set("ab", "c")), sets(set("a", "bc")), []int{all}, "showed something else"},
		{"another column name", sets(set()), sets(column("b", "INT8")), []int{all}, "showed something else"},
		{"another column type", sets(set()), sets(column("a", "INT4")), []int{all}, "showed something else"},
		{"another column name, nothing read", sets(set()), sets(column("b", "INT8")), []int{0}, "showed something else"},
		{"more columns", sets(set()), sets(drivertest.ResultSet{Columns: drivertest.Columns("a", "b")}), []int{all}, "showed something else"},
		{"a difference in what was read", sets(set(1, 2, 3)), sets(set(1, 9, 3)), []int{2}, "showed something else"},
		{"a difference beyond what was read", sets(set(1, 2, 3)), sets(set(1, 2, 9, 10)), []int{2}, ""},
		{"fewer rows, but those that were read", sets(set(1, 2, 3)), sets(set(1, 2)), []int{2}, ""},
		{"more rows, but the end was not seen", sets(set(1, 2)), sets(set(1, 2, 3)), []int{2}, ""},
		{"other rows, none of which was read", sets(set(1, 2)), sets(set(7)), []int{0}, ""},
		{"the same in two results", sets(set(1), set(2)), sets(set(1), set(2)), []int{all, all}, ""},
		{"another value in the second result", sets(set(1), set(2)), sets(set(1), set(3)), []int{all, all}, "showed something else"},
		{"a row that moved to the other result", sets(set(1, 2), set(3)), sets(set(1), set(2, 3)), []int{all, all}, "fewer rows"},
		{"one result less", sets(set(1), set()), sets(set(1)), []int{all, all}, "fewer result sets"},
		{"another column in the second result", sets(set(1), set()), sets(set(1), column("b", "INT8")), []int{all, all}, "showed something else"},
		{"a difference in the first result beyond what was read", sets(set(1, 2), set(3)), sets(set(1, 9), set(3)), []int{1, all}, ""},
		{"a difference in a result that was not asked for", sets(set(1), set(2)), sets(set(1), set(3)), []int{1}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFixture(t).holdsNothingWhileWaiting()
			f.showing(c.first, c.later)
			f.strikes(strike{spot{calls: drivertest.Exec, text: "last"}, 1, serverErr("40001")})
			tx, err := f.db.BeginTx(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := steps(t.Context(), tx, "UPDATE first"); err != nil {
				t.Fatal(err)
			}
			rows, err := tx.QueryContext(t.Context(), "SELECT shown")
			if err != nil {
				t.Fatal(err)
			}
			for i, n := range c.read {
				if i > 0 && !rows.NextResultSet() {
					t.Fatal(rows.Err())
				}
				for ; n != 0 && rows.Next(); n-- {
				}
			}
			if err := errors.Join(rows.Err(), rows.Close()); err != nil {
				t.Fatal(err)
			}
			err = steps(t.Context(), tx, "UPDATE last")
			if c.what == "" {
				if err := errors.Join(err, tx.Commit()); err != nil || f.stats().Hidden != 1 {
					t.Errorf("the application gets %v", err)
				}
				return
			}
			s := f.stats()
			if sqlState(err) != "40001" || s.Diverged != 1 || s.Hidden != 0 || s.PlainConflicts != 1 {
				t.Errorf("the application gets %v, stats are %+v", err, s)
			}
			if d := s.LastDivergence; d == nil || d.Statement != 1 || !strings.Contains(d.What, c.what) || len(d.Fingerprint) == 0 {
				t.Errorf("the divergence is %+v, want %q of statement 1", d, c.what)
			}
			if err := tx.Commit(); !errors.Is(err, ErrDiverged) || len(f.Log(drivertest.Commit)) != 0 {
				t.Errorf("Commit gives %v", err)
			}
		})
	}
}

func TestAReplayMustAffectAndFailAsBefore(t *testing.T) {
	violation := func(code, constraint string) error {
		return &drivertest.Error{Severity: "ERROR", Code: code, ConstraintName: constraint, Message: fmt.Sprint(time.Now())}
	}
	for _, c := range []struct {
		name         string
		first, later any // error or number
		what         string
	}{
		{"the same count", 3, 3, ""},
		{"another count", 3, 2, "another number of rows"},
		{"the same error", violation("23505", "k"), violation("23505", "k"), ""},
		{"another SQLSTATE", violation("23505", "k"), violation("23503", "k"), "SQLSTATE 23503 in another way"},
		{"another constraint", violation("23505", "k"), violation("23505", "l"), "in another way"},
		{"an error where there was success", 3, violation("23505", "k"), "failed with SQLSTATE 23505"},
		{"an error of the client where there was success", 3, errors.New("no"), "it failed"},
		{"success where there was an error", violation("23505", "k"), 3, "succeeded where it had failed"},
	} {
		for _, how := range []string{"exec", "query", "rows", "second row", "prepare"} {
			if _, fails := c.first.(error); !fails && strings.Contains(c.name, "count") && how != "exec" {
				continue
			}
			t.Run(c.name+"/"+how, func(t *testing.T) {
				f := newFixture(t)
				p := map[string]spot{
					"exec": {calls: drivertest.Exec}, "query": {calls: drivertest.Query}, "rows": {calls: drivertest.RowsNext},
					"second row": {calls: drivertest.RowsNext, n: 2}, "prepare": {calls: drivertest.Prepare},
				}[how]
				p.text = "unsure"
				var all []strike
				for attempt, outcome := range []any{c.first, c.later} {
					if err, fails := outcome.(error); fails {
						all = append(all, strike{p, attempt + 1, err})
					}
				}
				f.strikes(append(all, strike{spot{calls: drivertest.Exec, text: "last"}, 1, serverErr("40001")})...)
				f.On(drivertest.Exec).Matching("unsure").Result(counting{f, c.first, c.later})
				f.Rows("unsure", set(1, 2))
				err := inTx(t.Context(), f.db, func(ctx context.Context, tx *sql.Tx) error {
					if err := steps(ctx, tx, `SAVEPOINT "a"`); err != nil {
						return err
					}
					if err := useUnsure(ctx, tx, how); err != nil {
						if err := steps(ctx, tx, `ROLLBACK TO SAVEPOINT "a"`); err != nil {
							return err
						}
					}
					return steps(ctx, tx, `RELEASE "a"`, "UPDATE last")
				})
				if c.what == "" {
					if err != nil || len(f.attempts()) != 2 {
						t.Errorf("the application gets %v after %d attempts", err, len(f.attempts()))
					}
					return
				}
				s := f.stats()
				if sqlState(err) != "40001" || s.Diverged != 1 || len(f.Log(drivertest.Commit)) != 0 {
					t.Fatalf("the application gets %v, stats are %+v", err, s)
				}
				what := s.LastDivergence.What
				if s.LastDivergence.Statement != 1 || !strings.Contains(what, c.what) && what != "it did not fail as it had" {
					t.Errorf("the divergence is %+v, want %q", s.LastDivergence, c.what)
				}
			})
		}
	}
}

// counting is a result that depends on the attempt.
type counting struct {
	f            *fixture
	first, later any
}

func (c counting) LastInsertId() (int64, error) { return 0, errors.New("there is none") }

func (c counting) RowsAffected() (int64, error) {
	outcome := c.first
	if len(c.f.Log(drivertest.Begin)) > 1 {
		outcome = c.later
	}
	n, _ := outcome.(int)
	return int64(n), nil
}

// useUnsure executes a statement that may fail in the way that is asked for.
func useUnsure(ctx context.Context, tx *sql.Tx, how string) error {
	switch how {
	case "exec":
		_, err := tx.ExecContext(ctx, "UPDATE unsure")
		return err
	case "prepare":
		s, err := tx.PrepareContext(ctx, "UPDATE unsure")
		if err != nil {
			return err
		}
		return s.Close()
	}
	rows, err := tx.QueryContext(ctx, "SELECT unsure")
	if err != nil {
		return err
	}
	_, err = fetch(rows, -1)
	return err
}

func TestEveryReplayIsComparedWithTheFirstAnswer(t *testing.T) {
	f := newFixture(t)
	// The second replay shows what the first one did: still not what was seen.
	f.On(drivertest.Query).Matching("balance").RowsFunc(func(*drivertest.Invocation) ([]drivertest.ResultSet, error) {
		return sets(set(min(len(f.Log(drivertest.Begin)), 2), 7)), nil
	})
	last := spot{calls: drivertest.Exec, text: "last"}
	f.strikes(strike{last, 1, serverErr("40001")}, strike{spot{calls: drivertest.RowsNext, text: "balance", n: 2}, 2, serverErr("40001")})
	err := inTx(t.Context(), f.db, func(ctx context.Context, tx *sql.Tx) error {
		rows, err := tx.QueryContext(ctx, "SELECT balance")
		if err != nil {
			return err
		}
		if _, err := fetch(rows, -1); err != nil {
			return err
		}
		return steps(ctx, tx, "UPDATE last")
	})
	if sqlState(err) != "40001" || f.stats().Diverged != 1 || len(f.attempts()) != 3 || len(f.Log(drivertest.Commit)) != 0 {
		t.Errorf("the application gets %v, stats are %+v", err, f.stats())
	}
	// A cursor that is open survives the first conflict and not the second.
	f = newFixture(t)
	f.On(drivertest.Query).Matching("balance").RowsFunc(func(*drivertest.Invocation) ([]drivertest.ResultSet, error) {
		return sets(set(int64(len(f.Log(drivertest.Begin))/3), 2, 3)), nil
	})
	f.strikes(strike{spot{calls: drivertest.RowsNext, text: "balance", n: 2}, 1, serverErr("40001")},
		strike{spot{calls: drivertest.RowsNext, text: "balance", n: 3}, 2, serverErr("40001")})
	err = inTx(t.Context(), f.db, func(ctx context.Context, tx *sql.Tx) error {
		rows, err := tx.QueryContext(ctx, "SELECT balance")
		if err != nil {
			return err
		}
		_, err = fetch(rows, -1)
		return err
	})
	if sqlState(err) != "40001" || f.stats().Diverged != 1 || f.stats().Replays != 2 || f.stats().Hidden != 0 {
		t.Errorf("the application gets %v, stats are %+v", err, f.stats())
	}
}

func TestTheErrorOfAConflictIsTheServersOwnButForItsHint(t *testing.T) {
	ours := &drivertest.Error{Severity: "ERROR", Code: "40001", Message: "could not serialize access", Detail: "d", Hint: "The transaction might succeed if retried.", ConstraintName: "c", Line: 7}
	theirs := &pq.Error{Severity: "ERROR", Code: "40001", Message: "could not serialize access", Detail: "d", Hint: "The transaction might succeed if retried.", Constraint: "c"}
	for _, conflict := range []error{ours, theirs} {
		for _, at := range []spot{{calls: drivertest.Exec, text: "last"}, {calls: drivertest.Commit}} {
			t.Run(fmt.Sprintf("%T at %s", conflict, at.calls), func(t *testing.T) {
				f := newFixture(t).likePostgres()
				f.showing(sets(set(1)), sets(set(2)))
				f.strikes(strike{at, 1, conflict})
				tx, err := f.db.BeginTx(t.Context(), nil)
				if err != nil {
					t.Fatal(err)
				}
				var n int
				if err := tx.QueryRowContext(t.Context(), "SELECT shown").Scan(&n); err != nil {
					t.Fatal(err)
				}
				if _, err = tx.ExecContext(t.Context(), "UPDATE last"); err == nil {
					err = tx.Commit()
				}
				const why = "The transaction might succeed if retried. pgretry: not replayed, because the replay showed something else"
				switch want := conflict.(type) { //nolint:errorlint // programs do it like this
				case *drivertest.Error:
					got, ok := err.(*drivertest.Error) //nolint:errorlint // programs do it like this
					if !ok || !strings.HasPrefix(got.Hint, why) {
						t.Fatalf("the error is a %T, %+v", err, err)
					}
					stripped := *got
					if stripped.Hint = want.Hint; stripped != *want || strings.Contains(want.Hint, "pgretry") {
						t.Errorf("the error is %+v, want %+v", got, want)
					}
				case *pq.Error:
					got, ok := err.(*pq.Error) //nolint:errorlint // programs do it like this
					if !ok || !strings.HasPrefix(got.Hint, why) || got.Code != want.Code || got.Detail != want.Detail || got.Constraint != want.Constraint || got.Error() != want.Error() {
						t.Errorf("the error is %+v, want %+v", err, want)
					}
				}
				_ = tx.Rollback()
				if s := f.stats(); s.Committed != 0 || s.Diverged != 1 {
					t.Errorf("stats are %+v", s)
				}
			})
		}
	}
}

func TestAnErrorThatHasNoHintStaysTheVerySame(t *testing.T) {
	for _, conflict := range []error{fmt.Errorf("wrapped: %w", serverErr("40001")), bareState("40001")} {
		f := newFixture(t, WithPolicy(Policy{MaxAttempts: 1}))
		f.strikes(strike{spot{calls: drivertest.Exec}, 0, conflict})
		err := inTx(t.Context(), f.db, func(ctx context.Context, tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, "UPDATE")
			if err != conflict { //nolint:errorlint // the very same
				t.Errorf("the error is %v, want %v", err, conflict)
			}
			return err
		})
		if err == nil {
			t.Error("there is no error")
		}
	}
}

func TestCursorsThatAreOpenGoOnAfterAReplay(t *testing.T) {
	for _, closing := range []bool{false, true} {
		f := newFixture(t).holdsNothingWhileWaiting()
		f.Rows("cursor", five)
		f.strikes(strike{spot{calls: drivertest.Exec, text: "last"}, 1, serverErr("40001")},
			strike{spot{calls: drivertest.RowsNext, text: "cursor", n: 3}, 2, serverErr("40P01")})
		tx, err := f.db.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		s, err := tx.PrepareContext(t.Context(), "SELECT cursor")
		if err != nil {
			t.Fatal(err)
		}
		rows, err := s.QueryContext(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			rows.Next()
		}
		if closing {
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if err := steps(t.Context(), tx, "UPDATE last"); err != nil {
			t.Error(err)
		}
		saw, err := fetch(rows, -1)
		if err != nil || len(saw) != 3 || saw[0] != `[]interface {}{3, ""}` || saw[2] != `[]interface {}{5, []uint8{0x65}}` {
			t.Errorf("the application goes on with %v and gets %v", saw, err)
		}
		if err := tx.Commit(); err != nil || len(f.attempts()) != 3 {
			t.Errorf("Commit gives %v", err)
		}
	}
}

// copyIn sends rows with lib/pq's COPY protocol.
func copyIn(ctx context.Context, tx *sql.Tx) error {
	s, err := tx.PrepareContext(ctx, "COPY t FROM STDIN")
	if err != nil {
		return err
	}
	for range 2 {
		if _, err := s.ExecContext(ctx); err != nil {
			return err
		}
	}
	return s.Close()
}

func TestCopyFromTheClientIsReplayed(t *testing.T) {
	for _, at := range []spot{
		{calls: drivertest.Prepare, text: "COPY"},
		{calls: drivertest.StmtExec, text: "COPY"},
		{calls: drivertest.StmtExec, text: "COPY", n: 2},
		{calls: drivertest.StmtClose, text: "COPY"},
		{calls: drivertest.Exec, text: "last"},
		{calls: drivertest.Commit},
	} {
		t.Run(fmt.Sprintf("%s %d", at.calls, at.n), func(t *testing.T) {
			f := newFixture(t).likePostgres()
			f.strikes(strike{at, 1, serverErr("40001")})
			err := inTx(t.Context(), f.db, func(ctx context.Context, tx *sql.Tx) error {
				if err := copyIn(ctx, tx); err != nil {
					return err
				}
				return steps(ctx, tx, "UPDATE last")
			})
			if got := f.attempts(); err != nil || len(got) != 2 || strings.Join(got[1][1:], ", ") != "COPY t FROM STDIN, COPY t FROM STDIN, UPDATE last, COMMIT" {
				t.Errorf("the application gets %v after %v", err, got)
			}
		})
	}
}

func TestAConflictInsideASavepointIsReplayedFromThere(t *testing.T) {
	f := newFixture(t, WithPins(PinsNever)).likePostgres()
	inner := f.Fail(drivertest.Exec, serverErr("40P01")).Matching("inner").Times(2)
	err := plainly(t.Context(), f.db, sql.LevelReadCommitted, func(ctx context.Context, tx *sql.Tx) error {
		var n int
		if err := tx.QueryRowContext(ctx, insertReturning).Scan(&n); err != nil {
			return err
		}
		return steps(ctx, tx, "SET LOCAL a = 1", `SAVEPOINT "x"`, "UPDATE second", "UPDATE inner", `RELEASE "x"`)
	})
	want := []string{
		insertReturning, "SET LOCAL a = 1", `SAVEPOINT "x"`, "UPDATE second", "UPDATE inner",
		`ROLLBACK TO SAVEPOINT "x"`, "UPDATE second", "UPDATE inner",
		`ROLLBACK TO SAVEPOINT "x"`, "UPDATE second", "UPDATE inner", `RELEASE "x"`, "COMMIT",
	}
	if got := f.attempts(); err != nil || inner.Fired() != 2 || len(got) != 1 || !slices.Equal(got[0][1:], want) {
		t.Errorf("the application gets %v after %q", err, got)
	}
	if s := f.stats(); len(f.waits) != 0 || s.PartialReplays != 2 || s.Replays != 2 || s.Hidden != 1 {
		t.Errorf("waited %v with the locks held, stats are %+v", f.waits, s)
	}
}

func TestAConflictInsideASavepointThatCannotBeReplayedIsHandedOut(t *testing.T) {
	for _, c := range []struct {
		name     string
		level    sql.IsolationLevel
		before   string // query outside the savepoint
		inside   string // statement inside, before the one with the conflict
		times    int
		decision Decision
		hint     string
	}{
		{"the snapshot stays", sql.LevelRepeatableRead, insertReturning, "", 1, DecisionRefused, "[savepoint]"},
		{"the conflict stays", sql.LevelReadCommitted, insertReturning, "", 4, DecisionRefused, "[savepoint]"},
		{"what was read outside may have changed", sql.LevelReadCommitted, "SELECT a FROM t", "", 1, DecisionRefused, "[savepoint]"},
		{"what was called outside may be anything", sql.LevelReadCommitted, "SELECT f()", "", 1, DecisionRefused, "[savepoint]"},
		{"what was read inside may have changed", sql.LevelReadCommitted, insertReturning, "SELECT a FROM t", 1, DecisionRefused, "[savepoint]"},
		{"what was counted inside has changed", sql.LevelReadCommitted, insertReturning, "UPDATE changing", 1, DecisionDiverged, "another number of rows"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var events []Event
			f := newFixture(t, WithPins(PinsNever), WithOnRetry(func(_ context.Context, e Event) { events = append(events, e) })).likePostgres()
			f.Affected("changing", 1).Times(1)
			f.Affected("changing", 2)
			f.Fail(drivertest.Exec, serverErr("40001")).Matching("inner").Times(c.times)
			tx, err := f.db.BeginTx(t.Context(), &sql.TxOptions{Isolation: c.level})
			if err != nil {
				t.Fatal(err)
			}
			var n int
			if err := tx.QueryRowContext(t.Context(), c.before).Scan(&n); err != nil {
				t.Fatal(err)
			}
			if err := steps(t.Context(), tx, `SAVEPOINT "x"`); err != nil {
				t.Fatal(err)
			}
			switch {
			case strings.HasPrefix(c.inside, "SELECT"):
				err = tx.QueryRowContext(t.Context(), c.inside).Scan(&n)
			case c.inside != "":
				err = steps(t.Context(), tx, c.inside)
			}
			if err != nil {
				t.Fatal(err)
			}
			_, err = tx.ExecContext(t.Context(), "UPDATE inner")
			server, ok := err.(*drivertest.Error) //nolint:errorlint // programs do it like this
			if !ok || server.Code != "40001" || !strings.Contains(server.Hint, c.hint) {
				t.Errorf("the application gets %+v", err)
			}
			if last := events[len(events)-1]; last.Decision != c.decision || last.Kind != KindReplay {
				t.Errorf("the last event is %+v", last)
			}
			if _, err := tx.ExecContext(t.Context(), "UPDATE more"); sqlState(err) != "25P02" {
				t.Errorf("the block is not as the server left it: %v", err)
			}
			// What an ORM's nested transaction does.
			if err := steps(t.Context(), tx, `ROLLBACK TO SAVEPOINT "x"`, "UPDATE instead"); err != nil {
				t.Error(err)
			}
			if err := tx.Commit(); err != nil || len(f.Log(drivertest.Begin)) != 1 || len(f.waits) != 0 {
				t.Errorf("Commit gives %v", err)
			}
			if s := f.stats(); s.Unprotected[RefusedSavepoint] != 1 || s.Committed != 1 || s.PlainConflicts != 1 {
				t.Errorf("stats are %+v", s)
			}
		})
	}
}

func TestAConflictInsideASavepointIsReplayedFromBeginIfOnlyCountsWereShown(t *testing.T) {
	for _, level := range []sql.IsolationLevel{sql.LevelReadCommitted, sql.LevelRepeatableRead, sql.LevelSerializable} {
		for _, same := range []bool{true, false} {
			f := newFixture(t).likePostgres().holdsNothingWhileWaiting()
			f.On(drivertest.Exec).Matching("inside").Result(counting{f, 1, map[bool]int{true: 1, false: 2}[same]})
			times := 1
			if level == sql.LevelReadCommitted {
				times = 2 // from the savepoint first
			}
			f.Fail(drivertest.Exec, serverErr("40001")).Matching("inner").Times(times)
			tx, err := f.db.BeginTx(t.Context(), &sql.TxOptions{Isolation: level})
			if err != nil {
				t.Fatal(err)
			}
			if err := steps(t.Context(), tx, "UPDATE outer", `SAVEPOINT "x"`, "UPDATE inside"); err != nil {
				t.Fatal(err)
			}
			err = steps(t.Context(), tx, "UPDATE inner")
			if (err == nil) != same || len(f.attempts()) != 2 || len(f.waits) != 1 {
				t.Errorf("%s: the application gets %v after %q", level, err, f.attempts())
			}
			if !same {
				// In another transaction there is nothing that the application could go back to.
				isPoison(t, "ROLLBACK TO", steps(t.Context(), tx, `ROLLBACK TO "x"`), ErrDiverged, "")
				isPoison(t, "Commit", tx.Commit(), ErrDiverged, "")
				continue
			}
			if err := errors.Join(err, tx.Commit()); err != nil {
				t.Errorf("%s: %v", level, err)
			}
		}
	}
}

func TestAConflictThatWasHandedOutIsStillKnownToCommit(t *testing.T) {
	f := newFixture(t).likePostgres()
	conflict := serverErr("40001")
	f.Fail(drivertest.Exec, conflict).Matching("inner").Times(1)
	err := plainly(t.Context(), f.db, sql.LevelSerializable, func(ctx context.Context, tx *sql.Tx) error {
		var n int
		if err := tx.QueryRowContext(ctx, "SELECT balance").Scan(&n); err != nil {
			return err
		}
		return steps(ctx, tx, `SAVEPOINT "x"`, "?UPDATE inner")
	})
	if !errors.Is(err, ErrRefused) || !errors.Is(err, conflict) || sqlState(err) != "40001" {
		t.Errorf("Commit gives %v", err)
	}
}

func TestAConflictOutsideSavepointsIsReplayedFromBegin(t *testing.T) {
	for name, texts := range map[string][]string{
		"released":                       {`SAVEPOINT "x"`, "UPDATE inner", `RELEASE SAVEPOINT "x"`},
		"rolled back and released":       {`SAVEPOINT "x"`, "UPDATE inner", `ROLLBACK TO "x"`, `RELEASE "x"`},
		"nested":                         {`SAVEPOINT "x"`, `SAVEPOINT "y"`, "UPDATE inner", `ROLLBACK TO "x"`, `RELEASE "x"`},
		"two of one name":                {`SAVEPOINT "x"`, `SAVEPOINT "x"`, "UPDATE inner", `RELEASE "x"`, `RELEASE "x"`},
		"a failed statement inside":      {`SAVEPOINT "x"`, "?UPDATE wrong", `ROLLBACK TO "x"`, `RELEASE "x"`},
		"failed statements inside":       {`SAVEPOINT "x"`, "?UPDATE wrong", "?UPDATE inner", `ROLLBACK TO "x"`, `RELEASE "x"`},
		"a failed one in a deeper block": {`SAVEPOINT "x"`, `SAVEPOINT "y"`, "?UPDATE wrong", `ROLLBACK TO "y"`, "UPDATE inner", `RELEASE "x"`},
	} {
		for _, at := range []spot{{calls: drivertest.Exec, text: "last"}, {calls: drivertest.Commit}} {
			f := newFixture(t).likePostgres().holdsNothingWhileWaiting()
			f.strikes(strike{spot{calls: drivertest.Exec, text: "wrong"}, 0, serverErr("23505")}, strike{at, 1, serverErr("40001")})
			err := inTx(t.Context(), f.db, func(ctx context.Context, tx *sql.Tx) error {
				return steps(ctx, tx, append(texts, "UPDATE last")...)
			})
			want := []string{}
			for _, text := range append(texts, "UPDATE last", "COMMIT") {
				want = append(want, strings.TrimPrefix(text, "?"))
			}
			if got := f.attempts(); err != nil || len(got) != 2 || !slices.Equal(got[1][1:], want) {
				t.Errorf("%s, %s: the application gets %v after %q", name, at.calls, err, got)
			}
		}
	}
}

// pinned is a fixture whose server looks at no savepoints.
func pinned(t *testing.T, options ...Option) *fixture {
	return newFixtureOver(t, drivertest.New(drivertest.WithFeatures(drivertest.LibPQ)), options...).likePostgres()
}

const (
	insertReturning = "INSERT INTO t (a) VALUES (1) RETURNING id"
	backToPin       = `ROLLBACK TO SAVEPOINT "pgretry_pin"`
)

func TestWhatAPinKeepsNeedNotBeShownAgain(t *testing.T) {
	for _, c := range []struct {
		name    string
		before  []string // queries
		times   int      // conflicts of the last statement
		options []Option
		level   sql.IsolationLevel
		asked   string // after BEGIN and those before
		err     string
	}{
		{
			name: "one conflict", times: 1, level: sql.LevelReadCommitted,
			asked: insertReturning + "; SAVEPOINT pgretry_pin; UPDATE last; " + backToPin + "; UPDATE last; COMMIT",
		},
		{
			name: "no pin after a read that may have changed", before: []string{"SELECT a FROM t"}, times: 1, level: sql.LevelReadCommitted, err: "40001",
			asked: insertReturning + "; UPDATE last; ROLLBACK; BEGIN; SELECT a FROM t; " + insertReturning + "; ROLLBACK",
		},
		{
			name: "a second conflict goes back to BEGIN", times: 2, level: sql.LevelReadCommitted, err: "40001",
			asked: insertReturning + "; SAVEPOINT pgretry_pin; UPDATE last; " + backToPin + "; UPDATE last; ROLLBACK; BEGIN; " + insertReturning + "; ROLLBACK",
		},
		{
			name: "no pin after what may call anything", before: []string{"SELECT f()"}, times: 1, level: sql.LevelReadCommitted, err: "40001",
			asked: insertReturning + "; UPDATE last; ROLLBACK; BEGIN; SELECT f(); " + insertReturning + "; ROLLBACK",
		},
		{
			name: "not under SERIALIZABLE", times: 1, level: sql.LevelSerializable, err: "40001",
			asked: insertReturning + "; UPDATE last; ROLLBACK; BEGIN; " + insertReturning + "; ROLLBACK",
		},
		{
			name: "not if the user says never", times: 1, level: sql.LevelReadCommitted, err: "40001", options: []Option{WithPins(PinsNever)},
			asked: insertReturning + "; UPDATE last; ROLLBACK; BEGIN; " + insertReturning + "; ROLLBACK",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := pinned(t, c.options...)
			id := f.On(drivertest.Query).Matching("RETURNING")
			id.RowsFunc(func(inv *drivertest.Invocation) ([]drivertest.ResultSet, error) { return sets(set(int64(inv.N))), nil })
			f.Fail(drivertest.Exec, serverErr("40001")).Matching("last").Times(c.times)
			err := plainly(t.Context(), f.db, c.level, func(ctx context.Context, tx *sql.Tx) error {
				for _, text := range append(c.before, insertReturning) {
					var n int
					if err := tx.QueryRowContext(ctx, text).Scan(&n); err != nil {
						return err
					}
				}
				return steps(ctx, tx, "UPDATE last")
			})
			if sqlState(err) != c.err || (err == nil) != (c.err == "") {
				t.Errorf("the application gets %v", err)
			}
			var asked []string
			for i, a := range f.attempts() {
				if i > 0 {
					asked = append(asked, "BEGIN")
				}
				asked = append(asked, a[1:]...)
			}
			if got := strings.Join(asked[len(c.before):], "; "); got != c.asked {
				t.Errorf("the server is asked\n%s, want\n%s", got, c.asked)
			}
		})
	}
}

// Some drivers meet the conflict when the first row is fetched: nothing was read yet.
func TestAQueryThatHasShownNoRowIsNoRead(t *testing.T) {
	const backToSavepoint = `ROLLBACK TO SAVEPOINT "a"`
	for name, c := range map[string]struct {
		before, asked string
	}{
		"from a pin":       {"", "SAVEPOINT pgretry_pin; SELECT last; " + backToPin + "; SELECT last; COMMIT"},
		"from a savepoint": {"SAVEPOINT a", "SAVEPOINT a; SELECT last; " + backToSavepoint + "; SELECT last; COMMIT"},
	} {
		t.Run(name, func(t *testing.T) {
			f := pinned(t)
			id := f.On(drivertest.Query).Matching("RETURNING")
			id.RowsFunc(func(inv *drivertest.Invocation) ([]drivertest.ResultSet, error) { return sets(set(int64(inv.N))), nil })
			f.Rows("last", set(7))
			f.strikes(strike{spot{calls: drivertest.RowsNext, text: "last"}, 1, serverErr("40001")})
			err := plainly(t.Context(), f.db, sql.LevelReadCommitted, func(ctx context.Context, tx *sql.Tx) error {
				var n int
				if err := tx.QueryRowContext(ctx, insertReturning).Scan(&n); err != nil {
					return err
				}
				if c.before != "" {
					if err := steps(ctx, tx, c.before); err != nil {
						return err
					}
				}
				return tx.QueryRowContext(ctx, "SELECT last").Scan(&n)
			})
			if err != nil {
				t.Errorf("the application gets %v", err)
			}
			all := f.attempts()
			if got, want := strings.Join(all[0][1:], "; "), insertReturning+"; "+c.asked; len(all) != 1 || got != want {
				t.Errorf("in %d attempts the server is asked\n%s, want\n%s", len(all), got, want)
			}
		})
	}
}

func TestAPinIsNotTakenForTheWholeIfAReadBeforeItHasChanged(t *testing.T) {
	f := pinned(t)
	f.On(drivertest.Query).Matching("balance").RowsFunc(func(inv *drivertest.Invocation) ([]drivertest.ResultSet, error) {
		return sets(set(int64(inv.N))), nil
	})
	f.Fail(drivertest.Exec, serverErr("40P01")).Matching("last").Times(1)
	err := plainly(t.Context(), f.db, sql.LevelReadCommitted, func(ctx context.Context, tx *sql.Tx) error {
		for _, text := range []string{"SELECT a FROM balance", insertReturning} {
			var n int
			if err := tx.QueryRowContext(ctx, text).Scan(&n); err != nil {
				return err
			}
		}
		return steps(ctx, tx, "UPDATE last")
	})
	if sqlState(err) != "40P01" || f.stats().Diverged != 1 || len(f.Log(drivertest.Commit)) != 0 {
		t.Errorf("a balance was overwritten: %v, stats are %+v", err, f.stats())
	}
}

func TestTheServersDefaultLevelIsLookedUpBeforeAPinIsUsed(t *testing.T) {
	for level, partial := range map[string]int64{"read committed": 1, "serializable": 0} {
		f := pinned(t)
		f.ClearRules()
		f.Rows("transaction_isolation", set(level))
		f.likePostgres()
		f.Fail(drivertest.Exec, serverErr("40001")).Matching("last").Times(1)
		run := func() error {
			return plainly(t.Context(), f.db, sql.LevelDefault, func(ctx context.Context, tx *sql.Tx) error {
				var n int
				if err := tx.QueryRowContext(ctx, insertReturning).Scan(&n); err != nil {
					return err
				}
				return steps(ctx, tx, "UPDATE last")
			})
		}
		if err := errors.Join(run(), run()); err != nil {
			t.Error(err)
		}
		if got := len(f.Log(drivertest.Begin)); got != 3-int(partial) {
			t.Errorf("%s: %d transactions were begun", level, got)
		}
		if pins := strings.Count(strings.Join(f.Log(drivertest.Exec), "\n"), `"SAVEPOINT pgretry_pin"`); pins != 1+int(partial) {
			t.Errorf("%s: %d pins were set", level, pins)
		}
	}
}

func TestAPinThatCannotBeSetIsNoErrorOfTheApplications(t *testing.T) {
	f := pinned(t)
	f.Fail(drivertest.Exec, serverErr("0A000")).Matching("SAVEPOINT pgretry_pin")
	for range 2 {
		err := plainly(t.Context(), f.db, sql.LevelReadCommitted, func(ctx context.Context, tx *sql.Tx) error {
			var n int
			if err := tx.QueryRowContext(ctx, insertReturning).Scan(&n); err != nil {
				return err
			}
			return steps(ctx, tx, "UPDATE last")
		})
		if err != nil {
			t.Error(err)
		}
	}
	if got := len(f.attempts()); got != 3 {
		t.Errorf("%d transactions were begun, want 3: the first one twice, the second without a pin", got)
	}
}

func TestACursorInABlockThatIsHandedOutIsNotCutShort(t *testing.T) {
	f := newFixture(t)
	f.Rows("cursor", five)
	f.Fail(drivertest.Exec, serverErr("40001")).Matching("inner")
	tx, err := f.db.BeginTx(t.Context(), &sql.TxOptions{Isolation: sql.LevelReadCommitted})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	if err := steps(t.Context(), tx, `SAVEPOINT "x"`, "UPDATE before"); err != nil {
		t.Fatal(err)
	}
	rows, err := tx.QueryContext(t.Context(), "SELECT cursor")
	if err != nil {
		t.Fatal(err)
	}
	rows.Next()
	if err := steps(t.Context(), tx, "?UPDATE inner"); err != nil {
		t.Fatal(err)
	}
	saw, err := fetch(rows, -1)
	if err == nil && len(saw) != 4 {
		t.Errorf("the cursor ends with %d of 4 rows and no error", len(saw))
	}
}

// bag is a context that cannot be compared, as some frameworks have.
type bag struct {
	context.Context
	fields map[string]string
}

func TestAContextThatCannotBeComparedIsNoReasonToPanic(t *testing.T) {
	f := newFixture(t)
	f.Fail(drivertest.Exec, serverErr("40001")).Times(1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	b := bag{ctx, map[string]string{}}
	tx, err := f.db.BeginTx(b, nil)
	if err != nil {
		t.Fatal(err)
	}
	v := recovering(func() {
		if _, err := tx.ExecContext(b, "UPDATE"); err != nil {
			t.Error(err)
		}
	})
	if v != nil {
		t.Errorf("ExecContext panics: %v", v)
	}
	if v := recovering(func() { _ = tx.Rollback() }); v != nil {
		t.Errorf("Rollback panics: %v", v)
	}
}

// recovering returns what f panics with.
func recovering(f func()) (v any) {
	defer func() { v = recover() }()
	f()
	return nil
}

func TestAnErrorOfCloseIsExpectedAgain(t *testing.T) {
	for _, n := range []int{0, 1, -1} {
		f := newFixture(t)
		f.strikes(strike{spot{calls: drivertest.RowsClose, text: "unsure"}, 0, serverErr("22012")},
			strike{spot{calls: drivertest.Exec, text: "last"}, 1, serverErr("40001")})
		err := inTx(t.Context(), f.db, func(ctx context.Context, tx *sql.Tx) error {
			if err := steps(ctx, tx, `SAVEPOINT "x"`); err != nil {
				return err
			}
			rows, err := tx.QueryContext(ctx, "SELECT unsure")
			if err != nil {
				return err
			}
			_, _ = fetch(rows, n)
			return steps(ctx, tx, `ROLLBACK TO "x"`, `RELEASE "x"`, "UPDATE last")
		})
		if err != nil {
			t.Errorf("after %d rows: the application gets %v, %+v", n, err, f.stats().LastDivergence)
		}
	}
}

func TestCopyIsClosedOnce(t *testing.T) {
	f := newFixture(t)
	f.strikes(strike{spot{calls: drivertest.StmtExec, text: "COPY"}, 1, serverErr("40001")},
		strike{spot{calls: drivertest.Begin}, 2, serverErr("40001")})
	if err := inTx(t.Context(), f.db, copyIn); err != nil {
		t.Error(err)
	}
}
