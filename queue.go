package pgretry

import (
	"context"
	"database/sql/driver"
	"time"

	"github.com/pgretry/pgretry/internal/sqltext"
)

// queueMaxWait bounds the wait for a transaction's turn.
const queueMaxWait = 10 * time.Second

// takesPart says whether the transaction is one that the conflict memory is for.
func (t *tx) takesPart() bool {
	config := t.conn.connector.config
	return config.contention != ContentionOff && (t.attempt != nil && config.mode != ModeOff || config.mode == ModeReplay && t.refusal != RefusedByContext)
}

// queue waits, before the first statement that locks, until the transaction may go on. It
// holds nothing yet that others wait for.
func (t *tx) queue(ctx context.Context, info *sqltext.Info, text string) error {
	if t.probing && t.setsTimeout {
		if err := t.endProbe(ctx); err != nil {
			return err
		}
	}
	if t.locking != "" || !locks(info) {
		return nil
	}
	first := t.statements == 0
	t.locking = text
	if t.state != txActive {
		return nil
	}
	memory := &t.conn.connector.memory
	if !memory.isHot() || !t.takesPart() {
		return nil
	}
	memory.decay(t.started)
	if t.stay.kind != nil {
		return t.probe(ctx) // it has waited before BEGIN
	}
	k := memory.find(t.kindKey())
	t.conn.kind.Store(k)
	if k == nil {
		return nil
	}
	if t.attempt.isInside(k) {
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
	t.stay, t.kind = s, k
	t.conn.kind.Store(k)
	return nil
}

// queueAgain waits before the BEGIN of a replay.
func (t *tx) queueAgain(ctx context.Context) error {
	t.probing = false // that was in the transaction that is gone
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
	if !t.conn.settings.asked || t.conn.stateful || t.leavesState || t.setsTimeout {
		limit = unknownIdleTimeout
		if known := t.conn.settings.idleTimeout; known > 0 {
			limit = min(limit, known)
		}
	}
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
	memory.detector.wake()
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
	if k == nil || l.parent.isInside(k) {
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

// isInside says whether the attempt, or one around it, is inside the gate of a kind: who
// waited there once more would wait for itself.
func (a *attempt) isInside(k *kind) bool {
	for ; a != nil; a = a.parent {
		a.mu.Lock()
		inside := a.stay.kind != nil && a.stay.kind.gate.Load() == k.gate.Load()
		a.mu.Unlock()
		if inside {
			return true
		}
	}
	return false
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
	if memory := &c.connector.memory; memory.isHot() && c.mayLose() {
		c.airborne.Store(flight | candidate)
		memory.detector.wake() // now, or it could have gone to sleep without seeing this
		return
	}
	c.airborne.Store(flight)
}

// mayLose says whether a deadlock may be ended at the cost of the statement that is about
// to be executed: whether what it belongs to can be replayed or run again.
func (c *conn) mayLose() bool {
	t := &c.tx
	switch {
	case !t.isOpen():
		return c.loneLocks
	case t.locking == "":
		return false
	case t.attempt != nil:
		return t.attempt.mayRunAgain(c.connector)
	}
	return t.covered && t.pace.attempts < t.pace.config.policy.MaxAttempts &&
		(t.savepoints.newest() < 0 || t.showedCountsOnly())
}

// showedCountsOnly says whether the statements before this one showed nothing but row
// counts.
func (t *tx) showedCountsOnly() bool {
	entries := t.journal().entries
	before := journal{entries: entries[:max(len(entries)-1, 0)]}
	return before.showsCountsOnly()
}

// mayRunAgain says whether the closure would run again after a deadlock now.
func (a *attempt) mayRunAgain(c *Connector) bool {
	config := a.policyOn(c)
	if config.mode == ModeOff || a.number >= config.policy.MaxAttempts {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.commits == 0 || a.loop.idempotent
}

// policyOn returns the configuration that decides whether the closure runs again. The first
// attempt of Retry begins before the database is known.
func (a *attempt) policyOn(c *Connector) *config {
	if a.number == 1 && a.loop.target == nil && len(a.loop.options) == 0 {
		return c.config
	}
	return a.config
}

// land ends what takeOff began and returns the statement's error, as the server would have
// told it.
func (c *conn) land(ctx context.Context, err error) error {
	return c.told(ctx, err, c.touchDown())
}

// landRows is land for what returns rows, or one of them. The server sends a row when
// there are enough of them, or when it has to send an error: then the error that belongs to
// the statement comes after it.
func (c *conn) landRows(ctx context.Context, rows driver.Rows, err error) (driver.Rows, error) {
	detail := c.touchDown()
	if err != nil || detail == "" {
		return rows, c.told(ctx, err, detail)
	}
	chosen := &chosenRows{Rows: rows, conn: c, ctx: ctx, detail: detail}
	if more, ok := rows.(driver.RowsNextResultSet); ok {
		return &chosenResultSets{chosen, more}, nil
	}
	return chosen, nil
}

// touchDown ends what takeOff began. It returns the deadlock that the statement was chosen
// to end, "" if it was not.
func (c *conn) touchDown() (detail string) {
	flight := c.airborne.Swap(c.flights << flightBits)
	if flight&claimed != 0 {
		detail = c.connector.memory.detector.landed(c)
	}
	if c.tainted.Load() {
		c.broken = true
	}
	return detail
}

// told returns a statement's error as the server would have told it.
func (c *conn) told(ctx context.Context, err error, detail string) error {
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

// chosenRows are rows of a statement that was chosen to end a deadlock.
type chosenRows struct {
	driver.Rows
	conn   *conn
	ctx    context.Context
	detail string
	err    error // once it has come
}

func (r *chosenRows) Next(dest []driver.Value) error { return r.told(r.Rows.Next(dest)) }

func (r *chosenRows) Close() error { return r.told(r.Rows.Close()) }

func (r *chosenRows) told(err error) error {
	if err != nil && r.err != nil && sqlState(err) == queryCanceled {
		return r.err // again
	}
	told := r.conn.told(r.ctx, err, r.detail)
	if told != err { //nolint:errorlint // the very same
		r.err = told
	}
	return told
}

// chosenResultSets are chosenRows of several results.
type chosenResultSets struct {
	*chosenRows
	more driver.RowsNextResultSet
}

func (r *chosenResultSets) HasNextResultSet() bool { return r.more.HasNextResultSet() }

func (r *chosenResultSets) NextResultSet() error { return r.told(r.more.NextResultSet()) }

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
	c.showItself(ctx, err)
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

// showItself makes a session known to the detector that has not begun a transaction yet,
// after a statement: what it may cost then is the session, and not what the statement did.
func (c *conn) showItself(ctx context.Context, err error) {
	if c.originAsked || !c.connector.memory.isHot() || ctx.Err() != nil || !c.loneTakesPart(ctx) ||
		err != nil && (sqlState(err) == "" || Classify(err, PhaseStatement) == ClassConnectionLost) {
		return
	}
	if c.learnOrigin(ctx) != nil {
		c.broken = true
	}
}

// queueLone waits before a statement outside a transaction.
func (c *conn) queueLone(ctx context.Context, text string) (s stay, err error) {
	memory := &c.connector.memory
	if !memory.isHot() || !c.loneTakesPart(ctx) {
		return stay{}, nil
	}
	info := analyze(text)
	if !locks(info) {
		return stay{}, nil
	}
	now := c.connector.config.now()
	memory.decay(now)
	c.since.Store(now.UnixNano())
	a := attemptFrom(ctx)
	reason, _ := c.connector.config.refuses(callExec, info)
	c.loneLocks = reason == "" && info.Whole &&
		(a == nil || a.mayRunAgain(c.connector))
	k := memory.find(memory.keyOf(nameFrom(ctx), text))
	c.kind.Store(k)
	if k == nil || a.isInside(k) {
		return stay{}, nil
	}
	if s, err = memory.enter(ctx, k, now, true); err != nil {
		c.loneLocks = false
	}
	return s, err
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
	if err != nil && sqlState(err) == deadlockDetected && locks(analyze(text)) && c.loneTakesPart(ctx) {
		memory := &c.connector.memory
		k := memory.learn(memory.keyOf(nameFrom(ctx), text))
		k.deadlocks.Add(1)
		c.kind.Store(k)
		memory.detector.wake()
		s.deadlocked = s.kind != nil
	}
	s.leave(o)
}
