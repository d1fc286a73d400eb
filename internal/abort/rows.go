package abort

import (
	"context"
	"database/sql/driver"
	"io"
)

// innerRows are rows with every optional interface that lib/pq's have.
type innerRows interface {
	driver.Rows
	driver.RowsNextResultSet
	driver.RowsColumnTypeScanType
	driver.RowsColumnTypeDatabaseTypeName
	driver.RowsColumnTypeLength
	driver.RowsColumnTypePrecisionScale
}

var _ innerRows = (*rows)(nil)

type rows struct {
	innerRows
	ctx    context.Context // the one the query was given
	conn   *conn
	block  int64 // the serial of the block they belong to
	ended  bool  // the end or an error was seen
	closed bool  // the inner rows are
}

func newRows(ctx context.Context, c *conn, inner driver.Rows) driver.Rows {
	full, ok := inner.(innerRows)
	if !ok {
		return inner
	}
	return &rows{innerRows: full, ctx: ctx, conn: c, block: c.block.serial}
}

// draw says whether a call must fail. Lone statements fail as a whole or not at all.
func (r *rows) draw(kind Kind) (int, bool) {
	b := r.conn.block
	if r.ended || b.state != active || b.serial != r.block {
		return 0, false
	}
	return r.conn.draw(kind)
}

func (r *rows) Next(dest []driver.Value) error {
	if failure, fails := r.draw(Next); fails {
		return r.fail(Next, failure)
	}
	if r.closed {
		return io.EOF
	}
	err := r.innerRows.Next(dest)
	if err != nil && (err != io.EOF || !r.HasNextResultSet()) { //nolint:errorlint // drivers must return it bare
		r.ended = true
		r.failed(err)
	}
	return err
}

// Close closes the inner rows once: lib/pq's do not take it twice.
func (r *rows) Close() error {
	if failure, fails := r.draw(Close); fails {
		return r.fail(Close, failure)
	}
	if r.closed {
		return nil
	}
	r.ended, r.closed = true, true
	err := r.innerRows.Close()
	r.failed(err)
	return err
}

// fail ends the rows with an error of the server.
func (r *rows) fail(kind Kind, failure int) error {
	r.ended, r.closed = true, true
	if err := r.innerRows.Close(); err != nil {
		r.failed(err)
		return err
	}
	return r.conn.raise(r.ctx, kind, failure)
}

func (r *rows) failed(err error) {
	if r.conn.block.serial == r.block {
		r.conn.block.failed(err)
	}
}
