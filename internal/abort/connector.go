package abort

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
)

var (
	_ driver.Connector = (*Connector)(nil)
	_ io.Closer        = (*Connector)(nil)
)

// Connector is a [driver.Connector] around another one. It is safe for concurrent
// use.
type Connector struct {
	inner  driver.Connector
	config config

	off          atomic.Bool
	connections  atomic.Int64
	transactions atomic.Int64
	injected     counters
}

// NewConnector returns a connector around inner, which must lead to connections
// with the optional interfaces that lib/pq's have. It injects from the start.
func NewConnector(inner driver.Connector, options ...Option) (*Connector, error) {
	if inner == nil {
		return nil, errors.New("abort: the connector given to NewConnector is nil")
	}
	c := &Connector{inner: inner}
	for _, option := range options {
		if err := option(&c.config); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// Inject switches injection on or off, for set-up and final checks. What happens
// while it is off is not counted in the numbers of calls and transactions.
func (c *Connector) Inject(on bool) { c.off.Store(!on) }

// Injected returns how many calls were made to fail so far.
func (c *Connector) Injected() Counts { return c.injected.snapshot() }

// Connect opens a connection. An error is the inner connector's, or says which
// interface the inner connection lacks.
func (c *Connector) Connect(ctx context.Context) (driver.Conn, error) {
	inner, err := c.inner.Connect(ctx)
	if err != nil {
		return nil, err
	}
	full, ok := inner.(session)
	if !ok {
		return nil, errors.Join(fmt.Errorf("abort: connection of type %T lacks interfaces that lib/pq's have", inner), inner.Close())
	}
	return &conn{session: full, connector: c, number: c.connections.Add(1)}, nil
}

// Driver returns the inner connector's driver.
func (c *Connector) Driver() driver.Driver { return c.inner.Driver() }

// Close closes the inner connector, if it can be closed. sql.DB.Close calls it.
func (c *Connector) Close() error {
	if closer, ok := c.inner.(io.Closer); ok {
		return closer.Close()
	}
	return nil
}
