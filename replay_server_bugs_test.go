package pgretry

import (
	"context"
	"database/sql"
	"net/url"
	"testing"
)

const lockGate = `LOCK TABLE gate IN EXCLUSIVE MODE`

// balancing reads the balance of account 3, over db, and writes what follows from it
// after a deadlock with a rival that takes 50 away. By then the balance is another
// one: the transaction must not be told that it has succeeded.
func (a *arena) balancing(db *sql.DB) {
	a.Helper()
	tx := a.beginOn(db, sql.LevelDefault)
	if got := tx.sees(`SELECT balance FROM account WHERE id = 3`); got != "100" {
		a.Fatalf("the balance is %s", got)
	}
	tx.does(lockGate)
	over := a.meets(opponent{holds: `UPDATE account SET balance = balance - 50 WHERE id = 3`, wants: lockGate, patient: true})
	_, err := tx.Exec(`UPDATE account SET balance = $1 WHERE id = 3`, 100+10)
	tx.ends(err, over)
}

// ends commits what went well so far, waits for the rival and looks whether its 50
// are still gone from account 3.
func (s *script) ends(err error, over func()) {
	s.Helper()
	if err == nil {
		err = s.Commit()
	}
	if err != nil {
		// The rival need wait no more for somebody who waits for it.
		_ = s.Rollback()
		other := s.beginOn(s.plain, sql.LevelReadCommitted)
		other.does(lockGate)
		other.commits()
	}
	over()
	if got := s.read(`SELECT balance FROM account WHERE id = 3`); got == "110" {
		s.Errorf("the rival's 50 are lost, and we say %v", err)
	}
}

// Whoever stands in line behind the transaction for a lock gets it when the
// transaction rolls back, part of the cycle or not, and commits only then.
func TestBugWhatAWaiterOutsideTheCycleChangesIsOverwritten(t *testing.T) {
	a := enter(t, nil, ledger)
	c := a.session(a.plain)
	third := &arena{T: t, dsn: a.dsn, db: a.db, plain: a.plain, rival: c}
	if err := c.QueryRowContext(t.Context(), `SELECT pg_backend_pid()`).Scan(&third.pid); err != nil {
		t.Fatal(err)
	}
	third.rivalDoes(`SET deadlock_timeout = '1h'`)

	tx := a.begin(sql.LevelReadCommitted)
	if got := tx.sees(`SELECT balance FROM account WHERE id = 3`); got != "100" {
		t.Fatal(got)
	}
	tx.does(lockGate)
	over := a.meets(opponent{holds: `UPDATE account SET balance = balance - 1 WHERE id = 1`, wants: lockGate})
	thirdOver := third.meets(opponent{holds: `UPDATE account SET balance = balance - 50 WHERE id = 3`, wants: lockGate, patient: true})
	_, err := tx.Exec(`UPDATE account SET balance = balance + 1 WHERE id = 1`)
	over()
	if err == nil {
		_, err = tx.Exec(`UPDATE account SET balance = $1 WHERE id = 3`, 100+10)
	}
	tx.ends(err, thirdOver)
}

// What one transaction or one session has set for itself is taken for the default of
// all: they are no longer thought to be under READ COMMITTED, and do not wait for
// their rivals.
func TestBugTheLevelOfOneTransactionIsTakenForThatOfAll(t *testing.T) {
	for name, conflict := range map[string]func(*arena, *sql.Conn) *script{
		"SET TRANSACTION": func(a *arena, c *sql.Conn) *script {
			tx := a.beginOnConn(c)
			tx.does(`SET TRANSACTION ISOLATION LEVEL REPEATABLE READ`)
			tx.does(`SAVEPOINT a`)
			return tx
		},
		"SET in the session": func(a *arena, c *sql.Conn) *script {
			if _, err := c.ExecContext(a.Context(), `SET default_transaction_isolation = 'repeatable read'`); err != nil {
				a.Fatal(err)
			}
			tx := a.beginOnConn(c)
			tx.sees(`INSERT INTO ledger DEFAULT VALUES RETURNING id`)
			return tx
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := enter(t, nil, ledger)
			tx := conflict(a, a.session(a.db))
			tx.does(`UPDATE account SET balance = balance - 1 WHERE id = 1`)
			over := a.meets(crossing)
			// It need not succeed.
			_, _ = tx.Exec(`UPDATE account SET balance = balance + 1 WHERE id = 2`)
			over()
			_ = tx.Rollback()
			a.balancing(a.db) // over another connection, whose default is READ COMMITTED
		})
	}
}

// session returns a session of its own that lasts as long as the test.
func (a *arena) session(db *sql.DB) *sql.Conn {
	a.Helper()
	c, err := db.Conn(a.Context())
	if err != nil {
		a.Fatal(err)
	}
	a.Cleanup(func() {
		if err := c.Close(); err != nil {
			a.Error(err)
		}
	})
	return c
}

func (a *arena) beginOnConn(c *sql.Conn) *script {
	a.Helper()
	tx, err := c.BeginTx(a.Context(), nil)
	if err != nil {
		a.Fatal(err)
	}
	a.Cleanup(func() { _ = tx.Rollback() })
	return &script{arena: a, Tx: tx}
}

// One failure of pg_blocking_pids, whatever its reason, is taken for a server that
// knows no pg_locks either: nobody waits for rivals any more.
func TestBugARoleThatMayNotAskWhoBlocksWhomDoesNotWaitForRivals(t *testing.T) {
	a := enter(t, nil, ledger)
	schema := a.read(`SELECT current_schema()`)
	role := "limited_" + schema
	for _, s := range []string{
		`CREATE ROLE ` + role,
		`GRANT ALL ON SCHEMA ` + schema + ` TO ` + role,
		`GRANT ALL ON ALL TABLES IN SCHEMA ` + schema + ` TO ` + role,
		`GRANT ALL ON ALL SEQUENCES IN SCHEMA ` + schema + ` TO ` + role,
		`REVOKE EXECUTE ON FUNCTION pg_catalog.pg_blocking_pids FROM PUBLIC`,
	} {
		if _, err := a.plain.Exec(s); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
	t.Cleanup(func() {
		for _, s := range []string{
			`GRANT EXECUTE ON FUNCTION pg_catalog.pg_blocking_pids TO PUBLIC`, `DROP OWNED BY ` + role, `DROP ROLE ` + role,
		} {
			if _, err := a.plain.Exec(s); err != nil {
				t.Errorf("%s: %v", s, err)
			}
		}
	})
	u, err := url.Parse(a.dsn)
	if err != nil {
		t.Fatal(err)
	}
	parameters := u.Query()
	parameters.Set("role", role)
	u.RawQuery = parameters.Encode()
	db, err := Open(u.String())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	tx := a.beginOn(db, sql.LevelReadCommitted)
	if got := tx.sees(`INSERT INTO ledger DEFAULT VALUES RETURNING current_user`); got != role {
		t.Fatalf("the role is %s", got)
	}
	tx.does(`UPDATE account SET balance = balance - 1 WHERE id = 1`)
	over := a.meets(crossing)
	_, _ = tx.Exec(`UPDATE account SET balance = balance + 1 WHERE id = 2`)
	over()
	_ = tx.Rollback()
	a.balancing(db)
}

// The server of a foreign table has its part committed.
func TestBugAForeignTableMadeByTheSecondStatementOfATextIsNotSeen(t *testing.T) {
	a := enter(t, nil, bank, traces, `CREATE SEQUENCE tries`, lateConflict,
		`CREATE FOREIGN DATA WRAPPER nothing; CREATE SERVER nothing FOREIGN DATA WRAPPER nothing`)
	t.Cleanup(func() {
		if _, err := a.plain.Exec(`DROP FOREIGN DATA WRAPPER nothing CASCADE`); err != nil {
			t.Error(err)
		}
	})
	tx := a.begin(sql.LevelReadCommitted)
	tx.sees(`SELECT set_config('test.state', '40001', true)`)
	tx.does(`SET LOCAL work_mem = '1MB'; CREATE FOREIGN TABLE remote (n int) SERVER nothing`)
	tx.does(`INSERT INTO trace VALUES ('x')`)
	if err := tx.Commit(); sqlState(err) != "40001" {
		t.Errorf("COMMIT gives %v", err)
	}
}

// No rollback takes a cursor WITH HOLD back to where it stood.
func TestBugACursorWithHoldIsMovedAgainByAReplay(t *testing.T) {
	const declare = `DECLARE h CURSOR WITH HOLD FOR SELECT n FROM generate_series(1, 10) n`
	declares := func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, declare)
		return err
	}
	for name, test := range map[string]struct {
		declare func(context.Context, *sql.Conn) error
		move    string
	}{
		"declared in a closure": {func(ctx context.Context, c *sql.Conn) error { return RunInTx(ctx, c, nil, declares) }, `MOVE h`},
		"declared without replay": {func(ctx context.Context, c *sql.Conn) error {
			ctx = ContextWithoutReplay(ctx)
			tx, err := c.BeginTx(ctx, nil)
			if err != nil {
				return err
			}
			if err := declares(ctx, tx); err != nil {
				return err
			}
			return tx.Commit()
		}, `MOVE h`},
		"moved by the second statement of a text": {func(ctx context.Context, c *sql.Conn) error {
			_, err := c.ExecContext(ctx, declare)
			return err
		}, `SET LOCAL work_mem = '1MB'; MOVE h`},
	} {
		t.Run(name, func(t *testing.T) {
			a := enter(t, nil, bank)
			c := a.session(a.db)
			if err := test.declare(t.Context(), c); err != nil {
				t.Fatal(err)
			}
			tx := a.beginOnConn(c)
			tx.does(test.move)
			tx.does(`UPDATE account SET balance = balance - 1 WHERE id = 1`)
			over := a.meets(crossing)
			_, err := tx.Exec(`UPDATE account SET balance = balance + 1 WHERE id = 2`)
			over()
			if err == nil {
				if got := tx.sees(`FETCH h`); got != "2" {
					t.Errorf("moved by one, the cursor fetches %s", got)
				}
			} // else it is as with lib/pq
			if err := tx.Rollback(); err != nil {
				t.Error(err)
			}
		})
	}
}

// What a statement prepared by PREPARE does, its EXECUTE does not tell.
func TestBugAnAdvisoryLockTakenByExecuteIsTakenTwice(t *testing.T) {
	a := enter(t, nil, bank)
	c := a.session(a.db)
	if _, err := c.ExecContext(t.Context(), `PREPARE p AS SELECT pg_advisory_lock(7355608)`); err != nil {
		t.Fatal(err)
	}
	tx := a.beginOnConn(c)
	tx.does(`EXECUTE p`)
	tx.does(`UPDATE account SET balance = balance - 1 WHERE id = 1`)
	over := a.meets(crossing)
	_, err := tx.Exec(`UPDATE account SET balance = balance + 1 WHERE id = 2`)
	over()
	if err == nil {
		tx.commits()
	} else {
		_ = tx.Rollback()
	}
	if _, err := c.ExecContext(t.Context(), `SELECT pg_advisory_unlock(7355608)`); err != nil {
		t.Fatal(err)
	}
	a.is("0", `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 7355608`)
}

func TestBugAPinBelowASavepointIsInTheWayOfATransactionThatIsProtectedNoMore(t *testing.T) {
	a := enter(t, nil, ledger)
	for name, db := range map[string]*sql.DB{"lib/pq": a.plain, "we": a.db} {
		tx := a.beginOn(db, sql.LevelReadCommitted)
		tx.sees(`INSERT INTO ledger DEFAULT VALUES RETURNING id`)
		tx.does(`UPDATE account SET balance = balance - 1 WHERE id = 1`)
		tx.does(`SAVEPOINT a`)
		tx.sees(`SELECT pg_advisory_xact_lock(7355609)`)
		tx.does(`RELEASE a`)
		if _, err := tx.Exec(`SELECT pg_export_snapshot()`); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		tx.commits()
	}
}

// A transaction that was ended and begun again by statements is over with its Commit.
func TestBugABeginInsideATransactionLeavesItsConnectionUnprotectedForEver(t *testing.T) {
	a := enter(t, nil, bank)
	c := a.session(a.db)
	tx := a.beginOnConn(c)
	tx.does(`COMMIT`)
	tx.does(`BEGIN`)
	tx.commits()
	// The rival's wish must come before the search for a deadlock.
	if _, err := c.ExecContext(t.Context(), `SET deadlock_timeout = '100ms'`); err != nil {
		t.Fatal(err)
	}
	a.rivalDoes("BEGIN", crossing.holds)
	done := make(chan error, 1)
	go func() {
		_, err := c.ExecContext(t.Context(), `UPDATE account SET balance = balance + 1 WHERE id IN (1, 2)`)
		done <- err
	}()
	a.isWaitedFor()
	a.rivalDoes(crossing.wants, "COMMIT")
	if err := <-done; err != nil {
		t.Errorf("%#v", err)
	}
}

// The two reasons are different ones to whoever reads the statistics.
func TestBugPrepareTransactionIsRefusedAsIfItWereCommit(t *testing.T) {
	reason, _ := (&config{}).refuses(callExec, analyze(`PREPARE TRANSACTION 'a'`))
	if reason != RefusedPreparedTransaction {
		t.Errorf("the reason is %s", reason)
	}
}
