package workload_test

import (
	"context"
	"database/sql"
	"errors"
	"net/url"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"github.com/pgretry/pgretry/internal/pgserver/pgtest"
	"github.com/pgretry/pgretry/internal/workload"
)

// Each holds its locks for a while and the server looks for deadlocks at once: transactions that
// take them in any order are sure to fail.
func TestOrderedTransactionsNeverFailBecauseOfEachOther(t *testing.T) {
	const workers, each = 8, 12
	yield := func(context.Context) error {
		for range 100 {
			runtime.Gosched()
		}
		return nil
	}
	for _, w := range workload.All(seed, workload.Ordered(), workload.Pausing(yield)) {
		t.Run(w.Name(), func(t *testing.T) {
			t.Cleanup(func() { goleak.VerifyNone(t, goleak.IgnoreCurrent()) })
			dsn, err := url.Parse(pgtest.DSN(t))
			if err != nil {
				t.Fatal(err)
			}
			parameters := dsn.Query()
			parameters.Set("deadlock_timeout", "1ms")
			dsn.RawQuery = parameters.Encode()
			db, err := sql.Open("postgres", dsn.String())
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			db.SetMaxOpenConns(workers)
			db.SetMaxIdleConns(workers)
			if err := w.Setup(t.Context(), db); err != nil {
				t.Fatal(err)
			}
			var last atomic.Int64
			var group sync.WaitGroup
			for range workers {
				group.Go(func() {
					for range each {
						if err := once(t.Context(), db, w, last.Add(1)); err != nil {
							t.Error(err)
						}
					}
				})
			}
			group.Wait()
			var committed []int64
			for id := range last.Load() {
				committed = append(committed, id+1)
			}
			if err := w.Check(t.Context(), db, committed); err != nil {
				t.Error(err)
			}
		})
	}
}

func once(ctx context.Context, db *sql.DB, w workload.Workload, id int64) error {
	tx, err := db.BeginTx(ctx, w.TxOptions())
	if err != nil {
		return err
	}
	if err := w.Transaction(id)(ctx, tx); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	return tx.Commit()
}

func TestOrderedTransactionsLeaveWhatTheOthersLeave(t *testing.T) {
	plain := workload.All(seed)
	for i, w := range workload.All(seed, workload.Ordered()) {
		t.Run(w.Name(), func(t *testing.T) {
			db, committed := settled(t, w)
			if err := plain[i].Check(t.Context(), db, committed); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestThereIsAPauseBetweenTwoStatements(t *testing.T) {
	want := map[string]int64{
		"crossing": 1, "upserts": 5, "cache": 5, "counter": 3, "share": 1, "skew": 2,
		"transfer/write": 2, "transfer/rc": 4, "transfer/rr": 4, "transfer/ser": 4, "ids": 6,
	}
	const untouched = transactions + 1 // by settled, and none that sweeps the cache
	for _, ordered := range [][]workload.Option{nil, {workload.Ordered()}} {
		var pauses int64
		count := func(context.Context) error {
			pauses++
			return nil
		}
		for _, w := range workload.All(seed, append(ordered, workload.Pausing(count))...) {
			t.Run(w.Name(), func(t *testing.T) {
				db, _ := settled(t, w)
				pauses = 0
				if err := once(t.Context(), db, w, untouched); err != nil {
					t.Fatal(err)
				}
				if pauses != want[w.Name()] {
					t.Errorf("got %d pauses, want %d", pauses, want[w.Name()])
				}
			})
		}
	}
}

func TestAPauseThatFailsEndsTheTransaction(t *testing.T) {
	interrupted := errors.New("interrupted")
	fail := func(context.Context) error { return interrupted }
	plain := workload.All(seed)
	for i, w := range workload.All(seed, workload.Pausing(fail)) {
		t.Run(w.Name(), func(t *testing.T) {
			db, _ := settled(t, plain[i])
			if err := once(t.Context(), db, w, transactions+1); !errors.Is(err, interrupted) {
				t.Errorf("got %v, want the pause's error", err)
			}
		})
	}
}
