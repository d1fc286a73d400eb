package abort

import (
	"context"
	"database/sql/driver"

	"github.com/pgretry/pgretry/internal/sqltext"
)

// statement is a text with what is known about it.
type statement struct {
	text string
	info sqltext.Info
}

// isSavepoint is true of the commands about savepoints.
func (s statement) isSavepoint() bool {
	switch s.info.Keyword {
	case sqltext.Savepoint, sqltext.Release, sqltext.RollbackTo:
		return true
	}
	return false
}

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
	_ driver.StmtExecContext  = (*stmt)(nil)
	_ driver.StmtQueryContext = (*stmt)(nil)
)

type stmt struct {
	driver.Stmt
	conn *conn
	statement
}

func newStmt(c *conn, what statement, inner driver.Stmt) driver.Stmt {
	s := &stmt{Stmt: inner, conn: c, statement: what}
	checker, checks := inner.(driver.NamedValueChecker)
	columns, converts := inner.(driver.ColumnConverter) //nolint:staticcheck // see converter
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

func (s *stmt) Exec(args []driver.Value) (driver.Result, error) {
	return s.ExecContext(context.Background(), named(args))
}

func (s *stmt) Query(args []driver.Value) (driver.Rows, error) {
	return s.QueryContext(context.Background(), named(args))
}

func (s *stmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	if err := s.conn.abort(ctx, StmtExec, s.statement, args); err != nil {
		return nil, err
	}
	result, err := execStmt(ctx, s.Stmt, args)
	s.conn.executed(ctx, s.statement, err)
	return result, err
}

func (s *stmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	if err := s.conn.abort(ctx, StmtQuery, s.statement, args); err != nil {
		return nil, err
	}
	inner, err := queryStmt(ctx, s.Stmt, args)
	s.conn.executed(ctx, s.statement, err)
	if err != nil {
		return nil, err
	}
	return newRows(ctx, s.conn, inner), nil
}
