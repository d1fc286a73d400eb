package pgretry

import (
	"context"
	"database/sql"
	"strings"
	"time"

	"github.com/pgretry/pgretry/internal/sqltext"
)

// savepointTries is how often what lies inside a savepoint of the application is
// tried again if nothing else is possible. There is no wait, because the locks from
// before the savepoint are held.
const savepointTries = 3

// pinTries is how often the same place is tried from a pin whose transaction is
// known to hold nothing older that the others wait for. Otherwise it is once.
const pinTries = 5

// site is where a conflict surfaced.
type site uint8

const (
	atStatement site = iota // its call is not in the journal
	atCursor                // in the middle of rows, which are in the journal
	atClose                 // of rows, which are in the journal
	atCommit                // there is no transaction any more
)

// setback is what stands in the way of a replay. The zero value is nothing.
type setback struct {
	kind      setbackKind
	verdict   verdict // of the error, if that is what it was
	statement int     // index of the entry
	what      string  // that differed, in words
}

type setbackKind uint8

const (
	noSetback   setbackKind = iota
	conflicted              // another conflict
	diverged                // something else was shown
	broken                  // the connection, or something that should have worked
	interrupted             // a context ended
	outlasted               // the other side of a deadlock took too long
)

// replay is the way back from one conflict.
type replay struct {
	t        *tx
	call     context.Context // of the call that met the conflict
	original verdict         // what it met
	site     site
	cursor   *rows // at which it met it, if it did

	ctx     context.Context // for what is executed again
	wait    time.Duration   // before the next BEGIN
	begun   bool            // by now it is from BEGIN
	restore []func()        // the handlers of notices
	inner   int             // first entry inside the application's newest savepoint, -1 if there is none
}

// place is where in a transaction a conflict surfaced, and what has been tried there.
// A partial replay that succeeds and leads to the same conflict again must not be
// tried for ever.
type place struct {
	entries, rows int
	pinTries      int
	pinUseless    bool
	tries         int // from a savepoint of the application
}

// survive takes the transaction back to where it was before the conflict: it rolls
// back, waits, executes the journal again and compares. It returns nil if the call
// that met the conflict can be made again, or go on, as if nothing had happened.
// Otherwise it returns the error for that call, the transaction being rolled back
// and poisoned, or as the server left it if it is inside a savepoint.
func (t *tx) survive(call context.Context, v verdict, at site, cursor *rows) error {
	r := &replay{t: t, call: call, original: v, site: at, cursor: cursor, inner: -1}
	if cause := r.cause(); cause != nil {
		return r.leave(cause)
	}
	finished := false
	defer func() {
		if !finished {
			r.panicking()
		}
	}()
	if at == atCommit {
		t.inner = nil
		r.begun = true // nothing else is possible
	} else if i := t.savepoints.newest(); i >= 0 {
		r.inner = t.savepoints.stack[i].after
	}
	here := place{entries: len(t.journal().entries)}
	if cursor != nil {
		here.rows = cursor.shown.rows
	}
	if here.entries != t.place.entries || here.rows != t.place.rows {
		t.place = here
	}
	t.suspendCursors()
	defer t.forgetCall()
	r.restore = append(r.restore, t.conn.tap.silenceNotices(t.copying()))
	defer r.hear()
	for {
		failed, err := r.attempt(v)
		finished = err != nil || failed.kind == noSetback
		switch {
		case err != nil:
			return err
		case finished:
			if !t.survived {
				t.hidden, t.survived = sqlState(r.original.err), true
			}
			return nil
		}
		v = failed.verdict
	}
}

// attempt makes one attempt at the replay. A conflict in it is returned for the
// next one; an error is final.
func (r *replay) attempt(v verdict) (setback, error) {
	t := r.t
	if t.conn.gone {
		t.letGo(r.original.err)
		t.endLost()
		r.begun, t.inner = true, nil
		if reason, what := t.cannotMove(); reason != "" {
			return setback{}, r.poison(outcomeRefused, ErrRefused, reason, what, nil)
		}
	}
	from := r.restart()
	if from == nowhere {
		return setback{}, r.handOut(outcomeRefused, RefusedSavepoint, "")
	}
	contexts := []context.Context{r.call, t.began}
	limit := t.pace.limit(v)
	var cause error
	r.wait = 0
	if from == fromBegin && limit == "" {
		r.wait, limit, cause = t.pace.pause(v, contexts...)
	} else if limit == "" {
		limit, cause = t.pace.ends(0, contexts)
	}
	if limit == "" && (v.class == ClassNotStarted || v.class == ClassConnectionLost) && !t.conn.connector.budget.take() {
		limit = "the retry budget is used up"
	}
	if limit != "" {
		if cause == nil && r.mayHandOut() {
			return setback{}, r.handOut(outcomeExhausted, "", limit)
		}
		return setback{}, r.poison(outcomeExhausted, ErrExhausted, "", limit, cause)
	}
	pin := from != fromBegin && t.savepoints.stack[from].pin
	failed := r.goBack(from, v)
	if failed.kind == noSetback {
		failed = r.execute(r.first(from))
	}
	switch failed.kind {
	case noSetback:
		if pin {
			t.triedPin(true)
		}
	case diverged:
		if pin {
			t.triedPin(false)
			t.place.pinUseless = true
			return setback{kind: conflicted, verdict: r.original}, nil // from somewhere else next
		}
		t.missedPin()
		if r.mayHandOut() {
			return setback{}, r.handOut(outcomeDiverged, "", r.differs(failed))
		}
		return setback{}, r.poison(outcomeDiverged, ErrDiverged, "", r.differs(failed), nil)
	case broken:
		return setback{}, r.poison(outcomeRefused, ErrRefused, RefusedConnectionLost, failed.what, nil)
	case outlasted:
		return setback{}, r.poison(outcomeExhausted, ErrExhausted, "", failed.what, nil)
	case interrupted:
		return setback{}, r.poison(outcomeExhausted, ErrExhausted, "", "the context ended", r.cause())
	}
	return failed, nil
}

// Where a replay begins: an index into the stack of savepoints, or one of these.
const (
	fromBegin = -1
	nowhere   = -2
)

// restart chooses where the next attempt begins: at the newest pin; at the
// application's newest savepoint; at BEGIN.
//
// What lies inside a savepoint of the application is replayed from BEGIN only if the
// transaction has shown nothing but row counts. Then it is next to certain to come out
// the same. If it does not, the application cannot go back to its savepoint any more.
func (r *replay) restart() int {
	t := r.t
	if r.begun {
		return fromBegin
	}
	counted := r.inner < 0 || t.journal().showsCountsOnly()
	if t.readCommitted() {
		s := &t.savepoints
		if top := len(s.stack) - 1; top >= 0 && s.stack[top].pin && !t.place.pinUseless &&
			t.place.pinTries < pinTries && r.possible(s.stack[top]) {
			t.place.pinTries++
			return top
		}
		tries := savepointTries
		if counted {
			tries = 1
		}
		if i := s.newest(); i >= 0 && t.place.tries < tries && r.possible(s.stack[i]) {
			t.place.tries++
			return i
		}
	}
	if !counted {
		return nowhere
	}
	r.begun = true
	return fromBegin
}

// mayHandOut says whether the transaction on the server is still the one in which the
// conflict came, and stands inside the same savepoint of the application. In another
// one, begun since, locks were let go and the snapshot is new.
func (r *replay) mayHandOut() bool {
	i := r.t.savepoints.newest()
	return !r.begun && i >= 0 && r.t.savepoints.stack[i].after == r.inner
}

func (r *replay) possible(s savepoint) bool {
	j := r.t.journal()
	return s.after >= 0 && !j.showsReads(s.after) && !j.hasOpenCursor(s.after)
}

// first returns the first entry to execute again.
func (r *replay) first(from int) int {
	if from == fromBegin {
		return 0
	}
	return r.t.savepoints.stack[from].after
}

// goBack undoes what was done since the place from which the next attempt begins.
func (r *replay) goBack(from int, v verdict) setback {
	if from == fromBegin {
		return r.beginAgain(v)
	}
	t := r.t
	t.letGo(r.original.err)
	ctx := r.newContext()
	to := t.savepoints.stack[from]
	if err := t.conn.command(ctx, to.backTo()); err != nil {
		return r.unexpected(err)
	}
	t.state, t.first = txActive, verdict{}
	t.savepoints.cut(from)
	t.stayAfterDeadlock()
	t.retried(v, 0, true)
	t.startAttempt()
	if useless, failed := r.holdsOlderLock(ctx, v, to); useless || failed.kind != noSetback {
		t.place.pinUseless = t.place.pinUseless || to.pin
		if failed.kind != noSetback {
			return failed
		}
		if !to.pin {
			t.place.tries = savepointTries
		}
		return setback{kind: conflicted, verdict: v}
	}
	if committed, failed := r.readsCommitted(ctx); !committed || failed.kind != noSetback {
		t.place.pinUseless, t.place.tries = true, savepointTries
		if failed.kind == noSetback {
			failed = setback{kind: conflicted, verdict: v}
		}
		return failed
	}
	return setback{}
}

// beginAgain rolls back, waits and begins, in this order: nothing is held while
// waiting.
func (r *replay) beginAgain(v verdict) setback {
	t := r.t
	t.letGo(r.original.err)
	if inner := t.inner; inner != nil {
		t.inner = nil
		if err := inner.Rollback(); err != nil {
			t.conn.broken = true
			return setback{kind: broken, what: "ROLLBACK failed"}
		}
	}
	if t.conn.gone {
		t.conn.hangUp()
	}
	t.stay.leave(outcomeRetried)
	t.savepoints.reset()
	t.retried(v, r.wait, false)
	waiting := r.newContext()
	rivals, err := r.findRivals(waiting, v)
	if err != nil {
		return r.unexpected(err)
	}
	if t.conn.connector.config.wait(waiting, r.wait) != nil || waiting.Err() != nil {
		return setback{kind: interrupted}
	}
	if failed := r.outlast(waiting, rivals); failed.kind != noSetback {
		return failed
	}
	t.startAttempt()
	ctx := r.newContext()
	if t.conn.gone {
		if err := t.conn.reconnect(ctx); err != nil {
			return r.unreached(err)
		}
		r.restore = append(r.restore, t.conn.tap.silenceNotices(t.copying()))
	}
	if err := t.conn.endOrphans(ctx); err != nil {
		return r.unexpected(err)
	}
	if t.queueAgain(ctx) != nil {
		return setback{kind: interrupted}
	}
	t.asked = t.conn.connector.config.now()
	inner, err := t.conn.session.BeginTx(ctx, t.opts)
	if err != nil {
		class := Classify(err, PhaseBegin)
		switch {
		case r.cause() != nil:
			return setback{kind: interrupted}
		case class == ClassConnectionLost:
			return r.unexpected(err)
		case class == ClassRetryable, class == ClassNotStarted:
			return setback{kind: conflicted, verdict: verdict{class: class, err: err}}
		}
		t.conn.broken = true
		return setback{kind: broken, what: "BEGIN failed"}
	}
	t.inner, t.state, t.first = inner, txActive, verdict{}
	t.answered = t.conn.connector.config.now()
	if t.kind != nil {
		if err := t.probe(ctx); err != nil {
			return r.unexpected(err)
		}
	}
	return setback{}
}

// hear lets the application hear notices again.
func (r *replay) hear() {
	for _, restore := range r.restore {
		restore()
	}
}

// unreached judges an error of a connection that could not be made.
func (r *replay) unreached(err error) setback {
	class := Classify(err, PhaseConnect)
	switch {
	case r.cause() != nil:
		return setback{kind: interrupted}
	case class == ClassNotStarted:
		return setback{kind: conflicted, verdict: verdict{class: class, err: r.t.lost(err)}}
	}
	return setback{kind: broken, what: "no new connection could be made"}
}

// newContext returns the context for what the driver does by itself: BEGIN's, that
// also ends when the current call's does. The contexts of earlier statements are
// dead by now.
func (r *replay) newContext() context.Context {
	t := r.t
	begun := t.began
	if t.attemptSpan != nil {
		begun = t.statementContext(begun)
	}
	ctx, cancel := context.WithCancelCause(begun)
	t.cancels = append(t.cancels, cancel)
	if r.call.Done() != nil {
		stop := context.AfterFunc(r.call, func() { cancel(context.Cause(r.call)) })
		t.stops = append(t.stops, stop)
	}
	r.ctx = ctx
	return ctx
}

// suspendCursors takes down how far each open cursor was read.
func (t *tx) suspendCursors() {
	for i := range t.journal().entries {
		if e := &t.journal().entries[i]; e.cursor != nil {
			e.shown = e.cursor.shown
		}
	}
}

// letGo closes the inner drivers' cursors and copies: what they would still have to
// say is of no interest.
func (t *tx) letGo(err error) {
	for i := range t.journal().entries {
		e := &t.journal().entries[i]
		if e.cursor != nil {
			e.cursor.letGo(err)
		}
		if e.kind == callPrepare && e.stmt != nil && e.info.Copy == sqltext.CopyFromClient && !e.stmt.shut {
			e.stmt.shut = true
			_ = e.stmt.Stmt.Close() // repeats the error that brought us here
		}
	}
}

// copying says whether rows are, or were, sent by COPY.
func (t *tx) copying() bool {
	for i := range t.journal().entries {
		if t.journal().entries[i].info.Copy == sqltext.CopyFromClient {
			return true
		}
	}
	return false
}

// readCommitted says whether the transaction may be under READ COMMITTED, as far as
// is known without asking.
func (t *tx) readCommitted() bool {
	level := sql.IsolationLevel(t.opts.Isolation)
	return mayBeReadCommitted(level) && (level != sql.LevelDefault || !t.conn.otherDefault)
}

// readsCommitted finds out whether the transaction is under READ COMMITTED.
func (r *replay) readsCommitted(ctx context.Context) (yes bool, failed setback) {
	t := r.t
	if sql.IsolationLevel(t.opts.Isolation) != sql.LevelDefault && !t.journal().setsLevel() {
		return true, setback{}
	}
	level, err := t.conn.ask(ctx, "SHOW transaction_isolation")
	if err != nil {
		return false, r.unexpected(err)
	}
	if yes = isReadCommitted(level); !yes && !t.journal().setsLevel() {
		t.conn.otherDefault = true // no use in setting pins, as long as it does not change
	}
	return yes, setback{}
}

// isReadCommitted understands the server's names of levels.
func isReadCommitted(level string) bool {
	return level == "read committed" || level == "read uncommitted"
}

// setsLevel says whether the transaction may have changed its isolation level.
func (j *journal) setsLevel() bool {
	sets := sqltext.KeywordsOf(sqltext.SetTransaction, sqltext.Set, sqltext.SetLocal, sqltext.Select)
	for i := range j.entries {
		if e := &j.entries[i]; e.info.Keywords.Intersects(sets) && strings.Contains(strings.ToLower(e.text), "isolation") {
			return true
		}
	}
	return false
}
