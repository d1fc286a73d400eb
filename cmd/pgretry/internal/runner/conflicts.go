package runner

import (
	"maps"

	"github.com/pgretry/pgretry"
)

const (
	deadlockDetected     = "40P01"
	serializationFailure = "40001"
)

// conflictStates are the SQLSTATEs that mean: rolled back because of others.
var conflictStates = []string{serializationFailure, deadlockDetected}

// Conflicts is what became of the deadlocks and serialization failures of one run.
type Conflicts struct {
	// Seen is how many ended a transaction with an error that the application saw.
	Seen int64
	// Hidden is how many the application did not see, because the driver replayed the
	// transaction or ran its closure again.
	Hidden int64
	// Replays is how often the driver executed a transaction's statements again by itself, and
	// Partial how many of those it began at a savepoint instead of at BEGIN.
	Replays, Partial int64
	// Retries is how often a closure was run again, by SQLSTATE.
	Retries map[string]int64
	// Unhidden says why the driver did not hide those that were seen. It is nil for a driver that
	// does not try.
	Unhidden map[Cause]int64
}

// Cause says why a conflict was not hidden: one of the constants below or a
// [pgretry.RefusalReason].
type Cause string

const (
	// CauseDiverged: the replay showed something else than the application had seen.
	CauseDiverged Cause = "diverged"
	// CauseExhausted: a limit allowed no further attempt.
	CauseExhausted Cause = "exhausted"
	// CauseUnexplained: the driver gave no reason.
	CauseUnexplained Cause = "unexplained"
)

// Deadlocks is how many of them a closure was run again after.
func (c Conflicts) Deadlocks() int64 { return c.Retries[deadlockDetected] }

// SerializationFailures is how many of them a closure was run again after.
func (c Conflicts) SerializationFailures() int64 { return c.Retries[serializationFailure] }

// HiddenShare is the share of all conflicts that the application did not see, from 0 to 1. It is
// false if there was no conflict.
func (c Conflicts) HiddenShare() (float64, bool) {
	if c.Hidden+c.Seen == 0 {
		return 0, false
	}
	return float64(c.Hidden) / float64(c.Hidden+c.Seen), true
}

// Plus returns the sum of both.
func (c Conflicts) Plus(other Conflicts) Conflicts {
	return Conflicts{
		Seen: c.Seen + other.Seen, Hidden: c.Hidden + other.Hidden,
		Replays: c.Replays + other.Replays, Partial: c.Partial + other.Partial,
		Retries: sum(c.Retries, other.Retries), Unhidden: sum(c.Unhidden, other.Unhidden),
	}
}

func sum[K comparable](a, b map[K]int64) map[K]int64 {
	if a == nil && b == nil {
		return nil
	}
	total := make(map[K]int64, len(a)+len(b))
	for _, counts := range []map[K]int64{a, b} {
		for key, n := range counts {
			total[key] += n
		}
	}
	return total
}

// seenIn counts the conflicts among the errors that an application saw.
func seenIn(codes map[string]int64) (seen int64) {
	for _, state := range conflictStates {
		seen += codes[state]
	}
	return seen
}

// conflictsOf puts together what the application saw, in seen, and what the driver counted.
func conflictsOf(seen int64, stats pgretry.Stats) Conflicts {
	c := Conflicts{
		Seen: seen, Hidden: stats.Hidden,
		Replays: stats.Replays, Partial: stats.PartialReplays,
		Retries: maps.Clone(stats.RetriesBySQLState), Unhidden: map[Cause]int64{},
	}
	c.Hidden += c.Deadlocks() + c.SerializationFailures()
	unexplained := seen
	explain := func(cause Cause, n int64) {
		if n > 0 {
			c.Unhidden[cause] += n
			unexplained -= n
		}
	}
	explain(CauseDiverged, stats.Diverged)
	explain(CauseExhausted, stats.Exhausted)
	for reason, n := range stats.Refusals {
		explain(Cause(reason), n)
	}
	// Not trying to hide conflicts is no refusal of one of them.
	for _, reason := range []pgretry.RefusalReason{pgretry.RefusedMode, pgretry.RefusedByContext} {
		explain(Cause(reason), min(unexplained, stats.Unprotected[reason]))
	}
	explain(CauseUnexplained, unexplained)
	return c
}
