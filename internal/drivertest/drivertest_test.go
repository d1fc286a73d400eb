package drivertest_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/pgretry/pgretry/internal/drivertest"
)

var ctx = context.Background()

func openDB(t testing.TB, d *drivertest.Driver) *sql.DB {
	t.Helper()
	db := sql.OpenDB(d.Connector())
	db.SetMaxOpenConns(1)
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return db
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// has reports which optional interfaces the values have.
func has(d driver.Driver, c driver.Connector, conn driver.Conn, stmt driver.Stmt, rows driver.Rows) drivertest.Features {
	var f drivertest.Features
	add := func(bit drivertest.Features, ok bool) {
		if ok {
			f |= bit
		}
	}
	is := func(bit drivertest.Features, v any, iface reflect.Type) {
		add(bit, reflect.TypeOf(v).Implements(iface))
	}
	is(drivertest.DriverContext, d, reflect.TypeFor[driver.DriverContext]())
	is(drivertest.ConnectorCloser, c, reflect.TypeFor[io.Closer]())
	is(drivertest.ExecerContext, conn, reflect.TypeFor[driver.ExecerContext]())
	is(drivertest.QueryerContext, conn, reflect.TypeFor[driver.QueryerContext]())
	is(drivertest.Execer, conn, reflect.TypeFor[interface {
		Exec(string, []driver.Value) (driver.Result, error)
	}]())
	is(drivertest.Queryer, conn, reflect.TypeFor[interface {
		Query(string, []driver.Value) (driver.Rows, error)
	}]())
	is(drivertest.ConnPrepareContext, conn, reflect.TypeFor[driver.ConnPrepareContext]())
	is(drivertest.ConnBeginTx, conn, reflect.TypeFor[driver.ConnBeginTx]())
	is(drivertest.Pinger, conn, reflect.TypeFor[driver.Pinger]())
	is(drivertest.SessionResetter, conn, reflect.TypeFor[driver.SessionResetter]())
	is(drivertest.Validator, conn, reflect.TypeFor[driver.Validator]())
	is(drivertest.NamedValueChecker, conn, reflect.TypeFor[driver.NamedValueChecker]())
	is(drivertest.StmtExecContext, stmt, reflect.TypeFor[driver.StmtExecContext]())
	is(drivertest.StmtQueryContext, stmt, reflect.TypeFor[driver.StmtQueryContext]())
	is(drivertest.StmtNamedValueChecker, stmt, reflect.TypeFor[driver.NamedValueChecker]())
	is(drivertest.StmtColumnConverter, stmt, reflect.TypeFor[interface {
		ColumnConverter(int) driver.ValueConverter
	}]())
	is(drivertest.RowsNextResultSets, rows, reflect.TypeFor[driver.RowsNextResultSet]())
	is(drivertest.RowsScanType, rows, reflect.TypeFor[driver.RowsColumnTypeScanType]())
	is(drivertest.RowsDatabaseTypeName, rows, reflect.TypeFor[driver.RowsColumnTypeDatabaseTypeName]())
	is(drivertest.RowsLength, rows, reflect.TypeFor[driver.RowsColumnTypeLength]())
	is(drivertest.RowsNullable, rows, reflect.TypeFor[driver.RowsColumnTypeNullable]())
	is(drivertest.RowsPrecisionScale, rows, reflect.TypeFor[driver.RowsColumnTypePrecisionScale]())
	return f
}

func TestEachFeatureSetHasExactlyItsInterfaces(t *testing.T) {
	for _, set := range drivertest.FeatureSets() {
		t.Run(set.Name, func(t *testing.T) {
			d := drivertest.New(drivertest.WithFeatures(set.Features))
			conn := must(d.Connector().Connect(ctx))(t)
			stmt := must(conn.Prepare("SELECT 1"))(t)
			rows := must(stmt.Query(nil))(t)
			if got := has(d.Driver(), d.Connector(), conn, stmt, rows); got != set.Features {
				t.Errorf("missing: %v\nextra: %v", set.Features&^got, got&^set.Features)
			}
		})
	}
}

func TestEveryFeatureSetServesOrdinaryUse(t *testing.T) {
	for _, set := range drivertest.FeatureSets() {
		t.Run(set.Name, func(t *testing.T) {
			d := drivertest.New(drivertest.WithFeatures(set.Features), drivertest.WithTransactionState(nil), drivertest.WithOneCursor())
			db := sql.OpenDB(d.Connector())
			db.SetMaxOpenConns(1)
			tx := must(db.Begin())(t)
			must(tx.Exec("UPDATE t SET a = $1", 7))(t)
			var n int
			if err := tx.QueryRow("SELECT 1").Scan(&n); err != nil || n != 1 {
				t.Fatalf("n = %d, %v", n, err)
			}
			stmt := must(tx.Prepare("SELECT $1"))(t)
			if err := stmt.QueryRow("x").Scan(&n); err != nil {
				t.Fatal(err)
			}
			if err := tx.Commit(); err != nil {
				t.Fatal(err)
			}
			if err := db.Ping(); err != nil {
				t.Fatal(err)
			}
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			if v := d.Violations(); len(v) > 0 {
				t.Errorf("violations: %q", v)
			}
			if open := [...]int{d.OpenConns(), d.OpenStmts(), d.OpenRows(), d.OpenTxs(), d.OpenConnectors()}; open != [5]int{} {
				t.Errorf("left open (connections, statements, rows, transactions, connectors): %v", open)
			}
		})
	}
}

func TestAnUnknownCombinationIsRefused(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	drivertest.New(drivertest.WithFeatures(drivertest.Pinger | drivertest.Validator))
}

func TestAnErrorCanHappenAtEveryCall(t *testing.T) {
	boom := errors.New("boom")
	use := func(db *sql.DB) error {
		if err := db.Ping(); err != nil {
			return err
		}
		tx, err := db.Begin()
		if err != nil {
			return err
		}
		defer tx.Rollback()
		if _, err := tx.Exec("UPDATE", 1); err != nil {
			return err
		}
		stmt, err := tx.Prepare("PREPARED $1")
		if err != nil {
			return err
		}
		if _, err := stmt.Exec(1); err != nil {
			return err
		}
		rows, err := stmt.Query(1)
		if err != nil {
			return err
		}
		if err := rows.Close(); err != nil {
			return err
		}
		if err := stmt.Close(); err != nil {
			return err
		}
		rows, err = tx.Query("SELECT")
		if err != nil {
			return err
		}
		for rows.Next() {
		}
		rows.NextResultSet()
		if err := rows.Err(); err != nil {
			return err
		}
		return tx.Commit()
	}
	for _, call := range []drivertest.Call{
		drivertest.Connect, drivertest.Ping, drivertest.CheckNamedValue, drivertest.Prepare, drivertest.Begin,
		drivertest.Exec, drivertest.Query, drivertest.StmtExec, drivertest.StmtQuery, drivertest.StmtClose,
		drivertest.RowsNext, drivertest.RowsNextResultSet, drivertest.RowsClose, drivertest.Commit,
	} {
		t.Run(call.String(), func(t *testing.T) {
			d := drivertest.New()
			d.Rows("SELECT", drivertest.ResultSet{Columns: drivertest.Columns("a")}, drivertest.ResultSet{Columns: drivertest.Columns("b")})
			rule := d.Fail(call, boom).Times(1)
			db := openDB(t, d)
			err := use(db)
			if call == drivertest.RowsNextResultSet && err == nil {
				t.Fatal("no error")
			}
			if !errors.Is(err, boom) {
				t.Errorf("got %v", err)
			}
			if rule.Fired() != 1 {
				t.Errorf("fired %d times", rule.Fired())
			}
			if err := use(db); err != nil {
				t.Errorf("second time: %v", err)
			}
		})
	}
}

func TestRulesChooseCallsByTextAndOccurrence(t *testing.T) {
	d := drivertest.New()
	boom := errors.New("boom")
	d.Fail(drivertest.AnyExec, boom).Matching("UPDATE").At(3)
	d.Fail(drivertest.AnyExec, boom).Matching("DELETE").Times(2)
	d.Fail(drivertest.AnyExec, boom).Matching("INSERT").After(1).Times(1)
	db := openDB(t, d)
	for query, want := range map[string]string{"UPDATE": "001", "SELECT": "000", "DELETE": "110", "INSERT": "010"} {
		var got strings.Builder
		for range 3 {
			_, err := db.Exec(query)
			if err != nil {
				got.WriteByte('1')
			} else {
				got.WriteByte('0')
			}
		}
		if got.String() != want {
			t.Errorf("%s: failures %s, want %s", query, got.String(), want)
		}
	}
}

func TestResultsAreScripted(t *testing.T) {
	d := drivertest.New(drivertest.WithFeatures(drivertest.AllFeatures))
	mid := errors.New("mid")
	d.Affected("UPDATE", 42)
	d.Rows("SELECT",
		drivertest.ResultSet{
			Columns: []drivertest.Column{{Name: "a", DatabaseType: "NUMERIC", ScanType: reflect.TypeFor[string](), Precision: 10, Scale: 2, HasDecimal: true, Length: 5, HasLength: true, Nullable: true, HasNullable: true}},
			Rows:    [][]driver.Value{{"1.00"}, {nil}},
		},
		drivertest.ResultSet{Columns: drivertest.Columns("b", "c"), Rows: [][]driver.Value{{int64(1), true}}, Err: mid})
	db := openDB(t, d)
	if n := must(must(db.Exec("UPDATE t"))(t).RowsAffected())(t); n != 42 {
		t.Errorf("affected %d", n)
	}
	rows := must(db.Query("SELECT"))(t)
	defer rows.Close()
	types := must(rows.ColumnTypes())(t)
	precision, scale, _ := types[0].DecimalSize()
	length, _ := types[0].Length()
	nullable, _ := types[0].Nullable()
	if got := fmt.Sprintf("%s %v %d %d %d %t", types[0].DatabaseTypeName(), types[0].ScanType(), precision, scale, length, nullable); got != "NUMERIC string 10 2 5 true" {
		t.Errorf("column type: %s", got)
	}
	var count int
	for rows.Next() {
		count++
	}
	if count != 2 || !rows.NextResultSet() {
		t.Fatalf("%d rows, then no second result set", count)
	}
	for rows.Next() {
		count++
	}
	if count != 3 || rows.Err() != mid {
		t.Errorf("%d rows, err %v", count, rows.Err())
	}
}

func TestABlockedCallWaitsForItsContextOrTheRelease(t *testing.T) {
	d := drivertest.New()
	rule := d.On(drivertest.Exec).Block()
	db := openDB(t, d)
	cancelled, cancel := context.WithCancel(ctx)
	failed := make(chan error)
	go func() { _, err := db.ExecContext(cancelled, "x"); failed <- err }()
	<-rule.Blocked()
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	go func() { _, err := db.Exec("x"); failed <- err }()
	<-rule.Blocked()
	rule.Release()
	if err := <-failed; err != nil {
		t.Errorf("after the release: %v", err)
	}
}

func TestAPanicComesThroughAndLeavesTheConnectionIdle(t *testing.T) {
	d := drivertest.New()
	d.On(drivertest.Exec).Panic("ouch").Times(1)
	conn := must(d.Connector().Connect(ctx))(t).(driver.ExecerContext)
	func() {
		defer func() {
			if v := recover(); v != "ouch" {
				t.Errorf("recovered %v", v)
			}
		}()
		conn.ExecContext(ctx, "x", nil)
	}()
	if _, err := conn.ExecContext(ctx, "x", nil); err != nil || len(d.Violations()) > 0 {
		t.Errorf("afterwards: %v, %q", err, d.Violations())
	}
}

func TestTheLogShowsEveryCall(t *testing.T) {
	d := drivertest.New()
	db := openDB(t, d)
	labelled, cancel := context.WithCancel(drivertest.WithLabel(ctx, "L"))
	defer cancel()
	tx := must(db.BeginTx(labelled, &sql.TxOptions{Isolation: sql.LevelSerializable, ReadOnly: true}))(t)
	d.Fail(drivertest.Exec, errors.New("boom"))
	tx.ExecContext(labelled, "UPDATE t SET a = $1, b = $2", "x", []byte("y"))
	tx.Rollback()
	want := []string{
		`conn 1: BeginTx isolation=6 read-only label=L`,
		`conn 1: CheckNamedValue $1="x"`,
		`conn 1: CheckNamedValue $2=[]byte("y")`,
		`conn 1: ExecContext "UPDATE t SET a = $1, b = $2" $1="x" $2=[]byte("y") label=L -> boom`,
		`conn 1: Rollback label=L`,
		`conn 1: IsValid`,
	}
	if got := d.Log()[1:]; !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if got := d.Log(drivertest.Exec); len(got) != 1 {
		t.Errorf("filtered: %q", got)
	}
	d.ClearLog()
	if len(d.Entries()) != 0 {
		t.Error("log is not empty")
	}
}

func TestViolationsOfTheContractAreNoted(t *testing.T) {
	type parts struct {
		d    *drivertest.Driver
		conn driver.Conn
	}
	for name, c := range map[string]struct {
		do   func(t *testing.T, p parts)
		want string
	}{
		"closed connection": {func(_ *testing.T, p parts) {
			p.conn.Close()
			p.conn.Prepare("x")
		}, "Prepare on a closed connection"},
		"connection closed twice": {func(_ *testing.T, p parts) {
			p.conn.Close()
			p.conn.Close()
		}, "Close on a closed connection"},
		"begin inside a transaction": {func(_ *testing.T, p parts) {
			p.conn.Begin()
			p.conn.Begin()
		}, "Begin inside a transaction"},
		"commit after rollback": {func(t *testing.T, p parts) {
			tx := must(p.conn.Begin())(t)
			tx.Rollback()
			tx.Commit()
		}, "Commit after the transaction has ended"},
		"pooled inside a transaction": {func(_ *testing.T, p parts) {
			p.conn.Begin()
			p.conn.(driver.Validator).IsValid()
		}, "IsValid inside a transaction"},
		"closed statement": {func(t *testing.T, p parts) {
			stmt := must(p.conn.Prepare("x"))(t)
			stmt.Close()
			stmt.Exec(nil)
		}, "Stmt.Exec on closed statement 1"},
		"statement closed twice": {func(t *testing.T, p parts) {
			stmt := must(p.conn.Prepare("x"))(t)
			stmt.Close()
			stmt.Close()
		}, "statement 1 closed twice"},
		"wrong number of arguments": {func(t *testing.T, p parts) {
			must(p.conn.Prepare("x $1"))(t).Exec(nil)
		}, "Stmt.Exec of statement 1 with 0 arguments instead of 1"},
		"closed rows": {func(t *testing.T, p parts) {
			rows := must(p.conn.(driver.QueryerContext).QueryContext(ctx, "x", nil))(t)
			rows.Close()
			rows.Next(make([]driver.Value, 1))
		}, "Rows.Next on closed rows 1"},
		"narrow destination": {func(t *testing.T, p parts) {
			rows := must(p.conn.(driver.QueryerContext).QueryContext(ctx, "x", nil))(t)
			rows.Next(nil)
		}, "Rows.Next with room for 0 values instead of 1"},
		"second cursor": {func(t *testing.T, p parts) {
			must(p.conn.(driver.QueryerContext).QueryContext(ctx, "x", nil))(t)
			p.conn.(driver.ExecerContext).ExecContext(ctx, "y", nil)
		}, "ExecContext with rows open"},
		"connection known to be bad": {func(_ *testing.T, p parts) {
			p.d.Fail(drivertest.Exec, driver.ErrBadConn).Times(1)
			p.conn.(driver.ExecerContext).ExecContext(ctx, "x", nil)
			p.conn.(driver.ExecerContext).ExecContext(ctx, "x", nil)
		}, "ExecContext on a connection known to be bad"},
		"unconverted argument": {func(t *testing.T, p parts) {
			plain := drivertest.New(drivertest.WithFeatures(drivertest.Modern &^ drivertest.NamedValueChecker))
			conn := must(plain.Connector().Connect(ctx))(t)
			conn.(driver.ExecerContext).ExecContext(ctx, "x", []driver.NamedValue{{Ordinal: 1, Value: 1}})
			p.conn.Close()
			p.conn.Close()
			if v := plain.Violations(); len(v) != 1 || !strings.Contains(v[0], "argument $1 of type int is no driver.Value") {
				t.Errorf("violations: %q", v)
			}
		}, "Close on a closed connection"},
		"two calls at once": {func(_ *testing.T, p parts) {
			rule := p.d.On(drivertest.Exec).Block()
			done := make(chan error)
			go func() { _, err := p.conn.(driver.ExecerContext).ExecContext(ctx, "x", nil); done <- err }()
			<-rule.Blocked()
			p.conn.(driver.Validator).IsValid()
			rule.Release()
			<-done
		}, "IsValid while exec is running"},
	} {
		t.Run(name, func(t *testing.T) {
			d := drivertest.New(drivertest.WithOneCursor())
			c.do(t, parts{d, must(d.Connector().Connect(ctx))(t)})
			if got, want := d.Violations(), []string{"conn 1: " + c.want}; !slices.Equal(got, want) {
				t.Errorf("violations %q, want %q", got, want)
			}
		})
	}
}

func TestADroppedConnectionIsInvalid(t *testing.T) {
	d := drivertest.New()
	d.Fail(drivertest.Exec, &drivertest.Error{Severity: "FATAL", Code: "57P01"}).Times(1).Drops()
	db := openDB(t, d)
	if _, err := db.Exec("x"); err == nil {
		t.Fatal("no error")
	}
	must(db.Exec("x"))(t)
	if got := d.Log(drivertest.Connect); len(got) != 2 {
		t.Errorf("connected %d times", len(got))
	}
}

func TestAFailedStatementAbortsTheBlock(t *testing.T) {
	d := drivertest.New(drivertest.WithTransactionState(nil))
	d.Fail(drivertest.AnyStatement, &drivertest.Error{Severity: "ERROR", Code: "23505", Message: "duplicate"}).Matching("DUPLICATE")
	d.Fail(drivertest.AnyStatement, errors.New("no SQLSTATE")).Matching("LOCAL")
	db := openDB(t, d)
	tx := must(db.Begin())(t)
	state := func(query string) string {
		_, err := tx.Exec(query)
		if err == nil {
			return ""
		}
		if e, ok := errors.AsType[*drivertest.Error](err); ok {
			return e.Code
		}
		return "local"
	}
	for _, step := range [][2]string{
		{"LOCAL", "local"},
		{"SELECT 1", ""},
		{"SAVEPOINT a", ""},
		{"savepoint b", ""},
		{"DUPLICATE", "23505"},
		{"SELECT 1", "25P02"},
		{"SAVEPOINT c", "25P02"},
		{"ROLLBACK TO SAVEPOINT c", "3B001"},
		{"ROLLBACK TO a", ""},
		{"SELECT 1", ""},
		{"RELEASE b", "3B001"},
		{"ROLLBACK TO SAVEPOINT a;", ""},
		{"RELEASE a", ""},
		{"DUPLICATE", "23505"},
	} {
		if got := state(step[0]); got != step[1] {
			t.Errorf("%s: %q, want %q", step[0], got, step[1])
		}
	}
	if err := tx.Commit(); err != drivertest.ErrCommitOfAborted {
		t.Errorf("commit: %v", err)
	}
	tx = must(db.Begin())(t)
	if got := state("SELECT 1"); got != "" {
		t.Errorf("next transaction: %q", got)
	}
	if err := tx.Commit(); err != nil {
		t.Error(err)
	}
}

func TestSharedBuffersAreOverwrittenByTheNextRow(t *testing.T) {
	d := drivertest.New(drivertest.WithSharedBuffers())
	d.Rows("SELECT", drivertest.ResultSet{Columns: drivertest.Columns("a"), Rows: [][]driver.Value{{[]byte("one")}, {[]byte("two")}}})
	conn := must(d.Connector().Connect(ctx))(t)
	rows := must(conn.(driver.QueryerContext).QueryContext(ctx, "SELECT", nil))(t)
	dest := make([]driver.Value, 1)
	rows.Next(dest)
	first := dest[0].([]byte)
	if string(first) != "one" {
		t.Fatalf("got %q", first)
	}
	rows.Next(dest)
	if string(first) == "one" {
		t.Error("the first row is still readable")
	}
}

func TestArgumentsAreCheckedByWhoeverIsAsked(t *testing.T) {
	base := drivertest.AllFeatures
	for _, c := range []struct {
		features drivertest.Features
		want     string
	}{
		{base &^ drivertest.StmtNamedValueChecker, `$1="yes" $2="18446744073709551615"`},
		{base &^ drivertest.StmtColumnConverter, `$1=bool(true) $2="18446744073709551615"`},
	} {
		d := drivertest.New(drivertest.WithFeatures(c.features))
		db := openDB(t, d)
		stmt := must(db.Prepare("x $1 $2"))(t)
		must(stmt.Exec(true, uint64(1<<64-1)))(t)
		stmt.Close()
		if got := d.Log(drivertest.StmtExec); len(got) != 1 || !strings.HasSuffix(got[0], c.want) {
			t.Errorf("%v: %q, want %s", c.features, got, c.want)
		}
	}
}

func TestTheDriverIsFreeOfAllocationsWithoutALog(t *testing.T) {
	d := drivertest.New(drivertest.WithoutLog())
	conn := must(d.Connector().Connect(ctx))(t)
	dest := make([]driver.Value, 1)
	allocs := testing.AllocsPerRun(100, func() {
		tx, _ := conn.(driver.ConnBeginTx).BeginTx(ctx, driver.TxOptions{})
		conn.(driver.ExecerContext).ExecContext(ctx, "UPDATE", nil)
		rows, _ := conn.(driver.QueryerContext).QueryContext(ctx, "SELECT", nil)
		rows.Next(dest)
		rows.Close()
		tx.Commit()
	})
	if allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
	if v := d.Violations(); len(v) > 0 {
		t.Errorf("violations: %q", v)
	}
}

func BenchmarkTransaction(b *testing.B) {
	db := openDB(b, drivertest.New(drivertest.WithoutLog()))
	b.ReportAllocs()
	for b.Loop() {
		tx, err := db.Begin()
		if err != nil {
			b.Fatal(err)
		}
		if _, err := tx.Exec("UPDATE t"); err != nil {
			b.Fatal(err)
		}
		if err := tx.Commit(); err != nil {
			b.Fatal(err)
		}
	}
}
