package pgretry

import (
	"context"
	"database/sql/driver"
	"sync/atomic"
	"time"
)

var (
	_ driver.Conn               = (*conn)(nil)
	_ driver.ConnBeginTx        = (*conn)(nil)
	_ driver.ConnPrepareContext = (*conn)(nil)
	_ driver.NamedValueChecker  = (*conn)(nil)
	_ driver.Pinger             = (*conn)(nil)
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
	journal  journal // of tx
	lone     journal // of the last statement outside a transaction
	loneUse  uint64  // counts those
	rawBlock rawBlock
	rawOpen  bool // a statement began a transaction and none has ended it
	rawDoubt bool // a statement that would have begun or ended one has failed
	broken   bool // something that had to work did not: nobody may use it again

	otherDefault bool // transactions that do not ask for a level are not under READ COMMITTED
	holdsCursor  bool // there may be a cursor that outlives its transaction

	origin      origin
	originAsked bool
	generation  int  // counts the sessions before this one
	gone        bool // the session is lost
	hungUp      bool // and closed
	stateful    bool // the session may hold what another one would lack
	// Of transactions, and statements, of a kind that has deadlocked.
	kind      atomic.Pointer[kind] // the last one's
	loneLocks bool                 // the statement outside a transaction may
	flights   uint64               // counts statements
	airborne  atomic.Uint64        // what the detector sees of the current one
	since     atomic.Int64         // the transaction's beginning, in nanoseconds since 1970
	tainted   atomic.Bool          // a cancel request may come at any time
	settings  settings

	idleSince time.Time // when it went back to the pool, as far as is known
}

func newConn(connector *Connector, inner session, t *tap) driver.Conn {
	c := &conn{session: inner, tap: t, connector: connector}
	c.tx.conn = c
	t.cache = newStatementCache(connector.config, t, &connector.plans)
	return c.offering()
}

// RawConn returns the inner driver's connection, lib/pq's for example, from what
// [sql.Conn.Raw] hands out; false if that is not a connection of ours. What is done
// through it the driver does not see.
//
//	err := sqlConn.Raw(func(driverConn any) error {
//		inner, _ := pgretry.RawConn(driverConn)
//		…
//	})
func RawConn(driverConn any) (driver.Conn, bool) {
	c, ok := driverConn.(interface{ itself() *conn })
	if !ok {
		return nil, false
	}
	return c.itself().Raw(), true
}

// Raw is RawConn for those who cannot import this package. What is done to the
// transaction through it the driver does not see.
func (c *conn) Raw() driver.Conn {
	if c.tx.isOpen() {
		c.tx.refuse(RefusedRawConn, "")
		c.tx.wrote, c.tx.hiddenEffect = true, true
	}
	c.stateful = true // who knows
	c.tap.cache.suspend()
	return c.tap.Conn
}

func (c *conn) Prepare(query string) (driver.Stmt, error) {
	return c.PrepareContext(context.Background(), query)
}

func (c *conn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	if c.tx.isOpen() {
		return c.tx.prepare(ctx, query)
	}
	if c.hasNoSession() {
		return nil, driver.ErrBadConn
	}
	inner, err := c.session.PrepareContext(ctx, query)
	if err != nil {
		err = c.lostBefore(ctx, PhaseStatement, err)
		if a := attemptFrom(ctx); a != nil {
			a.meets(c.connector)
			a.noteFailure(Classify(err, PhaseStatement), err)
		}
		return nil, err
	}
	return newStmt(c, query, inner), nil
}

// exec executes a statement, in the transaction if there is one.
func (c *conn) exec(ctx context.Context, s call) (driver.Result, error) {
	if c.tx.isOpen() {
		return c.tx.exec(ctx, s)
	}
	return c.execLone(ctx, s)
}

// query is exec for statements that return rows.
func (c *conn) query(ctx context.Context, s call) (driver.Rows, error) {
	if c.tx.isOpen() {
		return c.tx.query(ctx, s)
	}
	return c.queryLone(ctx, s)
}

// Begin exists because driver.Conn demands it; database/sql calls BeginTx.
func (c *conn) Begin() (driver.Tx, error) {
	return c.BeginTx(context.Background(), driver.TxOptions{})
}

func (c *conn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	if c.tx.state == txNone {
		return c.tx.begin(ctx, opts)
	}
	if c.tx.state == txPoisoned {
		return nil, c.tx.poison
	}
	// A *sql.Conn lets one begin again while a transaction is open. What comes of
	// that is the inner driver's business.
	c.tx.refuse(RefusedTxControl, "")
	c.tx.wrote, c.tx.hiddenEffect = true, true // what the other one does is not seen apart
	inner, err := c.session.BeginTx(c.tx.statementContext(ctx), opts)
	if err != nil {
		c.tx.failed(err)
		return nil, err
	}
	return innerTx{inner, &c.tx}, nil
}

func (c *conn) CheckNamedValue(value *driver.NamedValue) error {
	return c.session.CheckNamedValue(value)
}

func (c *conn) Ping(ctx context.Context) error { return c.session.Ping(ctx) }

func (c *conn) Close() error {
	c.tx.abandon()
	c.rawBlock.abandon()
	c.connector.memory.detector.remove(c)
	if c.hungUp {
		return nil
	}
	return c.session.Close()
}
