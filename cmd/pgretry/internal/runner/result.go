package runner

import (
	"fmt"
	"slices"
	"time"
)

// Result is what an application saw of one workload on one side.
type Result struct {
	// Workload and Side are their names.
	Workload, Side string
	// Commits and Errors are how many logical transactions ended with a COMMIT and how many with
	// an error that the application saw.
	Commits, Errors int64
	// Codes are the SQLSTATEs of those errors and how often each came.
	Codes map[string]int64
	// First is one of those errors, nil if there was none.
	First error
	// Attempts is how many there were, all in all: physical transactions, and replays from a
	// savepoint.
	Attempts int64
	// P50 and P99 are percentiles of the time from a logical transaction's begin to its COMMIT's
	// answer, waits and repetitions included, over those that were committed. Zero without any.
	P50, P99 time.Duration
	// Conflicts is what became of deadlocks and serialization failures.
	Conflicts Conflicts
	// Elapsed is how long the workers were busy.
	Elapsed time.Duration
	// Violation says how the workload's invariant was violated, nil if it holds.
	Violation error
}

// AttemptsPerCommit is the price of one commit in attempts. Zero without a commit.
func (r Result) AttemptsPerCommit() float64 {
	if r.Commits == 0 {
		return 0
	}
	return float64(r.Attempts) / float64(r.Commits)
}

// Broken says what of pgretry's promise was not kept, nil if all was. Nothing is promised of lib/pq.
// A driver that replays by itself may show the application a conflict, but never do a transaction by
// halves, and it must get something done; RunInTx must hide every conflict, too.
func (r Result) Broken() error {
	switch {
	case r.Side == Plain.Name:
		return nil
	case r.Violation != nil:
		return fmt.Errorf("pgretry (%s) violated an invariant: %w", r.Side, r.Violation)
	case r.Side == RunInTx.Name && r.Errors > 0:
		return fmt.Errorf("pgretry (%s) lost %d transactions of %s, one of them with: %w", r.Side, r.Errors, r.Workload, r.First)
	case r.Commits == 0:
		return fmt.Errorf("pgretry (%s) committed no transaction of %s", r.Side, r.Workload)
	}
	return nil
}

func summarize(workers []worker) Result {
	result := Result{Codes: map[string]int64{}}
	var latencies []time.Duration
	for _, w := range workers {
		latencies = append(latencies, w.latencies...)
		for code, n := range w.codes {
			result.Codes[code] += n
			result.Errors += n
		}
		if result.First == nil {
			result.First = w.first
		}
	}
	result.Commits = int64(len(latencies))
	slices.Sort(latencies)
	result.P50, result.P99 = percentile(latencies, 50), percentile(latencies, 99)
	return result
}

// percentile is the nearest-rank percentile of sorted: the smallest value that p per cent of all
// values do not exceed.
func percentile(sorted []time.Duration, p int) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[(len(sorted)*p+99)/100-1]
}
