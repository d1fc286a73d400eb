package certainty

import (
	"context"
	"database/sql"
	"math/rand/v2"
	"time"

	_ "github.com/lib/pq" // the driver to compare with

	"github.com/pgretry/pgretry"
)

// BankSide is a way to write a transfer.
type BankSide struct {
	// Name is what it is called in the table.
	Name string

	driver     string
	parameters map[string]string // of the DSN
	closure    bool              // there are no statements outside a transaction
	transfer   func(context.Context, *sql.DB, bankTransfer) error
}

// The ways that [Bank] compares.
var (
	// BankLibPQ is lib/pq with the loop that is written first: it repeats a transfer
	// whatever its error.
	BankLibPQ = BankSide{Name: "lib/pq, repeating", driver: "postgres", transfer: repeatBlindly}
	// BankDriver is the transfer tried once, through the driver of this module.
	BankDriver = BankSide{Name: "driver", driver: pgretry.DriverName, parameters: bankResolving, transfer: transferOnce}
	// BankRunInTx is the transfer as a closure.
	BankRunInTx = BankSide{Name: "RunInTx", driver: pgretry.DriverName, parameters: bankResolving, closure: true, transfer: transferInTx}
)

// BankSides are all of them, the comparison first.
func BankSides() []BankSide { return []BankSide{BankLibPQ, BankDriver, BankRunInTx} }

// PGRetry says whether the side's claims are this module's to answer for.
func (s BankSide) PGRetry() bool { return s.driver == pgretry.DriverName }

var bankResolving = map[string]string{"pgretry_commit_outcome": "resolve"}

// bankExecutor is a transaction or, for a lone statement, a database.
type bankExecutor interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

func transferOnce(ctx context.Context, db *sql.DB, t bankTransfer) error {
	ctx, cancel := t.bound(ctx)
	defer cancel()
	if t.form >= bankLone {
		return t.book(ctx, db)
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if err := t.book(ctx, tx); err != nil {
		// The first error is what a worker goes by, as most programs do.
		_ = tx.Rollback()
		return err
	}
	return tx.Commit()
}

func transferInTx(ctx context.Context, db *sql.DB, t bankTransfer) error {
	ctx, cancel := t.bound(ctx)
	defer cancel()
	return pgretry.RunInTx(ctx, db, nil, func(ctx context.Context, tx *sql.Tx) error { return t.book(ctx, tx) })
}

// repeatBlindly is what one finds in many programs.
func repeatBlindly(ctx context.Context, db *sql.DB, t bankTransfer) error {
	const attempts = 10
	for attempt := 1; ; attempt++ {
		err := transferOnce(ctx, db, t)
		if err == nil || attempt == attempts || ctx.Err() != nil {
			return err
		}
		wait := time.Duration(rand.Int64N(int64(10*time.Millisecond) << min(attempt, 5)))
		if commitPause(ctx, wait) != nil {
			return err
		}
	}
}
