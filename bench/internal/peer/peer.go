// Package peer holds the ways of running a transaction that are compared: drivers, retry loops,
// pgretry, and the two limits of what any of them could reach.
package peer

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/pgretry/pgretry/internal/workload"
)

// Work is one logical transaction.
type Work struct {
	// Name is what its kind is called.
	Name string
	// Options are what it begins with.
	Options *sql.TxOptions
	// Body is what happens between BEGIN and COMMIT. It may run more than once.
	Body workload.Body
}

// Database is a *sql.DB and what was opened beside it.
type Database struct {
	*sql.DB
	// Attempts returns how many physical transactions were begun so far, where the database can
	// tell. Nil means that whoever runs bodies has to count them.
	Attempts func() (int64, error)

	beside func() error
}

// Close closes the database and what was opened beside it.
func (d *Database) Close() error {
	err := d.DB.Close()
	if d.beside != nil {
		err = errors.Join(err, d.beside())
	}
	return err
}

// System is one way of running transactions.
type System struct {
	// ID is its name in flags and files, Label its name in tables and plots.
	ID, Label string
	// About says in one line what it is.
	About string
	// Ours says that it is pgretry: what it breaks is a failure of the benchmark.
	Ours bool
	// Ordered says that it is a limit whose transactions take their locks in one order.
	Ordered bool
	// Alone says that it is a limit that has one worker, whatever the others have.
	Alone bool
	// Open opens the database that a DSN names.
	Open func(dsn string) (*Database, error)
	// Transact runs one logical transaction to its end.
	Transact func(ctx context.Context, db *sql.DB, work Work) error
}

// Limit says that the system is no competitor but the measure of all.
func (s System) Limit() bool { return s.Ordered || s.Alone }

// The ids of the systems that others are compared with, or that make a claim.
const (
	LibPQ         = "libpq"
	Loop          = "loop"
	PGX           = "pgx"
	Pgretry       = "pgretry"
	RunInTx       = "runintx"
	PgretrySDK    = "pgretry-sdk"
	RunInTxSDK    = "runintx-sdk"
	PgretryPGX    = "pgretry-pgx"
	OrderedLimit  = "ordered"
	OneWorker     = "alone"
	otelsqlPlain  = "otelsql"
	otelsqlSDK    = "otelsql-sdk"
	cockroachLoop = "crdb"
)

// All returns every system in the order in which they are shown.
func All() []System {
	return []System{
		{ID: LibPQ, Label: "lib/pq", About: "github.com/lib/pq, each transaction tried once", Open: openLibPQ, Transact: Once},
		{ID: otelsqlPlain, Label: "otelsql", About: "lib/pq inside otelsql without an SDK", Open: openOtelsql, Transact: Once},
		{ID: otelsqlSDK, Label: "otelsql + SDK", About: "lib/pq inside otelsql, an SDK that samples everything", Open: openOtelsqlSDK, Transact: Once},
		{ID: PGX, Label: "pgx/stdlib", About: "github.com/jackc/pgx/v5/stdlib, each transaction tried once", Open: openPGX, Transact: Once},
		{ID: Loop, Label: "hand-written loop", About: "lib/pq in a loop with full jitter (base 5 ms, cap 1 s) until success", Open: openLibPQ, Transact: loop},
		{ID: cockroachLoop, Label: "crdb.ExecuteTx", About: "lib/pq with cockroach-go's crdb.ExecuteTx", Open: openLibPQ, Transact: executeTx},
		{ID: Pgretry, Label: "pgretry, driver only", About: "pgretry around lib/pq, nothing but the driver's name changed", Ours: true, Open: openPgretry, Transact: Once},
		{ID: RunInTx, Label: "pgretry.RunInTx", About: "pgretry around lib/pq, closures", Ours: true, Open: openPgretry, Transact: runInTx},
		{ID: PgretrySDK, Label: "pgretry + SDK", About: "pgretry with spans of transactions, attempts and statements, an SDK that samples everything", Ours: true, Open: openPgretrySDK, Transact: Once},
		{ID: RunInTxSDK, Label: "pgretry.RunInTx + SDK", About: "the same with closures", Ours: true, Open: openPgretrySDK, Transact: runInTx},
		{ID: PgretryPGX, Label: "pgretry over pgx", About: "pgretry around pgx/stdlib", Ours: true, Open: openPgretryPGX, Transact: Once},
		{ID: OrderedLimit, Label: "limit: locks in order", About: "the hand-written loop, in an application that takes its locks in one order", Ordered: true, Open: openLibPQ, Transact: loop},
		{ID: OneWorker, Label: "limit: one worker", About: "the hand-written loop with one worker: no conflicts are possible", Alone: true, Open: openLibPQ, Transact: loop},
	}
}

// Named returns the systems with these ids in the order of All.
func Named(ids ...string) []System {
	var systems []System
	for _, system := range All() {
		if slices.Contains(ids, system.ID) {
			systems = append(systems, system)
		}
	}
	return systems
}

// Known returns an error that lists the right ones if one of the ids is none.
func Known(ids []string) error {
	var known []string
	for _, system := range All() {
		known = append(known, system.ID)
	}
	for _, id := range ids {
		if !slices.Contains(known, id) {
			return fmt.Errorf("no system is called %q: choose from %s", id, strings.Join(known, ", "))
		}
	}
	return nil
}

// Label returns the label of the system with that id, or the id if it is none of All.
func Label(id string) string {
	for _, system := range All() {
		if system.ID == id {
			return system.Label
		}
	}
	return id
}

// Once is how an application that knows nothing of retries runs a transaction: one that fails is
// given up.
func Once(ctx context.Context, db *sql.DB, work Work) error {
	tx, err := db.BeginTx(ctx, work.Options)
	if err != nil {
		return err
	}
	if err := work.Body(ctx, tx); err != nil {
		if undo := tx.Rollback(); undo != nil && !errors.Is(undo, sql.ErrTxDone) {
			return errors.Join(err, undo)
		}
		return err
	}
	return tx.Commit()
}
