// Package ent is an application with ent, whose client is generated from a schema.
package ent

import (
	"context"
	"database/sql"
	"fmt"

	entsql "entgo.io/ent/dialect/sql"
	"entgo.io/ent/dialect/sql/sqlgraph"

	"github.com/pgretry/pgretry/compat/ent/model"
	"github.com/pgretry/pgretry/compat/script"
)

// The generator's own dependencies are left in go.sum, until go mod tidy.
//go:generate env GOWORK=off go run -mod=mod entgo.io/ent/cmd/ent generate --feature sql/upsert,sql/lock,sql/execquery --template ./template ./model/schema

var _ script.App = (*App)(nil)

// App is the application.
type App struct {
	driver *entsql.Driver
	client *model.Client
}

// Open opens the driver first: the generated Open takes no name but "postgres", while
// entsql's takes every name that begins so for PostgreSQL.
func Open(_ context.Context, driverName, dsn string) (script.App, error) {
	driver, err := entsql.Open(driverName, dsn)
	if err != nil {
		return nil, err
	}
	client := model.NewClient(model.Driver(driver))
	client.Stock.Use(noting)
	return &App{driver, client}, nil
}

// DB is the database below.
func (a *App) DB() *sql.DB { return a.driver.DB() }

// Close closes the database.
func (a *App) Close() error { return a.client.Close() }

// Migrate is ent's automatic migration.
func (a *App) Migrate(ctx context.Context) error { return a.client.Schema.Create(ctx) }

// Transact is the helper that ent's documentation has everybody write.
func (a *App) Transact(ctx context.Context, work func(ctx context.Context, tx script.Tx) error) error {
	tx, err := a.client.Tx(ctx)
	if err != nil {
		return err
	}
	defer func() {
		if v := recover(); v != nil {
			err := tx.Rollback()
			panic(fmt.Sprint(v, err))
		}
	}()
	if err := work(ctx, newTx(tx.Client())); err != nil {
		if undo := tx.Rollback(); undo != nil {
			err = fmt.Errorf("%w: rolling back transaction: %w", err, undo)
		}
		return err
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("committing transaction: %w", err)
	}
	return nil
}

// Lone is the client outside transactions.
func (a *App) Lone() script.Tx { return lone{newTx(a.client)} }

// IsDuplicate asks ent.
func (a *App) IsDuplicate(err error) bool { return sqlgraph.IsUniqueConstraintError(err) }
