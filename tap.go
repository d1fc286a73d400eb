package pgretry

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"reflect"
	"time"

	"github.com/lib/pq"

	"github.com/pgretry/pgretry/internal/sqltext"
)

// session is a connection with every optional interface that matters, whether
// the tap itself or otelsql's connection around it.
type session interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.ExecerContext
	driver.NamedValueChecker
	driver.Pinger
	driver.QueryerContext
	driver.SessionResetter
}

var (
	_ session                 = (*tap)(nil)
	_ driver.StmtExecContext  = (*tapStmt)(nil)
	_ driver.StmtQueryContext = (*tapStmt)(nil)
)

// tap sits directly around the inner driver's connection, inside otelsql. It
// offers every optional interface and, where the inner connection lacks one,
// does what database/sql would do without it. And it keeps hold of the real
// rows, because otelsql's forget the columns' scan types.
type tap struct {
	driver.Conn

	beginner  driver.ConnBeginTx
	checker   driver.NamedValueChecker
	execer    driver.ExecerContext
	execerOld driver.Execer //nolint:staticcheck // database/sql still falls back to it
	pinger    driver.Pinger
	preparer  driver.ConnPrepareContext
	query     driver.QueryerContext
	queryOld  driver.Queryer //nolint:staticcheck // the same
	resetter  driver.SessionResetter
	validator driver.Validator

	// own is told when a statement is the driver's own, if the inner connection wants to
	// know.
	own interface{ Own(bool) }

	wire  *wire   // nil unless the inner connection is lib/pq's and dialled as it does by default
	peek  *peeker // at pgx's socket, nil if there is none
	libPQ bool    // the inner connection is lib/pq's own
	pgx   bool    // it is pgx's stdlib's own

	isBusy func() bool // pgx's, whether rows are being read; nil if there is none

	cache *statementCache // nil if there is none
	dead  bool            // it was closed because a context ended in the middle of a statement

	// watched is what lib/pq waits for in a goroutine of its own for as long as a
	// transaction is open, to have the server cancel whatever runs then: the end of the
	// context that the transaction began with. nil if there is no such goroutine.
	watched <-chan struct{}
	tx      watchedTx

	// lastRows and lastStmt are what the inner driver returned last. A connection
	// serves one call at a time, so whoever called through otelsql finds its own.
	lastRows driver.Rows
	lastStmt driver.Stmt
}

func newTap(inner driver.Conn, socket *wire) *tap {
	t := &tap{Conn: inner, wire: socket}
	switch typeName(inner) {
	case "github.com/lib/pq.conn":
		t.libPQ = true
	case "github.com/jackc/pgx/v5/stdlib.Conn":
		t.pgx = true
		t.peek = pgxSocket(inner)
		if conn := pgConn(inner); conn.IsValid() {
			if method := conn.MethodByName("IsBusy"); method.IsValid() {
				t.isBusy, _ = method.Interface().(func() bool)
			}
		}
	}
	t.beginner, _ = inner.(driver.ConnBeginTx)
	t.checker, _ = inner.(driver.NamedValueChecker)
	t.execer, _ = inner.(driver.ExecerContext)
	t.execerOld, _ = inner.(driver.Execer) //nolint:staticcheck // see the field
	t.pinger, _ = inner.(driver.Pinger)
	t.preparer, _ = inner.(driver.ConnPrepareContext)
	t.query, _ = inner.(driver.QueryerContext)
	t.queryOld, _ = inner.(driver.Queryer) //nolint:staticcheck // see the field
	t.resetter, _ = inner.(driver.SessionResetter)
	t.validator, _ = inner.(driver.Validator)
	t.own, _ = inner.(interface{ Own(bool) })
	return t
}

// isValid says whether the connection can still be used, as far as the inner
// driver tells.
func (t *tap) isValid() bool { return !t.dead && (t.validator == nil || t.validator.IsValid()) }

// kill closes the connection, as lib/pq does itself when a context ends in the middle of a
// statement that is not prepared.
func (t *tap) kill() {
	if !t.dead {
		t.dead = true
		_ = t.Close() // there is nothing that it could say
	}
}

// takeRows returns the inner driver's own rows behind those that it returned last.
func (t *tap) takeRows(inner driver.Rows) driver.Rows {
	real := t.lastRows
	if real == nil {
		real = inner
	}
	t.lastRows = nil
	return real
}

// silenceNotices keeps the notices of statements that are executed again from the
// application, which has seen them, and returns what lets them through again. It can
// do so with lib/pq only, and not while COPY reads notices in another goroutine.
func (t *tap) silenceNotices(copying bool) (restore func()) {
	if copying || !t.libPQ {
		return func() {}
	}
	handler := pq.NoticeHandler(t.Conn)
	if handler == nil {
		return func() {}
	}
	pq.SetNoticeHandler(t.Conn, nil)
	return func() { pq.SetNoticeHandler(t.Conn, handler) }
}

// asks says that what follows is the driver's own, until answered is called.
func (t *tap) asks() (answered func()) {
	known := t.cache.asks()
	if t.own == nil {
		return known
	}
	t.own.Own(true)
	return func() {
		t.own.Own(false)
		known()
	}
}

// typeName returns the name of the type a pointer leads to, with its package's path.
func typeName(value any) string {
	kind := reflect.TypeOf(value)
	if kind.Kind() == reflect.Pointer {
		kind = kind.Elem()
	}
	return kind.PkgPath() + "." + kind.Name()
}

// mark is where a connection stood before a request.
type mark struct {
	silent bool   // whatever is asked, nothing will be sent
	acted  uint64 // bytes so far that may have changed something
}

// mark is taken before a request.
func (t *tap) mark() mark {
	if t.wire == nil {
		return mark{silent: t.libPQ && !t.isValid()}
	}
	return mark{acted: t.wire.acted.Load()}
}

// unsent says whether a request that failed certainly changed nothing: no byte of it
// left, or none that the server could have executed; or lib/pq had given up the
// connection before. Of other drivers it is not known. The contract of driver.ErrBadConn
// says so, but lib/pq breaks it, and so does pgx, after a simple query.
func (t *tap) unsent(since mark) bool {
	if t.wire != nil {
		return t.wire.acted.Load() == since.acted
	}
	return since.silent
}

// txStatus returns what the server said last of the session's transaction: 'I' for none,
// 'T' for one, 'E' for one that has failed; 0 if the inner driver does not tell.
func (t *tap) txStatus() byte {
	switch {
	case t.libPQ:
		if status := reflect.ValueOf(t.Conn).Elem().FieldByName("txnStatus"); status.IsValid() && status.CanUint() {
			return byte(status.Uint()) //nolint:gosec // it is one
		}
	case t.pgx:
		if conn := pgConn(t.Conn); conn.IsValid() {
			if status := called(conn.MethodByName("TxStatus")); status.IsValid() && status.CanUint() {
				return byte(status.Uint()) //nolint:gosec // it is one
			}
		}
	}
	return 0
}

// isReading says whether rows are being read, as far as lib/pq and pgx tell.
func (t *tap) isReading() bool {
	switch {
	case t.isBusy != nil:
		return t.isBusy()
	case t.cache != nil:
		return t.cache.isReading()
	case t.libPQ:
		progress := field(field(reflect.ValueOf(t.Conn).Elem(), "inProgress"), "v")
		return progress.Kind() == reflect.Uint32 && progress.Uint() != 0
	}
	return false
}

// errBusy is what pgx says of a connection on which rows are being read.
var errBusy = errors.New("conn busy")

// notBusy is asked before a statement. While rows are being read pgx sends none, but may
// forget the rows, and its stdlib says driver.ErrBadConn of a session that is well, at
// which database/sql closes a *sql.Conn and waits for the rows for ever.
func (t *tap) notBusy() error {
	if t.isBusy != nil && t.isBusy() {
		return errBusy
	}
	return nil
}

// pulse looks whether the server has hung up, or has something to say.
func (t *tap) pulse() pulse {
	switch {
	case t.wire != nil:
		return t.wire.pulse()
	case t.peek != nil:
		return t.peek.pulse()
	}
	return pulseUnknown
}

func (t *tap) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	if t.cache != nil {
		if t.dead {
			return nil, driver.ErrBadConn
		}
		switch cached, err := t.cache.take(ctx, t, query, args); {
		case err != nil:
			return nil, err
		case cached != nil:
			return t.cache.exec(ctx, t, cached, args)
		}
	}
	if t.execer != nil {
		if err := t.notBusy(); err != nil {
			return nil, err
		}
		return t.execer.ExecContext(ctx, query, args)
	}
	if t.execerOld == nil {
		return nil, driver.ErrSkip
	}
	values, err := positional(ctx, args)
	if err != nil {
		return nil, err
	}
	return t.execerOld.Exec(query, values)
}

func (t *tap) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	rows, err := t.queryContext(ctx, query, args)
	t.lastRows = rows
	return rows, err
}

func (t *tap) queryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	if t.cache != nil {
		if t.dead {
			return nil, driver.ErrBadConn
		}
		switch cached, err := t.cache.take(ctx, t, query, args); {
		case err != nil:
			return nil, err
		case cached != nil:
			return t.cache.query(ctx, t, cached, args)
		}
	}
	return t.queryOnce(ctx, query, args)
}

// queryOnce executes a query that is not kept prepared.
func (t *tap) queryOnce(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	if t.query != nil {
		if err := t.notBusy(); err != nil {
			return nil, err
		}
		rows, err := t.query.QueryContext(ctx, query, args)
		if err == nil && t.cache != nil && len(args) > 0 {
			t.cache.reads() // lib/pq does not note it
		}
		return rows, err
	}
	if t.queryOld == nil {
		return nil, driver.ErrSkip
	}
	values, err := positional(ctx, args)
	if err != nil {
		return nil, err
	}
	return t.queryOld.Query(query, values)
}

func (t *tap) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	if t.dead {
		return nil, driver.ErrBadConn
	}
	stmt, err := t.prepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	t.lastStmt = stmt
	return &tapStmt{Stmt: stmt, tap: t, invalidates: t.cache.isInvalidatedBy(query)}, nil
}

func (t *tap) prepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	if t.preparer != nil {
		return t.preparer.PrepareContext(ctx, query)
	}
	stmt, err := t.Prepare(query)
	if err == nil && ctx.Err() != nil {
		// As in database/sql: the context's end is the error, whatever Close says.
		_ = stmt.Close()
		return nil, ctx.Err()
	}
	return stmt, err
}

func (t *tap) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	if t.dead {
		return nil, driver.ErrBadConn
	}
	if t.beginner != nil {
		tx, err := t.beginner.BeginTx(ctx, opts)
		if err != nil || t.cache == nil {
			return tx, err
		}
		if t.cache.watchesTx() {
			t.watched = ctx.Done()
		}
		t.tx = watchedTx{Tx: tx, tap: t}
		return &t.tx, nil
	}
	// The words are database/sql's own, which programs may have come to know.
	if sql.IsolationLevel(opts.Isolation) != sql.LevelDefault {
		return nil, errors.New("sql: driver does not support non-default isolation level")
	}
	if opts.ReadOnly {
		return nil, errors.New("sql: driver does not support read-only transactions")
	}
	tx, err := t.Conn.Begin() //nolint:staticcheck // there is no other
	if err == nil && ctx.Err() != nil {
		_ = tx.Rollback()
		return nil, ctx.Err()
	}
	return tx, err
}

// unwatched returns the context that a cached statement is given to lib/pq with. lib/pq
// would start another goroutine for it, even if the one of its transaction waits for the
// same already. What that goroutine does when the context ends is what it does for a
// statement that is not cached: its cancel request may still be under way when the
// connection is closed.
func (t *tap) unwatched(ctx context.Context) context.Context {
	if done := ctx.Done(); done != nil && done == t.watched {
		return context.Background()
	}
	return ctx
}

// watchedTx is a transaction of lib/pq's.
type watchedTx struct {
	driver.Tx
	tap *tap
}

func (t *watchedTx) Commit() error {
	t.tap.watched = nil
	return t.Tx.Commit()
}

func (t *watchedTx) Rollback() error {
	t.tap.watched = nil
	return t.Tx.Rollback()
}

func (t *tap) Ping(ctx context.Context) error {
	if t.dead {
		return driver.ErrBadConn
	}
	if t.pinger == nil {
		return nil
	}
	return t.pinger.Ping(ctx)
}

// ping is Ping with a bound of its own. lib/pq waits for the answer however long the
// context lasts.
func (t *tap) ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	if t.wire == nil {
		return t.Ping(ctx)
	}
	if err := t.wire.SetDeadline(time.Now().Add(pingTimeout)); err != nil {
		return err
	}
	if err := t.Ping(ctx); err != nil {
		return err
	}
	return t.wire.SetDeadline(time.Time{})
}

func (t *tap) ResetSession(ctx context.Context) error {
	if t.dead {
		return driver.ErrBadConn
	}
	if t.resetter == nil {
		return nil
	}
	return t.resetter.ResetSession(ctx)
}

// IsValid is for otelsql; whether we offer it depends on the inner connection.
func (t *tap) IsValid() bool { return t.isValid() }

func (t *tap) CheckNamedValue(value *driver.NamedValue) error {
	if t.checker == nil {
		return driver.ErrSkip
	}
	return t.checker.CheckNamedValue(value)
}

// tapStmt does for a prepared statement what tap does for its connection.
type tapStmt struct {
	driver.Stmt
	tap         *tap
	invalidates *sqltext.Info // what it is, if it may change what other statements mean
}

// begin makes ready for its execution.
func (s *tapStmt) begin() error {
	if s.tap.dead {
		return driver.ErrBadConn
	}
	if s.invalidates != nil {
		s.tap.cache.invalidate(s.invalidates, s.tap)
	}
	return s.tap.notBusy()
}

func (s *tapStmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	if err := s.begin(); err != nil {
		return nil, err
	}
	if execer, ok := s.Stmt.(driver.StmtExecContext); ok {
		return execer.ExecContext(ctx, args)
	}
	values, err := positional(ctx, args)
	if err != nil {
		return nil, err
	}
	return s.Stmt.Exec(values) //nolint:staticcheck // there is no other
}

func (s *tapStmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	rows, err := s.queryContext(ctx, args)
	s.tap.lastRows = rows
	return rows, err
}

func (s *tapStmt) queryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	if err := s.begin(); err != nil {
		return nil, err
	}
	if query, ok := s.Stmt.(driver.StmtQueryContext); ok {
		return query.QueryContext(ctx, args)
	}
	values, err := positional(ctx, args)
	if err != nil {
		return nil, err
	}
	return s.Stmt.Query(values) //nolint:staticcheck // there is no other
}

// positional prepares a call of an interface from before contexts and names, as
// database/sql does.
func positional(ctx context.Context, args []driver.NamedValue) ([]driver.Value, error) {
	values := make([]driver.Value, len(args))
	for i, arg := range args {
		if arg.Name != "" {
			return nil, errors.New("sql: driver does not support the use of Named Parameters")
		}
		values[i] = arg.Value
	}
	return values, ctx.Err()
}
