package pgretry

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lib/pq"

	"github.com/pgretry/pgretry/internal/drivertest"
	"github.com/pgretry/pgretry/internal/faultproxy"
	"github.com/pgretry/pgretry/internal/pgserver"
	"github.com/pgretry/pgretry/internal/pgserver/pgtest"
)

// asked does something to the first request whose text contains this.
func (r *relayed) asked(text string, action faultproxy.Action) {
	var struck atomic.Bool
	r.proxy.SetRule(func(m faultproxy.Message) faultproxy.Action {
		if asks(m, text) && struck.CompareAndSwap(false, true) {
			return action
		}
		return faultproxy.Action{}
	})
}

// answered cuts the connection before the first message of that type in the answer to a
// text of which this is a part: the server has done what it was asked for. Before that it
// calls the functions.
func (r *relayed) answered(text string, kind byte, before ...func()) {
	var conn atomic.Int64
	var struck atomic.Bool
	r.proxy.SetRule(func(m faultproxy.Message) faultproxy.Action {
		if asks(m, text) {
			conn.Store(int64(m.Conn))
		}
		if m.Direction != faultproxy.ToClient || m.Type != kind || conn.Load() != int64(m.Conn) || !struck.CompareAndSwap(false, true) {
			return faultproxy.Action{}
		}
		for _, do := range before {
			do()
		}
		return faultproxy.Action{Kind: faultproxy.Cut}
	})
}

// commandComplete ends the answer to a statement, readyForQuery that to a text.
const (
	commandComplete = 'C'
	readyForQuery   = 'Z'
)

const (
	pays    = `UPDATE account SET balance = balance + 1 WHERE id = 1`
	pays2   = `UPDATE account SET balance = balance + 1 WHERE id = 2`
	balance = `SELECT balance FROM account WHERE id = 1`
)

// failsOnce makes the first COMMIT of a payment fail with an SQLSTATE.
func failsOnce(sqlstate string) string {
	return `CREATE SEQUENCE tries;
		CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			IF nextval('tries') = 1 THEN RAISE SQLSTATE '` + sqlstate + `'; END IF; RETURN NULL; END $$;
		CREATE CONSTRAINT TRIGGER fails AFTER UPDATE ON account DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION fail()`
}

// isUnknown checks the error of what nobody can tell the fate of.
func isUnknown(t *testing.T, err error) {
	t.Helper()
	var unknown *CommitUnknownError
	if !errors.As(err, &unknown) {
		t.Errorf("it gives %v, want a CommitUnknownError", err)
	}
	neverTells(t, err)
}

func TestACommitIsNotLookedForByTheIDOfAnEarlierAttempt(t *testing.T) {
	f := enterRelayed(t, nil, bank, failsOnce("40001"))
	connector := connectorOf(f.db)
	var asked, sent atomic.Int64
	var struck atomic.Bool
	f.proxy.SetRule(func(m faultproxy.Message) faultproxy.Action {
		switch {
		case strings.HasPrefix(m.SQL(), "SELECT pg_catalog.txid_current_if_assigned"):
			asked.Add(1)
		case commits(m) && sent.Add(1) == 1:
			connector.askCost.Store(int64(time.Hour)) // and the second does not
		case m.Direction == faultproxy.ToClient && m.Type == commandComplete && sent.Load() == 2 && struck.CompareAndSwap(false, true):
			return faultproxy.Action{Kind: faultproxy.Cut}
		}
		return faultproxy.Action{}
	})
	s := f.begin(sql.LevelDefault)
	s.does(pays)
	connector.askCost.Store(0) // so that the first attempt asks
	isUnknown(t, s.Commit())
	f.is("101", balance)
	if asked.Load() != 1 || sent.Load() != 2 || !struck.Load() {
		t.Errorf("the id was asked for %d times, COMMIT sent %d times, its answer lost: %t", asked.Load(), sent.Load(), struck.Load())
	}
}

func TestAStatementAfterABlockThatNeverWasOrHasEndedIsNotCalledRolledBack(t *testing.T) {
	for _, c := range []struct {
		name   string
		setup  string
		before []string // the last of them fails
	}{
		{"a COMMIT that failed", failsOnce("23505"), []string{"BEGIN", pays2, "COMMIT"}},
		{"a BEGIN that could not be parsed", "", []string{"BEGIN ISOLATION LEVEL SNAPSHOT"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := enterRelayed(t, nil, bank, c.setup)
			own, err := f.db.Conn(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = own.Close() }() // it is lost
			for i, text := range c.before {
				if _, err := own.ExecContext(t.Context(), text); (err != nil) != (i == len(c.before)-1) {
					t.Fatalf("%s gives %v", text, err)
				}
			}
			f.answered(pays, commandComplete)
			_, err = own.ExecContext(t.Context(), pays)
			isLost(t, err, false)
			f.is("101", balance)
		})
	}
}

func TestALoneWriteWhoseOwnContextEndedIsNotRunAgain(t *testing.T) {
	for _, c := range []struct {
		name string
		exec func(ctx, own context.Context, db *sql.DB) error
	}{
		{"on a database", func(_, own context.Context, db *sql.DB) error {
			_, err := db.ExecContext(own, pays)
			return err
		}},
		{"on a connection", func(ctx, own context.Context, db *sql.DB) error {
			c, err := db.Conn(ctx)
			if err != nil {
				return err
			}
			defer func() { _ = c.Close() }() // it is lost
			_, err = c.ExecContext(own, pays)
			return err
		}},
	} {
		for _, swallowed := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/swallowed %t", c.name, swallowed), func(t *testing.T) {
				f := enterRelayed(t, nil, bank,
					`CREATE FUNCTION conflict() RETURNS int LANGUAGE plpgsql AS $$ BEGIN RAISE serialization_failure; END $$`)
				ran := 0
				err := Retry(t.Context(), func(ctx context.Context) error {
					if ran++; ran > 1 {
						return nil
					}
					own, cancel := context.WithCancel(ctx)
					defer cancel()
					f.answered(pays, commandComplete, cancel)
					err := c.exec(ctx, own, f.db)
					if tested.contextWins {
						isCanceled(t, err)
					} else {
						isLost(t, err, false)
					}
					if swallowed {
						_, err = f.db.ExecContext(ctx, `SELECT conflict()`)
					}
					return err
				})
				if ran != 1 || err == nil || swallowed != errors.Is(err, ErrAlreadyCommitted) {
					t.Errorf("it ran %d times and gives %v", ran, err)
				}
				f.is("101", balance)
			})
		}
	}
}

// The test's own limit is what notices a call that does not return.
func TestNobodyWaitsForASilentServerAfterTheContext(t *testing.T) {
	for where, silent := range map[string]func(faultproxy.Message) bool{
		"the greeting":       func(m faultproxy.Message) bool { return m.Type == 0 },
		"the first question": func(m faultproxy.Message) bool { return strings.Contains(m.SQL(), "CASE WHEN false THEN") },
	} {
		for _, c := range []struct {
			name string
			cut  func(m faultproxy.Message) bool
			run  func(ctx context.Context, db *sql.DB) error
			want func(t *testing.T, err error)
		}{
			{
				name: "BEGIN over another connection",
				cut:  func(faultproxy.Message) bool { return false },
				run: func(ctx context.Context, db *sql.DB) error {
					db.SetMaxIdleConns(0)
					return inTx(ctx, db, func(context.Context, *sql.Tx) error { return nil })
				},
				want: isAnError,
			},
			{
				name: "a replay",
				cut:  func(m faultproxy.Message) bool { return m.SQL() == pays },
				run: func(ctx context.Context, db *sql.DB) error {
					return inTx(ctx, db, func(ctx context.Context, tx *sql.Tx) error {
						_, err := tx.ExecContext(ctx, pays)
						return err
					})
				},
				want: isCanceled,
			},
			{
				name: "the fate of COMMIT",
				cut:  commits,
				run: func(ctx context.Context, db *sql.DB) error {
					return inTx(ctx, db, func(ctx context.Context, tx *sql.Tx) error {
						_, err := tx.ExecContext(ctx, pays)
						return err
					})
				},
				want: isUnknown,
			},
		} {
			t.Run(c.name+"/"+where, func(t *testing.T) {
				f := enterRelayed(t, []Option{WithCommitOutcome(CommitResolve)}, bank)
				if err := f.db.PingContext(t.Context()); err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				opened := f.proxy.Accepted()
				f.proxy.SetRule(func(m faultproxy.Message) faultproxy.Action {
					switch {
					case m.Conn <= opened && c.cut(m):
						return faultproxy.Action{Kind: faultproxy.Cut, After: true}
					case m.Conn > opened && silent(m):
						cancel()
						return faultproxy.Action{Kind: faultproxy.Stall}
					}
					return faultproxy.Action{}
				})
				c.want(t, c.run(ctx, f.db))
				if ctx.Err() == nil {
					t.Error("no other connection was tried")
				}
			})
		}
	}
}

func isAnError(t *testing.T, err error) {
	t.Helper()
	if err == nil {
		t.Error("there is no error")
	}
}

func isCanceled(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, context.Canceled) {
		t.Errorf("it gives %v", err)
	}
}

func TestConnectingToAListenerThatSaysNothingEndsWithTheContext(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	db, err := tested.open("postgres://u@" + listener.Addr().String() + "/d?sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	accepted := make(chan net.Conn, 1)
	go func() {
		c, err := listener.Accept()
		if err != nil {
			t.Error(err)
		}
		accepted <- c
		if _, err := c.Read(make([]byte, 1)); err != nil { // it is dialled by now
			t.Error(err)
		}
		cancel()
	}()
	isCanceled(t, db.PingContext(ctx))
	for _, c := range []interface{ Close() error }{<-accepted, listener, db} {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestTheProcessOfALostTransactionIsEndedBehindABlackHole(t *testing.T) {
	f := enterRelayed(t, nil, bank)
	s := f.begin(sql.LevelDefault)
	s.does(pays)
	f.asked(pays2, faultproxy.Action{Kind: faultproxy.BlackHole})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second) // it holds account 1
	defer cancel()
	if _, err := s.ExecContext(ctx, pays2); err != nil {
		t.Fatal(err)
	}
	s.commits()
	f.is("101", balance)
	f.is("101", `SELECT balance FROM account WHERE id = 2`)
}

func TestAProcessThatAPoolerHasGivenToSomebodyElseIsLeftAlone(t *testing.T) {
	for name, ago := range map[string]time.Duration{"ours was before": time.Hour, "ours came later": -time.Hour} {
		t.Run(name, func(t *testing.T) {
			f := enter(t, nil, bank)
			other, err := f.plain.BeginTx(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = other.Rollback() }() // it may have ended
			var pid, started string
			if err := other.QueryRowContext(t.Context(), `SELECT pid::text, extract(epoch FROM backend_start)::text
				FROM pg_stat_activity WHERE pid = pg_backend_pid()`).Scan(&pid, &started); err != nil {
				t.Fatal(err)
			}
			connector := connectorOf(f.db)
			then := connector.config.now().Add(-ago)
			connector.orphaned(orphan{origin{pid: pid, started: started, direct: true}, then, then})
			f.begin(sql.LevelDefault).commits()
			if connector.orphanCount.Load() != 0 {
				t.Error("nobody looked for it")
			}
			if _, err := other.ExecContext(t.Context(), pays); err != nil {
				t.Error(err)
			}
			if err := other.Commit(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestAReadInABlockThatOnlyTheServerKnowsIsNotFetchedAgainOverAnotherSession(t *testing.T) {
	f := enterRelayed(t, nil, bank)
	s := f.begin(sql.LevelDefault)
	s.does(`COMMIT; BEGIN`)
	s.does(pays)
	var reading, struck atomic.Bool
	f.proxy.SetRule(func(m faultproxy.Message) faultproxy.Action {
		if strings.Contains(m.SQL(), "FROM account ORDER") {
			reading.Store(true)
		}
		if reading.Load() && m.Direction == faultproxy.ToClient && m.Type == 'D' && struck.CompareAndSwap(false, true) {
			return faultproxy.Action{Kind: faultproxy.Cut, After: true}
		}
		return faultproxy.Action{}
	})
	rows, err := s.QueryContext(t.Context(), `SELECT id FROM account ORDER BY id`)
	if err != nil {
		t.Fatal(err)
	}
	_, err = fetch(rows, -1)
	isLost(t, err, true)
	if _, err := s.ExecContext(t.Context(), pays2); err == nil {
		t.Error("a statement succeeds whose block is gone")
	}
	if err := s.Commit(); err == nil {
		t.Error("COMMIT succeeds")
	}
	f.is("100,100", `SELECT string_agg(balance::text, ',') FROM account WHERE id < 3`)
}

func TestRowsOfATextThatCommitsAreOfUnknownFateWithoutAnAnswer(t *testing.T) {
	for _, text := range []string{
		`COMMIT`,
		`COMMIT AND CHAIN`,
		`UPDATE account SET balance = 0 WHERE id = 2 RETURNING balance; COMMIT`,
		`UPDATE account SET balance = 0 WHERE id = 2 RETURNING balance; COMMIT; SELECT 1`,
		`SELECT balance FROM account; COMMIT`,
	} {
		t.Run(text, func(t *testing.T) {
			f := enterRelayedOn(t, withParameters(t, pgtest.DSN(t), tested.severalTexts), nil, bank)
			s := f.begin(sql.LevelDefault)
			s.does(pays)
			f.answered(text, readyForQuery)
			rows, err := s.QueryContext(t.Context(), text)
			if err == nil {
				for more := true; more; more = rows.NextResultSet() {
					for rows.Next() {
						continue
					}
				}
				err = rows.Err()
				_ = rows.Close() // says the same, or nothing
			}
			isUnknown(t, err)
			isUnknown(t, s.Commit())
			f.is("101", balance)
		})
	}
}

// watchers counts the goroutines in which lib/pq waits for the end of a context.
func watchers() int {
	stacks := make([]byte, 1<<20)
	for {
		if n := runtime.Stack(stacks, true); n < len(stacks) {
			return strings.Count(string(stacks[:n]), "created by github.com/lib/pq.(*conn).watchCancel")
		}
		stacks = make([]byte, 2*len(stacks))
	}
}

// watch returns how many watchers are left when those that are ending have ended.
func watch() (left int) {
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); runtime.Gosched() {
		if left = watchers(); left == 0 {
			break
		}
	}
	return left
}

func TestNobodyWatchesTheContextForALostSession(t *testing.T) {
	const losses = 20
	f := enterRelayed(t, []Option{WithPolicy(Policy{})}, bank)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	connectorOf(f.db).config.wait = func(context.Context, time.Duration) error { return nil }
	for range losses {
		connectorOf(f.db).budget.spent.Store(0)
		f.asked(pays, faultproxy.Action{Kind: faultproxy.Cut})
		err := inTx(ctx, f.db, func(_ context.Context, tx *sql.Tx) error {
			_, err := tx.ExecContext(t.Context(), pays)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	f.is(fmt.Sprint(100+losses), balance)
	if n := f.stats().Reconnects; n != losses {
		t.Errorf("the connection was replaced %d times", n)
	}
	if n := watch(); n != 0 {
		t.Errorf("%d are left", n)
	}
	accepted := f.proxy.Accepted()
	cancel()
	watch()
	if err := f.db.PingContext(t.Context()); err != nil || f.proxy.Accepted() != accepted {
		t.Errorf("Ping gives %v, the end of the context has opened %d connections", err, f.proxy.Accepted()-accepted)
	}
}

func TestATransactionWithoutAnIDIsReplayedUnlessTriggersMayHaveToldOfIt(t *testing.T) {
	for _, told := range []bool{false, true} {
		t.Run(fmt.Sprintf("told %t", told), func(t *testing.T) {
			statements := []string{bank}
			if told {
				statements = append(statements, `CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
						PERFORM pg_notify('payments', clock_timestamp()::text); RETURN NULL; END $$;
					CREATE TRIGGER tells AFTER UPDATE ON account FOR EACH STATEMENT EXECUTE FUNCTION tell()`)
			}
			f := enterRelayed(t, []Option{WithCommitOutcome(CommitResolve)}, statements...)
			heard := f.listens("payments")
			s := f.begin(sql.LevelDefault)
			s.does(`UPDATE account SET balance = 0 WHERE id = 99`)
			f.answered("COMMIT", commandComplete)
			err := s.Commit()
			if stats := f.stats(); !told {
				if err != nil || stats.ResolvedCommits["aborted"] != 1 || stats.Reconnects != 1 {
					t.Errorf("COMMIT gives %v, statistics are %+v", err, stats)
				}
			} else if isUnknown(t, err); stats.Reconnects != 0 {
				t.Errorf("statistics are %+v", stats)
			}
			if n, want := heard(), map[bool]int{true: 1}[told]; n != want {
				t.Errorf("%d notifications, want %d", n, want)
			}
		})
	}
}

// listens returns what counts the notifications of a channel until then.
func (a *arena) listens(channel string) (heard func() int) {
	a.Helper()
	connector, err := pq.NewConnector(a.dsn)
	if err != nil {
		a.Fatal(err)
	}
	notifications := make(chan *pq.Notification, 100)
	db := sql.OpenDB(pq.ConnectorWithNotificationHandler(connector, func(n *pq.Notification) { notifications <- n }))
	db.SetMaxOpenConns(1)
	a.Cleanup(func() {
		if err := db.Close(); err != nil {
			a.Error(err)
		}
	})
	if _, err := db.ExecContext(a.Context(), `LISTEN `+channel); err != nil {
		a.Fatal(err)
	}
	return func() (n int) {
		a.Helper()
		// They come in the order of the commits.
		if _, err := db.ExecContext(a.Context(), `NOTIFY `+channel+`, 'last'`); err != nil {
			a.Fatal(err)
		}
		for {
			select {
			case got := <-notifications:
				if got.Extra == "last" {
					return n
				}
				n++
			default:
				// The next answer brings them, if this one did not.
				if err := db.PingContext(a.Context()); err != nil {
					a.Fatal(err)
				}
			}
		}
	}
}

func TestWhatACommitInsideATextHasCommittedIsNotCalledRolledBackWhenTheConnectionIsLost(t *testing.T) {
	f := enterRelayed(t, nil, bank)
	s := f.begin(sql.LevelDefault)
	s.does(pays)
	s.fails("22012", `COMMIT; SELECT 1/0`)
	f.asked(pays2, faultproxy.Action{Kind: faultproxy.Cut})
	_, err := s.ExecContext(t.Context(), pays2)
	isUnknown(t, err)
	isUnknown(t, s.Commit())
	f.is("101", balance)
}

func TestASessionWhoseSettingsWereUpdatedIsNotReplaced(t *testing.T) {
	const sets = `UPDATE pg_settings SET setting = 'updated' WHERE name = 'application_name'`
	for name, sets := range map[string]func(*relayed){
		"before the transaction": func(f *relayed) {
			if _, err := f.db.ExecContext(t.Context(), sets); err != nil {
				t.Fatal(err)
			}
		},
		"in an earlier transaction": func(f *relayed) {
			s := f.begin(sql.LevelDefault)
			s.does(sets)
			s.commits()
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := enterRelayed(t, nil, bank)
			f.db.SetMaxOpenConns(1)
			sets(f)
			s := f.begin(sql.LevelDefault)
			if got := s.sees(`SHOW application_name`); got != "updated" {
				t.Errorf("it has no effect: %q", got)
			}
			f.asked(pays, faultproxy.Action{Kind: faultproxy.Cut})
			_, err := s.ExecContext(t.Context(), pays)
			isLost(t, err, true)
			var lost *ConnectionLostError
			if errors.As(err, &lost) && lost.Refusal != RefusedSessionState {
				t.Errorf("it gives %v", err)
			}
			if err := s.Commit(); err == nil || f.stats().Reconnects != 0 {
				t.Errorf("COMMIT gives %v, statistics are %+v", err, f.stats())
			}
		})
	}
}

// lonely is a server whose commits wait for a standby that never comes, where a session
// asks for that.
func lonely(t *testing.T) (dsn string) {
	t.Helper()
	server, err := pgserver.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	admin, err := tested.plainly(server.DSN())
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{
		bank, `ALTER SYSTEM SET synchronous_standby_names = 'nobody'`, `SELECT pg_reload_conf()`,
	} {
		if _, err := admin.ExecContext(t.Context(), text); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
	}
	// The setting has come into force when a commit waits.
	patient := server.DSN() + "&synchronous_commit=on"
	for waits := false; !waits; {
		waits = commitsWait(t, patient, admin)
	}
	if err := admin.Close(); err != nil {
		t.Error(err)
	}
	return patient
}

// commitsWait commits once, and ends the wait for the standby if there is one.
func commitsWait(t *testing.T, dsn string, admin *sql.DB) (waits bool) {
	t.Helper()
	db, err := tested.plainly(dsn)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := db.ExecContext(t.Context(), `UPDATE account SET balance = 100 WHERE id = 4`)
		done <- errors.Join(err, db.Close())
	}()
	for {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			return waits
		default:
			var n int
			if err := admin.QueryRowContext(t.Context(), endsWait).Scan(&n); err != nil {
				t.Fatal(err)
			}
			waits = waits || n > 0
		}
	}
}

const endsWait = `SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query NOT LIKE '%emit_message%'`

func TestACommitThatNoStandbyHasIsUnknownThoughItsIDIsCommitted(t *testing.T) {
	dsn := lonely(t)
	const waiting = `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND lower(query) = 'commit')`
	for _, c := range []struct {
		name    string
		timeout time.Duration // of the search
		while   func(f *relayed, cancel func())
	}{
		{"cut, and its wait cancelled", 2 * time.Second, func(f *relayed, _ func()) {
			f.proxy.CutAll(true)
			if tested.cancelsLost {
				f.read(endsWait) // if it has not been ended yet
			} else {
				f.is("1", endsWait)
			}
		}},
		{"hurried by the end of its context", time.Minute, func(_ *relayed, cancel func()) { cancel() }},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := enterRelayedOn(t, dsn, []Option{WithCommitOutcome(CommitResolve), WithResolveTimeout(c.timeout)})
			before := f.read(balance)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			tx, err := f.db.BeginTx(ctx, nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := tx.ExecContext(t.Context(), pays); err != nil {
				t.Fatal(err)
			}
			done := make(chan error, 1)
			go func() { done <- tx.Commit() }()
			f.until(waiting)
			c.while(f, cancel)
			isUnknown(t, <-done)
			// On this server it is there.
			f.until(`SELECT balance = $1::int + 1 FROM account WHERE id = 1`, before)
		})
	}
}

func TestAQuestionThatWasCancelledIsAskedOfTheNextConnection(t *testing.T) {
	for state, want := range map[string]int{"57014": 3, "53200": 3, "42501": 1, "42883": 1, "0A000": 1} {
		t.Run(state, func(t *testing.T) {
			f := newFixture(t, WithCommitOutcome(CommitResolve))
			r := f.keeps(nil)
			r.errs[asksOrigin] = serverErr(state)
			f.db.SetMaxIdleConns(0)
			for range 3 {
				if err := inTx(t.Context(), f.db, writes); err != nil {
					t.Fatal(err)
				}
			}
			if n := r.count(asksOrigin); n != want {
				t.Errorf("it was asked %d times, want %d", n, want)
			}
			delete(r.errs, asksOrigin)
			f.Fail(drivertest.Commit, errConnReset).Drops().Times(1)
			err := inTx(t.Context(), f.db, writes)
			if want == 1 {
				isUnknown(t, err)
			} else if err != nil || f.stats().ResolvedCommits["committed"] != 1 {
				t.Errorf("COMMIT gives %v, statistics are %+v", err, f.stats())
			}
		})
	}
}
