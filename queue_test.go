package pgretry

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/pgretry/pgretry/internal/drivertest"
	"github.com/pgretry/pgretry/internal/gate"
	"github.com/pgretry/pgretry/internal/pgserver/pgtest"
)

// adds is the first statement of the kind of transactions that these tests are about.
const adds = `UPDATE account SET balance = balance + 1 WHERE id = 1`

// remember makes a kind of a name or of a statement one that has deadlocked.
func remember(db *sql.DB, name, text string) *kind {
	memory := &connectorOf(db).memory
	k := memory.learn(memory.keyOf(name, text))
	k.deadlocks.Add(1)
	return k
}

// narrow lets one transaction of the kind in at a time.
func narrow(t *testing.T, k *kind) *gate.Gate {
	t.Helper()
	g := k.gate.Load()
	g.Enlist().Leave(gate.Deadlocked)
	if g.Limit() != 1 {
		t.Fatalf("the limit is %d", g.Limit())
	}
	return g
}

// occupy takes the only place inside, and returns what lets the next one in.
func occupy(t *testing.T, k *kind) (leave func()) {
	t.Helper()
	pass, err := narrow(t, k).Enter(t.Context(), time.Unix(0, 0))
	if err != nil {
		t.Fatal(err)
	}
	once := sync.OnceFunc(func() { pass.Leave(gate.Committed) })
	t.Cleanup(once)
	return once
}

// patientGate makes waits at gates end only when somebody leaves.
func patientGate(db *sql.DB) {
	config := connectorOf(db).config
	config.gate.Stall, config.gate.MaxWait = time.Hour, 2*time.Hour
}

// isQueued returns when so many wait at the gate.
func isQueued(t *testing.T, k *kind, n int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for k.gate.Load().Waiting() != n {
		if ctx.Err() != nil {
			t.Fatalf("%d wait, want %d", k.gate.Load().Waiting(), n)
		}
		runtime.Gosched()
	}
}

// isEmpty returns when nobody is inside a kind's gate any more.
func isEmpty(t *testing.T, k *kind) {
	t.Helper()
	select {
	case <-k.gate.Load().Drained():
	case <-time.After(30 * time.Second):
		t.Fatalf("%d are still inside", k.gate.Load().Inside())
	}
}

// enterQueue is an arena in which transactions that begin with adds, or are called
// transfer, have deadlocked, and one of them runs at a time.
func enterQueue(t *testing.T, options ...Option) (a *arena, k, named *kind) {
	t.Helper()
	a = enterOn(t, pgtest.DSN(t), append([]Option{WithContention(ContentionLimit)}, options...), bank)
	patientGate(a.db)
	return a, remember(a.db, "", adds), remember(a.db, "transfer", "")
}

// goes runs f beside the test, which asks for the error later.
func goes(f func() error) (ended func() error) {
	done := make(chan error, 1)
	go func() { done <- f() }()
	return func() error { return <-done }
}

func TestATransactionWaitsBeforeItsFirstLockWhileItsKindIsLimited(t *testing.T) {
	for _, c := range []struct {
		name  string
		level sql.IsolationLevel
		first string
		waits bool
	}{
		{"READ COMMITTED", sql.LevelReadCommitted, "", true},
		{"READ COMMITTED, after a read", sql.LevelReadCommitted, `SELECT balance FROM account WHERE id = 1`, true},
		{"REPEATABLE READ", sql.LevelRepeatableRead, "", true},
		{"REPEATABLE READ, after a read", sql.LevelRepeatableRead, `SELECT balance FROM account WHERE id = 1`, false},
		{"SERIALIZABLE", sql.LevelSerializable, "", true},
		{"SERIALIZABLE, after a read", sql.LevelSerializable, `SELECT balance FROM account WHERE id = 1`, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, k, _ := enterQueue(t)
			leave := occupy(t, k)
			tx := a.begin(c.level)
			if c.first != "" {
				tx.sees(c.first)
			}
			ended := goes(func() error { _, err := tx.Exec(adds); return err })
			if c.waits {
				isQueued(t, k, 1)
				a.is("0", `SELECT count(*) FROM pg_locks WHERE relation = 'account'::regclass AND mode = 'RowExclusiveLock'`)
				leave()
			}
			if err := ended(); err != nil {
				t.Fatal(err)
			}
			if got := k.gate.Load().Inside(); got != map[bool]int{true: 1, false: 2}[c.waits] {
				t.Errorf("%d are inside", got)
			}
			tx.commits()
			leave()
			isEmpty(t, k)
			if s := a.stats().Kinds; (k.waits.Load() == 1) != c.waits || len(s) != 2 {
				t.Errorf("the kinds are %+v", s)
			}
		})
	}
}

func TestANamedTransactionWaitsBeforeBegin(t *testing.T) {
	a, _, named := enterQueue(t)
	leave := occupy(t, named)
	var tx *sql.Tx
	ended := goes(func() (err error) {
		tx, err = a.db.BeginTx(ContextWithName(t.Context(), "transfer"), nil)
		return err
	})
	isQueued(t, named, 1)
	a.is("0", `SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%' AND query LIKE 'BEGIN%' AND pid <> pg_backend_pid()
		AND pid IN (SELECT pid FROM pg_locks WHERE locktype = 'relation' AND relation = 'account'::regclass)`)
	leave()
	if err := ended(); err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(adds); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	isEmpty(t, named)
	if named.waits.Load() != 1 {
		t.Errorf("it waited %d times", named.waits.Load())
	}
}

func TestAClosureWaitsBeforeItTakesAConnection(t *testing.T) {
	a, _, named := enterQueue(t)
	a.db.SetMaxOpenConns(1)
	leave := occupy(t, named)
	ended := goes(func() error {
		return RunInTx(ContextWithName(t.Context(), "transfer"), a.db, nil, func(ctx context.Context, tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, adds)
			return err
		})
	})
	isQueued(t, named, 1)
	var n int
	if err := a.db.QueryRow(`SELECT 1`).Scan(&n); err != nil { // the only connection is free
		t.Fatal(err)
	}
	leave()
	if err := ended(); err != nil {
		t.Fatal(err)
	}
	isEmpty(t, named)
}

func TestAClosureWithoutANameWaitsFromItsSecondAttemptOn(t *testing.T) {
	f := newFixture(t, WithContention(ContentionLimit))
	f.now = time.Now()
	patientGate(f.db)
	f.Fail(drivertest.AnyExec, serverErr("40P01")).Matching("last").Times(1)
	var k *kind
	var leave func()
	f.onWait = func() {
		k = f.connector.memory.find(f.connector.memory.keyOf("", locksFirst))
		leave = occupy(t, k)
	}
	wait := f.connector.config.wait
	waited := make(chan struct{})
	f.connector.config.wait = func(ctx context.Context, d time.Duration) error {
		defer close(waited)
		return wait(ctx, d)
	}
	ended := goes(func() error { return RunInTx(t.Context(), f.db, nil, twoStatements) })
	<-waited
	isQueued(t, k, 1)
	if n := f.db.Stats().InUse; n != 0 {
		t.Errorf("%d connections are in use", n)
	}
	leave()
	if err := ended(); err != nil {
		t.Fatal(err)
	}
	isEmpty(t, k)
}

func TestALoneStatementWaits(t *testing.T) {
	a, k, _ := enterQueue(t)
	leave := occupy(t, k)
	ended := goes(func() error { _, err := a.db.Exec(adds); return err })
	isQueued(t, k, 1)
	leave()
	if err := ended(); err != nil {
		t.Fatal(err)
	}
	isEmpty(t, k)
}

func TestTheOldestTransactionGoesFirst(t *testing.T) {
	a, k, _ := enterQueue(t)
	leave := occupy(t, k)
	old, young := a.begin(sql.LevelReadCommitted), a.begin(sql.LevelReadCommitted)
	var mu sync.Mutex
	var order []string
	goOn := func(name string, tx *script) func() error {
		return goes(func() error {
			if _, err := tx.Exec(adds); err != nil {
				return err
			}
			mu.Lock()
			order = append(order, name)
			mu.Unlock()
			return tx.Commit()
		})
	}
	second := goOn("young", young)
	isQueued(t, k, 1)
	first := goOn("old", old)
	isQueued(t, k, 2)
	leave()
	if err := errors.Join(first(), second()); err != nil {
		t.Fatal(err)
	}
	if len(order) != 2 || order[0] != "old" {
		t.Errorf("they went %v", order)
	}
}

func TestTheEndOfAContextEndsTheWait(t *testing.T) {
	for _, where := range []string{"statement", "begin", "lone statement", "closure"} {
		t.Run(where, func(t *testing.T) {
			a, k, named := enterQueue(t)
			a.db.SetMaxOpenConns(1)
			if where == "begin" || where == "closure" {
				k = named
			}
			occupy(t, k)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var tx *sql.Tx
			if where == "statement" {
				var err error
				if tx, err = a.db.Begin(); err != nil {
					t.Fatal(err)
				}
			}
			ended := goes(func() error {
				switch where {
				case "statement":
					_, err := tx.ExecContext(ctx, adds)
					return err
				case "begin":
					_, err := a.db.BeginTx(ContextWithName(ctx, "transfer"), nil)
					return err
				case "closure":
					return RunInTx(ContextWithName(ctx, "transfer"), a.db, nil, func(context.Context, *sql.Tx) error {
						t.Error("the closure runs")
						return nil
					})
				}
				_, err := a.db.ExecContext(ctx, adds)
				return err
			})
			isQueued(t, k, 1)
			cancel()
			if err := ended(); !errors.Is(err, context.Canceled) {
				t.Errorf("the error is %v", err)
			}
			if tx != nil {
				var n int
				if err := tx.QueryRow(`SELECT 1`).Scan(&n); err != nil { // the transaction is still there
					t.Error(err)
				}
				if err := tx.Rollback(); err != nil {
					t.Error(err)
				}
			}
			isQueued(t, k, 0)
			a.is("100", `SELECT balance FROM account WHERE id = 1`)
			var pid int
			if err := a.db.QueryRow(`SELECT pg_backend_pid()`).Scan(&pid); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestASecondTransactionOfAKindGetsThroughWhileTheFirstIsOpen(t *testing.T) {
	a := enterOn(t, pgtest.DSN(t), []Option{WithContention(ContentionLimit)}, bank)
	config := connectorOf(a.db).config
	config.gate.Stall = 50 * time.Millisecond
	k := remember(a.db, "", adds)
	narrow(t, k)
	a.db.SetMaxOpenConns(2)
	outer := a.begin(sql.LevelReadCommitted)
	outer.does(adds)
	inner := a.begin(sql.LevelReadCommitted)
	inner.does(`UPDATE account SET balance = balance + 1 WHERE id = 2`)
	inner.commits()
	outer.commits()
	isEmpty(t, k)
}

// What runs inside a closure is part of what has waited for the gate already.
func TestNobodyWaitsForTheClosureItIsIn(t *testing.T) {
	a, _, named := enterQueue(t)
	narrow(t, named)
	other, err := a.db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	ctx, cancel := context.WithTimeout(ContextWithName(t.Context(), "transfer"), 20*time.Second)
	defer cancel()
	row := func(id int) string { return fmt.Sprintf(`UPDATE account SET balance = balance + 1 WHERE id = %d`, id) }
	for name, nested := range map[string]func(context.Context) error{
		"a lone statement": func(ctx context.Context) error { _, err := a.db.ExecContext(ctx, row(2)); return err },
		"a transaction": func(ctx context.Context) error {
			return transacts(ctx, a.db, func(ctx context.Context, tx *sql.Tx) error { _, err := tx.ExecContext(ctx, row(2)); return err })
		},
		"a closure on another session": func(ctx context.Context) error {
			return RunInTx(ctx, other, nil, func(ctx context.Context, tx *sql.Tx) error { _, err := tx.ExecContext(ctx, row(2)); return err })
		},
	} {
		before := named.waits.Load()
		if err := RunInTx(ctx, a.db, nil, func(ctx context.Context, tx *sql.Tx) error {
			if _, err := tx.ExecContext(ctx, row(1)); err != nil {
				return err
			}
			return nested(ctx)
		}); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if named.waits.Load() != before {
			t.Errorf("%s waits for its own closure", name)
		}
	}
	isEmpty(t, named)
}

func TestARetryWithSeveralTransactionsLeavesTheGate(t *testing.T) {
	a, k, _ := enterQueue(t)
	narrow(t, k)
	if err := Retry(t.Context(), func(ctx context.Context) error {
		for id := 1; id <= 3; id++ {
			if err := transacts(ctx, a.db, func(ctx context.Context, tx *sql.Tx) error {
				_, err := tx.ExecContext(ctx, fmt.Sprintf(`UPDATE account SET balance = balance + 1 WHERE id = %d`, id))
				return err
			}); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	isEmpty(t, k)
	if k.waits.Load() != 0 {
		t.Errorf("it waited %d times for itself", k.waits.Load())
	}
}

func TestAClosureOnAnotherDatabaseHasItsOwnGates(t *testing.T) {
	a, _, named := enterQueue(t)
	narrow(t, named)
	b, _, other := enterQueue(t)
	narrow(t, other)
	if err := RunInTx(ContextWithName(t.Context(), "transfer"), a.db, nil, func(ctx context.Context, tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, adds); err != nil {
			return err
		}
		return RunInTx(ctx, b.db, nil, func(ctx context.Context, tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, adds)
			return err
		})
	}); err != nil {
		t.Fatal(err)
	}
	isEmpty(t, named)
	isEmpty(t, other)
}

// However a transaction ends, it is inside no more.
func TestNobodyStaysInsideForEver(t *testing.T) {
	for name, ends := range map[string]func(t *testing.T, a *arena, name string){
		"a panic in a closure": func(t *testing.T, a *arena, name string) {
			defer func() {
				if recover() == nil {
					t.Error("the panic is gone")
				}
			}()
			_ = RunInTx(ContextWithName(t.Context(), name), a.db, nil, func(ctx context.Context, tx *sql.Tx) error {
				if _, err := tx.ExecContext(ctx, adds); err != nil {
					return err
				}
				panic("on purpose")
			})
		},
		"an error in a closure": func(t *testing.T, a *arena, name string) {
			wrong := errors.New("wrong")
			if err := RunInTx(ContextWithName(t.Context(), name), a.db, nil, func(ctx context.Context, tx *sql.Tx) error {
				_, err := tx.ExecContext(ctx, adds)
				return errors.Join(err, wrong)
			}); !errors.Is(err, wrong) {
				t.Error(err)
			}
		},
		"the application's rollback": func(t *testing.T, a *arena, name string) {
			if err := transacts(ContextWithName(t.Context(), name), a.db, func(ctx context.Context, tx *sql.Tx) error {
				_, err := tx.ExecContext(ctx, adds)
				return errors.Join(err, errors.ErrUnsupported)
			}); !errors.Is(err, errors.ErrUnsupported) {
				t.Error(err)
			}
		},
		"a mistake and a rollback": func(t *testing.T, a *arena, name string) {
			_ = transacts(ContextWithName(t.Context(), name), a.db, func(ctx context.Context, tx *sql.Tx) error {
				_, err := tx.ExecContext(ctx, adds)
				_, mistake := tx.ExecContext(ctx, `no SQL`)
				return errors.Join(err, mistake)
			})
		},
		"COMMIT as a statement": func(t *testing.T, a *arena, name string) {
			_ = transacts(ContextWithName(t.Context(), name), a.db, func(ctx context.Context, tx *sql.Tx) error {
				_, err := tx.ExecContext(ctx, adds)
				_, raw := tx.ExecContext(ctx, `COMMIT`)
				return errors.Join(err, raw)
			})
		},
		"the end of the context": func(t *testing.T, a *arena, name string) {
			ctx, cancel := context.WithCancel(ContextWithName(t.Context(), name))
			tx, err := a.db.BeginTx(ctx, nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := tx.ExecContext(ctx, adds); err != nil {
				t.Fatal(err)
			}
			cancel()
		},
		"a connection that is lost": func(t *testing.T, a *arena, name string) {
			tx, err := a.db.BeginTx(ContextWithName(ContextWithoutReplay(t.Context()), name), nil)
			if err != nil {
				t.Fatal(err)
			}
			var pid int
			if err := tx.QueryRow(`SELECT pg_backend_pid()`).Scan(&pid); err != nil {
				t.Fatal(err)
			}
			a.rivalDoes(fmt.Sprintf(`SELECT pg_terminate_backend(%d, 10000)`, pid))
			if _, err := tx.Exec(adds); err == nil {
				t.Error("it goes on")
			}
			_ = tx.Rollback()
		},
		"a *sql.Conn that is closed": func(t *testing.T, a *arena, name string) {
			c, err := a.db.Conn(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Raw(func(driverConn any) error {
				tx, err := driverConn.(driver.ConnBeginTx).BeginTx(ContextWithName(t.Context(), name), driver.TxOptions{})
				if err == nil {
					_, err = driverConn.(driver.ExecerContext).ExecContext(t.Context(), adds, nil)
				}
				_ = tx
				return errors.Join(err, driver.ErrBadConn)
			}); !errors.Is(err, driver.ErrBadConn) {
				t.Error(err)
			}
			_ = c.Close()
		},
	} {
		t.Run(name, func(t *testing.T) {
			a, k, named := enterQueue(t, WithMode(ModeReplay))
			ends(t, a, "")
			isEmpty(t, k)
			ends(t, a, "transfer")
			isEmpty(t, named)
			for _, s := range a.stats().Kinds {
				if s.Running != 0 || s.Waiting != 0 {
					t.Errorf("there is %+v", s)
				}
			}
		})
	}
}

func TestAPoisonedTransactionIsInsideNoMore(t *testing.T) {
	f := newFixture(t, WithContention(ContentionLimit), WithPolicy(Policy{MaxAttempts: 2}))
	k := remember(f.db, "", locksFirst)
	f.Fail(drivertest.AnyExec, serverErr("40P01")).Matching("last")
	tx, err := f.db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	err = twoStatements(t.Context(), tx)
	if sqlState(err) != "40P01" {
		t.Fatal(err)
	}
	isEmpty(t, k) // while the application has yet to end it
	if err := tx.Rollback(); err != nil {
		t.Error(err)
	}
	isEmpty(t, k)
}

// The server ends sessions that are idle in a transaction for too long: a wait must not be
// the reason.
func TestNobodyWaitsInATransactionForLongerThanTheServerBears(t *testing.T) {
	for name, c := range map[string]struct{ dsn, begin string }{
		"of the session":     {dsn: "&idle_in_transaction_session_timeout=400ms"},
		"of the transaction": {begin: `SET LOCAL idle_in_transaction_session_timeout = '3s'`},
	} {
		t.Run(name, func(t *testing.T) {
			a := enterOn(t, pgtest.DSN(t)+c.dsn, []Option{WithContention(ContentionLimit)}, bank)
			patientGate(a.db)
			k := remember(a.db, "", adds)
			occupy(t, k)
			tx := a.begin(sql.LevelReadCommitted)
			if c.begin != "" {
				tx.does(c.begin)
			}
			tx.does(adds)
			tx.commits()
			if s := a.stats(); s.Reconnects != 0 || len(s.ConnectionsLost) != 0 {
				t.Errorf("the statistics are %+v", s)
			}
		})
	}
}

// What the session bears was not asked for: nothing had deadlocked when it began.
func TestNobodyWaitsForLongInATransactionThatBeganBeforeTheFirstDeadlock(t *testing.T) {
	a := enterOn(t, pgtest.DSN(t)+"&idle_in_transaction_session_timeout=5s", []Option{WithContention(ContentionLimit)}, bank)
	patientGate(a.db)
	tx := a.begin(sql.LevelReadCommitted)
	occupy(t, remember(a.db, "", adds))
	tx.does(adds)
	tx.commits()
	if s := a.stats(); s.Reconnects != 0 || len(s.ConnectionsLost) != 0 {
		t.Errorf("the statistics are %+v", s)
	}
}

func TestWithoutTheLimitNobodyWaits(t *testing.T) {
	a := enterOn(t, pgtest.DSN(t), []Option{WithContention(ContentionDetector | ContentionProbes)}, bank)
	patientGate(a.db)
	occupy(t, remember(a.db, "", adds))
	tx := a.begin(sql.LevelReadCommitted)
	tx.does(adds)
	tx.commits()
	if _, err := a.db.Exec(adds); err != nil {
		t.Error(err)
	}
}

func TestWhoIsNotReplayedDoesNotWait(t *testing.T) {
	a, k, _ := enterQueue(t)
	occupy(t, k)
	tx, err := a.db.BeginTx(ContextWithoutReplay(t.Context()), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(adds); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(); err != nil {
		t.Error(err)
	}
	if _, err := a.db.ExecContext(ContextWithoutReplay(t.Context()), adds); err != nil {
		t.Error(err)
	}
}

func TestAReplayWaitsForItsTurnBeforeItBegins(t *testing.T) {
	f := newFixture(t, WithContention(ContentionLimit))
	f.now = time.Now()
	patientGate(f.db)
	f.Fail(drivertest.AnyExec, serverErr("40P01")).Matching("last").Times(1)
	k := remember(f.db, "", locksFirst)
	var leave func()
	waited := make(chan struct{})
	f.onWait = func() { leave = occupy(t, k); close(waited) }
	ended := goes(func() error { return transacts(t.Context(), f.db, twoStatements) })
	<-waited
	isQueued(t, k, 1)
	if n := f.OpenTxs(); n != 0 {
		t.Errorf("%d transactions are open", n)
	}
	leave()
	if err := ended(); err != nil {
		t.Fatal(err)
	}
	isEmpty(t, k)
}
