package gate

import "time"

// phase is what the control is about.
type phase uint8

const (
	// settled: the level is what it is until a deadlock, or until a higher one is tried.
	settled phase = iota
	// raising: a higher level is on trial.
	raising
	// lowering: a lower level is on trial, after a deadlock.
	lowering
)

// Tolerances in comparing what two levels bring. A lower level may cost a little, since
// each deadlock it avoids is work of the server and of the application, too. A higher one
// may look a little worse by chance, unless it has deadlocked: then it has to prove
// itself.
const (
	worthLowering = 0.90
	worthRaising  = 0.95
	worthTrouble  = 1.03
)

// How the wait for the next trial grows when one goes wrong, and shrinks when one goes
// well.
const (
	waitGrowth = 2
	waitShrink = 4
)

// longDrain is how long after a cut those that were let in before it may still be the
// reason for how things go.
const longDrain = 10 * time.Second

// maxTrouble is after how many commits in a row trouble is over.
const maxTrouble = 4

// control finds the limit.
type control struct {
	config Config

	phase      phase
	level      level
	base       level // where a trial began
	generation uint64
	estimates  [len(levels)]estimate
	run        goodput       // since the phase began
	unpaused   time.Duration // of the phase
	demanded   time.Duration // of that, how long more were wanted inside

	// After a cut, those that were let in before stay until they are done. Until then
	// the old level is what is measured.
	draining bool
	drained  level
	inside   int
	old      int       // how many of those inside were let in before the last cut
	cutAt    time.Time // when that was
	stale    goodput   // since the last cut, whoever it was
	trouble  int       // deadlocks less commits of late

	booked time.Time // what was before is accounted for
	demand bool

	riseWait     time.Duration
	holdWait     time.Duration
	held         time.Time // no cut before
	lastDeadlock time.Time
	start        time.Time
}

func newControl(config Config) control {
	return control{
		config:   config,
		level:    unlimited,
		base:     unlimited,
		riseWait: config.RiseWait,
		holdWait: config.RiseWait,
	}
}

func (c *control) limit() int { return c.level.limit() }

// measured is the level to which what happens is due.
func (c *control) measured() *estimate {
	if c.draining {
		return &c.estimates[c.drained]
	}
	return &c.estimates[c.level]
}

// pass books the time since the last call, in which so many were inside and waiting.
func (c *control) pass(now time.Time, inside, waiting int, paused bool) {
	if c.start.IsZero() {
		c.start, c.booked = now, now
	}
	c.inside = inside
	passed := now.Sub(c.booked)
	if passed < 0 {
		return
	}
	c.booked = now
	if paused {
		c.demand = false
		return
	}
	c.unpaused += passed
	if c.level == unlimited {
		c.demand = inside > 0
	} else {
		c.demand = waiting > 0 || inside >= c.limit()
	}
	if !c.demand {
		return
	}
	c.measured().add(now, 0, passed.Seconds(), c.config.Memory)
	if !c.draining {
		c.demanded += passed
		c.run.seconds += passed.Seconds()
	}
}

func (c *control) commit(now time.Time) {
	c.stale.commits++
	c.trouble = max(c.trouble-1, 0)
	if !c.demand {
		return
	}
	c.measured().add(now, 1, 0, c.config.Memory)
	if !c.draining {
		c.run.commits++
	}
}

// leave takes note that a transaction leaves that was let in at a generation.
func (c *control) leave(generation uint64) {
	if generation < c.generation {
		c.old--
	}
}

// deadlock takes note of a deadlock of a transaction that was let in at a generation,
// while so many were inside, itself included.
func (c *control) deadlock(now time.Time, generation uint64, inside int) {
	c.lastDeadlock = now
	c.trouble = min(c.trouble+1, maxTrouble)
	if generation != c.generation && !c.gridlocked() {
		return
	}
	c.run.deadlocks++
	switch c.phase {
	case raising:
		base := &c.estimates[c.base]
		if !base.remembered(now, c.config.Memory) || max(c.run.rate(), c.estimates[c.level].rate()) < base.rate() {
			c.giveUpRaising(now)
		}
	case lowering:
		if c.level > 0 {
			c.enter(now, lowering, c.half(inside))
		}
	case settled:
		c.cut(now, inside)
	}
}

// gridlocked takes note of a deadlock of a transaction that was let in before the last
// cut. Such deadlocks are no news, unless they outnumber the commits since: then those
// inside do nothing else, one deadlock after the other, and who is let in for one that
// leaves only keeps that going.
func (c *control) gridlocked() bool {
	c.stale.deadlocks++
	return c.stale.deadlocks > 2 && float64(c.stale.deadlocks) > c.stale.commits
}

// troubled says whether there were more deadlocks than commits of late.
func (c *control) troubled() bool { return c.trouble > 1 }

// half is the level for half of how many there are.
func (c *control) half(inside int) level {
	if c.level != unlimited {
		inside = min(inside, c.limit())
	}
	return levelFor(max(1, inside/2))
}

// cut answers a deadlock at a settled level.
func (c *control) cut(now time.Time, inside int) {
	if c.level == 0 {
		return
	}
	here := &c.estimates[c.level]
	if better, ok := c.betterBelow(now); ok {
		c.riseWait = min(c.riseWait*waitGrowth, c.config.RiseMax)
		c.enter(now, settled, better)
		return
	}
	if now.Before(c.held) {
		return
	}
	target := c.half(inside)
	if c.knownWorse(now, target, here) {
		if c.level == unlimited {
			return
		}
		target = c.level - 1
		if c.knownWorse(now, target, here) {
			return
		}
	}
	c.base = c.level
	c.enter(now, lowering, target)
}

// betterBelow returns the lower level that is known to bring the most, if that is more
// than the present one brings.
func (c *control) betterBelow(now time.Time) (best level, ok bool) {
	rate := c.estimates[c.level].rate()
	for l := range c.level {
		e := &c.estimates[l]
		if e.remembered(now, c.config.Memory) && e.rate() > rate {
			best, rate, ok = l, e.rate(), true
		}
	}
	return best, ok
}

func (c *control) knownWorse(now time.Time, l level, than *estimate) bool {
	e := &c.estimates[l]
	return e.remembered(now, c.config.Memory) && than.remembered(now, c.config.Memory) &&
		e.rate() < worthLowering*than.rate()
}

// decide draws the conclusions that are due.
func (c *control) decide(now time.Time, inside int) {
	c.inside = inside
	if c.level == unlimited {
		return
	}
	if c.draining && (c.old <= 0 || now.Sub(c.cutAt) > longDrain) {
		c.draining = false
		c.begin(c.phase)
	}
	if now.Sub(c.lastDeadlock) >= c.config.Memory {
		c.base = unlimited
		c.riseWait = c.config.RiseWait
		c.enter(now, settled, unlimited)
		return
	}
	switch c.phase {
	case settled:
		c.mayRaise(now)
	case raising:
		c.judgeRaising(now)
	case lowering:
		c.judgeLowering(now)
	}
}

// binding says whether more were wanted inside for most of the phase.
func (c *control) binding() bool { return c.demanded > c.unpaused/2 }

func (c *control) mayRaise(now time.Time) {
	if c.draining || c.unpaused < c.riseWait {
		return
	}
	if !c.binding() {
		// A limit that nobody feels changes nothing.
		c.goneWell()
		c.enter(now, settled, c.level+1)
		return
	}
	if c.estimates[c.level].remembered(now, c.config.Memory) {
		c.base = c.level
		c.enter(now, raising, c.level+1)
	}
}

func (c *control) judgeRaising(now time.Time) {
	if !c.run.conclusive() {
		if c.unpaused >= epoch && !c.binding() {
			c.accept()
		}
		return
	}
	base := c.estimates[c.base].rate()
	worth := worthRaising
	if c.run.deadlocks > 0 {
		worth = worthTrouble
	}
	switch {
	case c.estimates[c.level].rate() >= worth*base:
		c.accept()
	case c.run.rate() < worth*base:
		c.giveUpRaising(now)
	}
	// Otherwise the level was worse before, but costs nothing now.
}

// accept keeps the level that was tried.
func (c *control) accept() {
	if c.phase == raising {
		c.goneWell()
	}
	c.base = c.level
	c.begin(settled)
}

func (c *control) goneWell() {
	c.riseWait = max(c.riseWait/waitShrink, c.config.RiseWait)
}

func (c *control) giveUpRaising(now time.Time) {
	c.riseWait = c.waitAfter(c.riseWait, c.run.lost(c.estimates[c.base].rate()))
	c.enter(now, settled, c.base)
}

func (c *control) judgeLowering(now time.Time) {
	if c.draining {
		return
	}
	if !c.run.conclusive() {
		if c.unpaused >= epoch && !c.binding() {
			c.accept()
		}
		return
	}
	base := &c.estimates[c.base]
	if base.remembered(now, c.config.Memory) && c.estimates[c.level].rate() < worthLowering*base.rate() {
		c.holdWait = c.waitAfter(c.holdWait, c.run.lost(base.rate()))
		c.held = now.Add(c.holdWait)
		c.enter(now, settled, c.base)
		return
	}
	c.holdWait = max(c.holdWait/waitShrink, c.config.RiseWait)
	c.accept()
}

// waitAfter is how long to wait for the next trial after one that took so much longer
// than it would have taken without.
func (c *control) waitAfter(wait, lost time.Duration) time.Duration {
	share := time.Duration(float64(lost) / c.config.TrialShare)
	return min(max(wait*waitGrowth, share), c.config.RiseMax)
}

// enter goes to another level.
func (c *control) enter(now time.Time, p phase, to level) {
	if to < c.level {
		c.generation++
		c.stale = goodput{}
		c.old, c.cutAt = c.inside, now
		if !c.draining {
			c.draining, c.drained = true, c.level
		}
	} else if to > c.level {
		c.draining = false
	}
	c.level = to
	c.begin(p)
}

func (c *control) begin(p phase) {
	c.phase = p
	c.run = goodput{}
	c.unpaused, c.demanded = 0, 0
}

func (c *control) calm(now time.Time) bool {
	since := c.start
	if c.lastDeadlock.After(since) {
		since = c.lastDeadlock
	}
	return c.level == unlimited && now.Sub(since) >= c.config.Memory
}
