package peer

import (
	"context"
	"database/sql"

	"github.com/jackc/pgx/v5/stdlib"

	"github.com/pgretry/pgretry"
)

// Everything that depends on pgretry's options is in this file.

func openPgretry(dsn string) (*Database, error) { return ours(pgretry.Open(dsn)) }

func openPgretrySDK(dsn string) (*Database, error) {
	sdk := newSDK()
	db, err := ours(pgretry.Open(dsn, pgretry.WithTracerProvider(sdk.tracer), pgretry.WithMeterProvider(sdk.meter)))
	return sdk.beside(db, err)
}

func openPgretryPGX(dsn string) (*Database, error) {
	connector, err := pgretry.WrapDriver(stdlib.GetDefaultDriver()).OpenConnector(dsn)
	if err != nil {
		return nil, err
	}
	return ours(sql.OpenDB(connector), nil)
}

// leaseOptions returns the options that make the processes of one server take turns.
func leaseOptions() []pgretry.Option {
	return []pgretry.Option{pgretry.WithContention(pgretry.ContentionDefault | pgretry.ContentionShared)}
}

// Leased returns pgretry.RunInTx as it runs where several processes share a server, and false if it
// cannot do anything about them.
func Leased() (System, bool) {
	options := leaseOptions()
	return System{
		ID: "runintx-lease", Label: "pgretry.RunInTx, lease", About: "the same with a lease between processes", Ours: true,
		Open: func(dsn string) (*Database, error) { return ours(pgretry.Open(dsn, options...)) }, Transact: runInTx,
	}, options != nil
}

func ours(db *sql.DB, err error) (*Database, error) {
	if err != nil {
		return nil, err
	}
	return &Database{DB: db, Attempts: func() (int64, error) {
		stats, err := pgretry.StatsOf(db)
		return stats.Attempts, err
	}}, nil
}

func runInTx(ctx context.Context, db *sql.DB, work Work) error {
	return pgretry.RunInTx(pgretry.ContextWithName(ctx, work.Name), db, work.Options, work.Body)
}
