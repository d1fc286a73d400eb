package pgretry

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/cenkalti/backoff/v4"
)

// Defaults of [Policy]. Fifty attempts look like many, but under contention a
// hot row loses often: what should end a transaction is its deadline.
const (
	DefaultMaxAttempts = 50
	DefaultBaseDelay   = 10 * time.Millisecond
	DefaultMaxDelay    = time.Second
	DefaultMaxElapsed  = 30 * time.Second
)

// Attempts and delays after unavailability (a lost connection, a server that is
// starting): fewer and slower than after a conflict, since the server may be
// gone for good and must not be hammered while it recovers.
const (
	unavailableRetries   = 4
	unavailableBaseDelay = 100 * time.Millisecond
	unavailableMaxDelay  = time.Second
)

// optInRetries bounds the retries of errors that are conflicts only perhaps, see
// [WithAlsoRetry].
const optInRetries = 4

// Policy bounds the attempts of one logical transaction. A field that is zero
// has its default.
type Policy struct {
	// MaxAttempts counts the first attempt too; 1 means no retry. Default 50.
	MaxAttempts int
	// BaseDelay is the upper bound of the wait before the first retry; the bound
	// doubles with each further retry. Default 10 ms, or MaxDelay if that is
	// shorter.
	BaseDelay time.Duration
	// MaxDelay caps that bound. It must not be below BaseDelay. Default 1 s, or
	// BaseDelay if that is longer.
	MaxDelay time.Duration
	// MaxElapsed ends the retries: no attempt begins later than this after the
	// first one began. Default 30 s.
	MaxElapsed time.Duration
}

func (p Policy) withDefaults() Policy {
	if p.MaxAttempts == 0 {
		p.MaxAttempts = DefaultMaxAttempts
	}
	if p.BaseDelay == 0 {
		p.BaseDelay = DefaultBaseDelay
		if p.MaxDelay > 0 {
			p.BaseDelay = min(p.BaseDelay, p.MaxDelay)
		}
	}
	if p.MaxDelay == 0 {
		p.MaxDelay = max(DefaultMaxDelay, p.BaseDelay)
	}
	if p.MaxElapsed == 0 {
		p.MaxElapsed = DefaultMaxElapsed
	}
	return p
}

func (p Policy) validate() error {
	switch {
	case p.MaxAttempts < 0:
		return fmt.Errorf("pgretry: MaxAttempts is %d, allowed is 1 or more, or 0 for the default of %d", p.MaxAttempts, DefaultMaxAttempts)
	case p.BaseDelay < 0:
		return fmt.Errorf("pgretry: BaseDelay is %s, allowed is a positive duration, or 0 for the default of %s", p.BaseDelay, DefaultBaseDelay)
	case p.MaxDelay < 0:
		return fmt.Errorf("pgretry: MaxDelay is %s, allowed is a positive duration, or 0 for the default of %s", p.MaxDelay, DefaultMaxDelay)
	case p.MaxElapsed < 0:
		return fmt.Errorf("pgretry: MaxElapsed is %s, allowed is a positive duration, or 0 for the default of %s", p.MaxElapsed, DefaultMaxElapsed)
	}
	if full := p.withDefaults(); full.MaxDelay < full.BaseDelay {
		return fmt.Errorf("pgretry: MaxDelay is %s, allowed is no less than BaseDelay, which is %s", full.MaxDelay, full.BaseDelay)
	}
	return nil
}

var _ backoff.BackOff = (*FullJitter)(nil)

// FullJitter is a [backoff.BackOff] whose n-th delay is drawn uniformly from
// [0, min(cap, base·2ⁿ)], n counting from 0. Of the strategies compared in "Exponential
// Backoff and Jitter" (AWS Architecture Blog) it needs the fewest calls for
// nearly the best completion time; cenkalti/backoff has none like it, since its
// RandomizationFactor spreads delays around an interval and so beyond the cap.
//
// Like every BackOff it belongs to one transaction and is not safe for
// concurrent use. It never returns [backoff.Stop]: a [Policy] decides when to end.
type FullJitter struct {
	base, limit time.Duration
	retries     uint
	random      func(n int64) int64
}

// NewFullJitter returns a FullJitter with the given base and cap. Both must be
// positive and the cap no less than the base. random returns a number in [0, n);
// nil means [rand.Int64N].
func NewFullJitter(base, limit time.Duration, random func(n int64) int64) (*FullJitter, error) {
	if base <= 0 || limit <= 0 {
		return nil, errors.New("pgretry: base and cap of a FullJitter must be positive")
	}
	if limit < base {
		return nil, fmt.Errorf("pgretry: the cap of a FullJitter is %s, allowed is no less than its base, which is %s", limit, base)
	}
	return newFullJitter(base, limit, random), nil
}

func newFullJitter(base, limit time.Duration, random func(n int64) int64) *FullJitter {
	if random == nil {
		random = rand.Int64N
	}
	return &FullJitter{base: base, limit: limit, random: random}
}

// NextBackOff returns the next delay.
func (j *FullJitter) NextBackOff() time.Duration {
	bound := j.bound()
	j.retries++
	if bound <= 0 {
		return 0
	}
	// The interval is closed: the bound itself may be drawn, unless that would
	// overflow.
	n := int64(bound)
	if n < 1<<62 {
		n++
	}
	return time.Duration(j.random(n))
}

// bound is min(cap, base·2ⁿ) without the overflow that the formula invites.
func (j *FullJitter) bound() time.Duration {
	if j.retries >= 63 || j.base > j.limit>>j.retries {
		return j.limit
	}
	return j.base << j.retries
}

// Reset makes the next delay the first again.
func (j *FullJitter) Reset() { j.retries = 0 }
