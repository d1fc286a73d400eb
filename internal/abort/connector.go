package abort

import (
	"context"
	"database/sql/driver"
	"errors"
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

	control      *Control
	connections  atomic.Int64
	transactions atomic.Int64
	lengths      lengths
}

// Control switches the injection of one or more connectors and counts what they
// inject, see [WithControl]. The zero value is ready for use and lets them inject.
type Control struct {
	off      atomic.Bool
	injected counters
}

// Inject switches injection on or off, for set-up and final checks. What happens
// while it is off is not counted in the numbers of calls and transactions, and a
// transaction that begins then is not disturbed but by WithProbability.
func (c *Control) Inject(on bool) { c.off.Store(!on) }

// Injected returns how many calls were made to fail so far.
func (c *Control) Injected() Counts { return c.injected.snapshot() }

// NewConnector returns a connector around inner. It injects from the start.
func NewConnector(inner driver.Connector, options ...Option) (*Connector, error) {
	if inner == nil {
		return nil, errors.New("abort: the connector given to NewConnector is nil")
	}
	config, err := newConfig(options)
	if err != nil {
		return nil, err
	}
	c := &Connector{inner: inner, config: config, control: config.control}
	if c.control == nil {
		c.control = new(Control)
	}
	return c, nil
}

// Inject is Inject of the connector's [Control].
func (c *Connector) Inject(on bool) { c.control.Inject(on) }

// Injected is Injected of the connector's [Control].
func (c *Connector) Injected() Counts { return c.control.Injected() }

// Connect opens a connection. An error is the inner connector's.
func (c *Connector) Connect(ctx context.Context) (driver.Conn, error) {
	inner, err := c.inner.Connect(ctx)
	if err != nil {
		return nil, err
	}
	made := &conn{session: newSession(inner), connector: c, number: c.connections.Add(1)}
	return made.offering(), nil
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
