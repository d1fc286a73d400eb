package pgretry

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/pgretry/pgretry/internal/gate"
	"github.com/pgretry/pgretry/internal/pgserver/pgtest"
)

// limited makes the conflict memory of a database believe that the transactions called
// transfer have deadlocked, so that one of them may run at a time.
func limited(t *testing.T, db *sql.DB) {
	t.Helper()
	g := connectorOf(db).memory.learn(kindKey{name: "transfer"}).gate.Load()
	for range 10 {
		g.Enlist().Leave(gate.Deadlocked)
	}
	if g.Limit() != 1 {
		t.Fatalf("the limit is %d, want 1", g.Limit())
	}
}

func openShared(t *testing.T, dsn string) *sql.DB {
	t.Helper()
	db, err := tested.open(dsn, WithContention(ContentionDefault|ContentionShared))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

// leases asks whether there are so many locks of those by which processes take turns.
func leasesAre(n int, granted bool) string {
	return fmt.Sprintf(`SELECT count(*) = %d FROM pg_locks WHERE locktype = 'advisory' AND classid = %d AND granted = %v
		AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`, n, leaseClass, granted)
}

func TestProcessesTakeTurnsWithTransactionsThatDeadlock(t *testing.T) {
	dsn := pgtest.DSN(t)
	a := enterOn(t, dsn, nil, `CREATE TABLE account (id int PRIMARY KEY, balance int)`, `INSERT INTO account VALUES (1, 0)`)
	one, other := openShared(t, dsn), openShared(t, dsn)
	work := func(db *sql.DB) error {
		return RunInTx(ContextWithName(t.Context(), "transfer"), db, nil, func(ctx context.Context, tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, `UPDATE account SET balance = balance + 1 WHERE id = 1`)
			return err
		})
	}
	for _, db := range []*sql.DB{one, other} {
		limited(t, db)
	}
	done := make(chan error)
	const each = 300
	for _, db := range []*sql.DB{one, other} {
		for range 4 {
			go func() {
				for range each {
					if err := work(db); err != nil {
						done <- err
						return
					}
				}
				done <- nil
			}()
		}
	}
	a.until(leasesAre(1, true))
	a.until(leasesAre(1, false))
	for range 8 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	a.is(fmt.Sprint(8*each), `SELECT balance FROM account`)
	for _, db := range []*sql.DB{one, other} {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}
	a.until(leasesAre(0, true))
}

// takesTurns counts the sessions by which processes take turns.
const takesTurns = `SELECT count(*) = $1 FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
	AND (query LIKE '%pg_catalog.pg_advisory_%' OR query LIKE 'SELECT ''yes'' FROM pg_catalog.pg_locks%')`

func TestAProcessWithNothingToDoLeavesItsTurnsToOthers(t *testing.T) {
	dsn := pgtest.DSN(t)
	a := enterOn(t, dsn, nil, `CREATE TABLE account (id int PRIMARY KEY, balance int)`, `INSERT INTO account VALUES (1, 0)`)
	busy, idle := openShared(t, dsn), openShared(t, dsn)
	over := make(chan struct{})
	work := func(db *sql.DB, stop <-chan struct{}) error {
		for {
			if err := RunInTx(ContextWithName(t.Context(), "transfer"), db, nil, func(ctx context.Context, tx *sql.Tx) error {
				_, err := tx.ExecContext(ctx, `UPDATE account SET balance = balance + 1 WHERE id = 1`)
				return err
			}); err != nil {
				return err
			}
			select {
			case <-stop:
				return nil
			default:
			}
		}
	}
	done := make(chan error, 2)
	enough := make(chan struct{})
	for db, stop := range map[*sql.DB]chan struct{}{busy: over, idle: enough} {
		limited(t, db)
		go func() { done <- work(db, stop) }()
	}
	a.until(takesTurns, 2)
	close(enough)
	if err := <-done; err != nil {
		t.Error(err)
	}
	a.until(takesTurns, 1) // while the busy one goes on taking turns
	a.until(leasesAre(1, true))
	close(over)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestProcessesThatKnowAKindInCommonHaveALockInCommon(t *testing.T) {
	a, b, c := kindKey{name: "a"}, kindKey{name: "b"}, kindKey{fingerprint: "update c"}
	m := &connectorOf(openShared(t, pgtest.DSN(t))).memory
	shared := m.learn(a).gate.Load()
	m.learn(b).gate.Store(shared)
	alone := m.learn(c).gate.Load()
	if got, want := locksOf(m.keysOf(shared)), locksOf([]kindKey{b, a}); len(got) != 2 || !slices.Equal(got, want) {
		t.Errorf("got %v for two kinds at one gate, want %v", got, want)
	}
	if got := locksOf(m.keysOf(alone)); len(got) != 1 || slices.Contains(locksOf([]kindKey{a, b}), got[0]) {
		t.Errorf("got %v for a kind that waits alone", got)
	}
	if got := locksOf(m.keysOf(gate.New(gate.Config{}))); len(got) != 0 {
		t.Errorf("got %v for a gate of nobody's", got)
	}
	if got := locksOf([]kindKey{a, a}); len(got) != 1 {
		t.Errorf("got %v, twice the same", got)
	}
}

// One worker each, which does something else between its transactions, so that there is
// nobody at the gate when a turn ends.
func TestTurnsKeepTransactionsOfProcessesApart(t *testing.T) {
	dsn := pgtest.DSN(t)
	a := enterOn(t, dsn, nil, `CREATE TABLE account (id int PRIMARY KEY, balance int)`, `INSERT INTO account VALUES (0, 0), (1, 0)`)
	var inside [2]atomic.Int64
	var together, all atomic.Int64
	stop := make(chan struct{})
	done := make(chan error, 2)
	var counting atomic.Bool
	for i := range inside {
		db := openShared(t, dsn)
		limited(t, db)
		go func() {
			for {
				if err := RunInTx(ContextWithName(t.Context(), "transfer"), db, nil, func(ctx context.Context, tx *sql.Tx) error {
					inside[i].Add(1)
					defer inside[i].Add(-1)
					_, err := tx.ExecContext(ctx, `UPDATE account SET balance = balance + 1 WHERE id = $1`, i)
					if err == nil {
						_, err = tx.ExecContext(ctx, `SELECT pg_sleep(0.003)`)
					}
					if counting.Load() {
						all.Add(1)
						if inside[1-i].Load() > 0 {
							together.Add(1)
						}
					}
					return err
				}); err != nil {
					done <- err
					return
				}
				if _, err := db.ExecContext(t.Context(), `SELECT pg_sleep(0.001)`); err != nil {
					done <- err
					return
				}
				select {
				case <-stop:
					done <- nil
					return
				default:
				}
			}
		}()
	}
	a.until(leasesAre(1, true))
	a.until(leasesAre(1, false))
	a.until(leasesAre(1, true))
	counting.Store(true)
	a.until(`SELECT sum(balance) > 300 FROM account`)
	close(stop)
	for range inside {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	// A turn that is waited for too long is done without.
	if share := float64(together.Load()) / float64(all.Load()); all.Load() < 50 || share > 0.1 {
		t.Errorf("%.2f of %d transactions met one of the other process", share, all.Load())
	}
}

// Another process has the turn, and keeps it for longer than anybody should.
func TestAProcessThatDoesNotGetItsTurnGoesOnWithout(t *testing.T) {
	dsn := pgtest.DSN(t)
	a := enterOn(t, dsn, nil, `CREATE TABLE account (id int PRIMARY KEY, balance int)`, `INSERT INTO account VALUES (1, 0)`)
	db := openShared(t, dsn)
	limited(t, db)
	a.rivalDoes(`SELECT pg_advisory_lock(class, object) FROM ` + table(locksOf([]kindKey{{name: "transfer"}})))
	done := make(chan error)
	go func() {
		for range 3 { // the first of them begins to ask for turns
			if err := RunInTx(ContextWithName(t.Context(), "transfer"), db, nil, func(ctx context.Context, tx *sql.Tx) error {
				_, err := tx.ExecContext(ctx, `UPDATE account SET balance = balance + 1 WHERE id = 1`)
				return err
			}); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	a.until(leasesAre(1, false))
	if err := <-done; err != nil {
		t.Error(err)
	}
	a.is("3", `SELECT balance FROM account`)
}

func TestWithoutTheOptionNobodyTakesTurns(t *testing.T) {
	dsn := pgtest.DSN(t)
	a := enterOn(t, dsn, nil, `CREATE TABLE account (id int PRIMARY KEY, balance int)`, `INSERT INTO account VALUES (1, 0)`)
	limited(t, a.db)
	for range 3 {
		if err := RunInTx(ContextWithName(t.Context(), "transfer"), a.db, nil, func(ctx context.Context, tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, `UPDATE account SET balance = balance + 1 WHERE id = 1`)
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	if connectorOf(a.db).memory.leases.held != nil {
		t.Error("it takes turns")
	}
}
