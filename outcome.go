package pgretry

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// What CommitAuto goes by.
const (
	lossRemembered = time.Minute // after a loss the id is asked for as with CommitResolve
	cheapShare     = 0.03        // of what the transaction has taken so far
)

// Asking what became of a COMMIT.
const (
	fateFirstPause = time.Millisecond
	fateMaxPause   = 50 * time.Millisecond
	// resolveGrace is what is left for it once BEGIN's context is done.
	resolveGrace = time.Second
	// commitGrace is how long COMMIT itself may take then.
	commitGrace = 250 * time.Millisecond
)

// identity is by what the server knows a transaction.
type identity struct {
	asked  bool
	xid    uint64 // 0 if none was assigned
	origin origin // of the session at that time
}

// fate is what became of a COMMIT whose answer was lost.
type fate uint8

const (
	fateUnknown fate = iota
	fateCommitted
	fateAborted // or there was nothing to commit
	fates       // how many there are
)

var fateNames = [fates]string{fateUnknown: "unknown", fateCommitted: "committed", fateAborted: "aborted"}

// identify asks for the transaction's id, right before COMMIT. In one message with
// COMMIT it would be lost together with COMMIT's answer; together with BEGIN it would
// use up an id for transactions that write nothing.
func (t *tx) identify() error {
	t.identity = identity{} // that of an earlier attempt is another transaction's
	if t.state != txActive || !t.wrote || !t.wantsIdentity() {
		return nil
	}
	c := t.conn
	ctx := context.WithoutCancel(t.statementContext(t.began))
	began := c.connector.config.now()
	if !c.origin.direct {
		// Behind a pooler the process is another one for each transaction.
		answer, err := c.ask(ctx, `SELECT coalesce(pg_catalog.txid_current_if_assigned(), 0)::text || ' ' || `+originExpression)
		if err != nil {
			return err
		}
		id, rest, _ := strings.Cut(answer, " ")
		t.identity = identity{asked: answer != "", origin: parseOrigin(rest)}
		t.identity.xid, _ = strconv.ParseUint(id, 10, 64)
	} else {
		id, err := c.ask(ctx, `SELECT pg_catalog.txid_current_if_assigned()::text`)
		if err != nil {
			return err
		}
		t.identity = identity{asked: true, origin: c.origin}
		t.identity.xid, _ = strconv.ParseUint(id, 10, 64)
	}
	c.connector.noteAskCost(c.connector.config.now().Sub(began))
	return nil
}

// wantsIdentity says whether the id is worth asking for.
func (t *tx) wantsIdentity() bool {
	connector := t.conn.connector
	config := connector.config
	if config.mode == ModeOff || t.conn.origin.history == "" {
		return false
	}
	switch config.commitOutcome {
	case CommitResolve:
		return true
	case CommitReport:
		return false
	}
	now := config.now()
	if last := connector.lastLoss.Load(); last != 0 && now.UnixNano()-last < int64(lossRemembered) {
		return true
	}
	return float64(connector.askCost.Load()) <= cheapShare*float64(now.Sub(t.started))
}

// noteAskCost learns how long a question takes: an average of the last few.
func (c *Connector) noteAskCost(took time.Duration) {
	before := c.askCost.Load()
	if before == math.MaxInt64 {
		c.askCost.Store(int64(took))
		return
	}
	c.askCost.Store(before + (int64(took)-before)/8)
}

// resolve finds out what became of a COMMIT that was sent and not answered. It returns
// ClassNone if it took effect; ClassConnectionLost if nothing of the transaction
// remains; ClassUnknownOutcome if nobody can tell.
func (t *tx) resolve(cause error) verdict {
	c := t.conn
	connector := c.connector
	config := connector.config
	c.noteLost(t.began, lostCommit)
	c.hangUp()
	began := config.now()
	f, why := t.findFate()
	elapsed := config.now().Sub(began)
	connector.stats.resolved(f)
	connector.telemetry.commitResolved(t.began, t.currentSpan(), f, elapsed)
	switch f {
	case fateCommitted:
		return verdict{}
	case fateAborted:
		return verdict{class: ClassConnectionLost, err: &ConnectionLostError{Cause: cause, RolledBack: true}}
	}
	unknown := c.commitUnknown(cause)
	unknown.XID, unknown.Server, unknown.Reason = t.identity.xid, t.identity.origin.history, why
	if t.attempt == nil {
		unknown.Attempts = t.pace.attempts
	}
	return verdict{class: ClassUnknownOutcome, err: unknown}
}

// findFate returns the fate, or in words why it cannot be told.
func (t *tx) findFate() (f fate, why string) {
	id := t.identity
	switch {
	case !t.wrote:
		return fateAborted, "" // as good as: there was nothing to commit
	case id.asked && id.xid == 0 && t.hiddenEffect:
		return fateUnknown, "it has no transaction id, and may have had effects without one"
	case !id.asked && t.conn.connector.config.commitOutcome == CommitReport:
		return fateUnknown, "the transaction's id was not asked for"
	case !id.asked && !t.conn.origin.direct:
		return fateUnknown, "the transaction's id is not known"
	}
	ctx, cancel := t.resolveContext()
	defer cancel()
	side, err := t.conn.connector.openSide(ctx)
	if err != nil {
		return fateUnknown, "no connection could be made to ask"
	}
	defer side.hangUp()
	f, why, err = t.askFate(ctx, side, id)
	if err != nil {
		return fateUnknown, "the server did not answer the question"
	}
	return f, why
}

// resolveContext bounds the search. The end of BEGIN's context does not end it at once:
// the fate of what has been sent is worth a moment.
func (t *tx) resolveContext() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.statementContext(t.began)), t.conn.connector.config.resolveTimeout)
	stop := context.AfterFunc(t.began, func() {
		timer := time.NewTimer(resolveGrace)
		defer timer.Stop()
		select {
		case <-timer.C:
			cancel()
		case <-ctx.Done():
		}
	})
	return ctx, func() {
		stop()
		cancel()
	}
}

// openSide opens a session beside the pool, trying until the context ends.
func (c *Connector) openSide(ctx context.Context) (*conn, error) {
	slowly := newFullJitter(unavailableBaseDelay, unavailableMaxDelay, c.config.random)
	for {
		side, err := c.openSideOnce(ctx)
		if err == nil {
			return side, nil
		}
		if Classify(err, PhaseConnect) != ClassNotStarted {
			return nil, err
		}
		if c.config.wait(ctx, slowly.NextBackOff()) != nil {
			return nil, err
		}
	}
}

func (c *Connector) openSideOnce(ctx context.Context) (*conn, error) {
	s, t, err := c.connectWithin(ctx, c.config.resolveTimeout/3) // so that there is another attempt
	if err != nil {
		return nil, err
	}
	side := &conn{session: s, tap: t, connector: c}
	err = side.learnOrigin(ctx)
	if deadline, ok := ctx.Deadline(); err == nil && ok && t.wire != nil {
		// lib/pq would wait for an answer longer than the context lasts. At the end of that
		// it asks the server to cancel, which takes a moment.
		err = t.wire.SetDeadline(deadline.Add(commitGrace))
	}
	if err != nil {
		side.hangUp()
		return nil, err
	}
	return side, nil
}

// askFate asks the server.
func (t *tx) askFate(ctx context.Context, side *conn, id identity) (f fate, why string, err error) {
	if id.asked && id.xid == 0 {
		elsewhere, err := side.writesElsewhere(ctx)
		if err != nil || elsewhere {
			return fateUnknown, "it has no transaction id here, and another server may have its part", err
		}
		unseen, err := side.hasTriggersWithoutRows(ctx)
		if err != nil || unseen {
			return fateUnknown, "it has no transaction id, and triggers or rules may have had effects without one", err
		}
		return fateAborted, "", nil
	}
	if !id.asked {
		// As long as the process has not noticed, it still shows the id.
		id.origin = t.conn.origin
		if id.xid, err = side.lateXID(ctx, id.origin); err != nil || id.xid == 0 {
			return fateUnknown, "the transaction's id is not known", err
		}
		t.identity = id
	}
	if id.origin.history == "" || side.origin.history != id.origin.history {
		return fateUnknown, "the server has crashed, restarted or failed over since, so that the id may mean another transaction", nil
	}
	for pause := fateFirstPause; ; pause = min(2*pause, fateMaxPause) {
		status, err := side.ask(ctx, fmt.Sprintf("SELECT pg_catalog.txid_status(%d)", id.xid))
		if err != nil {
			return fateUnknown, "", err
		}
		switch status {
		case "committed":
			if replicated, err := side.isReplicated(ctx); err != nil || !replicated {
				return fateUnknown, "it is committed, but perhaps not on the synchronous standby", err
			}
			return fateCommitted, "", nil
		case "aborted":
			elsewhere, err := side.writesElsewhere(ctx)
			if err != nil || elsewhere {
				return fateUnknown, "it is aborted here, but another server may have committed its part", err
			}
			return fateAborted, "", nil
		case "in progress":
		default:
			return fateUnknown, "the server does not keep the transaction's status any more", nil
		}
		state, err := side.fence(ctx, id)
		switch {
		case err != nil:
			return fateUnknown, "", err
		case state == "prepared":
			return fateUnknown, "it is a prepared transaction, which somebody else commits or rolls back", nil
		}
		if t.conn.connector.config.wait(ctx, pause) != nil {
			return fateUnknown, "COMMIT is still in progress", nil //nolint:nilerr // that is what the end of the wait means
		}
	}
}

// fence ends the process in which the transaction is in progress, if that waits for its
// client, who is gone: COMMIT has not come to it. A process that is executing COMMIT is
// left to it: it will end by itself, and one that waits for a synchronous standby must
// not be hurried. The transaction's id makes sure that it is this transaction; behind a
// pooler the process may be somebody else's by now.
func (c *conn) fence(ctx context.Context, id identity) (state string, err error) {
	own := ""
	if id.origin.direct {
		own = " AND pid = " + id.origin.pid + " AND extract(epoch FROM backend_start)::text = '" + id.origin.started + "'"
	}
	xid := uint32(id.xid) //nolint:gosec // without the epoch, as processes have it
	state, err = c.ask(ctx, fmt.Sprintf(`SELECT CASE WHEN wait_event = 'ClientRead' THEN
			CASE WHEN pg_catalog.pg_terminate_backend(pid) THEN 'fenced' ELSE 'gone' END
		ELSE 'busy' END FROM pg_catalog.pg_stat_get_activity(NULL) WHERE backend_xid::text = '%d'`, xid)+own)
	if err != nil || state != "" {
		return state, err
	}
	return c.ask(ctx, fmt.Sprintf("SELECT 'prepared' FROM pg_catalog.pg_prepared_xacts WHERE transaction::text = '%d'", xid))
}

// isReplicated says whether what is committed is where synchronous replication promises
// it to be. A COMMIT that waits for a standby is told to be in progress, but whoever
// cancels or terminates its process, inner drivers among them, ends the wait: committed it
// is then, on one server. A commit that comes later and is replicated proves that the
// earlier ones are.
func (c *conn) isReplicated(ctx context.Context) (bool, error) {
	names, err := c.ask(ctx, "SELECT pg_catalog.current_setting('synchronous_standby_names')")
	if err != nil || names == "" {
		return err == nil, err
	}
	// The transaction may have asked for more than the default.
	_, err = c.ask(ctx, `SELECT pg_catalog.set_config('synchronous_commit', 'on', false)
		WHERE pg_catalog.current_setting('synchronous_commit') NOT IN ('on', 'remote_apply')`)
	if err == nil {
		_, err = c.ask(ctx, "SELECT pg_catalog.pg_logical_emit_message(true, 'pgretry', '')::text")
	}
	// The end of the context ends this wait too, and then there is no error.
	return err == nil && ctx.Err() == nil, nil
}

// hurried looks at a COMMIT that succeeded after BEGIN's context had ended. lib/pq asks the
// server to cancel then, and one that waited for a synchronous standby stops waiting and
// says that it has committed.
func (t *tx) hurried() verdict {
	c := t.conn
	config := c.connector.config
	if !c.tap.libPQ || config.mode == ModeOff || config.commitOutcome == CommitReport || !t.wrote || t.began.Err() == nil {
		return verdict{}
	}
	ctx, cancel := t.resolveContext()
	defer cancel()
	side, err := c.connector.openSide(ctx)
	if err != nil {
		return verdict{} // there is nothing against what the server has said
	}
	defer side.hangUp()
	if replicated, err := side.isReplicated(ctx); err != nil || replicated {
		return verdict{}
	}
	unknown := c.commitUnknown(contextError(t.began))
	unknown.Reason = "it is committed, but perhaps not on the synchronous standby"
	if t.attempt == nil {
		t.tellFinal(outcomeUnknown, verdict{class: ClassUnknownOutcome, err: unknown}, "", "")
	}
	return verdict{class: ClassUnknownOutcome, err: unknown}
}

// lateXID returns the id of the transaction that a process is in, 0 if there is none
// any more.
func (c *conn) lateXID(ctx context.Context, o origin) (uint64, error) {
	answer, err := c.ask(ctx, `SELECT backend_xid::text || ' ' || pg_catalog.txid_snapshot_xmax(pg_catalog.txid_current_snapshot())::text
		FROM pg_catalog.pg_stat_get_activity(`+o.pid+`) WHERE extract(epoch FROM backend_start)::text = '`+o.started+`'`)
	if err != nil || answer == "" {
		return 0, err
	}
	short, next, _ := strings.Cut(answer, " ")
	low, err := strconv.ParseUint(short, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("pgretry: transaction id %q: %w", short, err)
	}
	limit, err := strconv.ParseUint(next, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("pgretry: transaction id %q: %w", next, err)
	}
	full := limit&^math.MaxUint32 | low
	if full >= limit {
		full -= 1 << 32 // of the epoch before
	}
	return full, nil
}

// hasTriggersWithoutRows says whether something may have run in a statement that wrote no
// row, and notified somebody: a trigger per statement or instead of a view's rows, a rule.
func (c *conn) hasTriggersWithoutRows(ctx context.Context) (bool, error) {
	found, err := c.ask(ctx, `SELECT 'yes' WHERE
		EXISTS (SELECT FROM pg_catalog.pg_trigger WHERE NOT tgisinternal AND (tgtype & 1 = 0 OR tgtype & 64 <> 0))
		OR EXISTS (SELECT FROM pg_catalog.pg_rewrite WHERE ev_type <> '1' AND ev_class >= 16384)`)
	return found != "", err
}

// writesElsewhere says whether a transaction on this server may have parts on others.
func (c *conn) writesElsewhere(ctx context.Context) (bool, error) {
	found, err := c.ask(ctx, `SELECT 'yes' WHERE EXISTS (SELECT FROM pg_catalog.pg_foreign_table)
		OR EXISTS (SELECT FROM pg_catalog.pg_extension WHERE extname = 'citus')`)
	return found != "", err
}
