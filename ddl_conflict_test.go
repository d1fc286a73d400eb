package pgretry

import (
	"testing"
)

// What an ORM's migration sends outside a transaction takes its locks one after the other,
// and so can deadlock with the application that runs beside it.
func TestDDLOutsideATransactionSurvivesADeadlock(t *testing.T) {
	a := enter(t, nil, `CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE child (id int)`)
	// The rival writes the parent and then the child. The foreign key locks the child, on
	// which it is made, and then the parent.
	a.rivalDoes(`BEGIN`, `INSERT INTO parent VALUES (1)`)
	done := make(chan error, 1)
	go func() {
		_, err := a.db.ExecContext(a.Context(), `ALTER TABLE child ADD FOREIGN KEY (id) REFERENCES parent (id)`)
		done <- err
	}()
	a.isWaitedFor()
	a.rivalDoes(`INSERT INTO child VALUES (1)`, `COMMIT`)
	if err := <-done; err != nil {
		t.Error(err)
	}
	a.is("1", `SELECT count(*) FROM pg_constraint WHERE conrelid = 'child'::regclass AND contype = 'f'`)
	if s := a.stats(); s.HiddenBySQLState["40P01"] != 1 || s.PlainConflicts != 0 {
		t.Errorf("the statistics are %+v", s)
	}
}
