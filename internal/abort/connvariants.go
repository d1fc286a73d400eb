package abort

import (
	"context"
	"database/sql/driver"
)

// Interfaces that change what database/sql does by being there at all are offered
// only where the inner connection has them: without ExecerContext or QueryerContext
// it prepares statements first; with both SessionResetter and Validator it keeps a
// connection whose transaction a context ended. A SessionResetter alone shows
// nothing, so it is left out only beside a lonely Validator.
type (
	execerConn    struct{ conn *conn }
	queryConn     struct{ conn *conn }
	resettingConn struct{ conn *conn }
	validConn     struct{ conn *conn }
)

func (e execerConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	return e.conn.exec(ctx, query, args)
}

func (q queryConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	return q.conn.query(ctx, query, args)
}

func (r resettingConn) ResetSession(ctx context.Context) error {
	if resetter := r.conn.session.resetter; resetter != nil {
		return resetter.ResetSession(ctx)
	}
	return nil
}

func (v validConn) IsValid() bool { return v.conn.session.validator.IsValid() }

// offering returns the connection with the interfaces that fit the inner one.
func (c *conn) offering() driver.Conn {
	e, q, r, v := execerConn{c}, queryConn{c}, resettingConn{c}, validConn{c}
	execs := c.session.execer != nil || c.session.execerOld != nil
	queries := c.session.query != nil || c.session.queryOld != nil
	validates := c.session.validator != nil
	resets := c.session.resetter != nil || !validates
	switch {
	case !validates && execs && queries:
		return struct {
			*conn
			execerConn
			queryConn
			resettingConn
		}{c, e, q, r}
	case !validates && execs:
		return struct {
			*conn
			execerConn
			resettingConn
		}{c, e, r}
	case !validates && queries:
		return struct {
			*conn
			queryConn
			resettingConn
		}{c, q, r}
	case !validates:
		return struct {
			*conn
			resettingConn
		}{c, r}
	case resets && execs && queries:
		return struct {
			*conn
			execerConn
			queryConn
			resettingConn
			validConn
		}{c, e, q, r, v}
	case resets && execs:
		return struct {
			*conn
			execerConn
			resettingConn
			validConn
		}{c, e, r, v}
	case resets && queries:
		return struct {
			*conn
			queryConn
			resettingConn
			validConn
		}{c, q, r, v}
	case resets:
		return struct {
			*conn
			resettingConn
			validConn
		}{c, r, v}
	case execs && queries:
		return struct {
			*conn
			execerConn
			queryConn
			validConn
		}{c, e, q, v}
	case execs:
		return struct {
			*conn
			execerConn
			validConn
		}{c, e, v}
	case queries:
		return struct {
			*conn
			queryConn
			validConn
		}{c, q, v}
	}
	return struct {
		*conn
		validConn
	}{c, v}
}
