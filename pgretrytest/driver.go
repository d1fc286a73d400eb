package pgretrytest

import (
	"context"
	"database/sql/driver"
	"errors"
	"slices"

	"github.com/lib/pq"

	"github.com/pgretry/pgretry/internal/abort"
)

var (
	_ driver.Driver        = (*Driver)(nil)
	_ driver.DriverContext = (*Driver)(nil)
)

// Driver is a [driver.Driver] around another one that aborts transactions on purpose, for
// code that opens its database by the driver's name. Each database that is opened has a
// [Connector] of its own, which counts its own attempts and connections; Counts, Pause
// and Resume are about all of them.
type Driver struct {
	control
	inner   driver.Driver
	options []Option
}

// WrapDriver returns a driver around inner, to be wrapped by pgretry.WrapDriver:
//
//	aborting := pgretrytest.WrapDriver(&pq.Driver{}, pgretrytest.AtStatement(2))
//	sql.Register("postgres-aborting", pgretry.WrapDriver(aborting))
//
// A nil inner or a wrong option is an error from sql.Open.
func WrapDriver(inner driver.Driver, options ...Option) *Driver {
	return &Driver{control: control{new(abort.Control)}, inner: inner, options: slices.Clone(options)}
}

// Open opens one connection, as [driver.Driver] demands; database/sql calls
// OpenConnector.
func (d *Driver) Open(name string) (driver.Conn, error) {
	connector, err := d.OpenConnector(name)
	if err != nil {
		return nil, err
	}
	return connector.Connect(context.Background())
}

// OpenConnector returns a [*Connector] for a DSN of the inner driver's.
func (d *Driver) OpenConnector(name string) (driver.Connector, error) {
	inner, err := d.openInner(name)
	if err != nil {
		return nil, err
	}
	return newConnector(inner, d.control, d.options)
}

func (d *Driver) openInner(name string) (driver.Connector, error) {
	switch inner := d.inner.(type) {
	case nil:
		return nil, errors.New("pgretrytest: the driver given to WrapDriver is nil")
	case *pq.Driver, pq.Driver:
		return pq.NewConnector(name) // so that a wrong DSN is told at once
	case driver.DriverContext:
		return inner.OpenConnector(name)
	default:
		return dsnConnector{name: name, driver: inner}, nil
	}
}

// dsnConnector is a connector for drivers from before connectors, as in database/sql.
type dsnConnector struct {
	name   string
	driver driver.Driver
}

func (c dsnConnector) Connect(context.Context) (driver.Conn, error) { return c.driver.Open(c.name) }
func (c dsnConnector) Driver() driver.Driver                        { return c.driver }
