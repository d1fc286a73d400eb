package pgretry

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"time"

	"go.opentelemetry.io/otel/trace"
)

// TxBeginner is what [RunInTx] begins transactions on: *sql.DB, *sql.Conn, or a
// type around one of them, such as *sqlx.DB.
type TxBeginner interface {
	BeginTx(ctx context.Context, opts *sql.TxOptions) (*sql.Tx, error)
}

// closingTime bounds the wait for a transaction that the closure left to a
// context's end to roll back.
const closingTime = 5 * time.Second

// RunInTx runs fn in a transaction and commits it, as often as it takes: if the
// server ends an attempt with a deadlock or a serialization failure, in a
// statement or in COMMIT, the attempt is rolled back, its connection goes back to
// the pool, and after a wait with full jitter fn runs again in a new transaction.
//
// fn must therefore do all its database work through its tx or at least under
// its ctx, must leave no goroutine behind that goes on with them, must not commit
// tx itself, and must not keep what it changed outside the database from one run
// to the next. If fn returns an error that is not a conflict, the transaction is
// rolled back and that very error is returned, or one that wraps it if the
// rollback fails too. A conflict counts even if fn hid it behind another error,
// because the driver saw it. If fn panics, the transaction is rolled back and the
// panic goes on.
//
// The policy comes from the database unless options override it. When there is
// no further attempt, the error is a [*RetryError] that matches the server's; if
// nobody can tell whether COMMIT took effect, it is a [*CommitUnknownError], and
// nothing is run again.
//
// A RunInTx inside fn, under fn's ctx and on the same database, joins the
// transaction: its function gets the outer tx, its RunOptions are ignored, and if
// it returns an error the whole is rolled back even if fn ignores that. Asking
// for an isolation level or for read-only where the outer transaction has not is
// [ErrNestedOptions]. On another database it is a transaction of its own; once
// that is committed, fn is not run again ([ErrAlreadyCommitted]).
func RunInTx(ctx context.Context, db TxBeginner, opts *sql.TxOptions, fn func(ctx context.Context, tx *sql.Tx) error, options ...RunOption) error {
	switch {
	case isNil(db):
		return errors.New("pgretry: the database given to RunInTx is nil")
	case fn == nil:
		return errors.New("pgretry: the function given to RunInTx is nil")
	case ctx == nil:
		return errors.New("pgretry: the context given to RunInTx is nil")
	}
	outer := attemptFrom(ctx)
	if joined := outer.joinedBy(db); joined != nil {
		return joined.join(ctx, opts, fn)
	}
	l, err := newLoop(ctx, outer, db, opts, options)
	if err != nil {
		return err
	}
	return l.run(ctx, func(ctx context.Context, a *attempt) (Phase, error) {
		return runTx(ctx, a, db, opts, fn)
	})
}

// Retry runs fn, which begins and commits a transaction by itself, as an ORM's
// transaction helper does, and runs it again under the conditions of [RunInTx]:
//
//	err := pgretry.Retry(ctx, func(ctx context.Context) error {
//		return gormDB.WithContext(ctx).Transaction(func(tx *gorm.DB) error { … })
//	})
//
// fn must use the context it is given: the driver goes by what it sees under it. A
// transaction is fn's if BEGIN ran under that, or at least its first statement. A
// failure that the driver did not see is not retried but returned with
// [ErrNotObserved]. If fn had already committed something when it failed, an
// earlier transaction or a statement outside one, it is not run again either:
// [ErrAlreadyCommitted].
//
// The policy is that of the first database fn meets, unless options override it.
// Loops do not multiply: where one runs inside another, the inner one retries,
// and when it gives up, so does the outer one.
func Retry(ctx context.Context, fn func(ctx context.Context) error, options ...RunOption) error {
	switch {
	case fn == nil:
		return errors.New("pgretry: the function given to Retry is nil")
	case ctx == nil:
		return errors.New("pgretry: the context given to Retry is nil")
	}
	l, err := newLoop(ctx, attemptFrom(ctx), nil, nil, options)
	if err != nil {
		return err
	}
	return l.run(ctx, func(ctx context.Context, _ *attempt) (Phase, error) {
		return PhaseStatement, fn(ctx)
	})
}

func isNil(db TxBeginner) bool {
	if db == nil {
		return true
	}
	v := reflect.ValueOf(db)
	return v.Kind() == reflect.Pointer && v.IsNil()
}

// notOursError says that a database is not one of ours. It matches ErrNotObserved.
type notOursError struct{ caller string }

func (e *notOursError) Error() string {
	return "pgretry: " + e.caller + ": the database was not opened through this package, by sql.Open(pgretry.DriverName, …), Open or NewConnector"
}

func (e *notOursError) Is(target error) bool { return target == ErrNotObserved }

// runTx is one attempt of RunInTx.
func runTx(ctx context.Context, a *attempt, db TxBeginner, opts *sql.TxOptions, fn func(context.Context, *sql.Tx) error) (Phase, error) {
	tx, err := db.BeginTx(ctx, opts)
	if err != nil {
		return PhaseBegin, err
	}
	if tx == nil {
		return PhaseBegin, fmt.Errorf("pgretry: begin: %T returned no transaction", db)
	}
	ended := false
	defer func() {
		// Without recover, so that a panic keeps its stack, and for
		// runtime.Goexit as well. The panic says more than a failed rollback.
		if !ended {
			_ = tx.Rollback()
		}
	}()
	if a.observe().connector == nil {
		return PhaseBegin, &notOursError{"RunInTx"}
	}

	a.tx = tx
	err = fn(ctx, tx)
	if err == nil {
		err = a.doom(nil)
	}
	ended = true
	if err == nil {
		if err = tx.Commit(); err != nil {
			if errors.Is(err, sql.ErrTxDone) && a.observe().mainCommitted {
				return PhaseCommit, nil // the closure had done it
			}
			// If the context's end kept COMMIT from being sent, the transaction is
			// still there; otherwise this does nothing.
			_ = tx.Rollback()
		}
		return PhaseCommit, err
	}
	rollbackErr := tx.Rollback()
	switch {
	case rollbackErr == nil, errors.Is(rollbackErr, sql.ErrTxDone), errors.Is(rollbackErr, driver.ErrBadConn):
		// Rolled back; or by the context's end; or by the connection's.
	default:
		err = fmt.Errorf("%w (and rollback: %w)", err, rollbackErr)
	}
	return PhaseStatement, err
}

// joinedBy returns the attempt that a RunInTx on db joins, or nil: the innermost
// one on the same database.
func (a *attempt) joinedBy(db TxBeginner) *attempt {
	for ; a != nil; a = a.parent {
		if a.loop.target == nil || a.tx == nil {
			continue
		}
		if reflect.ValueOf(db).Comparable() && reflect.ValueOf(a.loop.target).Comparable() && a.loop.target == db {
			return a
		}
		if isOneSession(db) {
			continue // another session was chosen on purpose
		}
		if c := connectorOf(db); c != nil && c == a.observe().connector {
			return a
		}
	}
	return nil
}

// isOneSession is true of *sql.Conn and of wrappers around it.
func isOneSession(db any) bool {
	_, ok := db.(interface{ Raw(func(any) error) error })
	return ok
}

// join runs a nested call's function in the outer transaction.
func (a *attempt) join(ctx context.Context, opts *sql.TxOptions, fn func(context.Context, *sql.Tx) error) error {
	returned := false
	defer func() {
		if !returned { // somebody may recover from the panic
			_ = a.doom(errPanicked)
		}
	}()
	if opts != nil {
		var outer sql.TxOptions
		if a.loop.opts != nil {
			outer = *a.loop.opts
		}
		if opts.Isolation != sql.LevelDefault && opts.Isolation != outer.Isolation {
			returned = true
			return a.doom(fmt.Errorf("pgretry: %w: isolation level %s inside %s", ErrNestedOptions, opts.Isolation, outer.Isolation))
		}
		if opts.ReadOnly && !outer.ReadOnly {
			returned = true
			return a.doom(fmt.Errorf("pgretry: %w: read-only inside read-write", ErrNestedOptions))
		}
	}
	err := fn(ctx, a.tx)
	returned = true
	if err != nil {
		return a.doom(err)
	}
	return nil
}

// doom makes the whole transaction fail because of a nested call's error, and
// returns the first such error.
func (a *attempt) doom(err error) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.doomed == nil {
		a.doomed = err
	}
	if err != nil {
		return err
	}
	return a.doomed
}

// loop runs a closure until it succeeds or may not be run again. It is one
// logical transaction.
type loop struct {
	pace // of config, which is the database's once that is known

	target     TxBeginner // nil in Retry
	opts       *sql.TxOptions
	options    []RunOption
	parent     *attempt
	name       string
	idempotent bool
	limitWords string  // which limit ended it
	failed     verdict // the last attempt that another one followed
	ended      bool

	mu        sync.Mutex // the driver may set the rest while the closure runs
	connector *Connector // the database, once config is its
	met       *Connector // the database, as soon as the driver sees it
	telemetry *telemetry
	ctx       context.Context // the caller's, with the transaction's span
	span      trace.Span      // nil while spans go nowhere
	current   *attempt
	kind      *kind     // of an attempt that deadlocked
	began     time.Time // the current attempt
	previous  trace.SpanContext

	first attempt // spares most transactions an allocation
}

func newLoop(ctx context.Context, parent *attempt, target TxBeginner, opts *sql.TxOptions, options []RunOption) (*loop, error) {
	l := &loop{
		target: target, opts: opts, options: options, parent: parent,
		name: nameFrom(ctx), idempotent: idempotenceFrom(ctx), ctx: ctx,
	}
	var connector *Connector
	if target != nil {
		connector = connectorOf(target)
	}
	if err := l.configure(connector); err != nil {
		return nil, err
	}
	l.started = l.config.now()
	l.telemetry = defaultTelemetry()
	if connector != nil {
		l.connector, l.met, l.telemetry = connector, connector, connector.telemetry
	}
	if l.telemetry.tracing(ctx) {
		l.ctx, l.span = l.telemetry.startTransaction(ctx, l.name, opts, l.started)
	}
	return l, nil
}

var defaultConfig = sync.OnceValues(func() (*config, error) { return newConfig(nil) })

// configure resolves the configuration: the database's, overridden by options.
func (l *loop) configure(connector *Connector) (err error) {
	if connector != nil {
		l.config = connector.config
	} else if l.config, err = defaultConfig(); err != nil {
		return err
	}
	if len(l.options) == 0 {
		return nil
	}
	own := *l.config
	l.config = &own
	return applyOptions(l.config, l.options)
}

// runsOn takes the configuration of a database that only its driver's calls told.
func (l *loop) runsOn(c *Connector) error {
	l.mu.Lock()
	l.connector = c
	l.mu.Unlock()
	return l.configure(c)
}

func (l *loop) database() *Connector {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.connector
}

// meets notes the first database that an attempt touches. If its tracer is not
// the one the loop began with, the spans are begun now, as of then.
func (l *loop) meets(a *attempt, c *Connector) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.met != nil || l.current != a {
		return
	}
	l.met = c
	if c.telemetry == l.telemetry {
		return
	}
	l.telemetry = c.telemetry
	if !c.telemetry.given || l.span != nil && l.span.IsRecording() {
		return
	}
	l.ctx, l.span = c.telemetry.startTransaction(l.ctx, l.name, l.opts, l.started)
	_, a.span = l.telemetry.startAttempt(l.ctx, l.attemptStart(a))
}

func (l *loop) attemptStart(a *attempt) attemptStart {
	return attemptStart{number: a.number, kind: kindClosure, name: l.name, opts: l.opts, previous: l.previous, started: l.began}
}

// begin makes the next attempt and the context for its closure.
func (l *loop) begin() (context.Context, *attempt) {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := &l.first
	if l.attempts > 0 {
		a = new(attempt)
	}
	l.attempts++
	a.loop, a.parent, a.number, a.config = l, l.parent, l.attempts, l.config
	l.current = a
	l.began = l.started
	if a.number > 1 {
		l.began = l.config.now()
	}
	ctx := l.ctx
	if l.span != nil {
		ctx, a.span = l.telemetry.startAttempt(ctx, l.attemptStart(a))
	}
	return context.WithValue(ctx, attemptKey{}, a), a
}

// run is the loop. body is one attempt and says in which phase it ended.
func (l *loop) run(ctx context.Context, body func(context.Context, *attempt) (Phase, error)) error {
	defer func() {
		if !l.ended { // the closure, or a hook, panicked or ended its goroutine
			l.end(outcomeRolledBack, verdict{class: ClassPermanent, err: errPanicked}, "")
		}
	}()
	for {
		attemptCtx, a := l.begin()
		err := l.once(attemptCtx, a, body)
		if err == nil {
			return nil
		}
		if err.again {
			waitErr := l.config.wait(ctx, err.wait)
			if waitErr == nil {
				continue
			}
			l.limitWords = "the context ended the wait"
			l.end(outcomeExhausted, err.verdict, "")
			l.tell(DecisionExhausted, err.verdict, "", 0)
			return l.giveUp(err.verdict, ErrExhausted, "", l.limitWords, waitErr)
		}
		return err.final
	}
}

// failure is what became of an attempt that failed.
type failure struct {
	verdict verdict
	again   bool
	wait    time.Duration
	final   error // if not again
}

// once runs one attempt and decides what follows. It returns nil on success.
func (l *loop) once(ctx context.Context, a *attempt, body func(context.Context, *attempt) (Phase, error)) *failure {
	panicked := true
	defer func() {
		if panicked {
			e := ending{outcome: outcomeRolledBack, class: ClassPermanent, err: errPanicked, statements: a.observe().statements}
			endSpan(a.currentSpan(), e)
		}
	}()
	defer a.leave(outcomeRolledBack)
	phase, err := PhaseBegin, l.queue(ctx, a)
	if err == nil {
		phase, err = body(ctx, a)
	}
	if err == nil {
		a.leave(outcomeCommitted)
	}
	a.leave(outcomeRolledBack)
	panicked = false
	if err == nil {
		endSpan(a.currentSpan(), ending{outcome: outcomeCommitted, statements: a.statementCount()})
		l.end(outcomeCommitted, verdict{}, "")
		return nil
	}
	return l.decide(a, phase, err)
}

// errPanicked stands for a closure that panicked, or ended its goroutine, in
// spans; nobody else sees it.
var errPanicked = errors.New("the closure did not return")

// end closes the logical transaction: span, metrics, statistics.
func (l *loop) end(o outcome, v verdict, reason RefusalReason) {
	l.ended = true
	l.mu.Lock()
	l.current = nil // what a goroutine of the closure still does is no part of it
	ctx, span, connector, telemetry := l.ctx, l.span, l.met, l.telemetry
	l.mu.Unlock()
	endSpan(span, ending{outcome: o, class: v.class, err: v.err, reason: reason, attempts: l.attempts})
	if connector == nil {
		return // no database was touched: there was no transaction
	}
	connector.stats.closureEnded(o, reason)
	if reason != "" {
		telemetry.refused(ctx, reason)
	}
	if connector.telemetry.measuring(ctx) {
		telemetry.transactionEnded(ctx, o, l.attempts, l.config.now().Sub(l.started))
	}
}
