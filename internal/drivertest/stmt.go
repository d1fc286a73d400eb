package drivertest

import (
	"context"
	"database/sql/driver"
)

// stmt is the state of a prepared statement, see conn.
type stmt struct {
	c      *conn
	id     int
	query  string
	inputs int
	closed bool
}

// usable notes the use of a closed statement, and of a wrong number of arguments,
// which database/sql would have refused.
func (s *stmt) usable(inv Invocation) error {
	if s.closed {
		s.c.d.violate("conn %d: %s on closed statement %d", s.c.id, inv.Method, s.id)
		inv.Conn = s.c.id
		s.c.d.record(inv)(errStmtClosed)
		return errStmtClosed
	}
	if s.inputs >= 0 && len(inv.Args) != s.inputs {
		s.c.d.violate("conn %d: %s of statement %d with %d arguments instead of %d", s.c.id, inv.Method, s.id, len(inv.Args), s.inputs)
	}
	return nil
}

func (s *stmt) exec(inv Invocation) (driver.Result, error) {
	inv.Stmt, inv.Query = s.id, s.query
	if err := s.usable(inv); err != nil {
		return nil, err
	}
	return s.c.exec(inv)
}

func (s *stmt) queryRows(inv Invocation) (driver.Rows, error) {
	inv.Stmt, inv.Query = s.id, s.query
	if err := s.usable(inv); err != nil {
		return nil, err
	}
	return s.c.query(inv)
}

// stmtBase has the methods every driver.Stmt has.
type stmtBase struct{ s *stmt }

func (b stmtBase) NumInput() int { return b.s.inputs }

func (b stmtBase) Close() error {
	s := b.s
	inv := Invocation{Call: StmtClose, Method: "Stmt.Close", Stmt: s.id, Query: s.query}
	if s.closed {
		s.c.d.violate("conn %d: statement %d closed twice", s.c.id, s.id)
		inv.Conn = s.c.id
		s.c.d.record(inv)(errStmtClosed)
		return errStmtClosed
	}
	out := s.c.perform(inv)
	s.closed = true
	if _, open := s.c.stmts[s]; open {
		delete(s.c.stmts, s)
		s.c.d.openStmts.Add(-1)
	}
	return out.err
}

func (b stmtBase) Exec(args []driver.Value) (driver.Result, error) {
	return b.s.exec(Invocation{Context: context.Background(), Call: StmtExec, Method: "Stmt.Exec", Args: namedValues(args)})
}

func (b stmtBase) Query(args []driver.Value) (driver.Rows, error) {
	return b.s.queryRows(Invocation{Context: context.Background(), Call: StmtQuery, Method: "Stmt.Query", Args: namedValues(args)})
}

type stmtExecContext struct{ s *stmt }

func (x stmtExecContext) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	return x.s.exec(Invocation{Context: ctx, Call: StmtExec, Method: "Stmt.ExecContext", Args: args})
}

type stmtQueryContext struct{ s *stmt }

func (x stmtQueryContext) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	return x.s.queryRows(Invocation{Context: ctx, Call: StmtQuery, Method: "Stmt.QueryContext", Args: args})
}

type stmtNamedValueChecker struct{ s *stmt }

func (x stmtNamedValueChecker) CheckNamedValue(nv *driver.NamedValue) error {
	inv := Invocation{Call: StmtCheckNamedValue, Method: "Stmt.CheckNamedValue", Stmt: x.s.id, Query: x.s.query}
	if !x.s.c.d.quiet {
		inv.Args = []driver.NamedValue{*nv}
	}
	if out := x.s.c.perform(inv); out.err != nil {
		return out.err
	}
	return x.s.c.d.checkValue(nv)
}

type stmtColumnConverter struct{ s *stmt }

func (x stmtColumnConverter) ColumnConverter(int) driver.ValueConverter {
	x.s.c.perform(Invocation{Call: ConvertColumn, Method: "Stmt.ColumnConverter", Stmt: x.s.id, Query: x.s.query})
	return yesNoConverter{}
}
