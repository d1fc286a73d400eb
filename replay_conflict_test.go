package pgretry

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/pgretry/pgretry/internal/drivertest"
)

// patient outlasts any storm of conflicts in a test.
var patient = WithPolicy(Policy{MaxAttempts: 10_000, MaxElapsed: time.Minute, MaxDelay: 50 * time.Millisecond})

// plainly runs a transaction as code does that knows of no retries.
func plainly(ctx context.Context, db *sql.DB, level sql.IsolationLevel, body func(context.Context, *sql.Tx) error) error {
	tx, err := db.BeginTx(ctx, &sql.TxOptions{Isolation: level})
	if err != nil {
		return err
	}
	if err := body(ctx, tx); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	return tx.Commit()
}

func TestTransactionsThatShowNothingOfOthersNeverSeeAConflict(t *testing.T) {
	const workers, transfers = 8, 25
	for _, level := range []sql.IsolationLevel{sql.LevelDefault, sql.LevelReadCommitted, sql.LevelRepeatableRead, sql.LevelSerializable} {
		t.Run(level.String(), func(t *testing.T) {
			db := openReal(t, []Option{patient}, accounts, `CREATE TABLE done (worker int, n int)`)
			var all sync.WaitGroup
			for worker := range workers {
				all.Go(func() {
					for n := range transfers {
						err := plainly(t.Context(), db, level, func(ctx context.Context, tx *sql.Tx) error {
							if err := move(ctx, tx, 1+(worker+n)%2, 2-(worker+n)%2); err != nil {
								return err
							}
							_, err := tx.ExecContext(ctx, `INSERT INTO done VALUES ($1, $2)`, worker, n)
							return err
						})
						if err != nil {
							t.Error(err)
						}
					}
				})
			}
			all.Wait()
			var sum, done, different int
			if err := db.QueryRow(`SELECT (SELECT sum(balance) FROM account), count(*), count(DISTINCT (worker, n)) FROM done`).Scan(&sum, &done, &different); err != nil {
				t.Fatal(err)
			}
			if want := workers * transfers; sum != 400 || done != want || different != want {
				t.Errorf("the sum is %d and %d of %d transfers are there, %d different ones", sum, done, want, different)
			}
			stats, err := StatsOf(db)
			if err != nil {
				t.Fatal(err)
			}
			if stats.Hidden == 0 || stats.PlainConflicts != 0 || stats.Diverged != 0 || stats.Protected != stats.Plain {
				t.Errorf("the statistics are %+v", stats)
			}
		})
	}
}

// Drivers made for tests answer what they did not expect with an error of their own,
// and servers there may be that have no savepoints.
func TestAPinThatCannotBeSetIsDoneWithout(t *testing.T) {
	for name, refusal := range map[string]error{
		"by a fake":   errors.New("was not expected"),
		"by a server": serverErr("0A000"),
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.Rows("RETURNING", drivertest.ResultSet{Columns: []drivertest.Column{{Name: "id"}}, Rows: [][]driver.Value{{int64(1)}}})
			pins := f.Fail(drivertest.Exec, refusal).Matching(setPin)
			for range 2 {
				err := plainly(t.Context(), f.db, sql.LevelReadCommitted, func(ctx context.Context, tx *sql.Tx) error {
					var id int64
					if err := tx.QueryRowContext(ctx, "INSERT INTO t VALUES (1) RETURNING id").Scan(&id); err != nil {
						return err
					}
					_, err := tx.ExecContext(ctx, "UPDATE last")
					return err
				})
				if err != nil {
					t.Error(err)
				}
			}
			if pins.Fired() != 1 {
				t.Errorf("%d pins were tried, want 1", pins.Fired())
			}
		})
	}
}
