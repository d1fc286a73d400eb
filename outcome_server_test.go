package pgretry

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pgretry/pgretry/internal/faultproxy"
	"github.com/pgretry/pgretry/internal/pgserver"
)

// insertX is a transaction that must be committed once.
func insertX(ctx context.Context, tx *sql.Tx) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO trace VALUES ('x')`)
	return err
}

// runs are the ways to run a transaction. They return how often its body ran.
var runs = []struct {
	name string
	run  func(ctx context.Context, db *sql.DB) (int, error)
}{
	{"plain", func(ctx context.Context, db *sql.DB) (int, error) {
		return 1, inTx(ctx, db, insertX)
	}},
	{"RunInTx", func(ctx context.Context, db *sql.DB) (ran int, err error) {
		err = RunInTx(ctx, db, nil, func(ctx context.Context, tx *sql.Tx) error {
			ran++
			return insertX(ctx, tx)
		})
		return ran, err
	}},
	{"Retry", func(ctx context.Context, db *sql.DB) (ran int, err error) {
		err = Retry(ctx, func(ctx context.Context) error {
			ran++
			return inTx(ctx, db, insertX)
		})
		return ran, err
	}},
}

func TestACommitWithoutAnAnswerIsResolvedByTheServer(t *testing.T) {
	for _, c := range []struct {
		name    string
		action  faultproxy.Action
		aborted bool
	}{
		{name: "committed", action: faultproxy.Action{Kind: faultproxy.Cut, After: true}},
		{name: "committed, behind a black hole", action: faultproxy.Action{Kind: faultproxy.BlackHole, After: true}},
		{name: "committed, and a reset", action: faultproxy.Action{Kind: faultproxy.Cut, After: true, Reset: true}},
		{name: "never arrived", action: faultproxy.Action{Kind: faultproxy.Cut}, aborted: true},
		{name: "half of it arrived", action: faultproxy.Action{Kind: faultproxy.Cut, Bytes: 7}, aborted: true},
		{name: "never arrived, behind a black hole", action: faultproxy.Action{Kind: faultproxy.BlackHole}, aborted: true},
	} {
		for _, way := range runs {
			for _, otelsql := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%s/otelsql %t", c.name, way.name, otelsql), func(t *testing.T) {
					options := []Option{WithCommitOutcome(CommitResolve)}
					if otelsql {
						options = append(options, newObservatory(t).options()...)
					}
					r := enterRelayed(t, options, traces)
					struck := r.breaks("COMMIT", 'Q', c.action)
					ran, err := way.run(t.Context(), r.db)
					if err != nil || !struck.Load() {
						t.Errorf("struck %t, it gives %v", struck.Load(), err)
					}
					r.is("1", `SELECT count(*) FROM trace`)
					// A session that has not yet begun to read COMMIT may be ended first.
					s := r.stats()
					aborted := s.ResolvedCommits["aborted"] == 1
					if aborted && len(s.ResolvedCommits) != 1 || !aborted && (s.ResolvedCommits["committed"] != 1 || c.aborted) || s.Committed != 1 || s.UnknownCommits != 0 {
						t.Errorf("statistics are %+v", s)
					}
					if again := ran == 2; again != (aborted && way.name != "plain") {
						t.Errorf("it ran %d times", ran)
					}
				})
			}
		}
	}
}

func TestACommitThatTakesLongIsWaitedFor(t *testing.T) {
	r := enterRelayed(t, []Option{WithCommitOutcome(CommitResolve), WithResolveTimeout(time.Minute)}, bank, traces, lateLock)
	r.breaks("COMMIT", 'Q', faultproxy.Action{Kind: faultproxy.Cut, After: true})
	// COMMIT itself waits for the rival.
	r.rivalDoes("BEGIN", crossing.holds)
	released := make(chan error, 1)
	go func() {
		r.isWaitedFor()
		if !tested.cancelsLost {
			r.until(`SELECT EXISTS (SELECT FROM pg_stat_activity WHERE query LIKE '%''ClientRead''%' AND pid <> pg_backend_pid())`)
		}
		_, err := r.rival.ExecContext(t.Context(), "COMMIT")
		released <- err
	}()
	if err := inTx(t.Context(), r.db, insertX); err != nil {
		t.Error(err)
	}
	if err := <-released; err != nil {
		t.Error(err)
	}
	r.is("1", `SELECT count(*) FROM trace`)
	fate := "committed"
	if tested.cancelsLost {
		fate = "aborted" // and then it is replayed
	}
	if s := r.stats(); s.ResolvedCommits[fate] != 1 {
		t.Errorf("statistics are %+v", s)
	}
}

func TestACommitBeforeACrashIsUnknown(t *testing.T) {
	server := ownServer(t)
	for _, way := range runs {
		t.Run(way.name, func(t *testing.T) {
			r := enterRelayedOn(t, server.DSN(), []Option{WithCommitOutcome(CommitResolve), WithResolveTimeout(time.Minute)}, `DROP TABLE IF EXISTS trace`, traces)
			r.plain.SetMaxIdleConns(0) // its sessions would end with the server
			var crashed atomic.Bool
			r.proxy.SetRule(func(m faultproxy.Message) faultproxy.Action {
				if m.Direction != faultproxy.ToClient || m.Type != 'C' || string(m.Body) != "COMMIT\x00" || !crashed.CompareAndSwap(false, true) {
					return faultproxy.Action{}
				}
				if err := server.Restart(context.WithoutCancel(t.Context()), pgserver.Immediate); err != nil {
					t.Error(err)
				}
				return faultproxy.Action{Kind: faultproxy.Cut}
			})
			ran, err := way.run(t.Context(), r.db)
			var unknown *CommitUnknownError
			if !errors.As(err, &unknown) || ran != 1 || !crashed.Load() {
				t.Fatalf("it gives %v after %d runs, crashed %t", err, ran, crashed.Load())
			}
			neverTells(t, err)
			if unknown.XID == 0 || unknown.Server == "" || !strings.Contains(unknown.Reason, "crashed, restarted") || unknown.Attempts != 1 {
				t.Errorf("it tells %+v", unknown)
			}
			if s := r.stats(); s.UnknownCommits != 1 || s.ResolvedCommits["unknown"] != 1 || s.Committed != 0 {
				t.Errorf("statistics are %+v", s)
			}
		})
	}
}

func TestTheIDIsAskedForInWritingTransactionsOnly(t *testing.T) {
	for _, c := range []struct {
		outcome CommitOutcome
		text    string
		want    int32
	}{
		{CommitResolve, `INSERT INTO trace VALUES ('x')`, 1},
		{CommitResolve, `SELECT count(*) FROM trace`, 0},
		{CommitReport, `INSERT INTO trace VALUES ('x')`, 0},
	} {
		t.Run(fmt.Sprintf("%s/%s", c.outcome, c.text), func(t *testing.T) {
			r := enterRelayed(t, []Option{WithCommitOutcome(c.outcome)}, traces)
			run := func() {
				tx := r.begin(sql.LevelDefault)
				if strings.HasPrefix(c.text, "SELECT") {
					tx.sees(c.text)
				} else {
					tx.does(c.text)
				}
				tx.commits()
			}
			var asked, requests atomic.Int32
			r.proxy.SetRule(func(m faultproxy.Message) faultproxy.Action {
				if m.Direction == faultproxy.ToServer && (m.Type == 'Q' || m.Type == 'S') && !asks(m, "-- ping") { // pgx's
					requests.Add(1)
				}
				if asks(m, "SELECT pg_catalog.txid_current_if_assigned") {
					asked.Add(1)
				}
				return faultproxy.Action{}
			})
			// Before its first transaction a session is asked where it is, and pgx prepares what
			// it sends.
			run()
			requests.Store(0)
			run()
			if requests.Load() != 3+c.want || (asked.Load() > 0) != (c.want > 0) {
				t.Errorf("it was asked for %d times, in %d requests", asked.Load(), requests.Load())
			}
		})
	}
}

func TestACommitIsResolvedAMomentAfterItsContextHasEnded(t *testing.T) {
	r := enterRelayed(t, []Option{WithCommitOutcome(CommitResolve)}, traces)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	tx, err := r.db.BeginTx(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := insertX(ctx, tx); err != nil {
		t.Fatal(err)
	}
	var struck atomic.Bool
	r.proxy.SetRule(func(m faultproxy.Message) faultproxy.Action {
		if m.Direction == faultproxy.ToClient && m.Type == 'C' && string(m.Body) == "COMMIT\x00" && struck.CompareAndSwap(false, true) {
			cancel()
			return faultproxy.Action{Kind: faultproxy.Cut}
		}
		return faultproxy.Action{}
	})
	if err := tx.Commit(); err != nil || !struck.Load() {
		t.Errorf("COMMIT gives %v, struck %t", err, struck.Load())
	}
	r.is("1", `SELECT count(*) FROM trace`)
}
