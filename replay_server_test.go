package pgretry

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lib/pq"

	"github.com/pgretry/pgretry/internal/pgserver/pgtest"
)

// arena is a schema of its own on the real server, our database on it and, beside it,
// a rival session over the inner driver alone. The rival never looks for deadlocks, so that it is
// always our transaction that the server aborts.
type arena struct {
	*testing.T
	dsn   string
	db    *sql.DB // ours
	plain *sql.DB // the inner driver alone, for looking and for comparison
	rival *sql.Conn
	pid   int // the rival's

	earlier int64 // deadlocks that were found early before the test began
}

// withPins puts pins first: most tests are not about a driver that learns where it needs
// them.
func withPins(options []Option) []Option {
	return append([]Option{WithPins(PinsReturning)}, options...)
}

func enter(t *testing.T, options []Option, statements ...string) *arena {
	t.Helper()
	return enterOn(t, pgtest.DSN(t), options, statements...)
}

func enterOn(t *testing.T, dsn string, options []Option, statements ...string) *arena {
	t.Helper()
	a := &arena{T: t, dsn: dsn}
	var err error
	if a.db, err = tested.open(dsn, withPins(options)...); err != nil {
		t.Fatal(err)
	}
	if a.plain, err = tested.plainly(dsn); err != nil {
		t.Fatal(err)
	}
	if a.rival, err = a.plain.Conn(context.Background()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, c := range []interface{ Close() error }{a.rival, a.plain, a.db} {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	if err := a.rival.QueryRowContext(t.Context(), `SELECT pg_backend_pid()`).Scan(&a.pid); err != nil {
		t.Fatal(err)
	}
	a.rivalDoes(`SET deadlock_timeout = '1h'`)
	for _, s := range statements {
		if _, err := a.plain.Exec(s); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
	return a
}

func (a *arena) rivalDoes(statements ...string) {
	a.Helper()
	for _, s := range statements {
		if _, err := a.rival.ExecContext(a.Context(), s); err != nil {
			a.Fatalf("rival: %s: %v", s, err)
		}
	}
}

// until asks a question, without us, until the answer is yes.
func (a *arena) until(question string, args ...any) {
	a.Helper()
	ctx, cancel := context.WithTimeout(a.Context(), 30*time.Second)
	defer cancel()
	for yes := false; !yes; {
		if err := a.plain.QueryRowContext(ctx, question, args...).Scan(&yes); err != nil {
			a.Errorf("%s: %v", question, err)
			return
		}
	}
}

// isWaitedFor returns when a session waits for the rival: for a lock, or for its end
// as the driver does.
func (a *arena) isWaitedFor() {
	a.Helper()
	a.until(`SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid <> pg_backend_pid()
		AND ($1 = ANY (pg_blocking_pids(pid)) OR query LIKE '%virtualtransaction IN (%'))`, a.pid)
}

// opponent is what the rival does to bring about a deadlock. Of the four, only wants
// has to wait, for a lock that our transaction holds.
type opponent struct {
	holds string
	wants string
	then  []string // when it has what it wanted
	// patient: it commits only when our session waits for it.
	patient bool
}

// meets brings the rival to the point where our transaction, which has its first
// lock, closes the cycle by asking for what the rival holds. over waits until the
// rival has committed.
func (a *arena) meets(o opponent) (over func()) {
	a.Helper()
	a.rivalDoes("BEGIN")
	if o.holds != "" {
		a.rivalDoes(o.holds)
	}
	done := make(chan error, 1)
	go func() {
		done <- func() error {
			for _, s := range append([]string{o.wants}, o.then...) {
				if _, err := a.rival.ExecContext(a.Context(), s); err != nil {
					return fmt.Errorf("rival: %s: %w", s, err)
				}
			}
			if o.patient {
				a.isWaitedFor()
			}
			_, err := a.rival.ExecContext(a.Context(), "COMMIT")
			return err
		}()
	}()
	a.until(`SELECT cardinality(pg_blocking_pids($1)) > 0`, a.pid)
	return func() {
		a.Helper()
		if err := <-done; err != nil {
			a.Error(err)
		}
	}
}

// read returns the only value of a query without us, as text.
func (a *arena) read(query string) string {
	a.Helper()
	var value sql.NullString
	if err := a.plain.QueryRowContext(a.Context(), query).Scan(&value); err != nil {
		a.Fatalf("%s: %v", query, err)
	}
	return value.String
}

func (a *arena) is(want, query string) {
	a.Helper()
	if got := a.read(query); got != want {
		a.Errorf("%s gives %s, want %s", query, got, want)
	}
}

func (a *arena) stats() Stats {
	a.Helper()
	s, err := StatsOf(a.db)
	if err != nil {
		a.Fatal(err)
	}
	return s
}

func (a *arena) begin(level sql.IsolationLevel) *script {
	a.Helper()
	return a.beginOn(a.db, level)
}

func (a *arena) beginOn(db *sql.DB, level sql.IsolationLevel) *script {
	a.Helper()
	tx, err := db.BeginTx(a.Context(), &sql.TxOptions{Isolation: level})
	if err != nil {
		a.Fatal(err)
	}
	// database/sql lets it be rolled back twice.
	a.Cleanup(func() { _ = tx.Rollback() })
	return &script{arena: a, Tx: tx}
}

// script is a transaction as an application has it, that fails the test where
// nothing should have failed.
type script struct {
	*arena
	*sql.Tx
}

func (s *script) does(text string, args ...any) int64 {
	s.Helper()
	result, err := s.ExecContext(s.Context(), text, args...)
	if err != nil {
		s.Fatalf("%s: %v", text, err)
	}
	n, err := result.RowsAffected()
	if err != nil {
		s.Fatalf("%s: %v", text, err)
	}
	return n
}

func (s *script) sees(text string) string {
	s.Helper()
	var value sql.NullString
	if err := s.QueryRowContext(s.Context(), text).Scan(&value); err != nil {
		s.Fatalf("%s: %v", text, err)
	}
	return value.String
}

// fails executes a statement that must fail with the server's own error.
func (s *script) fails(state, text string, args ...any) {
	s.Helper()
	_, err := s.ExecContext(s.Context(), text, args...)
	server, ok := tested.said(err)
	if !ok || server.code != state {
		s.Fatalf("%s gives %#v, want SQLSTATE %s", text, err, state)
	}
}

func (s *script) commits() {
	s.Helper()
	if err := s.Commit(); err != nil {
		s.Fatalf("COMMIT: %v", err)
	}
}

const bank = `CREATE TABLE account (id int PRIMARY KEY, balance int NOT NULL); INSERT INTO account SELECT n, 100 FROM generate_series(1, 4) n`

// crossing takes accounts 2 and 1 where our transaction takes 1 and 2.
var crossing = opponent{
	holds: `UPDATE account SET balance = balance + 1 WHERE id = 2`,
	wants: `UPDATE account SET balance = balance - 1 WHERE id = 1`,
}

// hid checks that the application saw none of the conflicts, of which there was one
// at least.
func (a *arena) hid(state string) {
	a.Helper()
	if s := a.stats(); s.HiddenBySQLState[state] == 0 || s.PlainConflicts != 0 || s.Diverged != 0 || s.Protected != s.Plain {
		a.Errorf("the statistics are %+v", s)
	}
}

// poisonedBy checks that a transaction is over after a conflict that could not be
// hidden: whatever is called says why, COMMIT as well.
func (s *script) poisonedBy(reason error, state string) {
	s.Helper()
	var n int
	_, exec := s.Exec(`INSERT INTO trace VALUES ('later')`)
	query := s.QueryRow(`SELECT 1`).Scan(&n)
	_, prepare := s.Prepare(`SELECT 1`)
	for what, err := range map[string]error{"Exec": exec, "QueryRow": query, "Prepare": prepare, "Commit": s.Commit()} {
		server, ok := tested.finds(err)
		if !errors.Is(err, reason) || !ok || server.code != state {
			s.Errorf("%s gives %v", what, err)
		}
	}
}

// sites are where a conflict can come up: each is a statement of our transaction that
// asks for the second account.
var sites = map[string]func(*script) error{
	"Exec": func(s *script) error {
		_, err := s.Exec(`UPDATE account SET balance = balance + 1 WHERE id = 2`)
		return err
	},
	"Exec with arguments": func(s *script) error {
		_, err := s.Exec(`UPDATE account SET balance = balance + $1 WHERE id = $2`, 1, 2)
		return err
	},
	"QueryRow": func(s *script) error {
		var id int
		return s.QueryRow(`UPDATE account SET balance = balance + 1 WHERE id = $1 RETURNING id`, 2).Scan(&id)
	},
	"Query": func(s *script) error {
		rows, err := s.Query(`UPDATE account SET balance = balance + 1 WHERE id = 2 RETURNING id`)
		if err != nil {
			return err
		}
		n := 0
		for rows.Next() {
			n++
		}
		if n != 1 {
			s.Errorf("%d rows", n)
		}
		return errors.Join(rows.Err(), rows.Close())
	},
	"in mid rows": func(s *script) error {
		rows, err := s.Query(`SELECT n, CASE WHEN n = 5000 THEN take(2) END FROM generate_series(1, 10000) n`)
		if err != nil {
			return err
		}
		defer rows.Close()
		n := 0
		for rows.Next() {
			n++
			var got int
			var taken sql.NullInt64
			if err := rows.Scan(&got, &taken); err != nil || got != n || taken.Valid != (n == 5000) {
				return fmt.Errorf("row %d is %d, %v: %w", n, got, taken, err)
			}
		}
		if n != 10_000 && rows.Err() == nil {
			s.Errorf("%d rows", n)
		}
		return rows.Err()
	},
	"rows.Close": func(s *script) error {
		rows, err := s.Query(`SELECT n, CASE WHEN n = 5000 THEN take(2) END FROM generate_series(1, 10000) n`)
		if err != nil {
			return err
		}
		if !rows.Next() {
			return errors.Join(rows.Err(), rows.Close())
		}
		return rows.Close()
	},
	"a prepared statement": func(s *script) error {
		stmt, err := s.Prepare(`UPDATE account SET balance = balance + $1 WHERE id = $2`)
		if err != nil {
			return err
		}
		if _, err := stmt.Exec(0, 1); err != nil {
			return err
		}
		if _, err := stmt.Exec(1, 2); err != nil {
			return err
		}
		if n, err := stmt.Exec(0, 2); err != nil {
			return fmt.Errorf("%v: %w", n, err)
		}
		return stmt.Close()
	},
	"several statements in one text": func(s *script) error {
		_, err := s.Exec(`INSERT INTO trace VALUES ('one'); UPDATE account SET balance = balance + 1 WHERE id = 2; DELETE FROM trace WHERE what = 'one'`)
		return err
	},
}

const take = `CREATE FUNCTION take(which int) RETURNS int LANGUAGE plpgsql AS $$
	BEGIN
		UPDATE account SET balance = balance + 1 WHERE id = which;
		RETURN which;
	END $$`

const traces = `CREATE TABLE trace (what text)`

func TestADeadlockIsInvisibleWhereverItComesUp(t *testing.T) {
	for _, level := range []sql.IsolationLevel{sql.LevelDefault, sql.LevelRepeatableRead, sql.LevelSerializable} {
		for name, site := range sites {
			t.Run(name+"/"+level.String(), func(t *testing.T) {
				a := enter(t, []Option{patient}, bank, take, traces)
				tx := a.begin(level)
				if got := tx.sees(`SELECT count(*) FROM account`); got != "4" {
					t.Fatal(got)
				}
				tx.does(`INSERT INTO trace VALUES ('x')`)
				if got := tx.does(`UPDATE account SET balance = balance - 1 WHERE id = 1`); got != 1 {
					t.Fatal(got)
				}
				over := a.meets(crossing)
				if err := site(tx); err != nil {
					t.Fatal(err)
				}
				over()
				tx.does(`INSERT INTO trace VALUES ('y')`)
				tx.commits()
				a.is("xy", `SELECT string_agg(what, '' ORDER BY what) FROM trace`)
				a.is("98 102", `SELECT string_agg(balance::text, ' ' ORDER BY id) FROM account WHERE id < 3`)
				a.hid("40P01")
			})
		}
	}
}

func TestADeadlockSurfacesWhereWhatWasShownHasChanged(t *testing.T) {
	for _, level := range []sql.IsolationLevel{sql.LevelDefault, sql.LevelRepeatableRead, sql.LevelSerializable} {
		for name, site := range sites {
			t.Run(name+"/"+level.String(), func(t *testing.T) {
				a := enter(t, []Option{patient}, bank, take, traces)
				tx := a.begin(level)
				if got := tx.sees(`SELECT balance FROM account WHERE id = 3`); got != "100" {
					t.Fatal(got)
				}
				tx.does(`INSERT INTO trace VALUES ('x')`)
				tx.does(`UPDATE account SET balance = balance - 1 WHERE id = 1`)
				over := a.meets(crossing)
				if _, err := a.plain.Exec(`UPDATE account SET balance = 55 WHERE id = 3`); err != nil {
					t.Fatal(err)
				}
				err := site(tx)
				server, ok := tested.finds(err)
				if !ok || server.code != "40P01" || server.detail == "" || !strings.Contains(server.hint, "showed something else") {
					t.Errorf("the error is %#v", err)
				}
				over()
				tx.poisonedBy(ErrDiverged, "40P01")
				a.is("0", `SELECT count(*) FROM trace`)
				a.is("99 101", `SELECT string_agg(balance::text, ' ' ORDER BY id) FROM account WHERE id < 3`)
				if s := a.stats(); s.Diverged != 1 || s.PlainConflicts != 1 || s.LastDivergence == nil || s.LastDivergence.Statement != 0 {
					t.Errorf("the statistics are %+v", s)
				}
			})
		}
	}
}

const lateConflict = `CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		IF nextval('tries') = 1 THEN RAISE EXCEPTION 'scripted' USING ERRCODE = current_setting('test.state'); END IF;
		RETURN NULL;
	END $$;
	CREATE CONSTRAINT TRIGGER late AFTER INSERT ON trace DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION late()`

func TestAConflictAtCommitIsInvisibleOrSurfaces(t *testing.T) {
	for _, level := range []sql.IsolationLevel{sql.LevelDefault, sql.LevelRepeatableRead, sql.LevelSerializable} {
		for _, state := range []string{"40001", "40P01"} {
			for _, changed := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%s/%t", level, state, changed), func(t *testing.T) {
					a := enter(t, nil, bank, traces, `CREATE SEQUENCE tries`, lateConflict)
					tx := a.begin(level)
					tx.does(`SELECT set_config('test.state', $1, true)`, state)
					tx.sees(`SELECT balance FROM account WHERE id = 3`)
					tx.does(`INSERT INTO trace VALUES ('x')`)
					if changed {
						if _, err := a.plain.Exec(`UPDATE account SET balance = 55 WHERE id = 3`); err != nil {
							t.Fatal(err)
						}
					}
					err := tx.Commit()
					if !changed {
						if err != nil {
							t.Error(err)
						}
						a.is("x", `SELECT string_agg(what, '') FROM trace`)
						a.hid(state)
						return
					}
					server, ok := tested.said(err)
					if !ok || server.code != state {
						t.Errorf("COMMIT gives %#v", err)
					}
					a.is("0", `SELECT count(*) FROM trace`)
					if s := a.stats(); s.Diverged != 1 || s.PlainConflicts != 1 {
						t.Errorf("the statistics are %+v", s)
					}
				})
			}
		}
	}
}

func TestAConcurrentUpdateIsInvisibleOrSurfaces(t *testing.T) {
	for _, level := range []sql.IsolationLevel{sql.LevelRepeatableRead, sql.LevelSerializable} {
		for _, shown := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/%t", level, shown), func(t *testing.T) {
				a := enter(t, nil, bank, traces)
				tx := a.begin(level)
				what := `SELECT count(*) FROM account`
				if shown {
					what = `SELECT balance FROM account WHERE id = 1`
				}
				tx.sees(what)
				if _, err := a.plain.Exec(`UPDATE account SET balance = 55 WHERE id = 1`); err != nil {
					t.Fatal(err)
				}
				if shown {
					tx.fails("40001", `UPDATE account SET balance = 110 WHERE id = 1`)
					tx.poisonedBy(ErrDiverged, "40001")
					a.is("55", `SELECT balance FROM account WHERE id = 1`)
					return
				}
				tx.does(`UPDATE account SET balance = balance + 10 WHERE id = 1`)
				tx.commits()
				a.is("65", `SELECT balance FROM account WHERE id = 1`)
				a.hid("40001")
			})
		}
	}
}

func TestWriteSkewSurfacesBecauseOfWhatWasShown(t *testing.T) {
	a := enter(t, nil, bank)
	one, other := a.begin(sql.LevelSerializable), a.begin(sql.LevelSerializable)
	for _, tx := range []*script{one, other} {
		tx.sees(`SELECT sum(balance) FROM account WHERE id < 3`)
	}
	one.does(`UPDATE account SET balance = balance - 150 WHERE id = 1`)
	one.commits()
	_, err := other.Exec(`UPDATE account SET balance = balance - 150 WHERE id = 2`)
	if err == nil {
		err = other.Commit()
	}
	if sqlState(err) != "40001" {
		t.Errorf("the second one gives %v", err)
	}
	a.is("50", `SELECT sum(balance) FROM account WHERE id < 3`)
	if s := a.stats(); s.Diverged != 1 {
		t.Errorf("the statistics are %+v", s)
	}
}

func TestWriteSkewIsInvisibleIfNothingOfItWasShown(t *testing.T) {
	a := enter(t, nil, bank)
	one, other := a.begin(sql.LevelSerializable), a.begin(sql.LevelSerializable)
	one.does(`UPDATE account SET balance = (SELECT sum(balance) FROM account WHERE id IN (1, 2)) WHERE id = 1`)
	other.does(`UPDATE account SET balance = (SELECT sum(balance) FROM account WHERE id IN (1, 2)) WHERE id = 2`)
	one.commits()
	other.commits()
	a.is("200 300", `SELECT string_agg(balance::text, ' ' ORDER BY id) FROM account WHERE id < 3`)
	a.hid("40001")
}

func TestNoticesOfWhatIsExecutedAgainAreNotHeardTwice(t *testing.T) {
	dsn := pgtest.DSN(t)
	var mu sync.Mutex
	var heard []string
	inner, err := pq.NewConnector(dsn)
	if err != nil {
		t.Fatal(err)
	}
	connector, err := NewConnector(pq.ConnectorWithNoticeHandler(inner, func(n *pq.Error) {
		mu.Lock()
		defer mu.Unlock()
		heard = append(heard, n.Message)
	}))
	if err != nil {
		t.Fatal(err)
	}
	a := enterOn(t, dsn, nil, bank)
	db := sql.OpenDB(connector)
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	tx := a.beginOn(db, sql.LevelDefault)
	tx.does(`DO $$ BEGIN RAISE NOTICE 'first'; END $$`)
	tx.does(`UPDATE account SET balance = balance - 1 WHERE id = 1`)
	over := a.meets(crossing)
	tx.does(`UPDATE account SET balance = balance + 1 WHERE id = 2`)
	over()
	tx.does(`DO $$ BEGIN RAISE NOTICE 'second'; END $$`)
	tx.commits()
	if got := strings.Join(heard, " "); got != "first second" {
		t.Errorf("heard %s", got)
	}
	if s, err := StatsOf(db); err != nil || s.Hidden != 1 {
		t.Errorf("the statistics are %+v, %v", s, err)
	}
}

// The statement locks account 1, then 2, because that is the order in which it finds
// them.
func TestADeadlockOfAStatementOutsideTransactionsIsHidden(t *testing.T) {
	a := enter(t, nil, bank, take)
	a.rivalDoes("BEGIN", crossing.holds)
	// Its check for deadlocks must not find the others too early.
	const slow = `SET deadlock_timeout = '100ms'`
	conn, err := a.db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.ExecContext(t.Context(), slow); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := conn.ExecContext(t.Context(), `UPDATE account SET balance = balance + 1 WHERE id IN (1, 2)`)
		done <- err
	}()
	a.isWaitedFor()
	a.rivalDoes(crossing.wants, "COMMIT")
	if err := <-done; err != nil {
		t.Error(err)
	}
	a.is("100 102", `SELECT string_agg(balance::text, ' ' ORDER BY id) FROM account WHERE id < 3`)
	a.hid("40P01")
}

func TestAReplayThatIsBlockedEndsWithTheContext(t *testing.T) {
	for _, which := range []string{"statement", "BEGIN"} {
		t.Run(which, func(t *testing.T) {
			a := enter(t, nil, bank, traces)
			a.db.SetMaxOpenConns(1)
			ctx, cancel := context.WithCancelCause(t.Context())
			reason := errors.New("enough")
			begin, statement := t.Context(), t.Context()
			if which == "BEGIN" {
				begin = ctx
			} else {
				statement = ctx
			}
			tx, err := a.db.BeginTx(begin, nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := tx.ExecContext(begin, `UPDATE account SET balance = balance - 1 WHERE id = 1`); err != nil {
				t.Fatal(err)
			}
			a.rivalDoes("BEGIN", crossing.holds)
			got := make(chan error, 1)
			go func() {
				_, err := a.rival.ExecContext(t.Context(), crossing.wants)
				got <- err
			}()
			a.until(`SELECT cardinality(pg_blocking_pids($1)) > 0`, a.pid)
			go func() {
				// The rival goes on but does not commit: the replay waits for it.
				if err := <-got; err != nil {
					t.Error(err)
				}
				a.isWaitedFor()
				cancel(reason)
				close(got)
			}()
			_, err = tx.ExecContext(statement, `UPDATE account SET balance = balance + 1 WHERE id = 2`)
			if !errors.Is(err, context.Canceled) || sqlState(err) != "40P01" {
				t.Errorf("the statement gives %v", err)
			}
			if err := <-got; err != nil {
				t.Error(err)
			}
			if err := tx.Commit(); err == nil {
				t.Error("COMMIT succeeds")
			}
			a.rivalDoes("COMMIT")
			if err := a.db.PingContext(t.Context()); err != nil {
				t.Error(err)
			}
			a.is("0", `SELECT count(*) FROM pg_locks JOIN pg_class c ON c.oid = relation WHERE relname = 'account'`)
			again := a.begin(sql.LevelDefault)
			again.does(`UPDATE account SET balance = balance + 1 WHERE id = 2`)
			again.commits()
			a.is("99 102", `SELECT string_agg(balance::text, ' ' ORDER BY id) FROM account WHERE id < 3`)
		})
	}
}
