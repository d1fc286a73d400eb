// Package pgretry is a database/sql driver for PostgreSQL that survives deadlocks,
// serialization failures and lost connections. It wraps the real driver, lib/pq unless told
// otherwise, and is used in its place:
//
//	db, err := sql.Open(pgretry.DriverName, "postgres://…") // was: sql.Open("postgres", …)
//
// PostgreSQL resolves a deadlock by ending one of the transactions with SQLSTATE
// 40P01, and under REPEATABLE READ and SERIALIZABLE it ends transactions that it
// cannot bring into an order with 40001. Nothing of such a transaction remains,
// and the manual asks for all of it to be run again. This driver does that in two
// ways.
//
// # Replay
//
// With no change but the driver's name, it keeps a journal of each transaction: the
// statements, their arguments, and a digest of everything that they have shown. When
// the server ends the transaction, the driver rolls back, waits, begins again,
// executes the journal and compares. If every row, column, row count and error comes
// out as the application has seen it, the application goes on as if nothing had
// happened. If not, it gets the server's error, as it would have without the driver,
// with a sentence more in its hint, and every later call of the transaction an error
// that matches [ErrDiverged]. Statements outside transactions are executed again too.
//
// What was read and has changed cannot be replayed. If the work is a function, it can be
// run again as a whole, with the new data:
//
// # Closures
//
// [RunInTx] runs a function in a transaction, and all of it again after a conflict:
//
//	err := pgretry.RunInTx(ctx, db, nil, func(ctx context.Context, tx *sql.Tx) error {
//		if _, err := tx.ExecContext(ctx, `UPDATE account SET balance = balance - $1 WHERE id = $2`, amount, from); err != nil {
//			return err
//		}
//		_, err := tx.ExecContext(ctx, `UPDATE account SET balance = balance + $1 WHERE id = $2`, amount, to)
//		return err
//	})
//
// [Retry] does it for libraries that begin and commit by themselves, such as an
// ORM's transaction helper. Inside either the driver replays nothing by itself.
//
// # What is promised
//
// Invisible or not at all: a replay succeeds only if the application cannot tell it
// from a run in which the conflict never happened.
//
// At most once: no COMMIT is repeated unless it is certain that the earlier one
// did not happen, and no statement outside a transaction is sent twice over a broken
// connection unless it is a read. A closure that has already committed something, in a
// first transaction or by a statement outside one, is not run again
// ([ErrAlreadyCommitted]).
//
// No locks held while waiting: a failed attempt is rolled back before the wait begins,
// so that a waiting transaction blocks nobody in the database. A closure's connection
// goes back to the pool meanwhile; a replay keeps its own.
//
// Bounded: attempts, elapsed time, delays and the journal have limits ([Policy],
// [WithJournalLimit]), and a context's end or deadline is honoured at once, also
// while waiting.
//
// Seen: each attempt is an OpenTelemetry span, with the statements below it if they
// are asked for; a deadlock's wait-for cycle is an event on it; [StatsOf] reports how
// much was protected and why the rest was not. Neither arguments nor statement texts
// nor error messages are recorded unless asked for.
//
// A drop-in: what database/sql shows of the driver is what it shows of the inner
// one. Errors, in particular, are the inner driver's own values, but for those that say
// what only this driver knows: [*RetryError], [*ConnectionLostError],
// [*CommitUnknownError], and a deadlock that it has found before the server did, which
// is the inner driver's type with the server's words. What [sql.Conn.Raw] hands out is
// ours; [RawConn] leads to the inner connection.
//
// # Lost connections
//
// A transaction whose connection breaks before COMMIT is replayed on a new one, or its
// closure runs again; prepared statements follow, and what the lost session left
// running at the server is ended first. It cannot move if the session held something
// that a new one lacks (SET, a temporary table, LISTEN, a call of a function that is not
// known): then the error is a [*ConnectionLostError], and the transaction is rolled
// back.
//
// A COMMIT whose answer is lost is looked up on the server by the transaction's id
// ([WithCommitOutcome]): if it took effect, Commit returns nil; if not, the transaction
// is replayed; if nobody can tell, the error is a [*CommitUnknownError].
//
// A statement outside a transaction is sent again only if the server cannot have
// executed it, or if it is a read. Otherwise the error is a [*ConnectionLostError] that
// says that its fate is unknown. None of these errors matches driver.ErrBadConn, for
// which database/sql would execute the statement again.
//
// # Transactions that deadlock again and again
//
// Once transactions of a kind have deadlocked, the driver limits how many of them run at
// once, and a connection of its own looks for deadlocks among its statements and ends
// them by cancelling one, before the server's deadlock_timeout. [WithContention] says
// what is done, and switches it off.
//
// # What is refused
//
// A transaction is not replayed after it did something that the driver knows to
// survive a rollback or cannot compare: advisory locks, PREPARE and other changes of
// the session, dblink and its like, COPY from files, COMMIT sent as a statement, and
// so on. The constants of type [RefusalReason] are the list. From there on it is as
// it would be without the driver, and a conflict's hint, the span, the metrics and
// StatsOf say why. Functions of one's own that have such effects can be named
// ([WithDeniedFunctions]), harmless ones permitted ([WithAllowedFunctions]).
//
// # What to know
//
// What an application does outside the database between two statements is not undone
// by a replay, and is done again by a closure: sending a message, counting in memory.
// A replay lets go of the transaction's locks and takes them again: who relies on a
// lock for work outside the database must not be replayed. What hides in views,
// triggers, defaults and stored functions the driver does not see. Sequences advance
// with each attempt.
//
// To turn replay off: [ContextWithoutReplay] for one transaction, [WithMode] or
// pgretry_mode=closure in the DSN for a database, pgretry_mode=off for closures too, and
// for what is said of lost connections, except that in a closure a COMMIT without an
// answer still is a [*CommitUnknownError].
package pgretry
