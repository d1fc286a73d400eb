package drivertest

import (
	"context"
	"database/sql/driver"
	"io"
	"reflect"
)

// rows is the state of an open cursor, see conn.
type rows struct {
	c      *conn
	id     int
	ctx    context.Context
	query  string
	sets   []ResultSet
	set    int
	row    int
	closed bool
	buffer []byte
	face   driver.Rows // the value database/sql holds
}

func (c *conn) newRows(ctx context.Context, query string, sets []ResultSet) driver.Rows {
	if len(sets) == 0 {
		sets = defaultSets
	}
	r := c.spareRows
	c.spareRows = nil
	if r == nil {
		r = &rows{c: c, id: int(c.d.lastRows.Add(1))}
		r.face = rowsVariant(r, c.d.features&RowsFeatures/RowsNextResultSets)
	}
	r.ctx, r.query, r.sets = ctx, query, sets
	r.set, r.row, r.closed = 0, 0, false
	c.rowsOpen++
	c.d.openRows.Add(1)
	return r.face
}

func (r *rows) current() *ResultSet { return &r.sets[r.set] }

func (r *rows) column(i int) *Column { return &r.current().Columns[i] }

func (r *rows) invocation(call Call, method string) Invocation {
	return Invocation{Context: r.ctx, Call: call, Method: method, Rows: r.id, Query: r.query}
}

// usable notes the use of closed rows.
func (r *rows) usable(inv Invocation) error {
	if !r.closed {
		return nil
	}
	r.c.d.violate("conn %d: %s on closed rows %d", r.c.id, inv.Method, r.id)
	inv.Conn = r.c.id
	r.c.d.record(inv)(errRowsClosed)
	return errRowsClosed
}

// overwriteBuffer makes the values of the last row unreadable.
func (r *rows) overwriteBuffer() {
	for i := range r.buffer {
		r.buffer[i] = '#'
	}
	r.buffer = r.buffer[:0]
}

// fail notes an error that comes from a result set, not from a rule.
func (r *rows) fail(err error) error {
	if r.c.d.txState {
		r.c.block.after(command{}, err)
	}
	return err
}

// rowsBase has the methods every driver.Rows has.
type rowsBase struct{ r *rows }

func (b rowsBase) Columns() []string { return b.r.current().names }

func (b rowsBase) Close() error {
	r := b.r
	inv := r.invocation(RowsClose, "Rows.Close")
	if err := r.usable(inv); err != nil {
		return err
	}
	gone := r.c.closed
	out := r.c.perform(inv)
	r.closed = true
	r.overwriteBuffer()
	if !gone {
		r.c.rowsOpen--
		r.c.d.openRows.Add(-1)
	}
	if r.c.d.quiet {
		r.ctx, r.sets, r.set = nil, defaultSets, 0
		r.c.spareRows = r
	}
	return out.err
}

func (b rowsBase) Next(dest []driver.Value) error {
	r := b.r
	inv := r.invocation(RowsNext, "Rows.Next")
	if err := r.usable(inv); err != nil {
		return err
	}
	if out := r.c.perform(inv); out.err != nil {
		return out.err
	}
	set := r.current()
	if len(dest) != len(set.names) {
		r.c.d.violate("conn %d: Rows.Next with room for %d values instead of %d", r.c.id, len(dest), len(set.names))
	}
	r.overwriteBuffer()
	if r.row == len(set.Rows) {
		if set.Err != nil {
			return r.fail(set.Err)
		}
		return io.EOF
	}
	copy(dest, set.Rows[r.row])
	r.row++
	if r.c.d.sharedBuffers {
		for i, value := range dest {
			if bytes, ok := value.([]byte); ok && bytes != nil {
				start := len(r.buffer)
				r.buffer = append(r.buffer, bytes...)
				dest[i] = r.buffer[start:len(r.buffer):len(r.buffer)]
			}
		}
	}
	return nil
}

type rowsNextResultSets struct{ r *rows }

func (x rowsNextResultSets) HasNextResultSet() bool { return x.r.set+1 < len(x.r.sets) }

func (x rowsNextResultSets) NextResultSet() error {
	r := x.r
	inv := r.invocation(RowsNextResultSet, "Rows.NextResultSet")
	if err := r.usable(inv); err != nil {
		return err
	}
	if out := r.c.perform(inv); out.err != nil {
		return out.err
	}
	r.overwriteBuffer()
	if err := r.current().Err; err != nil {
		return r.fail(err)
	}
	if !x.HasNextResultSet() {
		return io.EOF
	}
	r.set++
	r.row = 0
	return nil
}

type rowsScanType struct{ r *rows }

func (x rowsScanType) ColumnTypeScanType(i int) reflect.Type {
	if t := x.r.column(i).ScanType; t != nil {
		return t
	}
	return reflect.TypeFor[any]()
}

type rowsDatabaseTypeName struct{ r *rows }

func (x rowsDatabaseTypeName) ColumnTypeDatabaseTypeName(i int) string {
	return x.r.column(i).DatabaseType
}

type rowsLength struct{ r *rows }

func (x rowsLength) ColumnTypeLength(i int) (int64, bool) {
	return x.r.column(i).Length, x.r.column(i).HasLength
}

type rowsNullable struct{ r *rows }

func (x rowsNullable) ColumnTypeNullable(i int) (nullable, ok bool) {
	return x.r.column(i).Nullable, x.r.column(i).HasNullable
}

type rowsPrecisionScale struct{ r *rows }

func (x rowsPrecisionScale) ColumnTypePrecisionScale(i int) (precision, scale int64, ok bool) {
	return x.r.column(i).Precision, x.r.column(i).Scale, x.r.column(i).HasDecimal
}
