package gate

import (
	"slices"
	"testing"
	"time"
)

// bench drives a Limiter with a clock of its own.
type bench struct {
	*Limiter
	now time.Time
	log []*Ticket // let in after a wait, in order
}

func newBench(config Config) *bench {
	return &bench{Limiter: NewLimiter(config), now: epochStart}
}

func (b *bench) after(d time.Duration) { b.now = b.now.Add(d) }

func (b *bench) arrive() *Ticket { return b.arriveSince(b.now) }

func (b *bench) arriveSince(since time.Time) *Ticket { return b.request(Request{Since: since}) }

func (b *bench) request(r Request) *Ticket {
	var t *Ticket
	r.Admit = func() { b.log = append(b.log, t) }
	t = b.Arrive(b.now, r)
	return t
}

func (b *bench) arriveMany(n int) []*Ticket {
	tickets := make([]*Ticket, n)
	for i := range tickets {
		tickets[i] = b.arrive()
	}
	return tickets
}

func (b *bench) leave(t *Ticket, outcome Outcome) { b.Leave(b.now, t, outcome) }

// limitTo returns a bench whose limit is what is asked for, with nobody inside.
func limitTo(t *testing.T, limit int, config Config) *bench {
	t.Helper()
	b := newBench(config)
	b.deadlockAmong(2 * limit)
	if b.Limit() != limit {
		t.Fatalf("the limit is %d, not %d", b.Limit(), limit)
	}
	return b
}

// deadlockAmong has so many arrive, of which one deadlocks.
func (b *bench) deadlockAmong(n int) {
	tickets := b.arriveMany(n)
	b.leave(tickets[0], Deadlocked)
	for _, t := range tickets[1:] {
		b.leave(t, Other)
	}
}

func TestThereIsNoLimitWithoutADeadlock(t *testing.T) {
	b := newBench(Config{})
	for _, ticket := range b.arriveMany(1000) {
		if !ticket.Inside() || ticket.Anyway() || ticket.Waited() != 0 {
			t.Fatal("a transaction was not just let in")
		}
	}
	if b.Limit() != 0 || b.Inside() != 1000 {
		t.Errorf("the limit is %d with %d inside", b.Limit(), b.Inside())
	}
}

func TestTheFirstDeadlockHalvesHowManyAreInside(t *testing.T) {
	for _, c := range []struct{ inside, limit int }{
		{1, 1}, {2, 1}, {3, 1}, {4, 2}, {9, 4}, {16, 8}, {24, 12}, {64, 32}, {100, 48}, {5000, 512},
	} {
		b := newBench(Config{})
		b.leave(b.arriveMany(c.inside)[0], Deadlocked)
		if b.Limit() != c.limit {
			t.Errorf("of %d inside one deadlocked: the limit is %d, not %d", c.inside, b.Limit(), c.limit)
		}
	}
}

func TestOtherFailuresDoNotLimit(t *testing.T) {
	b := newBench(Config{})
	for _, ticket := range b.arriveMany(32) {
		b.leave(ticket, Other)
	}
	if b.Limit() != 0 {
		t.Errorf("the limit is %d", b.Limit())
	}
}

func TestDeadlocksFromBeforeACutDoNotCutAgain(t *testing.T) {
	b := newBench(Config{})
	tickets := b.arriveMany(32)
	b.leave(tickets[0], Deadlocked)
	for i, ticket := range tickets[1:20] {
		outcome := Committed
		if i%3 == 0 {
			outcome = Deadlocked
		}
		b.after(time.Millisecond)
		b.leave(ticket, outcome)
	}
	if b.Limit() != 16 {
		t.Errorf("the limit is %d, not 16", b.Limit())
	}
}

func TestADeadlockOfWhoWasLetInAfterACutCutsAgain(t *testing.T) {
	b := limitTo(t, 16, Config{})
	for _, limit := range []int{8, 4, 2, 1, 1} {
		tickets := b.arriveMany(b.Limit())
		b.leave(tickets[0], Deadlocked)
		if b.Limit() != limit {
			t.Fatalf("the limit is %d, not %d", b.Limit(), limit)
		}
		for _, ticket := range tickets[1:] {
			b.leave(ticket, Other)
		}
	}
}

// Who does nothing but deadlock is not waited for.
func TestDeadlocksFromBeforeACutCutAgainIfNobodyCommits(t *testing.T) {
	b := newBench(Config{})
	tickets := b.arriveMany(32)
	for _, ticket := range tickets[:4] {
		b.after(time.Second)
		b.leave(ticket, Deadlocked)
	}
	if b.Limit() != 8 {
		t.Errorf("the limit is %d, not 8", b.Limit())
	}
}

func TestNoMoreThanTheLimitAreInside(t *testing.T) {
	b := limitTo(t, 4, Config{})
	tickets := b.arriveMany(10)
	if b.Inside() != 4 || b.Waiting() != 6 {
		t.Fatalf("%d are inside and %d wait", b.Inside(), b.Waiting())
	}
	b.after(3 * time.Millisecond)
	b.leave(tickets[2], Other)
	if b.Inside() != 4 || !tickets[4].Inside() || tickets[5].Inside() {
		t.Error("who came next was not let in for the one that left")
	}
	if tickets[4].Waited() != 3*time.Millisecond || tickets[4].Anyway() {
		t.Errorf("it waited %s, anyway %t", tickets[4].Waited(), tickets[4].Anyway())
	}
}

func TestLeavingTwiceCountsOnce(t *testing.T) {
	b := limitTo(t, 1, Config{})
	first := b.arrive()
	b.arriveMany(2)
	b.leave(first, Other)
	b.leave(first, Other)
	if b.Inside() != 1 || b.Waiting() != 1 {
		t.Errorf("%d are inside and %d wait", b.Inside(), b.Waiting())
	}
}

func TestTheOldestTransactionIsLetInFirstAndEqualsAsTheyCame(t *testing.T) {
	b := limitTo(t, 1, Config{})
	holder := b.arrive()
	younger := b.arriveSince(b.now.Add(time.Minute))
	first := b.arriveSince(b.now)
	second := b.arriveSince(b.now)
	third := b.arriveSince(b.now)
	replay := b.arriveSince(b.now.Add(-time.Minute))
	want := []*Ticket{replay, first, second, third, younger}
	b.leave(holder, Other)
	for _, ticket := range want[:len(want)-1] {
		b.leave(ticket, Other)
	}
	if !slices.Equal(b.log, want) {
		t.Errorf("let in were %v", b.log)
	}
}

func TestWhoWithdrawsIsNotLetIn(t *testing.T) {
	b := limitTo(t, 1, Config{})
	holder, quitter, next := b.arrive(), b.arrive(), b.arrive()
	if !b.Withdraw(b.now, quitter) {
		t.Fatal("the transaction did not wait")
	}
	b.leave(holder, Other)
	if quitter.Inside() || !next.Inside() {
		t.Error("who withdrew was let in, or who came next was not")
	}
	if b.Withdraw(b.now, next) || b.Withdraw(b.now, quitter) || b.Inside() != 1 {
		t.Error("who does not wait could withdraw")
	}
}

func TestAWaitEndsWhenNobodyMoves(t *testing.T) {
	b := limitTo(t, 1, Config{Stall: time.Second})
	b.arrive()
	b.after(300 * time.Millisecond)
	stuck := b.arrive()
	if due := b.Due(stuck).Sub(b.now); due != time.Second {
		t.Fatalf("due after %s", due)
	}
	b.after(999 * time.Millisecond)
	b.Expire(b.now, stuck)
	if stuck.Inside() {
		t.Fatal("let in too early")
	}
	b.after(time.Millisecond)
	b.Expire(b.now, stuck)
	if !stuck.Inside() || !stuck.Anyway() || b.Inside() != 2 {
		t.Error("not let in though nobody moved")
	}
}

func TestAMoveBeginsTheStallAnew(t *testing.T) {
	b := limitTo(t, 2, Config{Stall: time.Second})
	stays, leaves := b.arrive(), b.arrive()
	next, last := b.arrive(), b.arrive()
	b.after(900 * time.Millisecond)
	b.leave(leaves, Other)
	if !next.Inside() || !stays.Inside() {
		t.Fatal("the next was not let in")
	}
	if due := b.Due(last).Sub(b.now); due != time.Second {
		t.Errorf("due after %s", due)
	}
	b.after(100 * time.Millisecond)
	b.Expire(b.now, last)
	if last.Inside() {
		t.Error("let in although somebody has moved")
	}
}

// A holder that enters again waits for itself.
func TestAHolderThatEntersAgainGetsThroughBehindOthers(t *testing.T) {
	b := limitTo(t, 1, Config{Stall: time.Second})
	outer := b.arrive()
	others := b.arriveMany(3)
	inner := b.arrive()
	b.after(time.Second)
	b.Expire(b.now, inner)
	if !others[0].Inside() || b.Inside() != 2 {
		t.Fatal("the oldest was not let in when nobody moved")
	}
	// What was lent once serves everybody in turn: one stall and not one for each.
	for _, ticket := range others {
		b.after(10 * time.Millisecond)
		b.leave(ticket, Committed)
	}
	if !inner.Inside() || !inner.Anyway() {
		t.Fatal("the holder's second transaction was not let in")
	}
	late := b.arriveMany(2)
	b.leave(inner, Committed)
	b.leave(outer, Committed)
	if b.Inside() != 1 || late[1].Inside() {
		t.Errorf("%d are inside after the holder has left", b.Inside())
	}
}

func TestAWaitIsBoundedThoughOthersMove(t *testing.T) {
	b := limitTo(t, 1, Config{Stall: time.Second, MaxWait: 5 * time.Second, RiseWait: time.Hour})
	holder := b.arrive()
	waits := b.arriveSince(b.now.Add(time.Hour))
	start := b.now
	for b.now.Sub(start) < 4500*time.Millisecond {
		next := b.arrive()
		b.after(500 * time.Millisecond)
		b.leave(holder, Committed)
		holder = next
	}
	b.after(499 * time.Millisecond)
	b.Expire(b.now, waits)
	if waits.Inside() {
		t.Fatalf("let in after %s", b.now.Sub(start))
	}
	b.after(time.Millisecond)
	b.Expire(b.now, waits)
	if !waits.Inside() || !waits.Anyway() || b.Inside() != 2 {
		t.Error("not let in after the longest wait")
	}
}

func TestAWaitTakesHalfOfTheTimeThatIsLeft(t *testing.T) {
	b := limitTo(t, 1, Config{Stall: time.Second})
	b.arrive()
	waits := b.request(Request{Since: b.now, Deadline: b.now.Add(400 * time.Millisecond)})
	if due := b.Due(waits).Sub(b.now); due != 200*time.Millisecond {
		t.Fatalf("due after %s", due)
	}
	b.after(200 * time.Millisecond)
	b.Expire(b.now, waits)
	if !waits.Inside() || !waits.Anyway() {
		t.Error("not let in in time")
	}
}

// Each that passes into a jam prolongs it.
func TestInTroubleWhoHasWaitedTooLongPassesOneByOne(t *testing.T) {
	b := newBench(Config{Stall: time.Second, MaxWait: 5 * time.Second})
	jam := b.arriveMany(32)
	for _, ticket := range jam[:3] {
		b.after(time.Second)
		b.leave(ticket, Deadlocked)
	}
	waits := b.arriveMany(3)
	deadline := b.request(Request{Since: b.now, Deadline: b.now.Add(10 * time.Second)})
	for _, ticket := range jam[3:7] {
		b.after(1250 * time.Millisecond)
		b.leave(ticket, Deadlocked)
	}
	inside := func() (n int) {
		for _, ticket := range waits {
			b.Expire(b.now, ticket)
			if ticket.Inside() {
				n++
			}
		}
		return n
	}
	if n := inside(); n != 1 {
		t.Errorf("%d passed", n)
	}
	b.Expire(b.now, deadline)
	if !deadline.Inside() {
		t.Error("who has a deadline did not pass")
	}
	for i, ticket := range jam[7:11] {
		b.leave(ticket, Committed)
		b.after(time.Second)
		if n := inside(); i < 2 && n != 1 {
			t.Errorf("%d passed after %d commits", n, i+1)
		}
	}
	if n := inside(); n != 3 {
		t.Errorf("%d passed when the trouble was over", n)
	}
}

func TestWhoRunsAlreadyIsCountedWithoutAWait(t *testing.T) {
	b := limitTo(t, 1, Config{})
	within := b.request(Request{Since: b.now, Running: true})
	beyond := b.request(Request{Since: b.now, Running: true})
	if !within.Inside() || within.Anyway() || !beyond.Inside() || !beyond.Anyway() || b.Inside() != 2 {
		t.Error("not both are inside, one of them beyond the limit")
	}
	if waits := b.arrive(); waits.Inside() {
		t.Error("a third was let in")
	}
}

func TestNobodyIsLetInDuringAPauseExceptWhoWaitsTooLong(t *testing.T) {
	b := newBench(Config{Stall: time.Second})
	before := b.arrive()
	b.Pause(b.now)
	first, second := b.arrive(), b.arrive()
	b.leave(before, Other)
	if b.Inside() != 0 || b.Waiting() != 2 {
		t.Fatalf("%d are inside and %d wait", b.Inside(), b.Waiting())
	}
	b.after(time.Second)
	b.Expire(b.now, first)
	if !first.Inside() || !first.Anyway() || second.Inside() {
		t.Fatal("not just one was let in that had waited too long")
	}
	b.leave(first, Other)
	if second.Inside() {
		t.Fatal("somebody was let in during the pause")
	}
	b.Resume(b.now)
	if !second.Inside() || second.Anyway() {
		t.Error("who waited was not let in after the pause")
	}
}

func TestAPauseBeginsTheStallAnew(t *testing.T) {
	b := limitTo(t, 1, Config{Stall: time.Second})
	b.arrive()
	waits := b.arrive()
	b.after(900 * time.Millisecond)
	b.Pause(b.now)
	if due := b.Due(waits).Sub(b.now); due != time.Second {
		t.Errorf("due after %s", due)
	}
	b.after(100 * time.Millisecond)
	b.Resume(b.now)
	if due := b.Due(waits).Sub(b.now); due != time.Second {
		t.Errorf("due %s after the pause", due)
	}
}

func TestDissolvingLetsEverybodyInForEver(t *testing.T) {
	b := limitTo(t, 1, Config{})
	holder := b.arrive()
	b.arriveMany(5)
	b.Dissolve(b.now)
	if b.Inside() != 6 || b.Waiting() != 0 || b.Limit() != 0 {
		t.Errorf("%d are inside, %d wait, the limit is %d", b.Inside(), b.Waiting(), b.Limit())
	}
	b.leave(holder, Deadlocked)
	b.Pause(b.now)
	if late := b.arrive(); !late.Inside() || b.Limit() != 0 || !b.Calm(b.now) {
		t.Error("there is a limit again, or a pause")
	}
}

func TestALimiterIsCalmWhenItsMemoryIsEmpty(t *testing.T) {
	b := newBench(Config{Memory: 30 * time.Second})
	ticket := b.arrive()
	b.after(time.Second)
	b.leave(ticket, Deadlocked)
	waits := []*Ticket{b.arrive(), b.arrive()}
	b.after(30*time.Second - 1)
	if b.Calm(b.now) {
		t.Error("calm though somebody waits")
	}
	for _, ticket := range waits {
		b.leave(ticket, Other)
	}
	if b.Calm(b.now) {
		t.Error("calm although there was a deadlock")
	}
	b.after(1)
	if !b.Calm(b.now) || b.Limit() != 0 {
		t.Errorf("not calm, the limit is %d", b.Limit())
	}
}

func TestANewLimiterIsNotCalmAtOnce(t *testing.T) {
	b := newBench(Config{Memory: 30 * time.Second})
	b.leave(b.arrive(), Committed)
	if b.Calm(b.now) {
		t.Error("calm at once")
	}
	b.after(30 * time.Second)
	if !b.Calm(b.now) {
		t.Error("not calm after a while")
	}
}
