package pgretry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pgretry/pgretry/internal/gate"
)

const (
	// leaseQuantum is how long a process keeps its turn while others want theirs.
	leaseQuantum = 20 * time.Millisecond
	// leaseWait bounds the wait for a turn, and for the transactions of the last one to end.
	// Then the process goes on without: a lease is a hint.
	leaseWait = time.Second
	// leaseIdle is how long a turn is kept with nothing to do in it.
	leaseIdle = time.Second
	// leaseClass is the first key of the advisory locks, "pgrt" as a number.
	leaseClass = 0x70677274
)

// leases are the turns that processes take with transactions of kinds that deadlock. The
// turn is an advisory lock, held by the session of a connection that does nothing else, so
// that it is let go of when the process dies, and that transactions pay nothing for it.
type leases struct {
	connector *Connector

	mu     sync.Mutex
	held   map[*gate.Gate]*lease
	closed bool
	ctx    context.Context // ends when the connector is closed
	end    context.CancelFunc
	ended  sync.WaitGroup
	blind  time.Time // nobody tries before, after a failure
	failed time.Duration
}

// worked notes that there was a turn.
func (l *leases) worked() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failed = 0
}

// lease is the turns of one gate.
type lease struct {
	all  *leases
	gate *gate.Gate
	side *conn
}

// advisoryLock is the lock by which processes take turns with transactions of one kind. It
// has the same keys in every process.
type advisoryLock struct{ class, object int32 }

// locksOf returns the locks of the kinds that share a gate, in an order that is the same in
// every process. Two processes may have met different kinds of those that deadlock with
// each other: one lock that both have is enough to keep them apart.
func locksOf(kinds []kindKey) []advisoryLock {
	locks := make([]advisoryLock, 0, len(kinds))
	for _, key := range kinds {
		hash := fnv.New32a()
		_, _ = hash.Write([]byte(key.name + "\x00" + key.fingerprint))       // never fails
		locks = append(locks, advisoryLock{leaseClass, int32(hash.Sum32())}) //nolint:gosec // any number will do
	}
	slices.SortFunc(locks, func(a, b advisoryLock) int { return cmp.Compare(a.object, b.object) })
	return slices.Compact(locks)
}

// table returns the locks as a table of a query, in their order.
func table(locks []advisoryLock) string {
	values := make([]string, len(locks))
	for i, lock := range locks {
		values[i] = fmt.Sprintf("(%d, %d)", lock.class, lock.object)
	}
	return "(VALUES " + strings.Join(values, ", ") + ") AS locks (class, object)"
}

// want takes turns from now on, as long as the gate has a limit and there is somebody at
// it.
func (l *leases) want(g *gate.Gate) {
	if l.connector.config.contention&ContentionShared == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || l.held[g] != nil || l.connector.config.now().Before(l.blind) {
		return
	}
	if l.held == nil {
		l.held = make(map[*gate.Gate]*lease)
		l.ctx, l.end = context.WithCancel(context.Background())
	}
	one := &lease{all: l, gate: g}
	l.held[g] = one
	l.ended.Add(1)
	go one.run(l.ctx)
}

// close ends all turns.
func (l *leases) close() {
	l.mu.Lock()
	l.closed = true
	if l.end != nil {
		l.end()
	}
	l.mu.Unlock()
	l.ended.Wait()
}

// run takes turns until there is no more need.
func (l *lease) run(ctx context.Context) {
	defer l.all.ended.Done()
	err := l.takeTurns(ctx)
	if l.side != nil {
		_ = l.side.session.Close() // lets go of the lock
	}
	l.all.mu.Lock()
	delete(l.all.held, l.gate)
	if err != nil {
		l.all.failed = min(max(2*l.all.failed, blindAtFirst), blindAtMost)
		l.all.blind = l.all.connector.config.now().Add(l.all.failed)
	}
	l.all.mu.Unlock()
	l.gate.Resume()
}

var errNotDirect = errors.New("pgretry: the server is not reached directly")

func (l *lease) takeTurns(ctx context.Context) error {
	s, t, err := l.all.connector.connectWithin(ctx, leaseWait)
	if err != nil {
		return err
	}
	l.side = &conn{session: s, tap: t, connector: l.all.connector}
	pid, err := l.side.ask(ctx, "SELECT pg_catalog.pg_backend_pid()::text")
	if err != nil {
		return err
	}
	if pid == "" || pid != t.backendPID() {
		return errNotDirect // it would be an advisory lock of somebody else's session
	}
	// One by one: pgx sends what is asked as one statement.
	for _, text := range []string{"SET statement_timeout = 0", fmt.Sprintf("SET lock_timeout = %d", leaseWait.Milliseconds())} {
		if err := l.do(ctx, text); err != nil {
			return err
		}
	}
	for ctx.Err() == nil {
		locks := locksOf(l.all.connector.memory.keysOf(l.gate))
		if len(locks) == 0 {
			return nil // its kinds are forgotten
		}
		l.gate.Pause()
		l.drain(ctx)
		err := l.do(ctx, "SELECT pg_catalog.pg_advisory_lock(class, object) FROM "+table(locks))
		l.gate.Resume()
		if err != nil {
			return err // who has the turn has it for too long: for a while it goes without
		}
		l.all.worked()
		wanted, err := l.turn(ctx, locks)
		if err != nil || !wanted {
			return err
		}
		l.gate.Pause()
		l.drain(ctx)
		if err := l.do(ctx, "SELECT pg_catalog.pg_advisory_unlock_all()"); err != nil {
			return err
		}
		// Whoever has nothing to do would only take time from those who have.
		if !l.isNeeded(ctx) {
			return nil
		}
	}
	return nil
}

// isNeeded waits until somebody comes to the gate, which is paused, and says whether it
// has a limit. It is false if nobody comes for long.
func (l *lease) isNeeded(ctx context.Context) bool {
	timer := time.NewTimer(leaseIdle)
	defer timer.Stop()
	select {
	case <-l.gate.Wanted():
		return l.gate.Limit() > 0
	case <-timer.C:
	case <-ctx.Done():
	}
	return false
}

// turn lasts until another process wants one, or nobody here does any more.
func (l *lease) turn(ctx context.Context, locks []advisoryLock) (wanted bool, err error) {
	for idle := time.Duration(0); idle < leaseIdle; {
		if l.all.connector.config.wait(ctx, leaseQuantum) != nil {
			return false, nil //nolint:nilerr // closed
		}
		if idle += leaseQuantum; l.gate.Limit() > 0 && l.gate.Waiting()+l.gate.Inside() > 0 {
			idle = 0
		}
		var others string
		asking, cancel := context.WithTimeout(ctx, 2*leaseWait)
		err := l.side.tap.wire.during(asking, 0, func() (err error) {
			others, err = l.side.ask(ctx, `SELECT 'yes' FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND NOT granted
				AND (classid, objid) IN (SELECT class::pg_catalog.oid, object::pg_catalog.oid FROM `+table(locks)+`)
				AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()) LIMIT 1`)
			return err
		})
		cancel()
		if err != nil {
			return false, err
		}
		if others != "" {
			return true, nil
		}
	}
	return false, nil
}

// drain waits until the transactions of this turn have ended.
func (l *lease) drain(ctx context.Context) {
	timer := time.NewTimer(leaseWait)
	defer timer.Stop()
	select {
	case <-l.gate.Drained():
	case <-timer.C:
	case <-ctx.Done():
	}
}

// do executes a statement. The wait for the lock is the server's to end, but not if the
// network swallows it.
func (l *lease) do(ctx context.Context, text string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*leaseWait)
	defer cancel()
	return l.side.tap.wire.during(ctx, 0, func() error {
		_, err := l.side.ask(ctx, text)
		return err
	})
}
