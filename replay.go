package pgretry

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"strconv"
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

// How long to wait before looking again whether the other side of a deadlock has
// ended, at first and at most.
const (
	rivalPause    = time.Millisecond
	rivalMaxPause = 50 * time.Millisecond
)

// replay is the way back from one conflict.
type replay struct {
	t        *tx
	call     context.Context // of the call that met the conflict
	original verdict         // what it met
	site     site
	cursor   *rows // at which it met it, if it did

	ctx   context.Context // for what is executed again
	wait  time.Duration   // before the next BEGIN
	begun bool            // by now it is from BEGIN
	inner int             // first entry inside the application's newest savepoint, -1 if there is none
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
	defer t.conn.tap.silenceNotices(t.copying())()
	for {
		failed, err := r.attempt(v)
		finished = err != nil || failed.kind == noSetback
		switch {
		case err != nil:
			return err
		case finished:
			if t.hidden == "" {
				t.hidden = sqlState(r.original.err)
			}
			return nil
		}
		v = failed.verdict
	}
}

// cause returns what ended the call's context or BEGIN's, nil if they go on.
func (r *replay) cause() error {
	if cause := contextError(r.call); cause != nil {
		return cause
	}
	return contextError(r.t.began)
}

// leave gives the conflict to the application because a context has ended: nothing is
// retried then.
func (r *replay) leave(cause error) error {
	t := r.t
	const words = "the context is done"
	t.surface()
	t.tellFinal(outcomeExhausted, r.original, "", words)
	if r.site == atCommit {
		t.finish(outcomeExhausted, r.original, "")
	} else {
		t.refuse(RefusedInterrupted, "")
	}
	return t.giveUp(r.original, ErrExhausted, "", words, cause)
}

// panicking leaves a transaction that nobody can use, on a connection that nobody
// will: the inner driver or the hook panics.
func (r *replay) panicking() {
	t := r.t
	t.conn.broken = true
	t.inner = nil
	t.poison = t.giveUp(r.original, ErrExhausted, "", "a panic came in the way", nil)
	t.finish(outcomeExhausted, r.original, "")
	t.state = txPoisoned
}

// attempt makes one attempt at the replay. A conflict in it is returned for the
// next one; an error is final.
func (r *replay) attempt(v verdict) (setback, error) {
	t := r.t
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
	if limit == "" && v.class == ClassNotStarted && !t.conn.connector.budget.take() {
		limit = "the retry budget is used up"
	}
	if limit != "" {
		if cause == nil && r.mayHandOut() {
			return setback{}, r.handOut(outcomeExhausted, "", limit)
		}
		return setback{}, r.poison(outcomeExhausted, ErrExhausted, "", limit, cause)
	}
	failed := r.goBack(from, v)
	if failed.kind == noSetback {
		failed = r.execute(r.first(from))
	}
	switch failed.kind {
	case diverged:
		if pin := from != fromBegin && t.savepoints.stack[from].pin; pin {
			return setback{kind: conflicted, verdict: r.original}, nil // from somewhere else next
		}
		if r.mayHandOut() && (from != fromBegin || failed.statement >= r.inner) {
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
// What lies inside a savepoint of the application is replayed from BEGIN only if
// nothing but row counts was shown before the savepoint. Then it is next to certain
// that at least everything up to the savepoint will come out the same, so that the
// application can still go back to it.
func (r *replay) restart() int {
	t := r.t
	if r.begun {
		return fromBegin
	}
	counted := r.inner < 0 || t.journal().showsCountsOnly(r.inner)
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

// mayHandOut says whether there is a transaction on the server that stands inside
// the same savepoint of the application as when the conflict came.
func (r *replay) mayHandOut() bool {
	i := r.t.savepoints.newest()
	return r.inner >= 0 && r.t.inner != nil && i >= 0 && r.t.savepoints.stack[i].after >= r.inner
}

func (r *replay) possible(s savepoint) bool {
	return s.after >= 0 && r.t.journal().lastsWithoutProof(s.after)
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
	if !t.readsCommitted(ctx) {
		return setback{kind: diverged, what: "the transaction is not under READ COMMITTED"}
	}
	return setback{}
}

// holdsOlderLock says whether going back to a savepoint was in vain, because the
// other side of the deadlock still waits for the transaction: for a lock from before
// the savepoint. Where that cannot be found out, a pin is tried only once.
func (r *replay) holdsOlderLock(ctx context.Context, v verdict, to savepoint) (yes bool, failed setback) {
	t := r.t
	waiter, self := blockedByVictim(v.err)
	if waiter == 0 || t.conn.connector.noBlockers.Load() {
		t.place.pinUseless = true // after this time
		return false, setback{}
	}
	answer, err := t.conn.ask(ctx, fmt.Sprintf("SELECT 'yes' WHERE %d = ANY (pg_catalog.pg_blocking_pids(%d))", self, waiter))
	if err == nil {
		return answer != "", setback{}
	}
	if failed := r.unexpected(err); failed.kind != diverged {
		return false, failed
	}
	// An engine without that function, which has aborted the transaction for it.
	t.conn.connector.noBlockers.Store(true)
	t.place.pinUseless = true
	if err := t.conn.command(ctx, to.backTo()); err != nil {
		return false, r.unexpected(err)
	}
	return false, setback{}
}

// blockedByVictim returns the process ids of the session that waited for the victim of
// a deadlock, and of the victim; 0 if the server did not tell.
func blockedByVictim(err error) (waiter, victim int) {
	deadlock, ok := ParseDeadlock(err)
	if !ok || len(deadlock.Edges) == 0 {
		return 0, 0
	}
	victim = deadlock.Edges[0].PID
	for _, edge := range deadlock.Edges {
		if edge.BlockedBy == victim {
			return edge.PID, victim
		}
	}
	return 0, 0
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
	t.savepoints.reset()
	t.retried(v, r.wait, false)
	waiting := r.newContext()
	rivals := r.rivals(waiting, v)
	if t.conn.connector.config.wait(waiting, r.wait) != nil || waiting.Err() != nil {
		return setback{kind: interrupted}
	}
	if failed := r.outlast(waiting, rivals); failed.kind != noSetback {
		return failed
	}
	t.startAttempt()
	ctx := r.newContext()
	inner, err := t.conn.session.BeginTx(ctx, t.opts)
	if err != nil {
		class := Classify(err, PhaseBegin)
		switch {
		case r.cause() != nil:
			return setback{kind: interrupted}
		case class == ClassRetryable, class == ClassNotStarted:
			return setback{kind: conflicted, verdict: verdict{class: class, err: err}}
		}
		t.conn.broken = true
		return setback{kind: broken, what: "BEGIN failed"}
	}
	t.inner, t.state, t.first = inner, txActive, verdict{}
	return setback{}
}

// rivals returns the transactions that were part of the deadlock, as far as they are
// still under way, if what the application has read may depend on them: a read that
// is repeated before they commit shows what it showed, and what is then written on
// its strength overwrites what they have done. That the deadlock had prevented. Under
// REPEATABLE READ and SERIALIZABLE the server sees to it.
func (r *replay) rivals(ctx context.Context, v verdict) (transactions string) {
	t := r.t
	deadlock, ok := ParseDeadlock(v.err)
	if !ok || len(deadlock.Edges) == 0 || !t.readCommitted() || !t.journal().showsReads() || t.conn.connector.noBlockers.Load() {
		return ""
	}
	var pids []string
	for _, edge := range deadlock.Edges[1:] {
		pids = append(pids, strconv.Itoa(edge.PID))
	}
	// A transaction holds a lock on its own virtual id as long as it lives.
	transactions, err := t.conn.ask(ctx, `SELECT string_agg(DISTINCT quote_literal(virtualtransaction), ',') FROM pg_catalog.pg_locks
		WHERE pid IN (`+strings.Join(pids, ",")+`)`)
	if err != nil {
		return "" // an engine that does not tell; if it is the connection, BEGIN will meet that
	}
	return transactions
}

// outlast waits until the rivals have ended. Nothing is held meanwhile.
func (r *replay) outlast(ctx context.Context, rivals string) setback {
	t := r.t
	if rivals == "" {
		return setback{}
	}
	for pause := rivalPause; ; pause = min(2*pause, rivalMaxPause) {
		left, err := t.conn.ask(ctx, "SELECT 'yes' FROM pg_catalog.pg_locks WHERE virtualtransaction IN ("+rivals+") LIMIT 1")
		switch {
		case err != nil:
			return r.unexpected(err)
		case left == "":
			return setback{}
		}
		if limit, _ := t.pace.ends(pause, []context.Context{r.call, t.began}); limit != "" {
			return setback{kind: outlasted, what: "the other side of the deadlock goes on for longer than " + limit}
		}
		if t.conn.connector.config.wait(ctx, pause) != nil {
			return setback{kind: interrupted}
		}
	}
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

// execute executes the journal again from an entry on.
func (r *replay) execute(first int) setback {
	t := r.t
	for i := first; i < len(t.journal().entries); i++ {
		if err := t.pinBefore(r.ctx, &t.journal().entries[i].call, i); err != nil {
			return r.unexpected(err)
		}
		if failed := r.executeAgain(i); failed.kind != noSetback {
			failed.statement = i
			return failed
		}
		if !t.journal().entries[i].failed {
			t.savepoints.note(t.journal(), i)
		}
	}
	return setback{}
}

// unexpected judges an error that the transaction did not have before. Whether it
// is a conflict is asked before anything else.
func (r *replay) unexpected(err error) setback {
	t := r.t
	v := judgeStatement(err)
	switch {
	case r.cause() != nil:
		return setback{kind: interrupted}
	case t.replayable(v):
		return setback{kind: conflicted, verdict: v}
	case v.class == ClassConnectionLost:
		t.conn.broken = true
		return setback{kind: broken, what: "the connection was lost"}
	}
	what := "it failed"
	if state := sqlState(err); state != "" {
		what += " with SQLSTATE " + state
	}
	return setback{kind: diverged, verdict: v, what: what}
}

// executeAgain executes one entry and compares what it shows with what the
// application saw, which is never replaced by what a replay shows.
func (r *replay) executeAgain(i int) setback {
	t := r.t
	e := &t.journal().entries[i]
	var failed setback
	switch e.kind {
	case callExec:
		failed = r.execAgain(e)
	case callQuery:
		failed = r.queryAgain(e)
	case callPrepare:
		failed = r.prepareAgain(e)
	case callClose:
		e.stmt.shut = true
		failed = r.compare(e, shown{}, e.stmt.Stmt.Close())
	}
	failed.statement = i
	return failed
}

// compare compares a result, or an error that came in its place or after it, with
// what the application saw.
func (r *replay) compare(e *entry, got shown, err error) setback {
	if err != nil {
		if failed := r.unexpected(err); failed.kind != diverged || !e.failed {
			return failed
		}
		got.failed(err)
	}
	switch {
	case err == nil && e.failed:
		return setback{kind: diverged, what: "it succeeded where it had failed"}
	case got.digest == e.shown.digest:
		return setback{}
	case err != nil:
		return setback{kind: diverged, what: "it failed with SQLSTATE " + sqlState(err) + " in another way than before"}
	case e.kind == callExec:
		return setback{kind: diverged, what: "it affected another number of rows"}
	}
	return setback{kind: diverged, what: "it showed something else"}
}

func (r *replay) execAgain(e *entry) setback {
	c, release, err := r.t.conn.prepared(r.ctx, e)
	if err != nil {
		r.t.failed(err)
		return r.unexpected(err)
	}
	result, err := c.exec(r.t.conn, r.ctx)
	r.t.executed(e.text, err)
	err = either(err, release())
	var got shown
	if err == nil {
		got.digest.addResult(result)
	}
	return r.compare(e, got, err)
}

func (r *replay) queryAgain(e *entry) setback {
	t := r.t
	c, release, err := t.conn.prepared(r.ctx, e)
	if err != nil {
		t.failed(err)
		return r.unexpected(err)
	}
	ctx := r.ctx
	if e.cursor != nil {
		ctx = e.cursor.newContext(ctx)
	}
	inner, err := c.query(t.conn, ctx)
	t.executed(e.text, err)
	if err != nil {
		return r.compare(e, shown{}, either(err, release()))
	}
	real := t.conn.tap.takeRows(inner)
	got, what, err := showAgain(inner, real, &e.shown, e.failed && !e.closed)
	var failed setback
	switch {
	case what != "":
		failed = setback{kind: diverged, what: what}
	case err != nil:
		t.failed(err)
		failed = r.compare(e, got, err)
	case !e.closed:
		failed = r.compare(e, got, nil)
	}
	keep := failed.kind == noSetback && !e.failed && e.cursor != nil &&
		(r.cursor != e.cursor || r.site != atClose) && r.site != atCommit
	if keep {
		e.cursor.resume(inner, real, release)
		return setback{}
	}
	err = either(inner.Close(), release())
	switch {
	case failed.kind != noSetback:
		return failed
	case e.closed: // by a failure that is due now
		if err != nil {
			t.failed(err)
		}
		return r.compare(e, got, err)
	case e.failed: // it has failed as it did before
		return setback{}
	case err != nil:
		t.failed(err)
		return r.compare(e, got, err)
	}
	if e.cursor != nil {
		e.cursor.resume(closedRows{e.cursor.names}, real, noRelease)
	}
	return setback{}
}

// showAgain fetches exactly as much as the application did; failing means that it
// then saw an error. It returns what came, in words what was different, and an error
// if there was one.
func showAgain(inner, real driver.Rows, want *shown, failing bool) (got shown, what string, err error) {
	names := inner.Columns()
	got.columns(names, real)
	dest := make([]driver.Value, len(names))
	for set, seen := range want.sets() {
		if set > 0 {
			next, ok := inner.(driver.RowsNextResultSet)
			if ok {
				err = next.NextResultSet()
			}
			switch {
			case !ok, err == io.EOF: //nolint:errorlint // drivers must return it bare
				return got, "it has fewer result sets", nil
			case err != nil:
				return got, "", err
			}
			got.nextSet()
			names = inner.Columns()
			got.columns(names, real)
			dest = make([]driver.Value, len(names))
		}
		for range seen.rows {
			switch err := inner.Next(dest); {
			case err == io.EOF: //nolint:errorlint // drivers must return it bare
				return got, "it has fewer rows", nil
			case err != nil:
				return got, "", err
			}
			got.row(dest)
		}
		fails := failing && set == len(want.earlier)
		if !seen.end && !fails {
			continue
		}
		switch err := inner.Next(dest); {
		case err == nil && seen.end:
			return got, "it has more rows", nil
		case err == nil, err == io.EOF && fails: //nolint:errorlint // drivers must return it bare
			return got, "it did not fail as it had", nil
		case err != io.EOF: //nolint:errorlint // drivers must return it bare
			return got, "", err
		}
		got.end = true
	}
	return got, "", nil
}

func (r *replay) prepareAgain(e *entry) setback {
	t := r.t
	inner, err := t.conn.session.PrepareContext(r.ctx, e.text)
	if err != nil {
		t.failed(err)
		return r.compare(e, shown{}, err)
	}
	t.conn.tap.lastStmt = nil
	var got shown
	got.digest.add(tagInputs, uint64(inner.NumInput()))
	if e.info.Copy == sqltext.CopyFromClient && e.stmt != nil {
		// The rows that follow go into this one.
		e.stmt.replace(inner)
		return r.compare(e, got, nil)
	}
	if err := inner.Close(); err != nil {
		t.failed(err)
		return r.compare(e, got, err)
	}
	return r.compare(e, got, nil)
}

// either returns the errors that are not nil: one of them as it is, because its own
// value matters.
func either(first, second error) error {
	switch {
	case first == nil:
		return second
	case second == nil:
		return first
	}
	return errors.Join(first, second)
}

// differs says in words which statement showed what else, and keeps it for the
// statistics.
func (r *replay) differs(failed setback) string {
	d := Divergence{Statement: failed.statement, What: failed.what}
	what := failed.what
	if failed.statement < len(r.t.journal().entries) {
		e := &r.t.journal().entries[failed.statement]
		d.Fingerprint = sqltext.Fingerprint(e.text)
		what = fmt.Sprintf("statement %d (%s, fingerprint %s): %s", failed.statement, e.info.Keyword, d.Fingerprint, failed.what)
	}
	r.t.conn.connector.stats.diverged(d)
	return what
}

// handOut gives the conflict to the application with the transaction as the server
// had left it: aborted, inside the application's savepoint. From now on the
// application has seen what no replay can show again.
func (r *replay) handOut(o outcome, reason RefusalReason, words string) error {
	t := r.t
	if t.state != txAborted {
		// A statement that cannot succeed aborts the block again.
		err := t.conn.command(r.newContext(), `ROLLBACK TO SAVEPOINT "pgretry: there is no such savepoint"`)
		if sqlState(err) == "" {
			t.conn.broken = true
			return r.poison(outcomeRefused, ErrRefused, RefusedConnectionLost, "the connection was lost", nil)
		}
	}
	t.state, t.first = txAborted, r.original
	t.refuse(RefusedSavepoint, "")
	t.tellFinal(o, r.original, reason, words)
	t.surface()
	return hinted(r.original.err, explain(o, reason, words))
}

// poison ends the transaction for good. The call that met the conflict gets the
// server's error, all later ones a RetryError.
func (r *replay) poison(o outcome, reason error, refusal RefusalReason, words string, cause error) error {
	t := r.t
	t.letGo(r.original.err)
	if inner := t.inner; inner != nil {
		t.inner = nil
		if inner.Rollback() != nil {
			// Whatever state it is in: nobody may use it again.
			t.conn.broken = true
		}
	}
	t.poison = t.giveUp(r.original, reason, refusal, words, cause)
	t.surface()
	t.tellFinal(o, r.original, refusal, words)
	t.finish(o, r.original, refusal)
	t.state = txPoisoned
	if r.cause() != nil {
		return t.poison // matches the context's error and the server's
	}
	return hinted(r.original.err, explain(o, refusal, words))
}

// giveUp makes the error of a transaction that is not replayed.
func (t *tx) giveUp(v verdict, reason error, refusal RefusalReason, words string, cause error) *RetryError {
	return &RetryError{
		Reason: reason, Refusal: refusal, Attempts: t.pace.attempts, Elapsed: t.pace.config.now().Sub(t.pace.started),
		Class: v.class, Err: v.err, Limit: words, cause: cause,
	}
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

// readCommitted says whether the transaction may be under READ COMMITTED.
func (t *tx) readCommitted() bool {
	level := sql.IsolationLevel(t.opts.Isolation)
	if level == sql.LevelDefault && t.conn.connector.defaultLevel.Load() == levelOther {
		return false
	}
	return mayBeReadCommitted(level)
}

// What is known of the level that transactions have which do not ask for one.
const (
	levelUnknown = iota
	levelReadCommitted
	levelOther
)

// readsCommitted finds out whether the transaction is under READ COMMITTED, once
// for all those that leave it to the server.
func (t *tx) readsCommitted(ctx context.Context) bool {
	known := &t.conn.connector.defaultLevel
	if sql.IsolationLevel(t.opts.Isolation) != sql.LevelDefault || known.Load() == levelReadCommitted {
		return true
	}
	level, err := t.conn.ask(ctx, "SHOW transaction_isolation")
	if err != nil {
		return false // the statements that follow will meet the same
	}
	switch level {
	case "read committed", "read uncommitted":
		known.Store(levelReadCommitted)
		return true
	}
	known.Store(levelOther)
	return false
}
