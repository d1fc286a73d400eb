package pgretry

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pgretry/pgretry/internal/drivertest"
)

// ways are how a statement outside a transaction can be executed. Each returns what
// the application was shown.
var ways = map[string]func(ctx context.Context, db *sql.DB, text string, args ...any) ([]string, error){
	"Exec": func(ctx context.Context, db *sql.DB, text string, args ...any) ([]string, error) {
		result, err := db.ExecContext(ctx, text, args...)
		if err != nil {
			return nil, err
		}
		n, err := result.RowsAffected()
		return []string{fmt.Sprint(n)}, err
	},
	"Query": func(ctx context.Context, db *sql.DB, text string, args ...any) ([]string, error) {
		rows, err := db.QueryContext(ctx, text, args...)
		if err != nil {
			return nil, err
		}
		return fetch(rows, -1)
	},
	"some rows": func(ctx context.Context, db *sql.DB, text string, args ...any) ([]string, error) {
		rows, err := db.QueryContext(ctx, text, args...)
		if err != nil {
			return nil, err
		}
		return fetch(rows, 3)
	},
	"prepared Exec": func(ctx context.Context, db *sql.DB, text string, args ...any) ([]string, error) {
		s, err := db.PrepareContext(ctx, text)
		if err != nil {
			return nil, err
		}
		_, err = s.ExecContext(ctx, args...)
		return nil, errors.Join(err, s.Close())
	},
	"prepared Query": func(ctx context.Context, db *sql.DB, text string, args ...any) ([]string, error) {
		s, err := db.PrepareContext(ctx, text)
		if err != nil {
			return nil, err
		}
		rows, err := s.QueryContext(ctx, args...)
		if err != nil {
			return nil, errors.Join(err, s.Close())
		}
		saw, err := fetch(rows, -1)
		return saw, errors.Join(err, s.Close())
	},
}

// executions returns how often a text was executed, and what with.
func (f *fixture) executions(text string) (all []string) {
	for _, e := range f.Entries() {
		if e.Call&drivertest.AnyStatement != 0 && e.Query == text && !errors.Is(e.Err, driver.ErrSkip) {
			what := ""
			for _, a := range e.Args {
				what += fmt.Sprintf("%T(%v) ", a.Value, a.Value)
			}
			all = append(all, what)
		}
	}
	return all
}

func TestAStatementOutsideATransactionIsExecutedAgain(t *testing.T) {
	for _, text := range []string{
		"SELECT a FROM t WHERE b = $1", "INSERT INTO t VALUES ($1) RETURNING a", "UPDATE t SET a = $1", "DELETE FROM t WHERE a = $1",
		"MERGE INTO t USING u ON t.a = $1 WHEN MATCHED THEN DELETE", "WITH x AS (DELETE FROM t RETURNING *) SELECT $1 FROM x",
		"VALUES ($1)", "TABLE t -- $1", "/* why */ select $1", "(SELECT $1)",
		"ALTER TABLE t ADD b text DEFAULT $1", "CREATE UNIQUE INDEX i ON t (a) WHERE b = $1", "TRUNCATE t -- $1",
	} {
		for way, run := range ways {
			for _, at := range []drivertest.Call{drivertest.AnyStatement, drivertest.RowsNext, drivertest.RowsClose} {
				exec := strings.HasSuffix(way, "Exec")
				if exec && at != drivertest.AnyStatement {
					continue
				}
				for i, shape := range shapes {
					t.Run(fmt.Sprintf("%s/%s/%s/%s", text, way, at, shape.name), func(t *testing.T) {
						f := newShape(t, i, nil)
						f.Rows(text, five)
						f.Affected(text, 3)
						if shape.skips {
							f.Fail(drivertest.Exec|drivertest.Query, driver.ErrSkip).Matching(text)
						}
						n := 1
						if at == drivertest.RowsNext {
							n = 3
						}
						f.Fail(at, serverErr("40P01")).Matching(text).At(n)
						saw, err := run(t.Context(), f.db, text, []byte("x"))
						if rows := map[string]int{"Exec": 1, "Query": 5, "prepared Query": 5, "some rows": 3}[way]; err != nil || len(saw) != rows || way == "Exec" && saw[0] != "3" {
							t.Errorf("the application gets %v and sees %v", err, saw)
						}
						if got := f.executions(text); !slices.Equal(got, []string{"[]uint8([120]) ", "[]uint8([120]) "}) {
							t.Errorf("the server is asked with %v", got)
						}
						s := f.stats()
						if s.Hidden != 1 || s.HiddenBySQLState["40P01"] != 1 || s.Replays != 1 || s.PlainConflicts != 0 || s.Plain != 0 || !slices.Equal(f.waits, []time.Duration{10 * time.Millisecond}) {
							t.Errorf("waited %v, stats are %+v", f.waits, s)
						}
					})
				}
			}
		}
	}
}

func TestRowsThatWereDeliveredAreVerifiedBeforeTheOthersFollow(t *testing.T) {
	for _, c := range []struct {
		name         string
		first, later []drivertest.ResultSet
		saw          string // "" if the replay diverges
		what         string
	}{
		{"the same", sets(set(1, 2, 3, 4)), sets(set(1, 2, 3, 4)), "1 2 3 4", ""},
		{"others follow", sets(set(1, 2, 3, 4)), sets(set(1, 2, 8, 9, 10)), "1 2 8 9 10", ""},
		{"fewer follow", sets(set(1, 2, 3, 4)), sets(set(1, 2)), "1 2", ""},
		{"another value", sets(set(1, 2, 3)), sets(set(1, 7, 3)), "", "showed something else"},
		{"other order", sets(set(1, 2, 3)), sets(set(2, 1, 3)), "", "showed something else"},
		{"one row less", sets(set(1, 2, 3)), sets(set(1)), "", "fewer rows"},
		{"another column", sets(set(1, 2, 3)), sets(drivertest.ResultSet{Columns: drivertest.Columns("b"), Rows: set(1, 2, 3).Rows}), "", "showed something else"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var events []Event
			f := newFixture(t, WithOnRetry(func(_ context.Context, e Event) { events = append(events, e) }))
			f.On(drivertest.Query).RowsFunc(func(inv *drivertest.Invocation) ([]drivertest.ResultSet, error) {
				if inv.N == 1 {
					return c.first, nil
				}
				return c.later, nil
			})
			f.Fail(drivertest.RowsNext, serverErr("40001")).At(3)
			rows, err := f.db.QueryContext(t.Context(), "SELECT shown")
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = rows.Close() }()
			var saw []string
			for rows.Next() {
				var n int
				if err := rows.Scan(&n); err != nil {
					t.Fatal(err)
				}
				saw = append(saw, fmt.Sprint(n))
			}
			err = rows.Err()
			if c.saw != "" {
				if err != nil || strings.Join(saw, " ") != c.saw {
					t.Errorf("the application sees %v and gets %v, want %s", saw, err, c.saw)
				}
				return
			}
			server, ok := err.(*drivertest.Error) //nolint:errorlint // programs do it like this
			if !ok || server.Code != "40001" || !strings.Contains(server.Hint, c.what) || len(saw) != 2 {
				t.Errorf("the application sees %v and gets %+v", saw, err)
			}
			s := f.stats()
			if s.Diverged != 1 || s.LastDivergence == nil || !strings.Contains(s.LastDivergence.What, c.what) || s.Hidden != 0 || s.PlainConflicts != 1 {
				t.Errorf("stats are %+v", s)
			}
			if len(events) != 2 || events[1].Decision != DecisionDiverged || events[1].Kind != KindStatement {
				t.Errorf("the events are %+v", events)
			}
		})
	}
}

func TestAnErrorThatTheStatementDidNotHaveIsTheApplications(t *testing.T) {
	for way, run := range ways {
		f := newFixture(t).likePostgres()
		violation := serverErr("23505")
		f.Fail(drivertest.AnyStatement, serverErr("40001")).Matching("INSERT").At(1)
		f.Fail(drivertest.AnyStatement, violation).Matching("INSERT").At(1)
		_, err := run(t.Context(), f.db, "INSERT INTO t VALUES (1)")
		if !errors.Is(err, violation) || len(f.executions("INSERT INTO t VALUES (1)")) != 2 || f.stats().Hidden != 0 {
			t.Errorf("%s: the application gets %v, stats are %+v", way, err, f.stats())
		}
	}
}

func TestOtherStatementsOutsideTransactionsAreLeftAlone(t *testing.T) {
	for _, c := range []struct {
		text    string
		reason  RefusalReason
		options []Option
	}{
		{"CALL post_orders()", RefusedStatement, nil},
		{"DO $$ BEGIN PERFORM f(); END $$", RefusedStatement, nil},
		{"CREATE INDEX CONCURRENTLY i ON t (a)", RefusedStatement, nil},
		{"ALTER TABLE t DETACH PARTITION p CONCURRENTLY", RefusedStatement, nil},
		{"CREATE DATABASE d", RefusedStatement, nil},
		{"CREATE TABLE t (a int); CREATE TABLE u (a int)", RefusedStatement, nil},
		{"CREATE TABLE t AS SELECT setval('s', 1)", RefusedOutsideEffect, nil},
		{"VACUUM t", RefusedStatement, nil},
		{"COPY t TO STDOUT", RefusedStatement, nil},
		{"SET a = 1", RefusedStatement, nil},
		{"", RefusedStatement, nil},
		{"UPDATE t SET a = 1; UPDATE t SET a = 2", RefusedStatement, nil},
		{"EXPLAIN ANALYZE UPDATE t SET a = 1", RefusedStatement, nil},
		{"SELECT pg_advisory_lock(1)", RefusedAdvisoryLock, nil},
		{"SELECT setval('s', 1)", RefusedOutsideEffect, nil},
		{"SELECT dblink_exec('x')", RefusedOutsideEffect, nil},
		{"SELECT charge(1)", RefusedDeniedFunction, []Option{WithDeniedFunctions("charge")}},
		{"SELECT 'open", RefusedStatement, nil},
	} {
		for way, run := range ways {
			t.Run(c.text+"/"+way, func(t *testing.T) {
				var events []Event
				o := newObservatory(t)
				options := append(o.options(), WithOnRetry(func(_ context.Context, e Event) { events = append(events, e) }))
				f := newFixture(t, append(options, c.options...)...).likePostgres()
				f.Fail(drivertest.AnyStatement, serverErr("40001")).Times(1)
				_, err := run(t.Context(), f.db, c.text)
				reason := c.reason
				if c.text == "SELECT 'open" && f.stats().Refusals[RefusedUnreadable] == 1 {
					reason = RefusedUnreadable // either will do
				}
				server, ok := errors.AsType[*drivertest.Error](err)
				if !ok || server.Code != "40001" || !strings.Contains(server.Hint, "["+string(reason)+"]") || len(f.executions(c.text)) != 1 {
					t.Errorf("the application gets %+v", err)
				}
				if s := f.stats(); s.Refusals[reason] != 1 || s.PlainConflicts != 1 || s.Replays != 0 || len(f.waits) != 0 {
					t.Errorf("stats are %+v", s)
				}
				if len(events) != 1 || events[0].Decision != DecisionRefused || events[0].Kind != KindStatement || events[0].Reason != reason {
					t.Errorf("the events are %+v", events)
				}
				if got := f.metrics(o)["pgretry.refusals"]; got != "{refusal.reason="+string(reason)+":1}" {
					t.Errorf("pgretry.refusals is %s", got)
				}
			})
		}
	}
}

func TestDDLIsExecutedAgainOnlyByPostgreSQLItself(t *testing.T) {
	for version, again := range map[string]bool{
		"PostgreSQL 15.18 (Debian 15.18-0+deb12u1) on x86_64-pc-linux-gnu, compiled by gcc": true,
		"PostgreSQL 18.4 on x86_64-pc-linux-gnu":                                            true,
		"PostgreSQL 16":                                                                     true,
		"PostgreSQL 19beta1":                                                                true,
		"PostgreSQL 11.2-YB-2.20.1.0-b0 on x86_64-pc-linux-gnu":                             false,
		"CockroachDB CCL v24.1.0 (x86_64-pc-linux-gnu)":                                     false,
		"PostgreSQL 9.4.26 (Greenplum Database 6.25.3 build commit) on x86_64":              false,
		"PostgreSQL 8.0.2 on i686-pc-linux-gnu, compiled by GCC gcc, Redshift 1.0.66526":    false,
		"": false,
	} {
		for _, text := range []string{"ALTER TABLE t ADD a int", "TRUNCATE t"} {
			f := newFixture(t)
			f.Rows("pg_catalog.version()", drivertest.ResultSet{Columns: drivertest.Columns("version"), Rows: [][]driver.Value{{version}}})
			f.likePostgres()
			f.Fail(drivertest.AnyStatement, serverErr("40P01")).Matching(text).At(1)
			_, err := f.db.ExecContext(t.Context(), text)
			if n := len(f.executions(text)); (err == nil) != again || (n == 2) != again {
				t.Errorf("%s on %q: %v after %d executions", text, version, err, n)
			}
		}
	}
}

func TestNoStatementIsExecutedAgainWhereTheUserDoesNotWantIt(t *testing.T) {
	for name, c := range map[string]struct {
		ctx     context.Context
		options []Option
	}{
		"ModeClosure":          {t.Context(), []Option{WithMode(ModeClosure)}},
		"ModeOff":              {t.Context(), []Option{WithMode(ModeOff)}},
		"ContextWithoutReplay": {ContextWithoutReplay(t.Context()), nil},
	} {
		for way, run := range ways {
			for _, at := range []drivertest.Call{drivertest.AnyStatement, drivertest.RowsNext} {
				if at == drivertest.RowsNext && strings.HasSuffix(way, "Exec") {
					continue
				}
				f := newFixture(t, c.options...).likePostgres()
				conflict := serverErr("40001")
				f.Fail(at, conflict).Matching("SELECT 1")
				_, err := run(c.ctx, f.db, "SELECT 1")
				server, _ := errors.AsType[*drivertest.Error](err)
				if !errors.Is(err, conflict) || server.Hint != "" || len(f.executions("SELECT 1")) != 1 || len(f.stats().Refusals) != 0 {
					t.Errorf("%s, %s: the application gets %+v", name, way, err)
				}
			}
		}
	}
}

func TestAStatementThatMayHaveReachedAForeignServerIsNotExecutedAgain(t *testing.T) {
	for _, foreign := range []bool{true, false} {
		for text, proven := range map[string]bool{"SELECT a FROM t": true, "SELECT f()": false, "INSERT INTO t VALUES (1)": false} {
			f := newFixture(t)
			if foreign {
				f.Rows("pg_catalog.pg_foreign_table", set("yes"))
			} else {
				f.Rows("pg_catalog.pg_foreign_table", set())
			}
			f.Fail(drivertest.Query, serverErr("40001")).Matching(text).Times(1)
			_, err := ways["Query"](t.Context(), f.db, text)
			if refused := foreign && !proven; (err != nil) != refused || refused && f.stats().Refusals[RefusedForeignTables] != 1 {
				t.Errorf("foreign tables %t, %s: the application gets %v, stats are %+v", foreign, text, err, f.stats())
			}
		}
	}
}

func TestAStatementInsideARawBlockIsNotTakenForOneThatStandsAlone(t *testing.T) {
	for _, c := range []struct {
		texts []string
		again bool
	}{
		{[]string{"BEGIN"}, false},
		{[]string{"START TRANSACTION"}, false},
		{[]string{"/* why */ begin"}, false},
		{[]string{"BEGIN", "COMMIT"}, true},
		{[]string{"BEGIN", "ROLLBACK"}, true},
		{[]string{"BEGIN", "COMMIT AND CHAIN"}, false},
	} {
		f := newFixture(t).likePostgres()
		f.Fail(drivertest.Exec, serverErr("40001")).Matching("UPDATE").Times(1)
		err := onOneConn(t.Context(), f.db, append(c.texts, "UPDATE t SET a = 1")...)
		if (err == nil) != c.again || len(f.executions("UPDATE t SET a = 1")) != map[bool]int{true: 2, false: 1}[c.again] {
			t.Errorf("%v: the application gets %v", c.texts, err)
		}
		if !c.again && f.stats().Refusals[RefusedTxControl] != 1 {
			t.Errorf("%v: stats are %+v", c.texts, f.stats())
		}
	}
}

func TestABlockThatTheDriverCouldNotSeeGivesTheFirstError(t *testing.T) {
	for _, text := range []string{"SELECT a FROM t", "UPDATE t SET a = 1 RETURNING a"} {
		f := newFixture(t).likePostgres()
		f.Fail(drivertest.Query, serverErr("40001")).Matching(text).Times(1)
		c, err := f.db.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		err = c.Raw(func(driverConn any) error {
			inner, _ := RawConn(driverConn)
			_, err := inner.(driver.ExecerContext).ExecContext(t.Context(), "BEGIN", nil)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.QueryContext(t.Context(), text) //nolint:sqlclosecheck // there are none
		if sqlState(err) != "40001" || f.stats().PlainConflicts != 1 || f.stats().Hidden != 0 {
			t.Errorf("%s: the application gets %v, stats are %+v", text, err, f.stats())
		}
		if got := f.Log(drivertest.Query); !strings.Contains(got[len(got)-1], "25P02") {
			t.Errorf("%s: the server was asked %v", text, got)
		}
	}
}

func TestTheLimitsOfAStatementOutsideATransaction(t *testing.T) {
	const ms = time.Millisecond
	for _, c := range []struct {
		policy Policy
		waits  []time.Duration
		limit  string
	}{
		{Policy{MaxAttempts: 4}, []time.Duration{10 * ms, 20 * ms, 40 * ms}, "MaxAttempts is 4"},
		{Policy{MaxAttempts: 1}, nil, "MaxAttempts is 1"},
		{Policy{MaxElapsed: 70 * ms}, []time.Duration{10 * ms, 20 * ms, 40 * ms}, "MaxElapsed of 70ms"},
		{Policy{MaxElapsed: 69 * ms}, []time.Duration{10 * ms, 20 * ms}, "MaxElapsed of 69ms"},
	} {
		for way, run := range ways {
			var events []Event
			f := newFixture(t, WithPolicy(c.policy), WithOnRetry(func(_ context.Context, e Event) { events = append(events, e) })).likePostgres()
			f.Fail(drivertest.AnyStatement, serverErr("40001")).Matching("UPDATE")
			_, err := run(t.Context(), f.db, "UPDATE t SET a = 1")
			server, ok := errors.AsType[*drivertest.Error](err)
			if !ok || !strings.Contains(server.Hint, c.limit) || !slices.Equal(f.waits, c.waits) {
				t.Errorf("%s: waited %v and got %+v, want %v, %s", way, f.waits, err, c.waits, c.limit)
			}
			s := f.stats()
			if s.Exhausted != 1 || s.PlainConflicts != 1 || s.Hidden != 0 || len(events) != len(c.waits)+1 || events[len(events)-1].Decision != DecisionExhausted {
				t.Errorf("%s: stats are %+v, events %+v", way, s, events)
			}
		}
	}
}

func TestADeadlineOrTheContextsEndEndsARepetition(t *testing.T) {
	for way, run := range ways {
		f := newFixture(t, WithPolicy(Policy{BaseDelay: time.Hour, MaxDelay: time.Hour, MaxElapsed: 2 * time.Hour})).likePostgres()
		f.now = time.Now()
		f.Fail(drivertest.AnyStatement, serverErr("40001")).Matching("UPDATE")
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		_, err := run(ctx, f.db, "UPDATE t SET a = 1")
		cancel()
		if server, ok := errors.AsType[*drivertest.Error](err); !ok || !strings.Contains(server.Hint, "deadline comes before the next one") || len(f.waits) != 0 {
			t.Errorf("%s: waited %v and got %+v", way, f.waits, err)
		}

		f = newFixture(t).likePostgres()
		conflict, cause := serverErr("40001"), errors.New("shutting down")
		f.Fail(drivertest.AnyStatement, conflict).Matching("UPDATE")
		ended, stop := context.WithCancelCause(t.Context())
		f.onWait = func() { stop(cause) }
		_, err = run(ended, f.db, "UPDATE t SET a = 1")
		if !errors.Is(err, context.Canceled) || !errors.Is(err, cause) || sqlState(err) != "40001" || len(f.executions("UPDATE t SET a = 1")) != 1 {
			t.Errorf("%s: the application gets %v", way, err)
		}
	}
}

func TestAStatementThatBlocksWhenItIsExecutedAgainEndsWithItsContext(t *testing.T) {
	f := newFixture(t).likePostgres()
	f.db.SetMaxOpenConns(1)
	f.Fail(drivertest.Exec, serverErr("40001")).Matching("UPDATE").Times(1)
	again := f.On(drivertest.Exec).Matching("UPDATE").Block()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-again.Blocked()
		cancel()
	}()
	if _, err := f.db.ExecContext(ctx, "UPDATE t SET a = 1"); !errors.Is(err, context.Canceled) {
		t.Errorf("the application gets %v", err)
	}
	f.ClearRules()
	if _, err := f.db.ExecContext(t.Context(), "UPDATE t SET a = 1"); err != nil {
		t.Errorf("the next statement gives %v", err)
	}
}

func TestTheSpansOfAStatementThatWasExecutedAgain(t *testing.T) {
	o := newObservatory(t)
	var events []string
	f := newFixture(t, append(o.options(), WithOnRetry(func(_ context.Context, e Event) {
		events = append(events, fmt.Sprintf("%s %s %d after %s, wait %s, %s", e.Kind, e.Decision, e.Attempt, e.SQLState, e.Wait, e.Name))
	}))...)
	f.connector.config.now = time.Now // spans have to begin one after the other
	f.Fail(drivertest.Query, serverErr("40001")).Times(2)
	if err := f.db.Ping(); err != nil {
		t.Fatal(err)
	}
	o.spans.Reset()
	ctx, caller := o.tracers.Tracer("test").Start(ContextWithName(t.Context(), "look"), "request")
	_, err := ways["Query"](ctx, f.db, "SELECT a FROM t")
	caller.End()
	if err != nil {
		t.Fatal(err)
	}
	want := `
request
  sql.conn.query error.type=40001 db.response.status_code=40001
  pgretry.attempt transaction.name=look attempt=2 attempt.kind=statement outcome=retried statements=1 backoff=0 class=retryable error.type=40001 db.response.status_code=40001 ERROR:retryable
    sql.conn.query error.type=40001 db.response.status_code=40001
  pgretry.attempt transaction.name=look attempt=3 attempt.kind=statement outcome=committed statements=1 link:2
    sql.conn.query
`
	if got := "\n" + o.tree(); got != want {
		t.Errorf("the spans are%s\nwant%s", got, want)
	}
	if want := "statement retried 1 after 40001, wait 10ms, look; statement retried 2 after 40001, wait 20ms, look"; strings.Join(events, "; ") != want {
		t.Errorf("the events are %s, want %s", events, want)
	}
	if got, want := f.metrics(o)["pgretry.retries"], "{db.response.status_code=40001,class=retryable,mode=statement:2}"; got != want {
		t.Errorf("pgretry.retries is %s, want %s", got, want)
	}
}

func TestRowsThatConflictAgainAndAgainMeetTheLimits(t *testing.T) {
	f := newFixture(t, WithPolicy(Policy{MaxAttempts: 3}))
	f.Rows("shown", set(1, 2, 3))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	f.onWait = func() {
		if len(f.waits) == 20 {
			cancel() // it would go on for ever
		}
	}
	third := f.On(drivertest.RowsNext)
	third.Do(func(inv *drivertest.Invocation) error {
		if inv.N%3 == 0 {
			return serverErr("40001")
		}
		return nil
	})
	rows, err := f.db.QueryContext(ctx, "SELECT shown")
	if err != nil {
		t.Fatal(err)
	}
	_, err = fetch(rows, -1)
	if sqlState(err) != "40001" || len(f.waits) != 2 {
		t.Errorf("the application gets %v after %d waits", err, len(f.waits))
	}
}

func TestABlockInOneTextIsOverWhenTheTextIs(t *testing.T) {
	f := newFixture(t)
	f.db.SetMaxOpenConns(1)
	if _, err := f.db.ExecContext(t.Context(), "BEGIN; INSERT INTO t VALUES (1); COMMIT"); err != nil {
		t.Fatal(err)
	}
	f.Fail(drivertest.Query, serverErr("40001")).Matching("SELECT").Times(1)
	rows, err := f.db.QueryContext(t.Context(), "SELECT 1")
	if err != nil {
		t.Fatal(err)
	}
	_, err = fetch(rows, -1)
	if err != nil {
		t.Error(err)
	}
}

func TestRowsGoOnThoughTheirStatementWasClosed(t *testing.T) {
	f := newFixture(t)
	f.Rows("shown", set(1, 2, 3))
	f.Fail(drivertest.RowsNext, serverErr("40001")).At(2)
	c, err := f.db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	s, err := c.PrepareContext(t.Context(), "SELECT shown")
	if err != nil {
		t.Fatal(err)
	}
	rows, err := s.QueryContext(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	rows.Next()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if saw, err := fetch(rows, -1); err != nil && sqlState(err) != "40001" {
		t.Errorf("the application sees %v and gets %v", saw, err)
	}
}

func TestRowsOutsideATransactionAreClosedBeforeTheDriverAsksAndWaits(t *testing.T) {
	f := newShape(t, 0, []drivertest.Option{drivertest.WithOneCursor()}).holdsNothingWhileWaiting()
	f.Rows("INSERT", five)
	f.Fail(drivertest.RowsNext, serverErr("40001")).Matching("INSERT").At(2)
	rows, err := f.db.QueryContext(t.Context(), "INSERT INTO t VALUES (1) RETURNING a")
	if err != nil {
		t.Fatal(err)
	}
	if saw, err := fetch(rows, -1); err != nil || len(saw) != 5 {
		t.Errorf("the application sees %v and gets %v", saw, err)
	}
}

func TestAStatementAndItsRowsHaveTheirAttemptsInCommon(t *testing.T) {
	f := newFixture(t, WithPolicy(Policy{MaxAttempts: 2}))
	f.Fail(drivertest.Query, serverErr("40001")).Times(1)
	f.Fail(drivertest.RowsNext, serverErr("40001")).Times(1)
	_, err := ways["Query"](t.Context(), f.db, "SELECT 1")
	if got := len(f.executions("SELECT 1")); sqlState(err) != "40001" || got != 2 {
		t.Errorf("executed %d times though MaxAttempts is 2, the application gets %v", got, err)
	}
}

func TestAStatementIsCountedAsHiddenOnceAndOnlyIfItIs(t *testing.T) {
	for last, want := range map[int]int64{3: 1, 100: 0} {
		f := newFixture(t, WithPolicy(Policy{MaxAttempts: 3}))
		f.Rows("SELECT", set(1, 2, 3))
		seen := 0
		f.On(drivertest.RowsNext).Do(func(*drivertest.Invocation) error {
			// At the second row, later at the third.
			if seen++; seen == 2 || seen == 5 || seen > 7 && last == 100 {
				return serverErr("40001")
			}
			return nil
		})
		_, err := ways["Query"](t.Context(), f.db, "SELECT 1")
		if s := f.stats(); (err == nil) != (want == 1) || s.Hidden != want {
			t.Errorf("the application gets %v, stats are %+v", err, s)
		}
	}
}
