package pgretry

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"time"
)

// ConnectionLostError means that the connection broke, and that nothing was executed
// again in its place.
//
// If RolledBack is true, the call was part of a transaction whose COMMIT was never
// sent, or was found not to have taken effect: nothing of the transaction remains, and
// it can be run again from its beginning.
//
// If RolledBack is false, the call was a statement outside a transaction that may or
// may not have taken effect. Do not simply execute it again: look whether it did, or
// make it such that a second execution does no harm (INSERT … ON CONFLICT DO NOTHING
// under a key of your own), or put it into a transaction, which is replayed. Reads do
// not end like this, as they are executed again.
//
// It does not match [database/sql/driver.ErrBadConn], at whose sight database/sql
// executes a statement again, nor a context's error. What the inner driver returned is
// in Cause. The pool drops the connection.
type ConnectionLostError struct {
	// Cause is what the inner driver returned.
	Cause error
	// RolledBack says that nothing of the transaction remains.
	RolledBack bool
	// Refusal says why the transaction was not replayed on a new connection; "" if
	// nobody tried, as in a closure, which runs again.
	Refusal RefusalReason
	// Limit says in words more about Refusal, or which limit was reached.
	Limit string
}

// Error says what is known about the fate of what was sent.
func (e *ConnectionLostError) Error() string {
	fate := "it is unknown whether the statement took effect"
	if e.RolledBack {
		fate = "the transaction is rolled back"
	}
	why := ""
	switch {
	case e.Refusal != "" && e.Limit != "":
		why = fmt.Sprintf(", not replayed because %s (%s)", refusalWords[e.Refusal], e.Limit)
	case e.Refusal != "":
		why = fmt.Sprintf(", not replayed because %s", refusalWords[e.Refusal])
	case e.Limit != "":
		why = fmt.Sprintf(", not replayed: %s", e.Limit)
	}
	return fmt.Sprintf("pgretry: the connection was lost, %s%s: %v", fate, why, e.Cause)
}

// Unwrap returns the Cause if that is the server's own, such as FATAL 57P01, so that its
// SQLSTATE can be read; otherwise nil.
func (e *ConnectionLostError) Unwrap() error { return serversOwn(e.Cause) }

// CommitUnknownError means that COMMIT was sent and that nobody can tell whether it
// took effect. The transaction was not and must not be run again blindly: look for
// something that only it can have written, such as a row under a key that the
// application has chosen. XID helps a person to find out, as long as the server keeps
// the transaction's status: SELECT pg_xact_status('…') on the same server, if that has
// neither crashed nor failed over since.
//
// It does not match [database/sql/driver.ErrBadConn] or a context error, because code
// that sees those takes it for granted that nothing was committed. What the inner
// driver returned is in Cause.
type CommitUnknownError struct {
	// Cause is the error that came instead of the server's answer.
	Cause error
	// Attempts is how many times the transaction was tried, the last one being in
	// doubt.
	Attempts int
	// At is when the answer failed to come.
	At time.Time
	// XID is the transaction's id as pg_current_xact_id shows it, 0 if it is not
	// known: see [WithCommitOutcome].
	XID uint64
	// Server tells the server's history at that time (system identifier, timeline,
	// start of the postmaster, last reset of its statistics), "" if not known.
	Server string
	// Reason says in words why nobody can tell.
	Reason string
}

// Error says that the outcome is unknown, why, and what came instead of an answer.
func (e *CommitUnknownError) Error() string {
	about := ""
	if e.XID != 0 {
		about = fmt.Sprintf(" %d", e.XID)
	}
	why := ""
	if e.Reason != "" {
		why = " (" + e.Reason + ")"
	}
	return fmt.Sprintf("pgretry: it is unknown whether the transaction%s was committed%s: %v", about, why, e.Cause)
}

// Unwrap returns the Cause if that is the server's own, such as ERROR 40003, so that its
// SQLSTATE can be read; otherwise nil.
func (e *CommitUnknownError) Unwrap() error { return serversOwn(e.Cause) }

// serversOwn returns an error that the server sent, nil for any other.
func serversOwn(err error) error {
	if sqlState(err) == "" || errors.Is(err, driver.ErrBadConn) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return nil
	}
	return err
}

// reusableError is a lost connection over which nothing was changed: database/sql may
// do the same again on another one.
type reusableError struct{ cause error }

func (e *reusableError) Error() string { return e.cause.Error() }

func (e *reusableError) Unwrap() error { return e.cause }

// Is makes database/sql see a bad connection.
func (e *reusableError) Is(target error) bool { return target == driver.ErrBadConn }
