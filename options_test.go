package pgretry

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"testing"

	"github.com/pgretry/pgretry/internal/drivertest"
)

func TestADriversOwnErrorIsNotTheTransactionsEnd(t *testing.T) {
	f := newFixture(t)
	f.Fail(drivertest.Exec, errors.New("cannot encode argument 1")).Matching("wrong").Times(1)
	f.Fail(drivertest.Exec, serverErr("40001")).Matching("UPDATE").Times(1)
	runs := 0
	err := RunInTx(t.Context(), f.db, nil, func(ctx context.Context, tx *sql.Tx) error {
		runs++
		_, _ = tx.ExecContext(ctx, "wrong")
		if _, err := tx.ExecContext(ctx, "UPDATE"); err != nil {
			return fmt.Errorf("no: %v", err) //nolint:errorlint // that is the point
		}
		return nil
	})
	if err != nil || runs != 2 {
		t.Errorf("RunInTx gives %v after %d runs", err, runs)
	}
}

func TestRetryHasThePolicyOfADatabaseThatItCouldNotReach(t *testing.T) {
	f := newFixture(t, WithPolicy(Policy{MaxAttempts: 2}))
	f.Fail(drivertest.Connect, fmt.Errorf("dial: %w", errConnRefused))
	runs := 0
	err := Retry(t.Context(), func(ctx context.Context) error { runs++; return inTx(ctx, f.db, transfer) })
	if !errors.Is(err, ErrExhausted) || runs != 2 {
		t.Errorf("Retry gives %v after %d runs, want 2", err, runs)
	}
}

func TestTheDSNSwitchesStatementSpansOff(t *testing.T) {
	c, err := WrapDriver(drivertest.New().Driver(), WithStatementSpans()).OpenConnector("pgretry_statement_spans=false")
	if err != nil {
		t.Fatal(err)
	}
	if _, direct := c.(*Connector).inner.(tapConnector); !direct {
		t.Error("otelsql is in the path although the DSN says no")
	}
}

func TestALoneWriteThatTheTextDoesNotShowMayBeCommitted(t *testing.T) {
	for _, c := range []struct {
		text string
		err  error
	}{
		{`INSERT INTO t VALUES ('\''); COMMIT; --')`, serverErr("23505")}, // with standard_conforming_strings off
		{"INSERT INTO t VALUES (1)", &drivertest.Error{Severity: "ERROR", Code: "XX000", Message: "could not commit transaction for shard 102008 on at least 1 active node"}},
	} {
		f := newFixture(t)
		f.Fail(drivertest.Exec, c.err).Matching("INSERT").Times(1)
		f.Fail(drivertest.Exec, serverErr("40001")).Matching("UPDATE last").Times(1)
		err := Retry(t.Context(), func(ctx context.Context) error {
			_, _ = f.db.ExecContext(ctx, c.text)
			return inTx(ctx, f.db, transfer)
		})
		if !errors.Is(err, ErrAlreadyCommitted) {
			t.Errorf("%s: Retry gives %v", c.text, err)
		}
	}
}

func TestAttributesOfOneTransactionAreNotAnothers(t *testing.T) {
	c := &config{}
	for _, o := range []Option{WithAttributes(keyName.String("x")), WithAttributes(keyName.String("y")), WithAttributes(keyName.String("z"))} {
		_ = o.apply(c)
	}
	tel := newTelemetry(c)
	tel.attributes = append(tel.attributes, keyName.String("room"))[:len(tel.attributes)]
	first := tel.describe("first", nil, 2)
	second := tel.describe("second", nil, 2)
	if first[len(first)-1] == second[len(second)-1] {
		t.Errorf("both have %v", first[len(first)-1])
	}
}
