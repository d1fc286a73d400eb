// Package runner puts a workload under load in one of the ways in which an application can run
// transactions, as one with several workers would, and says what that application saw.
package runner

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lib/pq"

	"github.com/pgretry/pgretry"
	"github.com/pgretry/pgretry/cmd/pgretry/internal/sandbox"
	"github.com/pgretry/pgretry/internal/workload"
)

// Load says how hard to press.
type Load struct {
	// Workers is the number of goroutines, each with a connection of its own, that run one
	// transaction after another.
	Workers int
	// Duration is how long they go on beginning new transactions, each at least one. Those under
	// way are then brought to their end.
	Duration time.Duration
}

// Progress is where a run stands.
type Progress struct {
	// Done is the part of the duration that is over, from 0 to 1.
	Done float64
	// Commits and Errors are how many logical transactions ended either way so far.
	Commits, Errors int64
}

const progressInterval = 100 * time.Millisecond

// Run sets the workload up in the sandbox, runs it on that side and checks its invariant. It calls
// observe, from one goroutine, about ten times a second; an error from there ends the run.
//
// A transaction that ends with an error from the server is counted and not an error of Run. Those
// are: a cancelled ctx, which ends transactions under way, and a server that cannot be worked with.
func Run(ctx context.Context, box *sandbox.Sandbox, side Side, w workload.Workload, load Load, observe func(Progress) error) (result Result, err error) {
	defer func() {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		} else if err != nil {
			err = fmt.Errorf("run %s (%s): %w", w.Name(), side.Name, err)
		}
	}()
	if err := box.Empty(ctx); err != nil {
		return Result{}, err
	}
	if err := w.Setup(ctx, box.DB()); err != nil {
		return Result{}, err
	}
	db, err := side.open(box)
	if err != nil {
		return Result{}, fmt.Errorf("open the database: %w", err)
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if err := connect(ctx, db, load.Workers); err != nil {
		return Result{}, err
	}

	r := run{side: side, workload: w, db: db, attempts: new(atomic.Int64)}
	began := time.Now()
	workers, err := r.work(ctx, load, observe)
	if err != nil {
		return Result{}, err
	}
	result = summarize(workers)
	result.Workload, result.Side = w.Name(), side.Name
	result.Elapsed = time.Since(began)
	result.Attempts = r.attempts.Load()
	result.Conflicts.Seen = seenIn(result.Codes)
	if side.retries {
		stats, err := pgretry.StatsOf(db)
		if err != nil {
			return Result{}, err
		}
		// The application does not see all of them begin.
		result.Attempts = stats.Attempts
		result.Conflicts = conflictsOf(result.Conflicts.Seen, stats)
	}

	var committed []int64
	for _, worker := range workers {
		committed = append(committed, worker.committed...)
	}
	err = w.Check(ctx, box.DB(), committed)
	if _, violated := errors.AsType[*workload.InvariantError](err); violated {
		result.Violation, err = err, nil
	}
	return result, err
}

// connect opens as many connections as there are workers, so that no transaction's latency
// contains that.
func connect(ctx context.Context, db *sql.DB, n int) error {
	db.SetMaxOpenConns(n)
	db.SetMaxIdleConns(n)
	for range n {
		conn, err := db.Conn(ctx)
		if err != nil {
			return fmt.Errorf("connect: %w", err)
		}
		defer conn.Close() // back into the pool, once all are open
	}
	return nil
}

type run struct {
	side            Side
	workload        workload.Workload
	db              *sql.DB
	lastID          atomic.Int64
	attempts        *atomic.Int64
	commits, errors atomic.Int64
}

// worker is what one goroutine saw.
type worker struct {
	committed []int64
	latencies []time.Duration
	codes     map[string]int64
	first     error
}

func (r *run) work(ctx context.Context, load Load, observe func(Progress) error) ([]worker, error) {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	began := time.Now()
	workers := make([]worker, load.Workers)
	var group sync.WaitGroup
	for i := range workers {
		group.Go(func() {
			for first := true; (first || time.Since(began) < load.Duration) && ctx.Err() == nil; first = false {
				if err := r.transaction(ctx, &workers[i]); err != nil {
					stop(err)
				}
			}
		})
	}
	over := make(chan struct{})
	go func() {
		defer close(over)
		group.Wait()
	}()
	report := func() {
		err := observe(Progress{
			Done:    min(1, time.Since(began).Seconds()/load.Duration.Seconds()),
			Commits: r.commits.Load(), Errors: r.errors.Load(),
		})
		if err != nil {
			stop(fmt.Errorf("show progress: %w", err))
		}
	}
	ticker := time.NewTicker(progressInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			report()
		case <-over:
			report()
			return workers, context.Cause(ctx)
		}
	}
}

// transaction runs one logical transaction. It returns the error of one that failed for another
// reason than an answer from the server.
func (r *run) transaction(ctx context.Context, seen *worker) error {
	id := r.lastID.Add(1)
	body := r.workload.Transaction(id)
	began := time.Now()
	err := r.side.transact(ctx, r.db, r.workload, func(ctx context.Context, tx *sql.Tx) error {
		r.attempts.Add(1)
		return body(ctx, tx)
	})
	if err == nil {
		r.commits.Add(1)
		seen.committed = append(seen.committed, id)
		seen.latencies = append(seen.latencies, time.Since(began))
		return nil
	}
	if ctx.Err() != nil {
		return nil //nolint:nilerr // an interrupted transaction says nothing of the driver
	}
	server, ok := errors.AsType[*pq.Error](err)
	if !ok {
		return err
	}
	r.errors.Add(1)
	if seen.codes == nil {
		seen.codes = map[string]int64{}
	}
	seen.codes[string(server.Code)]++
	if seen.first == nil {
		seen.first = err
	}
	return nil
}
