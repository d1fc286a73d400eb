package gate

import (
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

// The clock in these tests is testing/synctest's: a sleep moves it and takes no time.

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func enter(t *testing.T, g *Gate, since time.Time) Pass {
	t.Helper()
	pass, err := g.Enter(t.Context(), since)
	if err != nil {
		t.Fatal(err)
	}
	return pass
}

// oneAtATime returns a gate whose limit is 1.
func oneAtATime(t *testing.T, config Config) *Gate {
	t.Helper()
	g := New(config)
	enter(t, g, time.Now()).Leave(Deadlocked)
	if g.Limit() != 1 {
		t.Fatalf("the limit is %d", g.Limit())
	}
	return g
}

func TestTheZeroPassMayLeave(t *testing.T) {
	var pass Pass
	pass.Leave(Deadlocked)
	if pass.Waited() != 0 || pass.Anyway() {
		t.Error("the zero pass has waited")
	}
}

// In the bubbles of synctest below time.Sleep moves a clock that nobody waits for.
func TestEnterWaitsUntilSomebodyLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := oneAtATime(t, Config{})
		holder := enter(t, g, time.Now())
		entered := make(chan Pass)
		go func() { entered <- enter(t, g, time.Now()) }()
		synctest.Wait()
		if g.Waiting() != 1 || g.Inside() != 1 {
			t.Fatalf("%d wait, %d are inside", g.Waiting(), g.Inside())
		}
		time.Sleep(100 * time.Millisecond)
		holder.Leave(Committed)
		pass := <-entered
		if pass.Waited() != 100*time.Millisecond || pass.Anyway() {
			t.Errorf("waited %s, anyway %t", pass.Waited(), pass.Anyway())
		}
		holder.Leave(Committed)
		if g.Inside() != 1 {
			t.Error("a pass left twice")
		}
		pass.Leave(Committed)
	})
}

func TestAHolderThatEntersAgainPasses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := oneAtATime(t, Config{Stall: time.Second})
		outer := enter(t, g, time.Now())
		inner := enter(t, g, time.Now())
		if inner.Waited() != time.Second || !inner.Anyway() {
			t.Errorf("waited %s, anyway %t", inner.Waited(), inner.Anyway())
		}
		inner.Leave(Committed)
		outer.Leave(Committed)
	})
}

func TestAWaitIsRearmedWhenOthersMove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := oneAtATime(t, Config{Stall: time.Second, MaxWait: 3 * time.Second, RiseWait: time.Hour})
		holder := enter(t, g, time.Now())
		entered := make(chan Pass)
		go func() { entered <- enter(t, g, time.Now().Add(time.Hour)) }()
		synctest.Wait()
		for range 5 {
			time.Sleep(500 * time.Millisecond)
			next := g.Enlist()
			holder.Leave(Committed)
			holder = next
		}
		pass := <-entered
		if pass.Waited() != 3*time.Second || !pass.Anyway() {
			t.Errorf("waited %s, anyway %t", pass.Waited(), pass.Anyway())
		}
		pass.Leave(Committed)
		holder.Leave(Committed)
	})
}

func TestEnterReturnsWhenItsContextEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := oneAtATime(t, Config{})
		holder := enter(t, g, time.Now())
		ctx, cancel := context.WithCancel(t.Context())
		failed := make(chan error)
		go func() {
			_, err := g.Enter(ctx, time.Now())
			failed <- err
		}()
		synctest.Wait()
		cancel()
		if err := <-failed; !errors.Is(err, context.Canceled) {
			t.Errorf("the error is %v", err)
		}
		if g.Waiting() != 0 {
			t.Errorf("%d still wait", g.Waiting())
		}
		holder.Leave(Committed)
		// Without a wait the context does not matter.
		pass, err := g.Enter(ctx, time.Now())
		if err != nil {
			t.Error(err)
		}
		pass.Leave(Committed)
	})
}

func TestEnterWaitsForHalfOfTheTimeItsContextHas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := oneAtATime(t, Config{})
		holder := enter(t, g, time.Now())
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		pass, err := g.Enter(ctx, time.Now())
		if err != nil || pass.Waited() != 500*time.Millisecond || !pass.Anyway() {
			t.Errorf("waited %s, anyway %t, %v", pass.Waited(), pass.Anyway(), err)
		}
		pass.Leave(Committed)
		holder.Leave(Committed)
	})
}

func TestAPauseDrainsTheGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(Config{})
		<-g.Drained()
		first, second := enter(t, g, time.Now()), enter(t, g, time.Now())
		g.Pause()
		entered := make(chan Pass)
		go func() { entered <- enter(t, g, time.Now()) }()
		drained, again := g.Drained(), g.Drained()
		first.Leave(Committed)
		synctest.Wait()
		select {
		case <-drained:
			t.Fatal("drained with somebody inside")
		case <-entered:
			t.Fatal("let in during a pause")
		default:
		}
		second.Leave(Committed)
		<-drained
		<-again
		g.Resume()
		(<-entered).Leave(Committed)
	})
}

func TestDissolvingWakesWhoWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := oneAtATime(t, Config{})
		passes := make(chan Pass)
		for range 4 {
			go func() { passes <- enter(t, g, time.Now()) }()
		}
		synctest.Wait()
		g.Dissolve()
		for range 4 {
			(<-passes).Leave(Deadlocked)
		}
		if g.Limit() != 0 || !g.Calm(time.Now()) {
			t.Error("there is a limit, or no calm")
		}
	})
}

func TestAGateIsCalmAfterAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := oneAtATime(t, Config{})
		if g.Calm(time.Now()) {
			t.Error("calm after a deadlock")
		}
		time.Sleep(DefaultMemory)
		if !g.Calm(time.Now()) {
			t.Error("not calm")
		}
	})
}

func TestTheClockIsTheOneThatWasGiven(t *testing.T) {
	now := epochStart
	g := New(Config{Now: func() time.Time { return now }})
	enter(t, g, now).Leave(Deadlocked)
	now = now.Add(DefaultMemory)
	if !g.Calm(now) {
		t.Error("not calm at the time of the clock")
	}
}

func TestNoMoreThanTheLimitAreInsideExceptWhoPassedAnyway(t *testing.T) {
	const limit = 4
	g := New(Config{
		Stall: 2 * time.Millisecond, MaxWait: 5 * time.Millisecond,
		Memory: time.Hour, RiseWait: time.Hour, RiseMax: time.Hour, // it stays as it is
	})
	crowd := make([]Pass, 2*limit)
	for i := range crowd {
		crowd[i] = enter(t, g, time.Now())
	}
	for _, pass := range crowd {
		pass.Leave(Deadlocked)
	}
	if g.Limit() > limit {
		t.Fatalf("the limit is %d", g.Limit())
	}
	var regular, entered, anyway, gaveUp, most atomic.Int64
	rush(t, g, func(random *rand.Rand, pass Pass, err error) Outcome {
		switch {
		case err != nil:
			gaveUp.Add(1)
		case pass.Anyway():
			anyway.Add(1)
		default:
			entered.Add(1)
			now := regular.Add(1)
			for at := most.Load(); now > at && !most.CompareAndSwap(at, now); at = most.Load() {
			}
			if random.IntN(10) == 0 {
				runtime.Gosched()
			}
			regular.Add(-1)
		}
		return Committed
	})
	t.Logf("%d entered, %d more anyway, %d gave up", entered.Load(), anyway.Load(), gaveUp.Load())
	if most.Load() > limit {
		t.Errorf("%d were inside, the limit is %d", most.Load(), limit)
	}
}

func TestARushWithDeadlocksLeavesNobodyBehind(t *testing.T) {
	g := New(Config{Stall: 2 * time.Millisecond, MaxWait: 5 * time.Millisecond, RiseWait: time.Millisecond})
	rush(t, g, func(random *rand.Rand, _ Pass, _ error) Outcome {
		switch random.IntN(100) {
		case 0:
			g.Pause()
			runtime.Gosched()
			g.Resume()
		case 1, 2, 3:
			return Deadlocked
		case 4:
			g.Calm(time.Now())
		}
		return Committed
	})
}

// rush has many enter and leave at once, some of whom give up.
func rush(t *testing.T, g *Gate, visit func(*rand.Rand, Pass, error) Outcome) {
	t.Helper()
	var wg sync.WaitGroup
	for worker := range 32 {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(uint64(worker), 1))
			for range 200 {
				ctx, cancel := t.Context(), context.CancelFunc(func() {})
				if random.IntN(4) == 0 {
					ctx, cancel = context.WithCancel(ctx)
					go cancel()
				}
				pass, err := g.Enter(ctx, time.Now())
				cancel()
				pass.Leave(visit(random, pass, err))
			}
		})
	}
	wg.Wait()
	if g.Inside() != 0 || g.Waiting() != 0 {
		t.Errorf("%d are inside and %d wait", g.Inside(), g.Waiting())
	}
}
