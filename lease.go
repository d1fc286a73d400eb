package pgretry

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
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
	lock string // its keys
	side *conn
}

// want takes turns from now on, as long as the gate has a limit and there is somebody at
// it.
func (l *leases) want(k *kind, g *gate.Gate) {
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
	one := l.newLease(k.key, g)
	l.held[g] = one
	l.ended.Add(1)
	go one.run(l.ctx)
}

// newLease returns the lease of a kind. Its lock has the same keys in every process.
func (l *leases) newLease(key kindKey, g *gate.Gate) *lease {
	hash := fnv.New32a()
	_, _ = hash.Write([]byte(key.name + "\x00" + key.fingerprint))                               // never fails
	return &lease{all: l, gate: g, lock: fmt.Sprintf("%d, %d", leaseClass, int32(hash.Sum32()))} //nolint:gosec // any number will do
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
	if err := l.do(ctx, fmt.Sprintf("SET statement_timeout = 0; SET lock_timeout = %d", leaseWait.Milliseconds())); err != nil {
		return err
	}
	for ctx.Err() == nil {
		l.gate.Pause()
		l.drain(ctx)
		err := l.do(ctx, "SELECT pg_catalog.pg_advisory_lock("+l.lock+")")
		l.gate.Resume()
		if err != nil {
			return err // who has the turn has it for too long: for a while it goes without
		}
		l.all.worked()
		needed, err := l.turn(ctx)
		if err != nil || !needed {
			return err
		}
		l.gate.Pause()
		l.drain(ctx)
		if err := l.do(ctx, "SELECT pg_catalog.pg_advisory_unlock("+l.lock+")"); err != nil {
			return err
		}
	}
	return nil
}

// turn lasts until somebody else wants one, or nobody here does any more.
func (l *lease) turn(ctx context.Context) (needed bool, err error) {
	wait := l.all.connector.config.wait
	for idle := time.Duration(0); idle < leaseIdle; {
		if wait(ctx, leaseQuantum) != nil {
			return false, nil //nolint:nilerr // closed
		}
		if l.gate.Limit() == 0 || l.gate.Waiting()+l.gate.Inside() == 0 {
			idle += leaseQuantum
		} else {
			idle = 0
		}
		var others string
		asking, cancel := context.WithTimeout(ctx, 2*leaseWait)
		err := l.side.tap.wire.during(asking, 0, func() (err error) {
			others, err = l.side.ask(ctx, `SELECT 'yes' FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND NOT granted
				AND (classid::bigint, objid::bigint) = (`+l.unsigned()+`)
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

// unsigned returns the keys of the lock as pg_locks shows them.
func (l *lease) unsigned() string {
	var class, object int32
	_, _ = fmt.Sscanf(l.lock, "%d, %d", &class, &object)        // it was made so
	return fmt.Sprintf("%d, %d", uint32(class), uint32(object)) //nolint:gosec // the same bits
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
