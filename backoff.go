package pgretry

import (
	"cmp"
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
	unavailableRetries   = 12
	unavailableBaseDelay = 100 * time.Millisecond
	unavailableMaxDelay  = time.Second
)

// optInRetries bounds the retries of errors that are conflicts only perhaps, see
// [WithAlsoRetry].
const optInRetries = 4

// Policy bounds the attempts of one logical transaction. A field that is zero
// leaves what it was, which at first is the default; see [WithPolicy].
type Policy struct {
	// MaxAttempts counts the first attempt too; 1 means no retry. Default 50.
	MaxAttempts int
	// BaseDelay is the upper bound of the wait before the first retry; the bound
	// doubles with each further retry. Default 10 ms. If it is given alone and is
	// longer than MaxDelay was, MaxDelay follows.
	BaseDelay time.Duration
	// MaxDelay caps that bound. Default 1 s. If it is given alone and is shorter
	// than BaseDelay was, BaseDelay follows; given together, it must not be below
	// BaseDelay.
	MaxDelay time.Duration
	// MaxElapsed ends the retries: no attempt begins later than this after the
	// first one began. Default 30 s.
	MaxElapsed time.Duration
}

var defaultPolicy = Policy{DefaultMaxAttempts, DefaultBaseDelay, DefaultMaxDelay, DefaultMaxElapsed}

// over returns the policy with the fields that are zero taken from another. The
// delay that was not given follows the one that was, so that they stay in order.
func (p Policy) over(other Policy) Policy {
	baseGiven, maxGiven := p.BaseDelay != 0, p.MaxDelay != 0
	p = Policy{
		MaxAttempts: cmp.Or(p.MaxAttempts, other.MaxAttempts),
		BaseDelay:   cmp.Or(p.BaseDelay, other.BaseDelay),
		MaxDelay:    cmp.Or(p.MaxDelay, other.MaxDelay),
		MaxElapsed:  cmp.Or(p.MaxElapsed, other.MaxElapsed),
	}
	switch {
	case baseGiven && !maxGiven:
		p.MaxDelay = max(p.MaxDelay, p.BaseDelay)
	case maxGiven && !baseGiven:
		p.BaseDelay = min(p.BaseDelay, p.MaxDelay)
	}
	return p
}

func (p Policy) validate() error {
	switch {
	case p.MaxAttempts < 0:
		return fmt.Errorf("pgretry: MaxAttempts is %d, allowed is 1 or more", p.MaxAttempts)
	case p.BaseDelay < 0:
		return fmt.Errorf("pgretry: BaseDelay is %s, allowed is a positive duration", p.BaseDelay)
	case p.MaxDelay < 0:
		return fmt.Errorf("pgretry: MaxDelay is %s, allowed is a positive duration", p.MaxDelay)
	case p.MaxElapsed < 0:
		return fmt.Errorf("pgretry: MaxElapsed is %s, allowed is a positive duration", p.MaxElapsed)
	}
	if p.MaxDelay != 0 && p.MaxDelay < p.BaseDelay {
		return fmt.Errorf("pgretry: MaxDelay is %s, allowed is no less than BaseDelay, which is %s", p.MaxDelay, p.BaseDelay)
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
