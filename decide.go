package pgretry

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// decide says what follows an attempt that failed: whether the closure may run
// again and after which wait, or the error that the caller gets. RunInTx has rolled
// its transaction back by now; what else was begun under the attempt is waited for,
// within a bound.
func (l *loop) decide(a *attempt, phase Phase, err error) *failure {
	seen := a.observe()
	if seen.connector != nil && l.database() == nil {
		// The options were checked when the loop was made.
		if configErr := l.runsOn(seen.connector); configErr != nil {
			return l.final(a, seen, outcomeRolledBack, verdict{class: ClassPermanent, err: err}, "", errors.Join(err, configErr))
		}
	}

	v := l.judge(seen, phase, err)
	if cause := contextError(l.ctx); cause != nil && phase == PhaseBegin && l.failed.err != nil {
		// The wait was over just before the context was.
		return l.exhaust(a, seen, l.failed, "the context is done", cause)
	}
	switch {
	case v.class == ClassUnknownOutcome && !gaveUpRetrying(err):
		return l.final(a, seen, outcomeUnknown, v, "", l.unknown(err))
	case gaveUp(err):
		return l.final(a, seen, outcomeRolledBack, verdict{class: ClassPermanent, err: err}, "", err)
	case !l.retries(v):
		return l.final(a, seen, outcomeRolledBack, v, "", l.permanent(phase, seen, err))
	case l.target == nil && !seen.seen && l.parent != nil:
		// The failing transaction may be the outer loop's: so is the decision.
		return l.final(a, seen, outcomeRolledBack, v, "", err)
	case l.target == nil && !seen.seen:
		return l.refuse(a, seen, v, RefusedNotObserved, ErrNotObserved, "")
	case seen.committed != "" && !l.idempotent:
		return l.refuse(a, seen, v, RefusedAlreadyCommitted, ErrAlreadyCommitted, seen.committed)
	}
	if cause := contextError(l.ctx); cause != nil {
		return l.exhaust(a, seen, v, "the context is done", cause)
	}
	if seen.open > 0 {
		closed := l.closed(a)
		seen = a.observe()
		switch cause := contextError(l.ctx); {
		case seen.committed != "" && !l.idempotent:
			return l.refuse(a, seen, v, RefusedAlreadyCommitted, ErrAlreadyCommitted, seen.committed)
		case cause != nil:
			return l.exhaust(a, seen, v, "the context is done", cause)
		case !closed:
			return l.refuse(a, seen, v, RefusedTxStillOpen, ErrTxStillOpen, "")
		}
	}

	wait, limit, cause := l.next(v, l.ctx)
	if limit != "" {
		return l.exhaust(a, seen, v, limit, cause)
	}
	if v.class == ClassNotStarted || v.class == ClassConnectionLost {
		if c := l.database(); c != nil && !c.budget.take() {
			return l.exhaust(a, seen, v, "the retry budget is used up", nil)
		}
	}
	return l.retry(a, seen, v, wait)
}

// judge finds the class of what ended the attempt, and the error that is to
// blame. A closure may have hidden that error: the driver knows it.
func (l *loop) judge(seen observation, phase Phase, err error) verdict {
	if seen.unknown != nil && errors.Is(err, seen.unknown) {
		return verdict{class: ClassUnknownOutcome, err: err}
	}
	observed := seen.last
	if seen.main.err != nil {
		observed = seen.main
	}
	switch phase {
	case PhaseBegin:
		if errors.Is(err, ErrNotObserved) {
			return verdict{class: ClassPermanent, err: err}
		}
		if observed.err != nil {
			return verdict{class: observed.class, err: err}
		}
		// database/sql opens connections in a goroutine of its own as well, whose
		// context is not the attempt's.
		return verdict{class: Classify(err, PhaseConnect), err: err}
	case PhaseCommit:
		if seen.main.err == nil {
			// The driver was never asked to commit: database/sql saw the context end.
			return verdict{class: ClassPermanent, err: err}
		}
		return verdict{class: seen.main.class, err: hidden(err, seen.main.err)}
	}

	class := ClassPermanent
	if sqlState(err) != "" {
		class = Classify(err, PhaseStatement)
	}
	switch {
	case observed.err != nil && errors.Is(err, observed.err) && observed.class == ClassRetryable:
		return verdict{class: observed.class, err: err} // the driver knows more of it
	case l.retries(verdict{class: class, err: err}) && class != ClassConnectionLost:
		return verdict{class: class, err: err}
	case observed.err == nil, observed.faint && !errors.Is(err, observed.err):
		return verdict{class: class, err: err}
	case observed.class == ClassUnknownOutcome, observed.class == ClassConnectionLost, l.retries(observed):
		return verdict{class: observed.class, err: hidden(err, observed.err)}
	case class == ClassAborted:
		return verdict{class: observed.class, err: hidden(err, observed.err)}
	}
	return verdict{class: class, err: err}
}

// hiddenError is a closure's error with the server's error that it does not lead
// to.
type hiddenError struct{ closure, server error }

func (e *hiddenError) Error() string { return fmt.Sprintf("%v (after %v)", e.closure, e.server) }

// Unwrap puts the server's error first: a symptom such as 25P02 must not stand in
// for it.
func (e *hiddenError) Unwrap() []error { return []error{e.server, e.closure} }

func hidden(closure, server error) error {
	if errors.Is(closure, server) {
		return closure
	}
	return &hiddenError{closure, server}
}

// retries says whether the error allows a further attempt at all.
func (l *loop) retries(v verdict) bool {
	if v.class == ClassConnectionLost && isOneSession(l.target) {
		return false // a *sql.Conn is one session: lost is lost
	}
	return l.allows(v)
}

// closed waits until the transactions that the closure left to a context's end
// are rolled back.
func (l *loop) closed(a *attempt) bool {
	ctx, cancel := context.WithTimeout(l.ctx, l.config.closing)
	defer cancel()
	select {
	case <-a.whenClosed():
		return true
	case <-ctx.Done():
		return false
	}
}

// unknown returns the error of a COMMIT whose fate nobody can tell.
func (l *loop) unknown(err error) error {
	var lost *ConnectionLostError
	if errors.As(err, &lost) {
		return err // a statement outside the transaction: it says so itself
	}
	var known *CommitUnknownError
	if !errors.As(err, &known) {
		return &CommitUnknownError{Cause: err, Attempts: l.attempts, At: l.config.now()}
	}
	if known == err { //nolint:errorlint // the very same
		told := *known
		told.Attempts = l.attempts
		return &told
	}
	return err // the closure's own, around it
}

func gaveUpRetrying(err error) bool {
	var retry *RetryError
	return errors.As(err, &retry)
}

// gaveUp says whether an inner loop has had the last word already.
func gaveUp(err error) bool {
	var retry *RetryError
	var unknown *CommitUnknownError
	return errors.As(err, &retry) || errors.As(err, &unknown)
}

// permanent returns the error of an attempt that no retry cures: the closure's
// own, except where database/sql gave up on COMMIT because the context had ended.
func (l *loop) permanent(phase Phase, seen observation, err error) error {
	cause := contextError(l.ctx)
	if phase == PhaseCommit && seen.main.err == nil && cause != nil {
		return fmt.Errorf("pgretry: the context ended before COMMIT: %w", errors.Join(cause, err))
	}
	return err
}

func (l *loop) giveUp(v verdict, reason error, refusal RefusalReason, limit string, cause error) error {
	return &RetryError{
		Reason: reason, Refusal: refusal, Attempts: l.attempts, Elapsed: l.config.now().Sub(l.started),
		Class: v.class, Err: v.err, Limit: limit, cause: cause,
	}
}

func (l *loop) exhaust(a *attempt, seen observation, v verdict, limit string, cause error) *failure {
	l.limitWords = limit
	return l.final(a, seen, outcomeExhausted, v, "", l.giveUp(v, ErrExhausted, "", limit, cause))
}

func (l *loop) refuse(a *attempt, seen observation, v verdict, reason RefusalReason, sentinel error, what string) *failure {
	l.limitWords = what
	return l.final(a, seen, outcomeRefused, v, reason, l.giveUp(v, sentinel, reason, what, nil))
}

// final ends the attempt and the logical transaction with an error.
func (l *loop) final(a *attempt, seen observation, o outcome, v verdict, reason RefusalReason, err error) *failure {
	endSpan(a.currentSpan(), ending{outcome: o, class: v.class, err: v.err, reason: reason, statements: seen.statements})
	l.end(o, v, reason)
	switch o {
	case outcomeExhausted:
		l.tell(DecisionExhausted, v, "", 0)
	case outcomeRefused:
		l.tell(DecisionRefused, v, reason, 0)
	case outcomeUnknown:
		l.tell(DecisionUnknown, v, "", 0)
	}
	return &failure{verdict: v, final: err}
}

// retry ends the attempt; another one follows after the wait.
func (l *loop) retry(a *attempt, seen observation, v verdict, wait time.Duration) *failure {
	span := a.currentSpan()
	endSpan(span, ending{outcome: outcomeRetried, class: v.class, err: v.err, statements: seen.statements, wait: wait})
	l.mu.Lock()
	if span != nil {
		l.previous = span.SpanContext()
	}
	ctx, connector, telemetry := l.ctx, l.connector, l.telemetry
	l.mu.Unlock()
	state := sqlState(v.err)
	if connector != nil {
		connector.stats.retried(state)
	}
	telemetry.retried(ctx, KindClosure, v.class, state, wait)
	l.failed = v
	l.tell(DecisionRetried, v, "", wait)
	return &failure{verdict: v, again: true, wait: wait}
}

// tell calls the hook.
func (l *loop) tell(d Decision, v verdict, reason RefusalReason, wait time.Duration) {
	if l.config.onRetry == nil {
		return
	}
	deadlock, _ := ParseDeadlock(v.err)
	l.config.onRetry(l.ctx, Event{
		Decision: d, Reason: reason, Class: v.class, SQLState: sqlState(v.err), Attempt: l.attempts,
		Wait: wait, Name: l.name, Deadlock: deadlock, Err: v.err, Limit: l.limitWords,
	})
}
