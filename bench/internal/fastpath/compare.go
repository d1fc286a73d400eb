// Package fastpath measures what systems cost while nothing conflicts: one connection each, the same
// job done by all of them in turn.
package fastpath

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"time"

	"github.com/pgretry/pgretry/bench/internal/measure"
	"github.com/pgretry/pgretry/bench/internal/peer"
	"github.com/pgretry/pgretry/bench/internal/result"
)

// Effort says how much is measured.
type Effort struct {
	// Rounds is how often each system has its turn.
	Rounds int
	// Each is how often it does the job then.
	Each int
	// Warm is how often it does the job before that, unmeasured, over a connection that is new
	// in every round: where the system puts the two ends of a connection, on one core or on two,
	// can make a difference of one to two for as long as it lasts. 0 means that one connection
	// serves all rounds.
	Warm int
}

// job is what a system does.
type job struct {
	system string
	do     func(context.Context) error
	db     *peer.Database // nil if it has no connection to renew
}

// prepare makes ready for a turn.
func (j job) prepare(ctx context.Context, effort Effort) error {
	if j.db != nil && effort.Warm > 0 {
		j.db.SetMaxIdleConns(0) // closes the idle one
		j.db.SetMaxIdleConns(1)
	}
	for range effort.Warm {
		if err := j.do(ctx); err != nil {
			return fmt.Errorf("%s: %w", j.system, err)
		}
	}
	return nil
}

// compare gives every job its turn in every round, in an order that changes, after one turn that
// does not count.
func compare(ctx context.Context, jobs []job, effort Effort) ([]result.Timing, error) {
	timings := make([]result.Timing, len(jobs))
	allocations := make([][]float64, len(jobs))
	for i, j := range jobs {
		timings[i].System = j.system
		if err := j.prepare(ctx, effort); err != nil {
			return nil, err
		}
		if _, _, _, err := turn(ctx, j, effort.Each); err != nil {
			return nil, err
		}
	}
	for range effort.Rounds {
		for _, i := range rand.Perm(len(jobs)) {
			if err := jobs[i].prepare(ctx, effort); err != nil {
				return nil, err
			}
			median, mean, allocated, err := turn(ctx, jobs[i], effort.Each)
			if err != nil {
				return nil, err
			}
			timings[i].Micros, timings[i].Means = append(timings[i].Micros, median), append(timings[i].Means, mean)
			allocations[i] = append(allocations[i], allocated)
		}
	}
	for i := range timings {
		timings[i].Allocations = measure.Median(allocations[i])
	}
	return timings, nil
}

// turn returns the median and the mean time of a job in microseconds, and its allocations.
func turn(ctx context.Context, j job, times int) (median, mean, allocations float64, err error) {
	taken := make([]float64, 0, times)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range times {
		began := time.Now()
		if err := j.do(ctx); err != nil {
			return 0, 0, 0, fmt.Errorf("%s: %w", j.system, err)
		}
		taken = append(taken, float64(time.Since(began).Nanoseconds())/1e3)
	}
	runtime.ReadMemStats(&after)
	for _, micros := range taken {
		mean += micros / float64(times)
	}
	return measure.Median(taken), mean, float64(after.Mallocs-before.Mallocs) / float64(times), nil
}

// databases are those of several systems, closed together.
type databases []*peer.Database

func (d *databases) open(system peer.System, dsn string) (*peer.Database, error) {
	db, err := system.Open(dsn)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", system.ID, err)
	}
	db.SetMaxOpenConns(1)
	*d = append(*d, db)
	return db, nil
}

func (d *databases) close() error {
	var err error
	for _, db := range *d {
		err = errors.Join(err, db.Close())
	}
	return err
}
