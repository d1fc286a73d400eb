package parity_test

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"reflect"
)

// A wrapper that changes nothing, or does what its flaws say. It shows that the
// suite can be passed by something that is not the driver itself, and what it finds
// if not.
type flaws struct {
	losesScanType        bool
	losesResultSets      bool
	losesLength          bool
	wrapsErrors          bool
	copiesErrors         bool
	wrapsErrorsOfRows    bool
	hidesErrorsOfRows    bool
	wrapsSkip            bool
	swallowsAffected     bool
	alwaysValidates      bool
	neverValidates       bool
	dropsBadReset        bool
	losesContext         bool
	ignoresOptions       bool
	losesArgumentChecker bool
	preparesEverything   bool
	rollsBackTwice       bool
	leaksStatements      bool
	leavesRowsOpen       bool
	hidesRaw             bool
	losesConnectorClose  bool
	commitsAborted       bool
	copiesBytesLate      bool
	reconnects           bool
	pingsTwice           bool
}

func (f flaws) wrap(c driver.Connector) driver.Connector {
	r := refConnector{c, f}
	if _, ok := c.(io.Closer); ok && !f.losesConnectorClose {
		return refClosingConnector{r}
	}
	return r
}

// err is what the flaws make of an error.
func (f flaws) err(err error) error {
	switch {
	case err == nil:
		return nil
	case err == driver.ErrSkip:
		if f.wrapsSkip {
			return fmt.Errorf("wrapper: %w", err)
		}
		return err
	case f.wrapsErrors:
		return fmt.Errorf("wrapper: %w", err)
	case f.copiesErrors && reflect.TypeOf(err).Kind() == reflect.Pointer:
		duplicate := reflect.New(reflect.TypeOf(err).Elem())
		duplicate.Elem().Set(reflect.ValueOf(err).Elem())
		if e, ok := duplicate.Interface().(error); ok && !errors.Is(err, driver.ErrBadConn) {
			return e
		}
	}
	return err
}

type refConnector struct {
	driver.Connector
	f flaws
}

func (c refConnector) Connect(ctx context.Context) (driver.Conn, error) {
	inner, err := c.Connector.Connect(ctx)
	if err != nil && c.f.reconnects {
		inner, err = c.Connector.Connect(ctx)
	}
	if err != nil {
		return nil, c.f.err(err)
	}
	conn := &refConn{inner, c.f}
	_, resets := inner.(driver.SessionResetter)
	_, validates := inner.(driver.Validator)
	validates = (validates || c.f.alwaysValidates) && !c.f.neverValidates
	var variant driver.Conn = conn
	switch {
	case resets && validates:
		variant = struct {
			*refConn
			refResetter
			refValidator
		}{conn, refResetter{conn}, refValidator{conn}}
	case resets:
		variant = struct {
			*refConn
			refResetter
		}{conn, refResetter{conn}}
	case validates:
		variant = struct {
			*refConn
			refValidator
		}{conn, refValidator{conn}}
	}
	if c.f.hidesRaw {
		return variant, nil
	}
	return withRaw(variant, conn), nil
}

type refClosingConnector struct{ refConnector }

func (c refClosingConnector) Close() error { return c.Connector.(io.Closer).Close() }

// withRaw adds the method Raw to the variants of connections.
func withRaw(variant driver.Conn, conn *refConn) driver.Conn {
	switch v := variant.(type) {
	case interface {
		refFull
		driver.SessionResetter
		driver.Validator
	}:
		return struct {
			refFull
			driver.SessionResetter
			driver.Validator
			refRaw
		}{v, v, v, refRaw{conn}}
	case interface {
		refFull
		driver.SessionResetter
	}:
		return struct {
			refFull
			driver.SessionResetter
			refRaw
		}{v, v, refRaw{conn}}
	case interface {
		refFull
		driver.Validator
	}:
		return struct {
			refFull
			driver.Validator
			refRaw
		}{v, v, refRaw{conn}}
	case refFull:
		return struct {
			refFull
			refRaw
		}{v, refRaw{conn}}
	}
	panic("no variant")
}

// refFull is what every variant has.
type refFull interface {
	driver.Conn
	driver.ExecerContext
	driver.QueryerContext
	driver.ConnPrepareContext
	driver.ConnBeginTx
	driver.Pinger
	driver.NamedValueChecker
}

type refRaw struct{ c *refConn }

func (r refRaw) Raw() driver.Conn { return r.c.inner }

type refConn struct {
	inner driver.Conn
	f     flaws
}

func (c *refConn) context(ctx context.Context) context.Context {
	if c.f.losesContext {
		return context.Background()
	}
	return ctx
}

func values(args []driver.NamedValue) ([]driver.Value, error) {
	list := make([]driver.Value, len(args))
	for i, arg := range args {
		if arg.Name != "" {
			return nil, errors.New("sql: driver does not support the use of Named Parameters")
		}
		list[i] = arg.Value
	}
	return list, nil
}

func (c *refConn) Prepare(query string) (driver.Stmt, error) {
	return c.PrepareContext(context.Background(), query)
}

func (c *refConn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	ctx = c.context(ctx)
	var s driver.Stmt
	var err error
	if p, ok := c.inner.(driver.ConnPrepareContext); ok {
		s, err = p.PrepareContext(ctx, query)
	} else if s, err = c.inner.Prepare(query); err == nil && ctx.Err() != nil {
		s.Close()
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, c.f.err(err)
	}
	stmt := &refStmt{s, c}
	checker, checks := s.(driver.NamedValueChecker)
	converter, converts := s.(columnConverter)
	switch {
	case checks && converts:
		return struct {
			*refStmt
			driver.NamedValueChecker
			columnConverter
		}{stmt, checker, converter}, nil
	case checks:
		return struct {
			*refStmt
			driver.NamedValueChecker
		}{stmt, checker}, nil
	case converts:
		return struct {
			*refStmt
			columnConverter
		}{stmt, converter}, nil
	}
	return stmt, nil
}

func (c *refConn) Close() error { return c.f.err(c.inner.Close()) }

func (c *refConn) Begin() (driver.Tx, error) {
	return c.BeginTx(context.Background(), driver.TxOptions{})
}

func (c *refConn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	ctx = c.context(ctx)
	if c.f.ignoresOptions {
		opts = driver.TxOptions{}
	}
	var tx driver.Tx
	var err error
	if b, ok := c.inner.(driver.ConnBeginTx); ok {
		tx, err = b.BeginTx(ctx, opts)
	} else {
		switch {
		case opts.Isolation != 0:
			return nil, errors.New("sql: driver does not support non-default isolation level")
		case opts.ReadOnly:
			return nil, errors.New("sql: driver does not support read-only transactions")
		}
		if tx, err = c.inner.Begin(); err == nil && ctx.Err() != nil {
			tx.Rollback()
			return nil, ctx.Err()
		}
	}
	if err != nil {
		return nil, c.f.err(err)
	}
	return &refTx{tx, c.f}, nil
}

func (c *refConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	ctx = c.context(ctx)
	if c.f.preparesEverything {
		return nil, c.f.err(driver.ErrSkip)
	}
	if e, ok := c.inner.(driver.ExecerContext); ok {
		return c.result(e.ExecContext(ctx, query, args))
	}
	e, ok := c.inner.(driver.Execer) //lint:ignore SA1019 parity includes it
	if !ok {
		return nil, c.f.err(driver.ErrSkip)
	}
	list, err := values(args)
	if err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return c.result(e.Exec(query, list))
}

func (c *refConn) result(r driver.Result, err error) (driver.Result, error) {
	if err != nil {
		return nil, c.f.err(err)
	}
	if c.f.swallowsAffected {
		return driver.RowsAffected(0), nil
	}
	return r, nil
}

func (c *refConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	ctx = c.context(ctx)
	if c.f.preparesEverything {
		return nil, c.f.err(driver.ErrSkip)
	}
	if q, ok := c.inner.(driver.QueryerContext); ok {
		return c.rows(q.QueryContext(ctx, query, args))
	}
	q, ok := c.inner.(driver.Queryer) //lint:ignore SA1019 parity includes it
	if !ok {
		return nil, c.f.err(driver.ErrSkip)
	}
	list, err := values(args)
	if err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return c.rows(q.Query(query, list))
}

func (c *refConn) rows(r driver.Rows, err error) (driver.Rows, error) {
	if err != nil {
		return nil, c.f.err(err)
	}
	return &refRows{Rows: r, f: c.f}, nil
}

func (c *refConn) Ping(ctx context.Context) error {
	p, ok := c.inner.(driver.Pinger)
	if !ok {
		return nil
	}
	if c.f.pingsTwice {
		p.Ping(ctx)
	}
	return c.f.err(p.Ping(c.context(ctx)))
}

func (c *refConn) CheckNamedValue(nv *driver.NamedValue) error {
	if checker, ok := c.inner.(driver.NamedValueChecker); ok && !c.f.losesArgumentChecker {
		return checker.CheckNamedValue(nv)
	}
	return driver.ErrSkip
}

// columnConverter is driver.ColumnConverter under another name: embedded under its
// own, the field would hide the method.
type columnConverter interface {
	ColumnConverter(int) driver.ValueConverter
}

type refResetter struct{ c *refConn }

func (r refResetter) ResetSession(ctx context.Context) error {
	s, ok := r.c.inner.(driver.SessionResetter)
	if !ok || r.c.f.dropsBadReset {
		return nil
	}
	return s.ResetSession(ctx)
}

type refValidator struct{ c *refConn }

func (r refValidator) IsValid() bool {
	v, ok := r.c.inner.(driver.Validator)
	return !ok || v.IsValid()
}

type refTx struct {
	driver.Tx
	f flaws
}

func (t *refTx) Commit() error {
	err := t.Tx.Commit()
	if t.f.commitsAborted {
		return nil
	}
	return t.f.err(err)
}

func (t *refTx) Rollback() error {
	err := t.Tx.Rollback()
	if t.f.rollsBackTwice {
		t.Tx.Rollback()
	}
	return t.f.err(err)
}

type refStmt struct {
	inner driver.Stmt
	c     *refConn
}

func (s *refStmt) Close() error {
	if s.c.f.leaksStatements {
		return nil
	}
	return s.inner.Close()
}

func (s *refStmt) NumInput() int { return s.inner.NumInput() }

func (s *refStmt) Exec([]driver.Value) (driver.Result, error) { panic("superseded") }

func (s *refStmt) Query([]driver.Value) (driver.Rows, error) { panic("superseded") }

func (s *refStmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	ctx = s.c.context(ctx)
	if e, ok := s.inner.(driver.StmtExecContext); ok {
		return s.c.result(e.ExecContext(ctx, args))
	}
	list, err := values(args)
	if err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return s.c.result(s.inner.Exec(list))
}

func (s *refStmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	ctx = s.c.context(ctx)
	if q, ok := s.inner.(driver.StmtQueryContext); ok {
		return s.c.rows(q.QueryContext(ctx, args))
	}
	list, err := values(args)
	if err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return s.c.rows(s.inner.Query(list))
}

type refRows struct {
	driver.Rows
	f    flaws
	last []driver.Value
}

func (r *refRows) rowsErr(err error) error {
	switch {
	case err == nil || err == io.EOF:
		return err
	case r.f.hidesErrorsOfRows:
		return io.EOF
	case r.f.wrapsErrorsOfRows:
		return fmt.Errorf("wrapper: %w", err)
	}
	return r.f.err(err)
}

func (r *refRows) Next(dest []driver.Value) error {
	err := r.rowsErr(r.Rows.Next(dest))
	if r.f.copiesBytesLate && err == nil {
		// Hands out the values of the row before: they alias a buffer that has been
		// overwritten since.
		for i := range dest {
			if i < len(r.last) {
				dest[i], r.last[i] = r.last[i], dest[i]
			} else {
				r.last = append(r.last, dest[i])
			}
		}
	}
	return err
}

func (r *refRows) Close() error {
	if r.f.leavesRowsOpen {
		return nil
	}
	err := r.Rows.Close()
	if r.f.hidesErrorsOfRows {
		return nil
	}
	return r.rowsErr(err)
}

func (r *refRows) HasNextResultSet() bool {
	if n, ok := r.Rows.(driver.RowsNextResultSet); ok && !r.f.losesResultSets {
		return n.HasNextResultSet()
	}
	return false
}

func (r *refRows) NextResultSet() error {
	if n, ok := r.Rows.(driver.RowsNextResultSet); ok && !r.f.losesResultSets {
		return r.rowsErr(n.NextResultSet())
	}
	return io.EOF
}

func (r *refRows) ColumnTypeScanType(i int) reflect.Type {
	if t, ok := r.Rows.(driver.RowsColumnTypeScanType); ok && !r.f.losesScanType {
		return t.ColumnTypeScanType(i)
	}
	return reflect.TypeFor[any]()
}

func (r *refRows) ColumnTypeDatabaseTypeName(i int) string {
	if t, ok := r.Rows.(driver.RowsColumnTypeDatabaseTypeName); ok {
		return t.ColumnTypeDatabaseTypeName(i)
	}
	return ""
}

func (r *refRows) ColumnTypeLength(i int) (int64, bool) {
	if t, ok := r.Rows.(driver.RowsColumnTypeLength); ok && !r.f.losesLength {
		return t.ColumnTypeLength(i)
	}
	return 0, false
}

func (r *refRows) ColumnTypeNullable(i int) (nullable, ok bool) {
	if t, ok := r.Rows.(driver.RowsColumnTypeNullable); ok {
		return t.ColumnTypeNullable(i)
	}
	return false, false
}

func (r *refRows) ColumnTypePrecisionScale(i int) (precision, scale int64, ok bool) {
	if t, ok := r.Rows.(driver.RowsColumnTypePrecisionScale); ok {
		return t.ColumnTypePrecisionScale(i)
	}
	return 0, 0, false
}
