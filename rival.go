package pgretry

import (
	"context"
	"database/sql"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// How long to wait before looking again whether the rivals have ended, at first and
// at most.
const (
	rivalPause    = time.Millisecond
	rivalMaxPause = 50 * time.Millisecond
)

// holdsOlderLock says whether going back to a savepoint was in vain, because the
// other side of the deadlock still waits for the transaction: for a lock from before
// the savepoint. If all it has to do is to wake up, it is given 63 ms for that. Where
// nothing can be found out, a pin is tried only once.
func (r *replay) holdsOlderLock(ctx context.Context, v verdict, to savepoint) (yes bool, failed setback) {
	t := r.t
	waiter, self := blockedByVictim(v.err)
	if waiter == 0 || t.conn.connector.noBlockers.Load() {
		t.place.pinUseless = true // after this time
		return false, setback{}
	}
	answer, err := t.conn.ask(ctx, asksAboutWaiter(self, waiter))
	for pause := rivalPause; err == nil && answer == "asleep" && pause <= rivalMaxPause; pause *= 2 {
		if t.conn.connector.config.wait(ctx, pause) != nil {
			return false, setback{kind: interrupted}
		}
		answer, err = t.conn.ask(ctx, asksAboutWaiter(self, waiter))
	}
	if err == nil {
		return answer == "older", setback{}
	}
	if failed := r.unexpected(err); failed.kind != diverged {
		return false, failed
	}
	switch sqlState(err) {
	case "42883", "42703", "42501", "0A000":
		t.conn.connector.noBlockers.Store(true) // an engine, or a role, without that function
	}
	t.place.pinUseless = true // after this time
	if err := t.conn.command(ctx, to.backTo()); err != nil {
		return false, r.unexpected(err)
	}
	t.state, t.first = txActive, verdict{}
	return false, setback{}
}

// asksAboutWaiter asks whether a transaction holds an older lock that a waiter waits for.
// If not, the waiter may go on, but may be asleep yet: who waits for a row has it only when
// it has taken it, and what is executed again at once is faster. Then the same deadlock
// follows, until no further try is left.
func asksAboutWaiter(self, waiter int) string {
	return fmt.Sprintf(`SELECT CASE WHEN %[1]d = ANY (pg_catalog.pg_blocking_pids(%[2]d)) THEN 'older'
		WHEN wait_event_type = 'Lock' AND pg_catalog.cardinality(pg_catalog.pg_blocking_pids(%[2]d)) = 0 THEN 'asleep' ELSE '' END
		FROM pg_catalog.pg_stat_activity WHERE pid = %[2]d`, self, waiter)
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

// rivals is whom a replay has to outlast.
type rivals struct {
	transactions string // virtual ids of the deadlock's other sides, as far as they are known
	before       string // transaction ids below this one
}

// findRivals finds out who else is under way, if what the application has read may
// depend on them. The other sides of a deadlock, and whoever else waited for the
// transaction's locks, go on when it is rolled back, and commit later: a read that is
// repeated before that shows what it showed, and what is then written on its strength
// overwrites what they have done. That the deadlock had prevented. Under REPEATABLE
// READ and SERIALIZABLE the server sees to it.
func (r *replay) findRivals(ctx context.Context, v verdict) (*rivals, error) {
	t := r.t
	deadlock, ok := ParseDeadlock(v.err)
	timedOut := t.lockTimedOut(v.err)
	if !ok && !timedOut || !mayBeReadCommitted(sql.IsolationLevel(t.opts.Isolation)) || !t.journal().showsReads(len(t.journal().entries)) {
		return nil, nil
	}
	if sql.IsolationLevel(t.opts.Isolation) == sql.LevelDefault && !t.journal().setsLevel() {
		level, err := t.conn.ask(ctx, "SHOW default_transaction_isolation")
		if err != nil || !isReadCommitted(level) {
			return nil, err
		}
	}
	// Who is on the other side of a wait that timed out is not known: whoever may write.
	sides := `pid <> pg_catalog.pg_backend_pid() AND locktype = 'relation' AND mode NOT IN ('AccessShareLock', 'ShareUpdateExclusiveLock', 'SIReadLock')`
	if !timedOut {
		pids := []string{"0"}
		for _, edge := range deadlock.Edges {
			pids = append(pids, strconv.Itoa(edge.PID))
		}
		sides = `pid IN (` + strings.Join(pids, ",") + `)`
	}
	var found rivals
	var err error
	// A transaction holds a lock on its own virtual id as long as it lives.
	found.transactions, err = t.conn.ask(ctx, `SELECT coalesce(string_agg(DISTINCT quote_literal(virtualtransaction), ','), quote_literal(''))
		FROM pg_catalog.pg_locks WHERE `+sides)
	if err != nil {
		return nil, err
	}
	found.before, err = t.conn.ask(ctx, "SELECT pg_catalog.txid_snapshot_xmax(pg_catalog.txid_current_snapshot())::text")
	return &found, err
}

// outlast waits until the rivals have ended, no longer than a wait may last. Nothing
// is held meanwhile.
func (r *replay) outlast(ctx context.Context, rivals *rivals) setback {
	t := r.t
	if rivals == nil {
		return setback{}
	}
	limit := t.pace.config.policy.MaxDelay
	began := t.pace.config.now()
	for pause := rivalPause; ; pause = min(2*pause, rivalMaxPause) {
		left, err := t.conn.ask(ctx, `SELECT 'yes' WHERE pg_catalog.txid_snapshot_xmin(pg_catalog.txid_current_snapshot()) < `+rivals.before+`
			OR EXISTS (SELECT FROM pg_catalog.pg_locks WHERE virtualtransaction IN (`+rivals.transactions+`))`)
		switch {
		case err != nil:
			return r.unexpected(err)
		case left == "":
			return setback{}
		case t.pace.config.now().Sub(began) >= limit:
			return setback{kind: outlasted, what: "transactions that it may depend on go on for longer than MaxDelay of " + limit.String()}
		}
		if words, _ := t.pace.ends(pause, []context.Context{r.call, t.began}); words != "" {
			return setback{kind: outlasted, what: words}
		}
		if t.pace.config.wait(ctx, pause) != nil {
			return setback{kind: interrupted}
		}
	}
}
