package histories_test

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
)

// naive is how not to do it: a driver that replays a transaction after a conflict
// without a look at what the replayed statements show. It has one more flaw on
// request.
type naive struct {
	driver.Connector
	// forgets makes it begin again with the statement that failed, without those
	// before it.
	forgets bool
}

// naiveAttempts is how often it begins a transaction.
const naiveAttempts = 30

var errNaiveOver = errors.New("naive: the transaction is over")

func (n naive) Connect(ctx context.Context) (driver.Conn, error) {
	inner, err := n.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return &naiveConn{naiveInner: inner.(naiveInner), forgets: n.forgets}, nil
}

type naiveInner interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.ExecerContext
	driver.NamedValueChecker
	driver.Pinger
	driver.QueryerContext
	driver.SessionResetter
	driver.Validator
}

type naiveConn struct {
	naiveInner
	forgets  bool
	ctx      context.Context
	opts     driver.TxOptions
	inTx     bool
	tx       driver.Tx // nil if rolled back, or outside transactions
	attempts int
	journal  []func() error
}

func isConflict(err error) bool {
	var state interface{ SQLState() string }
	return errors.As(err, &state) && (state.SQLState() == "40001" || state.SQLState() == "40P01")
}

func (c *naiveConn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	tx, err := c.naiveInner.BeginTx(ctx, opts)
	if err != nil {
		return nil, err
	}
	c.ctx, c.opts, c.inTx, c.tx, c.attempts, c.journal = ctx, opts, true, tx, 1, nil
	return naiveTx{c}, nil
}

// rollback ends the attempt.
func (c *naiveConn) rollback() error {
	if c.tx == nil {
		return nil
	}
	tx := c.tx
	c.tx = nil
	return tx.Rollback()
}

// replay rolls back, begins again and repeats everything.
func (c *naiveConn) replay() error {
	for {
		if err := c.rollback(); err != nil {
			return err
		}
		if c.attempts == naiveAttempts {
			return errNaiveOver
		}
		c.attempts++
		if err := c.again(); !isConflict(err) {
			return err
		}
	}
}

func (c *naiveConn) again() (err error) {
	if c.tx, err = c.naiveInner.BeginTx(c.ctx, c.opts); err != nil {
		c.tx = nil
		return err
	}
	if c.forgets {
		c.journal = nil
	}
	for _, statement := range c.journal {
		if err := statement(); err != nil {
			return err
		}
	}
	return nil
}

// do runs a statement, again if need be. repeat is what a replay does in its place.
func (c *naiveConn) do(run, repeat func() error) error {
	if !c.inTx {
		return run()
	}
	if c.tx == nil {
		return errNaiveOver
	}
	err := run()
	for isConflict(err) {
		if c.replay() != nil {
			return err
		}
		err = run()
	}
	if err == nil {
		c.journal = append(c.journal, repeat)
	}
	return err
}

func (c *naiveConn) exec(run func() (driver.Result, error)) (result driver.Result, err error) {
	execute := func() error {
		result, err = run()
		return err
	}
	return result, c.do(execute, func() error {
		_, err := run()
		return err
	})
}

func (c *naiveConn) query(run func() (driver.Rows, error)) (driver.Rows, error) {
	rows := &naiveRows{conn: c, run: run}
	if err := rows.open(); err != nil {
		return nil, err
	}
	return rows, nil
}

func (c *naiveConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	return c.exec(func() (driver.Result, error) { return c.naiveInner.ExecContext(ctx, query, args) })
}

func (c *naiveConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	return c.query(func() (driver.Rows, error) { return c.naiveInner.QueryContext(ctx, query, args) })
}

func (c *naiveConn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	var stmt driver.Stmt
	prepare := func() (err error) {
		stmt, err = c.naiveInner.PrepareContext(ctx, query)
		return err
	}
	if err := c.do(prepare, func() error { return nil }); err != nil {
		return nil, err
	}
	return &naiveStmt{stmt.(naiveInnerStmt), c}, nil
}

type naiveInnerStmt interface {
	driver.Stmt
	driver.StmtExecContext
	driver.StmtQueryContext
}

type naiveStmt struct {
	naiveInnerStmt
	conn *naiveConn
}

func (s *naiveStmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	return s.conn.exec(func() (driver.Result, error) { return s.naiveInnerStmt.ExecContext(ctx, args) })
}

func (s *naiveStmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	return s.conn.query(func() (driver.Rows, error) { return s.naiveInnerStmt.QueryContext(ctx, args) })
}

type naiveTx struct{ conn *naiveConn }

func (t naiveTx) Commit() error {
	c := t.conn
	c.inTx = false
	for {
		if c.tx == nil {
			return errNaiveOver
		}
		tx := c.tx
		c.tx = nil
		err := tx.Commit()
		if !isConflict(err) || c.replay() != nil {
			return errors.Join(err, c.rollback())
		}
	}
}

func (t naiveTx) Rollback() error {
	t.conn.inTx = false
	return t.conn.rollback()
}

// naiveRows are rows that go on where they were after a replay, whatever the rows
// are then.
type naiveRows struct {
	conn    *naiveConn
	run     func() (driver.Rows, error)
	rows    driver.Rows
	fetched int
}

func (r *naiveRows) open() error {
	return r.conn.do(func() error {
		rows, err := r.run()
		if err == nil {
			r.rows = rows
		}
		return err
	}, func() error {
		rows, err := r.run()
		if err != nil {
			return err
		}
		return drain(rows)
	})
}

func drain(rows driver.Rows) error {
	dest := make([]driver.Value, len(rows.Columns()))
	for {
		if err := rows.Next(dest); err == io.EOF { //nolint:errorlint // drivers return it bare
			return rows.Close()
		} else if err != nil {
			return errors.Join(err, rows.Close())
		}
	}
}

// reopen replays everything before the query and runs the query again.
func (r *naiveRows) reopen() error {
	c := r.conn
	c.journal = c.journal[:max(len(c.journal)-1, 0)]
	if err := r.rows.Close(); err != nil {
		return err
	}
	if err := c.replay(); err != nil {
		return err
	}
	if err := r.open(); err != nil {
		return err
	}
	dest := make([]driver.Value, len(r.rows.Columns()))
	for range r.fetched {
		if err := r.rows.Next(dest); err != nil {
			return fmt.Errorf("naive: a row is gone: %w", err)
		}
	}
	return nil
}

func (r *naiveRows) Columns() []string { return r.rows.Columns() }

func (r *naiveRows) Next(dest []driver.Value) error {
	err := r.rows.Next(dest)
	for isConflict(err) && r.conn.inTx {
		if again := r.reopen(); isConflict(again) && r.conn.tx != nil {
			continue
		} else if again != nil {
			return err
		}
		err = r.rows.Next(dest)
	}
	if err == nil {
		r.fetched++
	}
	return err
}

func (r *naiveRows) Close() error {
	err := r.rows.Close()
	if isConflict(err) && r.conn.inTx && r.conn.replay() == nil {
		return nil
	}
	return err
}
