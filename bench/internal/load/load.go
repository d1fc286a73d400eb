// Package load puts a workload under load with several workers, as one application would, and says
// what that application saw.
package load

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pgretry/pgretry/bench/internal/peer"
	"github.com/pgretry/pgretry/bench/internal/result"
	"github.com/pgretry/pgretry/internal/workload"
)

// Load says how hard to press, and for how long.
type Load struct {
	// Workers is the number of goroutines that run one transaction after another.
	Workers int
	// Warmup is how long they do so before the clock starts. What is committed until then has no
	// part in rate and latencies; failures and attempts count from the beginning.
	Warmup time.Duration
	// Window is how long they go on after that.
	Window time.Duration
	// Patience is how long those under way may take after that; then they are cancelled.
	Patience time.Duration
	// Ready is called once all connections are there, before the clock starts. It may be nil.
	Ready func() error
}

// Subject is what is put under load.
type Subject struct {
	System   peer.System
	Database *peer.Database
	Workload workload.Workload
	// NextID returns the ids of transactions, each once. It is called by several goroutines.
	NextID func() int64
}

// Counter returns a NextID that counts from first.
func Counter(first int64) func() int64 {
	var last atomic.Int64
	last.Store(first - 1)
	return func() int64 { return last.Add(1) }
}

// Outcome is what came of it.
type Outcome struct {
	result.Run
	// Ids are those of the committed transactions.
	IDs []int64
	// Unknown is how many transactions were cancelled at a point where nobody can tell whether
	// they were committed: the invariant cannot be checked.
	Unknown int64
}

// Run runs the workload. Connections are opened before the clock starts and closed at the end.
//
// Errors from the server are part of the outcome. The error of Run says that ctx ended, or that the
// database could not be worked with at all.
func Run(ctx context.Context, s Subject, l Load) (Outcome, error) {
	if s.System.Alone {
		l.Workers = 1
	}
	if err := connect(ctx, s.Database, l.Workers); err != nil {
		return Outcome{}, err
	}
	defer s.Database.SetMaxIdleConns(0)
	before, err := attempts(s.Database)
	if err != nil {
		return Outcome{}, err
	}
	if l.Ready != nil {
		if err := l.Ready(); err != nil {
			return Outcome{}, err
		}
	}

	starts := time.Now().Add(l.Warmup)
	r := run{Subject: s, starts: starts, ends: starts.Add(l.Window)}
	workers := make([]worker, l.Workers)
	limited, cancel := context.WithTimeout(ctx, l.Warmup+l.Window+l.Patience)
	defer cancel()
	var group sync.WaitGroup
	for i := range workers {
		group.Go(func() {
			for time.Now().Before(r.ends) && limited.Err() == nil {
				r.transaction(limited, &workers[i])
			}
		})
	}
	group.Wait()
	if cause := context.Cause(ctx); cause != nil {
		return Outcome{}, cause
	}

	outcome := summarize(workers)
	outcome.Window = l.Window
	if s.Database.Attempts != nil {
		after, err := attempts(s.Database)
		if err != nil {
			return Outcome{}, err
		}
		outcome.Attempts = after - before
	}
	if outcome.Committed == 0 && outcome.Failed["other"] > 0 && len(outcome.Failed) == 1 {
		return outcome, fmt.Errorf("no transaction got anywhere: %s", outcome.Failure)
	}
	return outcome, nil
}

func attempts(db *peer.Database) (int64, error) {
	if db.Attempts == nil {
		return 0, nil
	}
	n, err := db.Attempts()
	if err != nil {
		return 0, fmt.Errorf("count attempts: %w", err)
	}
	return n, nil
}

// connect opens as many connections as there are workers, so that no transaction's time contains
// that.
func connect(ctx context.Context, db *peer.Database, n int) error {
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
	Subject
	starts, ends time.Time // of the window
}

// worker is what one goroutine saw.
type worker struct {
	ids                 []int64
	latencies           []time.Duration
	givenUp             []time.Duration
	inWindow            int64
	attempts            int64
	failed              map[string]int64
	failure             string
	unfinished, unknown int64
	longest             time.Duration
}

// transaction runs one logical transaction.
func (r *run) transaction(ctx context.Context, seen *worker) {
	id := r.NextID()
	body := r.Workload.Transaction(id)
	complete := false // of the last attempt: all but its COMMIT
	began := time.Now()
	err := r.System.Transact(ctx, r.Database.DB, peer.Work{
		Name: r.Workload.Name(), Options: r.Workload.TxOptions(),
		Body: func(ctx context.Context, tx *sql.Tx) error {
			seen.attempts++
			complete = false
			err := body(ctx, tx)
			complete = err == nil
			return err
		},
	})
	ended := time.Now()
	took := ended.Sub(began)
	seen.longest = max(seen.longest, took)
	switch {
	case err == nil:
		seen.ids = append(seen.ids, id)
		if ended.Before(r.starts) {
			break
		}
		seen.latencies = append(seen.latencies, took)
		if ended.Before(r.ends) {
			seen.inWindow++
		}
	case ctx.Err() != nil:
		seen.unfinished++
		seen.givenUp = append(seen.givenUp, took)
		if complete {
			seen.unknown++
		}
	default:
		code := peer.SQLState(err)
		if code == "" {
			code = "other"
		}
		if seen.failed == nil {
			seen.failed = map[string]int64{}
		}
		seen.failed[code]++
		if seen.failure == "" {
			seen.failure = err.Error()
		}
	}
}

func summarize(workers []worker) Outcome {
	var outcome Outcome
	var latencies []time.Duration
	for _, w := range workers {
		outcome.IDs = append(outcome.IDs, w.ids...)
		latencies = slices.Concat(latencies, w.latencies, w.givenUp)
		for _, latency := range w.latencies {
			outcome.Max = max(outcome.Max, latency)
		}
		outcome.InWindow += w.inWindow
		outcome.Attempts += w.attempts
		outcome.Unfinished += w.unfinished
		outcome.Unknown += w.unknown
		outcome.Longest = max(outcome.Longest, w.longest)
		for code, n := range w.failed {
			if outcome.Failed == nil {
				outcome.Failed = map[string]int64{}
			}
			outcome.Failed[code] += n
		}
		if outcome.Failure == "" {
			outcome.Failure = w.failure
		}
	}
	outcome.Committed = int64(len(outcome.IDs))
	slices.Sort(latencies)
	outcome.P50, outcome.P99 = percentile(latencies, 50), percentile(latencies, 99)
	return outcome
}

// percentile is the nearest-rank percentile of sorted: the smallest value that p per cent of all
// values do not exceed. It is 0 for no values.
func percentile(sorted []time.Duration, p int) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[(len(sorted)*p+99)/100-1]
}

// Violation tells a broken invariant, "" if there is none, from a check that failed.
func Violation(err error) (string, error) {
	if violation, violated := errors.AsType[*workload.InvariantError](err); violated {
		return violation.Error(), nil
	}
	return "", err
}

// Think returns a pause of that length for [workload.Pausing].
func Think(d time.Duration) func(context.Context) error {
	return func(ctx context.Context) error {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
