package pgretry

import (
	"context"
	"slices"
	"sync/atomic"

	"github.com/pgretry/pgretry/internal/sqltext"
)

// pinBefore sets a pin before entry i, if something before it needs one.
func (t *tx) pinBefore(ctx context.Context, s *call, i int) error {
	config, points := t.conn.connector.config, &t.savepoints
	if points.noPins || config.pins == PinsNever || config.pins == PinsLearned && !t.kind.wantsPins() || t.state != txActive || s.kind == callPrepare || s.kind == callClose ||
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

// pinRecord is whether pins pay in the transactions of a kind.
type pinRecord struct {
	missed atomic.Int32 // replays that diverged where a pin could have helped
	tried  atomic.Int32 // conflicts after which a pin was gone back to
	paid   atomic.Int32 // those of them that were hidden
}

// A pin that is of no use in pinTrials conflicts is set no more, unless it is of use in
// one out of pinShare of them.
const (
	pinTrials = 20
	pinShare  = 10
)

// wanted says whether pins are set.
func (p *pinRecord) wanted() bool {
	tried := p.tried.Load()
	return p.missed.Load() > 0 && (tried < pinTrials || p.paid.Load()*pinShare >= tried)
}

func (k *kind) wantsPins() bool { return k != nil && k.pins.wanted() }

// missedPin notes that a replay has diverged, where the transaction has shown what a pin
// would have kept true.
func (t *tx) missedPin() {
	if t.conn.connector.config.pins != PinsLearned || !t.takesPart() || !t.readCommitted() {
		return
	}
	key := t.kindKey()
	if key == (kindKey{}) || !slices.ContainsFunc(t.journal().entries, func(e entry) bool { return e.deservesPin() }) {
		return
	}
	if t.kind == nil {
		t.kind = t.conn.connector.memory.learn(key)
	}
	t.kind.pins.missed.Add(1)
}

// triedPin notes whether going back to a pin has helped.
func (t *tx) triedPin(helped bool) {
	if t.kind == nil {
		return
	}
	t.kind.pins.tried.Add(1)
	if helped {
		t.kind.pins.paid.Add(1)
	}
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
