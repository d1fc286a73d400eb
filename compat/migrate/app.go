// Package migrate is the application on database/sql with golang-migrate for its
// migrations.
package migrate

import (
	"context"
	"embed"
	"errors"

	"github.com/golang-migrate/migrate/v4"
	"github.com/golang-migrate/migrate/v4/database/postgres"
	"github.com/golang-migrate/migrate/v4/source/iofs"

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

// MigratesInSession says that golang-migrate holds an advisory lock of the session.
func (a *App) MigratesInSession() {}

// Migrate goes up, then down, and up again, on one connection, as golang-migrate does: it
// locks it by an advisory lock, sends each file as one text, and keeps its version in a
// transaction.
func (a *App) Migrate(ctx context.Context) (err error) {
	conn, err := a.DB().Conn(ctx)
	if err != nil {
		return err
	}
	database, err := postgres.WithConnection(ctx, conn, &postgres.Config{})
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	files, err := iofs.New(migrations, "migrations")
	if err != nil {
		return errors.Join(err, database.Close())
	}
	m, err := migrate.NewWithInstance("iofs", files, "postgres", database)
	if err != nil {
		return errors.Join(err, files.Close(), database.Close())
	}
	defer func() {
		closing, closingDatabase := m.Close()
		err = errors.Join(err, closing, closingDatabase)
	}()
	for _, move := range []func() error{m.Up, m.Down, m.Up} {
		if err := move(); err != nil && !errors.Is(err, migrate.ErrNoChange) {
			return err
		}
	}
	return nil
}
