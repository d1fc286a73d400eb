package abort

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

// rows is a cursor. Where the inner rows lack an optional interface, the answer is
// the one database/sql gives itself.
type rows struct {
	driver.Rows
	ctx    context.Context // the one the query was given
	conn   *conn
	block  int64 // the serial of the block they belong to
	number int64 // of the statement, in the block
	ended  bool  // the end or an error was seen
	closed bool  // the inner rows are
}

func newRows(ctx context.Context, c *conn, inner driver.Rows) driver.Rows {
	return &rows{Rows: inner, ctx: ctx, conn: c, block: c.block.serial, number: c.block.executed}
}

// draw says whether a call must fail. Lone statements fail as a whole or not at all.
func (r *rows) draw(kind Kind) (sqlState string, fails bool) {
	b := &r.conn.block
	if r.ended || b.state != active || b.serial != r.block {
		return "", false
	}
	if b.script != nil {
		return r.conn.drawScripted(Call{Kind: kind, Statement: r.number})
	}
	return r.conn.draw(kind, statement{}, nil)
}

func (r *rows) Next(dest []driver.Value) error {
	if state, fails := r.draw(Next); fails {
		return r.fail(Next, state)
	}
	if r.closed {
		return io.EOF
	}
	err := r.Rows.Next(dest)
	if err != nil && (err != io.EOF || !r.HasNextResultSet()) { //nolint:errorlint // drivers must return it bare
		r.ended = true
		r.failed(err)
	}
	return err
}

// Close closes the inner rows once: lib/pq's do not take it twice.
func (r *rows) Close() error {
	if state, fails := r.draw(Close); fails {
		return r.fail(Close, state)
	}
	if r.closed {
		return nil
	}
	r.ended, r.closed = true, true
	err := r.Rows.Close()
	r.failed(err)
	return err
}

// fail ends the rows with an error of the server.
func (r *rows) fail(kind Kind, sqlState string) error {
	r.ended, r.closed = true, true
	if err := r.Rows.Close(); err != nil {
		r.failed(err)
		return err
	}
	return r.conn.raise(r.ctx, kind, sqlState)
}

func (r *rows) failed(err error) {
	if r.conn.block.serial == r.block {
		r.conn.block.failed(err)
	}
}

func (r *rows) HasNextResultSet() bool {
	next, ok := r.Rows.(driver.RowsNextResultSet)
	return ok && next.HasNextResultSet()
}

func (r *rows) NextResultSet() error {
	next, ok := r.Rows.(driver.RowsNextResultSet)
	if !ok {
		return io.EOF
	}
	err := next.NextResultSet()
	if err != nil {
		r.ended = true
		r.failed(err)
	}
	return err
}

func (r *rows) ColumnTypeScanType(index int) reflect.Type {
	if inner, ok := r.Rows.(driver.RowsColumnTypeScanType); ok {
		return inner.ColumnTypeScanType(index)
	}
	return reflect.TypeFor[any]()
}

func (r *rows) ColumnTypeDatabaseTypeName(index int) string {
	if inner, ok := r.Rows.(driver.RowsColumnTypeDatabaseTypeName); ok {
		return inner.ColumnTypeDatabaseTypeName(index)
	}
	return ""
}

func (r *rows) ColumnTypeLength(index int) (length int64, ok bool) {
	if inner, is := r.Rows.(driver.RowsColumnTypeLength); is {
		return inner.ColumnTypeLength(index)
	}
	return 0, false
}

func (r *rows) ColumnTypeNullable(index int) (nullable, ok bool) {
	if inner, is := r.Rows.(driver.RowsColumnTypeNullable); is {
		return inner.ColumnTypeNullable(index)
	}
	return false, false
}

func (r *rows) ColumnTypePrecisionScale(index int) (precision, scale int64, ok bool) {
	if inner, is := r.Rows.(driver.RowsColumnTypePrecisionScale); is {
		return inner.ColumnTypePrecisionScale(index)
	}
	return 0, 0, false
}
