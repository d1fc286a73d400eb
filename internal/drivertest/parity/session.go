package parity

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"time"

	"github.com/pgretry/pgretry/internal/drivertest"
)

// limit is how long a scenario may take before it counts as hanging.
const limit = 60 * time.Second

// scenario is one use of a database. To add one, write a function and list it in
// serverScenarios or scriptedScenarios.
type scenario struct {
	name string
	run  func(*session)
	// options of the scripted driver beyond its features.
	options []drivertest.Option
	// unordered is set where several goroutines leave the order of inner calls and the
	// size of the pool to chance.
	unordered bool
	// connOnly is set where sets of features that differ in no more than rows,
	// connector and driver would say the same again.
	connOnly bool
	// copyIn is set where the driver must offer COPY FROM STDIN through Prepare.
	copyIn bool
}

// session is what a scenario works with and writes to.
type session struct {
	transcript
	ctx    context.Context
	db     *sql.DB
	watch  *sql.DB            // a bare handle of the same server to observe it with
	script *drivertest.Driver // the inner driver, if it is scripted
}

// querier is what DB, Tx and Conn have in common.
type querier interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
	PrepareContext(ctx context.Context, query string) (*sql.Stmt, error)
}

// play runs a scenario to its end, its panic or the limit.
func play(s *session, sc scenario) []string {
	ctx, cancel := context.WithTimeout(drivertest.WithLabel(context.Background(), "scenario"), limit)
	defer cancel()
	s.ctx = ctx
	s.db.SetMaxOpenConns(1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			if v := recover(); v != nil {
				s.note("panic: %v", v)
			}
		}()
		sc.run(s)
		idle := s.awaitIdle()
		s.note("end: all connections returned %t", idle)
		if !sc.unordered {
			s.stats("end")
		}
		s.err("db.Close", s.db.Close())
	}()
	select {
	case <-done:
	case <-time.After(limit + 10*time.Second):
		s.note("the scenario hangs")
	}
	return s.snapshot()
}

func (s *session) err(label string, err error) {
	s.note("%s: %s", label, formatError(err))
}

// failed notes err and reports whether there was one.
func (s *session) failed(label string, err error) bool {
	if err != nil {
		s.err(label, err)
	}
	return err != nil
}

// stats notes the state of the pool.
func (s *session) stats(label string) {
	stats := s.db.Stats()
	s.note("%s: pool open %d, in use %d, idle %d, closed for idling %d, for their age %d",
		label, stats.OpenConnections, stats.InUse, stats.Idle, stats.MaxIdleClosed, stats.MaxLifetimeClosed)
}

// settle waits until no connection is in use and notes the state of the pool.
func (s *session) settle(label string) {
	if !s.awaitIdle() {
		s.note("%s: connections stay in use", label)
	}
	s.stats(label)
}

// awaitIdle waits until no connection is in use, as goroutines of database/sql
// return them after a cancellation, and reports whether that came to be.
func (s *session) awaitIdle() bool {
	for s.db.Stats().InUse > 0 {
		select {
		case <-s.ctx.Done():
			return false
		case <-time.After(time.Millisecond):
		}
	}
	return true
}

// exec runs a statement and notes all that comes back.
func (s *session) exec(q querier, query string, args ...any) error {
	return s.execContext(s.ctx, q, query, args...)
}

func (s *session) execContext(ctx context.Context, q querier, query string, args ...any) error {
	result, err := q.ExecContext(ctx, query, args...)
	s.result("exec "+query, result, err)
	return err
}

func (s *session) result(label string, result sql.Result, err error) {
	if s.failed(label, err) {
		return
	}
	affected, err := result.RowsAffected()
	s.note("%s: affected %d, %s", label, affected, formatError(err))
	id, err := result.LastInsertId()
	s.note("%s: last insert id %d, %s", label, id, formatError(err))
}

// query runs a query, reads everything and notes it.
func (s *session) query(q querier, query string, args ...any) error {
	return s.queryContext(s.ctx, q, query, args...)
}

func (s *session) queryContext(ctx context.Context, q querier, query string, args ...any) error {
	rows, err := q.QueryContext(ctx, query, args...)
	if s.failed("query "+query, err) {
		return err
	}
	return s.rows("query "+query, rows)
}

// rows reads all result sets and notes columns, their types and all values.
func (s *session) rows(label string, rows *sql.Rows) error {
	for set := 0; ; set++ {
		s.note("%s: result set %d", label, set)
		s.columns(label, rows)
		for rows.Next() {
			s.row(label, rows)
		}
		if !rows.NextResultSet() {
			break
		}
	}
	err := rows.Err()
	s.err(label+": rows.Err", err)
	s.err(label+": rows.Close", rows.Close())
	s.stats(label)
	return err
}

func (s *session) columns(label string, rows *sql.Rows) {
	names, err := rows.Columns()
	s.note("%s: columns %q, %s", label, names, formatError(err))
	types, err := rows.ColumnTypes()
	s.err(label+": column types", err)
	for _, t := range types {
		length, hasLength := t.Length()
		nullable, hasNullable := t.Nullable()
		precision, scale, hasDecimal := t.DecimalSize()
		s.note("%s: column %q: database type %q, scan type %v, length %d %t, nullable %t %t, decimal %d %d %t", label,
			t.Name(), t.DatabaseTypeName(), t.ScanType(), length, hasLength, nullable, hasNullable, precision, scale, hasDecimal)
	}
}

// row scans the current row into any and notes the dynamic types.
func (s *session) row(label string, rows *sql.Rows) {
	names, err := rows.Columns()
	if s.failed(label+": columns", err) {
		return
	}
	values := make([]any, len(names))
	targets := make([]any, len(names))
	for i := range values {
		targets[i] = &values[i]
	}
	if s.failed(label+": scan", rows.Scan(targets...)) {
		return
	}
	for i, value := range values {
		s.note("%s: %s = %s", label, names[i], format(value))
	}
}

// queryRow scans one value and notes it.
func (s *session) queryRow(q querier, query string, args ...any) {
	var value any
	row := q.QueryRowContext(s.ctx, query, args...)
	s.err("row "+query+": Err", row.Err())
	err := row.Scan(&value)
	s.note("row %s: %s, %s", query, format(value), formatError(err))
}

// innermost returns the connection below all wrappers that show theirs.
func innermost(conn any) any {
	for {
		wrapper, ok := conn.(interface{ Raw() driver.Conn })
		if !ok {
			return conn
		}
		conn = wrapper.Raw()
	}
}

// inTx begins a transaction with the context of the session. It returns nil after
// noting the error if that fails.
func (s *session) inTx(opts *sql.TxOptions) *sql.Tx {
	return s.beginTx(s.ctx, opts)
}

func (s *session) beginTx(ctx context.Context, opts *sql.TxOptions) *sql.Tx {
	tx, err := s.db.BeginTx(ctx, opts)
	s.err("begin", err)
	if err != nil {
		return nil
	}
	return tx
}

// cancelled returns a context that is done.
func (s *session) cancelled() context.Context {
	ctx, cancel := context.WithCancel(s.ctx)
	cancel()
	return ctx
}

func quoted(v any) string { return fmt.Sprintf("%q", fmt.Sprint(v)) }
