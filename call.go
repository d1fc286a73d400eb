package pgretry

import (
	"context"
	"database/sql/driver"
	"io"

	"github.com/pgretry/pgretry/internal/sqltext"
)

// exec makes the call.
func (s *call) exec(c *conn, ctx context.Context) (driver.Result, error) {
	if s.stmt != nil {
		if err := s.stmt.follow(ctx); err != nil {
			return nil, err
		}
	}
	c.takeOff()
	var result driver.Result
	var err error
	if s.stmt != nil {
		result, err = s.stmt.execer.ExecContext(ctx, s.args)
	} else {
		result, err = c.session.ExecContext(ctx, s.text, s.args)
	}
	return result, c.land(ctx, err)
}

// query makes the call.
func (s *call) query(c *conn, ctx context.Context) (driver.Rows, error) {
	if s.stmt != nil {
		if err := s.stmt.follow(ctx); err != nil {
			return nil, err
		}
	}
	c.takeOff()
	var rows driver.Rows
	var err error
	if s.stmt != nil {
		rows, err = s.stmt.queryer.QueryContext(ctx, s.args)
	} else {
		rows, err = c.session.QueryContext(ctx, s.text, s.args)
	}
	return c.landRows(ctx, rows, err)
}

// prepared returns an entry's call. A statement that the application has closed in
// the meantime is prepared once more, to be released afterwards.
func (c *conn) prepared(ctx context.Context, e *entry) (s call, release func() error, err error) {
	if e.stmt == nil || !e.stmt.closed || e.info.Copy == sqltext.CopyFromClient {
		return e.call, noRelease, nil
	}
	inner, err := c.session.PrepareContext(ctx, e.text)
	if err != nil {
		return call{}, nil, err
	}
	c.tap.lastStmt = nil
	s = e.call
	s.stmt = &stmt{conn: c, text: e.text}
	s.stmt.replace(inner)
	return s, inner.Close, nil
}

func noRelease() error { return nil }

// command executes a statement of the driver's own.
func (c *conn) command(ctx context.Context, text string) error {
	defer c.tap.asks()()
	_, err := c.session.ExecContext(ctx, text, nil)
	if err != driver.ErrSkip { //nolint:errorlint // drivers must return it bare
		return err
	}
	prepared, err := c.session.PrepareContext(ctx, text)
	if err != nil {
		return err
	}
	_, err = prepared.(driver.StmtExecContext).ExecContext(ctx, nil)
	return either(err, prepared.Close())
}

// ask executes a query of the driver's own and returns the first value of its first
// row, as text; "" if there is none.
func (c *conn) ask(ctx context.Context, text string) (answer string, err error) {
	defer c.tap.asks()()
	rows, err := c.session.QueryContext(ctx, text, nil)
	if err == driver.ErrSkip { //nolint:errorlint // drivers must return it bare
		prepared, prepareErr := c.session.PrepareContext(ctx, text)
		if prepareErr != nil {
			return "", prepareErr
		}
		defer func() { err = either(err, prepared.Close()) }()
		rows, err = prepared.(driver.StmtQueryContext).QueryContext(ctx, nil)
	}
	if err != nil {
		return "", err
	}
	c.tap.takeRows(rows)
	defer func() { err = either(err, rows.Close()) }()
	values := make([]driver.Value, len(rows.Columns()))
	switch err := rows.Next(values); {
	case err == io.EOF, err == nil && len(values) == 0: //nolint:errorlint // drivers must return it bare
		return "", nil
	case err != nil:
		return "", err
	}
	switch value := values[0].(type) {
	case string:
		return value, nil
	case []byte:
		return string(value), nil
	case nil:
		return "", nil
	}
	return "something", nil
}
