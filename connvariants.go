package pgretry

import (
	"context"
	"database/sql/driver"
	"time"
)

// Some interfaces of a connection change what database/sql does by being there at
// all, so they are offered only where the inner connection has them:
//
//   - without ExecerContext or QueryerContext it prepares the statement first and
//     lets the statement, not the connection, convert the arguments;
//   - with both SessionResetter and Validator it keeps a connection whose
//     transaction a context ended. Lost connections have to be dropped somehow,
//     so SessionResetter is left out only where the inner connection has nothing
//     but a Validator.
type (
	execerConn    struct{ conn *conn }
	queryConn     struct{ conn *conn }
	resettingConn struct{ conn *conn }
	validConn     struct{ conn *conn }
)

var (
	_ driver.ExecerContext   = execerConn{}
	_ driver.QueryerContext  = queryConn{}
	_ driver.SessionResetter = resettingConn{}
	_ driver.Validator       = validConn{}
)

// offering returns the connection with the interfaces that fit the inner one.
func (c *conn) offering() driver.Conn {
	e, q, r, v := execerConn{c}, queryConn{c}, resettingConn{c}, validConn{c}
	t := c.tap
	execs := t.execer != nil || t.execerOld != nil
	queries := t.query != nil || t.queryOld != nil
	switch {
	case t.validator == nil && execs && queries:
		return struct {
			*conn
			execerConn
			queryConn
			resettingConn
		}{c, e, q, r}
	case t.validator == nil && execs:
		return struct {
			*conn
			execerConn
			resettingConn
		}{c, e, r}
	case t.validator == nil && queries:
		return struct {
			*conn
			queryConn
			resettingConn
		}{c, q, r}
	case t.validator == nil:
		return struct {
			*conn
			resettingConn
		}{c, r}
	case t.resetter == nil && execs && queries:
		return struct {
			*conn
			execerConn
			queryConn
			validConn
		}{c, e, q, v}
	case t.resetter == nil && execs:
		return struct {
			*conn
			execerConn
			validConn
		}{c, e, v}
	case t.resetter == nil && queries:
		return struct {
			*conn
			queryConn
			validConn
		}{c, q, v}
	case t.resetter == nil:
		return struct {
			*conn
			validConn
		}{c, v}
	case execs && queries:
		return struct {
			*conn
			execerConn
			queryConn
			resettingConn
			validConn
		}{c, e, q, r, v}
	case execs:
		return struct {
			*conn
			execerConn
			resettingConn
			validConn
		}{c, e, r, v}
	case queries:
		return struct {
			*conn
			queryConn
			resettingConn
			validConn
		}{c, q, r, v}
	}
	return struct {
		*conn
		resettingConn
		validConn
	}{c, r, v}
}

// itself leads back from what database/sql holds to the connection.
func (c *conn) itself() *conn { return c }

func (e execerConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	return e.conn.exec(ctx, call{kind: callExec, text: query, args: args})
}

func (q queryConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	return q.conn.query(ctx, call{kind: callQuery, text: query, args: args})
}

// IsValid is asked when a connection goes back to the pool.
func (v validConn) IsValid() bool {
	if v.conn.tap.wire != nil {
		v.conn.idleSince = time.Now()
	}
	return !v.conn.broken && v.conn.tap.isValid()
}

// ResetSession runs before a connection from the pool is used again.
func (r resettingConn) ResetSession(ctx context.Context) error {
	c := r.conn
	c.tx.abandon()
	// A raw block that was left open is still open: it is forgotten, not ended.
	c.rawBlock = rawBlock{}
	if c.broken {
		return driver.ErrBadConn
	}
	// The look comes first: pgx asks the server now and then, and of one that has hung up
	// it tells no more than that the connection is bad.
	if err := c.stillThere(ctx); err != nil {
		return err
	}
	return c.session.ResetSession(ctx)
}
