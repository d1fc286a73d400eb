package abort

import (
	"context"
	"database/sql/driver"

	"github.com/pgretry/pgretry/internal/sqltext"
)

var (
	_ driver.Conn               = (*conn)(nil)
	_ driver.ConnBeginTx        = (*conn)(nil)
	_ driver.ConnPrepareContext = (*conn)(nil)
	_ driver.NamedValueChecker  = (*conn)(nil)
	_ driver.Pinger             = (*conn)(nil)
)

// conn is a connection. One call at a time is made on it.
type conn struct {
	session   session
	connector *Connector
	number    int64 // of the connector's connections, from 1
	calls     int64 // that could have failed
	own       bool  // the driver around it makes calls that are not the application's
	streak    int64 // of blocks, up to the last one, that were aborted here on purpose
	block     block
}

// Raw returns the inner connection.
func (c *conn) Raw() driver.Conn { return c.session.Conn }

// Own tells whether the calls that follow are pgretry's own and not the application's.
func (c *conn) Own(own bool) { c.own = own }

func (c *conn) Close() error { return c.session.Close() }

func (c *conn) exec(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	s := statement{text: query, info: sqltext.Analyze(query)}
	before := c.block
	if err := c.abort(ctx, Exec, s, args); err != nil {
		return nil, err
	}
	result, err := c.session.execContext(ctx, query, args)
	if err == driver.ErrSkip { //nolint:errorlint // drivers must return it bare
		c.skipped(before)
		return nil, err
	}
	c.executed(ctx, s, err)
	return result, err
}

// skipped takes back a call that the inner driver has not made: the statement will be
// prepared, and counts as what it is then.
func (c *conn) skipped(before block) {
	if before.script != nil && before.executed != c.block.executed {
		before.script.Skipped()
	}
	c.block = before
}

func (c *conn) query(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	s := statement{text: query, info: sqltext.Analyze(query)}
	before := c.block
	if err := c.abort(ctx, Query, s, args); err != nil {
		return nil, err
	}
	inner, err := c.session.queryContext(ctx, query, args)
	if err == driver.ErrSkip { //nolint:errorlint // drivers must return it bare
		c.skipped(before)
		return nil, err
	}
	c.executed(ctx, s, err)
	if err != nil {
		return nil, err
	}
	return newRows(ctx, c, inner), nil
}

func (c *conn) Prepare(query string) (driver.Stmt, error) {
	return c.PrepareContext(context.Background(), query)
}

func (c *conn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	s := statement{text: query, info: sqltext.Analyze(query)}
	if c.block.state != outside {
		if err := c.abort(ctx, Prepare, s, nil); err != nil {
			return nil, err
		}
	}
	inner, err := c.session.prepareContext(ctx, query)
	if err != nil {
		c.block.failed(err)
		return nil, err
	}
	if s.info.Copy == sqltext.CopyFromClient {
		return inner, nil // no ordinary statement: lib/pq sends rows with it
	}
	return newStmt(c, s, inner), nil
}

func (c *conn) Begin() (driver.Tx, error) {
	return c.BeginTx(context.Background(), driver.TxOptions{})
}

func (c *conn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	var scripted ScriptedBlock
	if script := scriptFrom(ctx); script != nil {
		var err error
		if scripted, err = script.Begin(ctx, Session{&c.session}); err != nil {
			return nil, err
		}
	}
	inner, err := c.session.beginTx(ctx, opts)
	if err != nil {
		return nil, err
	}
	c.enter(ctx)
	c.block.script = scripted
	return &tx{inner: inner, conn: c, ctx: ctx}, nil
}

func (c *conn) Ping(ctx context.Context) error {
	if c.session.pinger == nil {
		return nil
	}
	return c.session.pinger.Ping(ctx)
}

func (c *conn) CheckNamedValue(value *driver.NamedValue) error {
	if c.session.checker == nil {
		return driver.ErrSkip
	}
	return c.session.checker.CheckNamedValue(value)
}
