package abort

import (
	"context"
	"database/sql/driver"

	"github.com/pgretry/pgretry/internal/sqltext"
)

// session is a connection with every optional interface that lib/pq's has.
type session interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.Execer //nolint:staticcheck // lib/pq's connection has it
	driver.ExecerContext
	driver.NamedValueChecker
	driver.Pinger
	driver.Queryer //nolint:staticcheck // lib/pq's connection has it
	driver.QueryerContext
	driver.SessionResetter
	driver.Validator
}

var _ session = (*conn)(nil)

// conn is a connection. One call at a time is made on it.
type conn struct {
	session
	connector *Connector
	number    int64 // of the connector's connections, from 1
	calls     int64 // that could have failed
	block     block
}

// Raw returns the inner connection.
func (c *conn) Raw() driver.Conn { return c.session }

func (c *conn) Exec(query string, args []driver.Value) (driver.Result, error) {
	return c.ExecContext(context.Background(), query, named(args))
}

func (c *conn) Query(query string, args []driver.Value) (driver.Rows, error) {
	return c.QueryContext(context.Background(), query, named(args))
}

func (c *conn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	info := sqltext.Analyze(query)
	if kind, may := c.kindOf(info, Exec); may {
		if err := c.abort(ctx, kind); err != nil {
			return nil, err
		}
	}
	result, err := c.session.ExecContext(ctx, query, args)
	c.executed(info, err)
	return result, err
}

func (c *conn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	info := sqltext.Analyze(query)
	if kind, may := c.kindOf(info, Query); may {
		if err := c.abort(ctx, kind); err != nil {
			return nil, err
		}
	}
	inner, err := c.session.QueryContext(ctx, query, args)
	c.executed(info, err)
	if err != nil {
		return nil, err
	}
	return newRows(ctx, c, inner), nil
}

func (c *conn) Prepare(query string) (driver.Stmt, error) {
	return c.PrepareContext(context.Background(), query)
}

func (c *conn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	info := sqltext.Analyze(query)
	if kind, may := c.kindOf(info, Prepare); may && kind == Prepare {
		if err := c.abort(ctx, kind); err != nil {
			return nil, err
		}
	}
	inner, err := c.session.PrepareContext(ctx, query)
	if err != nil {
		c.block.failed(err)
		return nil, err
	}
	full, ok := inner.(innerStmt)
	if !ok {
		return inner, nil // COPY FROM STDIN is no ordinary statement
	}
	return &stmt{innerStmt: full, conn: c, info: info}, nil
}

func (c *conn) Begin() (driver.Tx, error) {
	return c.BeginTx(context.Background(), driver.TxOptions{})
}

func (c *conn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	inner, err := c.session.BeginTx(ctx, opts)
	if err != nil {
		return nil, err
	}
	c.enter()
	return &tx{inner: inner, conn: c}, nil
}
