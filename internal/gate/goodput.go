package gate

import (
	"math"
	"time"
)

// How much must be measured before a rate means something: many commits, or some
// and a while, or a long while.
const (
	manyCommits = 20
	shortEpoch  = 50 * time.Millisecond
	someCommits = 4
	epoch       = 500 * time.Millisecond
	longEpoch   = 2 * time.Second
)

// goodput counts commits and the time they took.
type goodput struct {
	commits   float64
	seconds   float64
	deadlocks int
}

// rate is commits per second.
func (g goodput) rate() float64 {
	if g.seconds <= 0 {
		return 0
	}
	return g.commits / g.seconds
}

// conclusive says whether enough was measured to go by.
func (g goodput) conclusive() bool {
	return g.commits >= manyCommits && g.seconds >= shortEpoch.Seconds() ||
		g.commits >= someCommits && g.seconds >= epoch.Seconds() ||
		g.seconds >= longEpoch.Seconds()
}

// lost is how much longer the commits took than they would have taken at another rate;
// 0 if they took less.
func (g goodput) lost(rate float64) time.Duration {
	if rate <= 0 {
		return 0
	}
	return time.Duration(max(0, g.seconds-g.commits/rate) * float64(time.Second))
}

// estimate is the goodput of a level, in which what was measured long ago counts less.
// Commits and time fade alike, so that the stretches with and without a deadlock keep
// their proportion: the rate is what the level brings with its deadlocks.
type estimate struct {
	goodput
	at    time.Time // of the last measurement
	known bool      // it has been conclusive
}

func (e *estimate) add(now time.Time, commits, seconds float64, memory time.Duration) {
	switch passed := now.Sub(e.at); {
	case passed >= memory:
		e.goodput, e.known = goodput{}, false
	case passed > 0:
		// When the memory's length has passed, a fifth is left.
		weight := math.Exp(-1.6 * passed.Seconds() / memory.Seconds())
		e.commits *= weight
		e.seconds *= weight
	}
	e.at = now
	e.commits += commits
	e.seconds += seconds
	e.known = e.known || e.conclusive()
}

// remembered says whether the estimate still means something.
func (e *estimate) remembered(now time.Time, memory time.Duration) bool {
	return e.known && now.Sub(e.at) < memory
}
