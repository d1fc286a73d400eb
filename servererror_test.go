package pgretry

import (
	"errors"
	"fmt"
	"testing"

	"github.com/lib/pq"
	"github.com/lib/pq/pqerror"
)

func TestFieldsOfAServerErrorAreRead(t *testing.T) {
	want := serverError{
		severity: "FATAL", code: "23505", message: "duplicate key", detail: "Key (id)=(1)", hint: "Try another.",
		where: "SQL statement", table: "t", constraint: "t_pkey", routine: "_bt_check_unique",
	}
	fromPQ := &pq.Error{
		Severity: "FATAL", Code: "23505", Message: "duplicate key", Detail: "Key (id)=(1)", Hint: "Try another.",
		Where: "SQL statement", Table: "t", Constraint: "t_pkey", Routine: "_bt_check_unique",
	}
	fromPgx := &pgxError{
		Severity: "FATALE", SeverityUnlocalized: "FATAL", Code: "23505", Message: "duplicate key", Detail: "Key (id)=(1)",
		Hint: "Try another.", Where: "SQL statement", TableName: "t", ConstraintName: "t_pkey", Routine: "_bt_check_unique",
	}
	for _, err := range []error{fromPQ, fromPgx} {
		for _, wrapped := range []error{err, fmt.Errorf("insert: %w", err), errors.Join(errors.New("first"), err)} {
			if got, ok := asServerError(wrapped); !ok || got != want {
				t.Errorf("%T: got %+v, %v, want %+v", wrapped, got, ok, want)
			}
		}
	}
}

// A stateRepeater is like an error of ours that repeats the SQLSTATE of what it wraps.
type stateRepeater struct {
	Reason, state string
	err           error
}

func (e *stateRepeater) Error() string    { return e.Reason + ": " + e.err.Error() }
func (e *stateRepeater) Unwrap() error    { return e.err }
func (e *stateRepeater) SQLState() string { return e.state }

func TestTheServersOwnErrorIsPreferredToOneThatRepeatsItsSQLState(t *testing.T) {
	err := &stateRepeater{"diverged", "40P01", deadlockError("Process 1 waits for ShareLock on transaction 3; blocked by process 2.", "")}
	if got, ok := asServerError(err); !ok || got.message != "deadlock detected" || got.severity != "ERROR" {
		t.Errorf("got %+v, %v", got, ok)
	}
	if deadlock, ok := ParseDeadlock(err); !ok || len(deadlock.Edges) != 1 {
		t.Errorf("got %v, %v", deadlock, ok)
	}
	citus := pqAnswer("ERROR", "XX000", "could not commit transaction for shard 1 on at least one active node")
	if got := Classify(&stateRepeater{"commit", "XX000", citus}, PhaseCommit); got != ClassUnknownOutcome {
		t.Errorf("the text behind a repeated SQLSTATE: %v, want unknown_outcome", got)
	}
	if got, ok := asServerError(&stateRepeater{"gone", "40P01", errors.New("no details")}); !ok || got != (serverError{code: "40P01"}) {
		t.Errorf("got %+v, %v", got, ok)
	}
}

type oddFields struct {
	Message  int
	Detail   *string
	severity string
	Hint     fmt.Stringer
}

func (oddFields) Error() string    { return "odd" }
func (oddFields) SQLState() string { return "40001" }

func TestFieldsOfOtherTypesAreLeftAlone(t *testing.T) {
	for _, err := range []error{oddFields{severity: "FATAL"}, &oddFields{severity: "FATAL"}} {
		if got, ok := asServerError(err); !ok || got != (serverError{code: "40001"}) {
			t.Errorf("%T: got %+v, %v", err, got, ok)
		}
	}
}

func TestOnlyASQLStateMakesAServerError(t *testing.T) {
	for _, code := range []string{"", "4000", "400011", "00000", "4000a", "40 01", "４"} {
		if _, ok := asServerError(bareState(code)); ok {
			t.Errorf("%q is taken for a SQLSTATE", code)
		}
		if _, ok := asServerError(&pq.Error{Code: pqerror.Code(code), Message: "no"}); ok {
			t.Errorf("%q of lib/pq is taken for a SQLSTATE", code)
		}
	}
	if _, ok := asServerError(nil); ok {
		t.Error("nil is taken for a server's error")
	}
}
