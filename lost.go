package pgretry

import (
	"context"
	"database/sql/driver"
	"errors"
	"time"

	"github.com/pgretry/pgretry/internal/sqltext"
)

// lossPlace is where the loss of a connection was noticed.
type lossPlace uint8

const (
	lostIdle        lossPlace = iota // in the pool, before anything was sent
	lostStatement                    // by a statement outside a transaction
	lostTransaction                  // in a transaction, before COMMIT
	lostCommit                       // by COMMIT
	lossPlaces                       // how many there are
)

var lossPlaceNames = [lossPlaces]string{
	lostIdle: "idle", lostStatement: "statement", lostTransaction: "transaction", lostCommit: "commit",
}

// idleBeforePing is how long a connection may lie in the pool before it is asked
// whether it still works: what forgets it on the way, a firewall or a translator of
// addresses, does not tell its ends.
const idleBeforePing = time.Minute

// pingTimeout bounds the wait for the answer.
const pingTimeout = 5 * time.Second

// stillThere looks, before a connection from the pool is used, whether the server has
// hung up in the meantime. Then driver.ErrBadConn is the truth: nothing has been sent,
// and the pool moves on.
func (c *conn) stillThere(ctx context.Context) error {
	if c.connector.config.mode == ModeOff {
		return nil
	}
	switch c.tap.pulse() {
	case pulseDead:
		c.tap.tellDead(ctx)
		c.noteLost(ctx, lostIdle)
		return driver.ErrBadConn
	case pulseClosed:
		return driver.ErrBadConn
	case pulseQuiet:
		if c.idleSince.IsZero() || time.Since(c.idleSince) < idleBeforePing {
			return nil
		}
	case pulseUnknown:
		return nil
	}
	// It has something to say, a notice or its last words, or was silent for long.
	if c.tap.ping(ctx) != nil {
		c.noteLost(ctx, lostIdle)
		return driver.ErrBadConn
	}
	return nil
}

// tellDead has pgx find out by itself that the server has hung up. Otherwise a pool of pgx's
// would take the connection back for a good one.
func (t *tap) tellDead(ctx context.Context) {
	if t.pgx {
		_ = t.ping(ctx) // which fails
	}
}

// noteLost notes that there is no session any more behind the connection. The pool
// drops it, unless it gets another one.
func (c *conn) noteLost(ctx context.Context, place lossPlace) {
	c.broken = true
	if c.gone {
		return
	}
	c.gone = true
	connector := c.connector
	connector.lastLoss.Store(connector.config.now().UnixNano())
	connector.stats.lost(place)
	connector.telemetry.connectionLost(ctx, place)
}

// hasNoSession says whether the session is lost. Nothing is sent any more then, so that
// driver.ErrBadConn is the truth.
func (c *conn) hasNoSession() bool { return c.gone && c.connector.config.mode != ModeOff }

// lostLone returns what the application, or database/sql, gets to see of an error of a
// statement outside a transaction: driver.ErrBadConn, at which the statement is
// executed again on another connection, only if it cannot have reached the server or
// changes nothing.
func (c *conn) lostLone(ctx context.Context, text string, since mark, err error) error {
	if err == driver.ErrSkip || c.connector.config.mode == ModeOff { //nolint:errorlint // drivers must return it bare
		return err
	}
	class := Classify(err, PhaseStatement)
	if class != ClassConnectionLost {
		if sqlState(err) == readOnlyTransaction {
			c.broken = true // a primary that is none any more
		}
		return err
	}
	c.noteLost(ctx, lostStatement)
	info := analyze(text)
	switch block := c.block(); {
	case block != outsideBlock && mayHaveCommitted(info, err):
		return c.commitUnknown(err)
	case block != outsideBlock:
		return &ConnectionLostError{Cause: err, RolledBack: block == insideBlock}
	case (c.tap.unsent(since) || repeatable(info)) && ctx.Err() != nil:
		return err // nothing is executed under a context that has ended
	case c.tap.unsent(since), repeatable(info):
		return reusable(err)
	}
	return &ConnectionLostError{Cause: err}
}

// block says whether a session is in a transaction that the application has begun by a
// statement.
type block uint8

const (
	outsideBlock block = iota
	insideBlock
	perhapsBlock // a BEGIN or COMMIT has failed, and the inner driver does not tell
)

// block returns what the server said last.
func (c *conn) block() block {
	switch status := c.tap.txStatus(); {
	case status == 'I':
		return outsideBlock
	case status != 0:
		return insideBlock
	case c.rawDoubt:
		return perhapsBlock
	case c.rawOpen:
		return insideBlock
	}
	return outsideBlock
}

// lostRows is lostLone for rows that were being read. Of a read nothing but the rest is
// missing, and database/sql does not execute it again.
func (c *conn) lostRows(ctx context.Context, text string, err error) error {
	lost := c.lostLone(ctx, text, mark{}, err)
	var again *reusableError
	if errors.As(lost, &again) || errors.Is(lost, driver.ErrBadConn) {
		return err
	}
	return lost
}

// lostBefore is lostLone for what changes nothing: BEGIN and Prepare.
func (c *conn) lostBefore(ctx context.Context, phase Phase, err error) error {
	if err == driver.ErrSkip || c.connector.config.mode == ModeOff || Classify(err, phase) != ClassConnectionLost { //nolint:errorlint // drivers must return it bare
		return err
	}
	c.noteLost(ctx, lostStatement)
	if ctx.Err() != nil || c.block() != outsideBlock {
		return err
	}
	return reusable(err)
}

// reusable makes an error one that database/sql knows for a lost connection.
func reusable(err error) error {
	if errors.Is(err, driver.ErrBadConn) {
		return err
	}
	return &reusableError{err}
}

// commitUnknown makes the error of a COMMIT whose fate nobody can tell.
func (c *conn) commitUnknown(cause error) *CommitUnknownError {
	return &CommitUnknownError{Cause: cause, Attempts: 1, At: c.connector.config.now()}
}

// lost makes the error of a transaction whose connection broke before COMMIT was sent.
func (t *tx) lost(cause error) error {
	if t.rawDoubt {
		return t.conn.commitUnknown(cause) // one sent as a statement
	}
	var lost *ConnectionLostError
	if errors.As(cause, &lost) {
		return cause
	}
	return &ConnectionLostError{Cause: cause, RolledBack: true}
}

// lostAfterEnd returns what the application gets to see of an error of rows whose text has
// ended the transaction, as far as anybody knew when the first of them came.
func (t *tx) lostAfterEnd(text string, err error) error {
	switch {
	case Classify(err, PhaseStatement) != ClassConnectionLost:
		return err
	case !mayHaveCommitted(analyze(text), err):
		return t.conn.lostRows(t.began, text, err)
	}
	t.conn.noteLost(t.began, lostCommit)
	t.state, t.first = txLost, verdict{class: ClassUnknownOutcome, err: t.conn.commitUnknown(err)}
	return t.first.err
}

// keepsErrors says whether errors are those of the inner driver, whatever they are.
func (t *tx) keepsErrors() bool { return t.conn.connector.config.mode == ModeOff }

// readOnlyTransaction is the SQLSTATE of a write in a transaction that is read-only,
// as all are on a standby.
const readOnlyTransaction = "25006"

// observe notes what a statement of the transaction may leave behind.
func (t *tx) observe(info *sqltext.Info) {
	if info.ProvenRead {
		return
	}
	t.wrote = true
	if info.Keywords.Has(sqltext.SetTransaction) {
		t.setsAccess = true
	}
	if info.HiddenEffect {
		t.hiddenEffect = true
	}
	if !t.leavesState && t.conn.leavesState(info) {
		t.leavesState = true
	}
}

// leavesState says whether a statement may leave something in the session that another
// session would lack.
func (c *conn) leavesState(info *sqltext.Info) bool {
	if !info.SessionState {
		return false
	}
	allowed := c.connector.config.allowed
	if len(allowed) == 0 {
		return true
	}
	return info.LeavesSessionState(allowed.match)
}

// observeLone notes what a statement outside a transaction may leave behind.
func (c *conn) observeLone(text string) {
	if !c.stateful && c.connector.config.mode == ModeReplay && c.leavesState(analyze(text)) {
		c.stateful = true
	}
}
