package pgretry

import (
	"context"
	"crypto/tls"
	"database/sql/driver"
	"fmt"
	"net"
	"reflect"
	"strings"
	"time"
)

// origin is where a session came from: which server, in which of its lives, and which
// of its processes.
type origin struct {
	// history is the same as long as a transaction's id means the same transaction:
	// system identifier, timeline, start of the postmaster, last reset of the
	// statistics, which a crash resets. On a timeline an id that was not flushed is
	// issued once more after a crash, even if a single backend's crash was the reason
	// and the postmaster lives on. "" if something of it is missing, as on a standby.
	history string
	pid     string
	started string // the process, in seconds since 1970
	direct  bool   // no pooler stands between: the process is ours alone
}

// orphan is a process of the server whose client is gone in a transaction. It may not
// know that yet, behind a network that swallows everything, and hold locks that the next
// attempt needs.
type orphan struct {
	origin
	asked    time.Time // BEGIN
	answered time.Time // the last statement
}

// originExpression is the origin as text, NULL if something is missing.
// pg_control_checkpoint would tell the timeline too, but only after the first
// checkpoint on it.
const originExpression = `CASE WHEN NOT pg_catalog.pg_is_in_recovery() THEN
	(SELECT system_identifier::text FROM pg_catalog.pg_control_system()) || '/' ||
	pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8) || '/' ||
	extract(epoch FROM pg_catalog.pg_postmaster_start_time())::text || '/' ||
	(SELECT extract(epoch FROM stats_reset)::text FROM pg_catalog.pg_stat_bgwriter) END
	|| ' ' || pg_catalog.pg_backend_pid()::text || ' ' ||
	(SELECT extract(epoch FROM backend_start)::text FROM pg_catalog.pg_stat_get_activity(pg_catalog.pg_backend_pid()))`

// askOrigin also fails where there is none of the functions that are needed later:
// inside a transaction that would be too late.
const askOrigin = `SELECT ` + originExpression + ` || CASE WHEN false THEN
	pg_catalog.txid_current_if_assigned()::text || pg_catalog.txid_status(1)::text ELSE '' END`

// originTimeout bounds the wait for the answer.
const originTimeout = 10 * time.Second

func parseOrigin(answer string) origin {
	fields := strings.Fields(answer)
	if len(fields) != 3 {
		return origin{}
	}
	return origin{history: fields[0], pid: fields[1], started: fields[2]}
}

// learnOrigin asks a session where it came from, before its first transaction. An error
// means that the session is not usable.
func (c *conn) learnOrigin(ctx context.Context) error {
	if c.originAsked {
		return nil
	}
	config := c.connector.config
	if config.commitOutcome == CommitReport && (config.contention&ContentionDetector == 0 || !c.connector.memory.isHot()) {
		return nil // not yet, at least
	}
	c.originAsked, c.origin = true, origin{}
	if config.mode == ModeOff || c.connector.noOutcome.Load() {
		return nil
	}
	if !c.tap.libPQ && !c.tap.pgx && config.commitOutcome != CommitResolve {
		return nil // who knows what it leads to
	}
	began := config.now()
	asking, cancel := context.WithTimeout(ctx, originTimeout)
	defer cancel()
	var answer string
	err := c.tap.wire.during(asking, 0, func() (err error) {
		answer, err = c.ask(asking, askOrigin)
		return err
	})
	switch {
	case err == nil:
		c.connector.noteAskCost(config.now().Sub(began))
	case strings.HasPrefix(sqlState(err), "42"), strings.HasPrefix(sqlState(err), "0A"):
		c.connector.noOutcome.Store(true) // an engine, or a role, without these functions
		return nil
	case sqlState(err) != "" && Classify(err, PhaseStatement) != ClassConnectionLost:
		return nil // this time
	case ctx.Err() != nil:
		c.broken = true // an answer may still be on its way
		return ctx.Err()
	case asking.Err() != nil:
		return noAnswer(originTimeout, err)
	default:
		return reusable(err)
	}
	c.origin = parseOrigin(answer)
	c.origin.direct = c.origin.pid != "" && c.tap.backendPID() == c.origin.pid
	if c.tx.conn == c {
		c.connector.memory.detector.add(c) // it is the application's
	}
	return nil
}

// backendPID returns the process id that the server, or a pooler in its place, gave
// with the key for cancel requests; "" if the inner driver does not tell. Poolers make
// one up.
func (t *tap) backendPID() string {
	switch {
	case t.libPQ:
		if pid := reflect.ValueOf(t.Conn).Elem().FieldByName("pid"); pid.CanInt() {
			return fmt.Sprint(pid.Int())
		}
	case t.pgx:
		if conn := pgConn(t.Conn); conn.IsValid() {
			if pid := called(conn.MethodByName("PID")); pid.IsValid() && pid.CanUint() {
				return fmt.Sprint(pid.Uint())
			}
		}
	}
	return ""
}

// pgConn returns the *pgconn.PgConn in a connection of pgx's stdlib, packages that are
// not imported here; the zero Value if there is none. The methods' names are constants
// where MethodByName is called, so that the linker still drops what nobody calls.
func pgConn(inner driver.Conn) reflect.Value {
	conn := called(reflect.ValueOf(inner).MethodByName("Conn"))
	if !conn.IsValid() {
		return reflect.Value{}
	}
	return called(conn.MethodByName("PgConn"))
}

// called returns what a method without arguments returns, the zero Value if there is no
// such method or nothing to call another one on.
func called(method reflect.Value) reflect.Value {
	if !method.IsValid() || method.Type().NumIn() != 0 || method.Type().NumOut() != 1 {
		return reflect.Value{}
	}
	result := method.Call(nil)[0]
	switch result.Kind() {
	case reflect.Pointer, reflect.Interface:
		if result.IsNil() {
			return reflect.Value{}
		}
	}
	return result
}

// pgxSocket returns a peeker at the socket of a connection of pgx's stdlib, nil if
// there is none.
func pgxSocket(inner driver.Conn) *peeker {
	outer := pgConn(inner)
	if !outer.IsValid() {
		return nil
	}
	found := called(outer.MethodByName("Conn"))
	if !found.IsValid() || !found.CanInterface() {
		return nil
	}
	conn, ok := found.Interface().(net.Conn)
	if !ok {
		return nil
	}
	if secured, ok := conn.(*tls.Conn); ok {
		conn = secured.NetConn()
	}
	return newPeeker(conn)
}

const (
	maxOrphans    = 64
	orphanTimeout = time.Second
	orphanPause   = 2 * time.Millisecond
	clockTries    = 5
	clockGood     = 2 * time.Millisecond
	clockUseless  = 100 * time.Millisecond
)

// orphaned remembers the process of a transaction that was lost before COMMIT was sent.
func (c *Connector) orphaned(o orphan) {
	if !o.direct {
		return // somebody else works there by now
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.orphans) < maxOrphans {
		c.orphans = append(c.orphans, o)
		c.orphanCount.Store(int64(len(c.orphans)))
	}
}

// endOrphans ends the processes of lost sessions, within a bound, before a transaction
// begins. It is help, no condition: the server's refusal leaves them to themselves. An
// error means that the session is not usable.
func (c *conn) endOrphans(ctx context.Context) (lost error) {
	connector := c.connector
	if connector.orphanCount.Load() == 0 {
		return nil
	}
	connector.mu.Lock()
	orphans := connector.orphans
	connector.orphans = nil
	connector.orphanCount.Store(0)
	connector.mu.Unlock()

	ctx, cancel := context.WithTimeout(ctx, orphanTimeout)
	defer cancel()
	deadline := connector.config.now().Add(orphanTimeout)
	_ = c.tap.wire.during(ctx, 0, func() error {
		clock, at, err := c.serverClock(ctx)
		if err == nil && clock == "" {
			return nil
		}
		those, left := those(orphans, clock, at), ""
		if err == nil {
			left, err = c.ask(ctx, "SELECT pg_catalog.count(pg_catalog.pg_terminate_backend(pid))::text "+those)
		}
		for err == nil && left != "0" && connector.config.now().Before(deadline) {
			if connector.config.wait(ctx, orphanPause) != nil {
				return nil //nolint:nilerr // time is up, the session is well
			}
			left, err = c.ask(ctx, "SELECT pg_catalog.count(*)::text "+those)
		}
		if err != nil && (sqlState(err) == "" || Classify(err, PhaseStatement) == ClassConnectionLost) {
			if lost = reusable(err); ctx.Err() != nil {
				lost = noAnswer(orphanTimeout, err)
			}
		}
		return nil
	})
	return lost
}

// serverClock returns the server's clock, in seconds since 1970, and the time here just
// before it was read; "" if that cannot be had with any precision.
func (c *conn) serverClock(ctx context.Context) (clock string, at time.Time, err error) {
	now := c.connector.config.now
	best := time.Duration(-1)
	for range clockTries {
		before := now()
		answer, err := c.ask(ctx, "SELECT extract(epoch FROM pg_catalog.clock_timestamp())::text")
		if err != nil {
			return "", at, err
		}
		if took := now().Sub(before); best < 0 || took < best {
			clock, at, best = answer, before, took
		}
		if best <= clockGood {
			break
		}
	}
	if best > clockUseless {
		return "", at, nil
	}
	return clock, at, nil
}

// those selects the processes. A pooler that passes the server's own keys on may have
// given one to somebody else by now, so it has to be in a transaction that began after we
// asked for ours, and before the last answer that we had in it was here, or no later
// than it took to read the clock: while the process was ours. clock is the server's, in
// seconds since 1970, read just after now.
func those(orphans []orphan, clock string, now time.Time) string {
	where := make([]string, 0, len(orphans))
	for _, o := range orphans {
		where = append(where, fmt.Sprintf("pid = %s AND extract(epoch FROM backend_start)::text = '%s'"+
			" AND extract(epoch FROM xact_start)::numeric BETWEEN '%s'::numeric - %f AND '%s'::numeric - %f",
			o.pid, o.started, clock, (now.Sub(o.asked)+orphanTimeout).Seconds(), clock, now.Sub(o.answered).Seconds()))
	}
	return "FROM pg_catalog.pg_stat_get_activity(NULL) WHERE (" + strings.Join(where, ") OR (") + ")"
}
