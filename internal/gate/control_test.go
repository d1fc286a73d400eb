package gate

import (
	"testing"
	"time"
)

// shop is a closed loop whose goodput is a function of the limit: the simplest world
// in which a limit may be good or bad.
type shop struct {
	*bench
	rate    func(limit int) float64 // commits per second
	inside  []*Ticket
	commits int
}

const customers = 32

func newShop(rate func(limit int) float64) *shop {
	s := &shop{bench: newBench(Config{}), rate: rate}
	s.replenish()
	return s
}

func (s *shop) replenish() {
	for s.Inside()+s.Waiting() < customers {
		if ticket := s.arrive(); ticket.Inside() {
			s.inside = append(s.inside, ticket)
		}
	}
	s.inside = append(s.inside, s.log...)
	s.log = nil
}

func (s *shop) step(outcome Outcome) {
	first := s.inside[0]
	s.inside = s.inside[1:]
	s.leave(first, outcome)
	s.replenish()
}

// serve commits one transaction after the other for a while.
func (s *shop) serve(d time.Duration) {
	for end := s.now.Add(d); s.now.Before(end); {
		s.after(time.Duration(float64(time.Second) / s.rate(s.effective())))
		s.step(Committed)
		s.commits++
	}
}

func (s *shop) effective() int {
	if limit := s.Limit(); limit != 0 {
		return min(limit, customers)
	}
	return customers
}

// deadlock has a deadlock stop everything for a while.
func (s *shop) deadlock(found time.Duration) {
	s.after(found)
	s.step(Deadlocked)
}

func proportional(limit int) float64 { return 50 * float64(limit) }

func saturated(limit int) float64 { return 100 * float64(min(limit, 4)) }

func TestALimitThatCostsGoodputIsLetGo(t *testing.T) {
	s := newShop(proportional)
	s.serve(time.Second)
	s.deadlock(time.Millisecond)
	if s.Limit() != 16 {
		t.Fatalf("the limit is %d", s.Limit())
	}
	s.serve(300 * time.Millisecond)
	if s.Limit() != 0 {
		t.Fatalf("the limit is %d, though half as much is done", s.Limit())
	}
	s.deadlock(time.Millisecond)
	if s.Limit() != 0 {
		t.Errorf("the limit is %d so soon after it did not help", s.Limit())
	}
}

func TestTheHoldOffEndsAndGrows(t *testing.T) {
	s := newShop(proportional)
	s.serve(time.Second)
	cuts := func(d time.Duration) (n int) {
		for range int(d / (100 * time.Millisecond)) {
			before := s.Limit()
			s.deadlock(time.Millisecond)
			if before == 0 && s.Limit() != 0 {
				n++
			}
			s.serve(99 * time.Millisecond)
		}
		return n
	}
	first, second := cuts(30*time.Second), cuts(60*time.Second)
	t.Logf("%d cuts in the first 30 s, %d in the 60 s after", first, second)
	if first == 0 {
		t.Error("no cut was tried")
	}
	if first > 3 || second > 6 {
		t.Error("the cuts came too often for something that does not help")
	}
	if second == 0 {
		t.Error("no cut was tried again")
	}
}

func TestALimitThatCostsNothingIsKeptAndThenRisesByTrials(t *testing.T) {
	s := newShop(saturated)
	s.serve(time.Second)
	s.deadlock(100 * time.Millisecond)
	var seen []int
	for range 600 {
		if limit := s.Limit(); len(seen) == 0 || seen[len(seen)-1] != limit {
			seen = append(seen, limit)
		}
		s.serve(10 * time.Millisecond)
	}
	want := []int{16, 24, 32}
	for i, limit := range want {
		if i >= len(seen) || seen[i] != limit {
			t.Fatalf("the limit went %v", seen)
		}
	}
	if last := seen[len(seen)-1]; last != 0 {
		t.Errorf("the limit is still %d: %v", last, seen)
	}
}

// badTrials has every trial of more than two end in a deadlock that takes a second to be
// found, for a while, and returns when they were.
func (s *shop) badTrials(d time.Duration) []time.Time {
	s.serve(200 * time.Millisecond)
	for s.Limit() != 2 {
		s.deadlock(time.Second)
	}
	var trials []time.Time
	for end := s.now.Add(d); s.now.Before(end); {
		s.serve(5 * time.Millisecond)
		if s.Limit() > 2 {
			trials = append(trials, s.now)
			s.serve(20 * time.Millisecond)
			for s.Limit() > 2 {
				s.deadlock(time.Second)
			}
		}
	}
	return trials
}

func TestATrialThatEndsInADeadlockIsTakenBackAndWaitsLonger(t *testing.T) {
	s := newShop(saturated)
	trials := s.badTrials(2 * time.Minute)
	if len(trials) < 3 {
		t.Fatalf("%d trials", len(trials))
	}
	last := trials[len(trials)-1].Sub(trials[len(trials)-2])
	if last < 15*time.Second || last > 25*time.Second {
		t.Errorf("trials that cost a second come %s apart", last)
	}
}

func TestATrialThatGoesWellShortensTheWaitForTheNext(t *testing.T) {
	s := newShop(saturated)
	s.badTrials(2 * time.Minute)
	before := s.control.riseWait
	if before != DefaultRiseMax {
		t.Fatalf("the wait is %s", before)
	}
	for n := 0; s.Limit() <= 2 || s.control.phase != settled; n++ {
		if n > 1000 {
			t.Fatal("no trial was accepted")
		}
		s.serve(50 * time.Millisecond)
	}
	if s.Limit() == 0 {
		t.Fatal("there is no limit at once")
	}
	if s.control.riseWait > before/2 {
		t.Errorf("the wait is %s after a trial that went well, it was %s", s.control.riseWait, before)
	}
}

func TestATrialThatDeadlocksIsKeptIfItBringsMore(t *testing.T) {
	s := newShop(proportional)
	for s.Limit() != 1 {
		s.deadlock(10 * time.Millisecond)
	}
	for n := 0; s.Limit() < 4 && n < 1000; n++ {
		s.serve(50 * time.Millisecond)
		if s.Limit() > 1 {
			s.deadlock(time.Millisecond)
		}
	}
	if s.Limit() < 4 {
		t.Errorf("the limit is %d, though more are better in spite of deadlocks", s.Limit())
	}
}

func TestALevelKnownToBeBetterIsGoneBackTo(t *testing.T) {
	s := newShop(func(limit int) float64 {
		if limit > 4 {
			return 40
		}
		return 400
	})
	s.serve(3 * time.Second)
	for s.Limit() != 4 {
		s.deadlock(20 * time.Millisecond)
	}
	s.serve(50 * time.Millisecond)
	s.rate = saturated
	s.serve(8 * time.Second)
	if s.Limit() != 0 && s.Limit() < customers {
		t.Fatalf("the limit is %d", s.Limit())
	}
	s.rate = func(int) float64 { return 40 }
	s.serve(5 * time.Second)
	s.deadlock(2 * time.Second)
	if s.Limit() == 0 || s.Limit() >= 16 {
		t.Errorf("the limit is %d, though what lower ones bring is remembered", s.Limit())
	}
}

func TestALimitNobodyFeelsRises(t *testing.T) {
	b := limitTo(t, 4, Config{})
	for end := b.now.Add(10 * time.Second); b.now.Before(end) && b.Limit() != 0; {
		ticket := b.arrive()
		b.after(time.Millisecond)
		b.leave(ticket, Committed)
		b.after(9 * time.Millisecond)
	}
	if b.Limit() != 0 {
		t.Errorf("the limit is %d though nobody waits", b.Limit())
	}
}

func TestWhatHappensDuringAPauseIsNotMeasured(t *testing.T) {
	s := newShop(proportional)
	s.serve(time.Second)
	s.deadlock(time.Millisecond)
	s.rate = func(int) float64 { return 800 * 2 }
	// Half of the time is paused, with nothing done in it.
	for range 60 {
		s.serve(5 * time.Millisecond)
		s.Pause(s.now)
		s.after(5 * time.Millisecond)
		s.Resume(s.now)
	}
	if s.Limit() == 0 {
		t.Error("the limit was let go for what a pause costs")
	}
}

func TestWithoutADeadlockTheLimitIsGoneWhateverElseIsSeen(t *testing.T) {
	s := newShop(func(limit int) float64 { return 1000 / float64(limit) })
	s.serve(100 * time.Millisecond)
	for s.Limit() != 1 {
		s.deadlock(time.Second)
	}
	s.serve(29 * time.Second)
	if s.Limit() == 0 {
		t.Error("the limit is gone early, though more bring less")
	}
	s.serve(time.Second + 100*time.Millisecond)
	if s.Limit() != 0 {
		t.Errorf("the limit is %d after half a minute without a deadlock", s.Limit())
	}
}

func TestALowerLevelIsJudgedWhenThoseFromBeforeAreGone(t *testing.T) {
	b := newBench(Config{})
	tickets := b.arriveMany(32)
	b.leave(tickets[0], Deadlocked)
	b.arriveMany(32)
	for _, ticket := range tickets[1:] {
		if b.Limit() != 16 || b.control.phase != lowering {
			t.Fatalf("the limit is %d and judged before it was in force", b.Limit())
		}
		b.after(100 * time.Millisecond)
		b.leave(ticket, Committed)
	}
	if b.control.phase != lowering {
		t.Error("the limit is judged by what was before")
	}
}

func TestTheLimitDoesNotRiseWhileThoseFromBeforeACutStay(t *testing.T) {
	s := newShop(saturated)
	s.serve(200 * time.Millisecond)
	for s.Limit() != 4 {
		s.deadlock(100 * time.Millisecond)
	}
	for s.Limit() == 4 {
		s.serve(5 * time.Millisecond)
	}
	s.deadlock(300 * time.Millisecond)
	if s.Limit() != 4 || s.control.riseWait > 8*time.Second {
		t.Fatalf("the limit is %d, the wait %s", s.Limit(), s.control.riseWait)
	}
	for range 19 {
		s.after(500 * time.Millisecond)
		if !s.Withdraw(s.now, s.arrive()) {
			t.Fatal("somebody was let in")
		}
		if s.Limit() != 4 {
			t.Fatalf("the limit is %d", s.Limit())
		}
	}
}

func TestATrialThatDeadlocksIsNotKeptIfItBringsHardlyMore(t *testing.T) {
	s := newShop(func(limit int) float64 {
		if limit > 2 {
			return 404
		}
		return 400
	})
	s.serve(200 * time.Millisecond)
	for s.Limit() != 2 {
		s.deadlock(20 * time.Millisecond)
	}
	trials := 0
	for end := s.now.Add(20 * time.Second); s.now.Before(end); {
		s.serve(5 * time.Millisecond)
		if s.Limit() <= 2 {
			continue
		}
		if s.control.phase == settled {
			t.Fatalf("the limit is %d", s.Limit())
		}
		if s.control.run.deadlocks == 0 {
			trials++
			s.deadlock(0)
		}
	}
	if trials == 0 {
		t.Error("nothing was tried")
	}
}
