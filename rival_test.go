package pgretry

import (
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
func TestWhatAWaiterOutsideTheCycleChangesIsNotOverwritten(t *testing.T) {
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

// If what one transaction or one session has set for itself were taken for the default
// of all, they would not be thought to be under READ COMMITTED any more and would not
// wait for their rivals.
func TestTheLevelOfOneTransactionIsNotTakenForThatOfAll(t *testing.T) {
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

// That pg_blocking_pids fails does not mean that pg_locks does.
func TestARoleThatMayNotAskWhoBlocksWhomWaitsForRivals(t *testing.T) {
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
	db, err := tested.open(u.String())
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
