package pgretry

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"regexp"
	"strings"
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

// A row lock that a savepoint's rollback has let go vouches for nothing any more.
func TestNoPinAfterALockThatWasLetGo(t *testing.T) {
	for _, letGo := range []bool{true, false} {
		f := newFixture(t)
		one := drivertest.ResultSet{Columns: []drivertest.Column{{Name: "n"}}, Rows: [][]driver.Value{{int64(1)}}}
		f.Rows("FOR UPDATE", one)
		f.Rows("RETURNING", one)
		f.On(drivertest.AnyExec).MatchingRegexp(regexp.MustCompile(`SAVEPOINT|ROLLBACK TO|RELEASE`)).Result(driver.RowsAffected(0))
		steps := []string{"SAVEPOINT a", "SELECT balance FROM account FOR UPDATE", "ROLLBACK TO a", "RELEASE a", "INSERT INTO t VALUES (1) RETURNING id", "UPDATE account SET a = 1"}
		want := 0
		if !letGo {
			steps[2], want = "SAVEPOINT a", 1
		}
		err := plainly(t.Context(), f.db, sql.LevelReadCommitted, func(ctx context.Context, tx *sql.Tx) error {
			for _, text := range steps {
				var n int
				if strings.Contains(text, "RETURNING") || strings.Contains(text, "FOR UPDATE") {
					if err := tx.QueryRowContext(ctx, text).Scan(&n); err != nil {
						return err
					}
				} else if _, err := tx.ExecContext(ctx, text); err != nil {
					return err
				}
			}
			return nil
		})
		last := f.Log(drivertest.Exec)
		if got := strings.Count(strings.Join(last, "\n"), setPin); err != nil || letGo && got != 0 || !letGo && got < want {
			t.Errorf("let go %t: %d pins are set, %v:\n%s", letGo, got, err, strings.Join(last, "\n"))
		}
	}
}
