package pgretry

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// How long to wait before looking again whether the other side of a deadlock has
// ended, at first and at most.
const (
	rivalPause    = time.Millisecond
	rivalMaxPause = 50 * time.Millisecond
)

// holdsOlderLock says whether going back to a savepoint was in vain, because the
// other side of the deadlock still waits for the transaction: for a lock from before
// the savepoint. Where that cannot be found out, a pin is tried only once.
func (r *replay) holdsOlderLock(ctx context.Context, v verdict, to savepoint) (yes bool, failed setback) {
	t := r.t
	waiter, self := blockedByVictim(v.err)
	if waiter == 0 || t.conn.connector.noBlockers.Load() {
		t.place.pinUseless = true // after this time
		return false, setback{}
	}
	answer, err := t.conn.ask(ctx, fmt.Sprintf("SELECT 'yes' WHERE %d = ANY (pg_catalog.pg_blocking_pids(%d))", self, waiter))
	if err == nil {
		return answer != "", setback{}
	}
	if failed := r.unexpected(err); failed.kind != diverged {
		return false, failed
	}
	// An engine without that function, which has aborted the transaction for it.
	t.conn.connector.noBlockers.Store(true)
	t.place.pinUseless = true
	if err := t.conn.command(ctx, to.backTo()); err != nil {
		return false, r.unexpected(err)
	}
	return false, setback{}
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

// rivals returns the transactions that were part of the deadlock, as far as they are
// still under way, if what the application has read may depend on them: a read that
// is repeated before they commit shows what it showed, and what is then written on
// its strength overwrites what they have done. That the deadlock had prevented. Under
// REPEATABLE READ and SERIALIZABLE the server sees to it.
func (r *replay) rivals(ctx context.Context, v verdict) (transactions string) {
	t := r.t
	deadlock, ok := ParseDeadlock(v.err)
	if !ok || len(deadlock.Edges) == 0 || !t.readCommitted() || !t.journal().showsReads(len(t.journal().entries)) || t.conn.connector.noBlockers.Load() {
		return ""
	}
	var pids []string
	for _, edge := range deadlock.Edges[1:] {
		pids = append(pids, strconv.Itoa(edge.PID))
	}
	// A transaction holds a lock on its own virtual id as long as it lives.
	transactions, err := t.conn.ask(ctx, `SELECT string_agg(DISTINCT quote_literal(virtualtransaction), ',') FROM pg_catalog.pg_locks
		WHERE pid IN (`+strings.Join(pids, ",")+`)`)
	if err != nil {
		return "" // an engine that does not tell; if it is the connection, BEGIN will meet that
	}
	return transactions
}

// outlast waits until the rivals have ended. Nothing is held meanwhile.
func (r *replay) outlast(ctx context.Context, rivals string) setback {
	t := r.t
	if rivals == "" {
		return setback{}
	}
	for pause := rivalPause; ; pause = min(2*pause, rivalMaxPause) {
		left, err := t.conn.ask(ctx, "SELECT 'yes' FROM pg_catalog.pg_locks WHERE virtualtransaction IN ("+rivals+") LIMIT 1")
		switch {
		case err != nil:
			return r.unexpected(err)
		case left == "":
			return setback{}
		}
		if limit, _ := t.pace.ends(pause, []context.Context{r.call, t.began}); limit != "" {
			return setback{kind: outlasted, what: "the other side of the deadlock goes on for longer than " + limit}
		}
		if t.conn.connector.config.wait(ctx, pause) != nil {
			return setback{kind: interrupted}
		}
	}
}
