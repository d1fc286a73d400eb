package compat

import (
	"context"
	"database/sql"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pgretry/pgretry"
	"github.com/pgretry/pgretry/internal/workload"
)

// contendLimit is when transactions that get nowhere are given up.
const contendLimit = 2 * time.Minute

// way is how an application runs a transaction.
type way func(ctx context.Context, db *sql.DB, options *sql.TxOptions, body workload.Body) error

const (
	withRunInTx    = "RunInTx"
	withDriverName = "the driver's name only"
)

var ways = map[string]way{withRunInTx: viaRunInTx, withDriverName: viaBeginTx}

func viaRunInTx(ctx context.Context, db *sql.DB, options *sql.TxOptions, body workload.Body) error {
	return pgretry.RunInTx(ctx, db, options, body)
}

func viaBeginTx(ctx context.Context, db *sql.DB, options *sql.TxOptions, body workload.Body) error {
	tx, err := db.BeginTx(ctx, options)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if err := body(ctx, tx); err != nil {
		return err
	}
	return tx.Commit()
}

// crossingWords is the example of Citus' documentation: two rows, updated in opposite
// orders.
func crossingWords(t *testing.T) workload.Workload {
	t.Helper()
	return workloadOf(t, "crossing")
}

func workloadOf(t *testing.T, name string) workload.Workload {
	t.Helper()
	selected, err := workload.Select(1, []string{name})
	if err != nil {
		t.Fatal(err)
	}
	return selected[0]
}

// contention is what came of transactions that conflict.
type contention struct {
	committed []int64
	errs      map[string]int // the others, by what they say
}

// contend runs a workload's transactions, each worker on one of the databases.
func contend(t *testing.T, w workload.Workload, workers, each int, dbs []*sql.DB, run way) contention {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), contendLimit)
	defer cancel()
	result := contention{errs: map[string]int{}}
	var next atomic.Int64
	var mu sync.Mutex
	var all sync.WaitGroup
	for worker := range workers {
		all.Go(func() {
			for range each {
				id := next.Add(1)
				err := run(ctx, dbs[worker%len(dbs)], w.TxOptions(), w.Transaction(id))
				mu.Lock()
				if err == nil {
					result.committed = append(result.committed, id)
				} else {
					result.errs[err.Error()]++
				}
				mu.Unlock()
			}
		})
	}
	all.Wait()
	return result
}

// crossOnce runs two transactions of [crossingWords] that both have their first row before
// either asks for its second.
func crossOnce(t *testing.T, db *sql.DB, run way) [2]error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), contendLimit)
	defer cancel()
	return crossOnceContext(ctx, db, run)
}

func crossOnceContext(ctx context.Context, db *sql.DB, run way) (errs [2]error) {
	words := [2]string{"hello", "world"}
	var met, over sync.WaitGroup
	met.Add(2)
	for i := range 2 {
		over.Go(func() {
			var once sync.Once
			errs[i] = run(ctx, db, nil, func(ctx context.Context, tx *sql.Tx) error {
				if _, err := tx.ExecContext(ctx, `UPDATE words SET n = n + 1 WHERE word = $1`, words[i]); err != nil {
					return err
				}
				once.Do(func() {
					met.Done()
					met.Wait()
				})
				_, err := tx.ExecContext(ctx, `UPDATE words SET n = n + 1 WHERE word = $1`, words[1-i])
				return err
			})
		})
	}
	over.Wait()
	return errs
}
