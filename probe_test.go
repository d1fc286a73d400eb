package pgretry

import (
	"context"
	"database/sql"
	"fmt"
	"net/url"
	"slices"
	"testing"
	"time"

	"github.com/lib/pq"

	"github.com/pgretry/pgretry/internal/pgserver/pgtest"
)

// enterProbes is an arena without a detector in which transactions of the kind of row
// deadlock.
func enterProbes(t *testing.T, options ...Option) *arena {
	t.Helper()
	return enterProbesOn(t, pgtest.DSN(t), options...)
}

func enterProbesOn(t *testing.T, dsn string, options ...Option) *arena {
	t.Helper()
	a := enterOn(t, dsn, append([]Option{WithContention(ContentionProbes)}, options...), bank)
	remember(a.db, "", row(1))
	return a
}

// conflict is what makes a closure run again.
func conflict() error { return &pq.Error{Code: "40001", Message: "made up"} }

// timeouts runs a closure that always meets a conflict and returns the lock_timeouts that
// its attempts had.
func (a *arena) timeouts(ctx context.Context, before []string, options ...RunOption) (seen []string) {
	a.Helper()
	err := RunInTx(ctx, a.db, nil, func(ctx context.Context, tx *sql.Tx) error {
		for _, text := range before {
			if _, err := tx.ExecContext(ctx, text); err != nil {
				return err
			}
		}
		if _, err := tx.ExecContext(ctx, row(1)); err != nil {
			return err
		}
		var timeout string
		if err := tx.QueryRowContext(ctx, `SHOW lock_timeout`).Scan(&timeout); err != nil {
			return err
		}
		seen = append(seen, timeout)
		return conflict()
	}, options...)
	if sqlState(err) != "40001" {
		a.Errorf("the closure ends with %v", err)
	}
	return seen
}

// quickly is a policy whose attempts follow each other at once.
func quickly(attempts int) Policy {
	return Policy{MaxAttempts: attempts, BaseDelay: time.Nanosecond, MaxDelay: time.Nanosecond, MaxElapsed: time.Hour}
}

func TestEachAttemptOfAClosureWaitsLongerForLocks(t *testing.T) {
	for attempts, want := range map[int][]string{
		1: {"0"},
		2: {"20ms", "0"},
		9: {"20ms", "40ms", "80ms", "160ms", "320ms", "640ms", "0", "0", "0"},
	} {
		a := enterProbes(t)
		if got := a.timeouts(t.Context(), nil, WithPolicy(quickly(attempts))); !slices.Equal(got, want) {
			t.Errorf("the timeouts are %v, want %v", got, want)
		}
		if got := a.read(`SELECT setting FROM pg_settings WHERE name = 'lock_timeout'`); got != "0" {
			t.Errorf("lock_timeout is left at %s", got)
		}
	}
}

func TestTheLastAttemptInTimeIsNoProbe(t *testing.T) {
	a := enterProbes(t)
	policy := quickly(2)
	policy.MaxElapsed = probeMargin*firstProbe - time.Millisecond
	if got := a.timeouts(t.Context(), nil, WithPolicy(policy)); got[0] != "0" {
		t.Errorf("near MaxElapsed the timeouts are %v", got)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if got := a.timeouts(ctx, nil, WithPolicy(quickly(2))); got[0] != "20ms" {
		t.Errorf("long before the deadline the timeouts are %v", got)
	}
	config := connectorOf(a.db).config
	config.now = func() time.Time { return time.Now().Add(time.Minute - probeMargin*firstProbe) }
	if got := a.timeouts(ctx, nil, WithPolicy(quickly(2))); got[0] != "0" {
		t.Errorf("near the deadline the timeouts are %v", got)
	}
}

func TestTheApplicationsOwnTimeoutIsKept(t *testing.T) {
	for name, c := range map[string]struct {
		dsn    string
		before []string
		want   string
	}{
		"of the session":         {dsn: "&lock_timeout=7s", want: "7s"},
		"SET LOCAL":              {before: []string{`SET LOCAL lock_timeout = '7s'`}, want: "7s"},
		"SET":                    {before: []string{`SET lock_timeout = '7s'`}, want: "7s"},
		"set_config":             {before: []string{`SELECT set_config('lock_timeout', '7s', true)`}, want: "7s"},
		"DO":                     {before: []string{`DO $$ BEGIN PERFORM set_config('lock_timeout', '7s', true); END $$`}, want: "7s"},
		"taken away on purpose":  {before: []string{`SET LOCAL lock_timeout = 0`}, want: "0"},
		"something else was set": {before: []string{`SET LOCAL work_mem = '1MB'`}, want: "0"},
	} {
		a := enterProbesOn(t, pgtest.DSN(t)+c.dsn)
		for _, got := range a.timeouts(t.Context(), c.before, WithPolicy(quickly(3))) {
			if got != c.want {
				t.Errorf("%s: lock_timeout is %s, want %s", name, got, c.want)
			}
		}
	}
}

func TestTheTimeoutOfARoleIsKept(t *testing.T) {
	a := enterProbes(t)
	if _, err := a.plain.Exec(`CREATE ROLE impatient LOGIN SUPERUSER; ALTER ROLE impatient SET lock_timeout = '7s'`); err != nil {
		t.Fatal(err)
	}
	address, err := url.Parse(a.dsn)
	if err != nil {
		t.Fatal(err)
	}
	address.User = url.User("impatient")
	parameters := address.Query()
	parameters.Del("user")
	address.RawQuery = parameters.Encode()
	db, err := tested.open(address.String(), WithContention(ContentionProbes))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
		if _, err := a.plain.Exec(`DROP ROLE impatient`); err != nil {
			t.Error(err)
		}
	}()
	remember(db, "", row(1))
	b := &arena{T: t, db: db}
	if got := b.timeouts(t.Context(), nil, WithPolicy(quickly(3))); !slices.Equal(got, []string{"7s", "7s", "7s"}) {
		t.Errorf("the timeouts are %v", got)
	}
}

func TestWhereTheDetectorSeesNobodyProbes(t *testing.T) {
	a := enterProbes(t, WithContention(ContentionDetector|ContentionProbes))
	if got := a.timeouts(t.Context(), nil, WithPolicy(quickly(2))); !slices.Equal(got, []string{"0", "0"}) {
		t.Errorf("the timeouts are %v", got)
	}
	connectorOf(a.db).memory.detector.blind.Store(time.Now().Add(time.Hour).UnixNano())
	if got := a.timeouts(t.Context(), nil, WithPolicy(quickly(2))); !slices.Equal(got, []string{"20ms", "0"}) {
		t.Errorf("while it is blind the timeouts are %v", got)
	}
}

func TestOthersDoNotProbe(t *testing.T) {
	a := enterProbes(t)
	shows := func(tx *script) string { return tx.sees(`SHOW lock_timeout`) }
	tx := a.begin(sql.LevelReadCommitted)
	tx.does(row(1))
	if got := shows(tx); got != "0" {
		t.Errorf("in a transaction of no closure lock_timeout is %s", got)
	}
	tx.commits()
	if err := RunInTx(t.Context(), a.db, nil, func(ctx context.Context, tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, `INSERT INTO account VALUES (5, 0)`); err != nil {
			return err
		}
		var timeout string
		err := tx.QueryRowContext(ctx, `SHOW lock_timeout`).Scan(&timeout)
		if timeout != "0" {
			t.Errorf("in a kind that does not deadlock lock_timeout is %s", timeout)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	off := enterOn(t, pgtest.DSN(t), []Option{WithContention(ContentionLimit)}, bank)
	remember(off.db, "", row(1))
	if got := off.timeouts(t.Context(), nil, WithPolicy(quickly(2))); !slices.Equal(got, []string{"0", "0"}) {
		t.Errorf("without probes the timeouts are %v", got)
	}
}

// ends commits for the rival when somebody has waited for it without a limit.
func (a *arena) rivalLetsGo() func() error {
	return goes(func() error {
		a.until(`SELECT EXISTS (SELECT FROM pg_stat_activity WHERE $1 = ANY (pg_blocking_pids(pid)))`, a.pid)
		_, err := a.rival.ExecContext(a.Context(), `COMMIT`)
		return err
	})
}

func TestAProbeThatFailsRunsTheClosureAgain(t *testing.T) {
	for name, between := range map[string][]string{
		"the next statement":       nil,
		"after SET LOCAL":          {`SET LOCAL work_mem = '1MB'`},
		"after SET":                {`SET work_mem = '1MB'`},
		"after DO":                 {`DO $$ BEGIN NULL; END $$`},
		"after set_config":         {`SELECT set_config('work_mem', '1MB', true)`},
		"after a savepoint":        {`SAVEPOINT a`},
		"after a savepoint's end":  {`SAVEPOINT a`, `RELEASE a`},
		"after a savepoint's loss": {`SAVEPOINT a`, `ROLLBACK TO a`},
	} {
		t.Run(name, func(t *testing.T) {
			a := enterProbes(t)
			a.rivalDoes(`BEGIN`, row(2))
			runs := 0
			var letGo func() error
			err := RunInTx(t.Context(), a.db, nil, func(ctx context.Context, tx *sql.Tx) error {
				if runs++; runs == 3 {
					letGo = a.rivalLetsGo()
				}
				for _, text := range append([]string{row(1)}, between...) {
					if _, err := tx.ExecContext(ctx, text); err != nil {
						return err
					}
				}
				if len(between) > 0 && runs == 1 {
					letGo = a.rivalLetsGo()
				}
				_, err := tx.ExecContext(ctx, row(2))
				return err
			}, WithPolicy(Policy{MaxAttempts: 4, BaseDelay: time.Nanosecond, MaxDelay: time.Nanosecond}))
			if err != nil {
				t.Fatalf("after %d runs: %v", runs, err)
			}
			if len(between) > 0 && runs != 1 || len(between) == 0 && runs < 3 {
				t.Errorf("%d runs", runs)
			}
			if err := letGo(); err != nil {
				t.Error(err)
			}
			if s := a.stats(); len(between) == 0 && (s.RetriesBySQLState["55P03"] == 0 || s.Kinds[0].Deadlocks < 3) {
				t.Errorf("the statistics are %+v", s)
			}
		})
	}
}

// The closure handles the error of the statement by itself: a wait that would have ended
// well must not change what is done.
func TestAProbeDoesNotFailWhatTheClosureWouldGetOver(t *testing.T) {
	a := enterProbes(t)
	a.rivalDoes(`BEGIN`, row(2))
	var letGo func() error
	if err := RunInTx(t.Context(), a.db, nil, func(ctx context.Context, tx *sql.Tx) error {
		for _, text := range []string{row(1), `SAVEPOINT a`} {
			if _, err := tx.ExecContext(ctx, text); err != nil {
				return err
			}
		}
		letGo = a.rivalLetsGo()
		if _, err := tx.ExecContext(ctx, row(2)); err != nil {
			t.Errorf("the closure sees %v", err)
			_, err := tx.ExecContext(ctx, `ROLLBACK TO a`)
			return err
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := letGo(); err != nil {
		t.Error(err)
	}
}

func TestNOWAITIsTheApplicationsOwn(t *testing.T) {
	a := enterProbes(t)
	a.rivalDoes(`BEGIN`, row(2))
	runs := 0
	err := RunInTx(t.Context(), a.db, nil, func(ctx context.Context, tx *sql.Tx) error {
		runs++
		if _, err := tx.ExecContext(ctx, row(1)); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `SELECT FROM account WHERE id = 2 FOR UPDATE NOWAIT`)
		return err
	})
	if sqlState(err) != "55P03" || runs != 1 {
		t.Errorf("after %d runs: %v", runs, err)
	}
	a.rivalDoes(`ROLLBACK`)
}

// A constraint that is deferred waits in COMMIT.
func TestAProbeThatFailsInCommitRunsTheClosureAgain(t *testing.T) {
	a := enterOn(t, pgtest.DSN(t), []Option{WithContention(ContentionProbes)}, bank,
		`CREATE TABLE entry (account int REFERENCES account DEFERRABLE INITIALLY DEFERRED)`)
	const inserts = `INSERT INTO entry VALUES (2)`
	remember(a.db, "", inserts)
	a.rivalDoes(`BEGIN`, `SELECT FROM account WHERE id = 2 FOR UPDATE`)
	runs := 0
	var letGo func() error
	if err := RunInTx(t.Context(), a.db, nil, func(ctx context.Context, tx *sql.Tx) error {
		if runs++; runs == 3 {
			letGo = a.rivalLetsGo()
		}
		_, err := tx.ExecContext(ctx, inserts)
		return err
	}, WithPolicy(Policy{MaxAttempts: 4, BaseDelay: time.Nanosecond, MaxDelay: time.Nanosecond})); err != nil {
		t.Fatalf("after %d runs: %v", runs, err)
	}
	if letGo == nil {
		t.Fatalf("%d runs", runs)
	}
	if err := letGo(); err != nil {
		t.Error(err)
	}
}

func TestTransactionsProbeOnRequestWhileTheyShowCountsOnly(t *testing.T) {
	const parts = ContentionProbes | ContentionProbeTransactions
	a := enterProbes(t, WithContention(parts), WithPins(PinsNever))
	for name, c := range map[string]struct {
		before func(*script)
		want   string
	}{
		"at first":     {func(*script) {}, "20ms"},
		"after a read": {func(s *script) { s.sees(`SELECT balance FROM account WHERE id = 1`) }, "0"},
	} {
		tx := a.begin(sql.LevelReadCommitted)
		c.before(tx)
		tx.does(row(1))
		if got := tx.sees(`SHOW lock_timeout`); got != c.want {
			t.Errorf("%s lock_timeout is %s, want %s", name, got, c.want)
		}
		if err := tx.Rollback(); err != nil {
			t.Error(err)
		}
	}
	b := enterProbes(t, WithContention(parts), WithPins(PinsNever))
	b.rivalDoes(`BEGIN`, row(2))
	tx := b.begin(sql.LevelReadCommitted)
	tx.does(row(1))
	probed := goes(func() error { _, err := tx.Exec(row(2)); return err })
	for b.stats().Replays == 0 {
		b.read(`SELECT 1`)
	}
	b.rivalDoes(`COMMIT`)
	if err := probed(); err != nil {
		t.Fatal(err)
	}
	tx.commits()
	b.hid("55P03")
}

func TestNamedTransactionsProbeToo(t *testing.T) {
	a := enterProbes(t, WithContention(ContentionProbes|ContentionProbeTransactions|ContentionLimit))
	remember(a.db, "transfer", "")
	tx, err := a.db.BeginTx(ContextWithName(t.Context(), "transfer"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	if _, err := tx.Exec(row(1)); err != nil {
		t.Fatal(err)
	}
	var timeout string
	if err := tx.QueryRow(`SHOW lock_timeout`).Scan(&timeout); err != nil || timeout != "20ms" {
		t.Errorf("lock_timeout is %s, %v", timeout, err)
	}
}

// learns is a transaction whose replay needs a pin: what it has shown is different each time.
func (a *arena) learns(ctx context.Context) error {
	a.Helper()
	tx, err := a.db.BeginTx(ctx, nil)
	if err != nil {
		a.Fatal(err)
	}
	defer tx.Rollback()
	var id int
	if err := tx.QueryRow(insertsEntry).Scan(&id); err != nil {
		a.Fatal(err)
	}
	if _, err := tx.Exec(`LOCK TABLE gate IN EXCLUSIVE MODE`); err != nil {
		a.Fatal(err)
	}
	over := a.meets(opponent{holds: locksAccount, wants: `LOCK TABLE gate IN EXCLUSIVE MODE`})
	_, err = tx.Exec(locksAccount)
	if err == nil {
		err = tx.Commit()
	} else if rollback := tx.Rollback(); rollback != nil {
		a.Error(rollback)
	}
	over()
	return err
}

func TestPinsAreLearned(t *testing.T) {
	for _, name := range []string{"", "transfer"} {
		t.Run(fmt.Sprintf("named %q", name), func(t *testing.T) {
			a := enter(t, []Option{WithPins(PinsLearned)}, ledger)
			ctx := t.Context()
			if name != "" {
				ctx = ContextWithName(ctx, name)
			}
			if err := a.learns(ctx); sqlState(err) != "40P01" || a.stats().Diverged != 1 {
				t.Fatalf("the first one gives %v: %+v", err, a.stats())
			}
			for range 2 {
				if err := a.learns(ctx); err != nil {
					t.Fatalf("it surfaces again: %v", err)
				}
			}
			if s := a.stats(); s.Diverged != 1 || s.PartialReplays != 2 || !s.Kinds[0].Pins {
				t.Errorf("the statistics are %+v", s)
			}
		})
	}
}

func TestPinsOfNoUseAreSetNoMore(t *testing.T) {
	var p pinRecord
	if p.wanted() {
		t.Error("nothing has diverged")
	}
	p.missed.Add(1)
	for range pinTrials {
		if !p.wanted() {
			t.Fatal("they are given up too early")
		}
		p.tried.Add(1)
	}
	if p.wanted() {
		t.Error("they are set though they are of no use")
	}
	p.paid.Add(pinTrials / pinShare)
	if !p.wanted() {
		t.Error("they are of use often enough")
	}
}

func TestNoPinIsSetWhereNothingDiverged(t *testing.T) {
	a, l := enterListening(t, ledger)
	connectorOf(a.db).config.pins = PinsLearned
	remember(a.db, "", insertsEntry)
	tx := a.begin(sql.LevelReadCommitted)
	tx.sees(insertsEntry)
	tx.does(locksAccount)
	tx.commits()
	if l.pins() != 0 {
		t.Errorf("%d pins are set", l.pins())
	}
}
