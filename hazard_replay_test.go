package pgretry

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lib/pq"

	"github.com/pgretry/pgretry/internal/pgserver"
)

// conflicts is a function that fails the first time it is called, whatever becomes of
// the transaction.
const conflicts = traces + `; CREATE SEQUENCE tries; CREATE FUNCTION conflict() RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		IF nextval('tries') = 1 THEN RAISE EXCEPTION 'scripted' USING ERRCODE = '40001'; END IF;
	END $$`

// session returns a session of its own that lasts as long as the test.
func (a *arena) session(db *sql.DB) *sql.Conn {
	a.Helper()
	c, err := db.Conn(a.Context())
	if err != nil {
		a.Fatal(err)
	}
	a.Cleanup(func() {
		if err := c.Close(); err != nil {
			a.Error(err)
		}
	})
	return c
}

func (a *arena) beginOnConn(c *sql.Conn) *script {
	a.Helper()
	tx, err := c.BeginTx(a.Context(), nil)
	if err != nil {
		a.Fatal(err)
	}
	a.Cleanup(func() { _ = tx.Rollback() })
	return &script{arena: a, Tx: tx}
}

// set executes statements over the inner driver alone.
func (a *arena) set(statements ...string) {
	a.Helper()
	for _, s := range statements {
		if _, err := a.plain.Exec(s); err != nil {
			a.Fatalf("%s: %v", s, err)
		}
	}
}

// collecting keeps the events of a database. Nothing may happen beside the test.
func collecting(events *[]Event) Option {
	return WithOnRetry(func(_ context.Context, e Event) { *events = append(*events, e) })
}

// hazard is something after which a transaction is not replayed.
type hazard struct {
	name      string
	reason    RefusalReason
	what      string // that the hint names
	options   []Option
	level     sql.IsolationLevel
	context   func(context.Context) context.Context
	setup     []string // without us; FILE is a file of the server's
	session   []string // before BEGIN
	does      []string
	raw       bool   // the inner connection is handed out
	remains   string // a question after the end, to the session
	extension string // without which the server cannot do it
}

const outsideOverDblink = `SELECT dblink_exec('host=127.0.0.1 port=' || current_setting('port') || ' user=' || current_user || ' dbname=' || current_database(),
	'INSERT INTO ' || current_schema() || '.outside VALUES (1)')`

var hazards = []hazard{
	{
		name: "an advisory lock", reason: RefusedAdvisoryLock, what: "pg_advisory_lock",
		does:    []string{`SELECT pg_advisory_lock(7355610)`},
		remains: `SELECT pg_advisory_unlock(7355610), pg_advisory_unlock(7355610)`,
	},
	{
		name: "an advisory lock if it is free", reason: RefusedAdvisoryLock, what: "pg_try_advisory_lock_shared",
		does:    []string{`SELECT pg_catalog.pg_try_advisory_lock_shared(7355611)`},
		remains: `SELECT pg_advisory_unlock_shared(7355611), pg_advisory_unlock_shared(7355611)`,
	},
	{
		name: "an advisory lock is released", reason: RefusedAdvisoryLock, what: "pg_advisory_unlock",
		session: []string{`SELECT pg_advisory_lock(7355612)`, `SELECT pg_advisory_lock(7355612)`},
		does:    []string{`SELECT pg_advisory_unlock(7355612)`},
		remains: `SELECT pg_advisory_unlock(7355612), pg_advisory_unlock(7355612)`,
	},
	{
		name: "an advisory lock of the transaction", reason: RefusedAdvisoryXactLock, what: "pg_advisory_xact_lock",
		does: []string{`SELECT pg_advisory_xact_lock(7355613)`},
	},
	{
		name: "an advisory lock of the transaction if it is free", reason: RefusedAdvisoryXactLock, what: "pg_try_advisory_xact_lock",
		does: []string{`INSERT INTO trace SELECT 'locked' WHERE pg_try_advisory_xact_lock(7355614)`},
	},
	{
		name: "PREPARE", reason: RefusedSessionState, what: "PREPARE", does: []string{`PREPARE p AS SELECT 1`},
		remains: `SELECT count(*) FROM pg_prepared_statements WHERE name = 'p'`,
	},
	{
		name: "DEALLOCATE", reason: RefusedSessionState, what: "DEALLOCATE",
		session: []string{`PREPARE p AS SELECT 1`}, does: []string{`DEALLOCATE p`},
		remains: `SELECT count(*) FROM pg_prepared_statements WHERE name = 'p'`,
	},
	{
		name: "EXECUTE", reason: RefusedSessionState, what: "EXECUTE",
		session: []string{`PREPARE p AS SELECT pg_advisory_lock(7355615)`}, does: []string{`EXECUTE p`},
		remains: `SELECT pg_advisory_unlock(7355615), pg_advisory_unlock(7355615)`,
	},
	{name: "LOAD", reason: RefusedSessionState, what: "LOAD", does: []string{`LOAD 'plpgsql'`}},
	{
		name: "DISCARD", reason: RefusedSessionState, what: "DISCARD", session: []string{`SELECT nextval('numbers')`}, does: []string{`DISCARD SEQUENCES`},
		setup: []string{`CREATE SEQUENCE numbers`}, remains: `SELECT lastval()`,
	},
	{
		name: "a cursor WITH HOLD", reason: RefusedSessionState, what: "WITH HOLD", does: []string{`DECLARE c CURSOR WITH HOLD FOR SELECT 1`},
		remains: `SELECT count(*) FROM pg_cursors WHERE name = 'c'`,
	},
	{
		name: "a cursor WITH HOLD is moved", reason: RefusedSessionState, what: "FETCH",
		session: []string{`DECLARE c CURSOR WITH HOLD FOR SELECT n FROM generate_series(1, 9) n`}, does: []string{`FETCH c`},
		remains: `FETCH c`,
	},
	{
		name: "setval", reason: RefusedOutsideEffect, what: "setval", setup: []string{`CREATE SEQUENCE numbers`},
		does: []string{`SELECT setval('numbers', nextval('numbers') + 10)`}, remains: `SELECT last_value FROM numbers`,
	},
	{
		name: "pg_logical_emit_message", reason: RefusedOutsideEffect, what: "pg_logical_emit_message",
		does: []string{`SELECT count(pg_logical_emit_message(false, 'a', 'b'))`},
	},
	{
		name: "lo_export", reason: RefusedOutsideEffect, what: "lo_export", setup: []string{`SELECT lo_from_bytea(7355617, 'text')`},
		does: []string{`SELECT lo_export(7355617, 'FILE'), lo_unlink(7355617)`}, remains: `SELECT pg_read_file('FILE'), lo_unlink(7355617)`,
	},
	{
		name: "dblink", reason: RefusedOutsideEffect, what: "dblink_exec", extension: "dblink",
		setup: []string{`CREATE EXTENSION dblink`, `CREATE TABLE outside (n int)`}, does: []string{outsideOverDblink},
		remains: `SELECT count(*) FROM outside`,
	},
	{
		name: "a function that is denied", reason: RefusedDeniedFunction, what: "number_of", options: []Option{WithDeniedFunctions("number_*")},
		setup:   []string{`CREATE SEQUENCE numbers`, `CREATE FUNCTION number_of(text) RETURNS bigint LANGUAGE sql AS 'SELECT nextval($1::regclass)'`},
		does:    []string{`INSERT INTO trace SELECT 'once' WHERE number_of('numbers') > 0`},
		remains: `SELECT last_value FROM numbers`,
	},
	{
		name: "COPY to a file", reason: RefusedServerCopy, what: "COPY", does: []string{`COPY trace TO 'FILE'`},
		remains: `SELECT pg_read_file('FILE')`,
	},
	{
		name: "COPY to a program", reason: RefusedServerCopy, what: "COPY", does: []string{`COPY trace TO PROGRAM 'cat >>FILE'`},
		remains: `SELECT pg_read_file('FILE')`,
	},
	{
		name: "COPY from a file", reason: RefusedServerCopy, what: "COPY",
		setup: []string{`COPY (SELECT 'copied') TO 'FILE'`}, does: []string{`COPY trace FROM 'FILE'`},
	},
	{
		name: "a savepoint inside a text", reason: RefusedTxControl,
		does: []string{`SAVEPOINT a; INSERT INTO trace VALUES ('a'); RELEASE a`},
	},
	{name: "BEGIN", reason: RefusedTxControl, what: "BEGIN", does: []string{`BEGIN`}},
	{
		name: "ROLLBACK AND CHAIN", reason: RefusedTxControl, does: []string{`ROLLBACK AND CHAIN`, `INSERT INTO trace VALUES ('chained')`},
	},
	{
		name: "COMMIT AND CHAIN", reason: RefusedTxControl, does: []string{`COMMIT AND CHAIN`, `INSERT INTO trace VALUES ('chained')`},
	},
	{name: "a text that is read in two ways", reason: RefusedUnreadable, does: []string{`INSERT INTO trace VALUES ('\'); --')`}},
	{name: "the inner connection", reason: RefusedRawConn, raw: true},
	{
		name: "too many statements", reason: RefusedJournalFull, options: []Option{WithJournalLimit(1<<20, 2)},
		does: []string{`INSERT INTO trace VALUES ('a')`, `INSERT INTO trace VALUES ('b')`},
	},
	{
		name: "too many bytes", reason: RefusedJournalFull, options: []Option{WithJournalLimit(2000, 100)},
		does: []string{`INSERT INTO trace VALUES ('` + strings.Repeat("x", 2000) + `')`},
	},
	{
		name: "a conflict inside a savepoint", reason: RefusedSavepoint, level: sql.LevelRepeatableRead,
		does: []string{`SAVEPOINT theirs`, `SELECT count(*) FROM trace`},
	},
	{name: "the context", reason: RefusedByContext, context: ContextWithoutReplay},
	{name: "closures only", reason: RefusedMode, options: []Option{WithMode(ModeClosure)}},
	{name: "off", reason: RefusedMode, options: []Option{WithMode(ModeOff)}},
}

// tell runs a transaction with the hazard and a conflict, over our driver or the inner one,
// and returns what the application was told.
func (h *hazard) tell(t *testing.T, ours, savepoint bool) (told []string) {
	var events []Event
	a := enter(t, append([]Option{collecting(&events)}, h.options...), conflicts)
	file := a.read(`SELECT current_setting('data_directory') || '/' || current_schema()`)
	inFile := func(texts ...string) []string {
		for i := range texts {
			texts[i] = strings.ReplaceAll(texts[i], "FILE", file)
		}
		return texts
	}
	a.set(inFile(slices.Clone(h.setup)...)...)
	db := a.plain
	if ours {
		db = a.db
	}
	c := a.session(db)
	for _, text := range h.session {
		if _, err := c.ExecContext(t.Context(), text); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
	}
	ctx := t.Context()
	if h.context != nil {
		ctx = h.context(ctx)
	}
	tx, err := c.BeginTx(ctx, &sql.TxOptions{Isolation: h.level})
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	s := &tale{script: &script{arena: a, Tx: tx}}
	s.exec(`INSERT INTO trace VALUES ('before')`)
	for _, text := range inFile(slices.Clone(h.does)...) {
		if strings.HasPrefix(text, "SELECT") {
			s.everything(tx.QueryContext, text)
		} else {
			s.exec(text)
		}
	}
	if h.raw && ours {
		if err := c.Raw(func(driverConn any) error { _, _ = RawConn(driverConn); return nil }); err != nil {
			t.Error(err)
		}
	}
	if savepoint {
		s.exec(`SAVEPOINT mine`)
	}
	_, met := tx.Exec(`SELECT conflict()`)
	s.note("the conflict: %v", met)
	s.exec(`INSERT INTO trace VALUES ('later')`)
	s.query(`SELECT 1`)
	if savepoint {
		s.exec(`ROLLBACK TO mine`)
		s.exec(`INSERT INTO trace VALUES ('after')`)
	}
	commit := tx.Commit()
	if !ours || savepoint || !h.reason.tells() {
		s.note("COMMIT: %v", commit)
	} else {
		s.note("COMMIT: %v", tested.failedCommit)
		var retry *RetryError
		if !errors.Is(commit, ErrRefused) || !errors.As(commit, &retry) || retry.Refusal != h.reason || !errors.Is(commit, met) && sqlState(commit) != "40001" {
			t.Errorf("COMMIT gives %v", commit)
		}
	}
	if h.remains != "" {
		s.everything(c.QueryContext, inFile(h.remains)[0])
	}
	s.note("%s", a.read(`SELECT string_agg(what, ' ' ORDER BY what) FROM trace`))
	if ours {
		h.isTold(a, met, events)
	}
	told = s.lines
	for i := range told {
		told[i] = strings.ReplaceAll(told[i], file, "FILE")
	}
	return told
}

// everything notes all that a query returns.
func (s *tale) everything(query func(context.Context, string, ...any) (*sql.Rows, error), text string) {
	rows, err := query(s.Context(), text)
	if err != nil {
		s.note("%s: %v", text, err)
		return
	}
	defer rows.Close()
	columns, err := rows.Columns()
	values, into := make([]sql.NullString, len(columns)), make([]any, len(columns))
	for i := range into {
		into[i] = &values[i]
	}
	for rows.Next() && err == nil {
		err = rows.Scan(into...)
		s.note("%s: %v", text, values)
	}
	s.note("%s: %v", text, errors.Join(err, rows.Err()))
}

// isTold checks what the application can know of the refusal.
func (h *hazard) isTold(a *arena, met error, events []Event) {
	a.Helper()
	server, ok := tested.said(met)
	tells := h.reason.tells()
	sentence := fmt.Sprintf("[%s]", h.reason)
	if !ok || server.code != "40001" || strings.Contains(server.hint, sentence) != tells || tells && !strings.Contains(server.hint, h.what) {
		a.Errorf("the conflict comes as %#v", met)
	}
	stats := a.stats()
	var refused int64
	if tells {
		refused = 1
		if len(events) != 1 || events[0].Decision != DecisionRefused || events[0].Kind != KindReplay || events[0].Reason != h.reason ||
			events[0].SQLState != "40001" || events[0].Attempt != 1 {
			a.Errorf("the events are %+v", events)
		}
	} else if len(events) != 0 {
		a.Errorf("the events are %+v", events)
	}
	if stats.Unprotected[h.reason] != 1 || stats.Refusals[h.reason] != refused || stats.PlainConflicts != 1 || stats.Protected != 0 || stats.Replays != 0 {
		a.Errorf("the statistics are %+v", stats)
	}
}

func TestAfterAHazardATransactionIsNotReplayedAndGoesOnAsWithoutUs(t *testing.T) {
	extensions := map[string]bool{}
	available := enter(t, nil).read(`SELECT string_agg(name, ' ') FROM pg_available_extensions`)
	for _, name := range strings.Fields(available) {
		extensions[name] = true
	}
	for _, h := range hazards {
		if h.extension != "" && !extensions[h.extension] {
			t.Logf("there is no %s here", h.extension)
			continue
		}
		for _, savepoint := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/in a savepoint: %t", h.name, savepoint), func(t *testing.T) {
				var told [2][]string
				for i, name := range []string{tested.name, "pgretry"} {
					t.Run(name, func(t *testing.T) { told[i] = h.tell(t, name == "pgretry", savepoint) })
				}
				if !slices.Equal(told[0], told[1]) {
					t.Errorf("we tell\n%s\n%s tells\n%s", strings.Join(told[1], "\n"), tested.name, strings.Join(told[0], "\n"))
				}
			})
		}
	}
}

func TestAnAdvisoryLockThatIsAllowedIsTakenAgain(t *testing.T) {
	a := enter(t, []Option{WithAllowedFunctions("pg_advisory_xact_lock")}, conflicts)
	tx := a.begin(sql.LevelReadCommitted)
	tx.does(`SELECT pg_advisory_xact_lock(7355618)`)
	tx.does(`SELECT conflict()`)
	a.is("1", `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 7355618`)
	tx.commits()
	a.is("0", `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 7355618`)
	a.hid("40001")
}

// What follows the end of a transaction stands alone, and is executed again alone.
func TestWhatATransactionDidBeforeARawEndIsNotDoneAgain(t *testing.T) {
	for text, want := range map[string]string{
		"COMMIT": "after before", "END": "after before", "ROLLBACK": "after", "ABORT": "after",
		"INSERT INTO trace VALUES ('inside'); COMMIT": "after before inside",
	} {
		t.Run(text, func(t *testing.T) {
			var events []Event
			a := enter(t, []Option{collecting(&events)}, conflicts)
			var commits [2]error
			for i, db := range []*sql.DB{a.plain, a.db} {
				a.set(`TRUNCATE trace`, `ALTER SEQUENCE tries RESTART`)
				tx := a.beginOn(db, sql.LevelReadCommitted)
				tx.does(`INSERT INTO trace VALUES ('before')`)
				tx.does(text)
				if _, err := tx.Exec(`SELECT conflict()`); err != nil && db == a.db {
					t.Errorf("the statement gives %v", err)
				}
				tx.does(`INSERT INTO trace VALUES ('after')`)
				commits[i] = tx.Commit()
				a.is(want, `SELECT string_agg(what, ' ' ORDER BY what) FROM trace`)
			}
			if fmt.Sprint(commits[0]) != fmt.Sprint(commits[1]) {
				t.Errorf("COMMIT gives %v, over %s %v", commits[1], tested.name, commits[0])
			}
			if s := a.stats(); s.Unprotected[RefusedTxControl] != 1 || s.Protected != 0 || len(events) != 1 || events[0].Kind != KindStatement {
				t.Errorf("the statistics are %+v, the events %+v", s, events)
			}
		})
	}
}

// A half of the text has taken effect by then.
func TestATextThatCommitsBeforeItFailsIsNotExecutedAgain(t *testing.T) {
	const text = `INSERT INTO trace VALUES ('inside'); COMMIT; SELECT conflict()`
	for _, inside := range []bool{true, false} {
		t.Run(fmt.Sprintf("inside a transaction: %t", inside), func(t *testing.T) {
			a := enter(t, nil, conflicts)
			if !inside {
				_, err := a.db.Exec(text)
				isRefused(t, err, RefusedStatement)
				a.is("inside", `SELECT string_agg(what, ' ' ORDER BY what) FROM trace`)
				return
			}
			tx := a.begin(sql.LevelReadCommitted)
			tx.does(`INSERT INTO trace VALUES ('before')`)
			_, err := tx.Exec(text)
			isRefused(t, err, RefusedTxControl)
			_ = tx.Rollback()
			a.is("before inside", `SELECT string_agg(what, ' ' ORDER BY what) FROM trace`)
			if s := a.stats(); s.Unprotected[RefusedTxControl] != 1 || s.Refusals[RefusedTxControl] != 1 || s.Replays != 0 {
				t.Errorf("the statistics are %+v", s)
			}
		})
	}
}

// isRefused checks the error of a call that met a conflict which is not replayed.
func isRefused(t *testing.T, err error, reason RefusalReason) {
	t.Helper()
	server, ok := tested.said(err)
	if !ok || server.code != "40001" || !strings.Contains(server.hint, fmt.Sprintf("[%s]", reason)) {
		t.Errorf("the error is %#v, want one that says %s", err, reason)
	}
}

func TestATransactionIsPreparedForTwoPhaseCommitOnce(t *testing.T) {
	server, err := pgserver.Start(t.Context(), pgserver.WithSettings(map[string]string{"max_prepared_transactions": "5"}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	prepared := func(a *arena) string {
		return a.read(`SELECT string_agg(gid, ' ' ORDER BY gid) FROM pg_prepared_xacts`)
	}
	a := enterOn(t, server.DSN(), nil, conflicts, lateConflict, `CREATE TABLE kept (what text)`)

	tx := a.begin(sql.LevelReadCommitted)
	tx.does(`INSERT INTO kept VALUES ('one')`)
	tx.does(`PREPARE TRANSACTION 'one'`)
	if got := prepared(a); got != "one" {
		t.Errorf("there are %s", got)
	}
	_ = tx.Rollback()

	tx = a.begin(sql.LevelReadCommitted)
	tx.does(`SET LOCAL test.state = '40001'`)
	tx.does(`INSERT INTO trace VALUES ('two')`)
	_, err = tx.Exec(`PREPARE TRANSACTION 'two'`) // checks what was deferred
	isRefused(t, err, RefusedPreparedTransaction)
	_ = tx.Rollback()
	if got := prepared(a); got != "one" {
		t.Errorf("there are %s", got)
	}
	if s := a.stats(); s.Unprotected[RefusedPreparedTransaction] != 2 || s.Refusals[RefusedPreparedTransaction] != 1 || s.Replays != 0 {
		t.Errorf("the statistics are %+v", s)
	}

	if _, err := a.db.Exec(`COMMIT PREPARED 'one'`); err != nil {
		t.Error(err)
	}
	a.is("one", `SELECT string_agg(what, ' ') FROM kept`)
}

// The two reasons are different ones to whoever reads the statistics.
func TestPrepareTransactionIsNotRefusedAsIfItWereCommit(t *testing.T) {
	reason, _ := (&config{}).refuses(callExec, analyze(`PREPARE TRANSACTION 'a'`))
	if reason != RefusedPreparedTransaction {
		t.Errorf("the reason is %s", reason)
	}
}

// The server of a foreign table may have its part committed.
func TestAFailedCommitIsNotReplayedWhereThereAreForeignTables(t *testing.T) {
	const foreign = `CREATE FOREIGN TABLE remote (n int) SERVER nowhere`
	for name, c := range map[string]struct {
		before, inside string
		replayed       bool
	}{
		"there are none": {inside: `SET LOCAL work_mem = '1MB'`, replayed: true},
		"the transaction made a foreign key": {inside: `CREATE TABLE child (id int, FOREIGN  KEY (id) REFERENCES parent);
			ALTER TABLE child ADD CONSTRAINT other foreign key (id) REFERENCES parent`, replayed: true},
		"it made a key and a table":      {inside: `CREATE TABLE child (id int, FOREIGN KEY (id) REFERENCES parent); ` + foreign},
		"there is one":                   {before: foreign, inside: `SET LOCAL work_mem = '1MB'`},
		"the transaction made it":        {inside: foreign},
		"the second statement of a text": {inside: `SET LOCAL work_mem = '1MB'; ` + foreign},
		"the transaction changed it":     {before: foreign, inside: `ALTER FOREIGN TABLE remote ADD m int`},
	} {
		t.Run(name, func(t *testing.T) {
			a := enter(t, nil, traces, `CREATE SEQUENCE tries`, lateConflict,
				`CREATE TABLE parent (id int PRIMARY KEY)`,
				`CREATE FOREIGN DATA WRAPPER nobody; CREATE SERVER nowhere FOREIGN DATA WRAPPER nobody`)
			t.Cleanup(func() { a.set(`DROP FOREIGN DATA WRAPPER nobody CASCADE`) })
			if c.before != "" {
				a.set(c.before)
			}
			tx := a.begin(sql.LevelReadCommitted)
			tx.sees(`SELECT set_config('test.state', '40001', true)`)
			tx.does(c.inside)
			tx.does(`INSERT INTO trace VALUES ('x')`)
			err := tx.Commit()
			if c.replayed {
				if err != nil {
					t.Errorf("COMMIT gives %v", err)
				}
				a.hid("40001")
				return
			}
			isRefused(t, err, RefusedForeignTables)
			a.is("0", `SELECT count(*) FROM trace`)
			if s := a.stats(); s.Unprotected[RefusedForeignTables] != 1 || s.Refusals[RefusedForeignTables] != 1 || s.Replays != 0 {
				t.Errorf("the statistics are %+v", s)
			}
		})
	}
}

func TestAFailedStatementIsReplayedWhereThereAreForeignTables(t *testing.T) {
	a := enter(t, nil, conflicts, `CREATE FOREIGN DATA WRAPPER nobody; CREATE SERVER nowhere FOREIGN DATA WRAPPER nobody;
		CREATE FOREIGN TABLE remote (n int) SERVER nowhere`)
	t.Cleanup(func() { a.set(`DROP FOREIGN DATA WRAPPER nobody CASCADE`) })
	tx := a.begin(sql.LevelReadCommitted)
	tx.does(`INSERT INTO trace VALUES ('x')`)
	tx.does(`SELECT conflict()`)
	tx.commits()
	a.is("x", `SELECT string_agg(what, ' ') FROM trace`)
	a.hid("40001")
}

func TestAConnectionThatIsLostInTheReplayIsReplaced(t *testing.T) {
	a := enter(t, nil, conflicts, `CREATE SEQUENCE lives; CREATE FUNCTION die() RETURNS boolean LANGUAGE sql AS $$
		SELECT CASE nextval('lives') WHEN 2 THEN pg_terminate_backend(pg_backend_pid()) END $$`)
	a.db.SetMaxOpenConns(1)
	tx := a.begin(sql.LevelReadCommitted)
	tx.does(`INSERT INTO trace VALUES ('before')`)
	tx.does(`SELECT die()`)
	tx.does(`SELECT conflict()`)
	tx.does(`INSERT INTO trace VALUES ('after')`)
	tx.commits()
	if s := a.stats(); s.Reconnects != 1 || s.Replays != 2 || s.ConnectionsLost["transaction"] != 1 || s.HiddenBySQLState["40001"] != 1 {
		t.Errorf("the statistics are %+v", s)
	}
	a.is("before after", `SELECT string_agg(what, ' ') FROM trace`)
}

func TestStatementsOutsideTransactionsWithHazardsAreNotExecutedAgain(t *testing.T) {
	file := `current_setting('data_directory') || '/' || current_schema()`
	for name, c := range map[string]struct {
		text    string
		reason  RefusalReason
		options []Option
		setup   string
		remains string // a question
		want    string
	}{
		"an advisory lock": {
			text: `SELECT pg_advisory_lock(7355619), conflict()`, reason: RefusedAdvisoryLock,
			remains: `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 7355619`, want: "1",
		},
		"an advisory lock of the transaction": {text: `SELECT pg_advisory_xact_lock(7355620), conflict()`, reason: RefusedAdvisoryXactLock},
		"setval": {
			text: `SELECT setval('numbers', nextval('numbers') + 10), conflict()`, reason: RefusedOutsideEffect,
			setup: `CREATE SEQUENCE numbers`, remains: `SELECT last_value FROM numbers`, want: "11",
		},
		"lo_export": {
			text: `SELECT lo_export(7355621, ` + file + `), conflict()`, reason: RefusedOutsideEffect,
			setup: `SELECT lo_from_bytea(7355621, 'text')`, remains: `SELECT lo_unlink(7355621)`, want: "1",
		},
		"a function that is denied": {
			text: `SELECT number_of('numbers'), conflict()`, reason: RefusedDeniedFunction, options: []Option{WithDeniedFunctions("number_of")},
			setup:   `CREATE SEQUENCE numbers; CREATE FUNCTION number_of(text) RETURNS bigint LANGUAGE sql AS 'SELECT nextval($1::regclass)'`,
			remains: `SELECT last_value FROM numbers`, want: "1",
		},
		"a text that is read in two ways": {text: `INSERT INTO trace SELECT '\' FROM conflict() --'`, reason: RefusedUnreadable},
		"foreign tables": {
			text: `INSERT INTO trace SELECT 'x' FROM conflict()`, reason: RefusedForeignTables,
			setup: `CREATE FOREIGN DATA WRAPPER lonely; CREATE SERVER lonely FOREIGN DATA WRAPPER lonely; CREATE FOREIGN TABLE remote (n int) SERVER lonely`,
		},
		"DO": {
			text: `DO $$ BEGIN INSERT INTO trace VALUES ('x'); COMMIT; PERFORM conflict(); END $$`, reason: RefusedStatement,
			remains: `SELECT count(*) FROM trace`, want: "1",
		},
		"CALL": {
			text: `CALL half()`, reason: RefusedStatement, remains: `SELECT count(*) FROM trace`, want: "1",
			setup: `CREATE PROCEDURE half() LANGUAGE plpgsql AS $$ BEGIN INSERT INTO trace VALUES ('x'); COMMIT; PERFORM conflict(); END $$`,
		},
		"several DDL":        {text: `CREATE TABLE made (n int); INSERT INTO made SELECT 1 FROM conflict()`, reason: RefusedStatement, remains: `SELECT to_regclass('made')`},
		"COPY to a program":  {text: `COPY (SELECT conflict()) TO PROGRAM 'cat'`, reason: RefusedStatement},
		"EXPLAIN":            {text: `EXPLAIN ANALYZE SELECT conflict()`, reason: RefusedStatement},
		"PREPARE":            {text: `PREPARE p AS SELECT 1; SELECT conflict()`, reason: RefusedStatement},
		"several statements": {text: `INSERT INTO trace VALUES ('x'); SELECT conflict()`, reason: RefusedStatement, remains: `SELECT count(*) FROM trace`, want: "0"},
		"only closures":      {text: `SELECT conflict()`, reason: RefusedMode, options: []Option{WithMode(ModeClosure)}},
	} {
		t.Run(name, func(t *testing.T) {
			var events []Event
			a := enter(t, append([]Option{collecting(&events)}, c.options...), conflicts)
			if c.setup != "" {
				a.set(c.setup)
			}
			if strings.Contains(c.setup, "lonely") {
				t.Cleanup(func() { a.set(`DROP FOREIGN DATA WRAPPER lonely CASCADE`) })
			}
			_, err := a.db.Exec(c.text)
			if c.reason.tells() {
				isRefused(t, err, c.reason)
				if len(events) != 1 || events[0].Decision != DecisionRefused || events[0].Kind != KindStatement || events[0].Reason != c.reason {
					t.Errorf("the events are %+v", events)
				}
			} else if server, ok := tested.said(err); !ok || server.code != "40001" || server.hint != "" || len(events) != 0 {
				t.Errorf("the error is %#v, the events are %+v", err, events)
			}
			if s := a.stats(); (s.Refusals[c.reason] == 1) != c.reason.tells() || s.PlainConflicts != 1 || s.Replays != 0 || s.Hidden != 0 {
				t.Errorf("the statistics are %+v", s)
			}
			if c.remains != "" {
				a.is(c.want, c.remains)
			}
			a.is("2", `SELECT nextval('tries')`)
		})
	}
}

// No rollback takes a cursor WITH HOLD back to where it stood.
func TestACursorWithHoldIsNotMovedAgainByAReplay(t *testing.T) {
	const declare = `DECLARE h CURSOR WITH HOLD FOR SELECT n FROM generate_series(1, 10) n`
	declares := func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, declare)
		return err
	}
	for name, test := range map[string]struct {
		declare func(context.Context, *sql.Conn) error
		move    string
	}{
		"declared in a closure": {func(ctx context.Context, c *sql.Conn) error { return RunInTx(ctx, c, nil, declares) }, `MOVE h`},
		"declared without replay": {func(ctx context.Context, c *sql.Conn) error {
			ctx = ContextWithoutReplay(ctx)
			tx, err := c.BeginTx(ctx, nil)
			if err != nil {
				return err
			}
			if err := declares(ctx, tx); err != nil {
				return err
			}
			return tx.Commit()
		}, `MOVE h`},
		"moved by the second statement of a text": {func(ctx context.Context, c *sql.Conn) error {
			_, err := c.ExecContext(ctx, declare)
			return err
		}, `SET LOCAL work_mem = '1MB'; MOVE h`},
	} {
		t.Run(name, func(t *testing.T) {
			a := enter(t, nil, bank)
			c := a.session(a.db)
			if err := test.declare(t.Context(), c); err != nil {
				t.Fatal(err)
			}
			tx := a.beginOnConn(c)
			tx.does(test.move)
			tx.does(`UPDATE account SET balance = balance - 1 WHERE id = 1`)
			over := a.meets(crossing)
			_, err := tx.Exec(`UPDATE account SET balance = balance + 1 WHERE id = 2`)
			over()
			if err == nil {
				if got := tx.sees(`FETCH h`); got != "2" {
					t.Errorf("moved by one, the cursor fetches %s", got)
				}
			} // else it is as with lib/pq
			if err := tx.Rollback(); err != nil {
				t.Error(err)
			}
		})
	}
}

// A transaction that was ended and begun again by statements is over with its Commit.
func TestABeginInsideATransactionDoesNotLeaveItsConnectionUnprotected(t *testing.T) {
	a := enter(t, nil, bank)
	c := a.session(a.db)
	tx := a.beginOnConn(c)
	tx.does(`COMMIT`)
	tx.does(`BEGIN`)
	tx.commits()
	// The rival's wish must come before the search for a deadlock.
	if _, err := c.ExecContext(t.Context(), `SET deadlock_timeout = '100ms'`); err != nil {
		t.Fatal(err)
	}
	a.rivalDoes("BEGIN", crossing.holds)
	done := make(chan error, 1)
	go func() {
		_, err := c.ExecContext(t.Context(), `UPDATE account SET balance = balance + 1 WHERE id IN (1, 2)`)
		done <- err
	}()
	a.isWaitedFor()
	a.rivalDoes(crossing.wants, "COMMIT")
	if err := <-done; err != nil {
		t.Errorf("%#v", err)
	}
}

func (s *script) seesThat(want, text string) {
	s.Helper()
	if got := s.sees(text); got != want {
		s.Errorf("%s gives %s, want %s", text, got, want)
	}
}

// Whatever the transaction did before the conflict is done again, in its order.
func TestWhatARollbackUndoesIsReplayedInOrder(t *testing.T) {
	for name, c := range map[string]struct {
		setup         []string
		before, after func(*script)
		remains, want string
	}{
		"nextval": {
			setup:   []string{`CREATE SEQUENCE numbers`},
			before:  func(s *script) { s.does(`INSERT INTO trace SELECT nextval('numbers')::text`) },
			remains: `SELECT string_agg(what, ' ') FROM trace`, want: "2",
		},
		"now": {
			before:  func(s *script) { s.does(`INSERT INTO trace VALUES (now()::text)`) },
			after:   func(s *script) { s.seesThat("true", `SELECT what = now()::text FROM trace`) },
			remains: `SELECT count(*) FROM trace`, want: "1",
		},
		"random and gen_random_uuid": {
			before:  func(s *script) { s.does(`INSERT INTO trace SELECT random()::text || gen_random_uuid()::text`) },
			remains: `SELECT count(*) FROM trace`, want: "1",
		},
		"SET LOCAL": {
			before:  func(s *script) { s.does(`SET LOCAL test.a = 'x'`); s.does(`SET LOCAL test.a = 'y'`) },
			after:   func(s *script) { s.does(`INSERT INTO trace VALUES (current_setting('test.a'))`) },
			remains: `SELECT string_agg(what, ' ') FROM trace`, want: "y",
		},
		"set_config": {
			before:  func(s *script) { s.seesThat("x", `SELECT set_config('test.a', 'x', true)`) },
			after:   func(s *script) { s.does(`INSERT INTO trace VALUES (current_setting('test.a'))`) },
			remains: `SELECT string_agg(what, ' ') FROM trace`, want: "x",
		},
		"SET": {
			before:  func(s *script) { s.does(`SET test.a = 'x'`) },
			after:   func(s *script) { s.does(`INSERT INTO trace VALUES (current_setting('test.a'))`) },
			remains: `SELECT string_agg(what, ' ') FROM trace`, want: "x",
		},
		"a temporary table": {
			before: func(s *script) {
				s.does(`CREATE TEMPORARY TABLE passing (what text) ON COMMIT DROP`)
				s.does(`INSERT INTO passing VALUES ('x')`)
			},
			after:   func(s *script) { s.does(`INSERT INTO trace SELECT what FROM passing`) },
			remains: `SELECT string_agg(what, ' ') FROM trace`, want: "x",
		},
		"DDL": {
			setup: []string{`CREATE TABLE old (n int); INSERT INTO old VALUES (1)`},
			before: func(s *script) {
				s.does(`ALTER TABLE old ADD what text DEFAULT 'x'`)
				s.does(`CREATE TABLE new AS SELECT what FROM old`)
				s.does(`TRUNCATE old`)
				s.does(`DROP TABLE old`)
			},
			after:   func(s *script) { s.does(`INSERT INTO new VALUES ('y')`) },
			remains: `SELECT string_agg(what, ' ' ORDER BY what) || ' ' || (to_regclass('old') IS NULL) FROM new`, want: "x y true",
		},
		"an error undone by ROLLBACK TO": {
			setup: []string{`CREATE TABLE one (n int PRIMARY KEY); INSERT INTO one VALUES (1)`},
			before: func(s *script) {
				s.does(`SAVEPOINT a`)
				s.fails("23505", `INSERT INTO one VALUES ($1)`, 1)
				s.does(`ROLLBACK TO a`)
				s.does(`RELEASE a`)
				s.does(`INSERT INTO trace VALUES ('x')`)
			},
			remains: `SELECT string_agg(what, ' ') FROM trace`, want: "x",
		},
		"a cursor of the server": {
			before: func(s *script) {
				s.does(`DECLARE c SCROLL CURSOR FOR SELECT n FROM generate_series(1, 9) n`)
				s.seesThat("1", `FETCH c`)
				s.does(`MOVE FORWARD 2 IN c`)
				s.does(`DECLARE closed CURSOR FOR SELECT 1`)
				s.does(`CLOSE closed`)
			},
			after:   func(s *script) { s.seesThat("4", `FETCH c`); s.seesThat("3", `FETCH PRIOR FROM c`); s.does(`CLOSE c`) },
			remains: `SELECT count(*) FROM trace`, want: "0",
		},
		"LISTEN": {
			before:  func(s *script) { s.does(`LISTEN a`); s.does(`UNLISTEN a`) },
			after:   func(s *script) { s.does(`INSERT INTO trace VALUES ('x')`) },
			remains: `SELECT string_agg(what, ' ') FROM trace`, want: "x",
		},
	} {
		for _, level := range []sql.IsolationLevel{sql.LevelReadCommitted, sql.LevelSerializable} {
			t.Run(name+"/"+level.String(), func(t *testing.T) {
				a := enter(t, nil, append([]string{conflicts}, c.setup...)...)
				tx := a.begin(level)
				c.before(tx)
				tx.does(`SELECT conflict()`)
				if c.after != nil {
					c.after(tx)
				}
				tx.commits()
				a.is(c.want, c.remains)
				a.hid("40001")
			})
		}
	}
}

func TestWhatComesOutDifferentSurfacesIfItWasShown(t *testing.T) {
	for _, text := range []string{
		`SELECT nextval('numbers')`, `SELECT now()`, `SELECT random()`, `SELECT gen_random_uuid()`,
		`INSERT INTO trace VALUES ('x') RETURNING now()`, `INSERT INTO trace VALUES ('x') RETURNING nextval('numbers')`,
	} {
		for _, level := range []sql.IsolationLevel{sql.LevelReadCommitted, sql.LevelRepeatableRead} {
			t.Run(text+"/"+level.String(), func(t *testing.T) {
				a := enter(t, nil, conflicts, `CREATE SEQUENCE numbers`)
				tx := a.begin(level)
				shown := tx.sees(text)
				if strings.Contains(text, "RETURNING") && level == sql.LevelReadCommitted {
					tx.does(`SELECT conflict()`) // a pin keeps what was shown
					tx.commits()
					a.is("1", `SELECT count(*) FROM trace`)
					a.hid("40001")
					return
				}
				tx.fails("40001", `SELECT conflict()`)
				tx.poisonedBy(ErrDiverged, "40001")
				if s := a.stats(); s.Diverged != 1 || s.LastDivergence == nil || strings.Contains(s.LastDivergence.What, shown) {
					t.Errorf("the statistics are %+v", s)
				}
			})
		}
	}
}

func TestANotificationIsHeardOnce(t *testing.T) {
	a := enter(t, nil, conflicts)
	channel := a.read(`SELECT current_schema()`)
	listener := pq.NewListener(a.dsn, time.Second, time.Minute, nil)
	defer listener.Close() //nolint:errcheck // it has heard what it had to
	if err := listener.Listen(channel); err != nil {
		t.Fatal(err)
	}
	tx := a.begin(sql.LevelReadCommitted)
	tx.does(`NOTIFY ` + channel + `, 'first'`)
	tx.does(`SELECT pg_notify($1, 'second')`, channel)
	tx.does(`SELECT conflict()`)
	tx.does(`NOTIFY ` + channel + `, 'third'`)
	tx.commits()
	a.set(`NOTIFY ` + channel + `, 'end'`)
	var heard []string
	for len(heard) == 0 || heard[len(heard)-1] != "end" {
		heard = append(heard, (<-listener.Notify).Extra)
	}
	if got := strings.Join(heard, " "); got != "first second third end" {
		t.Errorf("heard %s", got)
	}
	a.hid("40001")
}

// The driver does not see the deadlock. The other side goes on when the transaction is
// rolled back for another reason, and then the function is not in its way.
func TestADeadlockThatAFunctionSwallowsIsNotReplayedButALaterConflictIs(t *testing.T) {
	for _, shown := range []bool{false, true} {
		t.Run(fmt.Sprintf("what the function returned was shown: %t", shown), func(t *testing.T) {
			a := enter(t, nil, bank, conflicts, `CREATE FUNCTION careful(which int) RETURNS text LANGUAGE plpgsql AS $$
				BEGIN
					UPDATE account SET balance = balance + 1 WHERE id = which;
					RETURN 'taken';
				EXCEPTION WHEN deadlock_detected THEN
					RETURN 'swallowed';
				END $$`)
			tx := a.begin(sql.LevelReadCommitted)
			tx.does(`UPDATE account SET balance = balance - 1 WHERE id = 1`)
			over := a.meets(crossing)
			if shown {
				tx.seesThat("swallowed", `SELECT careful(2)`)
			} else {
				tx.does(`INSERT INTO trace SELECT careful(2)`)
			}
			if s := a.stats(); s.Replays != 0 {
				t.Errorf("the statistics are %+v", s)
			}
			if shown {
				tx.fails("40001", `SELECT conflict()`)
				over()
				tx.poisonedBy(ErrDiverged, "40001")
				a.is("99 101", `SELECT string_agg(balance::text, ' ' ORDER BY id) FROM account WHERE id < 3`)
				return
			}
			tx.does(`SELECT conflict()`)
			over()
			tx.commits()
			a.is("taken", `SELECT string_agg(what, ' ') FROM trace`)
			a.is("98 102", `SELECT string_agg(balance::text, ' ' ORDER BY id) FROM account WHERE id < 3`)
			a.hid("40001")
		})
	}
}

// The server has undone the statement; what else it undid the driver cannot know.
func TestAfterAStatementWithoutAnAnswerATransactionIsNotReplayed(t *testing.T) {
	var events []Event
	a := enter(t, []Option{collecting(&events)}, conflicts)
	tx := a.begin(sql.LevelReadCommitted)
	tx.does(`SAVEPOINT mine`)
	rows, err := tx.Query(`SELECT generate_series(1, 9)`)
	if err != nil || !rows.Next() {
		t.Fatal(err)
	}
	if _, err := tx.Exec(`INSERT INTO trace VALUES ('x')`); err == nil || sqlState(err) != "" {
		t.Errorf("in mid rows a statement gives %v", err)
	}
	if err := rows.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = tx.Exec(`SELECT conflict()`)
	isRefused(t, err, RefusedInterrupted)
	tx.does(`ROLLBACK TO mine`)
	tx.commits()
	if s := a.stats(); s.Unprotected[RefusedInterrupted] != 1 || s.Refusals[RefusedInterrupted] != 1 || len(events) != 1 {
		t.Errorf("the statistics are %+v, the events %+v", s, events)
	}
}

// What a statement prepared by PREPARE does, no EXECUTE of it tells, wherever it stands
// in the text.
func TestAnExecuteInsideAnotherStatementIsRefusedAsWell(t *testing.T) {
	for _, text := range []string{
		`EXPLAIN ANALYZE EXECUTE p`, `EXPLAIN (ANALYZE, TIMING off) EXECUTE p`, `CREATE TABLE made AS EXECUTE p`,
		`EXPLAIN ANALYZE CREATE TABLE made AS EXECUTE p`,
	} {
		t.Run(text, func(t *testing.T) {
			if reason, _ := (&config{}).refuses(callExec, analyze(text)); reason != RefusedSessionState {
				t.Errorf("the reason is %q", reason)
			}
		})
	}
	for name, test := range map[string]struct{ execute string }{
		"EXPLAIN ANALYZE": {execute: `EXPLAIN ANALYZE EXECUTE p`},
		"CREATE TABLE":    {execute: `CREATE TABLE made AS EXECUTE p`},
	} {
		t.Run(name+" takes no advisory lock twice", func(t *testing.T) {
			a := enter(t, nil, conflicts)
			c := a.session(a.db)
			if _, err := c.ExecContext(t.Context(), `PREPARE p AS SELECT 1 AS n WHERE pg_try_advisory_lock(7355622)`); err != nil {
				t.Fatal(err)
			}
			tx := a.beginOnConn(c)
			tx.does(test.execute)
			_, _ = tx.Exec(`SELECT conflict()`)
			_ = tx.Rollback()
			if _, err := c.ExecContext(t.Context(), `SELECT pg_advisory_unlock(7355622)`); err != nil {
				t.Fatal(err)
			}
			a.is("0", `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 7355622`)
		})
	}
}
