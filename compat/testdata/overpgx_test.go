package pgretry

import (
	"context"
	"database/sql"
	"database/sql/driver"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
)

// This file is laid over the root package's directory, whose module must not depend on
// pgx, by compat/overpgx.json: the tests run over pgx's stdlib instead of lib/pq.
func init() {
	tested = innerDriver{
		name:       "pgx",
		plain:      "pgx",
		registered: "pgx-retry",
		open: func(dsn string, options ...Option) (*sql.DB, error) {
			connector, err := WrapDriver(pgxDriver{}, options...).OpenConnector(dsn)
			if err != nil {
				return nil, err
			}
			return sql.OpenDB(connector), nil
		},
		connector:    pgxDriver{}.OpenConnector,
		busy:         "conn busy",
		pooled:       "default_query_exec_mode=exec",
		contextWins:  true,
		cancelsLost:  true,
		severalTexts: "default_query_exec_mode=simple_protocol",
		failedCommit: pgx.ErrTxCommitRollback,
		said: func(err error) (serverError, bool) {
			server, ok := err.(*pgconn.PgError) //nolint:errorlint // many programs do it like that
			if !ok {
				return serverError{}, false
			}
			return serverError{
				severity: server.SeverityUnlocalized, code: server.Code, message: server.Message, detail: server.Detail, hint: server.Hint,
				where: server.Where, table: server.TableName, constraint: server.ConstraintName, routine: server.Routine,
			}, true
		},
	}
	sql.Register(tested.registered, WrapDriver(pgxDriver{}))
}

// pgxDriver makes the connectors that programs with a pgx.ConnConfig use.
type pgxDriver struct{}

func (d pgxDriver) Open(name string) (driver.Conn, error) {
	connector, err := d.OpenConnector(name)
	if err != nil {
		return nil, err
	}
	return connector.Connect(context.Background())
}

func (pgxDriver) OpenConnector(name string) (driver.Connector, error) {
	config, err := pgx.ParseConfig(name)
	if err != nil {
		return nil, err
	}
	return stdlib.GetConnector(*config), nil
}
