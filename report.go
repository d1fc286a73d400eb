package pgretry

import (
	"context"
	"time"
)

// retried ends an attempt of the driver's own; another one follows after the wait.
func (t *tx) retried(v verdict, wait time.Duration, partial bool) {
	connector := t.conn.connector
	connector.stats.attemptEnded(outcomeRetried)
	connector.stats.replayed(partial)
	t.plain.retried(ending{outcome: outcomeRetried, class: v.class, err: v.err, statements: t.statements, wait: wait})
	t.statements = 0
	connector.tellRetried(t.began, KindReplay, v, t.pace.attempts, wait)
	t.pace.attempts++
}

// startAttempt opens the span of the attempt that begins now.
func (t *tx) startAttempt() {
	t.plain.next(t.conn.connector.telemetry, t.pace.config.now(), t.pace.attempts)
	if t.attemptSpan != nil {
		t.attemptSpan = t.plain.span
	}
}

// tellFinal tells of a conflict that is not, or not again, followed by a replay.
func (t *tx) tellFinal(o outcome, v verdict, reason RefusalReason, words string) {
	t.conn.connector.tellFinal(t.began, KindReplay, o, v, t.pace.attempts, reason, words)
}

// tellRetried tells of an attempt, of a transaction or of a statement outside one,
// that the driver makes by itself.
func (c *Connector) tellRetried(ctx context.Context, kind Kind, v verdict, attempt int, wait time.Duration) {
	c.telemetry.retried(ctx, kind, v.class, sqlState(v.err), wait)
	c.tell(ctx, kind, DecisionRetried, v, attempt, "", "", wait)
}

// tellFinal tells that there is no further attempt.
func (c *Connector) tellFinal(ctx context.Context, kind Kind, o outcome, v verdict, attempt int, reason RefusalReason, words string) {
	decision := DecisionRefused
	switch o {
	case outcomeExhausted:
		decision = DecisionExhausted
		c.stats.gaveUp()
	case outcomeDiverged:
		decision = DecisionDiverged
	case outcomeUnknown:
		decision = DecisionUnknown
	}
	if reason != "" {
		c.stats.refused(reason)
		c.telemetry.refused(ctx, reason)
	}
	c.tell(ctx, kind, decision, v, attempt, reason, words, 0)
}

// tell calls the hook.
func (c *Connector) tell(ctx context.Context, kind Kind, d Decision, v verdict, attempt int, reason RefusalReason, words string, wait time.Duration) {
	if c.config.onRetry == nil {
		return
	}
	deadlock, _ := ParseDeadlock(v.err)
	c.config.onRetry(ctx, Event{
		Decision: d, Kind: kind, Reason: reason, Class: v.class, SQLState: sqlState(v.err), Attempt: attempt,
		Wait: wait, Name: nameFrom(ctx), Deadlock: deadlock, Err: v.err, Limit: words,
	})
}
