package pgretry

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pgretry/pgretry/internal/lockgraph"
)

const (
	// patientFor is how long a statement waits before anybody looks for a deadlock. Each
	// further look at the same statement comes after twice the time.
	patientFor = 20 * time.Millisecond
	// glancePause is the time between two glances at what is under way, which cost nothing.
	glancePause = 5 * time.Millisecond
	// lookTimeout bounds a look at the server's locks.
	lookTimeout = 2 * time.Second
	// idleGlances is after how many glances at nothing the detector goes to sleep.
	idleGlances = 100
	// sideIdle is how long the side connection is kept after that.
	sideIdle = 10 * time.Second
	// After a failure nobody looks for a while, longer each time.
	blindAtFirst = time.Second
	blindAtMost  = time.Minute
)

// detector looks for deadlocks, once there have been some, over a connection of its own,
// long before the server does after its deadlock_timeout. It ends one by a cancel request
// for one of our own transactions that can be replayed or run again. Only circles of locks
// that are held count; those do not resolve themselves.
type detector struct {
	connector *Connector
	awake     atomic.Bool
	blind     atomic.Int64 // nobody looks before, in nanoseconds since 1970

	mu       sync.Mutex
	sessions map[*conn]*process
	claims   map[*conn]*claim
	closed   chan struct{}
	isClosed bool
	timer    *time.Timer // closes side

	// Of the goroutine that looks; while there is none, of whoever holds mu.
	side   *conn
	failed time.Duration // the last pause after a failure
}

// process is a session of ours as the server knows it.
type process struct {
	pid              int
	started, history string
}

// claim is a statement that the detector has chosen to end a deadlock by.
type claim struct {
	detail string        // of the deadlock
	sent   chan struct{} // closed when nothing about it is under way to the server any more
}

// What a connection shows the detector: the number of its statement and these.
const (
	flying     = 1 << iota // it is being executed
	candidate              // it may wait for locks, and its transaction can be replayed or run again
	claimed                // the detector has chosen it
	flightBits = iota
)

// sees says whether the detector can look for deadlocks of a session.
func (d *detector) sees(c *conn) bool {
	if d.connector.config.now().UnixNano() < d.blind.Load() {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.sessions[c] != nil
}

// add makes a session known whose origin is.
func (d *detector) add(c *conn) {
	pid, err := strconv.Atoi(c.origin.pid)
	if d.connector.config.contention&ContentionDetector == 0 || err != nil || !c.origin.direct || c.origin.history == "" {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.isClosed {
		return
	}
	if d.sessions == nil {
		d.sessions, d.claims, d.closed = make(map[*conn]*process), make(map[*conn]*claim), make(chan struct{})
	}
	d.sessions[c] = &process{pid: pid, started: c.origin.started, history: c.origin.history}
}

// remove forgets a session.
func (d *detector) remove(c *conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.sessions, c)
}

// ours returns our own sessions among those of a deadlock, but for one.
func (d *detector) ours(deadlock *Deadlock, but *conn) (found []*conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for c, p := range d.sessions {
		if c != but && slices.ContainsFunc(deadlock.Edges, func(e DeadlockEdge) bool { return e.PID == p.pid }) {
			found = append(found, c)
		}
	}
	return found
}

// wake begins to look. It is called when a deadlock was seen, and for each statement that
// may wait while those are remembered.
func (d *detector) wake() {
	if d.awake.Load() || d.connector.config.contention&ContentionDetector == 0 {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.isClosed || len(d.sessions) == 0 || !d.awake.CompareAndSwap(false, true) {
		return
	}
	if d.timer != nil {
		d.timer.Stop()
	}
	go d.run()
}

// landed returns the deadlock that a statement was chosen to end. It waits for the cancel
// request to arrive: what is sent next must not be hit by it.
func (d *detector) landed(c *conn) (detail string) {
	d.mu.Lock()
	chosen := d.claims[c]
	d.mu.Unlock()
	if chosen == nil {
		return ""
	}
	<-chosen.sent
	d.mu.Lock()
	delete(d.claims, c)
	d.mu.Unlock()
	return chosen.detail
}

// sight is a statement that was seen at a glance.
type sight struct {
	flight uint64
	due    time.Time // of the next look
	pause  time.Duration
}

// run looks until nothing has been under way for a while.
func (d *detector) run() {
	sights := make(map[*conn]sight)
	ticker := time.NewTicker(glancePause)
	defer ticker.Stop()
	for idle := 0; idle < idleGlances || !d.sleeps(); {
		select {
		case <-d.closed:
			idle = idleGlances
			continue
		case <-ticker.C:
		}
		under, due := d.glance(sights)
		if under == 0 {
			idle++
			continue
		}
		idle = 0
		if due {
			d.look(sights)
		}
	}
}

// sleeps goes to sleep, unless a statement has come under way since the last glance.
func (d *detector) sleeps() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.awake.Store(false)
	if d.isClosed {
		d.hangUp()
		return true
	}
	for c := range d.sessions {
		if c.airborne.Load()&(flying|candidate) == flying|candidate {
			d.awake.Store(true)
			return false
		}
	}
	d.timer = time.AfterFunc(sideIdle, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if !d.awake.Load() {
			d.hangUp()
		}
	})
	return true
}

// glance says how many statements are under way that may wait for locks, and whether it is
// time to look whether one waits in vain.
func (d *detector) glance(sights map[*conn]sight) (under int, due bool) {
	now := d.connector.config.now()
	blind := now.UnixNano() < d.blind.Load()
	d.mu.Lock()
	defer d.mu.Unlock()
	for c := range sights {
		if d.sessions[c] == nil {
			delete(sights, c)
		}
	}
	for c := range d.sessions {
		flight := c.airborne.Load()
		if flight&(flying|candidate) != flying|candidate {
			delete(sights, c)
			continue
		}
		under++
		s := sights[c]
		switch {
		case s.flight != flight:
			s = sight{flight: flight, due: now.Add(patientFor), pause: patientFor}
		case !blind && !s.due.After(now):
			due = true
			s.pause *= 2
			s.due = now.Add(s.pause)
		}
		sights[c] = s
	}
	return under, due
}

// close ends everything; the connector is closed.
func (d *detector) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.isClosed {
		return
	}
	d.isClosed = true
	if d.closed != nil {
		close(d.closed)
	}
	if d.timer != nil {
		d.timer.Stop()
	}
	if !d.awake.Load() {
		d.hangUp()
	}
}

func (d *detector) hangUp() {
	if d.side != nil {
		_ = d.side.session.Close() // it has nothing to say
		d.side = nil
	}
}

// look finds the deadlocks of this moment and ends them.
func (d *detector) look(sights map[*conn]sight) {
	ctx, cancel := context.WithTimeout(context.Background(), lookTimeout)
	defer cancel()
	kept := d.side != nil
	err := d.find(ctx, sights)
	if err != nil && kept {
		d.hangUp() // the connection may have died since the last look
		err = d.find(ctx, sights)
	}
	if err == nil {
		d.failed = 0
		return
	}
	d.hangUp()
	d.failed = min(max(2*d.failed, blindAtFirst), blindAtMost)
	d.blind.Store(d.connector.config.now().Add(d.failed).UnixNano())
}

// find looks twice: a deadlock is what both looks show.
func (d *detector) find(ctx context.Context, sights map[*conn]sight) error {
	if d.side == nil {
		side, err := d.connect(ctx)
		if err != nil {
			return err
		}
		d.side = side
	}
	waiting, others := d.waiting(sights)
	switch {
	case len(waiting) == 0 && others:
		return errOtherServer
	case len(waiting) == 0:
		return nil
	}
	first, err := d.circles(ctx, waiting)
	if err != nil || len(first) == 0 {
		return err
	}
	second, err := d.circles(ctx, waiting)
	if err != nil {
		return err
	}
	for _, circle := range second {
		if !slices.ContainsFunc(first, func(other lockgraph.Cycle) bool { return isSame(circle, other) }) {
			continue
		}
		if err := d.resolve(ctx, circle, sights); err != nil {
			return err
		}
		for c, s := range sights {
			s.due = time.Time{} // there may be more, now that this one is gone
			sights[c] = s
		}
	}
	return nil
}

// isSame says whether two looks show the same deadlock.
func isSame(a, b lockgraph.Cycle) bool {
	return a.Detail() == b.From(a[0].Waiter.PID).Detail()
}

// isIn says whether a session is one of those that wait for each other.
func isIn(circle lockgraph.Cycle, p *process) bool {
	return slices.ContainsFunc(circle, func(e lockgraph.Edge) bool {
		return e.Waiter.PID == p.pid && e.Waiter.Started == p.started
	})
}

// connect opens the side connection.
func (d *detector) connect(ctx context.Context) (*conn, error) {
	s, t, err := d.connector.connectWithin(ctx, lookTimeout)
	if err != nil {
		return nil, err
	}
	side := &conn{session: s, tap: t, connector: d.connector}
	if err := side.learnOrigin(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if side.origin.history == "" {
		return nil, errors.Join(errors.New("pgretry: the server does not tell who it is"), s.Close())
	}
	return side, nil
}

// waiting returns the process ids of the sessions that were seen, of the server that the
// side connection leads to, and whether there are those of others.
func (d *detector) waiting(sights map[*conn]sight) (pids []int, others bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for c := range sights {
		switch p := d.sessions[c]; {
		case p == nil:
		case p.history == d.side.origin.history:
			pids = append(pids, p.pid)
		default:
			others = true
		}
	}
	return pids, others
}

// errOtherServer says that the side connection leads to another server than those whose
// sessions are to be looked at, or to another life of it: there has been a failover, perhaps.
var errOtherServer = errors.New("pgretry: none of the sessions is one of the server that is looked at")

// circles reads the server's locks and returns deadlocks that sessions of ours are in, and
// that have none of them in common.
func (d *detector) circles(ctx context.Context, ours []int) (found []lockgraph.Cycle, err error) {
	var rows []lockgraph.Row
	err = d.side.tap.wire.during(ctx, 0, func() error {
		return d.side.askAll(ctx, lockgraph.Query, func(values []string) error {
			row, err := lockgraph.ParseRow(values)
			rows = append(rows, row)
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	graph, err := lockgraph.Build(rows)
	if err != nil {
		return nil, err
	}
	taken := make(map[int]bool)
	for _, pid := range ours {
		if taken[pid] {
			continue
		}
		circle := graph.Through(pid)
		if slices.ContainsFunc(circle, func(e lockgraph.Edge) bool { return taken[e.Waiter.PID] }) {
			continue
		}
		for _, edge := range circle {
			taken[edge.Waiter.PID] = true
		}
		if circle != nil {
			found = append(found, circle)
		}
	}
	return found, nil
}

// resolve ends a deadlock by cancelling the youngest of our transactions in it that can be
// replayed or run again. If there is none, it is the server's.
func (d *detector) resolve(ctx context.Context, circle lockgraph.Cycle, sights map[*conn]sight) error {
	victim, process, chosen := d.choose(circle, sights)
	if victim == nil {
		return nil
	}
	defer close(chosen.sent)
	err := d.side.tap.wire.during(ctx, 0, func() error {
		_, err := d.side.ask(ctx, fmt.Sprintf("SELECT pg_catalog.pg_cancel_backend(pid)::text FROM pg_catalog.pg_stat_get_activity(%d)"+
			" WHERE extract(epoch FROM backend_start)::text = '%s'", process.pid, process.started))
		return err
	})
	if err != nil {
		victim.tainted.Store(true) // it may still be cancelled, who knows when
	}
	return err
}

// choose claims the victim of a deadlock, if its statement is still the one that was seen
// before the looks.
func (d *detector) choose(circle lockgraph.Cycle, sights map[*conn]sight) (victim *conn, is *process, chosen *claim) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for c, p := range d.sessions {
		if _, seen := sights[c]; seen && p.history == d.side.origin.history && isIn(circle, p) &&
			(victim == nil || c.since.Load() > victim.since.Load()) {
			victim, is = c, p
		}
	}
	if victim == nil || d.claims[victim] != nil {
		return nil, nil, nil
	}
	chosen = &claim{detail: circle.From(is.pid).Detail(), sent: make(chan struct{})}
	d.claims[victim] = chosen
	if seen := sights[victim].flight; !victim.airborne.CompareAndSwap(seen, seen|claimed) {
		delete(d.claims, victim)
		return nil, nil, nil
	}
	return victim, is, chosen
}

// askAll executes a query of the driver's own and calls take with each row, as text.
func (c *conn) askAll(ctx context.Context, text string, take func([]string) error) (err error) {
	defer c.tap.asks()()
	rows, err := c.session.QueryContext(ctx, text, nil)
	if err != nil {
		return err
	}
	c.tap.takeRows(rows)
	defer func() { err = either(err, rows.Close()) }()
	values := make([]driver.Value, len(rows.Columns()))
	texts := make([]string, len(values))
	for {
		switch err := rows.Next(values); {
		case err == io.EOF: //nolint:errorlint // drivers must return it bare
			return nil
		case err != nil:
			return err
		}
		for i, value := range values {
			switch value := value.(type) {
			case string:
				texts[i] = value
			case []byte:
				texts[i] = string(value)
			default:
				return fmt.Errorf("pgretry: a %T where there should be text", value)
			}
		}
		if err := take(slices.Clone(texts)); err != nil {
			return err
		}
	}
}

// asDeadlock makes of the error of a statement that was cancelled to end a deadlock what
// the server would have said of it.
func asDeadlock(err error, detail string) error {
	if sqlState(err) != "57014" {
		return err
	}
	v := reflect.ValueOf(err)
	if v.Kind() != reflect.Pointer || v.IsNil() || v.Elem().Kind() != reflect.Struct {
		return &earlyDeadlockError{Message: deadlockMessage, Detail: detail, cause: err}
	}
	copied := reflect.New(v.Elem().Type())
	copied.Elem().Set(v.Elem())
	for name, value := range map[string]string{"Code": deadlockDetected, "Message": deadlockMessage, "Detail": detail} {
		field := copied.Elem().FieldByName(name)
		if field.Kind() != reflect.String || !field.CanSet() {
			return &earlyDeadlockError{Message: deadlockMessage, Detail: detail, cause: err}
		}
		field.SetString(value)
	}
	made, ok := copied.Interface().(error)
	if !ok || sqlState(made) != deadlockDetected {
		return &earlyDeadlockError{Message: deadlockMessage, Detail: detail, cause: err}
	}
	return made
}

// deadlockMessage is the server's, in English.
const deadlockMessage = "deadlock detected"

// earlyDeadlockError stands for the server's error where that is of a type that cannot be
// made. It does not lead to the error of the statement that was cancelled, whose SQLSTATE is
// another.
type earlyDeadlockError struct {
	Message string
	Detail  string
	cause   error
}

func (e *earlyDeadlockError) Error() string { return e.Message + ": " + e.Detail }

// SQLState returns 40P01.
func (e *earlyDeadlockError) SQLState() string { return deadlockDetected }
