package gate

import "time"

// Request describes a transaction that arrives.
type Request struct {
	// Since is when the logical transaction began, its first attempt that is: the older
	// goes first.
	Since time.Time
	// Deadline is when the transaction has to be done; zero means never. It waits for at
	// most half of the time that is left.
	Deadline time.Time
	// Running says that it has begun already and cannot wait: it is only counted.
	Running bool
	// Admit is called when the transaction is let in after it had to wait.
	Admit func()
}

type state uint8

const (
	waiting state = iota
	inside
	gone
)

// Ticket is a transaction that waits or is inside.
type Ticket struct {
	since   time.Time
	arrived time.Time
	until   time.Time // it passes anyway
	firm    bool      // that is because of its deadline
	number  uint64    // of its arrival
	admit   func()

	state      state
	place      int  // in the queue
	queued     bool // it was not let in at once
	waited     time.Duration
	anyway     bool
	generation uint64 // cuts before it was let in
	entry      uint64 // number of its admission
}

// Inside says whether the transaction has been let in.
func (t *Ticket) Inside() bool { return t.state == inside }

// Waiting says whether it has neither been let in nor withdrawn.
func (t *Ticket) Waiting() bool { return t.state == waiting }

// Waited is how long the transaction waited before it was let in.
func (t *Ticket) Waited() time.Duration { return t.waited }

// Anyway says that the transaction was let in beyond the limit, because it or somebody
// had waited too long.
func (t *Ticket) Anyway() bool { return t.anyway }

// Limiter decides who is let in. It does not block and reads no clock: each call is
// told the time, which must not go back. It is not safe for concurrent use.
type Limiter struct {
	config  Config
	control control

	inside   int
	waiting  queue
	arrivals uint64
	entries  uint64

	paused    bool
	dissolved bool
	moved     time.Time // somebody was let in or left
	left      int       // how many left since somebody passed who had waited too long

	// A holder that does not leave while others wait may itself wait for one of them.
	// Each loan stands for one such holder, as long as it stays.
	loans  int
	stuck  int    // how many of those inside at the last loan are still inside
	loanAt uint64 // entries at the last loan
}

// leavePerOverdue is how many have to leave before the next passes who has waited
// too long, while there are more deadlocks than commits. Otherwise those who pass keep
// up for ever what they wait for the end of.
const leavePerOverdue = 4

// NewLimiter returns a Limiter without a limit.
func NewLimiter(config Config) *Limiter {
	config = config.withDefaults()
	return &Limiter{config: config, control: newControl(config)}
}

// Arrive lets a transaction in or has it wait; see [Ticket.Inside]. If it waits, the
// caller is to call Expire when Due says so.
func (l *Limiter) Arrive(now time.Time, r Request) *Ticket {
	l.account(now)
	l.arrivals++
	t := &Ticket{since: r.Since, arrived: now, number: l.arrivals, admit: r.Admit}
	t.until = now.Add(l.config.MaxWait)
	if !r.Deadline.IsZero() {
		if half := now.Add(r.Deadline.Sub(now) / 2); !half.After(t.until) {
			t.until, t.firm = half, true
		}
	}
	l.waiting.add(t)
	if r.Running {
		l.letIn(now, t, !l.room())
	}
	l.settle(now)
	t.queued = t.state == waiting
	return t
}

// Leave ends the stay of a transaction that was let in. Another time it does nothing.
func (l *Limiter) Leave(now time.Time, t *Ticket, outcome Outcome) {
	if t.state != inside {
		return
	}
	l.account(now)
	switch outcome {
	case Committed:
		l.control.commit(now)
	case Deadlocked:
		l.control.deadlock(now, t.generation, l.inside)
	}
	l.control.leave(t.generation)
	t.state = gone
	l.inside--
	l.left++
	l.moved = now
	if t.entry <= l.loanAt {
		l.stuck--
		l.loans = min(l.loans, l.stuck)
	}
	l.settle(now)
}

// Withdraw ends the wait of a transaction that does not want to be let in any more. It
// returns false, and does nothing, if the transaction does not wait.
func (l *Limiter) Withdraw(now time.Time, t *Ticket) bool {
	if t.state != waiting {
		return false
	}
	l.account(now)
	l.waiting.remove(t)
	t.state = gone
	l.settle(now)
	return true
}

// Due is when Expire is to be called for a transaction that waits, unless it is let in
// before.
func (l *Limiter) Due(t *Ticket) time.Time {
	stall := l.stalls(t)
	if t.until.Before(stall) {
		return t.until
	}
	return stall
}

// stalls is when a transaction will have waited too long without seeing anybody move.
func (l *Limiter) stalls(t *Ticket) time.Time {
	from := t.arrived
	if l.moved.After(from) {
		from = l.moved
	}
	return from.Add(l.config.Stall)
}

// Expire lets in whoever has waited too long: the transaction itself, or the oldest
// that waits if nobody has moved.
func (l *Limiter) Expire(now time.Time, t *Ticket) {
	if t.state != waiting {
		return
	}
	l.account(now)
	switch {
	case !now.Before(t.until):
		if !t.firm && l.control.troubled() && l.left < leavePerOverdue {
			t.until = now.Add(l.config.Stall)
			break
		}
		l.left = 0
		l.letIn(now, t, true)
	case !now.Before(l.stalls(t)):
		l.loanAt, l.stuck = l.entries, l.inside
		l.loans = min(l.loans+1, l.stuck)
		l.letIn(now, l.waiting[0], true)
	}
	l.settle(now)
}

// Pause lets nobody in until Resume, except who has waited too long. What happens
// meanwhile says nothing about how good the limit is, and is not measured.
func (l *Limiter) Pause(now time.Time) {
	if l.paused {
		return
	}
	l.account(now)
	l.paused = true
	l.moved = now
}

// Resume ends a Pause.
func (l *Limiter) Resume(now time.Time) {
	if !l.paused {
		return
	}
	l.account(now)
	l.paused = false
	l.moved = now
	l.settle(now)
}

// Dissolve lets everybody in, now and for ever.
func (l *Limiter) Dissolve(now time.Time) {
	l.dissolved = true
	l.settle(now)
}

// Calm says whether the limiter could as well be forgotten: it has no limit, nobody
// waits and there was no deadlock for as long as it remembers one.
func (l *Limiter) Calm(now time.Time) bool {
	if len(l.waiting) > 0 {
		return false
	}
	if l.dissolved {
		return true
	}
	l.account(now)
	l.settle(now)
	return l.control.calm(now)
}

// Limit is how many may be inside; 0 means no limit at present.
func (l *Limiter) Limit() int {
	if l.dissolved {
		return 0
	}
	return l.control.limit()
}

// Inside is how many are inside.
func (l *Limiter) Inside() int { return l.inside }

// Waiting is how many wait.
func (l *Limiter) Waiting() int { return len(l.waiting) }

// account books the time since the last call.
func (l *Limiter) account(now time.Time) {
	l.control.pass(now, l.inside, len(l.waiting), l.paused)
}

// settle draws the conclusions of what has just happened.
func (l *Limiter) settle(now time.Time) {
	if !l.paused && !l.dissolved {
		l.control.decide(now, l.inside)
	}
	for len(l.waiting) > 0 && l.open() {
		l.letIn(now, l.waiting[0], !l.room())
	}
}

// room says whether one more is within the limit.
func (l *Limiter) room() bool {
	limit := l.Limit()
	return limit == 0 || l.inside < limit
}

// open says whether the next may be let in.
func (l *Limiter) open() bool {
	switch {
	case l.dissolved:
		return true
	case l.paused:
		return false
	default:
		return l.room() || l.inside < l.Limit()+l.loans
	}
}

func (l *Limiter) letIn(now time.Time, t *Ticket, anyway bool) {
	l.waiting.remove(t)
	l.inside++
	l.entries++
	l.moved = now
	t.state = inside
	t.waited = now.Sub(t.arrived)
	t.anyway = anyway
	t.generation = l.control.generation
	t.entry = l.entries
	if t.queued && t.admit != nil {
		t.admit()
	}
}
