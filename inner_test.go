package pgretry

import (
	"database/sql"
	"database/sql/driver"
	"errors"

	"github.com/lib/pq"
)

// innerDriver is a driver that the tests on a server run over.
type innerDriver struct {
	name       string // as messages call it
	plain      string // as it is registered with database/sql
	registered string // as we are registered with it inside

	// open opens a database of ours with it inside.
	open func(dsn string, options ...Option) (*sql.DB, error)

	// connector returns its own connector.
	connector func(dsn string) (driver.Connector, error)

	busy string // what it says where rows are being read

	// pooled is what a DSN needs behind a pooler that does not know prepared statements.
	pooled string

	// countsBytes: we see what it sends.
	countsBytes bool

	// contextWins: the end of a statement's context hides that its connection broke.
	contextWins bool

	// cancelsLost: when its connection breaks, it has the server cancel what still runs.
	cancelsLost bool

	// severalTexts is what a DSN needs for queries of several statements.
	severalTexts string

	// failedCommit is what COMMIT of a transaction gives that has failed.
	failedCommit error

	// said returns what the server said, if err is the driver's own error of that and
	// wraps or hides nothing: many programs look at errors with a type assertion.
	said func(err error) (serverError, bool)
}

// tested is the driver that the tests run over. A file that is laid over this package
// (go test -overlay) puts pgx's in its place.
var tested = innerDriver{
	name:         "lib/pq",
	plain:        "postgres",
	registered:   DriverName,
	open:         Open,
	connector:    func(dsn string) (driver.Connector, error) { return pq.NewConnector(dsn) },
	busy:         "pq: there is already a query being processed on this connection",
	countsBytes:  true,
	failedCommit: pq.ErrInFailedTransaction,
	said: func(err error) (serverError, bool) {
		server, ok := err.(*pq.Error) //nolint:errorlint // many programs do it like that
		if !ok {
			return serverError{}, false
		}
		return serverError{
			severity: server.Severity, code: string(server.Code), message: server.Message, detail: server.Detail, hint: server.Hint,
			where: server.Where, table: server.Table, constraint: server.Constraint, routine: server.Routine,
		}, true
	},
}

// plainly opens a database with the inner driver alone.
func (d *innerDriver) plainly(dsn string) (*sql.DB, error) { return sql.Open(d.plain, dsn) }

// finds is said for the first such error in the tree of err.
func (d *innerDriver) finds(err error) (serverError, bool) {
	for err != nil {
		if server, ok := d.said(err); ok {
			return server, true
		}
		if several, ok := err.(interface{ Unwrap() []error }); ok {
			for _, one := range several.Unwrap() {
				if server, ok := d.finds(one); ok {
					return server, true
				}
			}
			return serverError{}, false
		}
		err = errors.Unwrap(err)
	}
	return serverError{}, false
}
