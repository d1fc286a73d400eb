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
	generation  int  // of the connection's sessions, the one that knows it
	closed      bool // by the application
	shut        bool // at the inner driver
}

// replace makes the statement stand for another one of the inner driver's. Both the
// tap's and otelsql's statements have both interfaces.
func (s *stmt) replace(inner driver.Stmt) {
	s.Stmt, s.shut, s.generation = inner, false, s.conn.generation
	s.execer = inner.(driver.StmtExecContext)
	s.queryer = inner.(driver.StmtQueryContext)
}

func newStmt(c *conn, text string, inner driver.Stmt) driver.Stmt {
	s := &stmt{conn: c, text: text}
	s.replace(inner)
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

// itself leads back from what database/sql holds to the statement.
func (s *stmt) itself() *stmt { return s }

// Close closes the statement. Like any call it may be the one that meets an error.
func (s *stmt) Close() error {
	if s.generation != s.conn.generation || s.conn.hungUp {
		s.closed = true // together with the session that knew it
		return nil
	}
	if s.conn.tx.isOpen() {
		return s.conn.tx.closeStmt(s)
	}
	s.closed = true
	return s.Stmt.Close()
}

func (s *stmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	return s.conn.exec(ctx, call{kind: callExec, text: s.text, stmt: s, args: args})
}

func (s *stmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	return s.conn.query(ctx, call{kind: callQuery, text: s.text, stmt: s, args: args})
}
