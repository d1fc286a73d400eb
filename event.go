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
	// DecisionDiverged: a replay showed something else than the application had
	// seen.
	DecisionDiverged
)

// String returns "retried", "exhausted", "refused", "unknown" or "diverged".
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
	case DecisionDiverged:
		return "diverged"
	}
	return fmt.Sprintf("Decision(%d)", uint8(d))
}

// Kind says who runs a transaction again.
type Kind uint8

const (
	// KindClosure: RunInTx or Retry runs the application's closure again.
	KindClosure Kind = iota
	// KindReplay: the driver executes the transaction's statements again.
	KindReplay
	// KindStatement: the driver executes a statement outside a transaction again.
	KindStatement
)

// String returns "closure", "replay" or "statement".
func (k Kind) String() string {
	switch k {
	case KindClosure:
		return "closure"
	case KindReplay:
		return "replay"
	case KindStatement:
		return "statement"
	}
	return fmt.Sprintf("Kind(%d)", uint8(k))
}

// Event tells a [WithOnRetry] hook of one decision.
type Event struct {
	Decision Decision
	Kind     Kind
	// Reason is set for DecisionRefused.
	Reason RefusalReason
	// Class and SQLState are of the error that ended the attempt; SQLState is ""
	// if it was not the server's.
	Class    Class
	SQLState string
	// Attempt is the number of the attempt that failed, from 1.
	Attempt int
	// Limit says in words which limit was reached, for DecisionExhausted, what was
	// committed already, or which statement showed what else, for
	// DecisionDiverged. It carries no data.
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
		slog.String("kind", e.Kind.String()),
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
