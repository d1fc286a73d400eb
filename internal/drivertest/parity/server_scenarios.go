package parity

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"hash/fnv"
	"time"
)

var serverScenarios = []scenario{
	{name: "exec results", run: execResults},
	{name: "column types and values", run: columnTypes},
	{name: "scan destinations", run: scanDestinations},
	{name: "query row", run: queryRow},
	{name: "server errors", run: serverErrors},
	{name: "errors in mid result", run: errorsInMidResult},
	{name: "several statements", run: severalStatements},
	{name: "arguments", run: arguments},
	{name: "prepared statements", run: preparedStatements},
	{name: "prepared statements in transactions", run: preparedInTx},
	{name: "isolation levels", run: isolationLevels},
	{name: "ended transactions", run: endedTransactions},
	{name: "aborted blocks", run: abortedBlocks},
	{name: "savepoints", run: savepoints},
	{name: "transaction commands as text", run: textTransactions},
	{name: "cancelled before", run: cancelledBefore},
	{name: "cancelled during exec", run: cancelledDuringExec},
	{name: "cancelled during query", run: cancelledDuringQuery},
	{name: "cancelled during next", run: cancelledDuringNext},
	{name: "cancelled during a prepared statement", run: cancelledDuringStmt},
	{name: "cancelled during a statement of a transaction", run: cancelledInTx},
	{name: "cancelled during commit", run: cancelledDuringCommit},
	{name: "deadline", run: deadline},
	{name: "cancelled idle transaction", run: cancelledIdleTx},
	{name: "connections", run: connections},
	{name: "raw connections", run: rawConnections},
	{name: "ping", run: ping},
	{name: "session state", run: sessionState},
	{name: "streaming", run: streaming},
	{name: "rows closed early", run: rowsClosedEarly},
	{name: "rows left open", run: rowsLeftOpen},
	{name: "statement timeout", run: statementTimeout},
	{name: "lost idle connection", run: lostIdleConnection},
	{name: "lost connection in a transaction", run: lostInTx},
	{name: "pool", run: pool},
	{name: "copy", run: copyIn, copyIn: true},
}

func execResults(s *session) {
	for _, query := range []string{
		"INSERT INTO parity_item VALUES (1, 'a', 1), (2, 'b', 2)",
		"UPDATE parity_item SET amount = amount + 1",
		"UPDATE parity_item SET amount = 0 WHERE id = 99",
		"INSERT INTO parity_item VALUES (1, 'a', 1) ON CONFLICT DO NOTHING",
		"SELECT * FROM parity_item",
		"DELETE FROM parity_item WHERE id = 1",
		"DELETE FROM parity_item RETURNING id",
		"CREATE TEMP TABLE parity_temp (a int)",
		"INSERT INTO parity_temp SELECT generate_series(1, 1000)",
		"DROP TABLE parity_temp",
		"SET application_name = 'parity'",
		"",
		";",
		" ",
		"-- nothing but a comment",
		"/* nothing */",
	} {
		s.exec(s.db, query)
		s.stats("after " + query)
	}
	s.exec(s.db, "INSERT INTO parity_item VALUES ($1, $2, $3)", 5, "five", 5)
	s.exec(s.db, "SELECT $1::int", 5)
	s.exec(s.db, "", 5)
}

func columnTypes(s *session) {
	s.query(s.db, "SELECT * FROM parity_types")
	s.exec(s.db, `INSERT INTO parity_types VALUES (
		-2, 4, 9007199254740993, 1.5, -2.25, 123456789.123456789, 12345.60, true,
		'text', 'varchar', 'varchar 20', 'c', 'a_name', '\x00ff10',
		'2024-02-29', '12:34:56.789', '12:34:56+02', '2024-02-29 12:34:56.789012', '2024-02-29 12:34:56.789012+02', '2024-02-29 12:34:56+02', '1 day 2 hours',
		'{"a": 1}', '{"b": [1, 2]}', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '<a/>', '10.0.0.1/8', '08:00:2b:01:02:03', '101', '11', '(1,2)', '[1,5)',
		'{1,NULL,3}', '{"a b",c,"\"q\""}', '{1.5,2.5}', '{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}', 42, '$1.50', 'happy', 'short', '{sad,happy}')`)
	s.exec(s.db, "INSERT INTO parity_types DEFAULT VALUES")
	s.exec(s.db, "INSERT INTO parity_types (f4, f8, n, t, by, d, ts, tstz, ai, v) VALUES ('NaN', 'Infinity', 'NaN', '', '', 'infinity', '-infinity', '0044-03-15 BC', '{}', 'ünï')")
	s.query(s.db, "SELECT * FROM parity_types")
	s.query(s.db, "SELECT * FROM parity_types WHERE i2 = $1", -2)
	s.query(s.db, "SELECT 1, 2 AS two, 3 AS two, NULL, 'unknown', ARRAY[1], ROW(1, 'a'), count(*), sum(n102), now() - now(), ARRAY[[1,2],[3,4]] FROM parity_types")
	s.query(s.db, "SELECT FROM generate_series(1, 3)")
	s.query(s.db, "SELECT repeat('x', 100000) AS long")
	s.query(s.db, `SELECT 1 AS "", 2 AS "ümläut ""q"""`)
	for _, query := range []string{
		"INSERT INTO parity_item VALUES (1, 'a', 1) RETURNING id, name",
		"EXPLAIN SELECT 1", "SHOW server_encoding", "VALUES (1), (2)", "WITH a AS (SELECT 1) SELECT * FROM a",
		"SET application_name = 'parity'", "", ";", "-- nothing",
	} {
		s.query(s.db, query)
	}

	rows, err := s.db.QueryContext(s.ctx, "SELECT 1 AS a")
	if s.failed("query", err) {
		return
	}
	s.err("scan before next", rows.Scan(new(int)))
	s.err("close", rows.Close())
	s.err("close again", rows.Close())
	s.columns("closed rows", rows)
	s.err("scan closed rows", rows.Scan(new(int)))
	s.note("next: %t, next result set: %t", rows.Next(), rows.NextResultSet())
	s.err("err", rows.Err())
}

func scanDestinations(s *session) {
	const query = "SELECT 42::int4 AS i, 'text' AS t, '\\x0102'::bytea AS b, NULL AS n, now() = now() AS bool, 1.5::float8 AS f, '2024-02-29 00:00:00+00'::timestamptz AS ts, 12.30::numeric(10,2) AS num"
	scan := func(label string, dest ...any) {
		s.err(label, s.db.QueryRowContext(s.ctx, query).Scan(dest...))
		for i, d := range dest {
			switch d := d.(type) {
			case *any:
				s.note("%s %d: %s", label, i, format(*d))
			case *string:
				s.note("%s %d: %s", label, i, format(*d))
			case *[]byte:
				s.note("%s %d: %s", label, i, format(*d))
			case *time.Time:
				s.note("%s %d: %s", label, i, format(*d))
			case *int, *float64, *bool, *sql.NullInt64, *sql.NullTime, *sql.NullString:
				s.note("%s %d: %s", label, i, quoted(fmt.Sprintf("%+v", deref(d))))
			}
		}
	}
	var (
		i                 int
		t, str1, str2     string
		b, bytes1, bytes2 []byte
		n, a1, a2, a3     any
		boolean           bool
		f                 float64
		ts                time.Time
		nullInt           sql.NullInt64
		nullString        sql.NullString
		nullTime          sql.NullTime
	)
	scan("plain", &i, &t, &b, &n, &boolean, &f, &ts, &str1)
	scan("any", &a1, &a2, &a3, &n, new(any), new(any), new(any), new(any))
	scan("text and bytes", &str1, &bytes1, &str2, &bytes2, new(string), new(string), new(string), new([]byte))
	scan("null types", &nullInt, &nullString, &b, new(sql.NullInt64), &boolean, &f, &nullTime, new(sql.NullString))
	scan("null into string", &i, &t, &b, new(string), &boolean, &f, &ts, &str1)
	scan("text into int", &i, new(int), &b, &n, &boolean, &f, &ts, &str1)
	scan("too few", &i)
	scan("raw bytes", new(sql.RawBytes), &t, &b, &n, &boolean, &f, &ts, &str1)
	scan("no pointer", i, &t, &b, &n, &boolean, &f, &ts, &str1)
	s.stats("after failed scans")

	rows, err := s.db.QueryContext(s.ctx, "SELECT i, 'row ' || i, repeat(chr(64 + i), i)::bytea FROM generate_series(1, 5) i")
	if s.failed("raw bytes", err) {
		return
	}
	var kept []string
	for rows.Next() {
		var number, text, bytes sql.RawBytes
		if s.failed("raw bytes", rows.Scan(&number, &text, &bytes)) {
			break
		}
		kept = append(kept, string(number)+"/"+string(text)+"/"+string(bytes))
	}
	s.note("raw bytes: %q", kept)
	s.err("raw bytes", rows.Err())
	s.err("raw bytes", rows.Close())
}

func deref(v any) any {
	switch v := v.(type) {
	case *int:
		return *v
	case *float64:
		return *v
	case *bool:
		return *v
	case *sql.NullInt64:
		return *v
	case *sql.NullTime:
		return *v
	case *sql.NullString:
		return *v
	}
	return v
}

func queryRow(s *session) {
	s.queryRow(s.db, "SELECT 1")
	s.queryRow(s.db, "SELECT 1 WHERE false")
	s.queryRow(s.db, "SELECT generate_series(1, 10000)")
	s.queryRow(s.db, "SELECT 1, 2")
	s.queryRow(s.db, "SELEKT")
	s.queryRow(s.db, "SELECT 1 / 0")
	s.queryRow(s.db, "SELECT 1 / (2 - i) FROM generate_series(1, 3) i")
	s.queryRow(s.db, "SELECT $1::int + $2", 1, 2)
	s.queryRow(s.db, "")
	s.queryRow(s.db, "UPDATE parity_item SET amount = 1")
	s.stats("afterwards")
	tx := s.inTx(nil)
	s.queryRow(tx, "SELECT 1")
	s.queryRow(tx, "SELECT 1 WHERE false")
	s.queryRow(tx, "SELECT 1 / (2 - i) FROM generate_series(1, 3) i")
	s.queryRow(tx, "SELECT 1")
	s.err("rollback", tx.Rollback())
	s.stats("afterwards")
}

func serverErrors(s *session) {
	s.exec(s.db, "INSERT INTO parity_item VALUES (1, 'a', 1)")
	for _, query := range []string{
		"SELEKT 1",
		"SELECT * FROM parity_missing",
		"SELECT missing FROM parity_item",
		"SELECT parity_missing(1)",
		"INSERT INTO parity_item VALUES (1, 'again', 1)",
		"INSERT INTO parity_item VALUES (2, NULL, 1)",
		"INSERT INTO parity_item VALUES (2, 'x', -1)",
		"INSERT INTO parity_types (short) VALUES ('no')",
		"INSERT INTO parity_types (short) VALUES ('too long')",
		"INSERT INTO parity_types (mood) VALUES ('angry')",
		"SELECT 1 / 0",
		"SELECT 'x'::int",
		"SELECT '{'::jsonb",
		"SELECT 1; SELECT 1 / 0; SELECT 2",
		"VACUUM; SELECT 1",
		"ROLLBACK TO SAVEPOINT missing",
		"SELECT parity_raise('P0001')",
		"SELECT parity_raise('22012')",
		"SELECT parity_raise('XX001')",
		"SELECT 1 \x00",
	} {
		s.exec(s.db, query)
		s.query(s.db, query)
		s.stats("after " + query)
	}
	s.exec(s.db, "INSERT INTO parity_item VALUES ($1, $2, $3)", 1, "again", 1)
	s.query(s.db, "SELECT 1 / $1::int", 0)
	s.query(s.db, "SELECT $1::int", "no number")
	s.exec(s.db, "SELECT $1::int, $2::text", 1)
	s.query(s.db, "SELECT $1::int", 1, 2)
	s.exec(s.db, "SELECT $1", struct{}{})
	s.stats("at last")
}

func errorsInMidResult(s *session) {
	// The rows before the error are long enough to reach the client first.
	const query = "SELECT i, repeat('x', 9000), 1 / (5 - i) FROM generate_series(1, 10) i"
	use := func(label string, q querier) {
		s.err(label, s.query(q, query))
		s.query(q, "SELECT 1")
		rows, err := q.QueryContext(s.ctx, query)
		if s.failed(label, err) {
			return
		}
		s.note("%s: next %t", label, rows.Next())
		s.err(label+": close with an error to come", rows.Close())
		s.err(label+": err", rows.Err())
		s.stats(label)
	}
	use("db", s.db)
	tx := s.inTx(nil)
	use("tx", tx)
	s.err("commit", tx.Commit())
	stmt, err := s.db.PrepareContext(s.ctx, query)
	if s.failed("prepare", err) {
		return
	}
	rows, err := stmt.QueryContext(s.ctx)
	if !s.failed("statement", err) {
		s.rows("statement", rows)
	}
	var i int
	s.err("row", stmt.QueryRowContext(s.ctx).Scan(&i, new(string), new(int)))
	s.note("row: %d", i)
	s.err("close", stmt.Close())
}

func severalStatements(s *session) {
	for _, query := range []string{
		"SELECT 1; SELECT 'a' AS a, 2 AS b",
		"SELECT 1 WHERE false; SELECT 2",
		"SELECT 1; INSERT INTO parity_item VALUES (1, 'a', 1); SELECT 'a' AS a",
		"INSERT INTO parity_item VALUES (2, 'a', 1); INSERT INTO parity_item VALUES (3, 'a', 1), (4, 'a', 1)",
		"SELECT 1;;SELECT 2;",
		"SELECT 1; SELECT 1 / 0",
		"BEGIN; SELECT 1; COMMIT",
		"CREATE TEMP TABLE parity_temp (a int); INSERT INTO parity_temp VALUES (1); SELECT * FROM parity_temp; DROP TABLE parity_temp",
	} {
		s.query(s.db, query)
		s.queryRow(s.db, query)
		s.exec(s.db, "TRUNCATE parity_item")
		s.exec(s.db, query)
		s.exec(s.db, "TRUNCATE parity_item")
	}
	s.query(s.db, "SELECT $1::int; SELECT $2::int", 1, 2)
	s.exec(s.db, "SELECT 1; SELECT $1::int", 1)

	rows, err := s.db.QueryContext(s.ctx, "SELECT generate_series(1, 5); SELECT 'b'; SELECT 'c'")
	if s.failed("skip", err) {
		return
	}
	s.note("skip: next %t", rows.Next())
	s.note("skip: next result set %t", rows.NextResultSet())
	s.note("skip: next %t", rows.Next())
	s.row("skip", rows)
	s.err("skip: close", rows.Close())
	s.stats("skip")
}

// textValuer is a Valuer of text, like pq.Array.
type textValuer struct {
	text string
	err  error
}

func (v textValuer) Value() (driver.Value, error) { return v.text, v.err }

// nilValuer has Value on the pointer's receiver, so that a nil one becomes NULL.
type nilValuer struct{}

func (nilValuer) Value() (driver.Value, error) { return "not nil", nil }

type named string

var argumentCases = []struct {
	label, kind string
	value       any
}{
	{"nil", "text", nil},
	{"int", "int8", 7},
	{"int8", "int8", int8(-7)},
	{"uint64", "int8", uint64(7)},
	{"uint64 with the high bit", "numeric", uint64(1<<64 - 1)},
	{"uint64 too high", "int8", uint64(1 << 63)},
	{"float", "float8", 1.5},
	{"bool", "bool", true},
	{"string", "text", "täxt"},
	{"empty string", "text", ""},
	{"bytes", "bytea", []byte{0, 1, 255}},
	{"empty bytes", "bytea", []byte{}},
	{"nil bytes", "bytea", []byte(nil)},
	{"bytes as text", "text", []byte("abc")},
	{"time", "timestamptz", time.Date(2024, 2, 29, 12, 0, 0, 123456000, time.FixedZone("", 7200))},
	{"zero time", "timestamptz", time.Time{}},
	{"duration", "int8", time.Second},
	{"named string", "text", named("n")},
	{"pointer", "int8", new(int)},
	{"nil pointer", "int8", (*int)(nil)},
	{"null string", "text", sql.NullString{}},
	{"null int", "int8", sql.Null[int64]{V: 3, Valid: true}},
	{"valuer", "int4[]", textValuer{text: "{1,2}"}},
	{"failing valuer", "text", textValuer{err: errors.New("no value")}},
	{"nil valuer", "text", (*nilValuer)(nil)},
	{"ints", "int8[]", []int64{1, 2}},
	{"strings", "text[]", []string{"a", "b c"}},
	{"raw bytes", "bytea", sql.RawBytes("r")},
	{"struct", "text", struct{ A int }{1}},
	{"map", "text", map[string]int{}},
	{"channel", "text", make(chan int)},
	{"function", "text", func() {}},
	{"complex", "text", 1i},
	{"named argument", "int8", sql.Named("a", 1)},
	{"badly named argument", "int8", sql.Named("1", 1)},
	{"out", "int8", sql.Out{Dest: new(int)}},
	{"string for a number", "int8", "12"},
	{"number for text", "text", 12},
}

func arguments(s *session) {
	for _, c := range argumentCases {
		query := "SELECT $1::" + c.kind + " AS " + quoted(c.label)
		s.query(s.db, query, c.value)
		s.exec(s.db, query, c.value)
		stmt, err := s.db.PrepareContext(s.ctx, query)
		if s.failed("prepare "+query, err) {
			continue
		}
		rows, err := stmt.QueryContext(s.ctx, c.value)
		if !s.failed("prepared "+query, err) {
			s.rows("prepared "+query, rows)
		}
		s.err("close", stmt.Close())
	}
	s.query(s.db, "SELECT $1::int", []any{1}...)
	s.query(s.db, "SELECT 1", 1)
	s.query(s.db, "SELECT $1::int + $2::int", 1)
	s.query(s.db, "SELECT $2::int", 1, 2)
	s.query(s.db, "SELECT $1::int, $1::int", 1)
	s.stats("afterwards")
}

func preparedStatements(s *session) {
	stmt, err := s.db.PrepareContext(s.ctx, "INSERT INTO parity_item VALUES ($1, $2, $3)")
	if s.failed("prepare", err) {
		return
	}
	s.stats("prepared")
	exec := func(label string, args ...any) {
		result, err := stmt.ExecContext(s.ctx, args...)
		s.result(label, result, err)
		s.stats(label)
	}
	exec("first", 1, "a", 1)
	exec("second", 2, "b", nil)
	exec("duplicate", 1, "a", 1)
	exec("after an error", 3, "c", 3)
	exec("too few", 4)
	exec("too many", 4, "d", 4, 4)
	exec("wrong type", "x", "d", 4)
	exec("unsupported type", 4, struct{}{}, 4)
	rows, err := stmt.QueryContext(s.ctx, 5, "e", 5)
	if !s.failed("query of an insert", err) {
		s.rows("query of an insert", rows)
	}
	s.err("close", stmt.Close())
	s.err("close again", stmt.Close())
	exec("closed", 6, "f", 6)

	for _, query := range []string{"SELEKT", "SELECT * FROM parity_missing", "", "SELECT 1; SELECT 2", "SELECT $1", "SELECT 1 / 0"} {
		stmt, err := s.db.PrepareContext(s.ctx, query)
		if s.failed("prepare "+query, err) {
			continue
		}
		result, err := stmt.ExecContext(s.ctx)
		s.result("exec "+query, result, err)
		var value any
		s.err("row "+query, stmt.QueryRowContext(s.ctx).Scan(&value))
		s.note("row %s: %s", query, format(value))
		s.err("close "+query, stmt.Close())
	}

	queried, err := s.db.PrepareContext(s.ctx, "SELECT id, name, amount FROM parity_item WHERE id >= $1 ORDER BY id")
	if s.failed("prepare", err) {
		return
	}
	for range 2 {
		rows, err := queried.QueryContext(s.ctx, 2)
		if !s.failed("query", err) {
			s.rows("query", rows)
		}
	}
	s.exec(s.db, "ALTER TABLE parity_item ADD extra int")
	rows, err = queried.QueryContext(s.ctx, 2)
	if !s.failed("after a change of the table", err) {
		s.rows("after a change of the table", rows)
	}
	s.exec(s.db, "ALTER TABLE parity_item DROP extra")
	s.err("close", queried.Close())

	conn, err := s.db.Conn(s.ctx)
	if s.failed("conn", err) {
		return
	}
	bound, err := conn.PrepareContext(s.ctx, "SELECT $1::int")
	s.err("prepare on a connection", err)
	if err == nil {
		var n int
		s.err("bound", bound.QueryRowContext(s.ctx, 5).Scan(&n))
		s.note("bound: %d", n)
	}
	s.err("close the connection", conn.Close())
	if err == nil {
		s.err("bound, connection closed", bound.QueryRowContext(s.ctx, 5).Scan(new(int)))
		s.err("close bound", bound.Close())
	}
}

func preparedInTx(s *session) {
	outer, err := s.db.PrepareContext(s.ctx, "SELECT $1::int AS n")
	if s.failed("prepare", err) {
		return
	}
	show := func(label string, stmt *sql.Stmt, args ...any) {
		rows, err := stmt.QueryContext(s.ctx, args...)
		if !s.failed(label, err) {
			s.rows(label, rows)
		}
	}
	tx := s.inTx(nil)
	inner, err := tx.PrepareContext(s.ctx, "INSERT INTO parity_item VALUES ($1, 'x', 1)")
	if s.failed("prepare in tx", err) {
		return
	}
	result, err := inner.ExecContext(s.ctx, 1)
	s.result("inner", result, err)
	show("tx.Stmt", tx.StmtContext(s.ctx, outer), 1)
	show("tx.Stmt of a tx statement", tx.StmtContext(s.ctx, inner), 2)
	result, err = inner.ExecContext(s.ctx, 1)
	s.result("duplicate", result, err)
	result, err = inner.ExecContext(s.ctx, 3)
	s.result("aborted", result, err)
	show("tx.Stmt, aborted", tx.StmtContext(s.ctx, outer), 1)
	_, err = tx.PrepareContext(s.ctx, "SELECT 1")
	s.err("prepare, aborted", err)
	s.err("rollback", tx.Rollback())
	s.stats("rolled back")
	result, err = inner.ExecContext(s.ctx, 4)
	s.result("inner after rollback", result, err)
	show("outer after rollback", outer, 2)

	tx = s.inTx(nil)
	bound := tx.StmtContext(s.ctx, outer)
	show("bound", bound, 3)
	_, err = tx.PrepareContext(s.ctx, "SELEKT")
	s.err("prepare a syntax error", err)
	show("bound, aborted", bound, 3)
	s.err("commit", tx.Commit())
	show("bound, committed", bound, 3)
	show("outer, committed", outer, 3)
	s.err("close", outer.Close())

	tx = s.inTx(nil)
	show("closed statement in tx", tx.StmtContext(s.ctx, outer), 4)
	s.err("commit", tx.Commit())
	s.query(s.db, "SELECT count(*) FROM pg_prepared_statements")
}

func isolationLevels(s *session) {
	for level := sql.LevelDefault; level <= sql.LevelLinearizable+1; level++ {
		for _, readOnly := range []bool{false, true} {
			s.note("level %v, read-only %t", level, readOnly)
			tx := s.inTx(&sql.TxOptions{Isolation: level, ReadOnly: readOnly})
			s.stats("begun")
			if tx == nil {
				continue
			}
			s.queryRow(tx, "SHOW transaction_isolation")
			s.queryRow(tx, "SHOW transaction_read_only")
			s.exec(tx, "INSERT INTO parity_item VALUES (1, 'a', 1)")
			s.err("rollback", tx.Rollback())
			s.stats("rolled back")
		}
	}
	if tx := s.inTx(&sql.TxOptions{Isolation: -1}); tx != nil {
		s.err("rollback", tx.Rollback())
	}
	s.exec(s.db, "SET default_transaction_isolation = 'serializable'")
	tx := s.inTx(nil)
	s.queryRow(tx, "SHOW transaction_isolation")
	s.exec(tx, "SET TRANSACTION READ ONLY")
	s.exec(tx, "SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
	s.err("commit", tx.Commit())
}

func endedTransactions(s *session) {
	for _, end := range []struct {
		name string
		end  func(*sql.Tx) error
	}{{"commit", (*sql.Tx).Commit}, {"rollback", (*sql.Tx).Rollback}} {
		tx := s.inTx(nil)
		s.exec(tx, "INSERT INTO parity_item VALUES (1, 'a', 1)")
		s.stats("open")
		s.err(end.name, end.end(tx))
		s.stats(end.name)
		s.err("commit again", tx.Commit())
		s.err("rollback again", tx.Rollback())
		s.exec(tx, "SELECT 1")
		s.query(tx, "SELECT 1")
		s.queryRow(tx, "SELECT 1")
		_, err := tx.PrepareContext(s.ctx, "SELECT 1")
		s.err("prepare", err)
		s.query(s.db, "SELECT * FROM parity_item")
	}
	tx := s.inTx(nil)
	s.err("empty commit", tx.Commit())
	tx = s.inTx(nil)
	s.err("empty rollback", tx.Rollback())
}

func abortedBlocks(s *session) {
	fail := func(tx *sql.Tx) { s.exec(tx, "SELECT 1 / 0") }
	tx := s.inTx(nil)
	s.exec(tx, "INSERT INTO parity_item VALUES (1, 'a', 1)")
	fail(tx)
	s.exec(tx, "SELECT 1")
	s.query(tx, "SELECT 1")
	s.queryRow(tx, "SELECT $1::int", 1)
	s.err("commit of an aborted block", tx.Commit())
	s.stats("after the commit")
	s.query(s.db, "SELECT * FROM parity_item")

	tx = s.inTx(nil)
	fail(tx)
	s.err("rollback of an aborted block", tx.Rollback())
	s.stats("after the rollback")

	tx = s.inTx(nil)
	s.exec(tx, "SELEKT")
	s.exec(tx, "COMMIT")
	s.err("commit after the text COMMIT", tx.Commit())
	s.settle("after the second commit")
	s.query(s.db, "SELECT 1")

	tx = s.inTx(nil)
	s.exec(tx, "SELECT $1", struct{}{})
	s.query(tx, "SELECT 1")
	s.err("commit after an error of the client", tx.Commit())
}

func savepoints(s *session) {
	tx := s.inTx(nil)
	for _, query := range []string{
		"INSERT INTO parity_item VALUES (1, 'a', 1)",
		"SAVEPOINT a", "INSERT INTO parity_item VALUES (2, 'b', 1)", "SAVEPOINT b",
		"INSERT INTO parity_item VALUES (1, 'a', 1)", "SELECT 1", "ROLLBACK TO SAVEPOINT b",
		"SAVEPOINT b", "RELEASE SAVEPOINT b", "ROLLBACK TO a", "INSERT INTO parity_item VALUES (3, 'c', 1)",
		"RELEASE a", "ROLLBACK TO a", "SELECT 1",
	} {
		s.exec(tx, query)
	}
	s.err("rollback", tx.Rollback())
	tx = s.inTx(nil)
	for _, query := range []string{"SAVEPOINT a", "INSERT INTO parity_item VALUES (1, 'a', -1)", "ROLLBACK TO a", "INSERT INTO parity_item VALUES (1, 'a', 1)"} {
		s.exec(tx, query)
	}
	s.err("commit", tx.Commit())
	s.query(s.db, "SELECT * FROM parity_item")
}

func textTransactions(s *session) {
	conn, err := s.db.Conn(s.ctx)
	if s.failed("conn", err) {
		return
	}
	for _, query := range []string{
		"BEGIN ISOLATION LEVEL SERIALIZABLE", "SHOW transaction_isolation", "INSERT INTO parity_item VALUES (1, 'a', 1)", "BEGIN", "COMMIT",
		"COMMIT", "ROLLBACK", "START TRANSACTION READ ONLY", "INSERT INTO parity_item VALUES (2, 'a', 1)", "SELECT 1", "COMMIT",
		"BEGIN; INSERT INTO parity_item VALUES (3, 'a', 1); ROLLBACK", "BEGIN",
	} {
		s.exec(conn, query)
	}
	tx, err := conn.BeginTx(s.ctx, nil)
	s.err("BeginTx inside BEGIN", err)
	if err == nil {
		s.err("rollback", tx.Rollback())
	}
	s.settleConn(conn)
	s.query(s.db, "SELECT * FROM parity_item")
}

func (s *session) settleConn(conn *sql.Conn) {
	s.err("close the connection", conn.Close())
	s.settle("connection closed")
}

func cancelledBefore(s *session) {
	stmt, err := s.db.PrepareContext(s.ctx, "SELECT 1")
	if s.failed("prepare", err) {
		return
	}
	pid := s.pid(s.db)
	ctx := s.cancelled()
	step := func(label string, err error) {
		s.err(label, err)
		s.settle(label)
	}
	_, err = s.db.ExecContext(ctx, "SELECT 1")
	step("exec", err)
	_, err = s.db.QueryContext(ctx, "SELECT 1")
	step("query", err)
	step("row", s.db.QueryRowContext(ctx, "SELECT 1").Scan(new(int)))
	_, err = s.db.PrepareContext(ctx, "SELECT 1")
	step("prepare", err)
	_, err = s.db.BeginTx(ctx, nil)
	step("begin", err)
	step("ping", s.db.PingContext(ctx))
	_, err = s.db.Conn(ctx)
	step("conn", err)
	_, err = stmt.ExecContext(ctx)
	step("statement", err)
	s.note("same backend: %t", s.pid(s.db) == pid)
	s.err("close", stmt.Close())

	tx := s.inTx(nil)
	_, err = tx.ExecContext(ctx, "SELECT 1")
	s.err("exec in tx", err)
	_, err = tx.QueryContext(ctx, "SELECT 1")
	s.err("query in tx", err)
	_, err = tx.PrepareContext(ctx, "SELECT 1")
	s.err("prepare in tx", err)
	s.query(tx, "SELECT 1")
	s.err("commit", tx.Commit())

	// On a sql.Conn a cancelled context reaches the driver. What a real one makes of it
	// depends on who is first at the server, the statement or the cancellation; the
	// scripted driver shows it.
}

const sleep = "SELECT pg_sleep(20)"

func cancelledDuringExec(s *session) {
	pid := s.pid(s.db)
	s.whileSleeping("parity exec", func(ctx context.Context) { s.execContext(ctx, s.db, sleep+" /* parity exec */") })
	s.settle("cancelled")
	s.note("same backend: %t", s.pid(s.db) == pid)
	s.whileSleeping("parity args", func(ctx context.Context) {
		s.execContext(ctx, s.db, "SELECT pg_sleep($1) /* parity args */", 20)
	})
	s.settle("cancelled")
	s.query(s.db, "SELECT 1")
}

func cancelledDuringQuery(s *session) {
	pid := s.pid(s.db)
	s.whileSleeping("parity query", func(ctx context.Context) { s.queryContext(ctx, s.db, sleep+" /* parity query */") })
	s.settle("cancelled")
	s.note("same backend: %t", s.pid(s.db) == pid)
	s.whileSleeping("parity row", func(ctx context.Context) {
		s.err("row", s.db.QueryRowContext(ctx, sleep+" /* parity row */").Scan(new(string)))
	})
	s.settle("cancelled")
	s.query(s.db, "SELECT 1")
}

func cancelledDuringNext(s *session) {
	// The first rows are long enough to reach the client before the server sleeps.
	const query = "SELECT i, repeat('x', 9000), CASE WHEN i > 4 THEN pg_sleep(20) END FROM generate_series(1, 10) i /* parity next */"
	use := func(begin func(context.Context) (querier, func())) {
		s.awaitWake("parity next")
		ctx, cancel := context.WithCancel(s.ctx)
		defer cancel()
		q, end := begin(ctx)
		rows, err := q.QueryContext(ctx, query)
		if s.failed("query", err) {
			return
		}
		for range 2 {
			s.note("next: %t", rows.Next())
		}
		s.awaitSleep("parity next")
		cancel()
		for rows.Next() {
			// How many of the rows already sent are still seen is a matter of luck.
		}
		s.err("err", rows.Err())
		s.err("close", rows.Close())
		end()
		s.settle("cancelled")
		s.query(s.db, "SELECT 1")
	}
	use(func(context.Context) (querier, func()) { return s.db, func() {} })
	use(func(context.Context) (querier, func()) {
		tx := s.inTx(nil)
		return tx, func() {
			s.exec(tx, "SELECT 1")
			s.err("rollback", tx.Rollback())
		}
	})
}

func cancelledDuringStmt(s *session) {
	stmt, err := s.db.PrepareContext(s.ctx, sleep+" /* parity statement */")
	if s.failed("prepare", err) {
		return
	}
	pid := s.pid(s.db)
	s.whileSleeping("parity statement", func(ctx context.Context) {
		_, err := stmt.ExecContext(ctx)
		s.err("exec", err)
	})
	s.settle("cancelled")
	s.note("same backend: %t", s.pid(s.db) == pid)
	tx := s.inTx(nil)
	s.whileSleeping("parity statement", func(ctx context.Context) {
		_, err := tx.StmtContext(s.ctx, stmt).ExecContext(ctx)
		s.err("exec in tx", err)
	})
	s.query(tx, "SELECT 1")
	s.err("commit", tx.Commit())
	s.settle("committed")
	s.err("close", stmt.Close())
}

func cancelledInTx(s *session) {
	pid := s.pid(s.db)
	tx := s.inTx(nil)
	s.whileSleeping("parity tx", func(ctx context.Context) { s.execContext(ctx, tx, sleep+" /* parity tx */") })
	s.exec(tx, "SELECT 1")
	s.query(tx, "SELECT 1")
	s.err("rollback", tx.Rollback())
	s.settle("rolled back")
	s.note("same backend: %t", s.pid(s.db) == pid)

	// Here the context of BEGIN is cancelled, and with it everything inside.
	s.whileSleeping("parity begin", func(ctx context.Context) {
		tx := s.beginTx(ctx, nil)
		// Drivers that do not watch this context sleep to the end.
		s.exec(tx, "SELECT pg_sleep(3) /* parity begin */")
		s.settle("cancelled")
		s.err("commit", tx.Commit())
	})
	s.query(s.db, "SELECT 1")
}

func cancelledDuringCommit(s *session) {
	s.whileSleeping("COMMIT", func(ctx context.Context) {
		tx := s.beginTx(ctx, nil)
		s.exec(tx, "INSERT INTO parity_slow VALUES (1)")
		s.err("commit", tx.Commit())
	})
	s.settle("cancelled")
	s.query(s.db, "SELECT count(*) FROM parity_slow")
}

func deadline(s *session) {
	ctx, cancel := context.WithTimeout(s.ctx, 300*time.Millisecond)
	defer cancel()
	s.execContext(ctx, s.db, sleep)
	s.settle("after the deadline")
	s.execContext(ctx, s.db, "SELECT 1")
	s.settle("again")
	ctx, cancel = context.WithTimeout(s.ctx, 300*time.Millisecond)
	defer cancel()
	tx := s.beginTx(ctx, nil)
	// Drivers that do not watch this context sleep to the end.
	s.exec(tx, "SELECT pg_sleep(3)")
	s.settle("after the deadline")
	s.err("rollback", tx.Rollback())
	s.query(s.db, "SELECT 1")
}

func cancelledIdleTx(s *session) {
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	tx := s.beginTx(ctx, nil)
	s.exec(tx, "INSERT INTO parity_item VALUES (1, 'a', 1)")
	cancel()
	// Whether the connection is used again depends on who is first to see the context's end,
	// database/sql or lib/pq.
	s.note("cancelled: idle %t", s.awaitIdle())
	s.exec(tx, "SELECT 1")
	s.err("commit", tx.Commit())
	s.err("rollback", tx.Rollback())
	s.query(s.db, "SELECT count(*) FROM parity_item")
}

func connections(s *session) {
	conn, err := s.db.Conn(s.ctx)
	if s.failed("conn", err) {
		return
	}
	s.stats("taken")
	s.exec(conn, "CREATE TEMP TABLE parity_temp (a int)")
	s.query(conn, "SELECT * FROM parity_temp")
	s.queryRow(conn, "SELECT 1")
	s.exec(conn, "SELEKT")
	tx, err := conn.BeginTx(s.ctx, &sql.TxOptions{Isolation: sql.LevelRepeatableRead})
	if s.failed("begin", err) {
		return
	}
	s.queryRow(tx, "SHOW transaction_isolation")
	s.err("commit", tx.Commit())
	s.exec(conn, "DROP TABLE parity_temp")
	s.err("ping", conn.PingContext(s.ctx))
	s.err("close", conn.Close())
	s.stats("closed")
	s.err("close again", conn.Close())
	s.exec(conn, "SELECT 1")
	s.err("ping", conn.PingContext(s.ctx))
	_, err = conn.BeginTx(s.ctx, nil)
	s.err("begin", err)
	s.err("raw", conn.Raw(func(any) error { return nil }))
}

func rawConnections(s *session) {
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
		s.exec(conn, "SELECT 1")
		s.err(label+": close", conn.Close())
		s.settle(label)
	}
	use("type", func(conn any) error {
		s.note("innermost connection: %T", innermost(conn))
		return nil
	})
	use("use", func(conn any) error {
		queryer, ok := innermost(conn).(driver.QueryerContext)
		s.note("queryer: %t", ok)
		if !ok {
			return nil
		}
		rows, err := queryer.QueryContext(s.ctx, "SELECT 1", nil)
		if err != nil {
			return err
		}
		return rows.Close()
	})
	use("error", func(any) error { return errors.New("an error of the application") })
	use("bad connection", func(any) error { return driver.ErrBadConn })
	use("wrapped bad connection", func(any) error { return fmt.Errorf("wrapped: %w", driver.ErrBadConn) })
	use("panic", func(any) error { panic("ouch") })
}

func ping(s *session) {
	s.err("ping", s.db.PingContext(s.ctx))
	s.stats("pinged")
	s.err("ping again", s.db.PingContext(s.ctx))
	tx := s.inTx(nil)
	s.err("commit", tx.Commit())
	s.err("ping", s.db.PingContext(s.ctx))
	s.stats("pinged")
}

func sessionState(s *session) {
	pid := s.pid(s.db)
	s.exec(s.db, "SET search_path = pg_catalog")
	s.queryRow(s.db, "SHOW search_path")
	s.exec(s.db, "SET TIME ZONE 'Asia/Kolkata'")
	s.query(s.db, "SELECT '2024-02-29 12:00:00+00'::timestamptz")
	s.exec(s.db, "SET datestyle = 'German'")
	s.query(s.db, "SELECT '2024-02-29'::date::text, '2024-02-29'::date")
	s.exec(s.db, "SET bytea_output = 'escape'")
	s.query(s.db, "SELECT '\\x00ff41'::bytea")
	s.exec(s.db, "SET standard_conforming_strings = off")
	s.exec(s.db, "RESET ALL")
	s.query(s.db, "SELECT '2024-02-29 12:00:00+00'::timestamptz")
	s.note("same backend: %t", s.pid(s.db) == pid)
}

func streaming(s *session) {
	const query = "SELECT i, 'row ' || i, CASE WHEN i % 7 = 0 THEN NULL ELSE i / 2.0 END FROM generate_series(1, 100000) i"
	use := func(label string, q querier) {
		rows, err := q.QueryContext(s.ctx, query)
		if s.failed(label, err) {
			return
		}
		sum, count := fnv.New64a(), 0
		for rows.Next() {
			var i int
			var text string
			var half sql.NullFloat64
			if s.failed(label, rows.Scan(&i, &text, &half)) {
				break
			}
			fmt.Fprintln(sum, i, text, half)
			count++
		}
		s.err(label, rows.Err())
		s.note("%s: %d rows, checksum %x", label, count, sum.Sum64())
	}
	use("db", s.db)
	tx := s.inTx(nil)
	use("tx", tx)
	use("tx again", tx)
	s.err("commit", tx.Commit())
	s.stats("afterwards")
}

func rowsClosedEarly(s *session) {
	const query = "SELECT i, repeat('x', 100) FROM generate_series(1, 20000) i"
	use := func(label string, q querier, read int) {
		rows, err := q.QueryContext(s.ctx, query)
		if s.failed(label, err) {
			return
		}
		for range read {
			s.note("%s: next %t", label, rows.Next())
		}
		if read > 0 {
			s.row(label, rows)
		}
		s.stats(label + ", open")
		s.err(label+": close", rows.Close())
		s.err(label+": err", rows.Err())
		s.stats(label + ", closed")
		s.queryRow(q, "SELECT 1")
	}
	use("no row", s.db, 0)
	use("three rows", s.db, 3)
	tx := s.inTx(nil)
	use("no row in tx", tx, 0)
	use("three rows in tx", tx, 3)
	s.err("commit", tx.Commit())
}

func rowsLeftOpen(s *session) {
	for _, end := range []struct {
		name string
		end  func(*sql.Tx) error
	}{{"rollback", (*sql.Tx).Rollback}, {"commit", (*sql.Tx).Commit}} {
		pid := s.pid(s.db)
		tx := s.inTx(nil)
		rows, err := tx.QueryContext(s.ctx, "SELECT i, repeat('x', 100) FROM generate_series(1, 20000) i")
		if s.failed("query", err) {
			return
		}
		s.note("next: %t", rows.Next())
		s.err(end.name, end.end(tx))
		s.settle(end.name)
		s.note("next: %t", rows.Next())
		s.err("err", rows.Err())
		s.err("scan", rows.Scan(new(int), new(string)))
		s.err("close", rows.Close())
		s.note("same backend: %t", s.pid(s.db) == pid)
	}
}

func statementTimeout(s *session) {
	tx := s.inTx(nil)
	s.exec(tx, "SET LOCAL statement_timeout = 20")
	s.exec(tx, sleep)
	s.exec(tx, "SELECT 1")
	s.err("commit", tx.Commit())
	s.stats("afterwards")
	tx = s.inTx(nil)
	s.exec(tx, "SET LOCAL statement_timeout = 20")
	s.query(tx, sleep)
	s.err("rollback", tx.Rollback())
}

// terminate ends the backend and waits until it is gone.
func (s *session) terminate(pid int) {
	if _, err := s.watch.ExecContext(s.ctx, "SELECT pg_terminate_backend($1::int)", pid); err != nil {
		panic(err)
	}
	s.await("the backend is gone", "SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = $1::int", pid)
}

// untilWorks repeats use after a lost connection until it succeeds. Whether the
// first use fails, and how, depends on what the client sees first: the server's
// message, the end of the stream or a reset.
func (s *session) untilWorks(label string, use func() error) {
	const attempts = 3
	var err error
	for range attempts {
		if err = use(); err == nil {
			break
		}
	}
	s.err(label, err)
	s.settle(label)
}

func lostIdleConnection(s *session) {
	for _, use := range []struct {
		name string
		do   func() error
	}{
		{"exec", func() error { _, err := s.db.ExecContext(s.ctx, "SELECT 1"); return err }},
		{"query", func() error { return s.db.QueryRowContext(s.ctx, "SELECT 1").Scan(new(int)) }},
		{"prepare", func() error {
			stmt, err := s.db.PrepareContext(s.ctx, "SELECT 1")
			if err != nil {
				return err
			}
			return stmt.Close()
		}},
		{"begin", func() error {
			tx, err := s.db.BeginTx(s.ctx, nil)
			if err != nil {
				return err
			}
			return tx.Commit()
		}},
		{"ping", func() error { return s.db.PingContext(s.ctx) }},
	} {
		pid := s.pid(s.db)
		s.terminate(pid)
		s.untilWorks(use.name, use.do)
		s.note("same backend: %t", s.pid(s.db) == pid)
	}
	stmt, err := s.db.PrepareContext(s.ctx, "SELECT $1::int")
	if s.failed("prepare", err) {
		return
	}
	s.terminate(s.pid(s.db))
	s.untilWorks("prepared before", func() error { return stmt.QueryRowContext(s.ctx, 1).Scan(new(int)) })
	s.err("close", stmt.Close())
}

func lostInTx(s *session) {
	for _, end := range []struct {
		name string
		end  func(*sql.Tx) error
	}{{"rollback", (*sql.Tx).Rollback}, {"commit", (*sql.Tx).Commit}} {
		tx := s.inTx(nil)
		s.exec(tx, "INSERT INTO parity_item VALUES (1, 'a', 1)")
		s.terminate(s.pid(tx))
		_, err := tx.ExecContext(s.ctx, "SELECT 1")
		s.note("first statement fails: %t", err != nil)
		s.exec(tx, "SELECT 1")
		s.query(tx, "SELECT 1")
		_, err = tx.PrepareContext(s.ctx, "SELECT 1")
		s.err("prepare", err)
		s.err(end.name, end.end(tx))
		s.settle(end.name)
		s.query(s.db, "SELECT count(*) FROM parity_item")
	}
}

func pool(s *session) {
	s.stats("fresh")
	s.exec(s.db, "SELECT 1")
	s.stats("used")
	s.db.SetMaxIdleConns(0)
	s.stats("no idling")
	s.exec(s.db, "SELECT 1")
	s.stats("used")
	s.db.SetMaxIdleConns(2)
	s.db.SetMaxOpenConns(3)
	var held []*sql.Conn
	for range 3 {
		conn, err := s.db.Conn(s.ctx)
		if s.failed("conn", err) {
			break
		}
		held = append(held, conn)
		s.stats("held")
	}
	for _, conn := range held {
		s.err("close", conn.Close())
		s.stats("released")
	}
	s.db.SetMaxOpenConns(1)
	s.stats("one")
	s.db.SetConnMaxLifetime(time.Nanosecond)
	s.exec(s.db, "SELECT 1")
	s.note("max open: %d", s.db.Stats().MaxOpenConnections)
}

func copyIn(s *session) {
	use := func(label string, end func(*sql.Tx) error, rows ...[]any) {
		tx := s.inTx(nil)
		stmt, err := tx.PrepareContext(s.ctx, `COPY parity_copy (a, b) FROM STDIN`)
		if s.failed(label, err) {
			s.err(label+": rollback", tx.Rollback())
			return
		}
		for _, row := range rows {
			result, err := stmt.ExecContext(s.ctx, row...)
			s.result(label+fmt.Sprint(": row ", row), result, err)
		}
		result, err := stmt.ExecContext(s.ctx)
		s.result(label+": flush", result, err)
		s.err(label+": close", stmt.Close())
		s.err(label+": end", end(tx))
		s.settle(label)
		s.query(s.db, "SELECT count(*), min(b), max(b) FROM parity_copy")
	}
	use("commit", (*sql.Tx).Commit, []any{1, "a"}, []any{2, nil}, []any{3, "with\ttab\nand line"})
	use("rollback", (*sql.Tx).Rollback, []any{4, "z"})
	use("bad value", (*sql.Tx).Commit, []any{"not a number", "z"})
	use("nothing", (*sql.Tx).Commit)
	_, err := s.db.PrepareContext(s.ctx, "COPY parity_copy (a, b) FROM STDIN")
	s.err("outside a transaction", err)
	tx := s.inTx(nil)
	_, err = tx.PrepareContext(s.ctx, "COPY parity_missing (a) FROM STDIN")
	s.err("missing table", err)
	s.err("rollback", tx.Rollback())
	s.exec(s.db, "COPY parity_copy (a, b) FROM STDIN")
	s.settle("afterwards")
}
