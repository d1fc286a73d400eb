package main

import (
	"context"
	"errors"

	"example.com/shop/ent"
)

// inTx runs fn in a transaction and rolls back if it fails, as ent's manual has it.
func inTx(ctx context.Context, client *ent.Client, fn func(tx *ent.Tx) error) error {
	tx, err := client.Tx(ctx)
	if err != nil {
		return err
	}
	if err := fn(tx); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	return tx.Commit()
}
