package pgretry

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v4"
)

// pace says how often and how fast one logical transaction may be tried. Its counts
// never start again: a transaction that survives conflict after conflict meets its
// limits all the same.
type pace struct {
	config   *config
	started  time.Time
	attempts int // so far, from 1

	backOff    backoff.BackOff // after conflicts; made when first needed
	slowly     backoff.BackOff // after unavailability
	slowCount  int
	optInCount int
}

// allows says whether the class of the error, the mode and the options allow a
// further attempt at all.
func (p *pace) allows(v verdict) bool {
	if p.config.mode == ModeOff {
		return false
	}
	switch v.class {
	case ClassRetryable, ClassNotStarted, ClassConnectionLost:
		return true
	case ClassRetryableOptIn:
		return slices.Contains(p.config.alsoRetry, sqlState(v.err))
	}
	return false
}

// next returns the wait before the next attempt, or the limit that forbids it and,
// if that is a context's, the context's error.
func (p *pace) next(v verdict, contexts ...context.Context) (wait time.Duration, limit string, cause error) {
	if limit = p.limit(v); limit != "" {
		return 0, limit, nil
	}
	return p.pause(v, contexts...)
}

// pause is next without the limits in number.
func (p *pace) pause(v verdict, contexts ...context.Context) (wait time.Duration, limit string, cause error) {
	switch v.class {
	case ClassNotStarted, ClassConnectionLost:
		if p.slowly == nil {
			p.slowly = newFullJitter(unavailableBaseDelay, unavailableMaxDelay, p.config.random)
		}
		wait = p.slowly.NextBackOff()
	default:
		if p.backOff == nil {
			p.backOff = p.config.conflictBackOff()
		}
		if wait = p.backOff.NextBackOff(); wait == backoff.Stop {
			return 0, "the BackOff says stop", nil
		}
		wait = max(0, wait)
	}
	limit, cause = p.ends(wait, contexts)
	return wait, limit, cause
}

// limit returns which of the limits in number is reached, "" if none is.
func (p *pace) limit(v verdict) string {
	if p.attempts >= p.config.policy.MaxAttempts {
		return fmt.Sprintf("MaxAttempts is %d", p.config.policy.MaxAttempts)
	}
	switch v.class {
	case ClassNotStarted, ClassConnectionLost:
		if p.slowCount++; p.slowCount > unavailableRetries {
			return "the server stays unavailable"
		}
	case ClassRetryableOptIn:
		if p.optInCount++; p.optInCount > optInRetries {
			return fmt.Sprintf("SQLSTATE %s is retried %d times at most", sqlState(v.err), optInRetries)
		}
	}
	return ""
}

// ends returns which of the limits in time ends the matter before the next attempt,
// "" if none does.
func (p *pace) ends(wait time.Duration, contexts []context.Context) (limit string, cause error) {
	next := p.config.now().Add(wait)
	if next.Sub(p.started) > p.config.policy.MaxElapsed {
		return fmt.Sprintf("the next one would begin after MaxElapsed of %s", p.config.policy.MaxElapsed), nil
	}
	for _, ctx := range contexts {
		if deadline, ok := ctx.Deadline(); ok && next.After(deadline) {
			return "the context's deadline comes before the next one", context.DeadlineExceeded
		}
	}
	return "", nil
}
