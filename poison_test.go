package pgretry

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/lib/pq"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/pgretry/pgretry/internal/drivertest"
)

var (
	first  = spot{calls: drivertest.Exec, text: "first"}
	middle = spot{calls: drivertest.Query, text: "middle"}
	last   = spot{calls: drivertest.Exec, text: "last"}
	commit = spot{calls: drivertest.Commit}
)

// poisonings are the ways in which a transaction that was replayed is given up.
var poisonings = []struct {
	name    string
	reason  error
	refusal RefusalReason
	hint    string
	options []Option
	strikes []strike
	changes bool // what was shown
	broken  bool // the connection is
}{
	{
		name: "diverged", reason: ErrDiverged, hint: "the replay showed something else", changes: true,
		strikes: []strike{{last, 1, serverErr("40001")}},
	},
	{
		name: "exhausted", reason: ErrExhausted, hint: "MaxAttempts is 2", options: []Option{WithPolicy(Policy{MaxAttempts: 2})},
		strikes: []strike{{last, 0, serverErr("40001")}},
	},
	{
		name: "BEGIN impossible", reason: ErrRefused, refusal: RefusedConnectionLost, hint: "[connection_lost]", broken: true,
		strikes: []strike{{last, 1, serverErr("40001")}, {spot{calls: drivertest.Begin}, 2, serverErr("28000")}},
	},
	{
		name: "ROLLBACK impossible", reason: ErrRefused, refusal: RefusedConnectionLost, hint: "[connection_lost]", broken: true,
		strikes: []strike{{last, 1, serverErr("40001")}, {spot{calls: drivertest.Rollback}, 1, serverErr("XX000")}},
	},
}

// isPoison lets the test fail if the error is not what a poisoned transaction gives.
func isPoison(t *testing.T, what string, err, reason error, refusal RefusalReason) {
	t.Helper()
	var server *drivertest.Error
	var retry *RetryError
	var state interface{ SQLState() string }
	if !errors.Is(err, reason) || !errors.As(err, &server) || server.Code != "40001" ||
		!errors.As(err, &retry) || retry.Refusal != refusal || !errors.As(err, &state) || state.SQLState() != "40001" {
		t.Errorf("%s gives %v", what, err)
	}
	for _, other := range []error{ErrDiverged, ErrExhausted, ErrRefused, driver.ErrBadConn} {
		if other != reason && errors.Is(err, other) { //nolint:errorlint // the very same
			t.Errorf("%s gives %v, which matches %v", what, err, other)
		}
	}
}

func TestAPoisonedTransactionSaysSoAtEveryCall(t *testing.T) {
	for _, p := range poisonings {
		for _, ending := range []string{"Commit", "Rollback"} {
			t.Run(p.name+"/"+ending, func(t *testing.T) {
				f := newFixture(t, p.options...).likePostgres()
				f.db.SetMaxOpenConns(1)
				f.Rows("cursor", five)
				if p.changes {
					f.showing(sets(set(1)), sets(set(2)))
				}
				f.strikes(p.strikes...)
				ctx := t.Context()
				c, err := f.db.Conn(ctx)
				if err != nil {
					t.Fatal(err)
				}
				tx, err := c.BeginTx(ctx, nil)
				if err != nil {
					t.Fatal(err)
				}
				if err := steps(ctx, tx, "UPDATE first"); err != nil {
					t.Fatal(err)
				}
				var n int
				if err := tx.QueryRowContext(ctx, "SELECT shown").Scan(&n); err != nil {
					t.Fatal(err)
				}
				bound, err := tx.PrepareContext(ctx, "SELECT bound")
				if err != nil {
					t.Fatal(err)
				}
				rows, err := tx.QueryContext(ctx, "SELECT cursor")
				if err != nil || !rows.Next() {
					t.Fatal(err)
				}
				_, err = tx.ExecContext(ctx, "UPDATE last")
				server, ok := err.(*drivertest.Error) //nolint:errorlint // programs do it like this
				if !ok || server.Code != "40001" || !strings.Contains(server.Hint, p.hint) {
					t.Errorf("the call that met the conflict gives %+v", err)
				}
				if f.OpenTxs() != 0 || f.OpenRows() != 0 {
					t.Errorf("%d transactions and %d cursors are open", f.OpenTxs(), f.OpenRows())
				}
				asked := len(f.Log(drivertest.AnyStatement | drivertest.Prepare | drivertest.Begin))

				_, err = tx.ExecContext(ctx, "UPDATE more")
				isPoison(t, "Exec", err, p.reason, p.refusal)
				_, err = tx.ExecContext(ctx, `ROLLBACK TO SAVEPOINT "x"`)
				isPoison(t, "ROLLBACK TO", err, p.reason, p.refusal)
				_, err = tx.QueryContext(ctx, "SELECT more") //nolint:sqlclosecheck // there are none
				isPoison(t, "Query", err, p.reason, p.refusal)
				isPoison(t, "QueryRow", tx.QueryRowContext(ctx, "SELECT more").Scan(&n), p.reason, p.refusal)
				_, err = tx.PrepareContext(ctx, "SELECT more")
				isPoison(t, "Prepare", err, p.reason, p.refusal)
				_, err = bound.ExecContext(ctx)
				isPoison(t, "Exec of a prepared statement", err, p.reason, p.refusal)
				_, err = bound.QueryContext(ctx) //nolint:sqlclosecheck // there are none
				isPoison(t, "Query of a prepared statement", err, p.reason, p.refusal)
				if rows.Next() {
					t.Error("a cursor goes on")
				}
				isPoison(t, "Next", rows.Err(), p.reason, p.refusal)
				if err := errors.Join(rows.Close(), bound.Close()); err != nil {
					t.Errorf("closing gives %v", err)
				}
				_, err = c.BeginTx(ctx, nil)
				isPoison(t, "BeginTx on the same connection", err, p.reason, p.refusal)
				if got := len(f.Log(drivertest.AnyStatement | drivertest.Prepare | drivertest.Begin)); got != asked {
					t.Errorf("the server was asked %d more things", got-asked)
				}

				if ending == "Commit" {
					isPoison(t, "Commit", tx.Commit(), p.reason, p.refusal)
				} else if err := tx.Rollback(); err != nil {
					t.Errorf("Rollback gives %v", err)
				}
				if err := c.Close(); err != nil {
					t.Error(err)
				}
				if s := f.stats(); s.PlainConflicts != 1 || s.Hidden != 0 || s.Committed != 0 || s.Plain != 1 {
					t.Errorf("stats are %+v", s)
				}
				f.ClearRules()
				if err := inTx(ctx, f.db, transfer); err != nil {
					t.Errorf("the next transaction gives %v", err)
				}
				if connected := len(f.Log(drivertest.Connect)); (connected > 1) != p.broken {
					t.Errorf("%d connections were made", connected)
				}
			})
		}
	}
}

func TestACommitThatPoisonsTellsTheServersErrorAndEndsTheTransaction(t *testing.T) {
	f := newFixture(t).likePostgres()
	f.showing(sets(set(1)), sets(set(2)))
	f.strikes(strike{commit, 1, serverErr("40001")})
	f.db.SetMaxOpenConns(1)
	tx, err := f.db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	var n int
	if err := tx.QueryRowContext(t.Context(), "SELECT shown").Scan(&n); err != nil {
		t.Fatal(err)
	}
	err = tx.Commit()
	if server, ok := err.(*drivertest.Error); !ok || server.Code != "40001" || !strings.Contains(server.Hint, "the replay showed something else") { //nolint:errorlint // programs do it like this
		t.Errorf("Commit gives %+v", err)
	}
	if err := tx.Rollback(); !errors.Is(err, sql.ErrTxDone) {
		t.Errorf("Rollback gives %v", err)
	}
	if s := f.stats(); s.Plain != 1 || s.PlainConflicts != 1 || s.Committed != 0 || f.OpenTxs() != 0 {
		t.Errorf("stats are %+v", s)
	}
	f.ClearRules()
	if err := inTx(t.Context(), f.db, transfer); err != nil {
		t.Errorf("the next transaction gives %v", err)
	}
}

func TestAPoisonedTransactionThatItsContextEndsLeavesNothingBehind(t *testing.T) {
	f := newFixture(t)
	f.strikes(strike{last, 0, serverErr("40001")})
	f.connector.config.policy.MaxAttempts = 1
	f.db.SetMaxOpenConns(1)
	ctx, cancel := context.WithCancel(t.Context())
	tx, err := f.db.BeginTx(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := steps(t.Context(), tx, "?UPDATE last"); err != nil {
		t.Fatal(err)
	}
	cancel() // in place of a Rollback
	if err := inTx(t.Context(), f.db, func(ctx context.Context, tx *sql.Tx) error { return steps(ctx, tx, "UPDATE") }); err != nil {
		t.Errorf("the next transaction gives %v", err)
	}
}

func TestALoopAroundATransactionRecognisesWhatWasNotReplayed(t *testing.T) {
	for _, careless := range []bool{false, true} {
		f := newFixture(t)
		f.On(drivertest.Query).Matching("shown").RowsFunc(func(*drivertest.Invocation) ([]drivertest.ResultSet, error) {
			return sets(set(len(f.Log(drivertest.Begin)))), nil
		})
		f.strikes(strike{last, 1, serverErr("40001")})
		runs := 0
		var err error
		for again := true; again && runs < 5; {
			runs++
			err = inTx(t.Context(), f.db, func(ctx context.Context, tx *sql.Tx) error {
				var n int
				if err := tx.QueryRowContext(ctx, "SELECT shown").Scan(&n); err != nil {
					return err
				}
				_, err := tx.ExecContext(ctx, "UPDATE last")
				if careless {
					return nil // COMMIT will tell
				}
				return err
			})
			var state interface{ SQLState() string }
			again = errors.As(err, &state) && state.SQLState() == "40001"
		}
		if err != nil || runs != 2 {
			t.Errorf("careless %t: the loop gives %v after %d runs", careless, err, runs)
		}
	}
}

func TestTheLimitsAreThoseOfTheWholeTransaction(t *testing.T) {
	const ms = time.Millisecond
	everywhere := []strike{
		{first, 1, serverErr("40001")},
		{middle, 2, serverErr("40P01")},
		{last, 3, serverErr("40001")},
		{commit, 4, serverErr("40001")},
		{spot{calls: drivertest.Begin}, 5, serverErr("40001")},
		{last, 6, serverErr("40P01")},
	}
	for _, c := range []struct {
		name    string
		options []Option
		waits   []time.Duration
		limit   string // "" if all conflicts are survived
	}{
		{"none is reached", nil, []time.Duration{10 * ms, 20 * ms, 40 * ms, 80 * ms, 160 * ms, 320 * ms}, ""},
		{"attempts that suffice", []Option{WithPolicy(Policy{MaxAttempts: 7})}, []time.Duration{10 * ms, 20 * ms, 40 * ms, 80 * ms, 160 * ms, 320 * ms}, ""},
		{"one attempt too few", []Option{WithPolicy(Policy{MaxAttempts: 6})}, []time.Duration{10 * ms, 20 * ms, 40 * ms, 80 * ms, 160 * ms}, "MaxAttempts is 6"},
		{"two attempts", []Option{WithPolicy(Policy{MaxAttempts: 2})}, []time.Duration{10 * ms}, "MaxAttempts is 2"},
		{"one attempt", []Option{WithPolicy(Policy{MaxAttempts: 1})}, nil, "MaxAttempts is 1"},
		{"time to the millisecond", []Option{WithPolicy(Policy{MaxElapsed: 630 * ms})}, []time.Duration{10 * ms, 20 * ms, 40 * ms, 80 * ms, 160 * ms, 320 * ms}, ""},
		{"a millisecond too little", []Option{WithPolicy(Policy{MaxElapsed: 629 * ms})}, []time.Duration{10 * ms, 20 * ms, 40 * ms, 80 * ms, 160 * ms}, "MaxElapsed of 629ms"},
		{"too little for COMMIT", []Option{WithPolicy(Policy{MaxElapsed: 149 * ms})}, []time.Duration{10 * ms, 20 * ms, 40 * ms}, "MaxElapsed of 149ms"},
		{"the longest delay", []Option{WithPolicy(Policy{MaxDelay: 30 * ms})}, []time.Duration{10 * ms, 20 * ms, 30 * ms, 30 * ms, 30 * ms, 30 * ms}, ""},
		{"a backoff that stops", []Option{WithBackOff(func() backoff.BackOff {
			return backoff.WithMaxRetries(backoff.NewConstantBackOff(ms), 3)
		})}, []time.Duration{ms, ms, ms}, "the BackOff says stop"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFixture(t, c.options...).likePostgres().holdsNothingWhileWaiting()
			f.strikes(everywhere...)
			err := inTx(t.Context(), f.db, func(ctx context.Context, tx *sql.Tx) error {
				err := transfer(ctx, tx)
				if err != nil {
					// The call tells the server's error, COMMIT why there was no replay.
					if server, ok := err.(*drivertest.Error); !ok || !strings.Contains(server.Hint, c.limit) { //nolint:errorlint // programs do it like this
						t.Errorf("the application gets %+v", err)
					}
					return errors.Join(tx.Commit())
				}
				return nil
			})
			if !slices.Equal(f.waits, c.waits) {
				t.Errorf("waited %v, want %v", f.waits, c.waits)
			}
			if c.limit == "" {
				if err != nil || len(f.Log(drivertest.Begin)) != 7 {
					t.Errorf("the application gets %v", err)
				}
				return
			}
			var elapsed time.Duration
			for _, w := range c.waits {
				elapsed += w
			}
			var retry *RetryError
			if errors.As(err, &retry) {
				if retry.Reason != ErrExhausted || retry.Attempts != len(c.waits)+1 || retry.Elapsed != elapsed || !strings.Contains(retry.Limit, c.limit) { //nolint:errorlint // the very same
					t.Errorf("Commit gives %+v", retry)
				}
			} else if server, ok := err.(*drivertest.Error); !ok || !strings.Contains(server.Hint, c.limit) { //nolint:errorlint // programs do it like this
				t.Errorf("the application gets %+v", err)
			}
			if s := f.stats(); s.Exhausted != 1 || s.PlainConflicts != 1 || len(f.Log(drivertest.Begin)) != len(c.waits)+1 {
				t.Errorf("stats are %+v", s)
			}
		})
	}
}

func TestPartialReplaysCountAsAttempts(t *testing.T) {
	f := newFixture(t, WithPolicy(Policy{MaxAttempts: 4}), WithPins(PinsNever)).likePostgres()
	f.Fail(drivertest.Exec, serverErr("40001")).MatchingRegexp(commandsInside)
	err := plainly(t.Context(), f.db, sql.LevelReadCommitted, func(ctx context.Context, tx *sql.Tx) error {
		var n int
		if err := tx.QueryRowContext(ctx, insertReturning).Scan(&n); err != nil {
			return err
		}
		return steps(ctx, tx, `SAVEPOINT "x"`, "UPDATE inner 1")
	})
	s := f.stats()
	if sqlState(err) != "40001" || s.PartialReplays != 3 || s.Replays != 3 {
		t.Errorf("the application gets %v, stats are %+v", err, s)
	}
	f = newFixture(t, WithPolicy(Policy{MaxAttempts: 2}), WithPins(PinsNever)).likePostgres()
	f.Fail(drivertest.Exec, serverErr("40001")).MatchingRegexp(commandsInside).Times(2)
	err = plainly(t.Context(), f.db, sql.LevelReadCommitted, func(ctx context.Context, tx *sql.Tx) error {
		var n int
		if err := tx.QueryRowContext(ctx, insertReturning).Scan(&n); err != nil {
			return err
		}
		if err := steps(ctx, tx, `SAVEPOINT "x"`, "?UPDATE inner 1"); err != nil {
			return err
		}
		return steps(ctx, tx, `ROLLBACK TO "x"`, "UPDATE instead")
	})
	if s := f.stats(); err != nil || s.Replays != 1 || s.Exhausted != 1 || s.Committed != 1 {
		t.Errorf("the application gets %v, stats are %+v", err, s)
	}
}

func TestADeadlineThatComesBeforeTheNextAttemptEndsTheMatterAtOnce(t *testing.T) {
	for _, whose := range []string{"the statement's", "BEGIN's"} {
		f := newFixture(t, WithPolicy(Policy{BaseDelay: time.Hour, MaxDelay: time.Hour, MaxElapsed: 2 * time.Hour}))
		f.now = time.Now()
		f.strikes(strike{last, 1, serverErr("40001")})
		short, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		begin, statement := t.Context(), short
		if whose == "BEGIN's" {
			begin, statement = short, t.Context()
		}
		tx, err := f.db.BeginTx(begin, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, err = tx.ExecContext(statement, "UPDATE last")
		if server, ok := err.(*drivertest.Error); !ok || !strings.Contains(server.Hint, "deadline comes before the next one") { //nolint:errorlint // programs do it like this
			t.Errorf("%s: the application gets %+v", whose, err)
		}
		err = tx.Commit()
		if !errors.Is(err, ErrExhausted) || !errors.Is(err, context.DeadlineExceeded) || sqlState(err) != "40001" || len(f.waits) != 0 {
			t.Errorf("%s: waited %v, Commit gives %v", whose, f.waits, err)
		}
	}
}

func TestAContextThatEndsDuringAReplayEndsIt(t *testing.T) {
	conflict := serverErr("40001")
	for _, where := range []string{"waiting", "BEGIN", "first", "rows", "middle"} {
		for _, whose := range []string{"the statement's", "BEGIN's", "BEGIN's in COMMIT"} {
			t.Run(where+"/"+whose, func(t *testing.T) {
				f := newFixture(t).likePostgres()
				f.db.SetMaxOpenConns(1)
				cause := errors.New("shutting down")
				ending, cancel := context.WithCancelCause(context.Background())
				defer cancel(nil)
				begin, statement := ending, t.Context()
				if whose == "the statement's" {
					begin, statement = t.Context(), ending
				}
				at := last
				if whose == "BEGIN's in COMMIT" {
					at = commit
				}
				blocked := make(chan struct{}, 1)
				blocking := func(call drivertest.Call, text string, n int) {
					r := f.On(call).Matching(text).At(n).Block()
					go func() {
						select {
						case <-r.Blocked():
							blocked <- struct{}{}
						case <-f.t.Context().Done():
						}
					}()
				}
				switch where {
				case "waiting":
					f.connector.config.wait = func(ctx context.Context, _ time.Duration) error {
						blocked <- struct{}{}
						<-ctx.Done()
						return contextError(ctx)
					}
				case "BEGIN":
					blocking(drivertest.Begin, "", 2)
				case "first":
					blocking(drivertest.Exec, "first", 2)
				case "rows":
					blocking(drivertest.RowsNext, "middle", 3) // two in the first attempt
				case "middle":
					blocking(drivertest.Query, "middle", 2)
				}
				f.strikes(strike{at, 1, conflict})
				tx, err := f.db.BeginTx(begin, nil)
				if err != nil {
					t.Fatal(err)
				}
				if err := steps(t.Context(), tx, "UPDATE first"); err != nil {
					t.Fatal(err)
				}
				rows, err := tx.QueryContext(t.Context(), "SELECT middle")
				if err != nil {
					t.Fatal(err)
				}
				if _, err := fetch(rows, -1); err != nil {
					t.Fatal(err)
				}
				go func() {
					<-blocked
					cancel(cause)
				}()
				if _, err = tx.ExecContext(statement, "UPDATE last"); err == nil {
					err = tx.Commit()
				}
				for _, want := range []error{context.Canceled, cause, conflict, ErrExhausted} {
					if !errors.Is(err, want) {
						t.Errorf("%v does not match %v", err, want)
					}
				}
				if err := tx.Rollback(); err != nil && !errors.Is(err, sql.ErrTxDone) {
					t.Errorf("Rollback gives %v", err)
				}
				if s := f.stats(); s.Exhausted != 1 || s.Hidden != 0 || s.Committed != 0 || f.OpenTxs() != 0 {
					t.Errorf("stats are %+v", s)
				}
				f.ClearRules()
				f.connector.config.wait = func(context.Context, time.Duration) error { return nil }
				if err := inTx(t.Context(), f.db, transfer); err != nil {
					t.Errorf("the next transaction gives %v", err)
				}
			})
		}
	}
}

func TestContextsOfEarlierStatementsAreNotUsedAgain(t *testing.T) {
	f := newFixture(t)
	f.strikes(strike{last, 1, serverErr("40001")}, strike{last, 2, serverErr("40001")})
	tx, err := f.db.BeginTx(drivertest.WithLabel(t.Context(), "BEGIN's"), nil)
	if err != nil {
		t.Fatal(err)
	}
	own, cancel := context.WithTimeout(drivertest.WithLabel(t.Context(), "first's"), time.Hour)
	if err := steps(own, tx, "UPDATE first"); err != nil {
		t.Fatal(err)
	}
	cancel()
	own, cancel = context.WithTimeout(drivertest.WithLabel(t.Context(), "last's"), time.Hour)
	if err := steps(own, tx, "UPDATE last"); err != nil {
		t.Fatal(err)
	}
	cancel() // as everybody does, which must not end what was replayed under it
	if err := tx.Commit(); err != nil {
		t.Error(err)
	}
	var got []string
	for _, e := range f.Entries() {
		if e.Call&(drivertest.Begin|drivertest.Exec|drivertest.Commit) != 0 {
			got = append(got, e.Call.String()+" "+e.Label)
			if e.ContextErr != nil {
				t.Errorf("%s", e)
			}
		}
	}
	want := "begin BEGIN's, exec first's, exec last's, begin BEGIN's, exec BEGIN's, exec last's, begin BEGIN's, exec BEGIN's, exec last's, commit BEGIN's"
	if got := strings.Join(got, ", "); got != want {
		t.Errorf("the contexts are those of\n%s, want\n%s", got, want)
	}
}

// watched is a context that never ends and counts who waits for its end.
type watched struct {
	context.Context
	done     chan struct{}
	watchers atomic.Int64
	ever     atomic.Int64
}

func (w *watched) Done() <-chan struct{} { return w.done }

// AfterFunc is called by package context in place of a goroutine.
func (w *watched) AfterFunc(func()) (stop func() bool) {
	w.watchers.Add(1)
	w.ever.Add(1)
	return func() bool {
		w.watchers.Add(-1)
		return true
	}
}

func TestAStatementsContextIsNotWatchedAfterItsCall(t *testing.T) {
	f := newFixture(t)
	f.strikes(strike{first, 1, serverErr("40001")}, strike{last, 2, serverErr("40001")}, strike{first, 3, serverErr("40001")})
	tx, err := f.db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"UPDATE first", "UPDATE last"} {
		w := &watched{Context: t.Context(), done: make(chan struct{})}
		if err := steps(w, tx, text); err != nil {
			t.Error(err)
		}
		if n := w.watchers.Load(); n != 0 || w.ever.Load() == 0 {
			t.Errorf("%s: %d of %d watchers are left", text, n, w.ever.Load())
		}
	}
	if err := tx.Commit(); err != nil {
		t.Error(err)
	}
}

func TestNothingIsReplayedInTheOtherModes(t *testing.T) {
	for _, mode := range []Mode{ModeClosure, ModeOff} {
		for _, at := range []spot{first, middle, last, commit} {
			f := newFixture(t, WithMode(mode))
			conflict := serverErr("40001")
			f.strikes(strike{at, 0, conflict})
			err := inTx(t.Context(), f.db, transfer)
			if !errors.Is(err, conflict) || len(f.attempts()) != 1 || f.stats().Unprotected[RefusedMode] != 1 || f.stats().Protected != 0 {
				t.Errorf("%s: the application gets %v", mode, err)
			}
		}
	}
	f := newFixture(t)
	conflict := serverErr("40001")
	f.strikes(strike{last, 0, conflict})
	err := inTx(ContextWithoutReplay(t.Context()), f.db, transfer)
	if !errors.Is(err, conflict) || len(f.attempts()) != 1 || f.stats().Unprotected[RefusedByContext] != 1 {
		t.Errorf("the application gets %v", err)
	}
}

// portrait is a value that drivers with types of their own may return or take.
type portrait struct{ Pixels [4]byte }

// refusals are what stands in the way of a replay, by reason.
var refusals = []struct {
	name    string
	reason  RefusalReason
	what    string // that the hint names
	options []Option
	do      func(ctx context.Context, f *fixture, c *sql.Conn, tx *sql.Tx) error
}{
	{"a session's advisory lock", RefusedAdvisoryLock, "pg_advisory_lock", nil, executing("SELECT pg_advisory_lock(1)")},
	{"an advisory lock let go", RefusedAdvisoryLock, "pg_advisory_unlock_all", nil, executing("SELECT pg_advisory_unlock_all()")},
	{"an advisory lock", RefusedAdvisoryXactLock, "pg_try_advisory_xact_lock", nil, executing("SELECT pg_try_advisory_xact_lock(1)")},
	{"PREPARE", RefusedSessionState, "PREPARE", nil, executing("PREPARE a AS SELECT 1")},
	{"WITH HOLD", RefusedSessionState, "WITH HOLD", nil, executing("DECLARE c CURSOR WITH HOLD FOR SELECT 1")},
	{"COMMIT PREPARED", RefusedPreparedTransaction, "COMMIT PREPARED", nil, executing("/* 2PC */COMMIT PREPARED 'a'")},
	{"setval", RefusedOutsideEffect, "setval", nil, executing("SELECT setval('s', 1)")},
	{"dblink", RefusedOutsideEffect, "public.dblink_exec", nil, executing("SELECT public.dblink_exec('x')")},
	{"a function denied by name", RefusedDeniedFunction, "audit", []Option{WithDeniedFunctions("audit")}, executing("SELECT audit(1)")},
	{"a function denied by pattern", RefusedDeniedFunction, "s.audit_it", []Option{WithDeniedFunctions("audit_*")}, executing("SELECT s.audit_it(1)")},
	{"a function denied in its schema", RefusedDeniedFunction, "billing.charge", []Option{WithDeniedFunctions("billing.charge")}, executing("SELECT billing.charge(1)")},
	{"a function denied and allowed", RefusedDeniedFunction, "setval", []Option{WithDeniedFunctions("setval"), WithAllowedFunctions("setval")}, executing("SELECT setval('s', 1)")},
	{"allowed, but not the other one", RefusedOutsideEffect, "dblink", []Option{WithAllowedFunctions("setval")}, executing("SELECT setval('s', 1), dblink('x')")},
	{"COPY of a file", RefusedServerCopy, "COPY", nil, executing("COPY t TO '/tmp/x'")},
	{"several statements with a savepoint", RefusedTxControl, "", nil, executing("UPDATE t SET a = 1; SAVEPOINT x")},
	{"an open string", RefusedUnreadable, "", nil, executing("UPDATE t SET a = 'x")},
	{"BEGIN inside", RefusedTxControl, "BEGIN", nil, executing("BEGIN")},
	{"a hazard prepared", RefusedAdvisoryLock, "pg_advisory_lock", nil, func(ctx context.Context, _ *fixture, _ *sql.Conn, tx *sql.Tx) error {
		s, err := tx.PrepareContext(ctx, "SELECT pg_advisory_lock($1)")
		if err != nil {
			return err
		}
		_, err = s.ExecContext(ctx, 1)
		return errors.Join(err, s.Close())
	}},
	{"the inner connection", RefusedRawConn, "", nil, func(_ context.Context, _ *fixture, c *sql.Conn, _ *sql.Tx) error {
		return c.Raw(func(driverConn any) error {
			if _, ok := RawConn(driverConn); !ok {
				return errors.New("it is not handed out")
			}
			return nil
		})
	}},
	{"too many statements", RefusedJournalFull, "", []Option{WithJournalLimit(1<<20, 2)}, executing("UPDATE a", "UPDATE b")},
	{"too many bytes", RefusedJournalFull, "", []Option{WithJournalLimit(1000, 100)}, executing("UPDATE a", "UPDATE "+strings.Repeat("b", 1000))},
	{"an argument that cannot be copied", RefusedArgument, "", nil, func(ctx context.Context, _ *fixture, _ *sql.Conn, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "UPDATE t SET a = $1", make(chan int))
		return err
	}},
	{"a value that cannot be compared", RefusedValue, "", nil, func(ctx context.Context, f *fixture, _ *sql.Conn, tx *sql.Tx) error {
		f.Rows("portrait", set(portrait{}))
		var v any
		return tx.QueryRowContext(ctx, "SELECT portrait").Scan(&v)
	}},
	{"a statement without an answer", RefusedInterrupted, "", nil, func(ctx context.Context, _ *fixture, _ *sql.Conn, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "UPDATE interrupted")
		if !errors.Is(err, context.DeadlineExceeded) {
			return fmt.Errorf("want the error of the context, got %w", err)
		}
		return nil
	}},
}

func executing(texts ...string) func(context.Context, *fixture, *sql.Conn, *sql.Tx) error {
	return func(ctx context.Context, _ *fixture, _ *sql.Conn, tx *sql.Tx) error { return steps(ctx, tx, texts...) }
}

// liberal is a driver that takes every argument and has one cursor at a time.
func liberal() *drivertest.Driver {
	return drivertest.New(drivertest.WithFeatures(drivertest.LibPQ), drivertest.WithTransactionState(pq.ErrInFailedTransaction),
		drivertest.WithValueChecker(func(nv *driver.NamedValue) error {
			if _, ok := nv.Value.(driver.Valuer); ok {
				return driver.ErrSkip
			}
			return nil
		}), drivertest.WithOneCursor())
}

func TestWhatCannotBeReplayedIsRefusedAndTold(t *testing.T) {
	for _, c := range refusals {
		for _, at := range []*spot{nil, &last, &commit} {
			name := "without a conflict"
			if at != nil {
				name = "conflict at " + at.calls.String()
			}
			t.Run(c.name+"/"+name, func(t *testing.T) {
				var events []Event
				o := newObservatory(t)
				options := append(o.options(), WithOnRetry(func(_ context.Context, e Event) { events = append(events, e) }))
				f := newFixtureOver(t, liberal(), append(options, c.options...)...).likePostgres()
				conflict := serverErr("40001")
				all := []strike{{spot{calls: drivertest.Exec, text: "interrupted"}, 0, context.DeadlineExceeded}}
				if at != nil {
					all = append(all, strike{*at, 0, conflict})
				}
				f.strikes(all...)
				ctx := t.Context()
				conn, err := f.db.Conn(ctx)
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = conn.Close() }()
				tx, err := conn.BeginTx(ctx, nil)
				if err != nil {
					t.Fatal(err)
				}
				if err := steps(ctx, tx, "UPDATE first"); err != nil {
					t.Fatal(err)
				}
				if err := c.do(ctx, f, conn, tx); err != nil {
					t.Fatal(err)
				}
				_, err = tx.ExecContext(ctx, "UPDATE last")
				commitErr := tx.Commit()
				if at == &commit {
					if err != nil {
						t.Fatal(err)
					}
					err = commitErr
				}
				var protected Stats
				if protected = f.stats(); protected.Unprotected[c.reason] != 1 || protected.Protected != 0 {
					t.Errorf("stats are %+v", protected)
				}
				spans, metrics := o.tree(), f.metrics(o)
				if got := metrics["pgretry.unprotected"]; got != "{refusal.reason="+string(c.reason)+":1}" {
					t.Errorf("pgretry.unprotected is %s", got)
				}
				if !strings.Contains(spans, "refusal.reason="+string(c.reason)) {
					t.Errorf("the spans do not tell the reason:\n%s", spans)
				}
				if at == nil {
					if err := errors.Join(err, commitErr); err != nil || len(events) != 0 || len(protected.Refusals) != 0 || metrics["pgretry.refusals"] != "" {
						t.Errorf("the application gets %v, events are %+v", err, events)
					}
					return
				}
				server, ok := err.(*drivertest.Error) //nolint:errorlint // programs do it like this
				if !ok || server.Code != "40001" || !strings.Contains(server.Hint, "["+string(c.reason)+"]") || !strings.Contains(server.Hint, c.what) {
					t.Errorf("the application gets %+v", err)
				}
				var retry *RetryError
				if at != &commit && (!errors.Is(commitErr, ErrRefused) || !errors.Is(commitErr, conflict) || !errors.As(commitErr, &retry) || retry.Refusal != c.reason || sqlState(commitErr) != "40001") {
					t.Errorf("Commit gives %v", commitErr)
				}
				if len(events) != 1 || events[0].Decision != DecisionRefused || events[0].Kind != KindReplay || events[0].Reason != c.reason || events[0].SQLState != "40001" || !strings.Contains(events[0].Limit, c.what) {
					t.Errorf("the events are %+v", events)
				}
				if protected.Refusals[c.reason] != 1 || protected.PlainConflicts != 1 || len(f.attempts()) != 1 || len(f.waits) != 0 {
					t.Errorf("after %d attempts the stats are %+v", len(f.attempts()), protected)
				}
				if got := metrics["pgretry.refusals"]; got != "{refusal.reason="+string(c.reason)+":1}" {
					t.Errorf("pgretry.refusals is %s", got)
				}
			})
		}
	}
}

// metrics returns the data points of our metrics by their names.
func (f *fixture) metrics(o *observatory) map[string]string {
	f.t.Helper()
	var data metricdata.ResourceMetrics
	if err := o.reader.Collect(f.t.Context(), &data); err != nil {
		f.t.Fatal(err)
	}
	all := map[string]string{}
	for _, scope := range data.ScopeMetrics {
		for _, m := range scope.Metrics {
			if scope.Scope.Name == scopeName {
				all[m.Name] = points(f.t, m)
			}
		}
	}
	return all
}

func TestWhatIsAllowedIsReplayed(t *testing.T) {
	for text, options := range map[string][]Option{
		"SELECT pg_advisory_xact_lock(1)":                   {WithAllowedFunctions("pg_advisory_xact_lock")},
		"SELECT pg_catalog.pg_try_advisory_xact_lock(1)":    {WithAllowedFunctions("pg_*")},
		"SELECT setval('s', 1), dblink_exec('x')":           {WithAllowedFunctions("setval", "dblink_*")},
		"SELECT charge(1)":                                  {WithDeniedFunctions("charge_all", "audit_*")},
		"SELECT other.charge(1)":                            {WithDeniedFunctions("billing.charge")},
		"SELECT nextval('s'), now(), random(), pg_notify()": nil,
		"CREATE TABLE t (a int)":                            nil,
		"SET LOCAL a = 1":                                   nil,
		"DECLARE c CURSOR FOR SELECT 1":                     nil,
		"LISTEN a":                                          nil,
		"DO $$ BEGIN END $$":                                nil,
		"UPDATE t SET a = 1; UPDATE t SET a = 2":            nil,
	} {
		f := newFixture(t, options...)
		f.strikes(strike{last, 1, serverErr("40001")})
		err := inTx(t.Context(), f.db, func(ctx context.Context, tx *sql.Tx) error { return steps(ctx, tx, text, "UPDATE last") })
		if err != nil || len(f.attempts()) != 2 {
			t.Errorf("%s: the application gets %v after %d attempts", text, err, len(f.attempts()))
		}
	}
}

func TestParametersOfTheDSNSayWhatIsReplayed(t *testing.T) {
	for _, c := range []struct {
		dsn, text string
		reason    RefusalReason
	}{
		{"pgretry_denied_functions=audit_*,billing.charge", "SELECT audit_it()", RefusedDeniedFunction},
		{"pgretry_denied_functions=audit_*,billing.charge", "SELECT billing.charge()", RefusedDeniedFunction},
		{"pgretry_denied_functions=audit_*,billing.charge", "SELECT other.charge()", ""},
		{"", "SELECT setval('s', 1)", RefusedOutsideEffect},
		{"pgretry_allowed_functions=setval", "SELECT setval('s', 1)", ""},
		{"pgretry_journal_statements=1", "UPDATE a", RefusedJournalFull},
		{"pgretry_journal_bytes=100", "UPDATE a", RefusedJournalFull},
		{"pgretry_mode=closure", "UPDATE a", RefusedMode},
	} {
		f := newFixture(t)
		if err := f.db.Close(); err != nil {
			t.Fatal(err)
		}
		connector, err := WrapDriver(f.Driver.Driver()).OpenConnector(c.dsn)
		if err != nil {
			t.Fatal(err)
		}
		f.use(f.Driver, connector.(*Connector))
		f.strikes(strike{last, 1, serverErr("40001")})
		err = inTx(t.Context(), f.db, func(ctx context.Context, tx *sql.Tx) error { return steps(ctx, tx, c.text, "UPDATE last") })
		if (err == nil) != (c.reason == "") || c.reason != "" && f.stats().Unprotected[c.reason] != 1 {
			t.Errorf("%s, %s: the application gets %v, stats are %+v", c.dsn, c.text, err, f.stats())
		}
	}
}

func TestACommitInADatabaseWithForeignTablesIsNotReplayed(t *testing.T) {
	for name, answer := range map[string]any{
		"there is one":         set("yes"),
		"nobody can tell":      serverErr("42501"),
		"the connection broke": driver.ErrBadConn,
		"there is none":        set(),
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			refused := name != "there is none"
			switch answer := answer.(type) {
			case drivertest.ResultSet:
				f.Rows("pg_catalog.pg_foreign_table", answer)
			case error:
				f.Fail(drivertest.Query, answer).Matching("pg_catalog.pg_foreign_table")
			}
			f.Fail(drivertest.Commit, serverErr("40001")).Times(1)
			err := inTx(t.Context(), f.db, func(ctx context.Context, tx *sql.Tx) error { return steps(ctx, tx, "UPDATE") })
			if !refused {
				if err != nil {
					t.Error(err)
				}
				return
			}
			server, ok := err.(*drivertest.Error) //nolint:errorlint // programs do it like this
			if !ok || !strings.Contains(server.Hint, "[foreign_tables]") || len(f.attempts()) != 1 || f.stats().Refusals[RefusedForeignTables] != 1 {
				t.Errorf("the application gets %+v, stats are %+v", err, f.stats())
			}
		})
	}
	// A statement's failure proves that no foreign server has committed.
	f := newFixture(t)
	f.Rows("pg_foreign_table", set("yes"))
	f.strikes(strike{last, 1, serverErr("40001")})
	if err := inTx(t.Context(), f.db, transfer); err != nil {
		t.Error(err)
	}
}

func TestAClosureWhoseCommitFailsWhereThereAreForeignTablesIsNotRunAgain(t *testing.T) {
	for name, run := range map[string]func(ctx context.Context, db *sql.DB, runs *int) error{
		"RunInTx": func(ctx context.Context, db *sql.DB, runs *int) error {
			return RunInTx(ctx, db, nil, func(ctx context.Context, tx *sql.Tx) error { *runs++; return transfer(ctx, tx) })
		},
		"Retry": func(ctx context.Context, db *sql.DB, runs *int) error {
			return Retry(ctx, func(ctx context.Context) error { *runs++; return inTx(ctx, db, transfer) })
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, c := range []struct {
				answer any
				ctx    context.Context
				runs   int
			}{
				{set("yes"), t.Context(), 1},
				{set("yes"), ContextWithIdempotence(t.Context()), 2},
				{serverErr("42501"), t.Context(), 1},
				{driver.ErrBadConn, t.Context(), 1},
				{set(), t.Context(), 2},
				{serverErr("42P01"), t.Context(), 2},
				{errors.New("a mock expects no query"), t.Context(), 2},
			} {
				f := newFixture(t)
				switch answer := c.answer.(type) {
				case drivertest.ResultSet:
					f.Rows("pg_catalog.pg_foreign_table", answer)
				case error:
					f.Fail(drivertest.Query, answer).Matching("pg_catalog.pg_foreign_table")
				}
				f.Fail(drivertest.Commit, serverErr("40001")).Times(1)
				runs := 0
				err := run(c.ctx, f.db, &runs)
				if runs != c.runs || (err == nil) != (runs == 2) || err != nil && (!errors.Is(err, ErrAlreadyCommitted) || sqlState(err) != "40001") {
					t.Errorf("%v: %v after %d runs", c.answer, err, runs)
				}
			}
			// A statement's failure proves that no foreign server has committed.
			f := newFixture(t)
			f.Rows("pg_foreign_table", set("yes"))
			f.strikes(strike{last, 1, serverErr("40001")})
			runs := 0
			if err := run(t.Context(), f.db, &runs); err != nil || runs != 2 {
				t.Errorf("%v after %d runs", err, runs)
			}
		})
	}
}

func TestTheSpansOfATransactionThatWasReplayedTwice(t *testing.T) {
	o := newObservatory(t)
	var events []string
	f := newFixture(t, append(o.options(), WithOnRetry(func(_ context.Context, e Event) {
		events = append(events, fmt.Sprintf("%s %s %d after %s, wait %s, %s", e.Kind, e.Decision, e.Attempt, e.SQLState, e.Wait, e.Name))
	}))...).likePostgres()
	f.connector.config.now = time.Now // spans have to begin one after the other
	f.strikes(strike{last, 1, deadlockErr}, strike{commit, 2, serverErr("40001")})
	if err := f.db.Ping(); err != nil {
		t.Fatal(err)
	}
	o.spans.Reset()
	ctx, caller := o.tracers.Tracer("test").Start(ContextWithName(t.Context(), "transfer"), "request")
	err := plainly(ctx, f.db, sql.LevelSerializable, func(ctx context.Context, tx *sql.Tx) error {
		return steps(ctx, tx, "UPDATE first", "UPDATE last")
	})
	caller.End()
	if err != nil {
		t.Fatal(err)
	}
	const start = "transaction.name=transfer transaction.isolation=Serializable"
	want := `
request
  pgretry.attempt ` + start + ` attempt=1 attempt.kind=replay outcome=retried statements=2 backoff=0.01 class=retryable error.type=40P01 db.response.status_code=40P01 ERROR:retryable event:pgretry.deadlock
    sql.conn.begin_tx
    sql.conn.exec
    sql.conn.exec error.type=40P01 db.response.status_code=40P01
    sql.tx.rollback
  pgretry.attempt ` + start + ` attempt=2 attempt.kind=replay outcome=retried statements=2 backoff=0.02 class=retryable error.type=40001 db.response.status_code=40001 ERROR:retryable link:1
    sql.conn.begin_tx
    sql.conn.exec
    sql.conn.exec
    sql.tx.commit error.type=40001 db.response.status_code=40001
  pgretry.attempt ` + start + ` attempt=3 attempt.kind=replay outcome=committed statements=2 link:2
    sql.conn.begin_tx
    sql.conn.exec
    sql.conn.exec
    sql.tx.commit
`
	got := "\n" + o.tree()
	got = withoutLines(got, "sql.conn.query") // the look for foreign tables
	if got != want {
		t.Errorf("the spans are%s\nwant%s", got, want)
	}
	if want := "replay retried 1 after 40P01, wait 10ms, transfer; replay retried 2 after 40001, wait 20ms, transfer"; strings.Join(events, "; ") != want {
		t.Errorf("the events are %s, want %s", events, want)
	}
	metrics := f.metrics(o)
	for name, want := range map[string]string{
		"pgretry.transaction.duration": "{outcome=committed:1 bounds 9}",
		"pgretry.transaction.attempts": "{outcome=committed:1 sum 3}",
		"pgretry.retries":              "{db.response.status_code=40001,class=retryable,mode=replay:1}{db.response.status_code=40P01,class=retryable,mode=replay:1}",
		"pgretry.backoff.duration":     "{:2 bounds 9}",
		"pgretry.refusals":             "",
		"pgretry.unprotected":          "",
	} {
		if metrics[name] != want {
			t.Errorf("%s is %s, want %s", name, metrics[name], want)
		}
	}
}

// withoutLines removes the lines with the word in them.
func withoutLines(text, word string) string {
	lines := strings.SplitAfter(text, "\n")
	return strings.Join(slices.DeleteFunc(lines, func(line string) bool { return strings.Contains(line, word) }), "")
}

func TestTheSpansOfATransactionThatIsGivenUp(t *testing.T) {
	for _, c := range []struct {
		name    string
		outcome string
		event   string
		strikes []strike
		changes bool
		options []Option
	}{
		{
			name: "diverged", outcome: "diverged", changes: true, strikes: []strike{{last, 1, serverErr("40001")}},
			event: "replay diverged 2: statement 0 (SELECT, fingerprint ",
		},
		{
			name: "exhausted", outcome: "exhausted", strikes: []strike{{last, 0, serverErr("40001")}}, options: []Option{WithPolicy(Policy{MaxAttempts: 2})},
			event: "replay exhausted 2: MaxAttempts is 2",
		},
		{
			name: "BEGIN impossible", outcome: "refused", strikes: []strike{{last, 1, serverErr("40001")}, {spot{calls: drivertest.Begin}, 2, serverErr("28000")}},
			event: "replay refused 2: BEGIN failed",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := newObservatory(t)
			var events []string
			f := newFixture(t, append(append(o.options(), c.options...), WithOnRetry(func(_ context.Context, e Event) {
				events = append(events, fmt.Sprintf("%s %s %d: %s", e.Kind, e.Decision, e.Attempt, e.Limit))
			}))...)
			f.connector.config.now = time.Now
			if c.changes {
				f.showing(sets(set(1)), sets(set(2)))
			}
			f.strikes(c.strikes...)
			ctx, caller := o.tracers.Tracer("test").Start(t.Context(), "request")
			_ = inTx(ctx, f.db, func(ctx context.Context, tx *sql.Tx) error {
				var n int
				if err := tx.QueryRowContext(ctx, "SELECT shown").Scan(&n); err != nil {
					return err
				}
				return steps(ctx, tx, "UPDATE last")
			})
			caller.End()
			got := withoutLines(o.tree(), "sql.")
			statements := "1"
			if c.name == "exhausted" {
				statements = "2"
			}
			refusal := ""
			if c.outcome == "refused" {
				statements = "0"
				refusal = " refusal.reason=connection_lost"
			}
			const failed = " class=retryable error.type=40001 db.response.status_code=40001 ERROR:retryable"
			want := "request\n" +
				"  pgretry.attempt attempt=1 attempt.kind=replay outcome=retried statements=2 backoff=0.01" + failed + "\n" +
				"  pgretry.attempt attempt=2 attempt.kind=replay outcome=" + c.outcome + " statements=" + statements + refusal + failed + " link:1\n"
			if got != want {
				t.Errorf("the spans are\n%s\nwant\n%s", got, want)
			}
			if len(events) != 2 || !strings.HasPrefix(events[1], c.event) {
				t.Errorf("the events are %q, want %q", events, c.event)
			}
			if got := f.metrics(o)["pgretry.transaction.duration"]; got != "{outcome="+c.outcome+":1 bounds 9}" {
				t.Errorf("the duration is %s", got)
			}
		})
	}
}

func TestAPanicDuringAReplayLeavesATransactionThatCanBeRolledBack(t *testing.T) {
	for name, panics := range map[string]func(f *fixture){
		"the driver's": func(f *fixture) { f.On(drivertest.Begin).At(2).Panic("no") },
		"the hook's": func(f *fixture) {
			f.connector.config.onRetry = func(_ context.Context, e Event) {
				if e.Decision == DecisionExhausted {
					panic("no")
				}
			}
			f.connector.config.policy.MaxAttempts = 1
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			panics(f)
			f.Fail(drivertest.Exec, serverErr("40001")).Times(1)
			// Should the context end instead, Rollback panics on database/sql's own
			// goroutine and takes the process with it.
			tx, err := f.db.BeginTx(context.Background(), nil)
			if err != nil {
				t.Fatal(err)
			}
			if v := recovering(func() { _, _ = tx.ExecContext(t.Context(), "UPDATE") }); v != "no" {
				t.Errorf("ExecContext panics with %v", v)
			}
			if v := recovering(func() { _ = tx.Rollback() }); v != nil {
				t.Errorf("Rollback panics: %v", v)
			}
		})
	}
}

func TestAConflictOfCommitAfterTheContextsEndIsCounted(t *testing.T) {
	o := newObservatory(t)
	f := newFixture(t, o.options()...).likePostgres()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	f.On(drivertest.Commit).Do(func(*drivertest.Invocation) error {
		cancel()
		return serverErr("40001")
	})
	err := inTx(ctx, f.db, func(ctx context.Context, tx *sql.Tx) error { return steps(ctx, tx, "UPDATE") })
	s := f.stats()
	if sqlState(err) != "40001" || s.Plain != 1 || s.PlainConflicts != 1 || !strings.Contains(o.tree(), "pgretry.attempt") {
		t.Errorf("the application gets %v, stats are %+v, spans are\n%s", err, s, o.tree())
	}
}

func TestTheHookRunsAfterTheAttemptIsRolledBack(t *testing.T) {
	var f *fixture
	f = newFixture(t, WithOnRetry(func(context.Context, Event) {
		if n := f.OpenTxs(); n != 0 {
			t.Errorf("%d transactions are open", n)
		}
	}))
	f.Fail(drivertest.Exec, serverErr("40001")).Times(1)
	if err := inTx(t.Context(), f.db, func(ctx context.Context, tx *sql.Tx) error { return steps(ctx, tx, "UPDATE") }); err != nil {
		t.Error(err)
	}
}

func TestAConflictUnderAContextThatHasEndedMatchesBoth(t *testing.T) {
	f := newFixture(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	f.On(drivertest.Exec).Do(func(*drivertest.Invocation) error {
		cancel()
		return serverErr("40001")
	})
	tx, err := f.db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = tx.ExecContext(ctx, "UPDATE")
	if !errors.Is(err, context.Canceled) || sqlState(err) != "40001" {
		t.Errorf("the application gets %v", err)
	}
	_ = tx.Rollback()
	if s := f.stats(); s.PlainConflicts != 1 {
		t.Errorf("stats are %+v", s)
	}
}
