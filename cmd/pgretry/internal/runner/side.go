package runner

import (
	"context"
	"database/sql"
	"errors"
	"sync/atomic"

	"github.com/pgretry/pgretry"
	"github.com/pgretry/pgretry/cmd/pgretry/internal/sandbox"
	"github.com/pgretry/pgretry/cmd/pgretry/internal/workload"
)

// Side is one of the two drivers that are compared, with the way an application uses it.
type Side struct {
	// Name is the driver's name in tables.
	Name string

	open     func(box *sandbox.Sandbox, count *survived) (*sql.DB, error)
	transact func(ctx context.Context, db *sql.DB, w workload.Workload, body workload.Body) error
}

// survived counts the conflicts that the application did not see.
type survived struct {
	deadlocks, serializationFailures atomic.Int64
}

// Plain is lib/pq, used as its documentation shows: each transaction is tried once.
var Plain = Side{
	Name: "lib/pq",
	open: func(box *sandbox.Sandbox, _ *survived) (*sql.DB, error) { return box.Plain() },
	transact: func(ctx context.Context, db *sql.DB, w workload.Workload, body workload.Body) error {
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
	},
}

// Retrying is pgretry: the same work, handed to RunInTx, with the default policy.
var Retrying = Side{
	Name: "pgretry",
	open: func(box *sandbox.Sandbox, count *survived) (*sql.DB, error) {
		return pgretry.Open(box.DSN(), pgretry.WithOnRetry(func(_ context.Context, e pgretry.Event) {
			if e.Decision != pgretry.DecisionRetried {
				return
			}
			switch e.SQLState {
			case deadlockDetected:
				count.deadlocks.Add(1)
			case serializationFailure:
				count.serializationFailures.Add(1)
			}
		}))
	},
	transact: func(ctx context.Context, db *sql.DB, w workload.Workload, body workload.Body) error {
		return pgretry.RunInTx(pgretry.ContextWithName(ctx, w.Name()), db, w.TxOptions(), body)
	},
}

const (
	deadlockDetected     = "40P01"
	serializationFailure = "40001"
)
