package pgretry

import (
	"context"

	"github.com/pgretry/pgretry/internal/sqltext"
)

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
		switch {
		case v.class == ClassConnectionLost, t.replayable(v), contextError(ctx) != nil, contextError(t.began) != nil:
			return err
		case sqlState(err) == "":
			// No server's answer: a driver made for tests that did not expect it.
			t.conn.connector.pinsFail.Store(true)
			return nil
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
