package pgretry

import (
	"database/sql"
	"database/sql/driver"
	"testing"

	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/trace"

	"github.com/pgretry/pgretry/internal/drivertest/parity"
	"github.com/pgretry/pgretry/internal/pgserver/pgtest"
)

// instrumented are options that put otelsql, with an SDK behind it, in the path.
func instrumented(t *testing.T) []Option {
	tracers, meters := trace.NewTracerProvider(), metric.NewMeterProvider()
	t.Cleanup(func() {
		if err := tracers.Shutdown(t.Context()); err != nil {
			t.Log(err)
		}
		if err := meters.Shutdown(t.Context()); err != nil {
			t.Log(err)
		}
	})
	return []Option{WithTracerProvider(tracers), WithMeterProvider(meters), WithStatementSpans()}
}

// bothWays runs a test without and with otelsql in the path.
func bothWays(t *testing.T, test func(t *testing.T, options []Option)) {
	t.Run("plain", func(t *testing.T) { test(t, nil) })
	t.Run("otelsql", func(t *testing.T) { test(t, instrumented(t)) })
}

func TestDatabaseSQLSeesTheInnerDriver(t *testing.T) {
	bothWays(t, func(t *testing.T, options []Option) {
		dsn := pgtest.DSN(t)
		open := func(name string) func(t *testing.T) *sql.DB {
			return func(t *testing.T) *sql.DB {
				db, err := sql.Open(name, dsn)
				if err != nil {
					t.Fatal(err)
				}
				return db
			}
		}
		parity.Run(t, parity.Opener{
			Raw: open("postgres"),
			Wrapped: func(t *testing.T) *sql.DB {
				if options == nil {
					return open(DriverName)(t)
				}
				db, err := Open(dsn, options...)
				if err != nil {
					t.Fatal(err)
				}
				return db
			},
			CopyIn: true,
		})
	})
}

func TestDatabaseSQLSeesTheInnerDriverWithAnyInterfaces(t *testing.T) {
	bothWays(t, func(t *testing.T, options []Option) {
		parity.RunScripted(t, func(inner driver.Connector) driver.Connector {
			connector, err := NewConnector(inner, options...)
			if err != nil {
				t.Fatal(err)
			}
			return connector
		})
	})
}
