package runner

import (
	"context"
	"database/sql"
	"errors"

	"github.com/pgretry/pgretry"
	"github.com/pgretry/pgretry/cmd/pgretry/internal/sandbox"
	"github.com/pgretry/pgretry/internal/workload"
)

// Side is one of the ways in which an application can run a transaction that are compared.
type Side struct {
	// Name is what the side is called in tables.
	Name string

	open     func(box *sandbox.Sandbox) (*sql.DB, error)
	transact func(ctx context.Context, db *sql.DB, w workload.Workload, body workload.Body) error
	// retries says whether the driver is one that does, and has statistics of it.
	retries bool
}

var (
	// Plain is lib/pq, used as its documentation shows: each transaction is tried once.
	Plain = Side{
		Name:     "lib/pq",
		open:     (*sandbox.Sandbox).Plain,
		transact: once,
	}

	// DriverOnly is the same code as Plain with nothing but the driver's name changed: what is
	// replayed, the driver replays by itself.
	DriverOnly = Side{
		Name:     "driver only",
		open:     openByName,
		transact: once,
		retries:  true,
	}

	// RunInTx is the same work handed to pgretry as a closure, which may run again.
	RunInTx = Side{
		Name: "RunInTx",
		open: openByName,
		transact: func(ctx context.Context, db *sql.DB, w workload.Workload, body workload.Body) error {
			return pgretry.RunInTx(pgretry.ContextWithName(ctx, w.Name()), db, w.TxOptions(), body)
		},
		retries: true,
	}
)

// Sides returns all sides in the order in which they are run and shown.
func Sides() []Side { return []Side{Plain, DriverOnly, RunInTx} }

func openByName(box *sandbox.Sandbox) (*sql.DB, error) {
	return sql.Open(pgretry.DriverName, box.DSN())
}

// once is how an application that knows nothing of retries runs a transaction: one that fails is
// given up.
func once(ctx context.Context, db *sql.DB, w workload.Workload, body workload.Body) error {
	tx, err := db.BeginTx(ctx, w.TxOptions())
	if err != nil {
		return err
	}
	if err := body(ctx, tx); err != nil {
		if undo := tx.Rollback(); undo != nil && !errors.Is(undo, sql.ErrTxDone) {
			return errors.Join(err, undo)
		}
		return err
	}
	return tx.Commit()
}
