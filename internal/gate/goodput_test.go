package gate

import (
	"math"
	"testing"
	"time"
)

func TestGoodputIsConclusiveAfterManyCommitsOrALongTime(t *testing.T) {
	for _, c := range []struct {
		commits, seconds float64
		want             bool
	}{
		{19, 0.4, false},
		{20, 0.049, false},
		{20, 0.05, true},
		{3, 1.9, false},
		{4, 0.49, false},
		{4, 0.5, true},
		{0, 1.9, false},
		{0, 2, true},
	} {
		if got := (goodput{commits: c.commits, seconds: c.seconds}).conclusive(); got != c.want {
			t.Errorf("%v commits in %v s: %t", c.commits, c.seconds, got)
		}
	}
}

func TestWhatAnotherRateWouldHaveSaved(t *testing.T) {
	g := goodput{commits: 100, seconds: 3}
	for _, c := range []struct {
		rate float64
		want time.Duration
	}{{100, 2 * time.Second}, {20, 0}, {0, 0}} {
		if got := g.lost(c.rate); got != c.want {
			t.Errorf("at %v a second %s", c.rate, got)
		}
	}
}

func TestAnEstimateFades(t *testing.T) {
	const memory = 30 * time.Second
	now := epochStart
	var e estimate
	e.add(now, 100, 1, memory)
	if !e.remembered(now.Add(memory-1), memory) || e.remembered(now.Add(memory), memory) {
		t.Error("not remembered for as long as the memory is")
	}
	// Ten seconds later what was then counts for a little more than half.
	e.add(now.Add(10*time.Second), 0, 1, memory)
	if math.Abs(e.rate()-37) > 2 {
		t.Errorf("the rate is %.0f", e.rate())
	}
	e.add(now.Add(10*time.Second+memory), 1, 1, memory)
	if e.rate() != 1 || e.known {
		t.Errorf("the rate is %.0f, known %t, of what was forgotten", e.rate(), e.known)
	}
}
