package pgretry

import (
	"database/sql"
	"errors"
	"testing"
)

// copies sends rows by COPY, numbered from 0.
func (s *script) copies(rows int) error {
	s.Helper()
	stmt, err := s.Prepare(`COPY copied (n) FROM STDIN`)
	if err != nil {
		return err
	}
	for n := range rows {
		if _, err := stmt.Exec(n); err != nil {
			return errors.Join(err, stmt.Close())
		}
	}
	if _, err := stmt.Exec(); err != nil {
		return err
	}
	return stmt.Close()
}

func TestRowsSentByCopyAreThereOnceAfterALaterDeadlock(t *testing.T) {
	a := enter(t, nil, bank, `CREATE TABLE copied (n int)`)
	tx := a.begin(sql.LevelDefault)
	tx.does(`UPDATE account SET balance = balance - 1 WHERE id = 1`)
	if err := tx.copies(100); err != nil {
		t.Fatal(err)
	}
	over := a.meets(crossing)
	tx.does(`UPDATE account SET balance = balance + 1 WHERE id = 2`)
	over()
	tx.commits()
	a.is("100 4950", `SELECT concat(count(*), ' ', sum(n)) FROM copied`)
	a.hid("40P01")
}

func TestADeadlockInCopyIsHidden(t *testing.T) {
	a := enter(t, nil, bank, `CREATE TABLE copied (n int)`,
		`CREATE FUNCTION lock_second() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			UPDATE account SET balance = balance + 1 WHERE id = 2;
			RETURN NEW;
		END $$`,
		`CREATE TRIGGER t BEFORE INSERT ON copied FOR EACH ROW WHEN (NEW.n = 50) EXECUTE FUNCTION lock_second()`)
	tx := a.begin(sql.LevelDefault)
	tx.does(`UPDATE account SET balance = balance - 1 WHERE id = 1`)
	over := a.meets(crossing)
	if err := tx.copies(100); err != nil {
		t.Fatal(err)
	}
	over()
	tx.commits()
	a.is("100 4950", `SELECT concat(count(*), ' ', sum(n)) FROM copied`)
	a.hid("40P01")
}

func TestACopyBeyondTheJournalIsNotReplayed(t *testing.T) {
	a := enter(t, []Option{WithJournalLimit(8<<10, 1000)}, bank, `CREATE TABLE copied (n int)`)
	tx := a.begin(sql.LevelDefault)
	tx.does(`UPDATE account SET balance = balance - 1 WHERE id = 1`)
	if err := tx.copies(500); err != nil {
		t.Fatal(err)
	}
	over := a.meets(crossing)
	tx.fails("40P01", `UPDATE account SET balance = balance + 1 WHERE id = 2`)
	over()
	if err := tx.Commit(); err == nil {
		t.Error("COMMIT succeeds")
	}
	a.is("0", `SELECT count(*) FROM copied`)
	if s := a.stats(); s.Refusals[RefusedJournalFull] != 1 || s.Unprotected[RefusedJournalFull] != 1 {
		t.Errorf("the statistics are %+v", s)
	}
}
