package pgretry

import (
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/cenkalti/backoff/v4"
)

// highest draws the largest number there is, so that a delay is its bound.
func highest(n int64) int64 { return n - 1 }

func TestFullJitterDoublesItsBoundUpToTheCap(t *testing.T) {
	j, err := NewFullJitter(10*time.Millisecond, 75*time.Millisecond, highest)
	if err != nil {
		t.Fatal(err)
	}
	want := []time.Duration{10, 20, 40, 75, 75}
	for round := range 2 {
		for n, bound := range want {
			if got := j.NextBackOff(); got != bound*time.Millisecond {
				t.Errorf("round %d, delay %d is %s, want %s", round, n, got, bound*time.Millisecond)
			}
		}
		j.Reset()
	}
}

func TestFullJitterDrawsFromTheWholeInterval(t *testing.T) {
	var asked []int64
	j, err := NewFullJitter(10, 1000, func(n int64) int64 {
		asked = append(asked, n)
		return 0
	})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if d := j.NextBackOff(); d != 0 {
			t.Errorf("delay is %d, want the lowest, 0", d)
		}
	}
	if len(asked) != 3 || asked[0] != 11 || asked[1] != 21 || asked[2] != 41 {
		t.Errorf("drew from %v, want [11 21 41]: both ends of the interval belong to it", asked)
	}
}

func TestFullJitterNeverOverflows(t *testing.T) {
	for _, limit := range []time.Duration{1, time.Second, math.MaxInt64} {
		j, err := NewFullJitter(1, limit, highest)
		if err != nil {
			t.Fatal(err)
		}
		before := time.Duration(0)
		for n := range 200 {
			d := j.NextBackOff()
			if d < before || d > limit {
				t.Fatalf("cap %d: delay %d is %d after %d", limit, n, d, before)
			}
			before = d
		}
		if before < limit-1 {
			t.Errorf("cap %d: the bound stops at %d", limit, before)
		}
	}
}

func TestFullJitterIsUniform(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	j, err := NewFullJitter(1000, 1000, random.Int64N)
	if err != nil {
		t.Fatal(err)
	}
	const draws = 100_000
	var quarters [4]int
	for range draws {
		quarters[min(3, int(j.NextBackOff())/250)]++
	}
	for i, n := range quarters {
		if share := float64(n) / draws; share < .24 || share > .26 {
			t.Errorf("quarter %d of the interval has %.3f of the delays, want a quarter", i, share)
		}
	}
}

func TestFullJitterRejectsWhatItCannotDo(t *testing.T) {
	for _, c := range []struct {
		base, limit time.Duration
		want        string
	}{
		{0, 1, "positive"},
		{1, 0, "positive"},
		{-1, 1, "positive"},
		{2, 1, "no less than its base"},
	} {
		if _, err := NewFullJitter(c.base, c.limit, nil); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("NewFullJitter(%d, %d) = %v, want an error about %q", c.base, c.limit, err, c.want)
		}
	}
}

func TestFullJitterWorksInsideCenkaltisWrappers(t *testing.T) {
	j, err := NewFullJitter(1, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	limited := backoff.WithMaxRetries(j, 1)
	if limited.NextBackOff() == backoff.Stop || limited.NextBackOff() != backoff.Stop {
		t.Error("WithMaxRetries around a FullJitter does not end after one retry")
	}
}

func TestAPolicyChangesWhatItNames(t *testing.T) {
	const ms = time.Millisecond
	before := Policy{7, 20 * ms, 200 * ms, time.Minute}
	for _, c := range []struct {
		name        string
		given, want Policy
	}{
		{"nothing", Policy{}, before},
		{"attempts", Policy{MaxAttempts: 3}, Policy{3, 20 * ms, 200 * ms, time.Minute}},
		{"elapsed time", Policy{MaxElapsed: 1}, Policy{7, 20 * ms, 200 * ms, 1}},
		{"a base within the cap", Policy{BaseDelay: 50 * ms}, Policy{7, 50 * ms, 200 * ms, time.Minute}},
		{"a base beyond the cap", Policy{BaseDelay: 500 * ms}, Policy{7, 500 * ms, 500 * ms, time.Minute}},
		{"a cap above the base", Policy{MaxDelay: 50 * ms}, Policy{7, 20 * ms, 50 * ms, time.Minute}},
		{"a cap below the base", Policy{MaxDelay: 5 * ms}, Policy{7, 5 * ms, 5 * ms, time.Minute}},
		{"everything", Policy{1, 2, 3, 4}, Policy{1, 2, 3, 4}},
	} {
		if got := c.given.over(before); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}

func TestRetryBudgetIsATokenBucket(t *testing.T) {
	var b retryBudget
	n := 0
	for b.take() {
		n++
	}
	if n != 100 {
		t.Errorf("a full bucket pays for %d retries, want 100", n)
	}
	for range 4 {
		b.succeeded()
	}
	if b.take() {
		t.Error("four successes pay for a retry, want five")
	}
	b.succeeded()
	if !b.take() {
		t.Error("five successes do not pay for a retry")
	}
	for range 1000 {
		b.succeeded()
	}
	n = 0
	for b.take() {
		n++
	}
	if n != 100 {
		t.Errorf("after many successes the bucket pays for %d retries, want no more than the 100 it holds", n)
	}
}

func BenchmarkFullJitter(b *testing.B) {
	j := newFullJitter(time.Millisecond, time.Second, nil)
	b.ReportAllocs()
	for b.Loop() {
		j.NextBackOff()
	}
}
