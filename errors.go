package pgretry

import (
	"errors"
	"fmt"
	"time"
)

// Sentinels that tell why a transaction was not run again, to be tested with
// [errors.Is]. Most are the Reason of a [*RetryError].
var (
	// ErrExhausted: the attempts, the elapsed time, the caller's deadline, the
	// user's backoff or the connector's retry budget allow no further attempt.
	ErrExhausted = errors.New("no further attempt is allowed")

	// ErrDiverged: a statement that the driver executed again showed something else
	// than the application had seen, so the transaction could not be replayed
	// without the application's noticing.
	ErrDiverged = errors.New("the replay showed something else than the application has seen")

	// ErrRefused: the transaction did something that the driver cannot undo, repeat
	// or prove, so it was not replayed. The RetryError's Refusal says what.
	ErrRefused = errors.New("the transaction cannot be replayed")

	// ErrAlreadyCommitted: the closure has, or may have, committed something
	// before it failed, so that running it again could do it twice.
	// [ContextWithIdempotence] gives the caller's word that this does no harm.
	ErrAlreadyCommitted = errors.New("the closure has already committed something")

	// ErrNestedOptions: a [RunInTx] inside another on the same database joins
	// the outer transaction and so cannot have an isolation level or access mode
	// that the outer one does not have. It is not in a RetryError.
	ErrNestedOptions = errors.New("a nested transaction cannot change the options of the one it joins")

	// ErrNotObserved: the driver saw nothing of the failed transaction, because
	// the closure did not use the context it was given or because the database
	// was not opened through this package, in which case it is not in a RetryError.
	// What the driver did not see it cannot promise to be rolled back.
	ErrNotObserved = errors.New("the driver did not see the transaction under the closure's context")

	// ErrTxStillOpen: the closure returned but a transaction that it began under
	// its context is neither committed nor rolled back.
	ErrTxStillOpen = errors.New("the closure left a transaction open")
)

// RetryError is what [RunInTx] and [Retry] return when a transaction failed in
// a way that would ordinarily be retried but was not, or not again.
//
// Outside closures, where the driver replays transactions by itself, the call that
// meets a conflict returns the server's own error. If a replay was tried and failed, a
// RetryError is what every later call of the transaction returns, Commit included: the
// transaction is rolled back already, and nothing of it may go on as if it were not. If
// none was tried because the transaction did something that is refused, later calls are
// the server's business, and Commit returns the RetryError.
//
// It matches its Reason and everything that Err matches, so that
// errors.As(err, &pqErr) finds the server's last error. If the caller's context
// ended the matter, it matches the context's error too.
type RetryError struct {
	// Reason is one of the sentinels of this package, such as [ErrExhausted].
	Reason error
	// Refusal says more where Reason is ErrRefused or one of those that come from
	// what a closure did; "" otherwise.
	Refusal RefusalReason
	// Attempts is how many times the transaction was tried: how often the closure
	// ran, or the driver began, replays from a savepoint included.
	Attempts int
	// Elapsed is the time from the first attempt's beginning to giving up.
	Elapsed time.Duration
	// Class is what became of the last attempt.
	Class Class
	// Err is the last attempt's error: the server's own, wherever there was one.
	Err error
	// Limit says in words which limit was reached, what was committed, or which
	// statement showed what else. It carries no data.
	Limit string

	cause error // the context's error, if that is why
}

// Error says why there was no further attempt, after how many and how long, and
// ends with the last error.
func (e *RetryError) Error() string {
	reason := e.Reason.Error()
	if e.Limit != "" {
		reason += " (" + e.Limit + ")"
	}
	attempts := "attempts"
	if e.Attempts == 1 {
		attempts = "attempt"
	}
	return fmt.Sprintf("pgretry: %s after %d %s in %s: %v",
		reason, e.Attempts, attempts, e.Elapsed.Round(time.Millisecond), e.Err)
}

// Unwrap returns the reason, the last error and, if the caller's context ended
// the matter, that context's error.
func (e *RetryError) Unwrap() []error {
	chain := make([]error, 0, 3)
	chain = append(chain, e.Reason)
	if e.Err != nil {
		chain = append(chain, e.Err)
	}
	if e.cause != nil {
		chain = append(chain, e.cause)
	}
	return chain
}

// SQLState returns the SQLSTATE of the last server error, or "" if there was none.
func (e *RetryError) SQLState() string { return sqlState(e.Err) }

// sqlState returns the SQLSTATE of the first error in the chain that has one.
func sqlState(err error) string {
	var state interface{ SQLState() string }
	if err != nil && errors.As(err, &state) {
		return state.SQLState()
	}
	var fields fielder
	if err != nil && errors.As(err, &fields) {
		return fields.Field('C')
	}
	return ""
}
