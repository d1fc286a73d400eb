package pgretry

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"strings"
	"testing"

	"github.com/lib/pq"

	"github.com/pgretry/pgretry/internal/pgserver/pgtest"
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
	tx.commits()
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
	tx.commits()
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

// Without VALUES of any number of rows, a batch is inserted from arrays.
func TestIDsOfRowsInsertedFromArraysAreKept(t *testing.T) {
	a := enter(t, nil, ledger)
	tx := a.begin(sql.LevelReadCommitted)
	tx.does(`INSERT INTO ledger (amount) SELECT unnest($1::int[])`, "{1,2}")
	tx.shows(2, `INSERT INTO ledger (amount) SELECT unnest('{3,4}'::int[]) RETURNING id`)
	tx.does(`LOCK TABLE gate IN EXCLUSIVE MODE`)
	over := a.meets(opponent{
		holds: `UPDATE account SET balance = balance - 50 WHERE id = 1`,
		wants: `LOCK TABLE gate IN EXCLUSIVE MODE`,
	})
	_, err := tx.Exec(`UPDATE account SET balance = balance + 10 WHERE id = 1`)
	over()
	if err != nil {
		t.Fatalf("it surfaces: %v", err)
	}
	tx.commits()
	a.is("1:1 2:2 3:3 4:4", `SELECT string_agg(id || ':' || amount, ' ' ORDER BY id) FROM ledger`)
	a.is("60", `SELECT balance FROM account WHERE id = 1`)
	a.hid("40P01")
}

// What reads no relation shows nothing that others may change.
func TestANotificationDoesNotCostThePin(t *testing.T) {
	a := enter(t, nil, ledger)
	heard := a.listens("entered")
	tx := a.begin(sql.LevelReadCommitted)
	id := tx.sees(`INSERT INTO ledger DEFAULT VALUES RETURNING id`)
	tx.does(`SELECT pg_notify($1, $2)`, "entered", id)
	tx.does(`LOCK TABLE gate IN EXCLUSIVE MODE`)
	over := a.meets(opponent{
		holds: `UPDATE account SET balance = balance - 50 WHERE id = 1`,
		wants: `LOCK TABLE gate IN EXCLUSIVE MODE`,
	})
	_, err := tx.Exec(`UPDATE account SET balance = balance + 10 WHERE id = 1`)
	over()
	if err != nil {
		t.Fatalf("it surfaces: %v", err)
	}
	tx.commits()
	a.is(id, `SELECT id FROM ledger`)
	a.hid("40P01")
	if n := heard(); n != 1 {
		t.Errorf("%d notifications were heard", n)
	}
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

// listening is a connector below ours that hears the statements of transactions.
type listening struct {
	driver.Connector
	heard []string
}

// pqConn is what lib/pq's connections can do, of which nothing may be hidden.
type pqConn interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.ExecerContext
	driver.QueryerContext
	driver.NamedValueChecker
	driver.Pinger
	driver.SessionResetter
	driver.Validator
}

type listeningConn struct {
	pqConn
	to *listening
}

func (l *listening) Connect(ctx context.Context) (driver.Conn, error) {
	c, err := l.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return &listeningConn{c.(pqConn), l}, nil
}

func (c *listeningConn) ExecContext(ctx context.Context, text string, args []driver.NamedValue) (driver.Result, error) {
	c.to.heard = append(c.to.heard, text)
	return c.pqConn.ExecContext(ctx, text, args)
}

// pins counts those that were set.
func (l *listening) pins() (n int) {
	for _, text := range l.heard {
		if text == setPin {
			n++
		}
	}
	return n
}

// enterListening is enter with a connector that hears what we say to lib/pq.
func enterListening(t *testing.T, statements ...string) (*arena, *listening) {
	t.Helper()
	dsn := pgtest.DSN(t)
	a := enterOn(t, dsn, nil, statements...)
	inner, err := pq.NewConnector(dsn)
	if err != nil {
		t.Fatal(err)
	}
	l := &listening{Connector: inner}
	connector, err := NewConnector(l, WithPins(PinsReturning))
	if err != nil {
		t.Fatal(err)
	}
	if err := a.db.Close(); err != nil {
		t.Fatal(err)
	}
	a.db = sql.OpenDB(connector) // closed with the arena
	return a, l
}

const (
	insertsEntry = `INSERT INTO ledger DEFAULT VALUES RETURNING id`
	locksAccount = `UPDATE account SET balance = balance - 1 WHERE id = 1`
)

func TestPinsAreSetOnlyWhereTheyAreOfUse(t *testing.T) {
	for name, c := range map[string]struct {
		level sql.IsolationLevel
		does  func(*script)
		pins  int
	}{
		"a statement follows RETURNING": {does: func(s *script) { s.sees(insertsEntry); s.does(locksAccount) }, pins: 1},
		"a statement follows FOR UPDATE": {
			does: func(s *script) { s.sees(`SELECT balance FROM account WHERE id = 1 FOR UPDATE`); s.does(locksAccount) }, pins: 1,
		},
		"two statements follow":             {does: func(s *script) { s.sees(insertsEntry); s.does(locksAccount); s.does(locksAccount) }, pins: 1},
		"each follows RETURNING":            {does: func(s *script) { s.sees(insertsEntry); s.sees(insertsEntry); s.does(locksAccount) }, pins: 2},
		"READ UNCOMMITTED":                  {level: sql.LevelReadUncommitted, does: func(s *script) { s.sees(insertsEntry); s.does(locksAccount) }, pins: 1},
		"REPEATABLE READ":                   {level: sql.LevelRepeatableRead, does: func(s *script) { s.sees(insertsEntry); s.does(locksAccount) }},
		"SERIALIZABLE":                      {level: sql.LevelSerializable, does: func(s *script) { s.sees(insertsEntry); s.does(locksAccount) }},
		"the transaction ends with it":      {does: func(s *script) { s.sees(insertsEntry) }},
		"RETURNING was not shown":           {does: func(s *script) { s.does(insertsEntry); s.does(locksAccount) }},
		"RETURNING showed no rows":          {does: func(s *script) { s.shows(0, `DELETE FROM ledger RETURNING id`); s.does(locksAccount) }},
		"a plain SELECT":                    {does: func(s *script) { s.sees(`SELECT balance FROM account WHERE id = 1`); s.does(locksAccount) }},
		"a plain SELECT and then RETURNING": {does: func(s *script) { s.sees(`SELECT count(*) FROM ledger`); s.sees(insertsEntry); s.does(locksAccount) }},
		"RETURNING and then a plain SELECT": {does: func(s *script) {
			s.sees(insertsEntry)
			s.sees(`SELECT count(*) FROM ledger`)
			s.sees(insertsEntry)
			s.does(locksAccount)
		}, pins: 1},
		"the application has a savepoint": {does: func(s *script) { s.sees(insertsEntry); s.does(`SAVEPOINT a`); s.does(locksAccount) }},
		"and releases it": {does: func(s *script) {
			s.sees(insertsEntry)
			s.does(`SAVEPOINT a`)
			s.does(`RELEASE a`)
			s.does(locksAccount)
		}, pins: 1},
		"a cursor is open": {does: func(s *script) { s.does(`DECLARE c CURSOR FOR SELECT 1`); s.sees(insertsEntry); s.does(locksAccount) }},
		"SET TRANSACTION":  {does: func(s *script) { s.does(`SET TRANSACTION READ WRITE`); s.sees(insertsEntry); s.does(locksAccount) }},
		"a hundred of them": {does: func(s *script) {
			for range 100 {
				s.sees(insertsEntry)
			}
			s.does(locksAccount)
		}, pins: 64},
	} {
		t.Run(name, func(t *testing.T) {
			a, l := enterListening(t, ledger)
			tx := a.begin(c.level)
			c.does(tx)
			tx.commits()
			if got := l.pins(); got != c.pins {
				t.Errorf("%d pins are set, want %d:\n%s", got, c.pins, strings.Join(l.heard, "\n"))
			}
		})
	}
}

// shows executes a query that returns so many rows.
func (s *script) shows(want int, text string) {
	s.Helper()
	rows, err := s.Query(text)
	if err != nil {
		s.Fatalf("%s: %v", text, err)
	}
	defer rows.Close()
	n := 0
	for rows.Next() {
		n++
	}
	if err := rows.Err(); err != nil || n != want {
		s.Errorf("%s gives %d rows, %v", text, n, err)
	}
}

// What was not read yet may still be a conflict, and over lib/pq nothing else goes.
func TestNoPinIsSetWhileAResultIsHalfRead(t *testing.T) {
	a, l := enterListening(t, ledger)
	tx := a.begin(sql.LevelReadCommitted)
	rows, err := tx.Query(`INSERT INTO ledger (amount) SELECT generate_series(1, 9) RETURNING id`)
	if err != nil || !rows.Next() {
		t.Fatal(err)
	}
	if _, err := tx.Exec(locksAccount); err == nil || !strings.Contains(err.Error(), "already a query") {
		t.Errorf("lib/pq gives %v", err)
	}
	if l.pins() != 0 {
		t.Errorf("%d pins are set in mid rows", l.pins())
	}
	if err := rows.Close(); err != nil {
		t.Fatal(err)
	}
	tx.does(locksAccount)
	tx.commits()
}

func TestWhatWasShownSurvivesADeadlockAfterTheApplicationReleasedItsSavepoint(t *testing.T) {
	for name, nested := range map[string]func(*script) string{
		"around it": func(s *script) string {
			s.does(`SAVEPOINT a`)
			id := s.sees(insertsEntry)
			s.does(`UPDATE ledger SET amount = 1 WHERE id = ` + id)
			s.does(`RELEASE a`)
			return id
		},
		"after it": func(s *script) string {
			id := s.sees(insertsEntry)
			s.does(`UPDATE ledger SET amount = 1 WHERE id = ` + id)
			s.does(`SAVEPOINT a`)
			s.does(`UPDATE ledger SET amount = amount + 0 WHERE id = ` + id)
			s.does(`RELEASE a`)
			return id
		},
		"twice": func(s *script) string {
			s.does(`SAVEPOINT a`)
			s.does(`SAVEPOINT b`)
			id := s.sees(insertsEntry)
			s.does(`RELEASE b`)
			s.does(`UPDATE ledger SET amount = 1 WHERE id = ` + id)
			s.does(`RELEASE a`)
			return id
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := enter(t, nil, ledger)
			tx := a.begin(sql.LevelReadCommitted)
			id := nested(tx)
			tx.does(locksAccount)
			over := a.meets(crossing)
			tx.does(`UPDATE account SET balance = balance + 1 WHERE id = 2`)
			over()
			tx.commits()
			a.is(id+" 1", `SELECT string_agg(id || ' ' || amount, ' ') FROM ledger`)
			a.is("98 102", `SELECT string_agg(balance::text, ' ' ORDER BY id) FROM account WHERE id < 3`)
			a.hid("40P01")
			if s := a.stats(); s.PartialReplays != s.Replays || s.Replays == 0 {
				t.Errorf("the statistics are %+v", s)
			}
		})
	}
}

// The rival waits for what the transaction locked before the pin. Going back to the
// pin cannot end that, and the number is another one from BEGIN on.
func TestADeadlockAboutALockOlderThanThePinGoesBackToBeginAtOnce(t *testing.T) {
	a := enter(t, nil, ledger)
	tx := a.begin(sql.LevelReadCommitted)
	tx.does(lockGate)
	tx.sees(insertsEntry)
	tx.does(`UPDATE account SET balance = balance - 1 WHERE id = 3`)
	over := a.meets(opponent{holds: crossing.holds, wants: lockGate})
	tx.fails("40P01", `UPDATE account SET balance = balance + 1 WHERE id = 2`)
	over()
	tx.poisonedBy(ErrDiverged, "40P01")
	a.is("0", `SELECT count(*) FROM ledger`)
	a.is("100 101 100 100", `SELECT string_agg(balance::text, ' ' ORDER BY id) FROM account`)
	if s := a.stats(); s.PartialReplays != 1 || s.Replays != 2 || s.Diverged != 1 || s.PlainConflicts != 1 {
		t.Errorf("the statistics are %+v", s)
	}
}

// ROLLBACK TO does not take a cursor back, so that after a partial replay the row would
// be another one.
func TestWhereCurrentOfIsRightAfterAReplay(t *testing.T) {
	for _, pinned := range []bool{false, true} {
		t.Run(fmt.Sprintf("with something to pin: %t", pinned), func(t *testing.T) {
			a := enter(t, nil, ledger)
			tx := a.begin(sql.LevelReadCommitted)
			if pinned {
				tx.sees(`UPDATE account SET balance = balance WHERE id = 4 RETURNING id`)
			}
			tx.does(`DECLARE c CURSOR FOR SELECT id FROM account WHERE id > 2 ORDER BY id FOR UPDATE`)
			tx.seesThat("3", `FETCH c`)
			tx.does(locksAccount)
			over := a.meets(crossing)
			tx.does(`UPDATE account SET balance = balance + 1 WHERE id = 2`)
			over()
			tx.does(`UPDATE account SET balance = 7 WHERE CURRENT OF c`)
			tx.seesThat("4", `FETCH c`)
			tx.commits()
			a.is("98 102 7 100", `SELECT string_agg(balance::text, ' ' ORDER BY id) FROM account`)
			a.hid("40P01")
			if s := a.stats(); s.PartialReplays != 0 {
				t.Errorf("the statistics are %+v", s)
			}
		})
	}
}
