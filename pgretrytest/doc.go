// Package pgretrytest is for tests of applications that use pgretry: it makes the server
// abort transactions, which otherwise happens only when nobody looks.
//
// # Can a closure be run again?
//
// [Closure] runs one once for every point at which it could be aborted, and fails the test if
// the database ends up different or the closure kept something between its attempts. Nothing is
// left in the database. [RetryClosure] does the same for an ORM's transaction helper.
//
//	pgretrytest.Closure(t, db, func(ctx context.Context, tx *sql.Tx) error {
//		return transfer(ctx, tx, 1, 2, 10)
//	})
//
// # What does the application do when transactions are aborted?
//
// A [Connector] goes between pgretry and the inner driver's connector:
//
//	inner, err := pq.NewConnector(dsn)
//	aborting, err := pgretrytest.NewConnector(inner, pgretrytest.WithProbability(0.5))
//	connector, err := pgretry.NewConnector(aborting)
//	db := sql.OpenDB(connector)
//
// and a [Driver] does the same for code that opens its database by the name of a driver, as
// ORMs do. In place of a call it makes the server raise 40001 or 40P01 (DO … RAISE), so the
// error is the server's own, the transaction really is aborted, and nothing of the call took
// effect. What pgretry asks or commands by itself is left alone. It needs the language plpgsql,
// which databases have unless it was dropped.
//
// Behind such a connector pgretry takes the inner driver for one that it does not know. What
// it does for lib/pq and pgx alone, such as keeping statements prepared and looking for
// deadlocks, it does not do.
package pgretrytest
