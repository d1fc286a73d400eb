package pgretry

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lib/pq"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/pgretry/pgretry/internal/drivertest"
	"github.com/pgretry/pgretry/internal/lockgraph"
	"github.com/pgretry/pgretry/internal/pgserver"
	"github.com/pgretry/pgretry/internal/pgserver/pgtest"
)

// row is a statement that locks an account.
func row(id int) string {
	return fmt.Sprintf(`UPDATE account SET balance = balance + 1 WHERE id = %d`, id)
}

// enterHot is an arena in which transactions of the kind of row have deadlocked already,
// and in which the server takes an hour to find a deadlock.
func enterHot(t *testing.T, options ...Option) *arena {
	t.Helper()
	return enterHotOn(t, pgtest.DSN(t), options...)
}

func enterHotOn(t *testing.T, dsn string, options ...Option) *arena {
	t.Helper()
	options = append([]Option{WithContention(ContentionDetector)}, options...)
	a := enterOn(t, dsn+"&deadlock_timeout=1h", options, bank, `CREATE TABLE trace (what text)`)
	a.deadlocksOnce()
	return a
}

// deadlocksOnce has a transaction deadlock that the server finds soon.
func (a *arena) deadlocksOnce() {
	a.Helper()
	tx := a.begin(sql.LevelReadCommitted)
	tx.does(`SET LOCAL deadlock_timeout = '10ms'`)
	tx.does(row(1))
	over := a.meets(crossing)
	tx.does(row(2))
	over()
	tx.commits()
	a.earlier = a.stats().DeadlocksFoundEarly // if the replay was back before the rival had woken up
	for _, k := range a.stats().Kinds {
		if k.Deadlocks > 0 {
			return
		}
	}
	a.Fatalf("there was no deadlock: %+v", a.stats())
}

// waits returns when so many sessions of this test wait for a lock.
func (a *arena) waits(n int) {
	a.Helper()
	a.until(`SELECT count(DISTINCT pid) >= $1 FROM pg_locks WHERE NOT granted AND pid IN
		(SELECT pid FROM pg_locks WHERE relation = 'account'::regclass)`, n)
}

// early checks that so many deadlocks were found by us, and all hidden. There are more of them
// where a replay is back before the other side has woken up.
func (a *arena) early(n int64) {
	a.Helper()
	s := a.stats()
	if found := s.DeadlocksFoundEarly - a.earlier; found < n || n == 0 && found != 0 || s.PlainConflicts != 0 || s.Exhausted != 0 || s.Diverged != 0 {
		a.Errorf("%d deadlocks were found early, want %d: %+v", found, n, s)
	}
}

func TestADeadlockIsFoundLongBeforeTheServerLooks(t *testing.T) {
	a := enterHot(t)
	before := a.stats()
	old, young := a.begin(sql.LevelReadCommitted), a.begin(sql.LevelReadCommitted)
	old.does(row(1))
	young.does(row(2))
	committed := goes(func() error {
		_, err := old.Exec(row(2))
		return errors.Join(err, old.Commit())
	})
	a.waits(1)
	young.does(row(1))
	young.commits()
	if err := committed(); err != nil {
		t.Fatal(err)
	}
	a.early(1)
	s := a.stats()
	if len(s.Kinds) != 1 || s.Kinds[0].DeadlocksFoundEarly != s.DeadlocksFoundEarly ||
		s.Kinds[0].Deadlocks-before.Kinds[0].Deadlocks != s.DeadlocksFoundEarly-before.DeadlocksFoundEarly ||
		s.HiddenBySQLState["40P01"] != before.HiddenBySQLState["40P01"]+1 || s.HiddenBySQLState["57014"] != 0 {
		t.Errorf("the statistics are %+v", s)
	}
	a.is("102 104", `SELECT string_agg(balance::text, ' ' ORDER BY id) FROM account WHERE id < 3`)
}

func TestTheYoungestTransactionLoses(t *testing.T) {
	var mu sync.Mutex
	var retried []string
	a := enterHot(t, WithOnRetry(func(_ context.Context, e Event) {
		mu.Lock()
		defer mu.Unlock()
		retried = append(retried, e.Name)
	}))
	begin := func(name string) *script {
		tx, err := a.db.BeginTx(ContextWithName(t.Context(), name), nil)
		if err != nil {
			t.Fatal(err)
		}
		return &script{arena: a, Tx: tx}
	}
	old, young := begin("old"), begin("young")
	young.does(row(2))
	old.does(row(1))
	youngEnds := goes(func() error {
		_, err := young.Exec(row(1))
		return errors.Join(err, young.Commit())
	})
	a.waits(1)
	old.does(row(2)) // it closes the circle, and wins
	old.commits()
	if err := youngEnds(); err != nil {
		t.Fatal(err)
	}
	// Those of enterHot have no name, and may be several.
	if !slices.Contains(retried, "young") || slices.Contains(retried, "old") {
		t.Errorf("there were retries of %q", retried)
	}
	a.early(1)
}

func TestClosuresThatDeadlockRunAgain(t *testing.T) {
	a := enterHot(t)
	var runs atomic.Int32
	both := make(chan struct{})
	var met sync.WaitGroup
	met.Add(2)
	go func() { met.Wait(); close(both) }()
	transfer := func(first, second int) func() error {
		return goes(func() error {
			var once sync.Once
			return RunInTx(t.Context(), a.db, nil, func(ctx context.Context, tx *sql.Tx) error {
				runs.Add(1)
				if _, err := tx.ExecContext(ctx, row(first)); err != nil {
					return err
				}
				once.Do(met.Done)
				<-both
				_, err := tx.ExecContext(ctx, row(second))
				if err != nil {
					server, _ := tested.finds(err)
					if deadlock, ok := ParseDeadlock(err); !ok || len(deadlock.Edges) != 2 || server.code != "40P01" {
						t.Errorf("the closure gets %v", err)
					}
				}
				return err
			})
		})
	}
	one, other := transfer(1, 2), transfer(2, 1)
	if err := errors.Join(one(), other()); err != nil {
		t.Fatal(err)
	}
	if runs.Load() < 3 {
		t.Errorf("%d runs", runs.Load())
	}
	a.early(1)
}

// Each takes rows in the opposite order of the other's.
func TestKindsWhoseTransactionsDeadlockWithEachOtherShareALimit(t *testing.T) {
	a := enterHot(t, WithContention(ContentionDetector|ContentionLimit))
	takes := func(id int) string { return fmt.Sprintf(`UPDATE account SET balance = balance - 5 WHERE id = %d`, id) }
	old, young := a.begin(sql.LevelReadCommitted), a.begin(sql.LevelReadCommitted)
	old.does(row(1))
	young.does(takes(2))
	committed := goes(func() error {
		_, err := old.Exec(row(2))
		return errors.Join(err, old.Commit())
	})
	a.waits(1)
	young.does(takes(1))
	young.commits()
	if err := committed(); err != nil {
		t.Fatal(err)
	}
	a.early(1)
	memory := &connectorOf(a.db).memory
	one, other := memory.find(memory.keyOf("", row(1))), memory.find(memory.keyOf("", takes(1)))
	if one == nil || other == nil || one.gate.Load() != other.gate.Load() {
		t.Errorf("the kinds are %+v", a.stats().Kinds)
	}
	isEmpty(t, one)
}

// Upserts of the same rows in opposite orders.
func TestLoneStatementsThatDeadlockAreExecutedAgain(t *testing.T) {
	a := enterHot(t)
	upsert := func(ids ...int) string {
		var rows []string
		for _, id := range ids {
			rows = append(rows, fmt.Sprintf("(%d, 1)", id))
		}
		return `INSERT INTO account VALUES ` + strings.Join(rows, ", ") + ` ON CONFLICT (id) DO UPDATE SET balance = account.balance + excluded.balance`
	}
	// No connection has ever been in a transaction.
	a.db.SetMaxIdleConns(-1)
	a.db.SetMaxIdleConns(4)
	for range 2 {
		var all sync.WaitGroup
		for range 2 {
			all.Go(func() {
				if _, err := a.db.Exec(upsert(3)); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
	}
	a.rivalDoes(`BEGIN`, row(2)) // in the middle of both
	up := goes(func() error { _, err := a.db.Exec(upsert(1, 2, 4)); return err })
	a.waits(1)
	down := goes(func() error { _, err := a.db.Exec(upsert(4, 2, 1)); return err })
	a.waits(2)
	a.rivalDoes(`COMMIT`)
	if err := errors.Join(up(), down()); err != nil {
		t.Fatal(err)
	}
	a.early(1)
	if s := a.stats(); s.HiddenBySQLState["40P01"] != 2 {
		t.Errorf("the statistics are %+v", s)
	}
	a.is("102", `SELECT balance FROM account WHERE id = 4`)
}

func TestADeadlockOfManyIsEndedByOne(t *testing.T) {
	const parties = 3
	a := enterHot(t)
	var txs []*script
	for i := range parties {
		tx := a.begin(sql.LevelReadCommitted)
		tx.does(row(i + 1))
		txs = append(txs, tx)
	}
	var ends []func() error
	for i, tx := range txs {
		ends = append(ends, goes(func() error {
			_, err := tx.Exec(row((i+1)%parties + 1))
			return errors.Join(err, tx.Commit())
		}))
	}
	for _, end := range ends {
		if err := end(); err != nil {
			t.Error(err)
		}
	}
	a.early(1)
}

// A session of somebody else's is in the circle: ours gives way.
func TestADeadlockWithAStrangerIsFoundToo(t *testing.T) {
	for name, c := range map[string]struct {
		first  func(*script)
		second func(*script)
	}{
		"a statement": {
			func(s *script) { s.does(row(1)) }, func(s *script) { s.does(row(2)) },
		},
		"a statement with arguments": {
			func(s *script) { s.does(`UPDATE account SET balance = balance + 1 WHERE id = $1`, 1) },
			func(s *script) { s.does(`UPDATE account SET balance = balance + 1 WHERE id = $1`, 2) },
		},
		"a prepared statement": {
			func(s *script) { s.does(row(1)) },
			func(s *script) {
				statement, err := s.Prepare(`UPDATE account SET balance = balance + 1 WHERE id = $1`)
				if err != nil {
					s.Fatal(err)
				}
				if _, err := statement.Exec(2); err != nil {
					s.Fatal(err)
				}
			},
		},
		"rows": {
			func(s *script) { s.does(row(1)) },
			func(s *script) { s.sees(`SELECT balance FROM account WHERE id = 2 FOR UPDATE`) },
		},
		"the middle of rows": {
			func(s *script) { s.does(row(1)) },
			func(s *script) {
				rows, err := s.Query(`SELECT id, repeat('x', 20000) FROM (SELECT id FROM account WHERE id IN (2, 3) ORDER BY id DESC) AS a
					CROSS JOIN LATERAL (SELECT balance FROM account AS b WHERE b.id = a.id FOR UPDATE) AS locked`)
				if err != nil {
					s.Fatal(err)
				}
				n := 0
				for rows.Next() {
					n++
				}
				if err := errors.Join(rows.Err(), rows.Close()); err != nil || n != 2 {
					s.Errorf("%d rows, %v", n, err)
				}
			},
		},
		"after a pin": {
			func(s *script) { s.does(row(1)); s.sees(`UPDATE account SET balance = 0 WHERE id = 4 RETURNING id`) },
			func(s *script) { s.does(row(2)) },
		},
		"inside a savepoint": {
			func(s *script) { s.does(row(1)); s.does(`SAVEPOINT a`) },
			func(s *script) { s.does(row(2)); s.does(`RELEASE a`) },
		},
		"SERIALIZABLE": {
			func(s *script) { s.does(row(1)) }, func(s *script) { s.does(row(2)) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := enterHot(t)
			level := sql.LevelReadCommitted
			if name == "SERIALIZABLE" {
				level = sql.LevelSerializable
			}
			tx := a.begin(level)
			c.first(tx)
			over := a.meets(crossing)
			c.second(tx)
			over()
			tx.commits()
			a.early(1)
		})
	}
}

// looksInVain checks that the detector looks, and leaves alone what it finds: the rival
// ends the circle in the end, by going away.
func (a *arena) looksInVain(ended func() error) {
	a.Helper()
	looked := func() string {
		return a.read(`SELECT coalesce(max(query_start)::text, '') FROM pg_stat_activity WHERE query LIKE 'WITH locks AS%' AND pid <> pg_backend_pid()`)
	}
	first := looked()
	for n := 0; n < 3; {
		if now := looked(); now != first {
			first = now
			n++
		}
		if a.Context().Err() != nil {
			a.Fatal("nobody looks")
		}
	}
	if _, err := a.plain.ExecContext(a.Context(), `SELECT pg_terminate_backend($1)`, a.pid); err != nil {
		a.Fatal(err)
	}
	if err := ended(); err != nil {
		a.Error(err)
	}
	if s := a.stats(); s.DeadlocksFoundEarly != 0 {
		a.Errorf("the statistics are %+v", s)
	}
}

// meetsInVain is meets for a rival that will be terminated.
func (a *arena) meetsInVain() {
	a.Helper()
	a.rivalDoes("BEGIN", crossing.holds)
	go func() { _, _ = a.rival.ExecContext(a.Context(), crossing.wants) }()
	a.until(`SELECT cardinality(pg_blocking_pids($1)) > 0`, a.pid)
}

// Nobody but the server may choose who cannot be replayed. A closure that waits beside it
// keeps the detector awake.
func TestWhatCannotBeReplayedIsLeftToTheServer(t *testing.T) {
	type ended = func() error
	for name, c := range map[string]struct {
		options []Option
		runs    func(a *arena) ended
	}{
		"without replay": {runs: func(a *arena) ended {
			tx, err := a.db.BeginTx(ContextWithoutReplay(a.Context()), nil)
			if err != nil {
				a.Fatal(err)
			}
			if _, err := tx.Exec(row(1)); err != nil {
				a.Fatal(err)
			}
			a.meetsInVain()
			return goes(func() error { _, err := tx.Exec(row(2)); return errors.Join(err, tx.Commit()) })
		}},
		"after an advisory lock": {runs: func(a *arena) ended {
			tx := a.begin(sql.LevelReadCommitted)
			tx.does(row(1))
			tx.sees(`SELECT pg_advisory_xact_lock(4711)`)
			a.meetsInVain()
			return goes(func() error { _, err := tx.Exec(row(2)); return errors.Join(err, tx.Commit()) })
		}},
		"inside a savepoint, after a read": {runs: func(a *arena) ended {
			tx := a.begin(sql.LevelReadCommitted)
			tx.does(row(1))
			tx.does(`SAVEPOINT a`)
			tx.sees(`SELECT balance FROM account WHERE id = 4`)
			a.meetsInVain()
			return goes(func() error { _, err := tx.Exec(row(2)); return errors.Join(err, tx.Commit()) })
		}},
		"plain, in ModeClosure": {options: []Option{WithMode(ModeClosure)}, runs: func(a *arena) ended {
			tx := a.begin(sql.LevelReadCommitted)
			tx.does(row(1))
			a.meetsInVain()
			return goes(func() error { _, err := tx.Exec(row(2)); return errors.Join(err, tx.Commit()) })
		}},
		"a closure that is not to run again": {runs: func(a *arena) ended {
			return goes(func() error {
				return RunInTx(a.Context(), a.db, nil, func(ctx context.Context, tx *sql.Tx) error {
					if _, err := tx.ExecContext(ctx, row(1)); err != nil {
						return err
					}
					a.meetsInVain()
					_, err := tx.ExecContext(ctx, row(2))
					return err
				}, WithMode(ModeOff))
			})
		}},
		"a closure in its last attempt": {runs: func(a *arena) ended {
			return goes(func() error {
				return RunInTx(a.Context(), a.db, nil, func(ctx context.Context, tx *sql.Tx) error {
					if _, err := tx.ExecContext(ctx, row(1)); err != nil {
						return err
					}
					a.meetsInVain()
					_, err := tx.ExecContext(ctx, row(2))
					return err
				}, WithPolicy(Policy{MaxAttempts: 1}))
			})
		}},
		"a closure that has committed something": {runs: func(a *arena) ended {
			return goes(func() error {
				return Retry(a.Context(), func(ctx context.Context) error {
					if _, err := a.db.ExecContext(ctx, `INSERT INTO trace VALUES ('committed')`); err != nil {
						return err
					}
					return transacts(ctx, a.db, func(ctx context.Context, tx *sql.Tx) error {
						if _, err := tx.ExecContext(ctx, row(1)); err != nil {
							return err
						}
						a.meetsInVain()
						_, err := tx.ExecContext(ctx, row(2))
						return err
					})
				})
			})
		}},
		"a lone statement that is not executed again": {runs: func(a *arena) ended {
			stage, err := a.plain.Conn(a.Context())
			if err != nil {
				a.Fatal(err)
			}
			defer stage.Close()
			if _, err := stage.ExecContext(a.Context(), `SELECT pg_advisory_lock(7355)`); err != nil {
				a.Fatal(err)
			}
			a.rivalDoes("BEGIN", crossing.holds)
			ends := goes(func() error {
				_, err := a.db.ExecContext(a.Context(), `DO $$ BEGIN `+row(1)+`; PERFORM pg_advisory_xact_lock(7355); `+row(2)+`; END $$`)
				return err
			})
			a.until(`SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted)`)
			go func() { _, _ = a.rival.ExecContext(a.Context(), crossing.wants) }()
			a.until(`SELECT cardinality(pg_blocking_pids($1)) > 0`, a.pid)
			if _, err := stage.ExecContext(a.Context(), `SELECT pg_advisory_unlock(7355)`); err != nil {
				a.Fatal(err)
			}
			return ends
		}},
	} {
		t.Run(name, func(t *testing.T) {
			a := enterOn(t, pgtest.DSN(t)+"&deadlock_timeout=1h", append([]Option{WithContention(ContentionDetector)}, c.options...),
				bank, `CREATE TABLE trace (what text)`)
			remember(a.db, "", row(1))
			ended := c.runs(a)
			a.waits(2)
			// Another one waits, so that there is somebody to look for.
			waiter := goes(func() error {
				return RunInTx(a.Context(), a.db, nil, func(ctx context.Context, tx *sql.Tx) error {
					_, err := tx.ExecContext(ctx, row(2))
					return err
				})
			})
			a.looksInVain(ended)
			err := waiter()
			if err != nil {
				t.Error(err)
			}
			_ = a.rival.Close() // it is gone
			if a.rival, err = a.plain.Conn(t.Context()); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestTheErrorOfADeadlockFoundEarlyIsTheServers(t *testing.T) {
	for name, c := range map[string]struct{ pool func(*observatory) []Option }{
		"nothing in between": {func(*observatory) []Option { return nil }},
		"otelsql in between": {func(o *observatory) []Option { return append(o.options(), WithStatementSpans()) }},
	} {
		t.Run(name, func(t *testing.T) {
			o := newObservatory(t)
			a := enterHot(t, append(c.pool(o), WithPolicy(Policy{MaxAttempts: 2}), WithMeterProvider(o.meters), WithTracerProvider(o.tracers))...)
			tx := a.begin(sql.LevelReadCommitted)
			tx.does(row(1))
			tx.sees(`SELECT balance FROM account WHERE id = 1`)
			over := a.meets(opponent{
				holds: `UPDATE account SET balance = balance + 1 WHERE id = 2`,
				wants: `UPDATE account SET balance = balance - 7 WHERE id = 1`,
			})
			_, err := tx.Exec(row(2)) // the rival changes what was shown
			over()
			server, _ := tested.finds(err)
			if server.code != "40P01" || server.message != "deadlock detected" || sqlState(err) != "40P01" || strings.Contains(err.Error(), "57014") {
				t.Fatalf("the error is %#v", err)
			}
			deadlock, ok := ParseDeadlock(err)
			if !ok || len(deadlock.Edges) != 2 || deadlock.Edges[0].BlockedBy != a.pid || deadlock.Edges[1].PID != a.pid ||
				deadlock.Edges[1].BlockedBy != deadlock.Edges[0].PID || deadlock.Edges[0].Mode != "ShareLock" || deadlock.Relation != "account" {
				t.Errorf("the deadlock is %+v", deadlock)
			}
			if err := tx.Rollback(); err != nil {
				t.Error(err)
			}
			if s := a.stats(); s.DeadlocksFoundEarly < 1 {
				t.Errorf("the statistics are %+v", s)
			}
			var found int64
			var data metricdata.ResourceMetrics
			if err := o.reader.Collect(t.Context(), &data); err != nil {
				t.Fatal(err)
			}
			for _, scope := range data.ScopeMetrics {
				for _, m := range scope.Metrics {
					if sum, ok := m.Data.(metricdata.Sum[int64]); ok && strings.Contains(m.Name, "early") {
						for _, point := range sum.DataPoints {
							found += point.Value
						}
					}
				}
			}
			if found < 1 {
				t.Errorf("the metric says %d", found)
			}
			events := 0
			for _, span := range o.spans.GetSpans() {
				for _, event := range span.Events {
					for _, attribute := range event.Attributes {
						if event.Name == eventDeadlock && strings.Contains(attribute.Value.String(), fmt.Sprintf("blocked by %d", a.pid)) {
							events++
						}
					}
				}
			}
			if events < 2 { // the first one's, which the server has found, too
				t.Errorf("%d spans tell of a deadlock with the rival", events)
			}
		})
	}
}

// oddError is a server's error of a type that cannot be copied into another one.
type oddError struct{ state string }

func (e oddError) Error() string    { return "odd: " + e.state }
func (e oddError) SQLState() string { return e.state }

func TestOfErrorsOfAnUnknownTypeADeadlockIsMade(t *testing.T) {
	detail := lockgraph.Cycle{
		{Waiter: lockgraph.Session{PID: 1}, Mode: "ShareLock", Object: lockgraph.Object{Type: "transactionid", TransactionID: "7"}, Blocker: lockgraph.Session{PID: 2}},
		{Waiter: lockgraph.Session{PID: 2}, Mode: "ShareLock", Object: lockgraph.Object{Type: "transactionid", TransactionID: "8"}, Blocker: lockgraph.Session{PID: 1}},
	}.Detail()
	for name, cancelled := range map[string]error{
		"lib/pq":         &pq.Error{Code: "57014", Message: "canceling statement due to user request", Routine: "ProcessInterrupts"},
		"a field each":   &drivertest.Error{Code: "57014", Message: "canceling statement due to user request"},
		"no fields":      oddError{"57014"},
		"behind pointer": &oddError{"57014"},
		"wrapped":        fmt.Errorf("odd: %w", &pq.Error{Code: "57014"}),
	} {
		made := asDeadlock(cancelled, detail)
		deadlock, ok := ParseDeadlock(made)
		if !ok || len(deadlock.Edges) != 2 || sqlState(made) != "40P01" || Classify(made, PhaseStatement) != ClassRetryable {
			t.Errorf("%s: %#v is %+v", name, made, deadlock)
		}
		if sqlState(cancelled) != "57014" {
			t.Errorf("%s: the error itself has changed: %v", name, cancelled)
		}
		if strings.Contains(made.Error(), "user request") {
			t.Errorf("%s: it says %v", name, made)
		}
	}
	other := &pq.Error{Code: "23505"}
	if made := asDeadlock(other, detail); made != error(other) { //nolint:errorlint // the very same
		t.Errorf("of another error %v is made", made)
	}
}

// Transactions that take their locks in one order wait, however long, and nobody is cancelled.
func TestWhoWaitsInOrderIsNeverCancelled(t *testing.T) {
	const workers, each = 32, 1
	a := enterHot(t, WithContention(ContentionDetector|ContentionLimit|ContentionProbes))
	before := a.stats()
	var all sync.WaitGroup
	for range workers {
		all.Go(func() {
			for range each {
				if err := transacts(t.Context(), a.db, func(ctx context.Context, tx *sql.Tx) error {
					for id := 1; id <= 2; id++ {
						if _, err := tx.ExecContext(ctx, row(id)); err != nil {
							return err
						}
					}
					_, err := tx.ExecContext(ctx, `SELECT pg_sleep(0.1)`)
					return err
				}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	after := a.stats()
	if attempts, commits := after.Attempts-before.Attempts, after.Committed-before.Committed; attempts != workers*each || commits != attempts {
		t.Errorf("%d attempts and %d commits of %d transactions", attempts, commits, workers*each)
	}
	a.early(0)
}

// Whatever comes right after a deadlock was ended is not hit by what ended it.
func TestACancelNeverHitsALaterStatement(t *testing.T) {
	const workers, each = 8, 40
	for _, api := range []string{"transactions", "closures"} {
		t.Run(api, func(t *testing.T) {
			a := enterHot(t, WithPolicy(Policy{MaxAttempts: 10_000, BaseDelay: time.Millisecond, MaxDelay: 5 * time.Millisecond, MaxElapsed: time.Minute}))
			var all sync.WaitGroup
			for worker := range workers {
				all.Go(func() {
					for n := range each {
						first, second := 1+(worker+n)%4, 1+(worker*3+n*7+1)%4
						body := func(ctx context.Context, tx *sql.Tx) error {
							for _, id := range []int{first, second} {
								if _, err := tx.ExecContext(ctx, row(id)); err != nil {
									if sqlState(err) == "57014" {
										t.Errorf("the closure gets %v", err)
									}
									return err
								}
							}
							return nil
						}
						var err error
						if api == "closures" {
							err = RunInTx(t.Context(), a.db, nil, body)
						} else {
							err = transacts(t.Context(), a.db, body)
						}
						if err != nil {
							t.Error(err)
						}
						var one int
						if err := a.db.QueryRow(`SELECT 1`).Scan(&one); err != nil {
							t.Error(err)
						}
					}
				})
			}
			all.Wait()
			a.is(fmt.Sprint(4*100+2+2*workers*each), `SELECT sum(balance) FROM account`)
			s := a.stats()
			if s.PlainConflicts != 0 || s.Exhausted != 0 || s.HiddenBySQLState["57014"] != 0 || s.RetriesBySQLState["57014"] != 0 {
				t.Errorf("the statistics are %+v", s)
			}
			if s.DeadlocksFoundEarly == 0 {
				t.Error("there was no deadlock")
			}
			t.Logf("%d deadlocks in %d transactions", s.DeadlocksFoundEarly, workers*each)
		})
	}
}

// A cancel that is not ours is told as it is.
func TestACancelOfSomebodyElsesIsToldAsItIs(t *testing.T) {
	for name, c := range map[string]struct {
		set  string
		ends func(a *arena, cancel context.CancelFunc)
		is   func(error) bool
	}{
		"the context": {
			ends: func(_ *arena, cancel context.CancelFunc) { cancel() },
			is:   func(err error) bool { return errors.Is(err, context.Canceled) || sqlState(err) == "57014" },
		},
		"statement_timeout": {
			set: `SET LOCAL statement_timeout = '50ms'`, ends: func(*arena, context.CancelFunc) {},
			is: func(err error) bool {
				return sqlState(err) == "57014" && strings.Contains(err.Error(), "statement timeout")
			},
		},
		"pg_cancel_backend": {
			ends: func(a *arena, _ context.CancelFunc) {
				a.until(`SELECT bool_or(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE $1 = ANY (pg_blocking_pids(pid))`, a.pid)
			},
			is: func(err error) bool { return sqlState(err) == "57014" },
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := enterHot(t)
			tx := a.begin(sql.LevelReadCommitted)
			if c.set != "" {
				tx.does(c.set)
			}
			tx.does(row(1))
			a.rivalDoes(`BEGIN`, row(2)) // it holds the lock, and wants nothing
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			ended := goes(func() error { _, err := tx.ExecContext(ctx, row(2)); return err })
			if c.set == "" {
				a.waits(1)
			}
			c.ends(a, cancel)
			if err := ended(); !c.is(err) || sqlState(err) == "40P01" {
				t.Errorf("the error is %v", err)
			}
			_ = tx.Rollback()
			a.rivalDoes(`ROLLBACK`)
			a.early(0)
		})
	}
}

// While the detector has chosen the statement, its context ends.
func TestAContextThatEndsWhileAStatementIsChosenIsTheError(t *testing.T) {
	connector, err := NewConnector(drivertest.New().Connector())
	if err != nil {
		t.Fatal(err)
	}
	c := &conn{connector: connector}
	ctx, cancel := context.WithCancel(t.Context())
	d := &connector.memory.detector
	d.claims = map[*conn]*claim{c: {detail: "detail", sent: make(chan struct{})}}
	close(d.claims[c].sent)
	c.takeOff()
	c.airborne.Store(c.airborne.Load() | claimed)
	cancel()
	cancelled := &pq.Error{Code: "57014"}
	if got := c.land(ctx, cancelled); got != error(cancelled) { //nolint:errorlint // the very same
		t.Errorf("the error is %v", got)
	}
	if len(d.claims) != 0 {
		t.Error("the claim is left")
	}
}

// What is chosen waits until the request is through, and not a moment less.
func TestAStatementThatWasChosenEndsAfterTheRequest(t *testing.T) {
	connector, err := NewConnector(drivertest.New().Connector())
	if err != nil {
		t.Fatal(err)
	}
	c := &conn{connector: connector}
	d := &connector.memory.detector
	sent := make(chan struct{})
	d.claims = map[*conn]*claim{c: {detail: "detail", sent: sent}}
	c.takeOff()
	c.airborne.Store(c.airborne.Load() | claimed)
	var through atomic.Bool
	landed := goes(func() error {
		err := c.land(t.Context(), nil)
		if !through.Load() {
			t.Error("it is over before the request is through")
		}
		return err
	})
	for c.airborne.Load()&claimed != 0 {
		runtime.Gosched()
	}
	for range 1000 {
		runtime.Gosched()
	}
	through.Store(true)
	close(sent)
	if err := landed(); err != nil {
		t.Errorf("it had succeeded, and says %v", err)
	}
}

// A statement that is over can be chosen no more, nor can its successor for it.
func TestOnlyTheStatementThatWasSeenIsChosen(t *testing.T) {
	connector, err := NewConnector(drivertest.New().Connector())
	if err != nil {
		t.Fatal(err)
	}
	connector.memory.learn(kindKey{name: "some"})
	c := &conn{connector: connector, loneLocks: true}
	d := &connector.memory.detector
	d.side = &conn{origin: origin{history: "h"}}
	d.awake.Store(true) // by itself it does nothing
	d.sessions = map[*conn]*process{c: {pid: 1, started: "1", history: "h"}}
	d.claims = make(map[*conn]*claim)
	circle := lockgraph.Cycle{
		{Waiter: lockgraph.Session{PID: 1, Started: "1"}, Blocker: lockgraph.Session{PID: 2}},
		{Waiter: lockgraph.Session{PID: 2}, Blocker: lockgraph.Session{PID: 1, Started: "1"}},
	}
	choose := func(sights map[*conn]sight) bool {
		victim, _, _ := d.choose(circle, sights)
		return victim != nil
	}
	c.takeOff()
	seen := map[*conn]sight{c: {flight: c.airborne.Load()}}
	if choose(nil) {
		t.Error("nobody has seen it")
	}
	_ = c.land(t.Context(), nil)
	if choose(seen) {
		t.Error("it is over")
	}
	c.takeOff()
	if choose(seen) {
		t.Error("it is another one")
	}
	seen = map[*conn]sight{c: {flight: c.airborne.Load()}}
	for what, change := range map[string]func(*process){
		"another life of the server": func(p *process) { p.history = "other" },
		"another process":            func(p *process) { p.pid = 3 },
		"another life of its id":     func(p *process) { p.started = "0" },
	} {
		other := process{pid: 1, started: "1", history: "h"}
		change(&other)
		d.sessions[c] = &other
		if choose(seen) {
			t.Errorf("it is %s", what)
		}
	}
	d.sessions[c] = &process{pid: 1, started: "1", history: "h"}
	if len(d.claims) != 0 {
		t.Error("a claim is left")
	}
	if !choose(seen) {
		t.Error("it is not chosen")
	}
	if choose(seen) {
		t.Error("it is chosen twice")
	}
}

// side returns the process of the detector's own connection, 0 if there is none.
func (a *arena) side() int {
	a.Helper()
	var pid sql.NullInt64
	if err := a.plain.QueryRow(`SELECT max(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()
		AND (query LIKE 'WITH locks AS%' OR query LIKE 'SELECT pg_catalog.pg_cancel_backend(pid)%')`).Scan(&pid); err != nil {
		a.Fatal(err)
	}
	return int(pid.Int64)
}

// deadlocksEarly has two of our transactions deadlock, and the detector end that.
func (a *arena) deadlocksEarly() {
	a.Helper()
	before := a.stats().DeadlocksFoundEarly
	tx := a.begin(sql.LevelReadCommitted)
	tx.does(row(1))
	over := a.meets(crossing)
	tx.does(row(2))
	over()
	tx.commits()
	if got := a.stats().DeadlocksFoundEarly; got <= before {
		a.Errorf("%d deadlocks were found early, as before", got)
	}
}

func TestSessionsAreKnownToTheDetectorWhereOutcomesAreNotAskedFor(t *testing.T) {
	a := enterHot(t, WithCommitOutcome(CommitReport))
	a.deadlocksEarly()
}

func TestASessionThatTookThePlaceOfALostOneIsKnownToTheDetector(t *testing.T) {
	a := enterHot(t)
	tx := a.begin(sql.LevelReadCommitted)
	tx.does(row(3))
	a.until(`SELECT bool_or(pg_terminate_backend(pid, 10000)) FROM pg_locks WHERE relation = 'account'::regclass AND mode = 'RowExclusiveLock'`)
	tx.does(row(1)) // in another session
	over := a.meets(crossing)
	tx.does(row(2))
	over()
	tx.commits()
	a.early(1)
	if s := a.stats(); s.Reconnects != 1 {
		t.Errorf("the statistics are %+v", s)
	}
}

func TestADetectorThatLosesItsConnectionLooksAgain(t *testing.T) {
	for name, disturb := range map[string]func(*arena){
		"terminated": func(a *arena) {
			pid := a.side()
			if pid == 0 {
				a.Fatal("there is no connection of the detector's")
			}
			if _, err := a.plain.Exec(`SELECT pg_terminate_backend($1, 10000)`, pid); err != nil {
				a.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := enterHot(t)
			a.deadlocksEarly()
			disturb(a)
			a.deadlocksEarly()
		})
	}
}

// There is no room for the detector's connection, until there is.
func TestADetectorThatIsRefusedIsBlindForAWhile(t *testing.T) {
	server, err := pgserver.Start(t.Context(), pgserver.WithSettings(map[string]string{"deadlock_timeout": "10ms"}))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	}()
	admin, err := tested.plainly(server.DSN())
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	if _, err := admin.Exec(`CREATE ROLE ordinary LOGIN CONNECTION LIMIT 1; GRANT ALL ON SCHEMA public TO ordinary; GRANT SET ON PARAMETER deadlock_timeout TO ordinary`); err != nil {
		t.Fatal(err)
	}
	address, err := url.Parse(server.DSN())
	if err != nil {
		t.Fatal(err)
	}
	address.User = url.User("ordinary")
	dsn := address.String()
	if address.RawQuery == "" {
		dsn += "?"
	}
	a := &arena{T: t, plain: admin}
	if a.db, err = tested.open(dsn+"&deadlock_timeout=1h", WithContention(ContentionDetector)); err != nil {
		t.Fatal(err)
	}
	defer a.db.Close()
	a.db.SetMaxOpenConns(1)
	for _, statement := range strings.Split(bank, "; ") {
		if _, err := a.db.Exec(statement); err != nil {
			t.Fatal(err)
		}
	}
	if a.rival, err = admin.Conn(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer a.rival.Close()
	if err := a.rival.QueryRowContext(t.Context(), `SELECT pg_backend_pid()`).Scan(&a.pid); err != nil {
		t.Fatal(err)
	}
	a.rivalDoes(`SET deadlock_timeout = '1h'`)
	remember(a.db, "", row(1))
	d := &connectorOf(a.db).memory.detector
	tx := a.begin(sql.LevelReadCommitted)
	tx.does(row(1))
	over := a.meets(crossing)
	ended := goes(func() error { _, err := tx.Exec(row(2)); return err })
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for d.blind.Load() == 0 && ctx.Err() == nil {
		a.waits(1)
	}
	if d.blind.Load() == 0 {
		t.Error("it is not blind")
	}
	if a.read(`SELECT count(*) FROM pg_stat_activity WHERE usename = 'ordinary'`) != "1" {
		t.Error("there are connections too many")
	}
	if _, err := admin.Exec(`ALTER ROLE ordinary CONNECTION LIMIT 2`); err != nil {
		t.Fatal(err)
	}
	if err := ended(); err != nil { // as soon as it looks again
		t.Fatal(err)
	}
	over()
	tx.commits()
	a.early(1)
}

func TestADetectorIsBlindForLongerEachTime(t *testing.T) {
	f := newFixture(t)
	f.Fail(drivertest.Connect, errors.New("no room"))
	d := &f.connector.memory.detector
	var pauses []time.Duration
	for range 9 {
		d.look(nil)
		pauses = append(pauses, time.Unix(0, d.blind.Load()).Sub(f.now))
		f.now = time.Unix(0, d.blind.Load())
	}
	want := []time.Duration{1, 2, 4, 8, 16, 32, 60, 60, 60}
	for i, seconds := range want {
		if pauses[i] != seconds*time.Second {
			t.Fatalf("the pauses are %v", pauses)
		}
	}
	f.ClearRules()
}

// A blind detector does not look, and one that sees does, at what has been under way for
// long enough.
func TestADetectorLooksAtWhatHasWaitedForLong(t *testing.T) {
	f := newFixture(t)
	f.connector.memory.learn(kindKey{name: "some"})
	d := &f.connector.memory.detector
	c := &conn{connector: f.connector, loneLocks: true}
	d.sessions = map[*conn]*process{c: {pid: 1}}
	d.awake.Store(true) // by itself it does nothing
	d.claims = make(map[*conn]*claim)
	sights := make(map[*conn]sight)
	glance := func(wantUnder int, wantDue bool) {
		t.Helper()
		if under, due := d.glance(sights); under != wantUnder || due != wantDue {
			t.Errorf("%d are under way, it is time: %t; want %d and %t", under, due, wantUnder, wantDue)
		}
	}
	glance(0, false)
	c.takeOff()
	glance(1, false)
	f.now = f.now.Add(patientFor - 1)
	glance(1, false)
	f.now = f.now.Add(1)
	glance(1, true)
	glance(1, false) // the next look comes later
	f.now = f.now.Add(2*patientFor - 1)
	glance(1, false)
	f.now = f.now.Add(1)
	d.blind.Store(f.now.Add(1).UnixNano())
	glance(1, false)
	if d.sees(c) {
		t.Error("it sees")
	}
	f.now = f.now.Add(1)
	if !d.sees(c) {
		t.Error("it is still blind")
	}
	glance(1, true)
	_ = c.land(t.Context(), nil)
	glance(0, false)
	c.takeOff()
	f.now = f.now.Add(3 * patientFor)
	glance(1, false) // it is another one
	d.remove(c)
	glance(0, false)
	if len(sights) != 0 {
		t.Error("it is remembered")
	}
}

func TestADetectorDoesNotGoToSleepWhileAStatementIsUnderWay(t *testing.T) {
	f := newFixture(t)
	f.connector.memory.learn(kindKey{name: "some"})
	d := &f.connector.memory.detector
	c := &conn{connector: f.connector, loneLocks: true}
	d.sessions = map[*conn]*process{c: {pid: 1}}
	d.awake.Store(true)
	c.takeOff()
	if d.sleeps() || !d.awake.Load() {
		t.Error("it sleeps")
	}
	_ = c.land(t.Context(), nil)
	if !d.sleeps() || d.awake.Load() {
		t.Error("it does not sleep")
	}
}

func TestClosingTheDatabaseClosesTheDetectorsConnection(t *testing.T) {
	for _, when := range []string{"asleep", "awake"} {
		t.Run(when, func(t *testing.T) {
			a := enterHot(t)
			a.deadlocksEarly()
			pid := a.side()
			if pid == 0 {
				t.Fatal("there is no connection of the detector's")
			}
			d := &connectorOf(a.db).memory.detector
			for when == "asleep" && d.awake.Load() {
				a.read(`SELECT 1`)
			}
			if err := a.db.Close(); err != nil {
				t.Fatal(err)
			}
			a.until(`SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)`, pid)
			for d.awake.Load() {
				a.read(`SELECT 1`)
			}
		})
	}
}

func TestWhereNothingDeadlocksNobodyLooks(t *testing.T) {
	a := enterOn(t, pgtest.DSN(t), nil, bank)
	a.rivalDoes(`BEGIN`, row(1))
	tx := a.begin(sql.LevelReadCommitted)
	ended := goes(func() error { _, err := tx.Exec(row(1)); return err })
	a.waits(1)
	d := &connectorOf(a.db).memory.detector
	if d.awake.Load() || d.side != nil {
		t.Error("it looks")
	}
	a.rivalDoes(`COMMIT`)
	if err := ended(); err != nil {
		t.Fatal(err)
	}
	tx.commits()
}

func TestWithoutTheDetectorNobodyLooks(t *testing.T) {
	a := enterOn(t, pgtest.DSN(t), []Option{WithContention(ContentionLimit | ContentionProbes)}, bank)
	remember(a.db, "", row(1))
	tx := a.begin(sql.LevelReadCommitted)
	tx.does(row(1))
	tx.commits()
	if d := &connectorOf(a.db).memory.detector; d.awake.Load() || d.sessions != nil {
		t.Error("it looks")
	}
}

// The server has failed over, and the detector's connection leads to the old one.
func TestADetectorThatLooksAtAnotherServerLooksElsewhere(t *testing.T) {
	a := enterHot(t)
	a.deadlocksEarly()
	d := &connectorOf(a.db).memory.detector
	for d.awake.Load() {
		a.read(`SELECT 1`)
	}
	d.mu.Lock()
	d.side.origin.history = "of another server"
	d.mu.Unlock()
	a.deadlocksEarly()
}

func TestBehindPgBouncerNobodyLooks(t *testing.T) {
	db, plain, _, schema := bounced(t)
	if _, err := plain.Exec(bank); err != nil {
		t.Fatal(err)
	}
	remember(db, "", `UPDATE `+schema+`.account SET balance = 1 WHERE id = 1`)
	var timeout string
	if err := RunInTx(t.Context(), db, nil, func(ctx context.Context, tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, `UPDATE `+schema+`.account SET balance = 1 WHERE id = 1`); err != nil {
			return err
		}
		return tx.QueryRowContext(ctx, `SHOW lock_timeout`).Scan(&timeout)
	}); err != nil {
		t.Fatal(err)
	}
	if timeout != "20ms" {
		t.Errorf("lock_timeout is %s", timeout)
	}
	if d := &connectorOf(db).memory.detector; d.awake.Load() || len(d.sessions) != 0 {
		t.Error("it looks")
	}
	if err := db.QueryRow(`SHOW lock_timeout`).Scan(&timeout); err != nil || timeout != "0" {
		t.Errorf("lock_timeout is left at %s, %v", timeout, err)
	}
}
