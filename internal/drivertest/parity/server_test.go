package parity_test

import (
	"database/sql"
	"database/sql/driver"
	"os"
	"testing"

	"github.com/lib/pq"

	"github.com/pgretry/pgretry/internal/drivertest/parity"
	"github.com/pgretry/pgretry/internal/pgserver/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

// libPQ opens one schema through lib/pq, bare and through wrap.
func libPQ(t *testing.T, wrap func(driver.Connector) driver.Connector) parity.Opener {
	t.Helper()
	dsn := pgtest.DSN(t)
	connector := func(t *testing.T) driver.Connector {
		t.Helper()
		c, err := pq.NewConnector(dsn)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	return parity.Opener{
		Raw:     func(t *testing.T) *sql.DB { return sql.OpenDB(connector(t)) },
		Wrapped: func(t *testing.T) *sql.DB { return sql.OpenDB(wrap(connector(t))) },
		CopyIn:  true,
	}
}

func bare(c driver.Connector) driver.Connector { return c }

func TestABareDriverEqualsItselfOnAServer(t *testing.T) {
	parity.Run(t, libPQ(t, bare))
}
