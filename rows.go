package pgretry

import (
	"context"
	"database/sql/driver"
	"io"
	"reflect"
)

var (
	_ driver.RowsColumnTypeDatabaseTypeName = (*rows)(nil)
	_ driver.RowsColumnTypeLength           = (*rows)(nil)
	_ driver.RowsColumnTypeNullable         = (*rows)(nil)
	_ driver.RowsColumnTypePrecisionScale   = (*rows)(nil)
	_ driver.RowsColumnTypeScanType         = (*rows)(nil)
	_ driver.RowsNextResultSet              = (*rows)(nil)
)

// rows is a cursor. One type serves every inner driver: where the inner rows
// lack an optional interface, the answer is the one database/sql gives itself.
//
// It must never offer RowsColumnScanner: values would then go past Next, where
// the driver looks at them.
type rows struct {
	driver.Rows
	real   driver.Rows // the inner driver's own, where Rows is otelsql's
	conn   *conn
	memory *conflictMemory
	tx     uint64        // the number of the transaction they belong to, 0 for none
	lone   loneStatement // what to take back if the statement fails after all
	text   string        // of a statement outside a transaction
	ended  bool
	shut   bool // Rows is closed

	// Of rows that the driver may fetch again.
	watched bool
	entry   int             // in the journal of the transaction
	use     uint64          // of the connection's journal for statements outside one
	ctx     context.Context // of the query
	names   []string
	shown   shown
	repeat  *repeat      // of a statement outside a transaction, once there was a conflict
	release func() error // after rows that were fetched again
	stop    func() bool
}

func newRows(c *conn, inner driver.Rows, tx uint64, lone loneStatement) *rows {
	return &rows{Rows: inner, real: c.tap.takeRows(inner), conn: c, memory: &c.connector.memory, tx: tx, lone: lone}
}

// context returns the query's context, as far as it is known.
func (r *rows) context() context.Context {
	if r.ctx != nil {
		return r.ctx
	}
	return context.Background()
}

// watch begins to note what the rows show.
func (r *rows) watch(ctx context.Context, entry int) {
	r.watched, r.entry, r.ctx, r.names = true, entry, ctx, r.Rows.Columns()
	r.shown.columns(r.names, r.real)
}

// Columns is also called while another call is under way.
func (r *rows) Columns() []string {
	if r.watched {
		return r.names
	}
	return r.Rows.Columns()
}

func (r *rows) Next(dest []driver.Value) error {
	for {
		var err error
		if r.memory.isHot() {
			err = r.next(dest)
		} else {
			err = r.Rows.Next(dest)
		}
		if err == nil {
			// The values may be gone with the next call, so now is the time.
			if r.watched && !r.shown.row(dest) {
				r.unwatch()
			}
			return nil
		}
		if err == io.EOF { //nolint:errorlint // drivers must return it bare
			r.shown.end = true
			return err
		}
		again, err := r.failed(err, atCursor)
		if !again {
			return err
		}
	}
}

// next fetches a row. It may have to wait for its lock.
func (r *rows) next(dest []driver.Value) error {
	c := r.conn
	if !c.tx.isOpen() {
		return r.Rows.Next(dest)
	}
	c.takeOff()
	inner, err := c.landRows(r.context(), r.Rows, r.Rows.Next(dest))
	if inner != r.Rows {
		r.Rows = inner
	}
	return err
}

// unwatch gives up: there was a value that cannot be compared.
func (r *rows) unwatch() {
	r.watched = false
	if r.tx != 0 && r.tx == r.conn.tx.number {
		r.conn.tx.refuse(RefusedValue, "")
	}
}

func (r *rows) Close() error {
	for {
		r.shut = true
		err := r.Rows.Close()
		if err != nil {
			again, err := r.failed(err, atClose)
			if again {
				continue
			}
			r.closed()
			return err
		}
		r.closed()
		return nil
	}
}

// closed notes that the application has seen what it will see.
func (r *rows) closed() {
	if r.tx != 0 && r.tx == r.conn.tx.number {
		r.conn.tx.cursorClosed(r)
	}
	if r.repeat != nil {
		r.repeat.count()
		r.repeat = nil
	}
	if r.stop != nil {
		r.stop()
		r.stop = nil
	}
	if r.release != nil {
		if r.release() != nil {
			r.conn.broken = true // a statement that cannot be closed
		}
		r.release = nil
	}
}

// resume goes on with other rows, of the same statement, that stand where these
// stood.
func (r *rows) resume(inner, real driver.Rows, release func() error) {
	r.Rows, r.real, r.release, r.shut = inner, real, release, false
}

// letGo closes the inner driver's rows, whose transaction is over. What they have to
// say is not asked for any more.
func (r *rows) letGo(err error) {
	if !r.shut {
		_ = r.Rows.Close()
	}
	r.Rows, r.shut = failedRows{r.names, &r.conn.tx, err}, false
	if r.release != nil && r.release() != nil {
		r.conn.broken = true
	}
	r.release = nil
}

// newContext returns a context for fetching the rows again that ends with the
// query's own.
func (r *rows) newContext(ctx context.Context) context.Context {
	if r.stop != nil {
		r.stop()
		r.stop = nil
	}
	if r.ctx.Done() == nil {
		return ctx
	}
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(r.ctx, func() { cancel(context.Cause(r.ctx)) })
	r.stop = func() bool {
		cancel(nil)
		return stop()
	}
	return ctx
}

func (r *rows) HasNextResultSet() bool {
	next, ok := r.Rows.(driver.RowsNextResultSet)
	return ok && next.HasNextResultSet()
}

func (r *rows) NextResultSet() error {
	for {
		next, ok := r.Rows.(driver.RowsNextResultSet)
		if !ok {
			return io.EOF
		}
		err := next.NextResultSet()
		switch err {
		case nil:
			if r.watched {
				r.shown.nextSet()
				r.names = r.Rows.Columns()
				r.shown.columns(r.names, r.real)
			}
			return nil
		case io.EOF: //nolint:errorlint // drivers must return it bare
			return err
		}
		again, err := r.failed(err, atCursor)
		if !again {
			return err
		}
	}
}

// failed tells the transaction of an error, once: Close repeats what Next said. It
// says that the call is to be made again, after a replay, or returns the error for
// the application.
func (r *rows) failed(err error, at site) (again bool, _ error) {
	if _, gone := r.Rows.(failedRows); gone || r.ended {
		return false, err
	}
	t := &r.conn.tx
	switch {
	case r.tx == 0:
		return r.conn.rowsFailed(r, err, at)
	case r.tx != 0 && r.tx == t.number && t.isOpen() && t.state != txPoisoned:
		return t.cursorFailed(r, err, at)
	}
	r.ended = true
	if r.tx != 0 && r.tx == t.number && t.state == txEndedRaw && !t.keepsErrors() {
		err = t.lostAfterEnd(r.text, err)
	}
	return false, err
}

func (r *rows) ColumnTypeScanType(index int) reflect.Type {
	if real, ok := r.real.(driver.RowsColumnTypeScanType); ok {
		return real.ColumnTypeScanType(index)
	}
	return reflect.TypeFor[any]()
}

func (r *rows) ColumnTypeDatabaseTypeName(index int) string {
	if real, ok := r.real.(driver.RowsColumnTypeDatabaseTypeName); ok {
		return real.ColumnTypeDatabaseTypeName(index)
	}
	return ""
}

func (r *rows) ColumnTypeLength(index int) (length int64, ok bool) {
	if real, is := r.real.(driver.RowsColumnTypeLength); is {
		return real.ColumnTypeLength(index)
	}
	return 0, false
}

func (r *rows) ColumnTypeNullable(index int) (nullable, ok bool) {
	if real, is := r.real.(driver.RowsColumnTypeNullable); is {
		return real.ColumnTypeNullable(index)
	}
	return false, false
}

func (r *rows) ColumnTypePrecisionScale(index int) (precision, scale int64, ok bool) {
	if real, is := r.real.(driver.RowsColumnTypePrecisionScale); is {
		return real.ColumnTypePrecisionScale(index)
	}
	return 0, 0, false
}

// closedRows stand for rows that were read as far as they will be.
type closedRows struct{ names []string }

func (r closedRows) Columns() []string { return r.names }

func (r closedRows) Close() error { return nil }

func (r closedRows) Next([]driver.Value) error { return io.EOF }

// failedRows stand for rows whose transaction is over.
type failedRows struct {
	names []string
	tx    *tx
	err   error // the conflict that ended it
}

func (r failedRows) Columns() []string { return r.names }

func (r failedRows) Close() error { return nil }

func (r failedRows) Next([]driver.Value) error {
	if r.tx.poison != nil {
		return r.tx.poison
	}
	return r.err
}
