package main

import (
	"context"

	"github.com/jmoiron/sqlx"

	"github.com/pgretry/pgretry"
)

// inTx is RunInTx with a *sqlx.Tx.
func inTx(ctx context.Context, db *sqlx.DB, fn func(ctx context.Context, tx *sqlx.Tx) error) error {
	return pgretry.Retry(ctx, func(ctx context.Context) error {
		tx, err := db.BeginTxx(ctx, nil)
		if err != nil {
			return err
		}
		defer tx.Rollback() // does nothing after Commit
		if err := fn(ctx, tx); err != nil {
			return err
		}
		return tx.Commit()
	})
}
