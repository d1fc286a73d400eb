// Package bun is an application with bun, which writes the arguments into the text of
// the statements itself.
package bun

import (
	"context"
	"database/sql"

	"github.com/uptrace/bun"
	"github.com/uptrace/bun/dialect/pgdialect"

	"github.com/pgretry/pgretry/compat/plain"
	"github.com/pgretry/pgretry/compat/script"
)

var _ script.App = (*App)(nil)

// App is the application.
type App struct{ db *bun.DB }

// Open gives bun the database and the dialect.
func Open(_ context.Context, driverName, dsn string) (script.App, error) {
	db, err := sql.Open(driverName, dsn)
	if err != nil {
		return nil, err
	}
	return &App{bun.NewDB(db, pgdialect.New()).WithQueryHook(noting{})}, nil
}

// DB is the database below.
func (a *App) DB() *sql.DB { return a.db.DB }

// Close closes the database.
func (a *App) Close() error { return a.db.Close() }

// Transact is RunInTx.
func (a *App) Transact(ctx context.Context, work func(ctx context.Context, tx script.Tx) error) error {
	return a.db.RunInTx(ctx, nil, func(ctx context.Context, inner bun.Tx) error {
		return work(ctx, tx{inner, inner, a.db})
	})
}

// Lone is the database outside transactions.
func (a *App) Lone() script.Tx { return tx{a.db, a.db.DB, a.db} }

// IsDuplicate looks into the driver's error: bun hands it on as it is.
func (a *App) IsDuplicate(err error) bool { return plain.IsDuplicate(err) }
