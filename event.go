package pgretry

import (
	"fmt"
	"log/slog"
	"time"
)

// Decision is what was decided about a failed attempt.
type Decision uint8

const (
	// DecisionRetried: the attempt was rolled back and another one follows.
	DecisionRetried Decision = iota + 1
	// DecisionExhausted: the error would be retried, but a limit is reached.
	DecisionExhausted
	// DecisionRefused: the error would be retried, but that could do something
	// twice or cannot be proved safe.
	DecisionRefused
	// DecisionUnknown: COMMIT was sent and nobody knows whether it took effect.
	DecisionUnknown
)

// String returns "retried", "exhausted", "refused" or "unknown".
func (d Decision) String() string {
	switch d {
	case DecisionRetried:
		return "retried"
	case DecisionExhausted:
		return "exhausted"
	case DecisionRefused:
		return "refused"
	case DecisionUnknown:
		return "unknown"
	}
	return fmt.Sprintf("Decision(%d)", uint8(d))
}

// RefusalReason says why a transaction that failed was not run again although
// its error would be retried.
type RefusalReason string

const (
	// RefusedAlreadyCommitted is behind [ErrAlreadyCommitted].
	RefusedAlreadyCommitted RefusalReason = "already_committed"
	// RefusedNotObserved is behind [ErrNotObserved].
	RefusedNotObserved RefusalReason = "not_observed"
	// RefusedTxStillOpen is behind [ErrTxStillOpen].
	RefusedTxStillOpen RefusalReason = "tx_still_open"
)

// Event tells a [WithOnRetry] hook of one decision.
type Event struct {
	Decision Decision
	// Reason is set for DecisionRefused.
	Reason RefusalReason
	// Class and SQLState are of the error that ended the attempt; SQLState is ""
	// if it was not the server's.
	Class    Class
	SQLState string
	// Attempt is the number of the attempt that failed, from 1.
	Attempt int
	// Limit says in words which limit was reached, for DecisionExhausted, or what
	// was committed already.
	Limit string
	// Wait is the time until the next attempt, for DecisionRetried.
	Wait time.Duration
	// Name is the transaction's, see [ContextWithName].
	Name string
	// Deadlock is the cycle, if the error was a deadlock.
	Deadlock *Deadlock
	// Err is the error that ended the attempt. Its text may carry data.
	Err error
}

// LogValue lets an Event be logged without its error's text, which may carry
// data:
//
//	pgretry.WithOnRetry(func(ctx context.Context, e pgretry.Event) {
//		slog.WarnContext(ctx, "transaction", "pgretry", e)
//	})
func (e Event) LogValue() slog.Value {
	attrs := []slog.Attr{
		slog.String("decision", e.Decision.String()),
		slog.String("class", e.Class.String()),
		slog.Int("attempt", e.Attempt),
	}
	if e.SQLState != "" {
		attrs = append(attrs, slog.String("sqlstate", e.SQLState))
	}
	if e.Reason != "" {
		attrs = append(attrs, slog.String("reason", string(e.Reason)))
	}
	if e.Limit != "" {
		attrs = append(attrs, slog.String("limit", e.Limit))
	}
	if e.Decision == DecisionRetried {
		attrs = append(attrs, slog.Duration("wait", e.Wait))
	}
	if e.Name != "" {
		attrs = append(attrs, slog.String("name", e.Name))
	}
	if e.Deadlock != nil {
		attrs = append(attrs, slog.String("deadlock", e.Deadlock.String()))
	}
	return slog.GroupValue(attrs...)
}
