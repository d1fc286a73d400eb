package pgretry

import (
	"database/sql"
	"fmt"
	"testing"
)

const ledger = bank + `; CREATE TABLE ledger (id serial PRIMARY KEY, amount int NOT NULL DEFAULT 0); CREATE TABLE gate (n int)`

// The rival has changed the balance, but as the other side of the deadlock it cannot
// commit before the transaction has rolled back: read again at once, the balance is
// what it was, and what is executed again waits for the rival to commit.
func TestWhatTheRivalOfADeadlockChangesIsNotOverwritten(t *testing.T) {
	for _, returning := range []bool{true, false} {
		t.Run(fmt.Sprintf("with RETURNING: %t", returning), func(t *testing.T) {
			a := enter(t, nil, ledger)
			tx := a.begin(sql.LevelReadCommitted)
			if got := tx.sees(`SELECT balance FROM account WHERE id = 1`); got != "100" {
				t.Fatal(got)
			}
			if returning {
				tx.sees(`INSERT INTO ledger DEFAULT VALUES RETURNING id`)
			}
			tx.does(`LOCK TABLE gate IN EXCLUSIVE MODE`)
			over := a.meets(opponent{
				holds: `UPDATE account SET balance = balance - 50 WHERE id = 1`,
				wants: `LOCK TABLE gate IN EXCLUSIVE MODE`, patient: true,
			})
			_, err := tx.Exec(`UPDATE account SET balance = $1 WHERE id = 1`, 100+10)
			if err == nil {
				err = tx.Commit()
			}
			if err != nil {
				// It is waited for no more.
				_ = tx.Rollback()
				other := a.begin(sql.LevelReadCommitted)
				other.does(`LOCK TABLE gate IN EXCLUSIVE MODE`)
				other.commits()
			}
			over()
			if got := a.read(`SELECT balance FROM account WHERE id = 1`); got == "110" {
				t.Errorf("the rival's 50 are lost, and we say %v", err)
			}
		})
	}
}

// When the sum is read again, what the transaction itself has added since makes up
// for what others have taken away.
func TestAReadIsNotCheckedAgainstWhatTheTransactionWroteLater(t *testing.T) {
	a := enter(t, nil, ledger, `INSERT INTO ledger (amount) VALUES (100)`)
	tx := a.begin(sql.LevelReadCommitted)
	if got := tx.sees(`SELECT sum(amount) FROM ledger`); got != "100" {
		t.Fatal(got)
	}
	tx.sees(`INSERT INTO ledger (amount) VALUES (10) RETURNING id`)
	tx.does(`LOCK TABLE gate IN EXCLUSIVE MODE`)
	over := a.meets(opponent{
		holds: `SELECT FROM account WHERE id = 1 FOR UPDATE`, wants: `LOCK TABLE gate IN EXCLUSIVE MODE`,
	})
	if _, err := a.plain.Exec(`INSERT INTO ledger (amount) VALUES (-10)`); err != nil {
		t.Fatal(err)
	}
	_, err := tx.Exec(`UPDATE account SET balance = $1 WHERE id = 1`, 100+10)
	if err == nil {
		err = tx.Commit()
	}
	over()
	if err == nil {
		a.is("100", `SELECT sum(amount) FROM ledger`)
		a.is("100", `SELECT balance FROM account WHERE id = 1`)
	}
}

func TestPinsAreNotInTheWayOfATransactionThatIsProtectedNoMore(t *testing.T) {
	a := enter(t, nil, ledger)
	tx := a.begin(sql.LevelReadCommitted)
	tx.sees(`INSERT INTO ledger DEFAULT VALUES RETURNING id`)
	tx.does(`UPDATE account SET balance = 1 WHERE id = 1`)
	tx.sees(`SELECT pg_advisory_xact_lock(1)`)
	if _, err := tx.Exec(`SELECT pg_export_snapshot()`); err != nil {
		t.Errorf("lib/pq exports a snapshot, we say %v", err)
	}
}

func TestAPinInsideASavepointIsNotInTheWayOfCopyFreeze(t *testing.T) {
	a := enter(t, nil, ledger)
	tx := a.begin(sql.LevelReadCommitted)
	tx.does(`SAVEPOINT a`)
	tx.does(`CREATE TABLE frozen (n int)`)
	tx.sees(`INSERT INTO ledger DEFAULT VALUES RETURNING id`)
	tx.does(`UPDATE account SET balance = 1 WHERE id = 1`)
	copying, err := tx.Prepare(`COPY frozen FROM STDIN (FREEZE)`)
	if err != nil {
		t.Fatal(err)
	}
	if err := copying.Close(); err != nil {
		t.Errorf("lib/pq copies, we say %v", err)
	}
}

func TestAStatementPreparedAfterReturningDoesNotCostThePin(t *testing.T) {
	a := enter(t, nil, ledger)
	tx := a.begin(sql.LevelReadCommitted)
	id := tx.sees(`INSERT INTO ledger DEFAULT VALUES RETURNING id`)
	lock, err := tx.Prepare(`LOCK TABLE gate IN EXCLUSIVE MODE`)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lock.Exec(); err != nil {
		t.Fatal(err)
	}
	over := a.meets(opponent{
		holds: `UPDATE account SET balance = balance - 50 WHERE id = 1`,
		wants: `LOCK TABLE gate IN EXCLUSIVE MODE`,
	})
	_, err = tx.Exec(`UPDATE account SET balance = balance + 10 WHERE id = 1`)
	over()
	if err != nil {
		t.Fatalf("it surfaces: %v", err)
	}
	tx.commits()
	a.is(id, `SELECT id FROM ledger`)
	a.hid("40P01")
}

func TestPinsBelowASavepointAreNotInTheWayOfATransactionThatIsProtectedNoMore(t *testing.T) {
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
