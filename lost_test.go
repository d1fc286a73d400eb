package pgretry

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pgretry/pgretry/internal/drivertest"
)

// terminated is what a server sends to the sessions it ends.
var terminated = &drivertest.Error{Severity: "FATAL", Code: "57P01", Message: "terminating connection due to administrator command"}

// errConnReset is what reading from a connection gives that the other side has reset.
var errConnReset = &net.OpError{Op: "read", Net: "tcp", Err: os.NewSyscallError("read", syscall.ECONNRESET)}

// losesLone breaks the connection in the call of the next such statement.
func (f *fixture) losesLone(calls drivertest.Call, text string, err error) {
	f.Fail(calls, err).Matching(text).Drops().Times(1)
}

// reached counts how often a statement reached the server.
func (f *fixture) reached(text string) (n int) {
	for _, e := range f.Entries() {
		if e.Call&drivertest.AnyStatement != 0 && strings.Contains(e.Query, text) && e.Err != driver.ErrSkip { //nolint:errorlint // drivers must return it bare
			n++
		}
	}
	return n
}

// isLost checks the error of what broke together with its connection.
func isLost(t *testing.T, err error, rolledBack bool) {
	t.Helper()
	var lost *ConnectionLostError
	if !errors.As(err, &lost) || lost.RolledBack != rolledBack {
		t.Errorf("it gives %v, want a ConnectionLostError with RolledBack %t", err, rolledBack)
	}
	neverTells(t, err)
}

// loneWays are those in which an application executes a statement outside a transaction.
var loneWays = []struct {
	name  string
	calls drivertest.Call
	run   func(ctx context.Context, db *sql.DB, text string) error
}{
	{"Exec", drivertest.AnyExec, func(ctx context.Context, db *sql.DB, text string) error {
		_, err := db.ExecContext(ctx, text, 1)
		return err
	}},
	{"Query", drivertest.AnyQuery, func(ctx context.Context, db *sql.DB, text string) error {
		rows, err := db.QueryContext(ctx, text, 1)
		if err != nil {
			return err
		}
		_, err = fetch(rows, -1)
		return err
	}},
	{"QueryRow", drivertest.AnyQuery, func(ctx context.Context, db *sql.DB, text string) error {
		var n int
		return db.QueryRowContext(ctx, text, 1).Scan(&n)
	}},
	{"a prepared statement's Exec", drivertest.AnyExec, func(ctx context.Context, db *sql.DB, text string) error {
		return prepared(ctx, db, text, func(s *sql.Stmt) error {
			_, err := s.ExecContext(ctx, 1)
			return err
		})
	}},
	{"a prepared statement's Query", drivertest.AnyQuery, func(ctx context.Context, db *sql.DB, text string) error {
		return prepared(ctx, db, text, func(s *sql.Stmt) error {
			var n int
			return s.QueryRowContext(ctx, 1).Scan(&n)
		})
	}},
	{"Exec on a connection", drivertest.AnyExec, func(ctx context.Context, db *sql.DB, text string) error {
		c, err := db.Conn(ctx)
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }() // it may be lost
		_, err = c.ExecContext(ctx, text, 1)
		return err
	}},
	{"Query on a connection", drivertest.AnyQuery, func(ctx context.Context, db *sql.DB, text string) error {
		c, err := db.Conn(ctx)
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }() // the same
		var n int
		return c.QueryRowContext(ctx, text, 1).Scan(&n)
	}},
}

func prepared(ctx context.Context, db *sql.DB, text string, use func(*sql.Stmt) error) error {
	s, err := db.PrepareContext(ctx, text)
	if err != nil {
		return err
	}
	return errors.Join(use(s), s.Close())
}

func TestAWriteThatLosesItsConnectionIsExecutedOnce(t *testing.T) {
	for _, way := range loneWays {
		for _, cause := range []error{driver.ErrBadConn, io.EOF, errConnReset, terminated} {
			for _, text := range []string{"INSERT INTO t VALUES ($1) RETURNING id", "SELECT transfer($1)", "WITH w AS (DELETE FROM t RETURNING id) SELECT id FROM w WHERE id = $1"} {
				for _, mode := range []Mode{ModeReplay, ModeClosure} {
					t.Run(fmt.Sprintf("%s/%v/%s/%s", way.name, cause, text[:6], mode), func(t *testing.T) {
						f := newFixture(t, WithMode(mode))
						f.losesLone(way.calls, text, cause)
						err := way.run(t.Context(), f.db, text)
						isLost(t, err, false)
						if sqlState(cause) != sqlState(err) {
							t.Errorf("the SQLSTATE of %v is %q", err, sqlState(err))
						}
						if n := f.reached(text); n != 1 {
							t.Errorf("it was executed %d times", n)
						}
						if err := f.db.PingContext(t.Context()); err != nil || len(f.Log(drivertest.Connect)) != 2 {
							t.Errorf("Ping gives %v, %d connections were made", err, len(f.Log(drivertest.Connect)))
						}
						if s := f.stats(); s.ConnectionsLost["statement"] != 1 || len(s.ConnectionsLost) != 1 {
							t.Errorf("statistics are %+v", s)
						}
					})
				}
			}
		}
	}
}

func TestAWriteThatLosesItsConnectionInTheMiddleOfItsRowsIsExecutedOnce(t *testing.T) {
	for _, calls := range []drivertest.Call{drivertest.RowsNext, drivertest.RowsClose} {
		for _, way := range loneWays {
			if way.calls&drivertest.AnyQuery == 0 {
				continue
			}
			for _, closure := range []bool{false, true} {
				for _, mode := range []Mode{ModeReplay, ModeClosure} {
					t.Run(fmt.Sprintf("%v/%s/closure %t/%s", calls, way.name, closure, mode), func(t *testing.T) {
						f := newFixture(t, WithMode(mode))
						const text = "INSERT INTO t VALUES ($1) RETURNING id"
						f.losesLone(calls, text, driver.ErrBadConn)
						run := func(ctx context.Context) error { return way.run(ctx, f.db, text) }
						var err error
						if closure {
							err = Retry(t.Context(), run)
						} else {
							err = run(t.Context())
						}
						if !closure {
							isLost(t, err, false)
						} else if Classify(err, PhaseStatement) != ClassUnknownOutcome {
							t.Errorf("the closure gives %v", err)
						}
						neverTells(t, err)
						if n := f.reached(text); n != 1 {
							t.Errorf("it was executed %d times", n)
						}
						if s := f.stats(); s.ConnectionsLost["statement"] != 1 {
							t.Errorf("statistics are %+v", s)
						}
					})
				}
			}
		}
	}
}

func TestAReadThatLosesItsConnectionIsExecutedAgain(t *testing.T) {
	for _, way := range loneWays {
		if strings.HasSuffix(way.name, "on a connection") {
			continue // there database/sql does not
		}
		for _, text := range []string{"SELECT $1", "TABLE t -- $1", "VALUES ($1)", "SET a = 1 -- $1", "SHOW a -- $1"} {
			for _, cause := range []error{driver.ErrBadConn, io.EOF, errConnReset, terminated} {
				t.Run(fmt.Sprintf("%s/%s/%v", way.name, text, cause), func(t *testing.T) {
					f := newFixtureOver(t, liberal())
					f.losesLone(way.calls, text, cause)
					if err := way.run(t.Context(), f.db, text); err != nil {
						t.Fatal(err)
					}
					if n := f.reached(text); n != 2 {
						t.Errorf("it was executed %d times", n)
					}
				})
			}
		}
	}
}

func TestAReadThatLosesItsConnectionInTheMiddleOfItsRowsGoesOnWhereItStood(t *testing.T) {
	for _, c := range []struct {
		name   string
		before string
		again  []drivertest.ResultSet
		fails  bool
	}{
		{name: "the same"},
		{name: "something else", again: []drivertest.ResultSet{{Columns: five.Columns, Rows: five.Rows[1:]}}, fails: true},
		{name: "of a session that was changed", before: "SET a = 1", fails: true},
		{name: "in a transaction begun by a statement", before: "BEGIN", fails: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFixture(t).likePostgres()
			f.db.SetMaxOpenConns(1)
			if c.before != "" {
				if _, err := f.db.ExecContext(t.Context(), c.before); err != nil {
					t.Fatal(err)
				}
			}
			asked := 0
			f.On(drivertest.AnyQuery).Matching("FROM five").Do(func(*drivertest.Invocation) error {
				asked++
				return nil
			}).RowsFunc(func(*drivertest.Invocation) ([]drivertest.ResultSet, error) {
				if asked > 1 && c.again != nil {
					return c.again, nil
				}
				return []drivertest.ResultSet{five}, nil
			})
			f.Fail(drivertest.RowsNext, driver.ErrBadConn).Matching("FROM five").At(3).Drops()
			rows, err := f.db.QueryContext(t.Context(), "SELECT n, s FROM five")
			if err != nil {
				t.Fatal(err)
			}
			saw, err := fetch(rows, -1)
			if c.fails {
				if err == nil || len(saw) != 2 {
					t.Errorf("it shows %q and gives %v", saw, err)
				}
				return
			}
			if err != nil || len(saw) != len(five.Rows) || asked != 2 {
				t.Errorf("it shows %q, gives %v, was executed %d times", saw, err, asked)
			}
			if s := f.stats(); s.Reconnects != 1 || s.Hidden != 1 {
				t.Errorf("statistics are %+v", s)
			}
		})
	}
}

func TestBeginAndPrepareAreExecutedAgainOnAnotherConnection(t *testing.T) {
	for _, cause := range []error{driver.ErrBadConn, io.EOF, errConnReset, terminated} {
		for name, c := range map[string]struct {
			calls drivertest.Call
			run   func(*sql.DB) error
		}{
			"BEGIN": {drivertest.Begin, func(db *sql.DB) error { return inTx(t.Context(), db, writes) }},
			"Prepare": {drivertest.Prepare, func(db *sql.DB) error {
				return prepared(t.Context(), db, "INSERT", func(s *sql.Stmt) error {
					_, err := s.Exec()
					return err
				})
			}},
		} {
			t.Run(fmt.Sprintf("%s/%v", name, cause), func(t *testing.T) {
				f := newFixture(t)
				f.losesLone(c.calls, "", cause)
				if err := c.run(f.db); err != nil {
					t.Error(err)
				}
				if n := len(f.Log(drivertest.Connect)); n != 2 {
					t.Errorf("%d connections were made", n)
				}
				if s := f.stats(); s.ConnectionsLost["statement"] != 1 {
					t.Errorf("statistics are %+v", s)
				}
			})
		}
	}
}

func TestWithTheModeOffLostConnectionsAreTheInnerDrivers(t *testing.T) {
	f := newFixture(t, WithMode(ModeOff))
	f.losesLone(drivertest.AnyExec, "UPDATE", driver.ErrBadConn)
	if _, err := f.db.ExecContext(t.Context(), "UPDATE t"); err != nil || f.reached("UPDATE") != 2 {
		t.Errorf("a statement gives %v after %d executions", err, f.reached("UPDATE"))
	}
	for name, calls := range map[string]drivertest.Call{"statement": drivertest.AnyExec, "COMMIT": drivertest.Commit} {
		f.losesLone(calls, "", driver.ErrBadConn)
		if err := inTx(t.Context(), f.db, writes); !errors.Is(err, driver.ErrBadConn) {
			t.Errorf("%s gives %v", name, err)
		}
	}
	f.losesLone(drivertest.RowsNext, "", io.ErrUnexpectedEOF)
	var n int
	if err := f.db.QueryRowContext(t.Context(), "INSERT RETURNING").Scan(&n); err != io.ErrUnexpectedEOF { //nolint:errorlint // as it is
		t.Errorf("rows give %v", err)
	}
	if s := f.stats(); s.ConnectionsLost != nil || s.Reconnects != 0 {
		t.Errorf("statistics are %+v", s)
	}
}

func TestATransactionBegunByAStatementIsRolledBackWithItsConnection(t *testing.T) {
	for _, c := range []struct {
		name, text string
		unknown    bool
	}{
		{name: "a write", text: "INSERT INTO t VALUES (1)"},
		{name: "a read", text: "SELECT 1"},
		{name: "ROLLBACK", text: "ROLLBACK"},
		{name: "COMMIT", text: "COMMIT", unknown: true},
		{name: "END", text: "END", unknown: true},
		{name: "a text with COMMIT in it", text: "INSERT INTO t VALUES (1); COMMIT", unknown: true},
	} {
		for _, closure := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/closure %t", c.name, closure), func(t *testing.T) {
				f := newFixture(t)
				f.losesLone(drivertest.AnyExec, c.text, driver.ErrBadConn)
				ran := 0
				run := func(ctx context.Context) error {
					ran++
					return onOneConn(ctx, f.db, "BEGIN", "UPDATE t", c.text)
				}
				var err error
				if closure {
					err = Retry(t.Context(), run)
				} else {
					err = run(t.Context())
				}
				var unknown *CommitUnknownError
				switch {
				case c.unknown:
					if !errors.As(err, &unknown) || f.reached(c.text) != 1 || ran != 1 {
						t.Errorf("it gives %v after %d runs", err, ran)
					}
				case closure: // nothing remains of it
					if err != nil || ran != 2 {
						t.Errorf("it gives %v after %d runs", err, ran)
					}
				default:
					isLost(t, err, true)
				}
				neverTells(t, err)
			})
		}
	}
}

func TestUnderAContextThatIsDoneNothingIsExecutedAgain(t *testing.T) {
	for _, text := range []string{"UPDATE t", "SELECT 1"} {
		t.Run(text, func(t *testing.T) {
			f := newFixture(t)
			ctx, cancel := context.WithCancel(t.Context())
			f.On(drivertest.AnyExec).Matching(text).Drops().Do(func(*drivertest.Invocation) error {
				cancel()
				return driver.ErrBadConn
			})
			_, err := f.db.ExecContext(ctx, text)
			if err == nil || f.reached(text) != 1 {
				t.Errorf("it gives %v after %d executions", err, f.reached(text))
			}
			// A write may have taken effect, whatever has ended.
			var lost *ConnectionLostError
			if errors.As(err, &lost) != (text == "UPDATE t") {
				t.Errorf("it gives %v", err)
			}
		})
	}
}

func TestAClosureIsNotRunAgainAfterAWriteThatMayHaveTakenEffect(t *testing.T) {
	for _, way := range loneWays {
		t.Run(way.name, func(t *testing.T) {
			f := newFixture(t)
			const text = "INSERT INTO t VALUES ($1) RETURNING id"
			f.losesLone(way.calls, text, driver.ErrBadConn)
			f.Fail(drivertest.AnyExec, serverErr("40001")).Matching("UPDATE account").Times(1)
			ran := 0
			err := Retry(t.Context(), func(ctx context.Context) error {
				ran++
				_ = way.run(ctx, f.db, text) // swallowed
				return inTx(ctx, f.db, writes)
			})
			if ran != 1 || !errors.Is(err, ErrAlreadyCommitted) {
				t.Errorf("it ran %d times and gives %v", ran, err)
			}
		})
	}
}

func TestAClosureIsNotRunAgainAfterAWriteWhoseOwnContextEnded(t *testing.T) {
	for _, cause := range []error{driver.ErrBadConn, context.Canceled, io.EOF, errConnReset, terminated} {
		t.Run(cause.Error(), func(t *testing.T) {
			f := newFixture(t)
			f.Fail(drivertest.AnyExec, serverErr("40001")).Matching("UPDATE account").Times(1)
			ran := 0
			err := Retry(t.Context(), func(ctx context.Context) error {
				ran++
				own, cancel := context.WithCancel(ctx)
				defer cancel()
				f.On(drivertest.AnyExec).Matching("INSERT").Drops().Times(1).Do(func(*drivertest.Invocation) error {
					cancel()
					return cause
				})
				if _, err := f.db.ExecContext(own, "INSERT INTO t VALUES (1)"); err == nil {
					t.Error("there is no error")
				}
				return inTx(ctx, f.db, writes)
			})
			if ran != 1 || !errors.Is(err, ErrAlreadyCommitted) || f.reached("INSERT") != 1 {
				t.Errorf("it ran %d times, inserted %d times and gives %v", ran, f.reached("INSERT"), err)
			}
		})
	}
}

func TestAClosureIsRunAgainAfterAReadThatWasExecutedAgain(t *testing.T) {
	f := newFixture(t)
	f.losesLone(drivertest.AnyQuery, "SELECT 1", driver.ErrBadConn)
	f.Fail(drivertest.AnyExec, serverErr("40001")).Matching("UPDATE account").Times(1)
	ran := 0
	err := Retry(t.Context(), func(ctx context.Context) error {
		ran++
		var n int
		if err := f.db.QueryRowContext(ctx, "SELECT 1").Scan(&n); err != nil {
			return err
		}
		return inTx(ctx, f.db, writes)
	})
	if ran != 2 || err != nil {
		t.Errorf("it ran %d times and gives %v", ran, err)
	}
}

func TestAServerThatBecameAStandbyIsLeft(t *testing.T) {
	for _, c := range []struct {
		name   string
		run    func(ctx context.Context, db *sql.DB) error
		leaves bool
	}{
		{name: "a statement", leaves: true, run: func(ctx context.Context, db *sql.DB) error {
			_, err := db.ExecContext(ctx, "UPDATE t")
			return err
		}},
		{name: "a transaction", leaves: true, run: func(ctx context.Context, db *sql.DB) error { return inTx(ctx, db, writes) }},
		{name: "a read-only transaction", run: func(ctx context.Context, db *sql.DB) error {
			tx, err := db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
			if err != nil {
				return err
			}
			return errors.Join(writes(ctx, tx), tx.Rollback())
		}},
		{name: "a transaction that made itself read-only", run: func(ctx context.Context, db *sql.DB) error {
			return inTx(ctx, db, func(ctx context.Context, tx *sql.Tx) error {
				if _, err := tx.ExecContext(ctx, "SET TRANSACTION READ ONLY"); err != nil {
					return err
				}
				return writes(ctx, tx)
			})
		}},
		{name: "a transaction of a session that was changed", run: func(ctx context.Context, db *sql.DB) error {
			if _, err := db.ExecContext(ctx, "SET default_transaction_read_only = on"); err != nil {
				return err
			}
			return inTx(ctx, db, writes)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFixture(t)
			f.Fail(drivertest.AnyExec, serverErr("25006")).Matching("UPDATE")
			if err := c.run(t.Context(), f.db); sqlState(err) != "25006" {
				t.Errorf("it gives %v", err)
			}
			if err := f.db.PingContext(t.Context()); err != nil {
				t.Error(err)
			}
			if left := len(f.Log(drivertest.Connect)) == 2; left != c.leaves {
				t.Errorf("the connection was left: %t", left)
			}
		})
	}
}

func TestTheErrorsOfLostConnectionsCarryNoDataOfOurs(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{
			&ConnectionLostError{Cause: io.EOF},
			"pgretry: the connection was lost, it is unknown whether the statement took effect: EOF",
		},
		{
			&ConnectionLostError{Cause: io.EOF, RolledBack: true},
			"pgretry: the connection was lost, the transaction is rolled back: EOF",
		},
		{
			&ConnectionLostError{Cause: io.EOF, RolledBack: true, Refusal: RefusedSessionState, Limit: "SET"},
			"pgretry: the connection was lost, the transaction is rolled back, not replayed because it changes the session in a way that survives a rollback (SET): EOF",
		},
		{
			&ConnectionLostError{Cause: io.EOF, RolledBack: true, Limit: "MaxAttempts is 1"},
			"pgretry: the connection was lost, the transaction is rolled back, not replayed: MaxAttempts is 1: EOF",
		},
		{
			&CommitUnknownError{Cause: io.EOF},
			"pgretry: it is unknown whether the transaction was committed: EOF",
		},
		{
			&CommitUnknownError{Cause: io.EOF, XID: 742, Reason: "nobody knows"},
			"pgretry: it is unknown whether the transaction 742 was committed (nobody knows): EOF",
		},
	} {
		if got := c.err.Error(); got != c.want {
			t.Errorf("it says %q, want %q", got, c.want)
		}
	}
}

func TestTheCauseOfALostConnectionIsInTheChainOnlyIfTheServerSentIt(t *testing.T) {
	wrapped := fmt.Errorf("while writing: %w", terminated)
	for _, c := range []struct {
		cause error
		want  error
	}{
		{terminated, terminated},
		{wrapped, wrapped},
		{driver.ErrBadConn, nil},
		{io.EOF, nil},
		{context.Canceled, nil},
		{context.DeadlineExceeded, nil},
		{errors.Join(terminated, driver.ErrBadConn), nil},
		{errors.Join(terminated, context.Canceled), nil},
		{nil, nil},
	} {
		for _, err := range []error{&ConnectionLostError{Cause: c.cause}, &CommitUnknownError{Cause: c.cause}} {
			if got := errors.Unwrap(err); got != c.want { //nolint:errorlint // the very same
				t.Errorf("%T of %v leads to %v, want %v", err, c.cause, got, c.want)
			}
			neverTells(t, err)
		}
	}
}

func TestALostConnectionIsClassifiedByWhatRemains(t *testing.T) {
	for _, phase := range []Phase{PhaseBegin, PhaseStatement, PhaseCommit} {
		for _, c := range []struct {
			err  error
			want Class
		}{
			{&ConnectionLostError{Cause: io.EOF, RolledBack: true}, ClassConnectionLost},
			{&ConnectionLostError{Cause: terminated}, ClassUnknownOutcome},
			{&CommitUnknownError{Cause: terminated}, ClassUnknownOutcome},
		} {
			if got := Classify(fmt.Errorf("saving: %w", c.err), phase); got != c.want {
				t.Errorf("%v in %s is %s, want %s", c.err, phase, got, c.want)
			}
		}
	}
}

// wired gives the connections of the pool sockets of their own, as lib/pq's have.
func (f *fixture) wired() (far *farEnd) {
	f.t.Helper()
	far = listenAlone(f.t)
	f.db.SetMaxOpenConns(1)
	f.onConn(func(c *conn) {
		c.tap.wire = far.dial(f.t)
		c.tap.peek = &c.tap.wire.peek
	})
	return far
}

func TestAConnectionThatTheServerClosedIsNoticedBeforeItIsUsed(t *testing.T) {
	for name, ends := range map[string]func(*farEnd){
		"closed":             (*farEnd).close,
		"reset":              (*farEnd).reset,
		"closed on our side": func(e *farEnd) { _ = e.near.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			o := newObservatory(t)
			f := newFixture(t, o.options()...)
			far := f.wired()
			ends(far)
			if _, err := f.db.ExecContext(t.Context(), "UPDATE t"); err != nil || f.reached("UPDATE") != 1 {
				t.Errorf("a write gives %v after %d executions", err, f.reached("UPDATE"))
			}
			if s := f.stats(); s.ConnectionsLost["idle"] != 1 || len(f.Log(drivertest.Connect)) != 2 {
				t.Errorf("%q, statistics %+v", f.Log(drivertest.Connect), s)
			}
			if m := o.metrics(t)["pgretry.connection.lost"]; m != "{connection.place=idle:1}" {
				t.Errorf("connections were lost: %s", m)
			}
		})
	}
}

func TestAConnectionIsAskedWhetherItWorksOnlyIfThereIsReasonToDoubt(t *testing.T) {
	for _, c := range []struct {
		name   string
		makes  func(*fixture, *farEnd)
		fails  bool
		pings  int
		closed bool
	}{
		{name: "used just now", makes: func(*fixture, *farEnd) {}},
		{name: "idle for a while", makes: func(f *fixture, _ *farEnd) { f.idleFor(idleBeforePing - 10*time.Second) }},
		{name: "idle for long", makes: func(f *fixture, _ *farEnd) { f.idleFor(idleBeforePing) }, pings: 1},
		{name: "idle for long, and dead", makes: func(f *fixture, _ *farEnd) { f.idleFor(idleBeforePing) }, pings: 1, fails: true, closed: true},
		{name: "with a notice waiting", makes: func(_ *fixture, e *farEnd) { e.says("N") }, pings: 1},
		{name: "with its last words waiting", makes: func(_ *fixture, e *farEnd) { e.says("E") }, pings: 1, fails: true, closed: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFixture(t)
			far := f.wired()
			c.makes(f, far)
			if c.fails {
				f.Fail(drivertest.Ping, driver.ErrBadConn).Drops().Times(1)
			}
			f.ClearLog()
			if _, err := f.db.ExecContext(t.Context(), "UPDATE t"); err != nil || f.reached("UPDATE") != 1 {
				t.Errorf("a write gives %v after %d executions", err, f.reached("UPDATE"))
			}
			if n := len(f.Log(drivertest.Ping)); n != c.pings {
				t.Errorf("it was asked %d times", n)
			}
			if closed := len(f.Log(drivertest.Connect)) == 1; closed != c.closed || f.stats().ConnectionsLost["idle"] != map[bool]int64{true: 1}[c.closed] {
				t.Errorf("the connection was dropped: %t, statistics %+v", closed, f.stats())
			}
		})
	}
}

// idleFor lets the connections of the pool have been idle for so long.
func (f *fixture) idleFor(d time.Duration) {
	f.t.Helper()
	c, err := f.db.Conn(f.t.Context())
	if err != nil {
		f.t.Fatal(err)
	}
	var own *conn
	err = c.Raw(func(dc any) error {
		own = dc.(interface{ itself() *conn }).itself()
		return nil
	})
	if err := errors.Join(err, c.Close()); err != nil {
		f.t.Fatal(err)
	}
	if own.idleSince.IsZero() {
		f.t.Error("nobody noted since when it is idle")
	}
	own.idleSince = time.Now().Add(-d)
}

func TestTheAnswerOfAnIdleConnectionIsWaitedForWithABound(t *testing.T) {
	f := newFixture(t)
	far := f.wired()
	f.idleFor(idleBeforePing)
	deadlines := far.deadlines()
	if _, err := f.db.ExecContext(t.Context(), "UPDATE t"); err != nil {
		t.Fatal(err)
	}
	if got := deadlines(); len(got) != 2 || got[0].IsZero() || !got[1].IsZero() {
		t.Errorf("the deadlines are %v", got)
	}
}

func TestWithTheModeOffNobodyLooksAtTheSocket(t *testing.T) {
	f := newFixture(t, WithMode(ModeOff))
	far := f.wired()
	far.close()
	if _, err := f.db.ExecContext(t.Context(), "UPDATE t"); err != nil || len(f.Log(drivertest.Connect)) != 1 {
		t.Errorf("a write gives %v, connections %q", err, f.Log(drivertest.Connect))
	}
}

func TestAWriteOfWhichNothingWasSentIsExecutedAgain(t *testing.T) {
	for _, c := range []struct {
		name string
		sent string
		want int // executions
	}{
		{"nothing", "", 2},
		{"a Parse", "P\x00\x00\x00\x08a\x00\x00\x00S\x00\x00\x00\x04", 2},
		{"an Execute", "P\x00\x00\x00\x08a\x00\x00\x00E\x00\x00\x00\x09\x00\x00\x00\x00\x00", 1},
		{"a query", "Q\x00\x00\x00\x05;\x00", 1},
		{"half a query", "Q\x00\x00", 1},
		{"half a Parse", "P\x00\x00\x00\xff", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFixture(t)
			far := f.wired()
			f.On(drivertest.AnyExec).Matching("UPDATE").Drops().Times(1).Do(func(*drivertest.Invocation) error {
				if _, err := far.near.Write([]byte(c.sent)); err != nil {
					t.Error(err)
				}
				return driver.ErrBadConn
			})
			_, err := f.db.ExecContext(t.Context(), "UPDATE t")
			if n := f.reached("UPDATE"); n != c.want {
				t.Errorf("it was executed %d times", n)
			}
			if c.want == 1 {
				isLost(t, err, false)
			} else if err != nil {
				t.Error(err)
			}
		})
	}
}
