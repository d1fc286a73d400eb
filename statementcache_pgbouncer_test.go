package pgretry

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/pgretry/pgretry/internal/pgbouncer"
	"github.com/pgretry/pgretry/internal/pgserver/pgtest"
)

const (
	bouncedTables  = 8
	bouncedWorkers = 16
	bouncedInserts = 5000
)

// insertBounced inserts into tables by many clients over few sessions of the server, in
// transactions, and alone where there are no arguments: with arguments lib/pq sends a lone
// statement in two parts, which a pooler gives to different sessions. It returns how many
// inserts say that they succeeded, how many rows are in a table that is not their own, and
// what was said by SQLSTATE.
func insertBounced(t *testing.T, options ...Option) (succeeded, wrong int64, said map[string]int) {
	t.Helper()
	direct := pgtest.DSN(t)
	plain, err := tested.plainly(direct)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := plain.Close(); err != nil {
			t.Error(err)
		}
	})
	var schema string
	if err := plain.QueryRow(`SELECT current_schema()`).Scan(&schema); err != nil {
		t.Fatal(err)
	}
	for n := range bouncedTables {
		if _, err := plain.Exec(fmt.Sprintf(`CREATE TABLE into_%d (home int, n int)`, n)); err != nil {
			t.Fatal(err)
		}
	}
	bouncer, err := pgbouncer.Start(t.Context(), direct, "transaction", 3)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := bouncer.Stop(); err != nil {
			t.Error(err)
		}
	})
	db, err := tested.open(withParameters(t, bouncer.DSN(), tested.pooled), options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	db.SetMaxOpenConns(bouncedWorkers)
	db.SetMaxIdleConns(bouncedWorkers)

	var next, done atomic.Int64
	var mu sync.Mutex
	said = map[string]int{}
	var workers sync.WaitGroup
	for worker := range bouncedWorkers {
		workers.Go(func() {
			// Each client meets the tables in an order of its own.
			for n := next.Add(1); n <= bouncedInserts; n = next.Add(1) {
				home := (int(n) + worker*3) % bouncedTables
				var err error
				if n%3 != 0 {
					err = inTx(t.Context(), db, func(ctx context.Context, tx *sql.Tx) error {
						_, err := tx.ExecContext(ctx, fmt.Sprintf(`INSERT INTO %s.into_%d VALUES ($1, $2)`, schema, home), home, n)
						return err
					})
				} else {
					_, err = db.ExecContext(t.Context(), fmt.Sprintf(`INSERT INTO %s.into_%d VALUES (%d, %d)`, schema, home, home, n))
				}
				if err == nil {
					done.Add(1)
					continue
				}
				mu.Lock()
				state := sqlState(err)
				if state == "" {
					state = err.Error()
				}
				said[state]++
				mu.Unlock()
			}
		})
	}
	workers.Wait()
	for n := range bouncedTables {
		var strangers int64
		if err := plain.QueryRow(fmt.Sprintf(`SELECT count(*) FROM into_%d WHERE home <> $1`, n), n).Scan(&strangers); err != nil {
			t.Fatal(err)
		}
		wrong += strangers
	}
	return done.Load(), wrong, said
}

func TestBehindAPoolerNothingIsKeptAndNothingGoesAstray(t *testing.T) {
	succeeded, wrong, said := insertBounced(t)
	if succeeded != bouncedInserts || wrong != 0 || len(said) != 0 {
		t.Errorf("%d succeeded, %d are in the wrong table, errors are %v", succeeded, wrong, said)
	}
}

// Who insists gets errors where the pooler does not know prepared statements, but never a
// statement of somebody else.
func TestInsistingBehindAPoolerNothingGoesAstray(t *testing.T) {
	succeeded, wrong, said := insertBounced(t, WithStatementCache(100))
	t.Logf("%d succeeded, errors are %v", succeeded, said)
	if wrong != 0 {
		t.Errorf("%d are in the wrong table", wrong)
	}
	for state := range said {
		if !slices.Contains([]string{"26000"}, state) {
			t.Errorf("an error is %s", state)
		}
	}
}

func TestBehindAPoolerTheCacheStaysOff(t *testing.T) {
	direct := pgtest.DSN(t)
	bouncer, err := pgbouncer.Start(t.Context(), direct, "session", 3)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := bouncer.Stop(); err != nil {
			t.Error(err)
		}
	})
	db, err := tested.open(withParameters(t, bouncer.DSN(), tested.pooled))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	k := keeperOf(t, db, nil)
	for range 3 {
		k.does("begin", `SELECT $1::int`, `SELECT $1::int`, "commit", `SELECT $1::int`)
	}
	k.wantsKept()
	k.is("auto", `SHOW plan_cache_mode`)
}
