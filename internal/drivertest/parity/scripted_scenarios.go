package parity

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"reflect"
	"sync"
	"time"

	"github.com/pgretry/pgretry/internal/drivertest"
)

var scriptedScenarios = []scenario{
	{name: "results", run: scriptedResults},
	{name: "result sets and column types", run: scriptedSets},
	{name: "shared buffers", run: scriptedSharedBuffers, options: []drivertest.Option{drivertest.WithSharedBuffers()}},
	{name: "arguments", run: scriptedArguments, connOnly: true},
	{name: "arguments of statements that count none", run: scriptedArguments, connOnly: true, options: []drivertest.Option{drivertest.WithUnknownInputs()}},
	{name: "argument errors", run: scriptedArgumentErrors, connOnly: true},
	{name: "errors of the server", run: errorsAtEachCall(
		&drivertest.Error{Severity: "ERROR", Code: "23505", Message: "duplicate key", Detail: "Key (id)=(1) already exists.", ConstraintName: "t_pkey"}), connOnly: true},
	{name: "errors of the driver", run: errorsAtEachCall(errors.New("an error of the driver")), connOnly: true},
	{name: "wrapped errors", run: errorsAtEachCall(fmt.Errorf("wrapped: %w", &drivertest.Error{Severity: "ERROR", Code: "22012", Message: "division by zero"})), connOnly: true},
	{name: "context errors", run: errorsAtEachCall(context.DeadlineExceeded), connOnly: true},
	{name: "unexpected ends", run: errorsAtEachCall(io.ErrUnexpectedEOF), connOnly: true},
	{name: "bad connections", run: errorsAtEachCall(driver.ErrBadConn), connOnly: true},
	{name: "wrapped bad connections", run: errorsAtEachCall(fmt.Errorf("wrapped: %w", driver.ErrBadConn)), connOnly: true},
	{name: "skipped fast paths", run: scriptedSkip},
	{name: "transactions", run: scriptedTransactions},
	{name: "transaction options", run: scriptedOptions},
	{name: "aborted blocks", run: scriptedAbortedBlocks, options: []drivertest.Option{drivertest.WithTransactionState(nil), drivertest.WithOneCursor()}},
	{name: "prepared statements", run: scriptedStatements},
	{name: "cancelled before", run: scriptedCancelledBefore},
	{name: "cancelled during", run: scriptedCancelledDuring, connOnly: true},
	{name: "cancelled idle transaction", run: scriptedCancelledIdleTx},
	{name: "deadlines", run: scriptedDeadlines},
	{name: "resetting sessions", run: scriptedReset, connOnly: true},
	{name: "invalid connections", run: scriptedInvalid},
	{name: "dropped connections", run: scriptedDropped, connOnly: true},
	{name: "connecting", run: scriptedConnecting},
	{name: "closing", run: scriptedClosing},
	{name: "connections", run: scriptedConnections},
	{name: "raw connections", run: scriptedRaw},
	{name: "ping", run: scriptedPing},
	{name: "rows left open", run: scriptedRowsLeftOpen},
	{name: "panics", run: scriptedPanics},
	{name: "many goroutines", run: scriptedConcurrent, connOnly: true, unordered: true},
}

// identity notes whether err is the very value that was injected, not a copy and
// not wrapped: callers assert types directly.
func (s *session) identity(label string, err, injected error) {
	s.note("%s: the very same error %t", label, err == injected)
}

func scriptedResults(s *session) {
	s.script.Affected("UPDATE", 42)
	s.script.On(drivertest.AnyExec).Matching("CREATE").Result(driver.ResultNoRows)
	s.script.On(drivertest.AnyExec).Matching("INSERT").Result(idResult{})
	use := func(q querier) {
		for _, query := range []string{"UPDATE t", "CREATE TABLE t", "INSERT INTO t", "anything", ""} {
			s.exec(q, query)
			s.query(q, query)
			s.queryRow(q, query)
			s.stats("after " + query)
		}
	}
	use(s.db)
	tx := s.inTx(nil)
	use(tx)
	s.err("commit", tx.Commit())
}

// idResult is a result that has both numbers, like MySQL's.
type idResult struct{}

func (idResult) LastInsertId() (int64, error) { return 7, nil }
func (idResult) RowsAffected() (int64, error) { return 3, errors.New("counted in part") }

var wideSet = drivertest.ResultSet{
	Columns: []drivertest.Column{
		{Name: "i", DatabaseType: "INT4", ScanType: reflect.TypeFor[int32]()},
		{Name: "n", DatabaseType: "NUMERIC", ScanType: reflect.TypeFor[string](), Precision: 10, Scale: 2, HasDecimal: true},
		{Name: "v", DatabaseType: "VARCHAR", ScanType: reflect.TypeFor[string](), Length: 20, HasLength: true},
		{Name: "t", DatabaseType: "TEXT", ScanType: reflect.TypeFor[sql.NullString](), Nullable: true, HasNullable: true},
		{Name: "f", DatabaseType: "FLOAT8", ScanType: reflect.TypeFor[float64](), HasNullable: true},
		{Name: "b", DatabaseType: "BYTEA", ScanType: reflect.TypeFor[[]byte]()},
		{Name: "ts", DatabaseType: "TIMESTAMPTZ", ScanType: reflect.TypeFor[time.Time]()},
		{Name: "bool", DatabaseType: "BOOL", ScanType: reflect.TypeFor[bool]()},
		{Name: "i"},
		{},
	},
	Rows: [][]driver.Value{
		{int64(1), "1.50", "v", "t", 2.5, []byte{0, 255}, time.Date(2024, 2, 29, 1, 2, 3, 4, time.UTC), true, "again", nil},
		{nil, nil, nil, nil, nil, nil, nil, nil, nil, nil},
		{int64(-1), "", "", "", 0.0, []byte{}, time.Time{}, false, []byte(nil), int64(0)},
	},
}

func scriptedSets(s *session) {
	broken := errors.New("broken off")
	s.script.Rows("WIDE", wideSet)
	s.script.Rows("EMPTY", drivertest.ResultSet{Columns: wideSet.Columns})
	s.script.Rows("NOTHING", drivertest.ResultSet{})
	s.script.Rows("SEVERAL", wideSet, drivertest.ResultSet{}, drivertest.ResultSet{Columns: drivertest.Columns("a"), Rows: [][]driver.Value{{"x"}}})
	s.script.Rows("BROKEN", drivertest.ResultSet{Columns: drivertest.Columns("a"), Rows: [][]driver.Value{{"x"}}, Err: broken}, wideSet)
	s.script.Rows("LATER", wideSet, drivertest.ResultSet{Columns: drivertest.Columns("a"), Rows: [][]driver.Value{{"x"}}, Err: broken})
	use := func(q querier) {
		for _, query := range []string{"WIDE", "EMPTY", "NOTHING", "SEVERAL", "BROKEN", "LATER"} {
			err := s.query(q, query)
			if err != nil {
				s.identity(query, err, broken)
			}
			s.queryRow(q, query)
			rows, err := q.QueryContext(s.ctx, query)
			if s.failed(query, err) {
				continue
			}
			s.note("skip to the next result set: %t", rows.NextResultSet())
			s.columns("second", rows)
			s.note("next: %t", rows.Next())
			s.note("next result set: %t", rows.NextResultSet())
			s.err("close", rows.Close())
			s.err("err", rows.Err())
			s.columns("closed", rows)
			s.err("scan", rows.Scan(new(any)))
			s.stats(query)
		}
	}
	use(s.db)
	tx := s.inTx(nil)
	use(tx)
	s.err("rollback", tx.Rollback())
	s.err("scan error", s.db.QueryRowContext(s.ctx, "WIDE").Scan(new(string), new(int), new(any), new(any), new(any), new(any), new(any), new(any), new(any), new(any)))
}

func scriptedSharedBuffers(s *session) {
	s.script.Rows("BYTES", drivertest.ResultSet{Columns: drivertest.Columns("a", "b"), Rows: [][]driver.Value{
		{[]byte("one"), []byte("two")}, {[]byte("three"), nil}, {[]byte{}, []byte("six")},
	}})
	rows, err := s.db.QueryContext(s.ctx, "BYTES")
	if s.failed("query", err) {
		return
	}
	var copies [][]byte
	var values []any
	for rows.Next() {
		var raw sql.RawBytes
		var owned []byte
		if s.failed("scan", rows.Scan(&raw, &owned)) {
			break
		}
		s.note("raw %q", raw)
		copies = append(copies, owned)
	}
	s.err("err", rows.Err())
	s.err("close", rows.Close())
	for range 2 {
		var a, b any
		s.err("row", s.db.QueryRowContext(s.ctx, "BYTES").Scan(&a, &b))
		values = append(values, a, b)
	}
	s.note("kept: %q %q", copies, values)
}

// echo answers a query with its arguments, as the driver got them.
func (s *session) echo() {
	s.script.On(drivertest.AnyQuery).Matching("ECHO").RowsFunc(func(inv *drivertest.Invocation) ([]drivertest.ResultSet, error) {
		set := drivertest.ResultSet{Rows: [][]driver.Value{nil}}
		for _, arg := range inv.Args {
			set.Columns = append(set.Columns, drivertest.Column{Name: "$" + fmt.Sprint(arg.Ordinal) + arg.Name})
			set.Rows[0] = append(set.Rows[0], arg.Value)
		}
		return []drivertest.ResultSet{set}, nil
	})
}

func scriptedArguments(s *session) {
	s.echo()
	cases := [][]any{{}, {1, "a"}, {true, false}, {drivertest.QueryOption("o"), 1}, {1, drivertest.QueryOption("o")}, {drivertest.QueryOption("o")}}
	for _, c := range argumentCases {
		cases = append(cases, []any{c.value})
	}
	for _, args := range cases {
		query := "ECHO"
		for i := range args {
			query += fmt.Sprintf(" $%d", i+1)
		}
		s.query(s.db, query, args...)
		s.exec(s.db, query, args...)
		for _, text := range []string{query, "ECHO $1", "ECHO"} {
			stmt, err := s.db.PrepareContext(s.ctx, text)
			if s.failed("prepare", err) {
				continue
			}
			rows, err := stmt.QueryContext(s.ctx, args...)
			if !s.failed("prepared query", err) {
				s.rows("prepared query", rows)
			}
			result, err := stmt.ExecContext(s.ctx, args...)
			s.result("prepared exec", result, err)
			s.err("close", stmt.Close())
		}
		s.stats("afterwards")
	}
}

func scriptedArgumentErrors(s *session) {
	for _, injected := range []error{errors.New("refused"), driver.ErrSkip, driver.ErrRemoveArgument} {
		s.script.ClearRules()
		s.echo()
		s.script.Fail(drivertest.CheckNamedValue|drivertest.StmtCheckNamedValue, injected)
		s.query(s.db, "ECHO $1 $2", 1, "a")
		s.exec(s.db, "ECHO $1", 1)
		s.exec(s.db, "ECHO $1", struct{}{})
		stmt, err := s.db.PrepareContext(s.ctx, "ECHO $1")
		if !s.failed("prepare", err) {
			result, err := stmt.ExecContext(s.ctx, 1)
			s.result("prepared", result, err)
			s.err("close", stmt.Close())
		}
		s.stats("afterwards")
	}
}

// routine does a bit of everything and stops at the first error, which it returns
// with the name of the step.
func (s *session) routine() (string, error) {
	ctx := drivertest.WithLabel(s.ctx, "routine")
	if err := s.db.PingContext(ctx); err != nil {
		return "ping", err
	}
	if _, err := s.db.ExecContext(ctx, "OUTSIDE $1", 1); err != nil {
		return "exec outside", err
	}
	if err := s.db.QueryRowContext(ctx, "OUTSIDE ROW").Scan(new(any)); err != nil {
		return "query outside", err
	}
	outer, err := s.db.PrepareContext(ctx, "OUTER $1")
	if err != nil {
		return "prepare outside", err
	}
	defer func() { s.err("close outer statement", outer.Close()) }()
	if _, err := outer.ExecContext(ctx, 1); err != nil {
		return "prepared exec outside", err
	}
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return "begin", err
	}
	defer func() {
		s.err("deferred rollback", tx.Rollback())
		s.stats("deferred rollback")
	}()
	if _, err := tx.ExecContext(ctx, "UPDATE $1", 1); err != nil {
		return "exec", err
	}
	if _, err := tx.StmtContext(ctx, outer).ExecContext(ctx, 2); err != nil {
		return "tx.Stmt", err
	}
	inner, err := tx.PrepareContext(ctx, "INNER $1")
	if err != nil {
		return "prepare", err
	}
	rows, err := inner.QueryContext(ctx, 1)
	if err != nil {
		return "prepared query", err
	}
	if err := s.rows("prepared query", rows); err != nil {
		return "prepared rows", err
	}
	if err := inner.Close(); err != nil {
		return "close statement", err
	}
	rows, err = tx.QueryContext(ctx, "SELECT")
	if err != nil {
		return "query", err
	}
	if err := s.rows("query", rows); err != nil {
		return "rows", err
	}
	rows, err = tx.QueryContext(ctx, "SELECT, CLOSED EARLY")
	if err != nil {
		return "second query", err
	}
	if err := rows.Close(); err != nil {
		return "close rows", err
	}
	if err := tx.QueryRowContext(ctx, "SELECT ROW").Scan(new(any)); err != nil {
		return "row", err
	}
	return "commit", tx.Commit()
}

const routineCalls = 3 // at most so many calls of a kind are failed, one by one

// errorsAtEachCall returns a scenario that fails each kind of call in turn, the
// first, second and third of its kind.
func errorsAtEachCall(injected error) func(*session) {
	return func(s *session) {
		for call := drivertest.Connect; call < drivertest.AnyCall; call <<= 1 {
			// How often arguments are checked is a scenario of its own; the others have
			// no errors or come after the routine.
			const others = drivertest.CheckNamedValue | drivertest.StmtCheckNamedValue | drivertest.ConvertColumn | drivertest.CloseConnector
			if call&others != 0 {
				continue
			}
			for n := range routineCalls {
				s.script.ClearRules()
				s.script.Rows("SELECT", wideSet, drivertest.ResultSet{Columns: drivertest.Columns("a")})
				rule := s.script.Fail(call, injected).At(n + 1)
				s.note("%v fails at call %d", call, n+1)
				step, err := s.routine()
				s.err(step, err)
				s.identity(step, err, injected)
				s.settle("routine")
				if rule.Fired() == 0 {
					break
				}
			}
		}
		s.script.ClearRules()
		step, err := s.routine()
		s.err("undisturbed: "+step, err)
	}
}

func scriptedSkip(s *session) {
	s.script.Fail(drivertest.Exec|drivertest.Query, driver.ErrSkip).Matching("SKIP")
	s.exec(s.db, "SKIP $1", 1)
	s.query(s.db, "SKIP $1", 1)
	tx := s.inTx(nil)
	s.exec(tx, "SKIP $1", 1)
	s.query(tx, "SKIP $1", 1)
	s.exec(tx, "SKIP $1, TOO FEW")
	s.err("commit", tx.Commit())
	refused := errors.New("refused")
	s.script.Fail(drivertest.Prepare, refused).Matching("REFUSED")
	s.exec(s.db, "SKIP REFUSED")
	s.query(s.db, "SKIP REFUSED")
	s.stats("afterwards")
}

func scriptedTransactions(s *session) {
	for _, end := range []struct {
		name string
		end  func(*sql.Tx) error
	}{{"commit", (*sql.Tx).Commit}, {"rollback", (*sql.Tx).Rollback}} {
		tx := s.inTx(nil)
		s.exec(tx, "UPDATE")
		s.query(tx, "SELECT")
		s.stats("open")
		s.err(end.name, end.end(tx))
		s.stats(end.name)
		s.err("commit again", tx.Commit())
		s.err("rollback again", tx.Rollback())
		s.exec(tx, "UPDATE")
		s.query(tx, "SELECT")
		_, err := tx.PrepareContext(s.ctx, "SELECT")
		s.err("prepare", err)
		tx = s.inTx(nil)
		s.err("empty "+end.name, end.end(tx))
	}
	// Without a context that can be cancelled database/sql takes another path.
	tx, err := s.db.Begin()
	s.err("begin", err)
	if err == nil {
		_, err = tx.Exec("UPDATE")
		s.err("exec", err)
		s.err("commit", tx.Commit())
	}
}

func scriptedOptions(s *session) {
	for level := sql.LevelDefault; level <= sql.LevelLinearizable+1; level++ {
		for _, readOnly := range []bool{false, true} {
			s.note("level %v, read-only %t", level, readOnly)
			if tx := s.inTx(&sql.TxOptions{Isolation: level, ReadOnly: readOnly}); tx != nil {
				s.err("commit", tx.Commit())
			}
			s.stats("afterwards")
		}
	}
}

func scriptedAbortedBlocks(s *session) {
	duplicate := &drivertest.Error{Severity: "ERROR", Code: "23505", Message: "duplicate"}
	s.script.Fail(drivertest.AnyStatement, duplicate).Matching("DUPLICATE")
	s.script.Rows("MIDWAY", drivertest.ResultSet{Columns: drivertest.Columns("a"), Rows: [][]driver.Value{{"x"}}, Err: duplicate})
	s.script.Fail(drivertest.RowsClose, duplicate).Matching("AT CLOSE")
	for _, query := range []string{"DUPLICATE", "MIDWAY", "AT CLOSE"} {
		for _, end := range []struct {
			name string
			end  func(*sql.Tx) error
		}{{"commit", (*sql.Tx).Commit}, {"rollback", (*sql.Tx).Rollback}} {
			tx := s.inTx(nil)
			s.exec(tx, "UPDATE")
			s.exec(tx, "SAVEPOINT a")
			s.query(tx, query)
			s.exec(tx, "UPDATE")
			s.exec(tx, "SAVEPOINT b")
			s.exec(tx, "ROLLBACK TO missing")
			s.exec(tx, "ROLLBACK TO a")
			s.exec(tx, "UPDATE")
			s.queryRow(tx, query)
			s.queryRow(tx, "SELECT")
			_, err := tx.PrepareContext(s.ctx, "SELECT")
			s.err("prepare", err)
			s.err(end.name, end.end(tx))
			s.stats(end.name)
			s.queryRow(s.db, "SELECT")
		}
	}
	tx := s.inTx(nil)
	s.exec(tx, "DUPLICATE")
	s.exec(tx, "COMMIT")
	s.exec(tx, "UPDATE")
	s.err("commit", tx.Commit())
}

func scriptedStatements(s *session) {
	stmt, err := s.db.PrepareContext(s.ctx, "OUTER $1")
	if s.failed("prepare", err) {
		return
	}
	show := func(label string, stmt *sql.Stmt, args ...any) {
		result, err := stmt.ExecContext(s.ctx, args...)
		s.result(label, result, err)
		rows, err := stmt.QueryContext(s.ctx, args...)
		if !s.failed(label, err) {
			s.rows(label, rows)
		}
		s.stats(label)
	}
	show("db", stmt, 1)
	show("too few", stmt)
	show("too many", stmt, 1, 2)
	tx := s.inTx(nil)
	inTx := tx.StmtContext(s.ctx, stmt)
	show("tx.Stmt", inTx, 2)
	inner, err := tx.PrepareContext(s.ctx, "INNER $1")
	if !s.failed("prepare", err) {
		show("inner", inner, 3)
		show("tx.Stmt of a tx statement", tx.StmtContext(s.ctx, inner), 4)
	}
	s.err("rollback", tx.Rollback())
	show("tx.Stmt after rollback", inTx, 2)
	show("db after rollback", stmt, 5)
	conn, err := s.db.Conn(s.ctx)
	if !s.failed("conn", err) {
		bound, err := conn.PrepareContext(s.ctx, "BOUND $1")
		if !s.failed("prepare", err) {
			show("bound", bound, 6)
			s.err("close bound", bound.Close())
		}
		s.err("close the connection", conn.Close())
	}
	// On a new connection database/sql prepares it again.
	s.script.Fail(drivertest.IsValid, errors.New("invalid")).Times(1)
	s.script.Fail(drivertest.ResetSession, driver.ErrBadConn).Times(1)
	s.exec(s.db, "UPDATE")
	show("db, connection dropped", stmt, 7)
	s.err("close", stmt.Close())
	s.err("close again", stmt.Close())
	show("closed", stmt, 8)
	s.exec(s.db, "UPDATE")
}

func scriptedCancelledBefore(s *session) {
	stmt, err := s.db.PrepareContext(s.ctx, "SELECT $1")
	if s.failed("prepare", err) {
		return
	}
	ctx := s.cancelled()
	use := func(label string, q querier) {
		s.execContext(ctx, q, "UPDATE")
		s.queryContext(ctx, q, "SELECT")
		s.err(label, q.QueryRowContext(ctx, "SELECT").Scan(new(any)))
		_, err := q.PrepareContext(ctx, "SELECT")
		s.err(label, err)
		s.settleIdle(label, q)
	}
	use("db", s.db)
	_, err = s.db.BeginTx(ctx, nil)
	s.err("begin", err)
	s.err("ping", s.db.PingContext(ctx))
	_, err = stmt.ExecContext(ctx, 1)
	s.err("statement", err)
	tx := s.inTx(nil)
	use("tx", tx)
	_, err = tx.StmtContext(s.ctx, stmt).ExecContext(ctx, 1)
	s.err("tx statement", err)
	s.err("commit", tx.Commit())
	s.err("close", stmt.Close())

	// On a sql.Conn the context reaches the driver.
	conn, err := s.db.Conn(s.ctx)
	if s.failed("conn", err) {
		return
	}
	s.execContext(ctx, conn, "UPDATE")
	_, err = conn.PrepareContext(ctx, "SELECT")
	s.err("prepare on a connection", err)
	_, err = conn.BeginTx(ctx, nil)
	s.err("begin on a connection", err)
	s.err("ping on a connection", conn.PingContext(ctx))
	s.err("close", conn.Close())
	s.settle("closed")
}

// settleIdle waits for the pool unless q holds the connection.
func (s *session) settleIdle(label string, q querier) {
	if q == querier(s.db) {
		s.settle(label)
	} else {
		s.stats(label)
	}
}

// cancelInside makes the first call of the given kinds cancel a context and fail
// with its error, if it was given one. Calls that open or read rows fail even if
// not: else database/sql, which closes the rows in the background, would race with
// the application's reading them.
func (s *session) cancelInside(calls drivertest.Call) context.Context {
	s.script.ClearRules()
	ctx, cancel := context.WithCancel(s.ctx)
	s.script.On(calls).Times(1).Do(func(inv *drivertest.Invocation) error {
		cancel()
		if inv.Call&(drivertest.AnyQuery|drivertest.RowsNext|drivertest.Commit) != 0 {
			return context.Canceled
		}
		if inv.Context == nil {
			return nil
		}
		return inv.Context.Err()
	})
	return ctx
}

func scriptedCancelledDuring(s *session) {
	use := func(label string, calls drivertest.Call, do func(context.Context) error) {
		s.err(label, do(s.cancelInside(calls)))
		s.settle(label)
		s.script.ClearRules()
		s.queryRow(s.db, "SELECT")
	}
	inTx := func(do func(*sql.Tx, context.Context) error) func(context.Context) error {
		return func(ctx context.Context) error {
			tx := s.inTx(nil)
			err := do(tx, ctx)
			s.exec(tx, "UPDATE")
			s.err("rollback", tx.Rollback())
			return err
		}
	}
	// database/sql closes the rows of a context that ended on a goroutine of its
	// own: whether a scan comes before that is chance, with any driver. So nothing
	// is done with rows but to fetch one, where the context is still good, and to
	// close them.
	query := func(q querier, ctx context.Context) error {
		rows, err := q.QueryContext(ctx, "SELECT")
		if err != nil {
			return err
		}
		return rows.Close()
	}
	next := func(q querier, ctx context.Context) error {
		rows, err := q.QueryContext(ctx, "SELECT")
		if err != nil {
			return err
		}
		rows.Next()
		return rows.Close()
	}
	use("connect", drivertest.Connect, s.db.PingContext)
	use("exec", drivertest.AnyExec, func(ctx context.Context) error { return s.execContext(ctx, s.db, "UPDATE") })
	use("query", drivertest.AnyQuery, func(ctx context.Context) error { return query(s.db, ctx) })
	use("next", drivertest.RowsNext, func(ctx context.Context) error { return next(s.db, ctx) })
	use("prepare", drivertest.Prepare, func(ctx context.Context) error {
		_, err := s.db.PrepareContext(ctx, "SELECT")
		return err
	})
	if s.script.Features().Has(drivertest.Pinger) {
		use("ping", drivertest.Ping, s.db.PingContext)
	}
	use("begin", drivertest.Begin, func(ctx context.Context) error {
		_, err := s.db.BeginTx(ctx, nil)
		return err
	})
	use("exec in tx", drivertest.AnyExec, inTx(func(tx *sql.Tx, ctx context.Context) error { return s.execContext(ctx, tx, "UPDATE") }))
	use("query in tx", drivertest.AnyQuery, inTx(func(tx *sql.Tx, ctx context.Context) error {
		return query(tx, ctx)
	}))
	use("next in tx", drivertest.RowsNext, inTx(func(tx *sql.Tx, ctx context.Context) error {
		return next(tx, ctx)
	}))
	use("prepare in tx", drivertest.Prepare, inTx(func(tx *sql.Tx, ctx context.Context) error {
		_, err := tx.PrepareContext(ctx, "SELECT")
		return err
	}))
	use("statement in tx with a cancelled BEGIN", drivertest.AnyExec, func(ctx context.Context) error {
		tx := s.beginTx(ctx, nil)
		s.exec(tx, "UPDATE")
		s.settle("rolled back")
		return tx.Commit()
	})
	use("commit", drivertest.Commit, func(ctx context.Context) error {
		tx := s.beginTx(ctx, nil)
		s.exec(tx, "UPDATE")
		return tx.Commit()
	})
}

func scriptedCancelledIdleTx(s *session) {
	for range 2 {
		ctx, cancel := context.WithCancel(s.ctx)
		tx := s.beginTx(ctx, nil)
		s.exec(tx, "UPDATE")
		cancel()
		s.settle("cancelled")
		s.exec(tx, "UPDATE")
		s.err("commit", tx.Commit())
		s.err("rollback", tx.Rollback())
		s.queryRow(s.db, "SELECT")
	}
	s.script.Fail(drivertest.Rollback, errors.New("rollback failed")).Times(1)
	ctx, cancel := context.WithCancel(s.ctx)
	s.beginTx(ctx, nil)
	cancel()
	s.settle("cancelled")
	s.queryRow(s.db, "SELECT")
}

func scriptedDeadlines(s *session) {
	ctx, cancel := context.WithTimeout(drivertest.WithLabel(s.ctx, "far"), time.Hour)
	defer cancel()
	s.execContext(ctx, s.db, "UPDATE")
	s.queryContext(ctx, s.db, "SELECT")
	tx := s.beginTx(ctx, nil)
	s.execContext(context.Background(), tx, "UPDATE")
	s.err("commit", tx.Commit())
	ctx, cancel = context.WithDeadline(s.ctx, time.Now().Add(-time.Hour))
	defer cancel()
	s.execContext(ctx, s.db, "UPDATE")
	s.settle("afterwards")
}

func scriptedReset(s *session) {
	for _, injected := range []error{errors.New("cannot reset"), driver.ErrBadConn, fmt.Errorf("wrapped: %w", driver.ErrBadConn), context.Canceled} {
		s.script.ClearRules()
		s.exec(s.db, "UPDATE")
		s.script.Fail(drivertest.ResetSession, injected).Times(1)
		s.exec(s.db, "UPDATE")
		s.stats("afterwards")
		s.exec(s.db, "UPDATE")
	}
	s.script.ClearRules()
	s.script.Fail(drivertest.ResetSession, driver.ErrBadConn).Times(3)
	for _, label := range []string{"query", "begin", "ping"} {
		switch label {
		case "query":
			s.query(s.db, "SELECT")
		case "begin":
			if tx := s.inTx(nil); tx != nil {
				s.err("commit", tx.Commit())
			}
		case "ping":
			s.err("ping", s.db.PingContext(s.ctx))
		}
		s.stats(label)
	}
}

func scriptedInvalid(s *session) {
	invalid := errors.New("invalid")
	s.script.Fail(drivertest.IsValid, invalid).Times(2)
	for range 3 {
		s.exec(s.db, "UPDATE")
		s.stats("exec")
	}
	s.script.Fail(drivertest.IsValid, invalid).Times(1)
	tx := s.inTx(nil)
	s.err("commit", tx.Commit())
	s.stats("commit")
	s.script.Fail(drivertest.IsValid, invalid).Times(1)
	s.query(s.db, "SELECT")
	s.script.Fail(drivertest.IsValid, invalid).Times(1)
	conn, err := s.db.Conn(s.ctx)
	if !s.failed("conn", err) {
		s.err("close", conn.Close())
	}
	s.stats("afterwards")
}

func scriptedDropped(s *session) {
	fatal := &drivertest.Error{Severity: "FATAL", Code: "57P01", Message: "terminating connection due to administrator command"}
	for _, use := range []struct {
		call drivertest.Call
		do   func() error
	}{
		{drivertest.AnyExec, func() error { _, err := s.db.ExecContext(s.ctx, "UPDATE"); return err }},
		{drivertest.AnyQuery, func() error { return s.db.QueryRowContext(s.ctx, "SELECT").Scan(new(any)) }},
		{drivertest.RowsNext, func() error { return s.db.QueryRowContext(s.ctx, "SELECT").Scan(new(any)) }},
		{drivertest.Prepare, func() error { _, err := s.db.PrepareContext(s.ctx, "SELECT"); return err }},
		{drivertest.Begin, func() error {
			tx, err := s.db.BeginTx(s.ctx, nil)
			if err != nil {
				return err
			}
			return tx.Rollback() // where a wrapper has begun on another connection
		}},
		{drivertest.Commit, func() error {
			tx, err := s.db.BeginTx(s.ctx, nil)
			if err != nil {
				return err
			}
			return tx.Commit()
		}},
		{drivertest.Rollback, func() error {
			tx, err := s.db.BeginTx(s.ctx, nil)
			if err != nil {
				return err
			}
			return tx.Rollback()
		}},
	} {
		s.script.ClearRules()
		s.script.Fail(use.call, fatal).Times(1).Drops()
		err := use.do()
		s.err(use.call.String(), err)
		s.identity(use.call.String(), err, fatal)
		s.settle(use.call.String())
		s.err("again", s.db.PingContext(s.ctx))
		s.exec(s.db, "UPDATE")
		s.stats("again")
	}
}

func scriptedConnecting(s *session) {
	for _, injected := range []error{
		errors.New("no route"), driver.ErrBadConn, &drivertest.Error{Severity: "FATAL", Code: "28P01", Message: "password authentication failed"},
	} {
		s.script.ClearRules()
		s.script.Fail(drivertest.Connect, injected)
		err := s.db.PingContext(s.ctx)
		s.err("ping", err)
		s.identity("ping", err, injected)
		s.exec(s.db, "UPDATE")
		s.inTx(nil)
		s.stats("refused")
	}
	s.script.ClearRules()
	s.exec(s.db, "UPDATE")
}

func scriptedClosing(s *session) {
	s.script.Fail(drivertest.Close, errors.New("cannot close the connection"))
	s.script.Fail(drivertest.CloseConnector, errors.New("cannot close the connector"))
	s.script.Fail(drivertest.StmtClose, errors.New("cannot close the statement"))
	s.script.Fail(drivertest.RowsClose, errors.New("cannot close the rows")).Matching("ROWS")
	stmt, err := s.db.PrepareContext(s.ctx, "SELECT")
	s.err("prepare", err)
	s.err("close statement", stmt.Close())
	s.query(s.db, "ROWS")
	s.queryRow(s.db, "ROWS")
	s.exec(s.db, "UPDATE")
	// The session closes the handle and notes the error.
}

func scriptedConnections(s *session) {
	conn, err := s.db.Conn(s.ctx)
	if s.failed("conn", err) {
		return
	}
	s.exec(conn, "UPDATE $1", 1)
	s.query(conn, "SELECT")
	s.err("ping", conn.PingContext(s.ctx))
	tx, err := conn.BeginTx(s.ctx, &sql.TxOptions{})
	if !s.failed("begin", err) {
		s.exec(tx, "UPDATE")
		s.err("commit", tx.Commit())
	}
	s.script.Fail(drivertest.AnyExec, driver.ErrBadConn).Matching("BAD")
	s.exec(conn, "BAD")
	s.exec(conn, "UPDATE")
	s.err("close", conn.Close())
	s.settle("closed")
	s.exec(s.db, "UPDATE")
}

func scriptedRaw(s *session) {
	use := func(label string, f func(any) error) {
		conn, err := s.db.Conn(s.ctx)
		if s.failed(label, err) {
			return
		}
		func() {
			defer func() {
				if v := recover(); v != nil {
					s.note("%s: panic %v", label, v)
				}
			}()
			s.err(label, conn.Raw(f))
		}()
		s.exec(conn, "UPDATE")
		s.err(label+": close", conn.Close())
		s.settle(label)
	}
	use("type", func(conn any) error {
		s.note("innermost connection: %T", innermost(conn))
		return nil
	})
	use("use", func(conn any) error {
		stmt, err := innermost(conn).(driver.Conn).Prepare("RAW")
		if err != nil {
			return err
		}
		return stmt.Close()
	})
	use("error", func(any) error { return errors.New("an error of the application") })
	use("bad connection", func(any) error { return driver.ErrBadConn })
	use("panic", func(any) error { panic("ouch") })
}

func scriptedPing(s *session) {
	for _, injected := range []error{nil, errors.New("no answer"), driver.ErrBadConn, fmt.Errorf("wrapped: %w", driver.ErrBadConn)} {
		s.script.ClearRules()
		if injected != nil {
			s.script.Fail(drivertest.Ping, injected)
		}
		err := s.db.PingContext(s.ctx)
		s.err("ping", err)
		s.identity("ping", err, injected)
		s.stats("pinged")
		s.exec(s.db, "UPDATE")
	}
}

func scriptedRowsLeftOpen(s *session) {
	s.script.Rows("SELECT", wideSet, wideSet)
	for _, end := range []struct {
		name string
		end  func(*sql.Tx) error
	}{{"rollback", (*sql.Tx).Rollback}, {"commit", (*sql.Tx).Commit}} {
		tx := s.inTx(nil)
		rows, err := tx.QueryContext(s.ctx, "SELECT")
		if s.failed("query", err) {
			return
		}
		s.note("next: %t", rows.Next())
		s.row("open", rows)
		s.err(end.name, end.end(tx))
		s.settle(end.name)
		s.note("next: %t", rows.Next())
		s.err("err", rows.Err())
		s.err("close", rows.Close())
	}
	rows, err := s.db.QueryContext(s.ctx, "SELECT")
	if s.failed("query", err) {
		return
	}
	s.note("next: %t", rows.Next())
	s.stats("open")
	s.err("close", rows.Close())
	s.err("close again", rows.Close())
	s.note("next: %t", rows.Next())
	s.stats("closed")
}

func scriptedPanics(s *session) {
	s.script.On(drivertest.AnyExec).Panic("ouch").Times(1)
	func() {
		defer func() { s.note("panic: %v", recover()) }()
		s.exec(s.db, "UPDATE")
	}()
	s.settle("afterwards")
	s.exec(s.db, "UPDATE")
}

func scriptedConcurrent(s *session) {
	const goroutines, rounds, size = 8, 10, 4
	s.db.SetMaxOpenConns(size)
	s.db.SetMaxIdleConns(size)
	var all sync.WaitGroup
	for range goroutines {
		all.Go(func() {
			for range rounds {
				tx, err := s.db.BeginTx(s.ctx, nil)
				if s.failed("begin", err) {
					return
				}
				if _, err := tx.ExecContext(s.ctx, "UPDATE $1", 1); err != nil {
					s.err("exec", err)
				}
				if err := tx.QueryRowContext(s.ctx, "SELECT").Scan(new(any)); err != nil {
					s.err("row", err)
				}
				if err := tx.Commit(); err != nil {
					s.err("commit", err)
				}
			}
		})
	}
	all.Wait()
}
