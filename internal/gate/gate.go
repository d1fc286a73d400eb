package gate

import (
	"context"
	"sync"
	"time"
)

// Gate limits how many transactions of one kind run at once. It is safe for concurrent
// use.
type Gate struct {
	now func() time.Time

	mu      sync.Mutex
	limiter *Limiter
	empty   chan struct{} // closed when nobody is inside; nil if nobody asked
	wanted  chan struct{} // closed when somebody waits; nil if nobody asked
}

// New returns a Gate without a limit.
func New(config Config) *Gate {
	config = config.withDefaults()
	return &Gate{now: config.Now, limiter: NewLimiter(config)}
}

// Pass is the leave to be inside. The zero value is a pass for no gate.
type Pass struct {
	gate   *Gate
	ticket *Ticket
}

// Enter waits until the transaction may run, which began at since: the first attempt of
// it, so that who has lost goes before newcomers. The wait is bounded, see [Config];
// where ctx has a deadline, by half of the time left until then too. The error is ctx's,
// if it ended while the transaction waited; otherwise Leave must be called.
func (g *Gate) Enter(ctx context.Context, since time.Time) (Pass, error) {
	return g.EnterBefore(ctx, since, time.Time{})
}

// EnterBefore is Enter for a transaction that has to be done before a time, as if ctx had
// that deadline, but for what happens when it passes. The zero time is none.
func (g *Gate) EnterBefore(ctx context.Context, since, before time.Time) (Pass, error) {
	request := Request{Since: since, Deadline: earliest(ctx, before)}

	g.mu.Lock()
	ticket := g.limiter.Arrive(g.now(), request)
	if ticket.Inside() {
		g.mu.Unlock()
		return Pass{g, ticket}, nil
	}
	admitted := make(chan struct{})
	ticket.admit = func() { close(admitted) } // only now: most need not wait
	due := g.limiter.Due(ticket).Sub(g.now())
	if g.wanted != nil {
		close(g.wanted)
		g.wanted = nil
	}
	g.mu.Unlock()

	timer := time.NewTimer(due)
	defer timer.Stop()
	for {
		select {
		case <-admitted:
			return Pass{g, ticket}, nil
		case <-ctx.Done():
			if g.withdraw(ticket) {
				return Pass{}, ctx.Err()
			}
			return Pass{g, ticket}, nil
		case <-timer.C:
			if wait := g.expire(ticket); wait > 0 {
				timer.Reset(wait)
			}
		}
	}
}

// earliest returns the context's deadline or a time, whichever comes first; zero times are
// none.
func earliest(ctx context.Context, before time.Time) time.Time {
	if deadline, ok := ctx.Deadline(); ok && (before.IsZero() || deadline.Before(before)) {
		return deadline
	}
	return before
}

// Enlist counts a transaction that runs already and cannot wait any more.
func (g *Gate) Enlist() Pass {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.now()
	return Pass{g, g.limiter.Arrive(now, Request{Since: now, Running: true})}
}

func (g *Gate) withdraw(t *Ticket) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.limiter.Withdraw(g.now(), t)
}

// expire returns how long to wait for the next call; 0 if the ticket waits no more.
func (g *Gate) expire(t *Ticket) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.now()
	g.limiter.Expire(now, t)
	if t.Inside() {
		return 0
	}
	return max(g.limiter.Due(t).Sub(now), time.Microsecond)
}

// Leave ends the stay of the transaction. It does nothing if it was called before, or
// on the zero Pass.
func (p Pass) Leave(outcome Outcome) {
	if p.gate == nil {
		return
	}
	g := p.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	g.limiter.Leave(g.now(), p.ticket, outcome)
	if g.limiter.Inside() == 0 && g.empty != nil {
		close(g.empty)
		g.empty = nil
	}
}

// Waited is how long the transaction waited to be let in.
func (p Pass) Waited() time.Duration {
	if p.ticket == nil {
		return 0
	}
	return p.ticket.Waited()
}

// Anyway says that the transaction was let in beyond the limit, because it or somebody
// had waited too long, or because it was enlisted.
func (p Pass) Anyway() bool { return p.ticket != nil && p.ticket.Anyway() }

// Limit is how many may be inside; 0 means no limit at present.
func (g *Gate) Limit() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.limiter.Limit()
}

// Waiting is how many wait.
func (g *Gate) Waiting() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.limiter.Waiting()
}

// Inside is how many are inside, those included that passed anyway.
func (g *Gate) Inside() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.limiter.Inside()
}

// Dissolve lets everybody pass, now and for ever: who held the gate has put another in
// its place.
func (g *Gate) Dissolve() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.limiter.Dissolve(g.now())
}

// Pause lets nobody in until Resume, except who has waited too long.
func (g *Gate) Pause() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.limiter.Pause(g.now())
}

// Resume ends a Pause.
func (g *Gate) Resume() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.limiter.Resume(g.now())
}

// Drained returns a channel that is closed as soon as nobody is inside, which may be
// at once.
func (g *Gate) Drained() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	empty := g.empty
	if empty == nil {
		empty = make(chan struct{})
	}
	g.empty = empty
	if g.limiter.Inside() == 0 {
		close(empty)
		g.empty = nil
	}
	return empty
}

// Wanted returns a channel that is closed as soon as somebody waits, which may be at
// once.
func (g *Gate) Wanted() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	wanted := g.wanted
	if wanted == nil {
		wanted = make(chan struct{})
	}
	g.wanted = wanted
	if g.limiter.Waiting() > 0 {
		close(wanted)
		g.wanted = nil
	}
	return wanted
}

// Calm says whether the gate may be forgotten: it has no limit, nobody waits, and for as
// long as it remembers a deadlock there was none, nor was the gate made later than that.
func (g *Gate) Calm(now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.limiter.Calm(now)
}
