//go:build unix

package pgretry

import (
	"context"
	"database/sql"
	"syscall"
	"testing"
	"time"
)

// Who waits for a row is not given it, as it would be a table: it has to wake up and take it.
func TestWhoeverWaitedForARowHasItBeforeAPinIsReplayed(t *testing.T) {
	a := enter(t, nil, ledger)
	wait := connectorOf(a.db).config.wait
	resumed := false
	resume := func() {
		if err := syscall.Kill(a.pid, syscall.SIGCONT); err != nil {
			t.Error(err)
		}
	}
	connectorOf(a.db).config.wait = func(ctx context.Context, d time.Duration) error {
		if !resumed {
			resumed = true
			resume()
		}
		return wait(ctx, d)
	}
	tx := a.begin(sql.LevelReadCommitted)
	id := tx.sees(`INSERT INTO ledger DEFAULT VALUES RETURNING id`)
	tx.does(`UPDATE account SET balance = balance - 1 WHERE id = 1`)
	over := a.meets(crossing)
	if err := syscall.Kill(a.pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err := tx.ExecContext(ctx, `UPDATE account SET balance = balance + 1 WHERE id = 2`)
	resume()
	over()
	if err != nil {
		t.Fatalf("it surfaces: %v", err)
	}
	tx.commits()
	a.is(id, `SELECT id FROM ledger`)
	a.hid("40P01")
	if s := a.stats(); s.HiddenBySQLState["40P01"] != 1 {
		t.Errorf("stats are %+v", s)
	}
}
