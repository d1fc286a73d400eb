// Package bridge leads packages of this module to what the root package does not
// export. Its init function sets the variables.
package bridge

import (
	"context"
	"database/sql"
	"database/sql/driver"
)

// Attempt returns which attempt of a closure runs under ctx, from 1, or 0 if none
// does.
var Attempt func(ctx context.Context) int

// Inner returns the connector inside the one that db was opened with, by name or not;
// nil if db was not opened through the root package.
var Inner func(db *sql.DB) driver.Connector

// Around returns a connector around inner that is configured as that of db, but does
// nothing about contention.
var Around func(db *sql.DB, inner driver.Connector) (driver.Connector, error)
