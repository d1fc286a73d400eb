package gate

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// hotRows is two of ten rows, upserts is twenty of a hundred.
func hotRows(workers int, think, detect time.Duration) *storm {
	return &storm{
		workers: workers, rows: 10, take: 2, step: 200 * time.Microsecond, think: think,
		detect: detect, cores: 2, seed: 1,
	}
}

func upserts(workers int, think, detect time.Duration) *storm {
	return &storm{
		workers: workers, rows: 100, take: 20, step: 50 * time.Microsecond, think: think,
		detect: detect, cores: 2, seed: 1,
	}
}

func newAdaptive() *adaptive { return &adaptive{limiter: NewLimiter(Config{})} }

// The bound is the worst of several seeds; with a second per deadlock chance plays a
// greater part. A storm of w workers needs up to w deadlocks, one after the other, to
// get out of the first jam, which is what the warm-up is for.
func TestTheGateComesNearTheBestFixedLimit(t *testing.T) {
	const early, late = 20 * time.Millisecond, time.Second
	for _, c := range []struct {
		name      string
		make      func(workers int, think, detect time.Duration) *storm
		workers   int
		think     time.Duration
		detect    time.Duration
		warm, run time.Duration
		atLeast   float64
	}{
		{"hot rows", hotRows, 16, 0, early, 10 * time.Second, 20 * time.Second, 0.90},
		{"hot rows", hotRows, 32, 0, early, 10 * time.Second, 20 * time.Second, 0.90},
		{"hot rows", hotRows, 16, 5 * time.Millisecond, early, 10 * time.Second, 40 * time.Second, 0.85},
		{"hot rows", hotRows, 32, 5 * time.Millisecond, early, 10 * time.Second, 40 * time.Second, 0.85},
		{"hot rows", hotRows, 32, 0, late, 40 * time.Second, 40 * time.Second, 0.85},
		{"hot rows", hotRows, 16, 5 * time.Millisecond, late, 40 * time.Second, 60 * time.Second, 0.70},
		{"upserts", upserts, 16, 0, early, 5 * time.Second, 10 * time.Second, 0.90},
		{"upserts", upserts, 32, 0, early, 5 * time.Second, 10 * time.Second, 0.90},
		{"upserts", upserts, 16, 5 * time.Millisecond, early, 10 * time.Second, 40 * time.Second, 0.85},
		{"upserts", upserts, 16, 0, late, 40 * time.Second, 20 * time.Second, 0.85},
		{"upserts", upserts, 32, 5 * time.Millisecond, late, 40 * time.Second, 40 * time.Second, 0.85},
	} {
		name := fmt.Sprintf("%s, %d workers, think %s, deadlock found after %s", c.name, c.workers, c.think, c.detect)
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			simulate := func(a admission, ordered bool) stormResult {
				s := c.make(c.workers, c.think, c.detect)
				s.warm, s.run, s.ordered = c.warm, c.run, ordered
				return s.simulate(a)
			}
			var line strings.Builder
			fmt.Fprintf(&line, "none %.0f", simulate(&limited{}, false).goodput)
			var best float64
			for _, limit := range []int{1, 2, 4, 6} {
				r := simulate(&limited{limit: limit}, false)
				fmt.Fprintf(&line, ", %d: %.0f", limit, r.goodput)
				best = max(best, r.goodput)
			}
			gate := simulate(newAdaptive(), false)
			fmt.Fprintf(&line, ", ordered %.0f; gate %.0f = %.2f of the best, %.1f deadlocks a second",
				simulate(&limited{}, true).goodput, gate.goodput, gate.goodput/best, gate.deadlocks)
			t.Log(line.String())
			if gate.goodput < c.atLeast*best {
				t.Errorf("the gate reaches %.0f commits a second, the best fixed limit %.0f", gate.goodput, best)
			}
		})
	}
}

func TestRareDeadlocksCostNoThroughput(t *testing.T) {
	for _, c := range []struct {
		name string
		storm
	}{
		{"saturated", storm{workers: 32, rows: 400, take: 2, step: 200 * time.Microsecond, cores: 2}},
		{"thinking", storm{workers: 32, rows: 400, take: 2, step: 200 * time.Microsecond, think: 5 * time.Millisecond, cores: 2}},
		{"parallel", storm{workers: 32, rows: 400, take: 2, step: 500 * time.Microsecond, think: 2 * time.Millisecond, cores: 64}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.detect, c.seed, c.run = time.Second, 3, 60*time.Second
			without := c.storm
			none := without.simulate(&limited{})
			if none.deadlocks == 0 || none.deadlocks > 1 {
				t.Fatalf("%.2f deadlocks a second are none, or not rare", none.deadlocks)
			}
			gate := c.simulate(newAdaptive())
			t.Logf("none %.0f (%.2f deadlocks a second), gate %.0f (%.2f)", none.goodput, none.deadlocks, gate.goodput, gate.deadlocks)
			if gate.goodput < 0.95*none.goodput {
				t.Errorf("the gate reaches %.0f commits a second, %.0f were reached without", gate.goodput, none.goodput)
			}
		})
	}
}

func TestTheLimitIsGoneWhenTheConflictIsOver(t *testing.T) {
	for _, c := range []struct {
		name  string
		storm *storm
	}{
		{"hot rows found early", hotRows(32, 0, 20*time.Millisecond)},
		{"hot rows found late", hotRows(32, 0, time.Second)},
		{"upserts found early", upserts(16, 0, 20*time.Millisecond)},
		{"upserts found late", upserts(16, 0, time.Second)},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			const over = 60 * time.Second
			c.storm.run = 2 * over
			c.storm.switched = func(now time.Duration) bool { return now > over }
			a := newAdaptive()
			var limitedAt time.Duration
			a.trace = func(now time.Duration) {
				if a.limiter.Limit() != 0 {
					limitedAt = now
				}
			}
			c.storm.simulate(a)
			t.Logf("limited until %s after", limitedAt-over)
			if limitedAt < over {
				t.Error("there was no limit before the conflict was over")
			}
			if limitedAt > over+32*time.Second {
				t.Errorf("the limit is there %s after the conflict", limitedAt-over)
			}
		})
	}
}
