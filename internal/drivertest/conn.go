package drivertest

import (
	"context"
	"database/sql/driver"
	"errors"
	"sync/atomic"
)

// conn is the state of a connection. Its interfaces are the mixins below, of which
// connVariant joins those that are switched on.
type conn struct {
	d    *Driver
	id   int
	busy atomic.Uint32 // kind of the call that is running, 0 if none

	// What follows belongs to the call that is running.
	closed   bool
	bad      bool // ErrBadConn was returned or a rule dropped the connection
	block    block
	tx       *tx // open transaction
	rowsOpen int
	stmts    map[*stmt]struct{}

	spareTx   *tx // reused without a log
	spareRows *rows
}

// perform goes through what all calls on a connection have in common: one call at
// a time, contract, log, rules, transaction block, broken connections.
func (c *conn) perform(inv Invocation) effect {
	inv.Conn = c.id
	owned := c.busy.CompareAndSwap(0, uint32(inv.Call))
	if !owned {
		c.d.violate("conn %d: %s while %v is running", c.id, inv.Method, Call(c.busy.Load()))
	}
	if c.d.quiet && !c.d.hasRules.Load() && !c.d.txState {
		out := effect{err: c.precondition(&inv)}
		if out.err == nil {
			out.err = c.contextError(&inv)
		}
		if owned {
			c.busy.Store(0)
		}
		return out
	}
	return c.performScripted(inv, owned)
}

func (c *conn) performScripted(inv Invocation, owned bool) effect {
	done := c.d.record(inv)
	var out effect
	completed := false
	defer func() {
		if !completed { // a rule panicked
			done(errors.New("panic"))
		}
		if owned {
			c.busy.Store(0)
		}
	}()

	statement := inv.Call&(AnyStatement|Prepare) != 0
	var cmd command
	out.err = c.precondition(&inv)
	if out.err == nil && c.d.txState && statement {
		if inv.Call != Prepare {
			cmd = parseCommand(inv.Query)
		}
		out.err = c.block.before(cmd)
	}
	if out.err == nil {
		out = c.d.scripted(inv)
	}
	if out.err == nil {
		out.err = c.contextError(&inv)
	}
	if c.d.txState && (statement || inv.Call&(RowsNext|RowsNextResultSet|RowsClose) != 0) {
		c.block.after(cmd, out.err)
	}
	if out.drops || errors.Is(out.err, driver.ErrBadConn) {
		c.bad = true
	}
	completed = true
	done(out.err)
	return out
}

const contextCalls = Ping | Prepare | Begin | AnyStatement

func (c *conn) contextError(inv *Invocation) error {
	if inv.Call&contextCalls == 0 {
		return nil
	}
	if inv.Context == nil {
		c.d.violate("conn %d: %s without a context", c.id, inv.Method)
		return nil
	}
	return inv.Context.Err()
}

// precondition returns the error of a call that comes at the wrong time, and notes
// the violation if database/sql would not have made that call.
func (c *conn) precondition(inv *Invocation) error {
	if c.closed {
		c.d.violate("conn %d: %s on a closed connection", c.id, inv.Method)
		return errConnClosed
	}
	switch inv.Call {
	case Begin:
		if c.tx != nil {
			c.d.violate("conn %d: %s inside a transaction", c.id, inv.Method)
			return errInTransaction
		}
	case IsValid, ResetSession:
		// The connection goes to the pool or comes from it.
		if c.tx != nil {
			c.d.violate("conn %d: %s inside a transaction", c.id, inv.Method)
		}
		if c.rowsOpen > 0 {
			c.d.violate("conn %d: %s with rows open", c.id, inv.Method)
		}
	case Close:
		if c.rowsOpen > 0 {
			c.d.violate("conn %d: %s with rows open", c.id, inv.Method)
		}
	}
	if inv.Call&(AnyStatement|Prepare|Begin|Commit) != 0 && c.d.oneCursor && c.rowsOpen > 0 {
		c.d.violate("conn %d: %s with rows open", c.id, inv.Method)
		return errCursorOpen
	}
	if c.bad {
		if inv.Call&(AnyStatement|Prepare|Begin|Ping) != 0 {
			if c.tx == nil {
				c.d.violate("conn %d: %s on a connection known to be bad", c.id, inv.Method)
			}
			return driver.ErrBadConn
		}
		if inv.Call&(ResetSession|Commit|Rollback|RowsNext|RowsNextResultSet) != 0 {
			return driver.ErrBadConn
		}
	}
	checked := NamedValueChecker
	if inv.Call&(StmtExec|StmtQuery) != 0 {
		checked |= StmtNamedValueChecker
	}
	if inv.Call&AnyStatement != 0 && c.d.features&checked == 0 {
		if err := checkArgs(inv.Args); err != nil {
			c.d.violate("conn %d: %s: %v", c.id, inv.Method, err)
		}
	}
	return nil
}

func (c *conn) prepare(inv Invocation) (driver.Stmt, error) {
	if out := c.perform(inv); out.err != nil {
		return nil, out.err
	}
	s := &stmt{c: c, id: int(c.d.lastStmt.Add(1)), query: inv.Query, inputs: -1}
	if !c.d.unknownInputs {
		s.inputs = placeholders(inv.Query)
	}
	if c.stmts == nil {
		c.stmts = make(map[*stmt]struct{})
	}
	c.stmts[s] = struct{}{}
	c.d.openStmts.Add(1)
	return stmtVariant(s, c.d.features&StmtFeatures/StmtExecContext), nil
}

func (c *conn) exec(inv Invocation) (driver.Result, error) {
	out := c.perform(inv)
	switch {
	case out.err != nil:
		return nil, out.err
	case out.result != nil:
		return out.result, nil
	}
	return defaultResult, nil
}

func (c *conn) query(inv Invocation) (driver.Rows, error) {
	out := c.perform(inv)
	if out.err != nil {
		return nil, out.err
	}
	return c.newRows(inv.Context, inv.Query, out.sets), nil
}

func (c *conn) begin(inv Invocation) (driver.Tx, error) {
	if out := c.perform(inv); out.err != nil {
		return nil, out.err
	}
	t := c.spareTx
	if t == nil {
		t = &tx{c: c}
		if c.d.quiet {
			c.spareTx = t
		}
	}
	t.ctx, t.ended = inv.Context, false
	c.tx = t
	c.block.end()
	c.block.open = true
	c.d.openTxs.Add(1)
	return t, nil
}

func (c *conn) endTx() {
	if c.tx != nil {
		c.tx.ended = true
		c.tx = nil
		c.d.openTxs.Add(-1)
	}
	c.block.end()
}

// connBase has the methods every driver.Conn has.
type connBase struct{ c *conn }

func (b connBase) Prepare(query string) (driver.Stmt, error) {
	return b.c.prepare(Invocation{Context: context.Background(), Call: Prepare, Method: "Prepare", Query: query})
}

func (b connBase) Close() error {
	c := b.c
	already := c.closed
	out := c.perform(Invocation{Call: Close, Method: "Close"})
	if already {
		return out.err
	}
	c.closed = true
	c.endTx()
	c.d.openConns.Add(-1)
	c.d.openStmts.Add(-int64(len(c.stmts)))
	c.d.openRows.Add(-int64(c.rowsOpen))
	c.stmts, c.rowsOpen = nil, 0
	return out.err
}

func (b connBase) Begin() (driver.Tx, error) {
	return b.c.begin(Invocation{Context: context.Background(), Call: Begin, Method: "Begin"})
}

type execerContext struct{ c *conn }

func (x execerContext) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	return x.c.exec(Invocation{Context: ctx, Call: Exec, Method: "ExecContext", Query: query, Args: args})
}

type queryerContext struct{ c *conn }

func (x queryerContext) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	return x.c.query(Invocation{Context: ctx, Call: Query, Method: "QueryContext", Query: query, Args: args})
}

type execer struct{ c *conn }

func (x execer) Exec(query string, args []driver.Value) (driver.Result, error) {
	return x.c.exec(Invocation{Context: context.Background(), Call: Exec, Method: "Exec", Query: query, Args: namedValues(args)})
}

type queryer struct{ c *conn }

func (x queryer) Query(query string, args []driver.Value) (driver.Rows, error) {
	return x.c.query(Invocation{Context: context.Background(), Call: Query, Method: "Query", Query: query, Args: namedValues(args)})
}

type connPrepareContext struct{ c *conn }

func (x connPrepareContext) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	return x.c.prepare(Invocation{Context: ctx, Call: Prepare, Method: "PrepareContext", Query: query})
}

type connBeginTx struct{ c *conn }

func (x connBeginTx) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	return x.c.begin(Invocation{Context: ctx, Call: Begin, Method: "BeginTx", Options: opts})
}

type pinger struct{ c *conn }

func (x pinger) Ping(ctx context.Context) error {
	return x.c.perform(Invocation{Context: ctx, Call: Ping, Method: "Ping"}).err
}

type sessionResetter struct{ c *conn }

func (x sessionResetter) ResetSession(ctx context.Context) error {
	return x.c.perform(Invocation{Context: ctx, Call: ResetSession, Method: "ResetSession"}).err
}

type validator struct{ c *conn }

func (x validator) IsValid() bool {
	out := x.c.perform(Invocation{Call: IsValid, Method: "IsValid"})
	return out.err == nil && !x.c.bad
}

type namedValueChecker struct{ c *conn }

func (x namedValueChecker) CheckNamedValue(nv *driver.NamedValue) error {
	inv := Invocation{Call: CheckNamedValue, Method: "CheckNamedValue"}
	if !x.c.d.quiet {
		inv.Args = []driver.NamedValue{*nv}
	}
	if out := x.c.perform(inv); out.err != nil {
		return out.err
	}
	return x.c.d.checkValue(nv)
}
