package pgretry

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pgretry/pgretry/internal/drivertest"
)

// lossCauses are how the loss of a connection shows.
var lossCauses = []error{driver.ErrBadConn, io.ErrUnexpectedEOF, errConnReset, terminated}

// withoutEnd cuts what was said to a connection that was lost already.
func withoutEnd(attempts [][]string) [][]string {
	for i := range attempts[:max(0, len(attempts)-1)] {
		a := attempts[i]
		for len(a) > 0 && strings.HasPrefix(a[len(a)-1], "ROLLBACK") {
			a = a[:len(a)-1]
		}
		attempts[i] = a
	}
	return attempts
}

// spotsBeforeCommit are those of the teller, and not COMMIT.
var spotsBeforeCommit = slices.DeleteFunc(slices.Clone(tellersSpots), func(p spot) bool { return p.calls == drivertest.Commit })

func TestATransactionThatLosesItsConnectionAnywhereGoesOnOverAnother(t *testing.T) {
	opts := &sql.TxOptions{Isolation: sql.LevelRepeatableRead}
	want, whole := undisturbed(t, opts)
	for i, shape := range shapes {
		for _, closing := range []bool{false, true} {
			for _, p := range spotsBeforeCommit {
				for _, cause := range lossCauses {
					t.Run(fmt.Sprintf("%s/closing %t/%s/%v", shape.name, closing, p.name, cause), func(t *testing.T) {
						f := tellersBank(t, i)
						f.strikes(strike{p, 1, cause})
						saw, err := teller(t.Context(), f.db, opts, closing)
						if err != nil || !slices.Equal(saw, want) {
							t.Errorf("the application gets %v and sees\n%v, want\n%v", err, saw, want)
						}
						first := p.until(t, whole)
						if got, want := withoutEnd(f.attempts()), [][]string{first[:len(first)-1], whole}; !slices.EqualFunc(got, want, slices.Equal) {
							t.Errorf("the server is asked\n%v, want\n%v", got, want)
						}
						if !slices.Equal(f.waits, []time.Duration{unavailableBaseDelay}) || f.OpenStmts() != 0 || f.OpenConns() != 1 {
							t.Errorf("waited %v, %d statements and %d connections are left open", f.waits, f.OpenStmts(), f.OpenConns())
						}
						if s := f.stats(); s.Hidden != 1 || s.HiddenBySQLState[sqlState(cause)] != 1 || s.Replays != 1 || s.Reconnects != 1 || s.ConnectionsLost["transaction"] != 1 || s.Protected != 1 || s.PlainConflicts != 0 || s.Committed != 1 {
							t.Errorf("stats are %+v", s)
						}
					})
				}
			}
		}
	}
}

func TestAConnectionLostDuringTheReplayIsReplacedToo(t *testing.T) {
	opts := &sql.TxOptions{Isolation: sql.LevelSerializable}
	want, whole := undisturbed(t, opts)
	again := append([]spot{{name: "BEGIN", calls: drivertest.Begin}}, spotsBeforeCommit...)
	for _, conflict := range []error{serverErr("40001"), driver.ErrBadConn} {
		for _, first := range spotsBeforeCommit {
			for _, second := range again {
				t.Run(fmt.Sprintf("%v/%s/%s", conflict, first.name, second.name), func(t *testing.T) {
					f := tellersBank(t, 0)
					f.strikes(strike{first, 1, conflict}, strike{second, 2, driver.ErrBadConn})
					saw, err := teller(t.Context(), f.db, opts, true)
					if err != nil || !slices.Equal(saw, want) {
						t.Errorf("the application gets %v and sees\n%v, want\n%v", err, saw, want)
					}
					attempts := f.attempts()
					if len(attempts) != 3 || !slices.Equal(attempts[2], whole) {
						t.Errorf("the server is asked\n%v", attempts)
					}
				})
			}
		}
	}
}

// loses is a transaction over a scripted server whose connection is lost in its second
// statement, in so many attempts.
func loses(t *testing.T, times int, options ...Option) *fixture {
	t.Helper()
	f := newFixture(t, options...).likePostgres().holdsNothingWhileWaiting()
	f.db.SetMaxOpenConns(1)
	f.Fail(drivertest.AnyExec, driver.ErrBadConn).Matching("UPDATE second").Times(times).Drops()
	return f
}

// two is a transaction of two statements. It returns what the second and COMMIT give.
func two(f *fixture) (second, commit error) {
	f.t.Helper()
	tx, err := f.db.BeginTx(f.t.Context(), nil)
	if err != nil {
		f.t.Fatal(err)
	}
	if _, err := tx.ExecContext(f.t.Context(), "UPDATE first"); err != nil {
		f.t.Fatal(err)
	}
	_, second = tx.ExecContext(f.t.Context(), "UPDATE second")
	return second, tx.Commit()
}

func TestLostConnectionsAreReplacedWithinLimits(t *testing.T) {
	for _, c := range []struct {
		name    string
		options []Option
		prepare func(*fixture)
		begins  int
		limit   string
	}{
		{name: "twelve retries", begins: 1 + unavailableRetries, limit: "stays unavailable"},
		{name: "MaxAttempts", options: []Option{WithPolicy(Policy{MaxAttempts: 3})}, begins: 3, limit: "MaxAttempts is 3"},
		{name: "MaxElapsed", options: []Option{WithPolicy(Policy{MaxElapsed: 350 * time.Millisecond})}, begins: 3, limit: "MaxElapsed"},
		{
			name: "the retry budget", begins: 3, limit: "budget",
			prepare: func(f *fixture) { f.connector.budget.spent.Store(budgetTokens - 2*budgetRetryCost) },
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := loses(t, 1000, c.options...)
			if c.prepare != nil {
				c.prepare(f)
			}
			second, commit := two(f)
			isLost(t, second, true)
			var lost *ConnectionLostError
			if !errors.As(second, &lost) || !strings.Contains(lost.Limit, c.limit) {
				t.Errorf("the call gives %v", second)
			}
			isLost(t, commit, true)
			var retry *RetryError
			if !errors.As(commit, &retry) || !errors.Is(commit, ErrExhausted) || retry.Class != ClassConnectionLost || retry.Attempts != c.begins || !strings.Contains(retry.Limit, c.limit) {
				t.Errorf("COMMIT gives %v", commit)
			}
			if f.begins() != c.begins || len(f.Log(drivertest.Commit)) != 0 {
				t.Errorf("%d transactions were begun, want %d; COMMITs: %q", f.begins(), c.begins, f.Log(drivertest.Commit))
			}
			if s := f.stats(); s.Exhausted != 1 || s.PlainConflicts != 1 || s.Hidden != 0 || s.Committed != 0 {
				t.Errorf("statistics are %+v", s)
			}
		})
	}
}

func TestANewConnectionIsWaitedFor(t *testing.T) {
	for name, err := range map[string]error{
		"refused":          errConnRefused,
		"starting up":      &drivertest.Error{Severity: "FATAL", Code: "57P03", Message: "the database system is starting up"},
		"too many clients": &drivertest.Error{Severity: "FATAL", Code: "53300", Message: "sorry, too many clients already"},
		"broken at once":   driver.ErrBadConn,
	} {
		t.Run(name, func(t *testing.T) {
			f := loses(t, 1)
			f.Fail(drivertest.Connect, err).After(1).Times(3)
			second, commit := two(f)
			if second != nil || commit != nil || len(f.waits) != 4 {
				t.Errorf("the call gives %v, COMMIT %v, waited %v", second, commit, f.waits)
			}
		})
	}
}

func TestWhatANewConnectionShowsIsVerified(t *testing.T) {
	for _, inside := range []bool{false, true} {
		t.Run(fmt.Sprintf("in a savepoint %t", inside), func(t *testing.T) {
			f := loses(t, 1)
			f.Rows("SELECT balance", drivertest.ResultSet{Columns: drivertest.Columns("b"), Rows: [][]driver.Value{{int64(100)}}})
			f.On(drivertest.AnyQuery).Matching("SELECT balance").At(2).Do(func(*drivertest.Invocation) error { return nil }).
				Rows(drivertest.ResultSet{Columns: drivertest.Columns("b"), Rows: [][]driver.Value{{int64(99)}}})
			tx, err := f.db.BeginTx(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			if inside {
				if _, err := tx.ExecContext(t.Context(), "SAVEPOINT a"); err != nil {
					t.Fatal(err)
				}
			}
			var n int
			if err := tx.QueryRowContext(t.Context(), "SELECT balance").Scan(&n); err != nil {
				t.Fatal(err)
			}
			_, err = tx.ExecContext(t.Context(), "UPDATE second")
			isLost(t, err, true)
			if _, err := tx.ExecContext(t.Context(), "ROLLBACK TO SAVEPOINT a"); !errors.Is(err, ErrDiverged) {
				t.Errorf("a later call gives %v", err)
			}
			if err := tx.Commit(); !errors.Is(err, ErrDiverged) || len(f.Log(drivertest.Commit)) != 0 {
				t.Errorf("COMMIT gives %v", err)
			}
			if s := f.stats(); s.Diverged != 1 || s.Committed != 0 {
				t.Errorf("statistics are %+v", s)
			}
		})
	}
}

func TestASavepointOfTheApplicationIsSetAgainOnTheNewConnection(t *testing.T) {
	f := loses(t, 1)
	err := inTx(t.Context(), f.db, func(ctx context.Context, tx *sql.Tx) error {
		for _, text := range []string{"UPDATE first", "SAVEPOINT a", "UPDATE inner", "SAVEPOINT b", "UPDATE second", "RELEASE a"} {
			if _, err := tx.ExecContext(ctx, text); err != nil {
				return err
			}
		}
		return nil
	})
	want := "UPDATE first SAVEPOINT a UPDATE inner SAVEPOINT b UPDATE second RELEASE a COMMIT"
	if got := strings.Join(f.attempts()[1][1:], " "); err != nil || got != want {
		t.Errorf("it gives %v, the server is asked %s, want %s", err, got, want)
	}
}

func TestASessionThatWasChangedIsNotReplaced(t *testing.T) {
	lone := func(f *fixture, text string) error {
		_, err := f.db.ExecContext(f.t.Context(), text)
		return err
	}
	queried := func(f *fixture, text string) error {
		rows, err := f.db.QueryContext(f.t.Context(), text)
		if err != nil {
			return err
		}
		_, err = fetch(rows, -1)
		return err
	}
	earlier := func(f *fixture, text string) error {
		return inTx(f.t.Context(), f.db, func(ctx context.Context, tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, text)
			return err
		})
	}
	raw := func(f *fixture, _ string) error {
		f.onConn(func(c *conn) { RawConn(c) })
		return nil
	}
	for _, c := range []struct {
		name, text string
		do         func(*fixture, string) error
		options    []Option
		moves      bool
	}{
		{name: "SET", text: "SET a = 1", do: lone},
		{name: "SET in an earlier transaction", text: "SET a = 1", do: earlier},
		{name: "set_config", text: "SELECT set_config('a', '1', false)", do: queried},
		{name: "a temporary table", text: "CREATE TEMP TABLE x (a int)", do: lone},
		{name: "a temporary table in an earlier transaction", text: "CREATE TEMPORARY TABLE x (a int)", do: earlier},
		{name: "LISTEN", text: "LISTEN somebody", do: lone},
		{name: "PREPARE", text: "PREPARE p AS SELECT 1", do: lone},
		{name: "an advisory lock", text: "SELECT pg_advisory_lock(1)", do: queried},
		{name: "a function of the user's", text: "SELECT login('me')", do: queried},
		{name: "another function than the one allowed", text: "SELECT login('me')", do: queried, options: []Option{WithAllowedFunctions("logout")}},
		{name: "the connection was handed out", do: raw},
		{name: "an allowed function", text: "SELECT login('me')", do: queried, options: []Option{WithAllowedFunctions("login")}, moves: true},
		{name: "SET LOCAL in an earlier transaction", text: "SET LOCAL a = 1", do: earlier, moves: true},
		{name: "a write", text: "UPDATE t SET a = 1", do: lone, moves: true},
		{name: "functions that are known", text: "SELECT now(), lower('A'), count(*) FROM t", do: queried, moves: true},
		{name: "nothing", do: func(*fixture, string) error { return nil }, moves: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := loses(t, 1, c.options...)
			if err := c.do(f, c.text); err != nil {
				t.Fatal(err)
			}
			f.ClearLog()
			second, commit := two(f)
			if c.moves {
				if second != nil || commit != nil || f.begins() != 2 {
					t.Errorf("the call gives %v, COMMIT %v", second, commit)
				}
				return
			}
			isLost(t, second, true)
			isLost(t, commit, true)
			var lost *ConnectionLostError
			if !errors.As(second, &lost) || lost.Refusal != RefusedSessionState || f.begins() != 1 {
				t.Errorf("the call gives %v", second)
			}
			if s := f.stats(); s.Refusals[RefusedSessionState] != 1 || s.PlainConflicts != 1 || s.Reconnects != 0 {
				t.Errorf("statistics are %+v", s)
			}
			// The pool's next connection is new.
			if err := inTx(t.Context(), f.db, writes); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestWhatTheLostTransactionChangedInTheSessionIsDoneAgain(t *testing.T) {
	for _, text := range []string{"SET a = 1", "SELECT set_config('a', '1', false)", "CREATE TEMP TABLE x (a int)", "LISTEN somebody", "SELECT login('me')"} {
		t.Run(text, func(t *testing.T) {
			f := loses(t, 2)
			run := func() error {
				return inTx(t.Context(), f.db, func(ctx context.Context, tx *sql.Tx) error {
					if _, err := tx.ExecContext(ctx, text); err != nil {
						return err
					}
					_, err := tx.ExecContext(ctx, "UPDATE second")
					return err
				})
			}
			if err := run(); err != nil || f.reached(text) != 3 {
				t.Errorf("it gives %v, and was done %d times", err, f.reached(text))
			}
			// Now it is a state that a new session would lack.
			f.Fail(drivertest.AnyExec, driver.ErrBadConn).Matching("UPDATE account").Times(1).Drops()
			err := inTx(t.Context(), f.db, writes)
			var lost *ConnectionLostError
			if !errors.As(err, &lost) || lost.Refusal != RefusedSessionState {
				t.Errorf("the next transaction gives %v", err)
			}
		})
	}
}

func TestPreparedStatementsFollowToTheNewConnection(t *testing.T) {
	f := loses(t, 1)
	before, err := f.db.PrepareContext(t.Context(), "UPDATE prepared_before SET a = $1")
	if err != nil {
		t.Fatal(err)
	}
	tx, err := f.db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	inside, err := tx.PrepareContext(t.Context(), "UPDATE prepared_inside SET a = $1")
	if err != nil {
		t.Fatal(err)
	}
	bound := tx.StmtContext(t.Context(), before)
	use := func(stmts ...*sql.Stmt) {
		t.Helper()
		for _, s := range stmts {
			if _, err := s.ExecContext(t.Context(), 1); err != nil {
				t.Error(err)
			}
		}
	}
	use(inside, bound)
	if _, err := tx.ExecContext(t.Context(), "UPDATE second"); err != nil {
		t.Fatal(err)
	}
	use(inside, bound)
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	use(before)
	if n := f.reached("prepared_inside") + f.reached("prepared_before"); n != 7 {
		t.Errorf("they were executed %d times", n)
	}
	if err := before.Close(); err != nil || f.OpenStmts() != 0 || len(f.Log(drivertest.Connect)) != 2 {
		t.Errorf("closing gives %v, %d statements are left open, connections %q", err, f.OpenStmts(), f.Log(drivertest.Connect))
	}
}

func TestAPreparedStatementThatDiedWithItsConnectionCanBeClosed(t *testing.T) {
	f := loses(t, 1)
	before, err := f.db.PrepareContext(t.Context(), "UPDATE prepared_before")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := before.ExecContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	if second, commit := two(f); second != nil || commit != nil {
		t.Fatal(second, commit)
	}
	if err := before.Close(); err != nil {
		t.Error(err)
	}
}

func TestATransactionThatIsNotReplayedSaysThatItIsRolledBack(t *testing.T) {
	for name, c := range map[string]struct {
		options []Option
		ctx     func(context.Context) context.Context
	}{
		"closures only":  {options: []Option{WithMode(ModeClosure)}},
		"without replay": {ctx: ContextWithoutReplay},
	} {
		t.Run(name, func(t *testing.T) {
			f := loses(t, 1, c.options...)
			ctx := t.Context()
			if c.ctx != nil {
				ctx = c.ctx(ctx)
			}
			tx, err := f.db.BeginTx(ctx, nil)
			if err != nil {
				t.Fatal(err)
			}
			_, err = tx.ExecContext(t.Context(), "UPDATE second")
			isLost(t, err, true)
			f.ClearLog()
			_, err = tx.ExecContext(t.Context(), "UPDATE third")
			isLost(t, err, true)
			isLost(t, tx.Commit(), true)
			if log := f.Log(drivertest.AnyStatement | drivertest.Commit | drivertest.Begin); len(log) != 0 {
				t.Errorf("the server is asked %q", log)
			}
		})
	}
}

func TestALostTransactionOnAConnectionOfTheApplicationIsReplayedThere(t *testing.T) {
	f := loses(t, 1)
	c, err := f.db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	tx, err := c.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.ExecContext(t.Context(), "UPDATE second"); err != nil {
		t.Error(err)
	}
	if err := errors.Join(tx.Commit(), c.PingContext(t.Context()), c.Close()); err != nil {
		t.Error(err)
	}
}

func TestAClosureThatLosesItsConnectionRunsAgainOnAnother(t *testing.T) {
	update := func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "UPDATE second")
		return err
	}
	for name, run := range map[string]func(context.Context, *sql.DB, func(context.Context, *sql.Tx) error) error{
		"RunInTx": func(ctx context.Context, db *sql.DB, fn func(context.Context, *sql.Tx) error) error {
			return RunInTx(ctx, db, nil, fn)
		},
		"Retry": func(ctx context.Context, db *sql.DB, fn func(context.Context, *sql.Tx) error) error {
			return Retry(ctx, func(ctx context.Context) error { return inTx(ctx, db, fn) })
		},
		"Retry, under a transaction that hides the error": func(ctx context.Context, db *sql.DB, fn func(context.Context, *sql.Tx) error) error {
			return Retry(ctx, func(ctx context.Context) error {
				if err := inTx(ctx, db, fn); err != nil {
					return errors.New("it did not work")
				}
				return nil
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := loses(t, 3)
			ran := 0
			err := run(t.Context(), f.db, func(ctx context.Context, tx *sql.Tx) error {
				ran++
				return update(ctx, tx)
			})
			if err != nil || ran != 4 || len(f.Log(drivertest.Connect)) != 4 || len(f.Log(drivertest.Commit)) != 1 {
				t.Errorf("it gives %v after %d runs, connections %q", err, ran, f.Log(drivertest.Connect))
			}
			if s := f.stats(); s.Retries != 3 || s.ConnectionsLost["transaction"] != 3 || s.Reconnects != 0 {
				t.Errorf("statistics are %+v", s)
			}
		})
	}
	t.Run("not on one connection", func(t *testing.T) {
		f := loses(t, 1)
		c, err := f.db.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }() // it is lost
		ran := 0
		err = RunInTx(t.Context(), c, nil, func(ctx context.Context, tx *sql.Tx) error {
			ran++
			return update(ctx, tx)
		})
		isLost(t, err, true)
		if ran != 1 {
			t.Errorf("it ran %d times", ran)
		}
	})
}

func TestACommitThatWasCertainlyNotSentIsReplayed(t *testing.T) {
	for _, closure := range []bool{false, true} {
		t.Run(fmt.Sprintf("closure %t", closure), func(t *testing.T) {
			f := newFixture(t).likePostgres()
			far := f.wired()
			f.Fail(drivertest.Commit, driver.ErrBadConn).Times(1).Drops()
			run := inTx
			if closure {
				run = func(ctx context.Context, db *sql.DB, body func(context.Context, *sql.Tx) error) error {
					return RunInTx(ctx, db, nil, body)
				}
			}
			if err := run(t.Context(), f.db, writes); err != nil || f.begins() != 2 {
				t.Errorf("COMMIT gives %v after %d transactions", err, f.begins())
			}
			if s := f.stats(); s.ConnectionsLost["transaction"] != 1 || s.ResolvedCommits != nil {
				t.Errorf("statistics are %+v", s)
			}
			_ = far
		})
	}
}

func TestACommitOfWhichSomethingWasSentIsNotReplayed(t *testing.T) {
	f := newFixture(t).likePostgres()
	far := f.wired()
	f.On(drivertest.Commit).Times(1).Drops().Do(func(*drivertest.Invocation) error {
		if _, err := far.near.Write([]byte("Q")); err != nil {
			t.Error(err)
		}
		return driver.ErrBadConn
	})
	err := inTx(t.Context(), f.db, writes)
	var unknown *CommitUnknownError
	if !errors.As(err, &unknown) || f.begins() != 1 {
		t.Errorf("COMMIT gives %v after %d transactions", err, f.begins())
	}
}

func TestReconnectingEndsWithTheContext(t *testing.T) {
	for _, whose := range []string{"the statement's", "BEGIN's"} {
		for _, where := range []string{"waiting", "connecting"} {
			t.Run(whose+"/"+where, func(t *testing.T) {
				f := loses(t, 1)
				reason := errors.New("enough")
				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				begin, statement := ctx, t.Context()
				if whose == "the statement's" {
					begin, statement = statement, begin
				}
				if where == "waiting" {
					f.connector.config.wait = func(ctx context.Context, _ time.Duration) error {
						cancel(reason)
						<-ctx.Done() // it ends with either
						return contextError(ctx)
					}
				} else {
					f.On(drivertest.Connect).After(1).Do(func(inv *drivertest.Invocation) error {
						cancel(reason)
						<-inv.Context.Done() // it ends with either
						return inv.Context.Err()
					})
				}
				tx, err := f.db.BeginTx(begin, nil)
				if err != nil {
					t.Fatal(err)
				}
				_, err = tx.ExecContext(statement, "UPDATE second")
				var lost *ConnectionLostError
				if !errors.Is(err, context.Canceled) || !errors.Is(err, reason) || !errors.Is(err, ErrExhausted) || !errors.As(err, &lost) || !lost.RolledBack {
					t.Errorf("the call gives %v", err)
				}
				if errors.Is(err, driver.ErrBadConn) {
					t.Errorf("%v matches driver.ErrBadConn", err)
				}
				if whose == "the statement's" {
					if err := tx.Commit(); !errors.Is(err, ErrExhausted) || !errors.As(err, &lost) {
						t.Errorf("COMMIT gives %v", err)
					}
				}
				_ = tx.Rollback()
			})
		}
	}
}

func TestTheLossOfAConnectionIsTold(t *testing.T) {
	o := newObservatory(t)
	var told []Event
	f := newFixture(t, append(o.options(), WithOnRetry(func(_ context.Context, e Event) { told = append(told, e) }))...).likePostgres()
	f.Fail(drivertest.AnyExec, terminated).Matching("UPDATE account").Times(1).Drops()
	if err := inTx(t.Context(), f.db, writes); err != nil {
		t.Fatal(err)
	}
	if len(told) != 1 || told[0].Decision != DecisionRetried || told[0].Kind != KindReplay || told[0].Class != ClassConnectionLost || told[0].SQLState != "57P01" || told[0].Attempt != 1 || told[0].Wait != unavailableBaseDelay {
		t.Errorf("the hook was told %+v", told)
	}
	m := o.metrics(t)
	if m["pgretry.connection.lost"] != "{connection.place=transaction:1}" || m["pgretry.connection.replaced"] != "{:1}" {
		t.Errorf("the metrics are %v", m)
	}
	if tree := o.tree(); !strings.Contains(tree, "attempt=1 attempt.kind=replay outcome=retried statements=1 backoff=0.1 class=connection_lost error.type=57P01") ||
		!strings.Contains(tree, "attempt=2 attempt.kind=replay outcome=committed") {
		t.Errorf("the spans are\n%s", tree)
	}
}
