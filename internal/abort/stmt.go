package abort

import (
	"context"
	"database/sql/driver"

	"github.com/pgretry/pgretry/internal/sqltext"
)

// innerStmt is a statement with every optional interface that lib/pq's has.
type innerStmt interface {
	driver.Stmt
	driver.StmtExecContext
	driver.StmtQueryContext
}

var _ innerStmt = (*stmt)(nil)

type stmt struct {
	innerStmt
	conn *conn
	info sqltext.Info
}

func (s *stmt) Exec(args []driver.Value) (driver.Result, error) {
	return s.ExecContext(context.Background(), named(args))
}

func (s *stmt) Query(args []driver.Value) (driver.Rows, error) {
	return s.QueryContext(context.Background(), named(args))
}

func (s *stmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	if kind, may := s.conn.kindOf(s.info, StmtExec); may {
		if err := s.conn.abort(ctx, kind); err != nil {
			return nil, err
		}
	}
	result, err := s.innerStmt.ExecContext(ctx, args)
	s.conn.executed(s.info, err)
	return result, err
}

func (s *stmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	if kind, may := s.conn.kindOf(s.info, StmtQuery); may {
		if err := s.conn.abort(ctx, kind); err != nil {
			return nil, err
		}
	}
	inner, err := s.innerStmt.QueryContext(ctx, args)
	s.conn.executed(s.info, err)
	if err != nil {
		return nil, err
	}
	return newRows(ctx, s.conn, inner), nil
}
