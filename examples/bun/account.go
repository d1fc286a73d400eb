package main

import (
	"context"

	"github.com/uptrace/bun"
)

// Account is a row of the table account.
type Account struct {
	bun.BaseModel `bun:"table:account"`

	ID      int `bun:",pk"`
	Balance int `bun:",notnull"`
}

// book adds an amount to an account.
func book(ctx context.Context, tx bun.IDB, id, amount int) error {
	_, err := tx.NewUpdate().Model((*Account)(nil)).Set("balance = balance + ?", amount).Where("id = ?", id).Exec(ctx)
	return err
}
