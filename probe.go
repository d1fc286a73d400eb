package pgretry

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pgretry/pgretry/internal/sqltext"
)

// Probes begin with firstProbe and double with each attempt. Beyond lastProbe the server's
// own search for deadlocks is next anyway.
const (
	firstProbe = 20 * time.Millisecond
	lastProbe  = time.Second
	// probeMargin is how many times as long as a probe an attempt must still be allowed to
	// take: an attempt that a limit in time follows must not fail by a probe.
	probeMargin = 8
)

// probe bounds the waits for locks of a kind of transactions that deadlocks, where nobody
// can look for its deadlocks: a wait that takes too long is taken for one, and the
// transaction tried again. Each attempt waits longer than the one before, and the last
// ones as long as they have to.
func (t *tx) probe(ctx context.Context) error {
	c := t.conn
	config := c.connector.config
	switch {
	case config.contention&ContentionProbes == 0,
		config.contention&ContentionDetector != 0 && c.connector.memory.detector.sees(c),
		!c.settings.asked, c.settings.lockTimeout, c.stateful, t.leavesState, t.setsTimeout:
		return nil
	}
	p := t.pace
	if a := t.attempt; a != nil {
		p = pace{config: a.policyOn(c.connector), started: a.loop.started, attempts: a.number}
	} else if config.contention&ContentionProbeTransactions == 0 || !t.covered || !t.journal().showsCountsOnly() {
		return nil
	}
	if p.config.mode == ModeOff || p.attempts >= p.config.policy.MaxAttempts {
		return nil
	}
	limit := firstProbe << min(max(p.attempts-1, 0), 16)
	margin := config.now().Add(probeMargin * limit)
	if limit > lastProbe || margin.Sub(p.started) > p.config.policy.MaxElapsed {
		return nil
	}
	for _, one := range []context.Context{ctx, t.began} {
		if deadline, ok := one.Deadline(); ok && margin.After(deadline) {
			return nil
		}
	}
	if err := c.command(t.statementContext(ctx), fmt.Sprintf("SET LOCAL lock_timeout = %d", limit.Milliseconds())); err != nil {
		t.failed(err)
		return err
	}
	t.probing = true
	return nil
}

// endProbe lets waits take as long as they have to: the application is about to say how
// long that is, or to handle errors by itself.
func (t *tx) endProbe(ctx context.Context) error {
	if err := t.conn.command(t.statementContext(ctx), "SET LOCAL lock_timeout = 0"); err != nil {
		t.failed(err)
		return err
	}
	t.probing = false
	return nil
}

// probeFailed says whether an error is that of a probe. What a statement with NOWAIT gets
// has the same SQLSTATE.
func (t *tx) probeFailed(err error) bool {
	if !t.probing {
		return false
	}
	server, ok := asServerError(err)
	return ok && server.code == lockNotAvailable && (server.routine == "" || server.routine == "ProcessInterrupts")
}

// timeoutCommands may set lock_timeout, or, which is why SAVEPOINT is among them, come before
// an error that the application handles by itself.
var timeoutCommands = sqltext.KeywordsOf(sqltext.Savepoint, sqltext.Set, sqltext.SetLocal, sqltext.Reset, sqltext.Discard, sqltext.Do, sqltext.Call)

// observeTimeouts notes that the application has a say in how long waits take, or in what
// follows from that.
func (t *tx) observeTimeouts(info *sqltext.Info) {
	if info.Keywords.Intersects(timeoutCommands) || slices.Contains(info.Functions, "set_config") {
		t.setsTimeout = true
	}
}

// learnSettings asks a session, outside a transaction, for what bounds waits in it. An
// error means that the session is not usable.
func (c *conn) learnSettings(ctx context.Context) error {
	if c.settings.asked || !c.connector.memory.isHot() || c.connector.config.contention == ContentionOff || !c.tap.libPQ && !c.tap.pgx {
		return nil
	}
	c.settings = settings{asked: true, lockTimeout: true, idleTimeout: unknownIdleTimeout}
	asking, cancel := context.WithTimeout(ctx, originTimeout)
	defer cancel()
	var answer string
	err := c.tap.wire.during(asking, 0, func() (err error) {
		answer, err = c.ask(asking, askSettings)
		return err
	})
	if err != nil {
		return c.unanswered(ctx, asking, err)
	}
	idle, lock, found := strings.Cut(answer, " ")
	if milliseconds, err := strconv.ParseInt(idle, 10, 64); found && err == nil {
		c.settings.idleTimeout = time.Duration(milliseconds) * time.Millisecond
		c.settings.lockTimeout = lock != "0"
	}
	return nil
}

// unknownIdleTimeout is what a session is taken to bear that does not tell.
const unknownIdleTimeout = 2 * time.Second

// unanswered judges the error of a question outside a transaction. nil means that only the
// answer is missing; an error that the session is not usable.
func (c *conn) unanswered(ctx, asking context.Context, err error) error {
	switch {
	case sqlState(err) != "" && Classify(err, PhaseStatement) != ClassConnectionLost:
		return nil
	case ctx.Err() != nil:
		c.broken = true // an answer may still be on its way
		return ctx.Err()
	case asking.Err() != nil:
		return noAnswer(originTimeout, err)
	}
	return reusable(err)
}
