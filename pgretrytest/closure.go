package pgretrytest

import (
	"context"
	"database/sql"
	"testing"
	"time"

	"github.com/cenkalti/backoff/v4"

	"github.com/pgretry/pgretry"
)

// Closure tests that a closure for pgretry.RunInTx can be run again. It runs fn undisturbed
// and then once for every point at which it could be aborted, and fails the test if a run
// ends up with anything else than the undisturbed one:
//
//	func TestTransfer(t *testing.T) {
//		pgretrytest.Closure(t, db, func(ctx context.Context, tx *sql.Tx) error {
//			return transfer(ctx, tx, 1, 2, 10)
//		})
//	}
//
// db is any database that was opened through pgretry. Nothing of a trial stays there: at
// COMMIT deferred constraints are checked, a look is taken at what the transaction would
// leave, and it is rolled back; sequences, which no rollback takes back, are set to where
// they stood. So all runs begin from the same state, and db can be used before and after, but
// not written to meanwhile.
//
// # What is compared
//
//   - The database: the rows of all tables and materialized views that the role can read,
//     temporary ones too.
//   - The statements and arguments of the attempt that gets through.
//   - The error that RunInTx returns: there must be none.
//   - The variables that [Results] names.
//
// What is kept from one attempt to the next, such as a counter that is not reset, is seen if it
// changes one of these. What only stays in memory is seen only in variables that Results names.
// UUIDs, other than as 16 raw bytes, that differ between two undisturbed runs are not compared,
// nor are times, if each lies, to a second, within its run; which is logged. A time that is
// reckoned from the clock, such as one in an hour, has to be named. Anything else that differs between these is reported,
// and no points are tried: it is what state that is kept looks like as well as chance.
//
// # The points
//
// Each statement, savepoints included, each preparation of one, COMMIT, and of the rows of
// each query the first, the last that is asked for, and the closing before their end. In
// turn they fail with 40001 and 40P01. See [MaxPoints].
//
// # What it cannot do
//
// The trials run on a database of their own, over the same inner connector, unless one of
// this package is inside db. What fn does on db itself, or anywhere else, is real; it is
// reported if it changes what is compared. Statements that were prepared on db, and a nested
// RunInTx on db, need a db with a connector of this package inside.
//
// What db was opened with holds for the trials, telemetry and hooks included, but for the
// mode and the waits between attempts.
//
// Notifications, large objects, advisory locks of the session, foreign tables and what a
// function does outside the database are not compared. The role needs UPDATE on sequences to
// have them set back. It needs PostgreSQL 11 or later.
//
// Nothing of the kind is found by one run: a closure that goes wrong only beside another
// transaction needs another test, with a [Connector].
func Closure(t testing.TB, db *sql.DB, fn func(ctx context.Context, tx *sql.Tx) error, options ...ClosureOption) {
	t.Helper()
	if fn == nil {
		t.Fatalf("pgretrytest: the closure is nil")
	}
	try(t, db, options, false, "RunInTx", func(ctx context.Context, on *sql.DB, c *closureConfig) error {
		counted := func(ctx context.Context, tx *sql.Tx) error {
			c.runs++
			return fn(ctx, tx)
		}
		return pgretry.RunInTx(ctx, on, c.tx, counted, atOnce()...)
	})
}

// RetryClosure is [Closure] for closures of pgretry.Retry, which begin and commit their
// transaction by themselves, as with an ORM's transaction helper:
//
//	sql.Register("postgres-aborting", pgretry.WrapDriver(pgretrytest.WrapDriver(&pq.Driver{})))
//	gormDB, err := gorm.Open(postgres.New(postgres.Config{DriverName: "postgres-aborting", DSN: dsn}))
//	if err != nil {
//		t.Fatal(err)
//	}
//	sqlDB, err := gormDB.DB()
//	if err != nil {
//		t.Fatal(err)
//	}
//	defer sqlDB.Close()
//	pgretrytest.RetryClosure(t, sqlDB, func(ctx context.Context) error {
//		return gormDB.WithContext(ctx).Transaction(func(tx *gorm.DB) error { … })
//	})
//
// A name is registered once in a program. gorm's logger prints each error that is injected;
// logger.Discard keeps it silent.
//
// db has to be the database that fn uses, with a connector or driver of this package inside;
// what their options abort are other transactions. fn must use the context that it is given,
// and commit one transaction.
func RetryClosure(t testing.TB, db *sql.DB, fn func(ctx context.Context) error, options ...ClosureOption) {
	t.Helper()
	if fn == nil {
		t.Fatalf("pgretrytest: the closure is nil")
	}
	try(t, db, options, true, "Retry", func(ctx context.Context, _ *sql.DB, c *closureConfig) error {
		counted := func(ctx context.Context) error {
			c.runs++
			return fn(ctx)
		}
		return pgretry.Retry(ctx, counted, atOnce()...)
	})
}

// maxAttempts is how often a closure is run that fails each time.
const maxAttempts = 5

// atOnce has a loop repeat its closure without waiting, whatever the database's own options.
func atOnce() []pgretry.RunOption {
	return []pgretry.RunOption{
		pgretry.WithMode(pgretry.ModeReplay),
		pgretry.WithPolicy(pgretry.Policy{MaxAttempts: maxAttempts, BaseDelay: time.Nanosecond, MaxDelay: time.Nanosecond, MaxElapsed: time.Hour}),
		pgretry.WithBackOff(func() backoff.BackOff { return &backoff.ZeroBackOff{} }),
	}
}

func try(t testing.TB, db *sql.DB, options []ClosureOption, itself bool, loop string, run func(context.Context, *sql.DB, *closureConfig) error) {
	t.Helper()
	if db == nil {
		t.Fatalf("pgretrytest: the database is nil")
	}
	config, err := newClosureConfig(options)
	if err != nil {
		t.Fatalf("pgretrytest: %v", err)
	}
	s, err := newStage(t.Context(), db, config.schemas, itself)
	if err != nil {
		t.Fatalf("pgretrytest: %v", err)
	}
	defer func() {
		if err := s.close(); err != nil {
			t.Errorf("pgretrytest: close what the trials ran on: %v", err)
		}
	}()
	y := &trial{
		config: config, stage: s, loop: loop,
		run:     func(ctx context.Context) error { return run(ctx, s.db, config) },
		results: newResults(config.results),
		changed: make(map[string]bool), masks: make(masks), varies: make(map[place]bool),
	}
	y.judge(t)
}
