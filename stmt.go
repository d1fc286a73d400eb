package pgretry

import (
	"context"
	"database/sql/driver"
)

// A statement offers NamedValueChecker and ColumnConverter only where the inner
// one does: present, they come before the connection's NamedValueChecker.
type (
	checkingStmt struct {
		*stmt
		driver.NamedValueChecker
	}
	convertingStmt struct {
		*stmt
		converter
	}
	checkingConvertingStmt struct {
		*stmt
		driver.NamedValueChecker
		converter
	}
)

// converter stands between driver.ColumnConverter and a struct, in which the
// embedded interface's name would hide its method of the same name.
type converter struct {
	inner driver.ColumnConverter //nolint:staticcheck // database/sql still asks for it
}

func (c converter) ColumnConverter(index int) driver.ValueConverter {
	return c.inner.ColumnConverter(index)
}

var (
	_ driver.ColumnConverter  = convertingStmt{}         //nolint:staticcheck // see converter
	_ driver.ColumnConverter  = checkingConvertingStmt{} //nolint:staticcheck // see converter
	_ driver.Stmt             = (*stmt)(nil)
	_ driver.StmtExecContext  = (*stmt)(nil)
	_ driver.StmtQueryContext = (*stmt)(nil)
)

// stmt is a prepared statement. It may be used in and outside transactions.
type stmt struct {
	driver.Stmt // otelsql's or the tap's
	execer      driver.StmtExecContext
	queryer     driver.StmtQueryContext
	conn        *conn
	text        string
}

func newStmt(c *conn, text string, inner driver.Stmt) driver.Stmt {
	// Both the tap's and otelsql's statements have both interfaces.
	s := &stmt{
		Stmt:    inner,
		execer:  inner.(driver.StmtExecContext),
		queryer: inner.(driver.StmtQueryContext),
		conn:    c,
		text:    text,
	}
	real := c.tap.lastStmt
	c.tap.lastStmt = nil
	checker, checks := real.(driver.NamedValueChecker)
	columns, converts := real.(driver.ColumnConverter) //nolint:staticcheck // see converter
	switch {
	case checks && converts:
		return checkingConvertingStmt{s, checker, converter{columns}}
	case checks:
		return checkingStmt{s, checker}
	case converts:
		return convertingStmt{s, converter{columns}}
	}
	return s
}

// Close closes the statement. Like any call it may be the one that meets an error.
func (s *stmt) Close() error {
	err := s.Stmt.Close()
	if err != nil && s.conn.tx.isOpen() {
		s.conn.tx.failed(err)
	}
	return err
}

func (s *stmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	c := s.conn
	if c.tx.isOpen() {
		result, err := s.execer.ExecContext(c.tx.statementContext(ctx), args)
		c.tx.executed(s.text, err)
		return result, err
	}
	lone := c.beginLone(ctx, s.text)
	result, err := s.execer.ExecContext(ctx, args)
	lone.executed(err)
	return result, err
}

func (s *stmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	c := s.conn
	if c.tx.isOpen() {
		inner, err := s.queryer.QueryContext(c.tx.statementContext(ctx), args)
		c.tx.executed(s.text, err)
		if err != nil {
			return nil, err
		}
		return newRows(c, inner, c.tx.number, loneStatement{}), nil
	}
	lone := c.beginLone(ctx, s.text)
	inner, err := s.queryer.QueryContext(ctx, args)
	lone.executed(err)
	if err != nil {
		return nil, err
	}
	return newRows(c, inner, 0, lone), nil
}
