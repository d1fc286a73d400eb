// Package jobs is an application with a queue of jobs in its own database, in the manner
// of riverqueue.com/river but by hand: jobs are inserted in the transaction of the rows
// that they are about, and completed in the transaction of their effect.
package jobs

import (
	"context"
	"database/sql"
	"errors"

	"github.com/pgretry/pgretry/compat/plain"
	"github.com/pgretry/pgretry/compat/script"
)

var _ script.App = (*App)(nil)

// App is the application: the plain one, and the queue.
type App struct{ *plain.App }

// Open opens it.
func Open(_ context.Context, driverName, dsn string) (script.App, error) {
	return New(driverName, dsn)
}

// New opens it, for more than the script.
func New(driverName, dsn string) (*App, error) {
	app, err := plain.New(driverName, dsn)
	return &App{app}, err
}

// tables are those of the queue. A key is unique among the jobs of all states, so that
// what was asked for twice is done once.
var tables = []string{
	`CREATE TABLE IF NOT EXISTS job (
		id           bigserial PRIMARY KEY,
		state        text NOT NULL DEFAULT 'available' CHECK (state IN ('available', 'running', 'completed')),
		priority     smallint NOT NULL,
		attempt      smallint NOT NULL DEFAULT 0,
		attempted_at timestamptz,
		attempted_by text,
		finalized_at timestamptz,
		kind         text NOT NULL,
		unique_key   text NOT NULL UNIQUE,
		args         jsonb NOT NULL,
		errors       text[] NOT NULL DEFAULT '{}',
		CHECK ((state = 'completed') = (finalized_at IS NOT NULL)))`,
	`CREATE INDEX IF NOT EXISTS job_claim ON job (state, priority, id)`,
	`CREATE TABLE IF NOT EXISTS job_leader (
		name       text PRIMARY KEY DEFAULT 'default' CHECK (name = 'default'),
		leader_id  text NOT NULL,
		elected_at timestamptz NOT NULL,
		expires_at timestamptz NOT NULL)`,
}

// Migrate makes the tables of the queue, too.
func (a *App) Migrate(ctx context.Context) error {
	if err := a.App.Migrate(ctx); err != nil {
		return err
	}
	for _, table := range tables {
		if _, err := a.DB().ExecContext(ctx, table); err != nil {
			return err
		}
	}
	return nil
}

// Transact gives the script transactions that insert jobs.
func (a *App) Transact(ctx context.Context, work func(ctx context.Context, tx script.Tx) error) error {
	return a.InTx(ctx, func(ctx context.Context, tx Tx) error { return work(ctx, tx) })
}

// InTx is Transact for those who know what they get.
func (a *App) InTx(ctx context.Context, work func(ctx context.Context, tx Tx) error) error {
	tx, err := a.DB().BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if err := work(ctx, newTx(tx)); err != nil {
		if undo := tx.Rollback(); undo != nil && !errors.Is(undo, sql.ErrTxDone) {
			return errors.Join(err, undo)
		}
		return err
	}
	return tx.Commit()
}

// Lone is the database outside transactions.
func (a *App) Lone() script.Tx { return newTx(a.DB()) }

// Tx is a transaction, or the database.
type Tx struct {
	plain.Tx
	handle plain.Handle
}

var _ script.Tx = Tx{}

func newTx(handle plain.Handle) Tx { return Tx{plain.NewTx(handle), handle} }

// Exec executes a statement.
func (t Tx) Exec(ctx context.Context, query string, args ...any) (affected int64, err error) {
	result, err := t.handle.ExecContext(ctx, query, args...)
	if err != nil {
		return 0, err
	}
	return result.RowsAffected()
}

// Nested sets a savepoint by hand.
func (t Tx) Nested(ctx context.Context, work func(ctx context.Context, tx script.Tx) error) error {
	return t.Tx.Nested(ctx, func(ctx context.Context, _ script.Tx) error { return work(ctx, t) })
}
