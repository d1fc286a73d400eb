package bun

import (
	"context"
	"errors"

	"github.com/uptrace/bun"
	"github.com/uptrace/bun/migrate"
)

var migrations = migrate.NewMigrations()

func init() { migrations.MustRegister(createTables, nil) }

// createTables makes the tables from the models. The migration has its name from this
// file's.
func createTables(ctx context.Context, db *bun.DB) error {
	return db.RunInTx(ctx, nil, func(ctx context.Context, tx bun.Tx) error {
		for _, model := range []any{(*account)(nil), (*customer)(nil), (*purchase)(nil), (*stock)(nil), (*sample)(nil)} {
			if _, err := tx.NewCreateTable().Model(model).WithForeignKeys().Exec(ctx); err != nil {
				return err
			}
		}
		return nil
	})
}

// Migrate applies the migrations that are not applied yet.
func (a *App) Migrate(ctx context.Context) (err error) {
	migrator := migrate.NewMigrator(a.db, migrations)
	if err := migrator.Init(ctx); err != nil {
		return err
	}
	if err := migrator.Lock(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, migrator.Unlock(ctx)) }()
	_, err = migrator.Migrate(ctx)
	return err
}
