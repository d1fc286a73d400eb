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
				db, err := tested.open(dsn, options...)
				if err != nil {
					t.Fatal(err)
				}
				return db
			},
			CopyIn: true,
		}, except(lostScenarios)...)
	})
}

// In these scenarios connections are lost, or COMMIT is cut off. There the driver must
// not show what lib/pq shows, because database/sql would execute statements twice. With
// ModeOff it does.
var (
	lostScenarios = []string{
		"cancelled during next", "cancelled during a statement of a transaction", "lost connection in a transaction",
	}
	lostScriptedScenarios = []string{
		"unexpected ends", "bad connections", "wrapped bad connections", "cancelled during", "dropped connections", "connections",
	}
)

func except(scenarios []string) (all []parity.Exception) {
	for _, scenario := range scenarios {
		all = append(all, parity.Exception{Scenario: scenario, Reason: "a lost connection is told as one"})
	}
	return all
}

func TestWithModeOffLostConnectionsAreTheInnerDriversToo(t *testing.T) {
	dsn := pgtest.DSN(t)
	opener := parity.Opener{
		Raw: func(t *testing.T) *sql.DB {
			db, err := tested.plainly(dsn)
			if err != nil {
				t.Fatal(err)
			}
			return db
		},
		Wrapped: func(t *testing.T) *sql.DB {
			db, err := tested.open(dsn, WithMode(ModeOff))
			if err != nil {
				t.Fatal(err)
			}
			return db
		},
	}
	for _, scenario := range lostScenarios {
		for _, difference := range parity.Compare(t, opener, nil, parity.Selection{Scenario: scenario}) {
			t.Errorf("%s: %+v", scenario, difference)
		}
	}
	wrap := func(inner driver.Connector) driver.Connector {
		connector, err := NewConnector(inner, WithMode(ModeOff))
		if err != nil {
			t.Fatal(err)
		}
		return connector
	}
	for _, scenario := range lostScriptedScenarios {
		for _, difference := range parity.CompareScripted(wrap, nil, parity.Selection{Scenario: scenario}) {
			t.Errorf("%s: %+v", scenario, difference)
		}
	}
}

func TestDatabaseSQLSeesTheInnerDriverWithAnyInterfaces(t *testing.T) {
	bothWays(t, func(t *testing.T, options []Option) {
		parity.RunScripted(t, func(inner driver.Connector) driver.Connector {
			connector, err := NewConnector(inner, options...)
			if err != nil {
				t.Fatal(err)
			}
			return connector
		}, except(lostScriptedScenarios)...)
	})
}
