package main

import (
	"math/rand/v2"
	"time"

	"github.com/pgretry/pgretry"
)

// The article's parameters. It counts retries from 1, so that the first of its bounds is twice
// the base.
const (
	articleBase = 5 * time.Millisecond
	articleCap  = 2 * time.Second
)

// waiter tells one client how long to wait before its next attempt. A pgretry.FullJitter is
// one.
type waiter interface{ NextBackOff() time.Duration }

// strategy is what is compared.
type strategy struct {
	name  string
	wait  func(*rand.Rand) waiter
	gated bool // the clients pass a gate, too
}

var strategies = []strategy{
	{name: "none", wait: func(*rand.Rand) waiter { return noWait{} }},
	{name: "exponential", wait: func(*rand.Rand) waiter { return &exponential{} }},
	{name: "equal jitter", wait: func(random *rand.Rand) waiter { return &equalJitter{random: random} }},
	{name: "full jitter", wait: fullJitter(2*articleBase, articleCap)},
	{name: "decorrelated jitter", wait: func(random *rand.Rand) waiter { return &decorrelated{random, articleBase} }},
	{name: "pgretry", wait: pgretryJitter},
	{name: "pgretry, gate", wait: pgretryJitter, gated: true},
}

var pgretryJitter = fullJitter(pgretry.DefaultBaseDelay, pgretry.DefaultMaxDelay)

// fullJitter is the library's own.
func fullJitter(base, limit time.Duration) func(*rand.Rand) waiter {
	return func(random *rand.Rand) waiter {
		jitter, err := pgretry.NewFullJitter(base, limit, random.Int64N)
		if err != nil {
			panic(err) // the parameters are constants
		}
		return jitter
	}
}

// noWait tries again at once.
type noWait struct{}

func (noWait) NextBackOff() time.Duration { return 0 }

// exponential doubles the delay from attempt to attempt.
type exponential struct{ next time.Duration }

func (e *exponential) NextBackOff() time.Duration {
	if e.next == 0 {
		e.next = articleBase
	}
	e.next = min(2*e.next, articleCap)
	return e.next
}

// equalJitter leaves half of an exponential delay to chance.
type equalJitter struct {
	exponential
	random *rand.Rand
}

func (e *equalJitter) NextBackOff() time.Duration {
	half := e.exponential.NextBackOff() / 2
	return half + time.Duration(e.random.Int64N(int64(half)+1))
}

// decorrelated draws from an interval that grows with what was drawn last.
type decorrelated struct {
	random *rand.Rand
	last   time.Duration
}

func (d *decorrelated) NextBackOff() time.Duration {
	d.last = min(articleBase+time.Duration(d.random.Int64N(int64(3*d.last-articleBase)+1)), articleCap)
	return d.last
}
