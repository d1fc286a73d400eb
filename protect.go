package pgretry

import (
	"context"
	"database/sql/driver"
	"io"
	"reflect"
	"strings"

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
	if !t.covered {
		if t.refusal != "" && len(t.savepoints.stack) > 0 {
			// The stack is not kept up to date any longer: now or never.
			err = t.unpin(ctx)
			t.savepoints.reset()
		}
		return false, err
	}
	info := analyze(s.text)
	if hindersPins(info) {
		if err := t.unpin(ctx); err != nil {
			return false, err
		}
	}
	reason, what := t.conn.connector.config.refuses(s.kind, info)
	if info.WithHold {
		t.conn.holdsCursor = true
	}
	if reason == "" && t.conn.holdsCursor {
		switch info.Keyword {
		case sqltext.Fetch, sqltext.Move, sqltext.Close:
			// No rollback takes such a cursor back to where it stood.
			reason, what = RefusedSessionState, info.Keyword.String()
		}
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
	if t.state == txPoisoned {
		return false, err
	}
	journalled = journalled && t.covered
	if err == driver.ErrSkip { //nolint:errorlint // drivers must return it bare
		if journalled {
			t.journal().drop() // it comes again, prepared
		}
		return false, err
	}
	v := judgeStatement(err)
	if t.covered && t.replayable(v) {
		if journalled {
			t.journal().drop()
		}
		err := t.survive(ctx, v, atStatement, nil)
		return err == nil, err
	}
	if journalled {
		t.journal().last().shown.failed(err)
		t.journal().last().failed = true
	}
	t.unanswered(v)
	return false, t.met(v)
}

// judgeStatement classifies the error of a statement.
func judgeStatement(err error) verdict {
	if pin, ok := err.(*pinError); ok { //nolint:errorlint // ours, never wrapped
		// The application has sent nothing that could be to blame.
		return verdict{class: ClassRetryable, err: pin.err}
	}
	return verdict{class: Classify(err, PhaseStatement), err: err}
}

// cursorFailed is overcome for rows that were being read or closed.
func (t *tx) cursorFailed(r *rows, err error, at site) (again bool, _ error) {
	t.failed(err)
	v := judgeStatement(err)
	watched := t.covered && r.watched
	if watched && t.replayable(v) {
		err := t.survive(r.ctx, v, at, r)
		r.ended = err != nil
		return err == nil, err
	}
	r.ended = true
	if watched {
		r.shown.failed(err)
		e := &t.journal().entries[r.entry]
		e.shown, e.failed, e.closed = r.shown, true, at == atClose
	}
	t.unanswered(v)
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
// the server's answer: what state it left behind is not known.
func (t *tx) unanswered(v verdict) {
	switch {
	case v.class == ClassConnectionLost:
		t.refuse(RefusedConnectionLost, "")
	case sqlState(v.err) == "":
		t.refuse(RefusedInterrupted, "")
	}
}

// replayable says whether an error is one after which a transaction can be replayed:
// the server says that it rolled back.
func (t *tx) replayable(v verdict) bool {
	return t.attempt == nil && replayable(&t.pace, v)
}

func replayable(p *pace, v verdict) bool {
	return v.class == ClassRetryable || v.class == ClassRetryableOptIn && p.allows(v)
}

// met returns a conflict that is not replayed to the application, as it is but for
// the hint, and other errors as they are.
func (t *tx) met(v verdict) error {
	if !t.replayable(v) {
		return v.err
	}
	t.surface()
	if !t.refusal.tells() {
		return v.err
	}
	t.tellFinal(outcomeRefused, v, t.refusal, t.refusedFor)
	return hinted(v.err, explain(outcomeRefused, t.refusal, t.refusedFor))
}

// surface counts a conflict that the application sees.
func (t *tx) surface() {
	t.surfaced = true
	t.conn.connector.stats.surfaced()
}

// refuse gives up the journal: from now on the transaction is as it would be without
// the driver.
func (t *tx) refuse(reason RefusalReason, what string) {
	if !t.covered {
		return
	}
	t.covered, t.refusal, t.refusedFor = false, reason, what
	t.conn.connector.stats.peak(t.journal().size)
	t.journal().reset()
	t.conn.connector.telemetry.unprotected(t.began, reason)
}

// refuseForeignTables looks for foreign tables, whose servers have their part of the
// transaction committed even if COMMIT failed here.
func (t *tx) refuseForeignTables() {
	for i := range t.journal().entries {
		// A foreign table that the transaction made is gone by now.
		if e := &t.journal().entries[i]; e.info.Keyword == sqltext.DDL && strings.Contains(strings.ToLower(e.text), "foreign") {
			t.refuse(RefusedForeignTables, "")
			return
		}
	}
	if found, err := t.conn.hasForeignTables(t.began); err != nil || found {
		t.refuse(RefusedForeignTables, "")
	}
}

func (c *conn) hasForeignTables(ctx context.Context) (bool, error) {
	found, err := c.ask(ctx, "SELECT 'yes' FROM pg_catalog.pg_foreign_table LIMIT 1")
	return found != "", err
}

// refuses says whether a statement stands in the way of a replay, and what of it.
func (c *config) refuses(kind callKind, info *sqltext.Info) (reason RefusalReason, what string) {
	if kind == callPrepare || kind == callClose {
		return "", "" // it is executed later, or is COPY from the client
	}
	if info.EndsTx || info.BeginsTx {
		return RefusedTxControl, info.Keyword.String()
	}
	if len(c.denied) > 0 {
		for _, name := range info.Functions {
			if c.denied.match(name) {
				return RefusedDeniedFunction, name
			}
		}
	}
	if info.Hazard == sqltext.HazardNone {
		return "", ""
	}
	if len(c.allowed) > 0 && byFunction(info.Hazard) {
		for _, name := range info.Functions {
			if hazard := sqltext.HazardOfFunction(name); hazard != sqltext.HazardNone && !c.allowed.match(name) {
				return hazardReasons[hazard], name
			}
		}
		return "", ""
	}
	return hazardReasons[info.Hazard], info.HazardName
}

// byFunction says whether a hazard lies in functions and nothing else.
func byFunction(hazard sqltext.Hazard) bool {
	switch hazard {
	case sqltext.HazardAdvisoryLock, sqltext.HazardAdvisoryXactLock, sqltext.HazardOutside:
		return true
	}
	return false
}

var hazardReasons = map[sqltext.Hazard]RefusalReason{
	sqltext.HazardUnreadable:          RefusedUnreadable,
	sqltext.HazardTxControl:           RefusedTxControl,
	sqltext.HazardPreparedTransaction: RefusedPreparedTransaction,
	sqltext.HazardAdvisoryLock:        RefusedAdvisoryLock,
	sqltext.HazardAdvisoryXactLock:    RefusedAdvisoryXactLock,
	sqltext.HazardSessionState:        RefusedSessionState,
	sqltext.HazardCopy:                RefusedServerCopy,
	sqltext.HazardOutside:             RefusedOutsideEffect,
}

// pinBefore sets a pin before entry i, if something before it needs one.
func (t *tx) pinBefore(ctx context.Context, s *call, i int) error {
	config, points := t.conn.connector.config, &t.savepoints
	if points.noPins || config.pins == PinsNever || t.state != txActive || s.kind == callPrepare || s.kind == callClose ||
		!points.needsPin(t.journal(), i) {
		return nil
	}
	if points.pins >= maxPins || t.conn.connector.pinsFail.Load() || !t.readCommitted() {
		return nil
	}
	switch analyze(s.text).Keyword {
	case sqltext.SetTransaction, sqltext.Copy:
		return nil // some forms of these do not work inside a savepoint
	case sqltext.Savepoint:
		return nil // the application's own will do
	case sqltext.Release, sqltext.RollbackTo:
		return nil // it would be gone at once
	}
	if err := t.conn.command(t.statementContext(ctx), setPin); err != nil {
		t.failed(err)
		v := verdict{class: Classify(err, PhaseStatement), err: err}
		if sqlState(err) == "" || v.class == ClassConnectionLost || t.replayable(v) {
			return err
		}
		// Not a conflict, nor the application's fault: it is replayed without pins.
		t.conn.connector.pinsFail.Store(true)
		return &pinError{err}
	}
	points.pins++
	points.due = false
	points.stack = append(points.stack, savepoint{name: pinName, pin: true, after: i})
	return nil
}

// pinError is a pin that could not be set though there was no conflict. The server
// has aborted the transaction for a statement that the application never sent.
type pinError struct{ err error }

func (e *pinError) Error() string { return e.err.Error() }
func (e *pinError) Unwrap() error { return e.err }

// hindersPins says whether a statement may not work inside a savepoint.
func hindersPins(info *sqltext.Info) bool {
	return info.Keyword == sqltext.SetTransaction || info.CopyFreeze || info.Hazard == sqltext.HazardOutside
}

// unpin takes the newest pins away, down to the application's newest savepoint. What
// does not work inside that would not work without us either.
func (t *tx) unpin(ctx context.Context) error {
	points := &t.savepoints
	points.noPins = true
	for top := len(points.stack) - 1; top >= 0 && points.stack[top].pin && t.state == txActive; top-- {
		if err := t.conn.command(t.statementContext(ctx), unsetPin); err != nil {
			t.failed(err)
			return err
		}
		points.stack = points.stack[:top]
	}
	return nil
}

// forgetCall ends the watch over the context of the call that met a conflict.
func (t *tx) forgetCall() {
	for _, stop := range t.stops {
		stop()
	}
	clear(t.stops)
	t.stops = t.stops[:0]
}

// hinted returns a server's error with a sentence more in its hint, and any other
// error as it is.
func hinted(err error, sentence string) error {
	v := reflect.ValueOf(err)
	if sentence == "" || v.Kind() != reflect.Pointer || v.IsNil() || v.Elem().Kind() != reflect.Struct || sqlState(err) == "" {
		return err
	}
	field, ok := v.Elem().Type().FieldByName("Hint")
	if !ok || len(field.Index) != 1 || !field.IsExported() || field.Type.Kind() != reflect.String {
		return err
	}
	copied := reflect.New(v.Elem().Type())
	copied.Elem().Set(v.Elem())
	hint := copied.Elem().FieldByIndex(field.Index)
	if hint.String() != "" {
		sentence = hint.String() + " " + sentence
	}
	hint.SetString(sentence)
	if hinted, ok := copied.Interface().(error); ok {
		return hinted
	}
	return err
}

// closedRows stand for rows that were read as far as they will be.
type closedRows struct{ names []string }

func (r closedRows) Columns() []string         { return r.names }
func (r closedRows) Close() error              { return nil }
func (r closedRows) Next([]driver.Value) error { return io.EOF }

// failedRows stand for rows whose transaction is over.
type failedRows struct {
	names []string
	tx    *tx
	err   error // the conflict that ended it
}

func (r failedRows) Columns() []string { return r.names }
func (r failedRows) Close() error      { return nil }

func (r failedRows) Next([]driver.Value) error {
	if r.tx.poison != nil {
		return r.tx.poison
	}
	return r.err
}
