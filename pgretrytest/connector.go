package pgretrytest

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"

	"github.com/pgretry/pgretry/internal/abort"
)

var (
	_ driver.Connector = (*Connector)(nil)
	_ io.Closer        = (*Connector)(nil)
)

// Connector is a [driver.Connector] around another one that aborts transactions on
// purpose. It is safe for concurrent use.
type Connector struct {
	control
	given driver.Connector // the inner one
	inner *abort.Connector // the same with what aborts around it
}

// NewConnector returns a connector around inner, lib/pq's for example, to be wrapped by
// pgretry.NewConnector. It aborts from the start. A nil inner or a wrong option is an
// error.
func NewConnector(inner driver.Connector, options ...Option) (*Connector, error) {
	return newConnector(inner, control{new(abort.Control)}, options)
}

func newConnector(inner driver.Connector, shared control, options []Option) (*Connector, error) {
	if inner == nil {
		return nil, errors.New("pgretrytest: the connector given to NewConnector is nil")
	}
	engine, err := engineOptions(options)
	if err != nil {
		return nil, err
	}
	made, err := abort.NewConnector(inner, append(engine, abort.WithControl(shared.shared), abort.WithoutOwn())...)
	if err != nil {
		return nil, fmt.Errorf("pgretrytest: %w", err)
	}
	return &Connector{control: shared, given: inner, inner: made}, nil
}

// Connect opens a connection. The error is the inner connector's.
func (c *Connector) Connect(ctx context.Context) (driver.Conn, error) { return c.inner.Connect(ctx) }

// Driver returns the inner connector's driver.
func (c *Connector) Driver() driver.Driver { return c.inner.Driver() }

// Close closes the inner connector, if it can be closed. sql.DB.Close calls it.
func (c *Connector) Close() error { return c.inner.Close() }
