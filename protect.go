package pgretry

import (
	"context"
	"database/sql/driver"

	"github.com/pgretry/pgretry/internal/sqltext"
)

// exec executes a statement in the transaction. If a conflict comes in its way, the
// transaction is replayed and the statement executed again.
func (t *tx) exec(ctx context.Context, s call) (driver.Result, error) {
	for {
		journalled, err := t.admit(ctx, &s)
		var result driver.Result
		if err == nil {
			result, err = s.exec(t.conn, t.statementContext(ctx))
			t.executed(s.text, err)
		}
		if err == nil {
			if !t.covered && len(t.savepoints.stack) > 0 {
				t.savepoints.follow(analyze(s.text), 0)
			}
			if journalled && t.covered {
				e := t.journal().last()
				e.count = e.shown.digest.addResult(result)
				t.savepoints.note(t.journal(), len(t.journal().entries)-1)
			}
			return result, nil
		}
		again, err := t.overcome(ctx, err, journalled)
		if !again {
			return result, err
		}
	}
}

// query is exec for statements that return rows.
func (t *tx) query(ctx context.Context, s call) (driver.Rows, error) {
	for {
		journalled, err := t.admit(ctx, &s)
		var inner driver.Rows
		if err == nil {
			inner, err = s.query(t.conn, t.statementContext(ctx))
			t.executed(s.text, err)
		}
		if err == nil {
			r := newRows(t.conn, inner, t.number, loneStatement{})
			r.text = s.text
			if journalled && t.covered {
				last := len(t.journal().entries) - 1
				t.journal().entries[last].cursor = r
				r.watch(ctx, last)
				t.savepoints.note(t.journal(), last)
			}
			return r, nil
		}
		again, err := t.overcome(ctx, err, journalled)
		if !again {
			return nil, err
		}
	}
}

// prepare prepares a statement in the transaction.
func (t *tx) prepare(ctx context.Context, text string) (driver.Stmt, error) {
	for {
		s := call{kind: callPrepare, text: text}
		journalled, err := t.admit(ctx, &s)
		var inner driver.Stmt
		if err == nil {
			if inner, err = t.conn.session.PrepareContext(t.statementContext(ctx), text); err != nil {
				t.failed(err)
			}
		}
		if err == nil {
			outer := newStmt(t.conn, text, inner)
			if journalled && t.covered {
				e := t.journal().last()
				e.shown.digest.add(tagInputs, uint64(inner.NumInput()))
				e.stmt = outer.(interface{ itself() *stmt }).itself()
			}
			return outer, nil
		}
		again, err := t.overcome(ctx, err, journalled)
		if !again {
			return nil, err
		}
	}
}

// closeStmt closes a prepared statement while the transaction is open. For COPY that
// sends what there is left to send.
func (t *tx) closeStmt(s *stmt) error {
	copying := t.covered && analyze(s.text).Copy == sqltext.CopyFromClient
	ctx := t.began
	for {
		journalled := false
		if copying {
			var err error
			if journalled, err = t.admit(ctx, &call{kind: callClose, text: s.text, stmt: s}); err != nil {
				return err
			}
		}
		s.shut = true
		err := s.Stmt.Close()
		if err == nil {
			s.closed = true
			return nil
		}
		t.failed(err)
		again, err := t.overcome(ctx, err, journalled)
		if !again || !copying {
			s.closed = true
			return err
		}
	}
}

// admit makes ready for a call: it refuses to go on journalling where the call
// cannot be replayed, makes room in the journal, sets a pin. An error takes the place
// of the call.
func (t *tx) admit(ctx context.Context, s *call) (journalled bool, err error) {
	if t.state == txPoisoned {
		return false, t.poison
	}
	if t.keepsErrors() {
		return false, nil
	}
	if t.state == txLost {
		return false, t.first.err // whatever became of the connection, the transaction is over
	}
	t.joins(ctx)
	info := analyze(s.text)
	if s.kind != callPrepare {
		t.observe(info)
		t.observeTimeouts(info)
		if err := t.queue(ctx, info, s.text); err != nil {
			return false, err
		}
	}
	if !t.covered {
		if len(t.savepoints.stack) > 0 {
			err = t.unpin(ctx) // they are of no use any more, and may be in the way
		}
		return false, err
	}
	if hindersPins(info) {
		if err := t.unpin(ctx); err != nil {
			return false, err
		}
	}
	reason, what := t.conn.connector.config.refuses(s.kind, info)
	if reason == "" && t.conn.holdsCursor && info.Keywords.Intersects(sqltext.KeywordsOf(sqltext.Fetch, sqltext.Move, sqltext.Close)) {
		// No rollback takes such a cursor back to where it stood.
		reason, what = RefusedSessionState, info.Keyword.String()
	}
	if reason != "" {
		t.refuse(reason, what)
		return false, t.unpin(ctx)
	}
	if err := t.pinBefore(ctx, s, len(t.journal().entries)); err != nil {
		return false, err
	}
	if reason := t.journal().reserve(*s, info, t.conn.connector.config); reason != "" {
		t.refuse(reason, "")
		return false, nil
	}
	return true, nil
}

// overcome judges the error of a call. It says that the call is to be made again,
// after a replay, or returns the error for the application.
func (t *tx) overcome(ctx context.Context, err error, journalled bool) (again bool, _ error) {
	if t.state == txPoisoned || t.state == txLost && err == t.first.err { //nolint:errorlint // the very same
		return false, err
	}
	journalled = journalled && t.covered
	if err == driver.ErrSkip { //nolint:errorlint // drivers must return it bare
		if journalled {
			t.journal().drop() // it comes again, prepared
		}
		return false, err
	}
	v := t.judge(err)
	if t.covered && t.replayable(v) {
		if journalled {
			t.journal().drop()
		}
		err := t.survive(ctx, v, atStatement, nil)
		return err == nil, err
	}
	if journalled && t.covered {
		t.journal().last().shown.failed(err)
		t.journal().last().failed = true
	}
	t.unanswered(ctx, v)
	return false, t.met(v)
}

// judge classifies the error of a call. A lost connection shows in any error: what the
// application gets is the first.
func (t *tx) judge(err error) verdict {
	if t.state != txLost || t.keepsErrors() {
		return t.judgeStatement(err)
	}
	if t.covered && t.first.class == ClassConnectionLost {
		t.refuseToMove()
	}
	return t.first
}

// classify classifies the error of a statement.
func (t *tx) classify(err error) Class {
	if t.conn.tap.cache.isStale(err) {
		return ClassRetryable // it was kept prepared: the application is not to blame
	}
	if t.standsForDeadlock(err) {
		return ClassRetryable // a deadlock, as far as anybody can see
	}
	return Classify(err, PhaseStatement)
}

// judgeStatement classifies the error of a statement.
func (t *tx) judgeStatement(err error) verdict {
	if pin, ok := err.(*pinError); ok { //nolint:errorlint // ours, never wrapped
		// The application has sent nothing that could be to blame.
		return verdict{class: ClassRetryable, err: pin.err}
	}
	return verdict{class: t.classify(err), err: err}
}

// cursorFailed is overcome for rows that were being read or closed.
func (t *tx) cursorFailed(r *rows, err error, at site) (again bool, _ error) {
	t.failed(err)
	v := t.judge(err)
	watched := t.covered && r.watched
	if watched && t.replayable(v) {
		err := t.survive(r.ctx, v, at, r)
		r.ended = err != nil
		return err == nil, err
	}
	r.ended = true
	if t.covered && r.watched {
		r.shown.failed(err)
		e := &t.journal().entries[r.entry]
		e.shown, e.failed, e.closed = r.shown, true, at == atClose
	}
	t.unanswered(r.ctx, v)
	return false, t.met(v)
}

// cursorClosed notes how far rows were read.
func (t *tx) cursorClosed(r *rows) {
	if t.covered && r.watched {
		e := &t.journal().entries[r.entry]
		e.shown, e.cursor = r.shown, nil
	}
}

// unanswered refuses to replay a transaction in which a call ended otherwise than by
// the server's answer: what state it left behind is not known. And one in which a
// context ended a call, which would not end in the same way again.
func (t *tx) unanswered(ctx context.Context, v verdict) {
	switch {
	case v.class == ClassConnectionLost:
		t.refuse(RefusedConnectionLost, "")
	case sqlState(v.err) == "", ctx != nil && ctx.Err() != nil:
		t.refuse(RefusedInterrupted, "")
	}
}

// replayable says whether an error is one after which a transaction can be replayed:
// the server says that it rolled back, or has lost its client before COMMIT.
func (t *tx) replayable(v verdict) bool {
	return t.attempt == nil && (v.class == ClassConnectionLost && t.pace.allows(v) || replayable(&t.pace, v))
}

func replayable(p *pace, v verdict) bool {
	return v.class == ClassRetryable || v.class == ClassRetryableOptIn && p.allows(v)
}

// forgetCall ends the watch over the context of the call that met a conflict.
func (t *tx) forgetCall() {
	for _, stop := range t.stops {
		stop()
	}
	clear(t.stops)
	t.stops = t.stops[:0]
}
