// Package pgretrytest is for tests of applications that use pgretry: it makes the server
// abort transactions, which otherwise happens only when nobody looks.
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
// effect. What pgretry asks or commands by itself is left alone. It needs the language plpgsql, which databases have unless it was dropped.
//
// Behind such a connector pgretry takes the inner driver for one that it does not know. What
// it does for lib/pq and pgx alone, such as keeping statements prepared and looking for
// deadlocks, it does not do.
package pgretrytest
