package runner

import (
	"slices"
	"time"
)

// Result is what an application saw of one workload with one driver.
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
	// Attempts is how many physical transactions were begun, all in all.
	Attempts int64
	// P50 and P99 are percentiles of the time from a logical transaction's begin to its COMMIT's
	// answer, waits and repetitions included, over those that were committed. Zero without any.
	P50, P99 time.Duration
	// Deadlocks and SerializationFailures are how many of either the driver retried.
	Deadlocks, SerializationFailures int64
	// Elapsed is how long the workers were busy.
	Elapsed time.Duration
	// Violation says how the workload's invariant was violated, nil if it holds.
	Violation error
}

// AttemptsPerCommit is the price of one commit in physical transactions. Zero without a commit.
func (r Result) AttemptsPerCommit() float64 {
	if r.Commits == 0 {
		return 0
	}
	return float64(r.Attempts) / float64(r.Commits)
}

// Lost reports whether the application could tell that there were conflicts: it saw an error, or
// its data is wrong, or nothing was committed at all.
func (r Result) Lost() bool { return r.Errors > 0 || r.Violation != nil || r.Commits == 0 }

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
