package pgretry

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// connect opens a session.
func (c *Connector) connect(ctx context.Context) (session, *tap, error) {
	inner, err := c.inner.Connect(ctx)
	if err != nil {
		return nil, nil, err
	}
	if s, ok := inner.(session); ok {
		if t, ok := tapOf(inner); ok {
			return s, t, nil
		}
	}
	// Neither the tap nor otelsql returned this: nothing that we can work with.
	return nil, nil, errors.Join(fmt.Errorf("pgretry: connect: unexpected connection of type %T", inner), inner.Close())
}

// reconnectTimeout bounds one attempt to make a connection: a server that is being
// restarted may accept one and never answer.
const reconnectTimeout = 10 * time.Second

// connectWithin opens a session. That it took too long is no reason not to try again.
func (c *Connector) connectWithin(ctx context.Context, limit time.Duration) (session, *tap, error) {
	connecting, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	s, t, err := c.connect(connecting)
	if err != nil && ctx.Err() == nil && connecting.Err() != nil {
		err = noAnswer(limit, err)
	}
	return s, t, err
}

// noAnswer is what came of a limit of the driver's own. It must not look like the end of
// a context of the application's.
func noAnswer(limit time.Duration, err error) error {
	return &reusableError{fmt.Errorf("pgretry: no answer within %s: %v", limit, err)} //nolint:errorlint // see above
}

// hangUp closes a session that is lost, so that the server may notice, and nothing is
// held while waiting for another one.
func (c *conn) hangUp() {
	if !c.hungUp {
		c.hungUp = true
		c.connector.memory.detector.remove(c)
		_ = c.session.Close() // what is lost has nothing to say
	}
}

// endLost ends a transaction whose session is lost. lib/pq watches BEGIN's context until
// it is told; it sends nothing over a connection that it has given up.
func (t *tx) endLost() {
	if t.inner != nil && t.conn.tap.libPQ && !t.conn.tap.isValid() {
		_ = t.inner.Rollback()
	}
	t.conn.hangUp()
}

// reconnect gives the connection a new session in the place of a lost one. Prepared
// statements follow when they are used.
func (c *conn) reconnect(ctx context.Context) error {
	c.hangUp()
	s, t, err := c.connector.connectWithin(ctx, reconnectTimeout)
	if err != nil {
		return err
	}
	c.session, c.tap = s, t
	t.cache = newStatementCache(c.connector.config, t, &c.connector.plans)
	c.generation++
	c.gone, c.hungUp, c.broken, c.originAsked, c.settings = false, false, false, false, settings{}
	c.tainted.Store(false)
	c.stateful, c.holdsCursor, c.rawOpen = false, false, false
	if err := c.learnOrigin(ctx); err != nil {
		c.gone, c.broken = true, true
		return err
	}
	c.connector.stats.reconnected()
	c.connector.telemetry.reconnected(ctx)
	return nil
}

// follow prepares a statement once more if the connection has got another session.
func (s *stmt) follow(ctx context.Context) error {
	if s.generation == s.conn.generation {
		return nil
	}
	inner, err := s.conn.session.PrepareContext(ctx, s.text)
	if err != nil {
		return err
	}
	s.conn.tap.lastStmt = nil
	s.replace(inner)
	return nil
}

// losesConnection notes that the transaction is lost before COMMIT was sent.
func (t *tx) losesConnection() {
	if !t.conn.gone {
		t.conn.connector.orphaned(orphan{t.conn.origin, t.asked, t.answered})
	}
	t.conn.noteLost(t.began, lostTransaction)
}

// refuseToMove refuses to replay the transaction if it cannot go on in another session.
func (t *tx) refuseToMove() {
	if reason, what := t.cannotMove(); reason != "" {
		t.refuse(reason, what)
	}
}

// wantsReadOnly says whether it may be the application's wish that the transaction is
// read-only.
func (t *tx) wantsReadOnly() bool {
	return t.keepsErrors() || t.opts.ReadOnly || t.setsAccess || t.leavesState || t.conn.stateful
}

// cannotMove says why the transaction cannot go on in another session, "" if it can.
func (t *tx) cannotMove() (reason RefusalReason, what string) {
	if t.conn.stateful {
		return RefusedSessionState, "earlier statements changed the session, and a new one lacks that"
	}
	return "", ""
}
