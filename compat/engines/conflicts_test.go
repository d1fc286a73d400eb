package engines

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/pgretry/pgretry"
	"github.com/pgretry/pgretry/internal/pgserver"
	"github.com/pgretry/pgretry/internal/pgserver/pgtest"
)

func TestMain(m *testing.M) {
	code := pgtest.Main(m, pgserver.WithSettings(map[string]string{"deadlock_timeout": "10ms"}))
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

func TestPostgreSQL(t *testing.T) { conflicts(t, pgtest.DSN(t), nil) }

// The transactions that conflict: how many do so at once, and how often.
const (
	workers = 4
	rounds  = 10
)

// engine is one on which transactions conflict, with tables of their own.
type engine struct {
	*testing.T
	db    *sql.DB
	table string
}

// conflicts has transactions conflict in several ways and wants all of them to commit, and
// none of them twice. distribute is what the engine does with the new table.
func conflicts(t *testing.T, dsn string, distribute func(e *engine)) {
	db, err := sql.Open(pgretry.DriverName, dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	e := &engine{T: t, db: db, table: fmt.Sprintf("pgretry_account_%d", os.Getpid())}
	e.exec(`CREATE TABLE ` + e.table + ` (id bigint PRIMARY KEY, balance bigint NOT NULL)`)
	t.Cleanup(func() {
		// The test's context has ended by now.
		if _, err := db.ExecContext(context.Background(), `DROP TABLE `+e.table); err != nil {
			t.Error(err)
		}
	})
	if distribute != nil {
		distribute(e)
	}
	e.exec(`INSERT INTO ` + e.table + ` SELECT n, 100 FROM generate_series(1, 10) n`)

	for name, run := range map[string]func(e *engine){
		"two rows in opposite orders, in closures": (*engine).crossing,
		"read, then write, SERIALIZABLE":           (*engine).increments,
		"a nested transaction that fails alone":    (*engine).nested,
		"upserts outside transactions":             (*engine).upserts,
		"a deadlock by the driver's name alone":    (*engine).byNameAlone,
	} {
		t.Run(name, func(t *testing.T) { run(&engine{t, db, e.table}) })
	}
}

func (e *engine) exec(text string, args ...any) {
	e.Helper()
	if _, err := e.db.ExecContext(e.Context(), text, args...); err != nil {
		e.Fatalf("%s: %v", text, err)
	}
}

func (e *engine) is(want int, query string) {
	e.Helper()
	var got int
	if err := e.db.QueryRowContext(e.Context(), query).Scan(&got); err != nil || got != want {
		e.Errorf("%s is %d, %v, want %d", query, got, err, want)
	}
}

// atOnce runs something for each worker at once.
func (e *engine) atOnce(run func(worker int) error) {
	e.Helper()
	var all sync.WaitGroup
	for worker := range workers {
		all.Go(func() {
			for range rounds {
				if err := run(worker); err != nil {
					e.Errorf("worker %d: %v", worker, err)
				}
			}
		})
	}
	all.Wait()
}

// move moves one from an account to another.
func (e *engine) move(ctx context.Context, tx *sql.Tx, from, to int, locked func()) error {
	if _, err := tx.ExecContext(ctx, `UPDATE `+e.table+` SET balance = balance - 1 WHERE id = $1`, from); err != nil {
		return err
	}
	locked()
	_, err := tx.ExecContext(ctx, `UPDATE `+e.table+` SET balance = balance + 1 WHERE id = $1`, to)
	return err
}

func (e *engine) crossing() {
	e.atOnce(func(worker int) error {
		from, to := 1+worker%2, 2-worker%2
		return pgretry.RunInTx(e.Context(), e.db, nil, func(ctx context.Context, tx *sql.Tx) error {
			return e.move(ctx, tx, from, to, func() {})
		})
	})
	e.is(200, `SELECT sum(balance) FROM `+e.table+` WHERE id IN (1, 2)`)
}

func (e *engine) increments() {
	e.atOnce(func(int) error {
		return pgretry.RunInTx(e.Context(), e.db, &sql.TxOptions{Isolation: sql.LevelSerializable}, func(ctx context.Context, tx *sql.Tx) error {
			var balance int
			if err := tx.QueryRowContext(ctx, `SELECT balance FROM `+e.table+` WHERE id = 3`).Scan(&balance); err != nil {
				return err
			}
			_, err := tx.ExecContext(ctx, `UPDATE `+e.table+` SET balance = $1 WHERE id = 3`, balance+1)
			return err
		}, pgretry.WithPolicy(pgretry.Policy{MaxAttempts: 100}))
	})
	e.is(100+workers*rounds, `SELECT balance FROM `+e.table+` WHERE id = 3`)
}

func (e *engine) nested() {
	e.atOnce(func(worker int) error {
		return pgretry.RunInTx(e.Context(), e.db, nil, func(ctx context.Context, tx *sql.Tx) error {
			if err := e.move(ctx, tx, 4, 5, func() {}); err != nil {
				return err
			}
			if _, err := tx.ExecContext(ctx, `SAVEPOINT a`); err != nil {
				return err
			}
			_, err := tx.ExecContext(ctx, `INSERT INTO `+e.table+` VALUES ($1, 0)`, 5)
			if err == nil {
				return fmt.Errorf("worker %d inserts a duplicate", worker)
			}
			_, err = tx.ExecContext(ctx, `ROLLBACK TO SAVEPOINT a`)
			return err
		})
	})
	e.is(100-workers*rounds, `SELECT balance FROM `+e.table+` WHERE id = 4`)
	e.is(100+workers*rounds, `SELECT balance FROM `+e.table+` WHERE id = 5`)
}

func (e *engine) upserts() {
	e.atOnce(func(int) error {
		_, err := e.db.ExecContext(e.Context(), `INSERT INTO `+e.table+` AS a VALUES ($1, $2)
			ON CONFLICT (id) DO UPDATE SET balance = a.balance + excluded.balance`, 11, 1)
		return err
	})
	e.is(workers*rounds, `SELECT balance FROM `+e.table+` WHERE id = 11`)
}

// byNameAlone has two transactions hold one account each before either asks for the other.
func (e *engine) byNameAlone() {
	var met sync.WaitGroup
	met.Add(2)
	var both sync.WaitGroup
	for i := range 2 {
		both.Go(func() {
			tx, err := e.db.BeginTx(e.Context(), nil)
			if err != nil {
				e.Error(err)
				met.Done()
				return
			}
			defer tx.Rollback()
			if err := e.move(e.Context(), tx, 6+i, 7-i, func() {
				met.Done()
				met.Wait()
			}); err != nil {
				e.Error(err)
				return
			}
			if err := tx.Commit(); err != nil {
				e.Error(err)
			}
		})
	}
	both.Wait()
	e.is(100, `SELECT balance FROM `+e.table+` WHERE id = 6`)
	e.is(100, `SELECT balance FROM `+e.table+` WHERE id = 7`)
	stats, err := pgretry.StatsOf(e.db)
	if err != nil || stats.Hidden == 0 {
		e.Errorf("no conflict was hidden: %+v, %v", stats, err)
	}
}
