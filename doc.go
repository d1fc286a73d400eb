// Package pgretry is a database/sql driver for PostgreSQL that survives deadlocks
// and serialization failures. It wraps the real driver, lib/pq unless told
// otherwise, and is used in its place:
//
//	db, err := sql.Open(pgretry.DriverName, "postgres://…")
//
// PostgreSQL resolves a deadlock by ending one of the transactions with SQLSTATE
// 40P01, and under REPEATABLE READ and SERIALIZABLE it ends transactions that it
// cannot bring into an order with 40001. Nothing of such a transaction remains,
// and the manual asks for all of it to be run again. [RunInTx] does that:
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
// ORM's transaction helper.
//
// # What is promised
//
// At most once: no COMMIT is repeated unless it is certain that the earlier one
// did not happen. If nobody can tell, the error is a [*CommitUnknownError]. A
// closure that has already committed something, in a first transaction or by a
// statement outside one, is not run again ([ErrAlreadyCommitted]).
//
// Nothing held while waiting: a failed attempt is rolled back and its connection
// is back in the pool before the wait begins, so that a waiting transaction blocks
// nobody.
//
// Bounded: attempts, elapsed time and delays have limits ([Policy]), and a
// context's end or deadline is honoured at once, also while waiting.
//
// Seen: each attempt is an OpenTelemetry span below that of its transaction, with
// the statements below it if they are asked for; a deadlock's wait-for cycle is an event on it;
// [StatsOf] reports how much was protected. Neither arguments nor statement texts
// nor error messages are recorded unless asked for.
//
// A drop-in: what database/sql shows of the driver is what it shows of the inner
// one. Errors, in particular, are the inner driver's own values. What
// [sql.Conn.Raw] hands out is ours; [RawConn] leads to the inner connection.
//
// # What is not
//
// What a closure does outside the database, such as sending a message or counting
// in memory, is done again when the closure runs again; what it reads into
// variables outside itself must be reset when it begins. The same goes for what
// the database does outside the transaction: sequences advance, and functions of
// extensions such as dblink may have effects that no rollback undoes.
//
// Transactions that are not in a closure pass through as they are: their conflicts
// are returned, counted and traced, but not retried. So is a statement outside a
// transaction that a broken connection interrupts: as with lib/pq alone,
// database/sql may send it again on another connection.
//
// Retrying is only as good as what the driver sees. A closure must use the context
// and the transaction that it is given; what goes past them, for example through
// [sql.Conn.Raw], the driver cannot protect.
package pgretry
