package pgretry

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/lib/pq"

	"github.com/pgretry/pgretry/internal/drivertest"
)

// fixture is a database over the scripted driver, with a clock that stands still
// unless the loop waits.
type fixture struct {
	*drivertest.Driver
	t         *testing.T
	db        *sql.DB
	connector *Connector
	waits     []time.Duration
	now       time.Time
	onWait    func()
}

func newFixture(t *testing.T, options ...Option) *fixture {
	t.Helper()
	f := &fixture{
		Driver: drivertest.New(drivertest.WithFeatures(drivertest.LibPQ), drivertest.WithTransactionState(pq.ErrInFailedTransaction)),
		t:      t, now: time.Unix(0, 0),
	}
	connector, err := NewConnector(f.Connector(), withPins(options)...)
	if err != nil {
		t.Fatal(err)
	}
	f.connector = connector
	f.alone()
	connector.config.random = highest
	connector.config.now = func() time.Time { return f.now }
	connector.config.wait = func(ctx context.Context, d time.Duration) error {
		f.waits = append(f.waits, d)
		f.now = f.now.Add(d)
		if f.onWait != nil {
			f.onWait()
		}
		return contextError(ctx)
	}
	f.db = sql.OpenDB(connector)
	t.Cleanup(func() {
		if err := f.db.Close(); err != nil {
			t.Error(err)
		}
		// A context's end rolls back on database/sql's own goroutine.
		for deadline := time.Now().Add(5 * time.Second); f.OpenConns() > 0 && time.Now().Before(deadline); {
			runtime.Gosched()
		}
		for what, n := range map[string]int{"transactions": f.OpenTxs(), "rows": f.OpenRows(), "statements": f.OpenStmts(), "connections": f.OpenConns()} {
			if n != 0 {
				t.Errorf("%d %s are left open", n, what)
			}
		}
		if v := f.Violations(); len(v) > 0 {
			t.Errorf("the driver contract was violated: %v", v)
		}
	})
	return f
}

// alone makes the scripted driver answer like a server on which nobody else is.
func (f *fixture) alone() {
	answer := func(query string, rows ...[]driver.Value) {
		f.Rows(query, drivertest.ResultSet{Columns: drivertest.Columns("answer"), Rows: rows})
	}
	answer("pg_catalog.pg_locks")
	answer("txid_snapshot_xmax", []driver.Value{"1000"})
	answer("SHOW default_transaction_isolation", []driver.Value{"read committed"})
}

func serverErr(code string) error {
	return &drivertest.Error{Severity: "ERROR", Code: code, Message: "scripted"}
}

// transfer is a transaction with a query between two updates.
func transfer(ctx context.Context, tx *sql.Tx) error {
	if _, err := tx.ExecContext(ctx, "UPDATE first"); err != nil {
		return err
	}
	rows, err := tx.QueryContext(ctx, "SELECT middle")
	if err != nil {
		return err
	}
	for rows.Next() {
		var v any
		if err := rows.Scan(&v); err != nil {
			return errors.Join(err, rows.Close())
		}
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return err
	}
	var n int
	if err := tx.QueryRowContext(ctx, "SELECT row").Scan(&n); err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, "UPDATE last")
	return err
}

func TestAConflictAnywhereIsRetried(t *testing.T) {
	for _, place := range []struct {
		name, text string
		calls      drivertest.Call
	}{
		{"first statement", "first", drivertest.Exec},
		{"query", "middle", drivertest.Query},
		{"in the middle of rows", "middle", drivertest.RowsNext},
		{"closing rows", "middle", drivertest.RowsClose},
		{"QueryRow", "row", drivertest.Query},
		{"scanning QueryRow", "row", drivertest.RowsNext},
		{"closing QueryRow", "row", drivertest.RowsClose},
		{"last statement", "last", drivertest.Exec},
		{"COMMIT", "", drivertest.Commit},
	} {
		for _, code := range []string{"40001", "40P01"} {
			for _, level := range []sql.IsolationLevel{sql.LevelReadCommitted, sql.LevelRepeatableRead, sql.LevelSerializable} {
				t.Run(fmt.Sprintf("%s/%s/%s", place.name, code, level), func(t *testing.T) {
					f := newFixture(t)
					rule := f.Fail(place.calls, serverErr(code)).Matching(place.text).Times(2)
					f.onWait = func() {
						if f.OpenTxs() != 0 || f.db.Stats().InUse != 0 {
							t.Errorf("while waiting %d transactions are open and %d connections in use", f.OpenTxs(), f.db.Stats().InUse)
						}
					}
					runs := 0
					err := RunInTx(t.Context(), f.db, &sql.TxOptions{Isolation: level}, func(ctx context.Context, tx *sql.Tx) error {
						runs++
						return transfer(ctx, tx)
					})
					if err != nil || runs != 3 || rule.Fired() != 2 {
						t.Errorf("RunInTx gives %v after %d runs and %d conflicts", err, runs, rule.Fired())
					}
					if want := []time.Duration{10 * time.Millisecond, 20 * time.Millisecond}; !slices.Equal(f.waits, want) {
						t.Errorf("waited %v, want %v", f.waits, want)
					}
					commits := 0
					for _, e := range f.Entries() {
						if e.Call == drivertest.Begin && e.Options.Isolation != driver.IsolationLevel(level) {
							t.Errorf("BEGIN at level %v", e.Options.Isolation)
						}
						if e.Call == drivertest.Commit && e.Err == nil {
							commits++
						}
					}
					if commits != 1 {
						t.Errorf("committed %d times", commits)
					}
				})
			}
		}
	}
}

func TestAHiddenConflictIsRetried(t *testing.T) {
	business := errors.New("out of stock")
	for name, hide := range map[string]func(context.Context, *sql.Tx, error) error{
		"another error with its text": func(_ context.Context, _ *sql.Tx, err error) error { return fmt.Errorf("%v", err) }, //nolint:errorlint // that is the point
		"another error altogether":    func(context.Context, *sql.Tx, error) error { return business },
		"swallowed, then 25P02": func(ctx context.Context, tx *sql.Tx, _ error) error {
			_, err := tx.ExecContext(ctx, "UPDATE more")
			return err
		},
		"swallowed, then COMMIT": func(context.Context, *sql.Tx, error) error { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.Fail(drivertest.Exec, serverErr("40001")).Matching("first").Times(1)
			runs := 0
			err := RunInTx(t.Context(), f.db, nil, func(ctx context.Context, tx *sql.Tx) error {
				runs++
				if _, err := tx.ExecContext(ctx, "UPDATE first"); err != nil {
					return hide(ctx, tx, err)
				}
				return nil
			})
			if err != nil || runs != 2 {
				t.Errorf("RunInTx gives %v after %d runs, want success after 2", err, runs)
			}
		})
	}
}

func TestAHiddenConflictIsInTheLastError(t *testing.T) {
	f := newFixture(t, WithPolicy(Policy{MaxAttempts: 2}))
	f.Fail(drivertest.Exec, serverErr("40001"))
	business := errors.New("out of stock")
	err := RunInTx(t.Context(), f.db, nil, func(ctx context.Context, tx *sql.Tx) error {
		_, _ = tx.ExecContext(ctx, "UPDATE")
		return business
	})
	var server *drivertest.Error
	if !errors.Is(err, ErrExhausted) || !errors.Is(err, business) || !errors.As(err, &server) || sqlState(err) != "40001" {
		t.Errorf("the error is %v", err)
	}
}

func TestAConflictThatTheApplicationUndidIsOver(t *testing.T) {
	business := errors.New("out of stock")
	for _, result := range []error{nil, business} {
		f := newFixture(t)
		f.Fail(drivertest.Exec, serverErr("40P01")).Matching("inner").Times(1)
		runs := 0
		err := RunInTx(t.Context(), f.db, nil, func(ctx context.Context, tx *sql.Tx) error {
			runs++
			for _, text := range []string{"SAVEPOINT a", "UPDATE inner", "ROLLBACK TO SAVEPOINT a", "UPDATE outer"} {
				if _, err := tx.ExecContext(ctx, text); err != nil && text != "UPDATE inner" {
					return err
				}
			}
			return result
		})
		if err != result || runs != 1 { //nolint:errorlint // the very same
			t.Errorf("RunInTx gives %v after %d runs, want %v after 1", err, runs, result)
		}
	}
}

func TestOtherErrorsComeBackAsTheyAre(t *testing.T) {
	for _, err := range []error{
		errors.New("business"), serverErr("23505"), serverErr("57014"), serverErr("55P03"), sql.ErrNoRows,
		fmt.Errorf("wrapped: %w", serverErr("22012")), context.Canceled, serverErr("40003"),
	} {
		f := newFixture(t)
		f.Fail(drivertest.Exec, err)
		runs := 0
		got := RunInTx(t.Context(), f.db, nil, func(ctx context.Context, tx *sql.Tx) error {
			runs++
			_, err := tx.ExecContext(ctx, "UPDATE")
			return err
		})
		if got != err && sqlState(err) != "40003" || runs != 1 { //nolint:errorlint // the very same
			t.Errorf("RunInTx gives %v after %d runs, want %v", got, runs, err)
		}
		if n := len(f.Log(drivertest.Rollback)); n != 1 {
			t.Errorf("%v: rolled back %d times", err, n)
		}
	}
}

func TestAPanicRollsBackAndGoesOn(t *testing.T) {
	f := newFixture(t)
	f.db.SetMaxOpenConns(1)
	func() {
		defer func() {
			if v := recover(); v != "no" {
				t.Errorf("recovered %v", v)
			}
			stack := make([]byte, 1<<16)
			if text := string(stack[:runtime.Stack(stack, false)]); !strings.Contains(text, "doPanic(") {
				t.Errorf("the stack of the panic is gone:\n%s", text)
			}
		}()
		t.Error(RunInTx(t.Context(), f.db, nil, func(context.Context, *sql.Tx) error { return doPanic() }))
	}()
	if n := len(f.Log(drivertest.Rollback)); n != 1 || f.db.Stats().InUse != 0 {
		t.Errorf("rolled back %d times, %d connections in use", n, f.db.Stats().InUse)
	}
}

//go:noinline
func doPanic() error { panic("no") }

func TestTheEndOfTheGoroutineRollsBack(t *testing.T) {
	f := newFixture(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = RunInTx(t.Context(), f.db, nil, func(context.Context, *sql.Tx) error {
			runtime.Goexit()
			return nil
		})
	}()
	<-done
	if n := len(f.Log(drivertest.Rollback)); n != 1 || f.db.Stats().InUse != 0 {
		t.Errorf("rolled back %d times, %d connections in use", n, f.db.Stats().InUse)
	}
}

func TestTheLimitsHold(t *testing.T) {
	conflict := serverErr("40P01")
	for _, c := range []struct {
		name     string
		options  []Option
		attempts int
		text     string
	}{
		{"default attempts", []Option{WithPolicy(Policy{MaxElapsed: time.Hour})}, 50, "MaxAttempts is 50"},
		{"attempts", []Option{WithPolicy(Policy{MaxAttempts: 3})}, 3, "after 3 attempts in 30ms: ERROR: scripted"},
		{"one attempt", []Option{WithPolicy(Policy{MaxAttempts: 1})}, 1, "after 1 attempt in 0s"},
		// 10 + 20 + 40 ms are within 100, 80 more are not.
		{"elapsed time", []Option{WithPolicy(Policy{MaxElapsed: 100 * time.Millisecond})}, 4, "MaxElapsed of 100ms"},
		{"elapsed time to the millisecond", []Option{WithPolicy(Policy{MaxElapsed: 150 * time.Millisecond})}, 5, "MaxElapsed of 150ms"},
		{"a backoff that stops", []Option{WithBackOff(func() backoff.BackOff {
			return backoff.WithMaxRetries(backoff.NewConstantBackOff(time.Millisecond), 2)
		})}, 3, "the BackOff says stop"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFixture(t, c.options...)
			f.Fail(drivertest.Exec, conflict)
			err := RunInTx(t.Context(), f.db, nil, transfer)
			var retry *RetryError
			if !errors.As(err, &retry) {
				t.Fatalf("the error is %v", err)
			}
			var elapsed time.Duration
			for _, w := range f.waits {
				elapsed += w
			}
			if retry.Attempts != c.attempts || retry.Elapsed != elapsed || retry.Class != ClassRetryable || len(f.Log(drivertest.Begin)) != c.attempts {
				t.Errorf("%+v with %d transactions, want %d attempts in %s", retry, len(f.Log(drivertest.Begin)), c.attempts, elapsed)
			}
			if !errors.Is(err, ErrExhausted) || !errors.Is(err, conflict) || retry.SQLState() != "40P01" || !strings.Contains(err.Error(), c.text) {
				t.Errorf("the error is %v, want it to say %q", err, c.text)
			}
			if s, _ := StatsOf(f.db); s.Exhausted != 1 || s.Retries != int64(c.attempts-1) {
				t.Errorf("stats are %+v", s)
			}
		})
	}
}

func TestADeadlineThatComesTooSoonEndsAtOnce(t *testing.T) {
	f := newFixture(t, WithPolicy(Policy{BaseDelay: time.Hour, MaxDelay: time.Hour, MaxElapsed: 2 * time.Hour}))
	f.now = time.Now()
	f.Fail(drivertest.Exec, serverErr("40001"))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err := RunInTx(ctx, f.db, nil, transfer)
	if !errors.Is(err, ErrExhausted) || !errors.Is(err, context.DeadlineExceeded) || sqlState(err) != "40001" || len(f.waits) != 0 {
		t.Errorf("waited %v and got %v", f.waits, err)
	}
}

func TestACancelledWaitMatchesEverythingThatEndedIt(t *testing.T) {
	f := newFixture(t)
	conflict := serverErr("40001")
	f.Fail(drivertest.Exec, conflict)
	cause := errors.New("shutting down")
	ctx, cancel := context.WithCancelCause(t.Context())
	f.onWait = func() { cancel(cause) }
	err := RunInTx(ctx, f.db, nil, transfer)
	for _, want := range []error{context.Canceled, cause, conflict, ErrExhausted} {
		if !errors.Is(err, want) {
			t.Errorf("%v does not match %v", err, want)
		}
	}
}

func TestWaitEndsWithTheContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- wait(ctx, time.Hour) }()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("wait gives %v", err)
	}
	if err := wait(t.Context(), 0); err != nil {
		t.Errorf("wait gives %v", err)
	}
}

func TestAContextThatEndedBeforeCommitIsTheError(t *testing.T) {
	f := newFixture(t)
	cause := errors.New("shutting down")
	ctx, cancel := context.WithCancelCause(t.Context())
	runs := 0
	err := RunInTx(ctx, f.db, nil, func(ctx context.Context, tx *sql.Tx) error {
		runs++
		_, err := tx.ExecContext(ctx, "UPDATE")
		cancel(cause)
		return err
	})
	if !errors.Is(err, context.Canceled) || !errors.Is(err, cause) || runs != 1 || len(f.Log(drivertest.Commit)) != 0 {
		t.Errorf("RunInTx gives %v after %d runs", err, runs)
	}
}

func TestACommitWithoutAnswerIsNeverRepeated(t *testing.T) {
	for name, commitErr := range map[string]error{
		"lost":      driver.ErrBadConn,
		"cancelled": context.Canceled,
		"40003":     serverErr("40003"),
		"08007":     serverErr("08007"),
	} {
		for _, api := range []string{"RunInTx", "Retry"} {
			t.Run(api+"/"+name, func(t *testing.T) {
				var events []Event
				f := newFixture(t, WithOnRetry(func(_ context.Context, e Event) { events = append(events, e) }))
				f.Fail(drivertest.Commit, commitErr).Drops()
				runs := 0
				body := func(ctx context.Context, tx *sql.Tx) error {
					runs++
					_, err := tx.ExecContext(ctx, "UPDATE")
					return err
				}
				var err error
				if api == "RunInTx" {
					err = RunInTx(t.Context(), f.db, nil, body)
				} else {
					err = Retry(t.Context(), func(ctx context.Context) error { return inTx(ctx, f.db, body) })
				}
				var unknown *CommitUnknownError
				if !errors.As(err, &unknown) || !errors.Is(unknown.Cause, commitErr) || runs != 1 {
					t.Fatalf("%s gives %v after %d runs", api, err, runs)
				}
				if errors.Is(err, driver.ErrBadConn) || errors.Is(err, context.Canceled) {
					t.Errorf("%v matches an error that promises nothing was committed", err)
				}
				if s, _ := StatsOf(f.db); s.UnknownCommits != 1 || len(events) != 1 || events[0].Decision != DecisionUnknown {
					t.Errorf("stats are %+v, events %+v", s, events)
				}
			})
		}
	}
}

// inTx is what an ORM's transaction helper does.
func inTx(ctx context.Context, db *sql.DB, body func(context.Context, *sql.Tx) error) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if err := body(ctx, tx); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	return tx.Commit()
}

func TestAConnectionLostBeforeCommitIsRetriedSlowlyAndSeldom(t *testing.T) {
	f := newFixture(t)
	f.Fail(drivertest.Exec, driver.ErrBadConn).Drops()
	err := RunInTx(t.Context(), f.db, nil, transfer)
	var retry *RetryError
	if !errors.As(err, &retry) || retry.Class != ClassConnectionLost || retry.Attempts != unavailableRetries+1 || !strings.Contains(err.Error(), "stays unavailable") {
		t.Errorf("RunInTx gives %v", err)
	}
	if want := []time.Duration{100, 200, 400, 800}; len(f.waits) != unavailableRetries || f.waits[0] != want[0]*time.Millisecond || f.waits[3] != want[3]*time.Millisecond {
		t.Errorf("waited %v, want %v ms", f.waits, want)
	}
}

func TestNoCommitIsSentOverALostConnection(t *testing.T) {
	f := newFixture(t)
	f.Fail(drivertest.Exec, driver.ErrBadConn).Times(1).Drops()
	runs := 0
	err := RunInTx(t.Context(), f.db, nil, func(ctx context.Context, tx *sql.Tx) error {
		runs++
		_, _ = tx.ExecContext(ctx, "UPDATE") // ignored: COMMIT will tell
		return nil
	})
	if err != nil || runs != 2 || len(f.Log(drivertest.Commit)) != 1 {
		t.Errorf("RunInTx gives %v after %d runs and %d times COMMIT", err, runs, len(f.Log(drivertest.Commit)))
	}
}

func TestAServerThatIsNotThereGivesTheInnerError(t *testing.T) {
	f := newFixture(t)
	refused := fmt.Errorf("dial: %w", errConnRefused)
	f.Fail(drivertest.Connect, refused)
	err := RunInTx(t.Context(), f.db, nil, transfer)
	var retry *RetryError
	if !errors.As(err, &retry) || !errors.Is(err, refused) || retry.Attempts != unavailableRetries+1 || retry.Class != ClassNotStarted {
		t.Errorf("RunInTx gives %v", err)
	}
	if len(f.waits) != unavailableRetries {
		t.Errorf("waited %v", f.waits)
	}
}

func TestTheRetryBudgetEndsRetriesAfterUnavailabilityOnly(t *testing.T) {
	f := newFixture(t, WithPolicy(Policy{MaxElapsed: time.Hour}))
	for f.connector.budget.take() {
	}
	f.Fail(drivertest.Exec, serverErr("40001")).Times(3)
	if err := RunInTx(t.Context(), f.db, nil, transfer); err != nil {
		t.Errorf("conflicts draw on the budget: %v", err)
	}
	f.ClearRules()
	f.Fail(drivertest.Exec, driver.ErrBadConn).Drops()
	err := RunInTx(t.Context(), f.db, nil, transfer)
	if !errors.Is(err, ErrExhausted) || !strings.Contains(err.Error(), "retry budget") {
		t.Errorf("RunInTx gives %v", err)
	}
}

func TestALostSQLConnIsNotRetried(t *testing.T) {
	f := newFixture(t)
	c, err := f.db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f.Fail(drivertest.Exec, driver.ErrBadConn).Drops()
	runs := 0
	err = RunInTx(t.Context(), c, nil, func(ctx context.Context, tx *sql.Tx) error {
		runs++
		return transfer(ctx, tx)
	})
	var lost *ConnectionLostError
	if !errors.As(err, &lost) || !lost.RolledBack || errors.Is(err, driver.ErrBadConn) || runs != 1 {
		t.Errorf("RunInTx gives %v after %d runs", err, runs)
	}
	if err := c.Close(); err != nil && !errors.Is(err, driver.ErrBadConn) && !errors.Is(err, sql.ErrConnDone) {
		t.Error(err)
	}
}

func TestRunInTxWorksOnASQLConn(t *testing.T) {
	f := newFixture(t)
	c, err := f.db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f.Fail(drivertest.Commit, serverErr("40001")).Times(1)
	if err := RunInTx(t.Context(), c, nil, transfer); err != nil {
		t.Error(err)
	}
	for _, e := range f.Entries() {
		if e.Conn > 1 {
			t.Errorf("%s ran on another connection", e)
		}
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

func TestOptInErrorsAreRetriedOnRequestAndSeldom(t *testing.T) {
	for _, c := range []struct {
		options  []Option
		attempts int
	}{
		{nil, 1},
		{[]Option{WithAlsoRetry("23505")}, 1},
		{[]Option{WithAlsoRetry("23505", "55P03")}, 5},
	} {
		f := newFixture(t, c.options...)
		f.Fail(drivertest.Exec, serverErr("55P03"))
		err := RunInTx(t.Context(), f.db, nil, transfer)
		if n := len(f.Log(drivertest.Begin)); n != c.attempts || sqlState(err) != "55P03" {
			t.Errorf("%d attempts, want %d, and %v", n, c.attempts, err)
		}
	}
}

func TestModeOffRunsOnceAndReturnsTheErrorItself(t *testing.T) {
	f := newFixture(t, WithMode(ModeOff))
	conflict := serverErr("40001")
	f.Fail(drivertest.Exec, conflict)
	if err := RunInTx(t.Context(), f.db, nil, transfer); err != conflict { //nolint:errorlint // the very same
		t.Errorf("RunInTx gives %v", err)
	}
	err := Retry(t.Context(), func(ctx context.Context) error {
		_, err := f.db.ExecContext(ctx, "UPDATE")
		return err
	})
	if err != conflict || len(f.Log(drivertest.Exec)) != 2 { //nolint:errorlint // the very same
		t.Errorf("Retry gives %v", err)
	}
}

func TestOptionsOfACallOverrideTheDatabases(t *testing.T) {
	f := newFixture(t, WithPolicy(Policy{MaxAttempts: 7}))
	f.Fail(drivertest.Exec, serverErr("40001"))
	_ = RunInTx(t.Context(), f.db, nil, transfer, WithPolicy(Policy{MaxAttempts: 2}))
	if n := len(f.Log(drivertest.Begin)); n != 2 {
		t.Errorf("%d attempts, want 2", n)
	}
	f.ClearLog()
	_ = RunInTx(t.Context(), f.db, nil, transfer, WithPolicy(Policy{MaxElapsed: time.Hour}))
	if n := len(f.Log(drivertest.Begin)); n != 7 {
		t.Errorf("%d attempts with another MaxElapsed, want the database's 7", n)
	}
	f.ClearLog()
	_ = RunInTx(t.Context(), f.db, nil, transfer)
	if n := len(f.Log(drivertest.Begin)); n != 7 {
		t.Errorf("%d attempts afterwards, want the database's 7", n)
	}
}

func TestBadInputIsAnError(t *testing.T) {
	f := newFixture(t)
	nothing := func(context.Context, *sql.Tx) error { return nil }
	var noDB *sql.DB
	var noConn *sql.Conn
	for name, c := range map[string]struct {
		err  error
		want string
	}{
		"nil interface": {RunInTx(t.Context(), nil, nil, nothing), "database given to RunInTx is nil"},
		"nil db":        {RunInTx(t.Context(), noDB, nil, nothing), "database given to RunInTx is nil"},
		"nil wrapper":   {RunInTx(t.Context(), (*struct{ *sql.DB })(nil), nil, nothing), "database given to RunInTx is nil"},
		"nil conn":      {RunInTx(t.Context(), noConn, nil, nothing), "database given to RunInTx is nil"},
		"nil function":  {RunInTx(t.Context(), f.db, nil, nil), "function given to RunInTx is nil"},
		"nil context":   {RunInTx(nil, f.db, nil, nothing), "context given to RunInTx is nil"}, //nolint:staticcheck // that is the point
		"nil fn":        {Retry(t.Context(), nil), "function given to Retry is nil"},
		"nil ctx":       {Retry(nil, func(context.Context) error { return nil }), "context given to Retry is nil"}, //nolint:staticcheck // that is the point
		"nil option":    {RunInTx(t.Context(), f.db, nil, nothing, nil), "option 1 is nil"},
		"policy":        {RunInTx(t.Context(), f.db, nil, nothing, WithPolicy(Policy{MaxAttempts: -1})), "MaxAttempts is -1, allowed is 1 or more"},
		"retry policy":  {Retry(t.Context(), func(context.Context) error { return nil }, WithPolicy(Policy{BaseDelay: -1})), "BaseDelay is -1ns"},
		"stats":         {second(StatsOf(nil)), "nil"},
	} {
		if c.err == nil || !strings.Contains(c.err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, c.err, c.want)
		}
	}
	if n := len(f.Log()); n != 0 {
		t.Errorf("the driver was called: %v", f.Log())
	}
}

func second[T any](_ T, err error) error { return err }

func TestWrongOptionsAreErrors(t *testing.T) {
	inner := drivertest.New().Connector()
	for name, c := range map[string]struct {
		option Option
		want   string
	}{
		"nil":             {nil, "option 1 is nil"},
		"attempts":        {WithPolicy(Policy{MaxAttempts: -1}), "MaxAttempts is -1"},
		"base":            {WithPolicy(Policy{BaseDelay: -time.Second}), "BaseDelay is -1s"},
		"cap":             {WithPolicy(Policy{MaxDelay: -time.Second}), "MaxDelay is -1s"},
		"elapsed":         {WithPolicy(Policy{MaxElapsed: -time.Second}), "MaxElapsed is -1s"},
		"cap below base":  {WithPolicy(Policy{BaseDelay: 2, MaxDelay: 1}), "MaxDelay is 1ns, allowed is no less than BaseDelay, which is 2ns"},
		"factory":         {WithBackOff(nil), "factory given to WithBackOff is nil"},
		"mode":            {WithMode(9), "mode is 9"},
		"opt-in":          {WithAlsoRetry("40001"), `"40001" cannot be retried on request, allowed are 0A000`},
		"hook":            {WithOnRetry(nil), "hook given to WithOnRetry is nil"},
		"tracer provider": {WithTracerProvider(nil), "WithTracerProvider is nil"},
		"meter provider":  {WithMeterProvider(nil), "WithMeterProvider is nil"},
		"otelsql":         {WithStatementSpans(nil), "WithStatementSpans is nil"},
	} {
		if _, err := NewConnector(inner, c.option); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: NewConnector gives %v, want %q", name, err, c.want)
		}
		if _, err := Open("host=127.0.0.1", c.option); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: Open gives %v, want %q", name, err, c.want)
		}
		if _, err := WrapDriver(&pq.Driver{}, c.option).OpenConnector(""); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: OpenConnector gives %v, want %q", name, err, c.want)
		}
	}
	if _, err := NewConnector(nil); err == nil {
		t.Error("NewConnector(nil) gives no error")
	}
	if _, err := WrapDriver(nil).OpenConnector(""); err == nil {
		t.Error("WrapDriver(nil) gives no error")
	}
}

func TestAFactoryWithoutABackOffMeansFullJitter(t *testing.T) {
	f := newFixture(t, WithBackOff(func() backoff.BackOff { return nil }))
	f.Fail(drivertest.Exec, serverErr("40001")).Times(1)
	if err := RunInTx(t.Context(), f.db, nil, transfer); err != nil || len(f.waits) != 1 || f.waits[0] != 10*time.Millisecond {
		t.Errorf("RunInTx gives %v, waited %v", err, f.waits)
	}
}

func TestEventsTellOfEveryDecision(t *testing.T) {
	var events []Event
	f := newFixture(t, WithPolicy(Policy{MaxAttempts: 2}), WithOnRetry(func(_ context.Context, e Event) { events = append(events, e) }))
	f.Fail(drivertest.Exec, serverErr("40P01"))
	_ = RunInTx(ContextWithName(t.Context(), "transfer"), f.db, nil, transfer)
	if len(events) != 2 {
		t.Fatalf("events are %+v", events)
	}
	first, last := events[0], events[1]
	if first.Decision != DecisionRetried || first.Attempt != 1 || first.Wait != 10*time.Millisecond || first.Name != "transfer" ||
		first.SQLState != "40P01" || first.Class != ClassRetryable || first.Deadlock == nil || sqlState(first.Err) != "40P01" {
		t.Errorf("the first event is %+v", first)
	}
	if last.Decision != DecisionExhausted || last.Attempt != 2 || last.Wait != 0 {
		t.Errorf("the last event is %+v", last)
	}
	if got := first.LogValue().String(); strings.Contains(got, "scripted") || !strings.Contains(got, "40P01") {
		t.Errorf("logged is %s, want the SQLSTATE and not the message", got)
	}
}
