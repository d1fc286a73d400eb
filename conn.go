package pgretry

import (
	"context"
	"database/sql/driver"
)

// validatingConn is offered where the inner connection is both a Validator and a
// SessionResetter. With both present, database/sql keeps a connection whose
// transaction it rolled back because a context ended; with one missing, it does
// not, and we must not change its mind.
type validatingConn struct{ *conn }

var (
	_ driver.Conn               = (*conn)(nil)
	_ driver.ConnBeginTx        = (*conn)(nil)
	_ driver.ConnPrepareContext = (*conn)(nil)
	_ driver.ExecerContext      = (*conn)(nil)
	_ driver.NamedValueChecker  = (*conn)(nil)
	_ driver.Pinger             = (*conn)(nil)
	_ driver.QueryerContext     = (*conn)(nil)
	_ driver.SessionResetter    = (*conn)(nil)
	_ driver.Validator          = validatingConn{}
)

// conn is what database/sql holds: it forwards to the inner connection and
// watches what becomes of transactions.
//
// database/sql calls it from several goroutines, but one at a time.
type conn struct {
	session   session // otelsql's connection, or the tap
	tap       *tap
	connector *Connector

	tx       tx
	rawBlock rawBlock
}

func newConn(connector *Connector, inner session, t *tap) driver.Conn {
	c := &conn{session: inner, tap: t, connector: connector}
	c.tx.conn = c
	if t.validator != nil && t.resetter != nil {
		return validatingConn{c}
	}
	return c
}

// Raw returns the inner driver's connection, for example lib/pq's:
//
//	err := sqlConn.Raw(func(driverConn any) error {
//		inner := driverConn.(interface{ Raw() driver.Conn }).Raw()
//		…
//	})
//
// What is done through it the driver does not see.
func (c *conn) Raw() driver.Conn { return c.tap.Conn }

func (c *conn) Prepare(query string) (driver.Stmt, error) {
	return c.PrepareContext(context.Background(), query)
}

func (c *conn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	inTx := c.tx.isOpen()
	if inTx {
		ctx = c.tx.statementContext(ctx)
	}
	inner, err := c.session.PrepareContext(ctx, query)
	if err != nil {
		if inTx {
			c.tx.failed(err)
		}
		return nil, err
	}
	return newStmt(c, query, inner), nil
}

// Begin exists because driver.Conn demands it; database/sql calls BeginTx.
func (c *conn) Begin() (driver.Tx, error) {
	return c.BeginTx(context.Background(), driver.TxOptions{})
}

func (c *conn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	return c.tx.begin(ctx, opts)
}

func (c *conn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	if c.tx.isOpen() {
		result, err := c.session.ExecContext(c.tx.statementContext(ctx), query, args)
		c.tx.executed(query, err)
		return result, err
	}
	lone := c.beginLone(ctx, query)
	result, err := c.session.ExecContext(ctx, query, args)
	lone.executed(err)
	return result, err
}

func (c *conn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	if c.tx.isOpen() {
		inner, err := c.session.QueryContext(c.tx.statementContext(ctx), query, args)
		c.tx.executed(query, err)
		if err != nil {
			return nil, err
		}
		return newRows(c, inner, c.tx.number, loneStatement{}), nil
	}
	lone := c.beginLone(ctx, query)
	inner, err := c.session.QueryContext(ctx, query, args)
	lone.executed(err)
	if err != nil {
		return nil, err
	}
	return newRows(c, inner, 0, lone), nil
}

func (c *conn) CheckNamedValue(value *driver.NamedValue) error {
	return c.session.CheckNamedValue(value)
}

func (c *conn) Ping(ctx context.Context) error { return c.session.Ping(ctx) }

// ResetSession is offered even where the inner connection has none, so that a
// lost connection is dropped before it is used again.
func (c *conn) ResetSession(ctx context.Context) error {
	c.tx.abandon()
	c.rawBlock = rawBlock{}
	if !c.tap.isValid() {
		return driver.ErrBadConn
	}
	return c.session.ResetSession(ctx)
}

func (c *conn) Close() error {
	c.tx.abandon()
	return c.session.Close()
}

func (c validatingConn) IsValid() bool { return c.tap.isValid() }
