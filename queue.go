package pgretry

import (
	"context"
	"database/sql/driver"
	"time"

	"github.com/pgretry/pgretry/internal/sqltext"
)

// takesPart says whether the transaction is one that the conflict memory is for.
func (t *tx) takesPart() bool {
	config := t.conn.connector.config
	return config.contention != ContentionOff && (t.attempt != nil && config.mode != ModeOff || config.mode == ModeReplay && t.refusal != RefusedByContext)
}

// queue waits, before the first statement that locks, until the transaction may go on. It
// holds nothing yet that others wait for.
func (t *tx) queue(ctx context.Context, info *sqltext.Info, text string) error {
	if t.locking != "" || !locks(info) {
		return nil
	}
	first := t.statements == 0
	t.locking = text
	if t.state != txActive {
		return nil
	}
	memory := &t.conn.connector.memory
	if !memory.isHot() || !t.takesPart() || t.stay.kind != nil {
		return nil
	}
	k := memory.find(t.kindKey())
	if k == nil {
		return nil
	}
	t.conn.kind.Store(k)
	if a := t.attempt; a != nil && a.stay.kind != nil && a.stay.kind.gate.Load() == k.gate.Load() {
		t.kind = k
		return t.probe(ctx) // the closure has waited for it
	}
	waiting, cancel := t.patience(ctx)
	defer cancel()
	s, err := memory.enter(waiting, k, t.since(), first || t.readCommitted())
	if err != nil {
		return err
	}
	t.stay, t.kind = s, k
	return t.probe(ctx)
}

// queueByName waits before BEGIN, where the application has said what kind it is.
func (t *tx) queueByName(ctx context.Context) error {
	memory := &t.conn.connector.memory
	name := t.name()
	if name == "" || !memory.isHot() || !t.takesPart() || t.attempt != nil && t.attempt.stay.kind != nil {
		return nil
	}
	k := memory.find(kindKey{name: name})
	if k == nil {
		return nil
	}
	s, err := memory.enter(ctx, k, t.since(), true)
	if err != nil {
		return err
	}
	t.stay = s
	return nil
}

// queueAgain waits before the BEGIN of a replay.
func (t *tx) queueAgain(ctx context.Context) error {
	if t.kind == nil || t.stay.kind != nil || !t.takesPart() {
		return nil
	}
	s, err := t.conn.connector.memory.enter(ctx, t.kind, t.since(), true)
	if err != nil {
		return err
	}
	t.stay = s
	return nil
}

// patience bounds a wait inside a transaction: the server may end a session that is idle
// in one for too long. Half of the time is waited at most.
func (t *tx) patience(ctx context.Context) (context.Context, context.CancelFunc) {
	limit := t.conn.settings.idleTimeout
	if limit <= 0 {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, limit)
}

func (t *tx) name() string {
	if t.attempt != nil {
		return t.attempt.loop.name
	}
	return nameFrom(t.began)
}

func (t *tx) kindKey() kindKey { return t.conn.connector.memory.keyOf(t.name(), t.locking) }

// noteDeadlock learns from a deadlock.
func (t *tx) noteDeadlock(err error) {
	if !t.takesPart() {
		return
	}
	memory := &t.conn.connector.memory
	key := t.kindKey()
	if key == (kindKey{}) {
		return
	}
	k := memory.learn(key)
	k.deadlocks.Add(1)
	t.kind = k
	t.conn.kind.Store(k)
	if a := t.attempt; a != nil {
		a.deadlocked(k)
	}
	if t.stay.kind != nil {
		t.stay.deadlocked = true
	}
	if deadlock, ok := ParseDeadlock(err); ok {
		memory.merge(k, memory.detector.ours(deadlock, t.conn))
	}
}

// since is when the logical transaction began: the oldest goes first.
func (t *tx) since() (at time.Time) {
	if t.attempt != nil {
		return t.attempt.loop.started
	}
	return t.pace.started
}

// queue waits, before the attempt begins, for a connection even less, until it may.
func (l *loop) queue(ctx context.Context, a *attempt) error {
	l.mu.Lock()
	connector, k := l.met, l.kind
	l.mu.Unlock()
	if connector == nil || connector.config.contention == ContentionOff || l.config.mode == ModeOff || !connector.memory.isHot() {
		return nil
	}
	if k == nil && l.name != "" {
		k = connector.memory.find(kindKey{name: l.name})
	}
	if k == nil {
		return nil
	}
	s, err := connector.memory.enter(ctx, k, l.started, true)
	if err != nil {
		return err
	}
	a.mu.Lock()
	a.stay = s
	a.mu.Unlock()
	return nil
}

// deadlocked notes that a transaction under the attempt has.
func (a *attempt) deadlocked(k *kind) {
	a.mu.Lock()
	if a.stay.kind != nil {
		a.stay.deadlocked = true
	}
	a.mu.Unlock()
	a.loop.mu.Lock()
	a.loop.kind = k
	a.loop.mu.Unlock()
}

// leave ends the attempt's stay at the gate.
func (a *attempt) leave(o outcome) {
	a.mu.Lock()
	s := a.stay
	a.stay = stay{}
	a.mu.Unlock()
	s.leave(o)
}

// settings are those of a session that bound what may be done in it.
type settings struct {
	asked       bool
	lockTimeout bool // the application has one
	idleTimeout time.Duration
}

// askSettings, in milliseconds: what ends a session that waits in a transaction, and
// whether waits for locks are bounded already.
const askSettings = `SELECT coalesce((extract(epoch FROM least(
	nullif(pg_catalog.current_setting('idle_in_transaction_session_timeout')::interval, '0'),
	nullif(pg_catalog.current_setting('transaction_timeout', true)::interval, '0'))) * 1000)::bigint, 0)::text || ' '
	|| pg_catalog.current_setting('lock_timeout')`

// stayAfterDeadlock tells the gate of a deadlock that the transaction goes on after, from a
// savepoint. It holds locks, so it cannot wait.
func (t *tx) stayAfterDeadlock() {
	if s := t.stay; s.deadlocked {
		t.stay.leave(outcomeRetried)
		if again, err := s.memory.enter(t.began, s.kind, t.since(), false); err == nil {
			t.stay = again
		}
	}
}

// takeOff shows the detector that a statement is about to be executed.
func (c *conn) takeOff() {
	c.flights++
	flight := c.flights<<flightBits | flying
	t := &c.tx
	if t.isOpen() && t.locking != "" && (t.covered || t.attempt != nil) || !t.isOpen() && c.loneLocks {
		flight |= candidate
		if c.connector.memory.isHot() {
			c.connector.memory.detector.wake()
		}
	}
	c.airborne.Store(flight)
}

// land ends what takeOff began and returns the statement's error, as the server would have
// told it.
func (c *conn) land(ctx context.Context, err error) error {
	flight := c.airborne.Swap(c.flights << flightBits)
	detail := ""
	if flight&claimed != 0 {
		detail = c.connector.memory.detector.landed(c)
	}
	if c.tainted.Load() {
		c.broken = true
	}
	if err == nil || detail == "" && !c.tainted.Load() || ctx.Err() != nil || sqlState(err) != queryCanceled {
		return err
	}
	if k := c.kind.Load(); k != nil {
		k.early.Add(1)
	}
	c.connector.stats.early.Add(1)
	c.connector.telemetry.foundEarly(ctx)
	return asDeadlock(err, detail)
}

// queryCanceled is the SQLSTATE of a statement that a cancel request has ended.
const queryCanceled = "57014"

// execQueued executes a statement outside a transaction, when it may.
func (c *conn) execQueued(ctx context.Context, s call) (driver.Result, error) {
	stay, err := c.queueLone(ctx, s.text)
	if err != nil {
		return nil, err
	}
	result, err := s.exec(c, ctx)
	c.leaveLone(ctx, s.text, &stay, err)
	return result, err
}

// queryQueued is execQueued for statements that return rows.
func (c *conn) queryQueued(ctx context.Context, s call) (driver.Rows, error) {
	stay, err := c.queueLone(ctx, s.text)
	if err != nil {
		return nil, err
	}
	rows, err := s.query(c, ctx)
	c.leaveLone(ctx, s.text, &stay, err)
	return rows, err
}

// queueLone waits before a statement outside a transaction.
func (c *conn) queueLone(ctx context.Context, text string) (s stay, err error) {
	memory := &c.connector.memory
	if c.connector.config.contention == ContentionOff || c.connector.config.mode != ModeReplay {
		return stay{}, nil
	}
	c.loneLocks = locks(analyze(text)) && c.loneTakesPart(ctx)
	if !c.loneLocks || !memory.isHot() {
		return stay{}, nil
	}
	k := memory.find(memory.keyOf(nameFrom(ctx), text))
	if k == nil {
		return stay{}, nil
	}
	c.kind.Store(k)
	return memory.enter(ctx, k, c.connector.config.now(), true)
}

// loneTakesPart says whether the conflict memory is for a statement outside a transaction.
func (c *conn) loneTakesPart(ctx context.Context) bool {
	config := c.connector.config
	return config.contention != ContentionOff && config.mode == ModeReplay && !withoutReplayFrom(ctx) && c.block() == outsideBlock
}

// leaveLone ends what queueLone began, and learns from a deadlock.
func (c *conn) leaveLone(ctx context.Context, text string, s *stay, err error) {
	c.loneLocks = false
	o := outcomeCommitted
	if err != nil {
		o = outcomeRolledBack
	}
	if err != nil && sqlState(err) == deadlockDetected && c.loneTakesPart(ctx) {
		memory := &c.connector.memory
		k := memory.learn(memory.keyOf(nameFrom(ctx), text))
		k.deadlocks.Add(1)
		c.kind.Store(k)
		memory.detector.wake()
		s.deadlocked = s.kind != nil
	}
	s.leave(o)
}
