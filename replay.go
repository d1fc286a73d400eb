package pgretry

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/pgretry/pgretry/internal/sqltext"
)

// savepointTries is how often what lies inside a savepoint of the application is
// tried again. There is no wait, because the locks from before the savepoint are
// held, and no replay from BEGIN to fall back to.
const savepointTries = 3

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
)

// replay is the way back from one conflict.
type replay struct {
	t        *tx
	call     context.Context // of the call that met the conflict
	original verdict         // what it met
	site     site
	cursor   *rows // at which it met it, if it did

	ctx      context.Context // for what is executed again
	wait     time.Duration   // before the next BEGIN
	pinTried bool
	tries    int // from a savepoint of the application
	begun    bool
}

// survive takes the transaction back to where it was before the conflict: it rolls
// back, waits, executes the journal again and compares. It returns nil if the call
// that met the conflict can be made again, or go on, as if nothing had happened.
// Otherwise it returns the error for that call, the transaction being rolled back
// and poisoned, or as the server left it if it is inside a savepoint.
func (t *tx) survive(call context.Context, v verdict, at site, cursor *rows) error {
	if contextError(call) != nil || contextError(t.began) != nil {
		return v.err // nothing is retried
	}
	r := &replay{t: t, call: call, original: v, site: at, cursor: cursor}
	if at == atCommit {
		t.inner = nil
		r.begun = true // nothing else is possible
	}
	t.suspendCursors()
	defer t.forgetCall()
	defer t.conn.tap.silenceNotices(t.copying())()
	for {
		failed, err := r.attempt(v)
		switch {
		case err != nil:
			return err
		case failed.kind == noSetback:
			t.conn.connector.stats.hid(sqlState(r.original.err))
			return nil
		}
		v = failed.verdict
	}
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
		if cause == nil && t.savepoints.newest() >= 0 && !r.begun {
			return setback{}, r.handOut(outcomeExhausted, "", limit)
		}
		return setback{}, r.poison(outcomeExhausted, ErrExhausted, "", limit, cause)
	}
	t.retried(v, r.wait, from != fromBegin)
	t.pace.attempts++

	failed := r.goBack(from)
	if failed.kind == noSetback {
		failed = r.execute(r.first(from))
	}
	switch failed.kind {
	case diverged:
		switch {
		case from != fromBegin && t.savepoints.newest() >= 0:
			return setback{}, r.handOut(outcomeDiverged, "", r.differs(failed))
		case from != fromBegin:
			return setback{kind: conflicted, verdict: r.original}, nil // from BEGIN next
		}
		return setback{}, r.poison(outcomeDiverged, ErrDiverged, "", r.differs(failed), nil)
	case broken:
		return setback{}, r.poison(outcomeRefused, ErrRefused, RefusedConnectionLost, failed.what, nil)
	case interrupted:
		cause := contextError(r.call)
		if cause == nil {
			cause = contextError(t.began)
		}
		return setback{}, r.poison(outcomeExhausted, ErrExhausted, "", "the context ended", cause)
	}
	return failed, nil
}

// Where a replay begins: an index into the stack of savepoints, or one of these.
const (
	fromBegin = -1
	nowhere   = -2
)

// restart chooses where the next attempt begins. What lies inside a savepoint of
// the application is never replayed from BEGIN: the application may go back to its
// savepoint by itself, and must be able to.
func (r *replay) restart() int {
	t := r.t
	if r.begun {
		return fromBegin
	}
	s := &t.savepoints
	if t.readCommitted() {
		if top := len(s.stack) - 1; top >= 0 && s.stack[top].pin && !r.pinTried && r.possible(s.stack[top]) {
			r.pinTried = true
			return top
		}
		if i := s.newest(); i >= 0 && r.tries < savepointTries && r.possible(s.stack[i]) {
			r.tries++
			return i
		}
	}
	if s.newest() >= 0 {
		return nowhere
	}
	r.begun = true
	return fromBegin
}

func (r *replay) possible(s savepoint) bool {
	return s.after >= 0 && r.t.journal().provable(s.after)
}

// first returns the first entry to execute again.
func (r *replay) first(from int) int {
	if from == fromBegin {
		return 0
	}
	return r.t.savepoints.stack[from].after
}

// goBack undoes what was done since the place from which the next attempt begins.
func (r *replay) goBack(from int) setback {
	if from == fromBegin {
		return r.beginAgain()
	}
	t := r.t
	t.letGo(r.original.err)
	t.startAttempt()
	ctx := r.newContext()
	to := t.savepoints.stack[from]
	if err := t.conn.command(ctx, to.backTo()); err != nil {
		return r.unexpected(err)
	}
	t.state, t.first = txActive, verdict{}
	t.savepoints.stack = t.savepoints.stack[:from+1]
	if !t.readsCommitted(ctx) {
		return setback{kind: diverged, what: "the transaction is not under READ COMMITTED"}
	}
	// What was read before is run again now: it must still be so.
	for i := range to.after {
		if t.journal().entries[i].shows() != showsRead {
			continue
		}
		if failed := r.executeAgain(i); failed.kind != noSetback {
			return failed
		}
	}
	return setback{}
}

// beginAgain rolls back, waits and begins, in this order: nothing is held while
// waiting.
func (r *replay) beginAgain() setback {
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
	waiting := r.newContext()
	if t.conn.connector.config.wait(waiting, r.wait) != nil || waiting.Err() != nil {
		return setback{kind: interrupted}
	}
	t.startAttempt()
	ctx := r.newContext()
	inner, err := t.conn.session.BeginTx(ctx, t.opts)
	if err != nil {
		class := Classify(err, PhaseBegin)
		switch {
		case contextError(r.call) != nil || contextError(t.began) != nil:
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
	if r.call.Done() != nil && r.call != t.began {
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
	case contextError(r.call) != nil || contextError(t.began) != nil:
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
	c, release, err := r.prepared(e)
	if err != nil {
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
	c, release, err := r.prepared(e)
	if err != nil {
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
	got, what, err := showAgain(inner, real, &e.shown, e.failed)
	var failed setback
	switch {
	case what != "":
		failed = setback{kind: diverged, what: what}
	case err != nil:
		t.failed(err)
		failed = r.compare(e, got, err)
	default:
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

// prepared returns the entry's call. A statement that the application has closed in
// the meantime is prepared once more, to be released afterwards.
func (r *replay) prepared(e *entry) (c call, release func() error, err error) {
	if e.stmt == nil || !e.stmt.closed || e.info.Copy == sqltext.CopyFromClient {
		return e.call, noRelease, nil
	}
	inner, err := r.t.conn.session.PrepareContext(r.ctx, e.text)
	if err != nil {
		r.t.failed(err)
		return call{}, nil, err
	}
	r.t.conn.tap.lastStmt = nil
	c = e.call
	c.stmt = &stmt{conn: r.t.conn, text: e.text}
	c.stmt.replace(inner)
	return c, inner.Close, nil
}

func noRelease() error { return nil }

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
	t.conn.connector.stats.surfaced()
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
	t.poison = &RetryError{
		Reason: reason, Refusal: refusal, Attempts: t.pace.attempts, Elapsed: t.pace.config.now().Sub(t.pace.started),
		Class: r.original.class, Err: r.original.err, Limit: words, cause: cause,
	}
	t.conn.connector.stats.surfaced()
	t.tellFinal(o, r.original, refusal, words)
	t.finish(o, r.original, refusal)
	t.state = txPoisoned
	if contextError(r.call) != nil || contextError(t.began) != nil {
		return t.poison // matches the context's error and the server's
	}
	return hinted(r.original.err, explain(o, refusal, words))
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
		if e.kind == callPrepare && e.stmt != nil && e.info.Copy == sqltext.CopyFromClient && !e.stmt.closed {
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
