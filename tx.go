package pgretry

import (
	"context"
	"database/sql/driver"
	"time"

	"go.opentelemetry.io/otel/trace"
)

// txState is where a transaction stands, as far as the driver can see.
type txState uint8

const (
	txNone     txState = iota // none has begun, or the last one has ended
	txActive                  // statements work
	txAborted                 // the server refuses everything but a rollback
	txLost                    // the connection is gone
	txEndedRaw                // the application sent COMMIT or ROLLBACK as a statement
	txPoisoned                // rolled back by the driver: the application has yet to end it
)

var _ driver.Tx = (*tx)(nil)

// tx is the transaction of a connection. There is one at a time, so the connection
// has it inside. To the application it is one transaction; on the server it may
// have been several, one after the other.
type tx struct {
	conn   *conn
	inner  driver.Tx // nil while there is none on the server
	state  txState
	number uint64 // counts the connection's transactions, from 1

	attempt *attempt // nil outside closures
	main    bool     // the transaction RunInTx began
	closure *attempt // which the first statement told of, and BEGIN had not; otherwise nil

	// first is the error that aborted the transaction. It is what counts when
	// later ones only say that the transaction is aborted.
	first      verdict
	rawOutcome outcome // of txEndedRaw
	statements int     // of the current attempt

	started  time.Time
	asked    time.Time // the current attempt's BEGIN
	answered time.Time // the last statement of a session that may become an orphan
	identity identity  // by which its COMMIT can be found again
	rawDoubt bool      // a text with a COMMIT in it has failed

	// What its statements have done, as far as their texts show.
	wrote        bool // something but proven reads
	hiddenEffect bool // perhaps something that needs no transaction id
	leavesState  bool // perhaps something that another session would lack
	setsAccess   bool // SET TRANSACTION

	// What the conflict memory knows it by.
	locking     string // the text of the first statement that may lock something
	kind        *kind  // nil if it is not one that has deadlocked
	stay        stay   // at the kind's gate
	probing     bool   // waits for locks are bounded by the driver
	setsTimeout bool   // the application has perhaps bounded them

	plain plainTx // telemetry of a transaction outside closures

	// Statements whose context carries the span that BEGIN's carried are put
	// under the attempt's span; others were given a span of their own on purpose.
	attemptSpan trace.Span // nil if there is nothing to put them under
	beginSpan   trace.SpanID

	// Of a transaction outside closures, which the driver may replay.
	covered    bool          // the journal holds all that was done
	refusal    RefusalReason // why it does not, "" in closures
	refusedFor string        // what was refused, in words
	began      context.Context
	opts       driver.TxOptions
	pace       pace
	savepoints savepoints
	place      place       // of the last conflict
	poison     *RetryError // of txPoisoned
	hidden     string      // the SQLSTATE of the first conflict that was survived, "" for a lost connection
	survived   bool        // there was one
	surfaced   bool        // the application has seen a conflict
	cancels    []context.CancelCauseFunc
	stops      []func() bool
}

// isOpen says whether a statement would run in the transaction, or would if the
// transaction were not poisoned.
func (t *tx) isOpen() bool { return t.state != txNone && t.state != txEndedRaw }

func (t *tx) journal() *journal { return &t.conn.journal }

func (t *tx) begin(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	c := t.conn
	if c.hasNoSession() {
		return nil, driver.ErrBadConn
	}
	config := c.connector.config
	*t = tx{
		conn: c, number: t.number + 1, opts: opts, began: ctx,
		savepoints: savepoints{stack: t.savepoints.stack[:0]}, cancels: t.cancels[:0], stops: t.stops[:0],
		started: config.now(),
	}
	t.asked = t.started
	c.since.Store(t.started.UnixNano())
	a := attemptFrom(ctx)
	if a != nil {
		a.meets(c.connector)
		t.attemptSpan = a.currentSpan()
		c.since.Store(a.loop.started.UnixNano())
	} else {
		t.pace = pace{config: config, started: t.started, attempts: 1}
		switch {
		case config.mode != ModeReplay:
			t.refusal = RefusedMode
		case withoutReplayFrom(ctx):
			t.refusal = RefusedByContext
		default:
			t.covered = true
		}
		t.plain.start(ctx, c.connector.telemetry, t.pace.started, opts, t.covered)
		t.attemptSpan = t.plain.span
	}
	if t.attemptSpan != nil {
		t.beginSpan = trace.SpanContextFromContext(ctx).SpanID()
		if t.attemptSpan.SpanContext().SpanID() == t.beginSpan {
			t.attemptSpan = nil // the context has it already
		}
	}
	beginContext := t.statementContext(ctx)

	var inner driver.Tx
	err := c.prepareToBegin(beginContext)
	if err == nil && a == nil {
		err = t.queueByName(beginContext)
	}
	if err == nil {
		inner, err = c.session.BeginTx(beginContext, opts)
	}
	if err != nil {
		err = c.lostBefore(ctx, PhaseBegin, err)
		class := Classify(err, PhaseBegin)
		if a != nil {
			a.noteFailure(class, err)
		} else {
			// database/sql may begin again on another connection: what is counted and
			// measured is a transaction, not this.
			endSpan(t.plain.span, ending{outcome: outcomeRolledBack, class: class, err: err})
		}
		t.forget()
		return nil, err
	}
	t.inner, t.state = inner, txActive
	t.answered = config.now()
	if a != nil {
		t.attempt, t.main = a, a.txBegan()
	}
	return t, nil
}

// prepareToBegin asks what has to be known before a transaction.
func (c *conn) prepareToBegin(ctx context.Context) error {
	if c.tap.isReading() {
		return nil // there can be no answer; the inner driver says so about BEGIN, too
	}
	for _, ask := range [...]func(*conn, context.Context) error{
		(*conn).learnOrigin, (*conn).proveSession, (*conn).learnSettings, (*conn).endOrphans,
	} {
		if err := ask(c, ctx); err != nil {
			return err
		}
	}
	return nil
}

// statementContext returns ctx with the attempt's span in it, if that is where
// the statement's span belongs.
func (t *tx) statementContext(ctx context.Context) context.Context {
	if t.attemptSpan == nil || trace.SpanContextFromContext(ctx).SpanID() != t.beginSpan {
		return ctx
	}
	return trace.ContextWithSpan(ctx, t.attemptSpan)
}

// joins takes the transaction for the closure's under whose context its first statement
// runs. Some libraries begin under another context than they are given, upper/db for one.
// What is older than the closure is not the closure's.
//
// The driver goes on replaying it, and the closure runs again after what that cannot hide.
func (t *tx) joins(ctx context.Context) {
	if t.attempt != nil || t.closure != nil || t.statements > 0 {
		return
	}
	a := attemptFrom(ctx)
	for a != nil && t.started.Before(a.loop.started) {
		a = a.parent
	}
	if a == nil {
		return
	}
	a.meets(t.conn.connector)
	a.txBegan()
	t.closure = a
}

// noteCommitted tells the closure, if there is one, what a further run could do twice.
func (t *tx) noteCommitted(what string) {
	t.attempt.noteCommitted(what)
	t.closure.noteCommitted(what)
}

// executed notes a statement that the server was asked to run.
func (t *tx) executed(text string, err error) {
	if err == driver.ErrSkip { //nolint:errorlint // drivers must return it bare
		return
	}
	t.statements++
	if mayDeclare(text) && analyze(text).WithHold {
		t.conn.holdsCursor = true
	}
	if err != nil {
		if mayControlTx(text) && mayHaveCommitted(analyze(text), err) {
			t.committedPerhaps(err)
		}
		t.failed(err)
		return
	}
	if t.conn.origin.direct {
		t.answered = t.conn.connector.config.now()
	}
	if t.state == txAborted || mayControlTx(text) {
		t.controlled(text)
	}
}

// controlled notes what a statement that succeeded did to the transaction itself.
func (t *tx) controlled(text string) {
	info := analyze(text)
	switch {
	case info.EndsTx:
		o := outcomeCommitted
		if rollsBack(info) {
			o = outcomeRolledBack
		}
		t.endRaw(o, "a transaction, by a COMMIT sent as a statement")
		if info.AndChain {
			t.state, t.first = txActive, verdict{}
		}
	case t.state == txAborted && info.Statements > 0:
		// In an aborted transaction nothing but ROLLBACK TO succeeds, and nothing at
		// all: the application has undone what failed.
		t.state, t.first = txActive, verdict{}
	}
}

// committedPerhaps notes a text that failed with a COMMIT in it.
func (t *tx) committedPerhaps(err error) {
	t.rawDoubt = true
	t.noteCommitted("a transaction, perhaps, by a COMMIT inside a text that failed")
	if Classify(err, PhaseCommit) == ClassUnknownOutcome {
		if !t.keepsErrors() {
			t.conn.noteLost(t.began, lostCommit)
			err = t.conn.commitUnknown(err)
		}
		t.state, t.first = txLost, verdict{class: ClassUnknownOutcome, err: err}
	}
}

// failed notes an error of a statement or a cursor of the transaction.
func (t *tx) failed(err error) {
	class := t.classify(err)
	if t.state != txActive && (t.state != txAborted || class != ClassConnectionLost) {
		return
	}
	switch {
	case class == ClassConnectionLost:
		t.state = txLost
		if !t.keepsErrors() {
			t.losesConnection()
			err = t.lost(err)
			class = Classify(err, PhaseStatement)
		}
	case sqlState(err) != "":
		t.state = txAborted
		if sqlState(err) == readOnlyTransaction && !t.wantsReadOnly() {
			t.conn.broken = true // a primary that is none any more
		}
	default:
		return // the client's own mistake: the server knows nothing of it
	}
	t.first = verdict{class: class, err: err}
	if t.attempt != nil {
		t.attempt.sawFailure(class)
	}
	t.tellDeadlock(err)
}

// tellDeadlock adds the event to the attempt's span, wherever that is.
func (t *tx) tellDeadlock(err error) {
	t.conn.connector.telemetry.deadlock(t.currentSpan(), err)
	if sqlState(err) == deadlockDetected || t.standsForDeadlock(err) {
		t.noteDeadlock(err)
	}
}

// currentSpan returns the attempt's span, nil if there is none.
func (t *tx) currentSpan() trace.Span {
	if t.attempt != nil {
		return t.attempt.currentSpan()
	}
	return t.plain.span
}

// Commit commits. The error is the inner driver's, unless the transaction was
// poisoned or its conflict was seen before.
func (t *tx) Commit() error {
	for {
		if t.state == txPoisoned {
			err := t.poison
			t.forget()
			return err
		}
		if t.state == txLost && !t.keepsErrors() {
			// Nothing more is sent, so that it is certain that COMMIT was not.
			v := t.first
			t.endLost()
			t.end(outcomeRolledBack, v)
			return v.err
		}
		if err := t.identify(); err != nil {
			t.failed(err)
			if again, _ := t.overcome(context.Background(), err, false); again || t.state == txPoisoned || t.state == txLost {
				continue
			}
		}
		since := t.conn.tap.mark()
		err := t.commit()
		if err == nil {
			t.conn.rawOpen = false
			v := t.hurried()
			t.end(outcomeCommitted, v)
			return v.err
		}
		v := verdict{class: Classify(err, PhaseCommit), err: err}
		if t.standsForDeadlock(err) {
			v.class = ClassRetryable // of a constraint that was deferred
		}
		switch {
		case t.state == txEndedRaw && !t.keepsErrors() && Classify(err, PhaseStatement) == ClassConnectionLost:
			t.conn.noteLost(t.began, lostStatement)
			err = &ConnectionLostError{Cause: err, RolledBack: t.rawOutcome == outcomeRolledBack}
			v = verdict{class: ClassPermanent, err: err} // there was nothing left to commit
		case t.state == txEndedRaw:
			v.class = ClassPermanent // the same
		case v.class == ClassAborted && t.first.err != nil:
			v = t.first
		case v.class == ClassUnknownOutcome && t.state == txAborted && !t.keepsErrors():
			// There is nothing that COMMIT could have committed.
			v = t.first
			if Classify(err, PhaseStatement) == ClassConnectionLost {
				t.failed(err)
				v, err = t.first, t.first.err
			}
		case v.class == ClassUnknownOutcome && t.conn.tap.unsent(since):
			v.class = ClassConnectionLost
			if !t.keepsErrors() {
				t.losesConnection()
				v.err = t.lost(err)
				err = v.err
			}
		case v.class == ClassUnknownOutcome && !t.keepsErrors():
			v = t.resolve(err)
			err = v.err
			if v.class == ClassNone {
				t.end(outcomeCommitted, v)
				return nil
			}
		}
		if t.first.err == nil {
			t.tellDeadlock(err)
		}
		if !t.replayable(v) || t.state != txActive {
			err = t.afterCommit(v, err)
			t.noteForeignCommit(v)
			if v.class == ClassUnknownOutcome && t.attempt == nil && !t.keepsErrors() {
				t.tellFinal(outcomeUnknown, v, "", "")
			}
			t.end(outcomeRolledBack, v)
			return err
		}
		switch {
		case !t.covered:
		case v.class == ClassConnectionLost:
			t.refuseToMove()
		default:
			t.refuseForeignTables()
		}
		if !t.covered {
			t.noteForeignCommit(v)
			err = t.met(v)
			t.end(outcomeRolledBack, v)
			return err
		}
		if err := t.survive(context.Background(), v, atCommit, nil); err != nil {
			t.forget()
			return err
		}
	}
}

// commit sends COMMIT. lib/pq waits for the answer however long it takes: once BEGIN's
// context is done, that is commitGrace at most.
func (t *tx) commit() error {
	socket := t.conn.tap.wire
	if socket == nil || t.began.Done() == nil || t.keepsErrors() {
		return t.inner.Commit()
	}
	var err error
	if t.began.Err() == nil {
		if socketErr := socket.during(t.began, commitGrace, func() error { err = t.inner.Commit(); return nil }); socketErr != nil {
			t.conn.broken = true
		}
		return err
	}
	return t.inner.Commit()
}

// afterCommit returns what COMMIT says of a transaction that had a conflict before,
// which was not replayed: for a loop around it, that conflict is what matters.
func (t *tx) afterCommit(v verdict, err error) error {
	if t.state != txAborted || t.attempt != nil || !t.replayable(v) || !t.refusal.tells() {
		return err
	}
	return t.giveUp(v, ErrRefused, t.refusal, t.refusedFor, err)
}

// Rollback rolls back. The error is the inner driver's.
func (t *tx) Rollback() error {
	if t.state == txPoisoned {
		t.forget() // the driver has rolled back already
		return nil
	}
	err := t.inner.Rollback()
	if err == nil {
		t.conn.rawOpen = false
	}
	t.end(outcomeRolledBack, t.first)
	return err
}

// innerTx is a second transaction begun on a connection that was in one already:
// for the server they are the same, and whichever ends first ends both.
type innerTx struct {
	driver.Tx
	outer *tx
}

func (i innerTx) Commit() error {
	err := i.Tx.Commit()
	class := Classify(err, PhaseCommit)
	if class == ClassNone || class == ClassUnknownOutcome {
		i.outer.endRaw(outcomeCommitted, "a transaction begun inside another")
	}
	if class == ClassUnknownOutcome && !i.outer.keepsErrors() {
		i.outer.conn.noteLost(i.outer.began, lostCommit)
		i.outer.state, i.outer.first = txLost, verdict{class: class, err: i.outer.conn.commitUnknown(err)}
		return i.outer.first.err
	}
	return err
}

func (i innerTx) Rollback() error {
	err := i.Tx.Rollback()
	if err == nil {
		i.outer.endRaw(outcomeRolledBack, "")
	}
	return err
}

// endRaw notes that the transaction ended otherwise than by its own Commit or
// Rollback. What follows on the connection is outside it.
func (t *tx) endRaw(o outcome, committed string) {
	t.rawOutcome, t.state = o, txEndedRaw
	t.refuse(RefusedTxControl, "")
	if o != outcomeCommitted {
		return
	}
	t.first = verdict{}
	t.noteCommitted(committed)
}

// abandon ends a transaction whose connection goes away or back to the pool.
func (t *tx) abandon() {
	switch t.state {
	case txNone:
	case txPoisoned:
		t.forget()
	default:
		t.end(outcomeRolledBack, t.first)
	}
}

func (t *tx) end(o outcome, v verdict) {
	switch {
	case v.class == ClassUnknownOutcome:
		o = outcomeUnknown // of COMMIT, or of one sent as a statement
	case t.state == txEndedRaw:
		o = t.rawOutcome
	}
	t.finish(o, v, "")
	t.forget()
}

// finish tells of the end of the transaction.
func (t *tx) finish(o outcome, v verdict, refusal RefusalReason) {
	connector := t.conn.connector
	t.stay.leave(o)
	connector.stats.attemptEnded(o)
	if t.attempt != nil {
		t.attempt.txEnded(t.main, o, t.statements, v)
	} else {
		if refusal == "" && t.refusal.tells() {
			refusal = t.refusal
		}
		if t.survived && !t.surfaced {
			connector.stats.hid(t.hidden)
		}
		if t.closure != nil {
			t.closure.txEnded(false, o, t.statements, v)
		}
		connector.stats.plainEnded(t.covered, t.refusal, t.journal().size)
		t.plain.end(connector.telemetry, connector.config.now, t.pace.attempts, ending{
			outcome: o, class: v.class, err: v.err, reason: refusal, statements: t.statements,
		})
	}
	switch o {
	case outcomeCommitted:
		connector.budget.succeeded()
	case outcomeUnknown:
		connector.telemetry.unknownCommit(context.Background())
	}
}

// forget lets go of what an idle connection should not keep: spans, contexts, the
// journal.
func (t *tx) forget() {
	t.conn.stateful = t.conn.stateful || t.leavesState
	t.leavesState = false
	for _, cancel := range t.cancels {
		cancel(nil)
	}
	clear(t.cancels)
	t.stay.leave(outcomeRolledBack)
	t.kind, t.locking = nil, ""
	t.journal().reset()
	t.state, t.covered, t.poison = txNone, false, nil
	t.inner, t.attempt, t.closure, t.attemptSpan, t.plain, t.first = nil, nil, nil, nil, plainTx{}, verdict{}
	t.began, t.pace, t.refusal, t.refusedFor, t.cancels = nil, pace{}, "", "", t.cancels[:0]
}
