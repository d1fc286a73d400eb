package peer

import (
	"context"
	"database/sql"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/cockroachdb/cockroach-go/v2/crdb"
)

const (
	loopBase = 5 * time.Millisecond
	loopCap  = time.Second
)

// loop is the retry loop that careful people write by hand: full jitter, until it succeeds.
func loop(ctx context.Context, db *sql.DB, work Work) error {
	for bound := loopBase; ; bound = min(loopCap, 2*bound) {
		err := Once(ctx, db, work)
		if state := SQLState(err); state != "40001" && state != "40P01" {
			return err
		}
		timer := time.NewTimer(rand.N(bound + 1))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return errors.Join(err, ctx.Err())
		}
	}
}

// SQLState returns the SQLSTATE of an error that the server sent, and "" of any other.
func SQLState(err error) string {
	if state, ok := errors.AsType[interface {
		error
		SQLState() string
	}](err); ok {
		return state.SQLState()
	}
	return ""
}

func executeTx(ctx context.Context, db *sql.DB, work Work) error {
	return crdb.ExecuteTx(ctx, db, work.Options, func(tx *sql.Tx) error { return work.Body(ctx, tx) })
}
