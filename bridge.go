package pgretry

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"

	"github.com/pgretry/pgretry/internal/bridge"
)

// What package pgretrytest needs.
func init() {
	bridge.Attempt = func(ctx context.Context) int {
		if a := attemptFrom(ctx); a != nil {
			return a.number
		}
		return 0
	}
	bridge.Inner = func(db *sql.DB) driver.Connector {
		if c := connectorOf(db); c != nil {
			return c.given
		}
		return nil
	}
	bridge.Around = func(db *sql.DB, inner driver.Connector) (driver.Connector, error) {
		c := connectorOf(db)
		if c == nil {
			return nil, errors.New("pgretry: the database was not opened through this package")
		}
		config := *c.config
		config.contention = ContentionOff
		return newConnector(inner, &config)
	}
}
