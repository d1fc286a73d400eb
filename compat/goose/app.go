// Package goose is the application on database/sql with goose for its migrations.
package goose

import (
	"context"
	"embed"
	"io/fs"

	"github.com/pressly/goose/v3"

	"github.com/pgretry/pgretry/compat/plain"
	"github.com/pgretry/pgretry/compat/script"
)

//go:embed migrations
var migrations embed.FS

// App is the application.
type App struct{ *plain.App }

// Open opens it.
func Open(_ context.Context, driverName, dsn string) (script.App, error) {
	app, err := plain.New(driverName, dsn)
	return &App{app}, err
}

func (a *App) provider() (*goose.Provider, error) {
	dir, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return nil, err
	}
	return goose.NewProvider(goose.DialectPostgres, a.DB(), dir)
}

// Migrate goes up, then down, and up again: two migrations in transactions, one
// without.
func (a *App) Migrate(ctx context.Context) error {
	provider, err := a.provider()
	if err != nil {
		return err
	}
	if _, err := provider.Up(ctx); err != nil {
		return err
	}
	if _, err := provider.DownTo(ctx, 0); err != nil {
		return err
	}
	_, err = provider.Up(ctx)
	return err
}
