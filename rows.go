package pgretry

import (
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
	real  driver.Rows // the inner driver's own, where Rows is otelsql's
	conn  *conn
	tx    uint64        // the number of the transaction they belong to, 0 for none
	lone  loneStatement // what to take back if the statement fails after all
	ended bool
}

func newRows(c *conn, inner driver.Rows, tx uint64, lone loneStatement) *rows {
	real := c.tap.lastRows
	if real == nil {
		real = inner
	}
	c.tap.lastRows = nil
	return &rows{Rows: inner, real: real, conn: c, tx: tx, lone: lone}
}

func (r *rows) Next(dest []driver.Value) error {
	err := r.Rows.Next(dest)
	if err != nil && err != io.EOF { //nolint:errorlint // drivers must return it bare
		r.failed(err)
	}
	return err
}

func (r *rows) Close() error {
	err := r.Rows.Close()
	if err != nil {
		r.failed(err)
	}
	return err
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
	if err != nil && err != io.EOF { //nolint:errorlint // drivers must return it bare
		r.failed(err)
	}
	return err
}

// failed tells the transaction of an error, once: Close repeats what Next said.
func (r *rows) failed(err error) {
	if r.ended {
		return
	}
	r.ended = true
	switch {
	case r.lone.attempt != nil:
		r.lone.failed(err)
	case r.tx != 0 && r.tx == r.conn.tx.number:
		r.conn.tx.failed(err)
	}
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
