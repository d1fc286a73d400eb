// Package abort makes a PostgreSQL server abort transactions on purpose, so that
// tests meet conflicts at every call and not only where the machine's timing puts
// them.
//
// A [Connector] stands around another one, lib/pq's or any other. In place of a call
// it makes the server raise an error, by default of SQLSTATE 40001 or 40P01, chosen by
// chance, and returns that: the error is the server's, the block really is aborted,
// and nothing of the call took effect. A wrapper under test goes around it:
//
//	injector, err := abort.NewConnector(inner, abort.WithSeed(1), abort.WithProbability(0.2))
//	db := sql.OpenDB(wrap(injector))
//
// Which calls fail by chance is a function of the seed, of the number of the connection
// and of the number of the call on it, and, where that is asked for by the attempt, of
// how many calls the transactions before have made.
//
// What no server does is not done here either: ROLLBACK and ROLLBACK TO never
// fail, nor does anything in a block that is aborted already, nor rows whose end
// was seen. Statements that begin or end a transaction as text are passed on, and so
// is what lib/pq's COPY FROM STDIN sends once it is prepared.
//
// Under the context of a [Script] something else than chance decides, and nothing is
// committed.
//
// The attempts of a transaction are those of the closure that it runs in. Where there
// is none, a block that begins on a connection where the last block was aborted on
// purpose is taken for the next attempt, and so is what follows a rollback to a
// savepoint that undid such an abort.
package abort
