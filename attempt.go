package pgretry

import (
	"context"
	"database/sql"
	"fmt"
	"sync"

	"go.opentelemetry.io/otel/trace"
)

// attempt is one run of a closure, as the driver sees it: which transactions
// began and ended under the context the closure was given, and what became of
// them. The loop in run.go asks it, because a closure may hide an error but
// cannot hide it from the driver.
type attempt struct {
	loop   *loop
	parent *attempt // of the loop around this one, if there is one
	number int      // from 1
	config *config  // of the loop when it began

	span trace.Span // nil while there is no telemetry, or no database to tell which

	// Of RunInTx: what a nested call joins.
	tx     *sql.Tx
	doomed error // of a nested call: rolls everything back even if ignored

	mu         sync.Mutex
	connector  *Connector // the first of ours that it met
	began      int
	open       int
	closed     chan struct{} // closed when open falls to 0; made by whoever waits
	statements int

	stay stay // at the gate of the closure's kind

	main verdict // of the transaction that RunInTx itself began
	last verdict // of whatever else failed last
	seen bool    // a failure that a further run may cure

	mainCommitted bool  // the transaction of RunInTx, by whomever
	unknown       error // of a COMMIT without an answer

	commits   int    // what was, or may have been, committed
	committed string // the first of them, in words
}

// verdict is what became of a transaction that failed. The zero value is none.
type verdict struct {
	class Class
	err   error
	// faint verdicts are of something beside a transaction. They count only if
	// the closure's error leads to them: it may have got over it.
	faint bool
}

type attemptKey struct{}

// attemptFrom returns the attempt whose closure was given ctx, or nil.
func attemptFrom(ctx context.Context) *attempt {
	a, _ := ctx.Value(attemptKey{}).(*attempt)
	return a
}

// meets notes that something of c's ran under the attempt.
func (a *attempt) meets(c *Connector) {
	a.mu.Lock()
	first := a.connector == nil
	if first {
		a.connector = c
	}
	a.mu.Unlock()
	if first {
		a.loop.meets(a, c)
	}
}

// txBegan notes a transaction and says whether it is the one RunInTx began for
// the closure: that comes first.
func (a *attempt) txBegan() (main bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.began++
	a.open++
	a.last = verdict{}
	return a.began == 1 && a.loop.target != nil
}

// txEnded notes what became of a transaction. v is the zero value if nothing
// failed in it that its end did not undo.
func (a *attempt) txEnded(main bool, o outcome, statements int, v verdict) {
	a.sawFailure(v.class)
	a.mu.Lock()
	a.closeLocked()
	a.statements += statements
	if main {
		a.main = v
		a.mainCommitted = o == outcomeCommitted
	} else {
		a.last = v
	}
	if v.class == ClassUnknownOutcome {
		a.unknown = v.err
	}
	a.mu.Unlock()

	switch o {
	case outcomeCommitted:
		a.noteCommitted("a transaction")
	case outcomeUnknown:
		a.noteCommitted("a transaction whose outcome is unknown")
	}
}

// sawFailure notes an error at the moment it comes, before it is known what the
// application makes of it.
func (a *attempt) sawFailure(class Class) {
	switch class {
	case ClassRetryable, ClassRetryableOptIn, ClassConnectionLost, ClassNotStarted:
		a.mu.Lock()
		a.seen = true
		a.mu.Unlock()
	}
}

// closeLocked notes the end of something that was under way. The caller holds mu.
func (a *attempt) closeLocked() {
	a.open--
	if a.open == 0 && a.closed != nil {
		close(a.closed)
		a.closed = nil
	}
}

// writeBegan and writeEnded bracket a statement outside a transaction that may
// commit something.
func (a *attempt) writeBegan() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.open++
}

func (a *attempt) writeEnded() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closeLocked()
}

// noteFailure notes an error that ended a lone statement or a connection that
// could not be made.
func (a *attempt) noteFailure(class Class, err error) {
	a.sawFailure(class)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.last = verdict{class: class, err: err, faint: class != ClassRetryable && class != ClassRetryableOptIn}
}

// noteSuccess forgets the last failure: the closure has gone on from it.
func (a *attempt) noteSuccess() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.last = verdict{}
}

// noteCommitted notes something that a further run could do twice, for this loop
// and for every loop around it. The transaction of RunInTx counts as well: its
// closure may have committed it by itself and gone on.
func (a *attempt) noteCommitted(what string) {
	for ; a != nil; a = a.parent {
		a.mu.Lock()
		a.commits++
		if a.committed == "" {
			a.committed = what
		}
		a.mu.Unlock()
	}
}

// takeBackCommitted undoes noteCommitted for a statement that failed after all.
func (a *attempt) takeBackCommitted() {
	for ; a != nil; a = a.parent {
		a.mu.Lock()
		a.commits--
		if a.commits == 0 {
			a.committed = ""
		}
		a.mu.Unlock()
	}
}

// observation is the state of an attempt whose closure has returned.
type observation struct {
	connector  *Connector
	open       int
	main, last verdict
	seen       bool
	committed  string
	statements int

	mainCommitted bool
	unknown       error
}

func (a *attempt) observe() observation {
	a.mu.Lock()
	defer a.mu.Unlock()
	return observation{
		connector: a.connector, open: a.open, main: a.main, last: a.last, seen: a.seen,
		committed: a.committed, statements: a.statements, mainCommitted: a.mainCommitted, unknown: a.unknown,
	}
}

// whenClosed returns a channel that is closed when every transaction begun under
// the attempt has ended.
func (a *attempt) whenClosed() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.open == 0 {
		done := make(chan struct{})
		close(done)
		return done
	}
	if a.closed == nil {
		a.closed = make(chan struct{})
	}
	return a.closed
}

// outcome is how an attempt or a logical transaction ended.
type outcome uint8

const (
	outcomeCommitted outcome = iota
	outcomeRolledBack
	outcomeRetried
	outcomeExhausted
	outcomeRefused
	outcomeUnknown
	outcomeDiverged
	outcomes // how many there are
)

var outcomeNames = [outcomes]string{
	outcomeCommitted:  "committed",
	outcomeRolledBack: "rolled_back",
	outcomeRetried:    "retried",
	outcomeExhausted:  "exhausted",
	outcomeRefused:    "refused",
	outcomeUnknown:    "unknown",
	outcomeDiverged:   "diverged",
}

func (o outcome) String() string {
	if o < outcomes {
		return outcomeNames[o]
	}
	return fmt.Sprintf("outcome(%d)", uint8(o))
}

// currentSpan returns the attempt's span, which the driver may have made after
// the closure began.
func (a *attempt) currentSpan() trace.Span {
	a.loop.mu.Lock()
	defer a.loop.mu.Unlock()
	return a.span
}

func (a *attempt) statementCount() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.statements
}
