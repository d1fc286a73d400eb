package pgretry

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"io"
	"math"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/XSAM/otelsql"
	"github.com/lib/pq"
)

// DriverName is the name under which the driver, with lib/pq inside, is
// registered with database/sql. It begins with "postgres" because some libraries
// tell the SQL dialect by that.
const DriverName = "postgres-retry"

func init() {
	sql.Register(DriverName, &Driver{})
}

var (
	_ driver.Driver        = (*Driver)(nil)
	_ driver.DriverContext = (*Driver)(nil)
	_ driver.Connector     = (*Connector)(nil)
	_ io.Closer            = (*Connector)(nil)
)

// Driver is a [driver.Driver] around another one. The zero value has lib/pq
// inside.
type Driver struct {
	inner     driver.Driver // nil means lib/pq
	options   []Option
	err       error      // what is wrong with how it was made
	connector *Connector // the one whose Driver method returned this driver
}

// WrapDriver returns a driver around inner, to be registered under a name of
// one's own:
//
//	sql.Register("orders", pgretry.WrapDriver(&pq.Driver{}, pgretry.WithPolicy(…)))
//
// DSN parameters that begin with pgretry_ are taken out before inner sees the
// DSN. A nil inner or a wrong option is an error from sql.Open.
func WrapDriver(inner driver.Driver, options ...Option) *Driver {
	d := &Driver{inner: inner, options: slices.Clone(options)}
	if inner == nil {
		d.err = errors.New("pgretry: the driver given to WrapDriver is nil")
	}
	return d
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

// OpenConnector returns a connector for the DSN, in the URL or the key=value form
// of libpq. The empty DSN takes everything from the environment, as libpq does.
// Parameters that begin with pgretry_ are ours, are checked here and never reach
// the server.
func (d *Driver) OpenConnector(name string) (driver.Connector, error) {
	if d.err != nil {
		return nil, d.err
	}
	parsed, err := parseDSN(name)
	if err != nil {
		return nil, err
	}
	config, err := newConfig(d.options)
	if err != nil {
		return nil, err
	}
	if err := parsed.apply(config); err != nil {
		return nil, err
	}
	inner, err := d.openInner(parsed.inner, config)
	if err != nil {
		return nil, redactDSNError(err)
	}
	c, err := newConnector(inner, config)
	if err != nil {
		return nil, err
	}
	c.driver.inner, c.driver.options, c.driver.err = d.inner, d.options, nil
	return c, nil
}

func (d *Driver) openInner(name string, config *config) (driver.Connector, error) {
	switch inner := d.inner.(type) {
	case nil, *pq.Driver, pq.Driver:
		parsed, err := pq.NewConfig(name)
		if err != nil {
			return nil, err
		}
		config.attributes = append(serverAttributes(parsed), config.attributes...)
		connector, err := pq.NewConnectorConfig(parsed)
		if err == nil {
			connector.Dialer(wireDialer{})
		}
		return connector, err
	case driver.DriverContext:
		return inner.OpenConnector(name)
	default:
		return dsnConnector{name: name, driver: d.inner}, nil
	}
}

// dsnConnector is a connector for drivers from before connectors, as in
// database/sql.
type dsnConnector struct {
	name   string
	driver driver.Driver
}

func (c dsnConnector) Connect(context.Context) (driver.Conn, error) { return c.driver.Open(c.name) }
func (c dsnConnector) Driver() driver.Driver                        { return c.driver }

// Connector is a [driver.Connector] around another one. It carries what is shared
// by the connections of one *sql.DB: configuration, statistics, retry budget.
type Connector struct {
	given     driver.Connector // the inner one
	inner     driver.Connector // the same with what the driver puts around it, otelsql if that is wanted
	driver    *Driver
	config    *config
	telemetry *telemetry
	stats     stats
	budget    retryBudget

	pinsFail   atomic.Bool // the server has no savepoints
	noBlockers atomic.Bool // the server does not tell who blocks whom
	noOutcome  atomic.Bool // the server does not tell what became of a transaction

	askCost  atomic.Int64 // of a question to the server, in nanoseconds
	lastLoss atomic.Int64 // of a connection, in nanoseconds since 1970; 0 for none

	memory conflictMemory
	plans  plans

	orphanCount atomic.Int64
	mu          sync.Mutex
	orphans     []orphan
}

// NewConnector returns a connector around inner, to be used with sql.OpenDB:
//
//	connector, err := pgretry.NewConnector(stdlib.GetConnector(*pgxConfig))
//	db := sql.OpenDB(connector)
//
// A nil inner or a wrong option is an error.
func NewConnector(inner driver.Connector, options ...Option) (*Connector, error) {
	if inner == nil {
		return nil, errors.New("pgretry: the connector given to NewConnector is nil")
	}
	config, err := newConfig(options)
	if err != nil {
		return nil, err
	}
	c, err := newConnector(inner, config)
	if err != nil {
		return nil, err
	}
	c.driver.options = slices.Clone(options)
	return c, nil
}

func newConnector(inner driver.Connector, config *config) (*Connector, error) {
	tapped := tapConnector{inner}
	if given, ok := inner.(*pq.Connector); ok {
		if own, ok := dialsWithWire(given); ok {
			tapped.Connector = own
		}
	}
	c := &Connector{given: inner, inner: tapped, config: config, telemetry: newTelemetry(config)}
	c.memory.connector, c.memory.detector.connector, c.memory.leases.connector = c, c, c
	c.askCost.Store(math.MaxInt64) // not known yet
	if config.usesOtelsql() {
		var err error
		if c.inner, err = wrapOtelsql(c.inner, config); err != nil {
			return nil, err
		}
	}
	// A driver of its own for every connector, so that a *sql.DB, which tells
	// nothing but its driver, leads back to the connector.
	c.driver = &Driver{inner: inner.Driver(), connector: c}
	if c.driver.inner == nil {
		c.driver.err = errors.New("pgretry: the connector given to NewConnector tells no driver")
	}
	return c, nil
}

// Open opens a database with lib/pq inside. It is sql.Open(DriverName, dsn) with
// options; DSN parameters win over them.
func Open(dsn string, options ...Option) (*sql.DB, error) {
	connector, err := (&Driver{options: options}).OpenConnector(dsn)
	if err != nil {
		return nil, err
	}
	return sql.OpenDB(connector), nil
}

// connectTries is how many connections that are dead already are taken from a pool of
// the inner connector's.
const connectTries = 20

// Connect opens a connection. The error is the inner connector's.
func (c *Connector) Connect(ctx context.Context) (driver.Conn, error) {
	a := attemptFrom(ctx)
	if a != nil {
		a.meets(c)
	}
	s, t, err := c.connect(ctx)
	for tries := 1; err == nil && tries < connectTries && t.pulse() >= pulseDead; tries++ {
		// It comes from a pool of the inner connector's, and has died there.
		c.stats.lost(lostIdle)
		c.telemetry.connectionLost(ctx, lostIdle)
		t.tellDead(ctx)
		_ = s.Close()
		s, t, err = c.connect(ctx)
	}
	if err == nil {
		return newConn(c, s, t), nil
	}
	if a != nil {
		a.noteFailure(Classify(err, PhaseConnect), err)
	}
	return nil, err
}

// Driver returns the driver of this connector.
func (c *Connector) Driver() driver.Driver { return c.driver }

// Close closes the inner connector, if it can be closed. sql.DB.Close calls it.
func (c *Connector) Close() error {
	c.memory.detector.close()
	c.memory.leases.close()
	if closer, ok := c.inner.(io.Closer); ok {
		return closer.Close()
	}
	return nil
}

// connectorOf returns the connector behind a database, or nil if it is not one
// of ours or hides behind another wrapper.
func connectorOf(db any) *Connector {
	switch db := db.(type) {
	case interface{ Driver() driver.Driver }:
		if d, ok := db.Driver().(*Driver); ok {
			return d.connector
		}
	case interface{ Raw(func(any) error) error }: // *sql.Conn
		var connector *Connector
		// A connection that cannot be had any more has no connector either.
		_ = db.Raw(func(driverConn any) error {
			if c, ok := driverConn.(interface{ itself() *conn }); ok {
				connector = c.itself().connector
			}
			return nil
		})
		return connector
	}
	return nil
}

// tapConnector makes every connection of the inner connector a tap.
type tapConnector struct{ driver.Connector }

func (c tapConnector) Connect(ctx context.Context) (driver.Conn, error) {
	var d dialing
	if _, ok := c.Connector.(*pq.Connector); ok {
		stop := context.AfterFunc(ctx, d.end)
		defer stop()
		ctx = context.WithValue(ctx, wireKey{}, &d)
	}
	inner, err := c.Connector.Connect(ctx)
	if err != nil {
		if d.wire != nil && ctx.Err() != nil {
			return nil, ctx.Err() // not that the socket is closed
		}
		return nil, err
	}
	return newTap(inner, d.wire), nil
}

func (c tapConnector) Close() error {
	if closer, ok := c.Connector.(io.Closer); ok {
		return closer.Close()
	}
	return nil
}

// tapOf finds the tap in a connection, through otelsql's if that is around it.
func tapOf(inner driver.Conn) (*tap, bool) {
	if t, ok := inner.(*tap); ok {
		return t, true
	}
	if raw, ok := inner.(interface{ Raw() driver.Conn }); ok {
		t, ok := raw.Raw().(*tap)
		return t, ok
	}
	return nil, false
}

// wrapOtelsql puts otelsql around a connector.
func wrapOtelsql(inner driver.Connector, config *config) (driver.Connector, error) {
	wrapped := otelsql.WrapDriver(connectorDriver{inner}, otelsqlOptions(config)...)
	// otelsql's driver is a DriverContext because the one inside is.
	return wrapped.(driver.DriverContext).OpenConnector("")
}

// connectorDriver leads otelsql, which wraps drivers, to a connector.
type connectorDriver struct{ connector driver.Connector }

func (d connectorDriver) Open(string) (driver.Conn, error) {
	return d.connector.Connect(context.Background())
}

func (d connectorDriver) OpenConnector(string) (driver.Connector, error) { return d.connector, nil }
