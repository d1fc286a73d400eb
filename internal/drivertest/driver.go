package drivertest

import (
	"context"
	"database/sql/driver"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
)

// Driver is a scripted driver together with what it has recorded. It is a
// driver.Driver; [Driver.Connector] and [Driver.Driver] return values with the
// optional interfaces that its features say. It is safe for concurrent use.
type Driver struct {
	features       Features
	quiet          bool // neither log nor fresh objects per call
	txState        bool
	commitErr      error
	oneCursor      bool
	sharedBuffers  bool
	unknownInputs  bool
	checkValue     func(*driver.NamedValue) error
	lastConn       atomic.Int64
	lastStmt       atomic.Int64
	lastRows       atomic.Int64
	openConns      atomic.Int64
	openStmts      atomic.Int64
	openRows       atomic.Int64
	openTxs        atomic.Int64
	hasRules       atomic.Bool
	mu             sync.Mutex // guards what follows
	rules          []*Rule
	log            []*Entry
	violations     []string
	connectorsOpen int
}

// Option configures a [Driver].
type Option func(*Driver)

// New returns a driver with the features [Modern], a log, and no rules. It panics
// if no connection type was generated for the features, see [FeatureSets].
func New(options ...Option) *Driver {
	d := &Driver{features: Modern, checkValue: CheckValue}
	for _, option := range options {
		option(d)
	}
	if connVariant(nil, d.features&ConnFeatures) == nil {
		panic(fmt.Errorf("%w: %v", errNoMoreFeatures, d.features&ConnFeatures))
	}
	return d
}

// WithFeatures sets the optional interfaces, all of them. The default is [Modern].
func WithFeatures(features Features) Option {
	return func(d *Driver) { d.features = features }
}

// WithoutLog switches the log off and makes the driver reuse its transactions and
// rows, so that begin, exec, query and commit allocate nothing as long as there
// are no rules. Contract checks that need to tell old from new objects see less.
func WithoutLog() Option { return func(d *Driver) { d.quiet = true } }

// WithTransactionState makes connections behave like a PostgreSQL session with
// regard to transaction blocks: an error with a SQLState method aborts the open
// block, after which statements fail with SQLSTATE 25P02 until ROLLBACK or
// ROLLBACK TO SAVEPOINT. BEGIN, COMMIT, SAVEPOINT and the like have effect as
// statements too. As with lib/pq a Tx.Commit of an aborted block rolls back and
// returns commitErr, or [ErrCommitOfAborted] if that is nil.
func WithTransactionState(commitErr error) Option {
	if commitErr == nil {
		commitErr = ErrCommitOfAborted
	}
	return func(d *Driver) { d.txState, d.commitErr = true, commitErr }
}

// WithOneCursor makes a statement on a connection whose rows are still open a
// violation and an error, as lib/pq allows one open cursor only.
func WithOneCursor() Option { return func(d *Driver) { d.oneCursor = true } }

// WithSharedBuffers makes []byte values point into a buffer that is overwritten by
// the next call on the rows, as the buffers of real drivers are.
func WithSharedBuffers() Option { return func(d *Driver) { d.sharedBuffers = true } }

// WithUnknownInputs makes NumInput of statements return -1. The default is the
// highest number of a placeholder $n in the text.
func WithUnknownInputs() Option { return func(d *Driver) { d.unknownInputs = true } }

// WithValueChecker sets what CheckNamedValue of connections and statements does.
// The default is [CheckValue].
func WithValueChecker(check func(*driver.NamedValue) error) Option {
	return func(d *Driver) { d.checkValue = check }
}

// Features returns the optional interfaces that are switched on.
func (d *Driver) Features() Features { return d.features }

// Driver returns the value to register with database/sql. It has OpenConnector if
// [DriverContext] is among the features.
func (d *Driver) Driver() driver.Driver {
	if d.features.Has(DriverContext) {
		return contextDriver{plainDriver{d}}
	}
	return plainDriver{d}
}

// Connector returns a connector. It has Close if [ConnectorCloser] is among the
// features.
func (d *Driver) Connector() driver.Connector {
	c := connector{d}
	if d.features.Has(ConnectorCloser) {
		d.mu.Lock()
		d.connectorsOpen++
		d.mu.Unlock()
		return closingConnector{c}
	}
	return c
}

// Open connects. The name is logged and otherwise ignored.
func (d *Driver) Open(name string) (driver.Conn, error) {
	return d.connect(Invocation{Context: context.Background(), Call: Open, Method: "Open", Query: name})
}

func (d *Driver) connect(inv Invocation) (driver.Conn, error) {
	done := d.record(inv)
	out := d.scripted(inv)
	if out.err == nil {
		out.err = inv.Context.Err()
	}
	done(out.err)
	if out.err != nil {
		return nil, out.err
	}
	c := &conn{d: d, id: int(d.lastConn.Add(1))}
	d.openConns.Add(1)
	return connVariant(c, d.features&ConnFeatures), nil
}

type plainDriver struct{ d *Driver }

func (p plainDriver) Open(name string) (driver.Conn, error) { return p.d.Open(name) }

type contextDriver struct{ plainDriver }

func (c contextDriver) OpenConnector(name string) (driver.Connector, error) {
	inv := Invocation{Call: OpenConnector, Method: "OpenConnector", Query: name}
	done := c.d.record(inv)
	out := c.d.scripted(inv)
	done(out.err)
	if out.err != nil {
		return nil, out.err
	}
	return c.d.Connector(), nil
}

type connector struct{ d *Driver }

func (c connector) Connect(ctx context.Context) (driver.Conn, error) {
	return c.d.connect(Invocation{Context: ctx, Call: Connect, Method: "Connect"})
}

func (c connector) Driver() driver.Driver { return c.d.Driver() }

type closingConnector struct{ connector }

var _ io.Closer = closingConnector{}

func (c closingConnector) Close() error {
	inv := Invocation{Call: CloseConnector, Method: "Connector.Close"}
	done := c.d.record(inv)
	out := c.d.scripted(inv)
	c.d.mu.Lock()
	c.d.connectorsOpen--
	c.d.mu.Unlock()
	done(out.err)
	return out.err
}

// record logs a call and returns the function that completes the entry.
func (d *Driver) record(inv Invocation) func(error) {
	if d.quiet {
		return func(error) {}
	}
	e := newEntry(inv)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.log = append(d.log, e)
	return func(err error) {
		d.mu.Lock()
		defer d.mu.Unlock()
		e.Done, e.Err = true, err
	}
}

// scripted applies the rules that match.
func (d *Driver) scripted(inv Invocation) effect {
	if !d.hasRules.Load() {
		return effect{}
	}
	answer, disturbance := d.match(&inv)
	var out effect
	if answer != nil {
		out = answer.apply(&inv)
	}
	if disturbance != nil {
		disturbed := disturbance.apply(&inv)
		if disturbed.result == nil {
			disturbed.result = out.result
		}
		if disturbed.sets == nil {
			disturbed.sets = out.sets
		}
		return disturbed
	}
	return out
}

// match returns the first rule that only gives an answer and the first that does
// anything else, so that an error can be added to answers set up before.
func (d *Driver) match(inv *Invocation) (answer, disturbance *Rule) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, r := range d.rules {
		slot := &disturbance
		if r.answersLocked() {
			slot = &answer
		}
		if *slot == nil && r.takeLocked(inv) {
			*slot = r
		}
	}
	return answer, disturbance
}

func (d *Driver) violate(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.violations = append(d.violations, fmt.Sprintf(format, args...))
}

// Entries returns a copy of the log, oldest call first. It is empty with
// [WithoutLog].
func (d *Driver) Entries() []Entry {
	d.mu.Lock()
	defer d.mu.Unlock()
	entries := make([]Entry, len(d.log))
	for i, e := range d.log {
		entries[i] = *e
	}
	return entries
}

// Log returns the log one line a call, oldest first. With kinds given it returns
// the calls of these kinds only.
func (d *Driver) Log(calls ...Call) []string {
	wanted := AnyCall
	if len(calls) > 0 {
		wanted = 0
		for _, c := range calls {
			wanted |= c
		}
	}
	var lines []string
	for _, e := range d.Entries() {
		if e.Call&wanted != 0 {
			lines = append(lines, e.String())
		}
	}
	return lines
}

// ClearLog empties the log. Calls that have not returned yet are forgotten too.
func (d *Driver) ClearLog() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.log = nil
}

// Violations returns what callers did that the driver contract does not allow, in
// the order it happened; empty if all was well.
func (d *Driver) Violations() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.violations)
}

// OpenConns returns the number of connections not closed yet.
func (d *Driver) OpenConns() int { return int(d.openConns.Load()) }

// OpenStmts returns the number of prepared statements that are neither closed nor
// gone with their connection.
func (d *Driver) OpenStmts() int { return int(d.openStmts.Load()) }

// OpenRows returns the number of rows that are neither closed nor gone with their
// connection.
func (d *Driver) OpenRows() int { return int(d.openRows.Load()) }

// OpenTxs returns the number of transactions that neither ended nor went with
// their connection.
func (d *Driver) OpenTxs() int { return int(d.openTxs.Load()) }

// OpenConnectors returns the number of connectors not closed yet. Connectors
// without Close are not counted.
func (d *Driver) OpenConnectors() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.connectorsOpen
}
