package pgretry

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/pgretry/pgretry/internal/drivertest"
)

func TestNoTextThatControlsTransactionsIsTakenForAnother(t *testing.T) {
	var missed []string
	defer func() {
		if len(missed) > 0 {
			t.Errorf("%d texts that control transactions are missed, the first being %q", len(missed), missed[0])
		}
	}()
	for _, words := range []string{
		"ABORT", "BEGIN", "COMMIT", "END", "PREPARE TRANSACTION 'a'", "ROLLBACK", "START TRANSACTION", "ROLLBACK TO a",
		"COMMIT AND CHAIN", "SELECT 1; COMMIT", "UPDATE t SET a = 1; END", "INSERT INTO t VALUES (1);COMMIT",
	} {
		for _, before := range []string{"", " ", "\t", "\n", "\r", "\f", "\v", " \r\n\t\f", "-- why\n", "/* why */", "/* /* */ */ ", ";", " ; "} {
			for _, after := range []string{"", ";", " ;", " -- why"} {
				for _, text := range []string{before + words + after, before + strings.ToLower(words) + after} {
					if !mayControlTx(text) {
						missed = append(missed, text)
					}
				}
			}
		}
	}
	for _, text := range []string{"", "SELECT 1", "select 1;", "INSERT INTO t VALUES (1)", "UPDATE t SET a = 1", "SET a = 1", "SAVEPOINT a", "WITH x AS (SELECT) SELECT", "DELETE FROM t"} {
		if mayControlTx(text) {
			t.Errorf("%q is looked at although it cannot control transactions", text)
		}
	}
}

func FuzzNoTextThatControlsTransactionsIsTakenForAnother(f *testing.F) {
	f.Add("\fCOMMIT")
	f.Fuzz(func(t *testing.T, text string) {
		if info := analyze(text); (info.BeginsTx || info.EndsTx) && !info.Suspicious && !mayControlTx(text) {
			t.Errorf("%q controls transactions", text)
		}
	})
}

// onOneConn runs the texts on one connection, under ctx unless they begin with a bang.
func onOneConn(ctx context.Context, db *sql.DB, texts ...string) (err error) {
	c, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	for _, text := range texts {
		ctx, ignore := ctx, strings.HasPrefix(text, "?")
		if text, without := strings.CutPrefix(text, "!"); without {
			_, err = c.ExecContext(context.Background(), text)
		} else {
			_, err = c.ExecContext(ctx, strings.TrimPrefix(text, "?"))
		}
		if err != nil && !ignore {
			return err
		}
	}
	return nil
}

func TestWhatARawBlockDidIsKnown(t *testing.T) {
	for _, c := range []struct {
		texts []string
		want  error // nil if the closure may run again
	}{
		{[]string{"BEGIN", "INSERT", "!COMMIT"}, ErrAlreadyCommitted},
		{[]string{"!BEGIN", "INSERT", "!ROLLBACK"}, ErrAlreadyCommitted}, // seen as a statement of its own
		{[]string{"BEGIN; INSERT; COMMIT"}, ErrAlreadyCommitted},
		{[]string{"BEGIN", "INSERT"}, ErrTxStillOpen},
		{[]string{"BEGIN", "INSERT", "ROLLBACK AND CHAIN", "INSERT", "ROLLBACK"}, nil},
		{[]string{"BEGIN", "INSERT", "ROLLBACK AND CHAIN", "INSERT", "COMMIT"}, ErrAlreadyCommitted},
		{[]string{"BEGIN", "INSERT", "COMMIT AND CHAIN", "INSERT", "ROLLBACK"}, ErrAlreadyCommitted},
		{[]string{"BEGIN", "INSERT", "ROLLBACK AND CHAIN", "INSERT"}, ErrTxStillOpen},
		{[]string{"START TRANSACTION", "INSERT", "ABORT"}, nil},
		{[]string{"BEGIN", "INSERT", "END"}, ErrAlreadyCommitted},
		{[]string{"BEGIN", "INSERT", "PREPARE TRANSACTION 'a'"}, ErrAlreadyCommitted},
		{[]string{"BEGIN", "INSERT", "ROLLBACK; BEGIN; INSERT; COMMIT"}, ErrAlreadyCommitted},
	} {
		f := newFixture(t)
		f.connector.config.closing = time.Millisecond
		f.Fail(drivertest.Exec, serverErr("40001")).Matching("last").Times(1)
		runs := 0
		err := Retry(t.Context(), func(ctx context.Context) error {
			runs++
			if err := onOneConn(ctx, f.db, c.texts...); err != nil {
				t.Error(err)
			}
			if c.want == ErrTxStillOpen { //nolint:errorlint // the very same
				c2, err := f.db.Conn(ctx) // the pool gives the same one: end the block
				if err == nil {
					defer func() { _ = c2.Close() }()
				}
			}
			return inTx(ctx, f.db, transfer)
		})
		if !errors.Is(err, c.want) || c.want == nil && runs != 2 || c.want != nil && runs != 1 {
			t.Errorf("%v: Retry gives %v after %d runs, want %v", c.texts, err, runs, c.want)
		}
	}
}

func TestAConflictInARawBlockIsAConflictUntilItIsUndone(t *testing.T) {
	business := errors.New("out of stock")
	for _, c := range []struct {
		texts []string
		runs  int
	}{
		{[]string{"BEGIN", "?UPDATE first", "ROLLBACK"}, 2},
		{[]string{"BEGIN", "?UPDATE first", "?UPDATE more", "ROLLBACK"}, 2}, // the second is but a symptom
		{[]string{"BEGIN", "SAVEPOINT a", "?UPDATE first", "ROLLBACK TO a", "ROLLBACK"}, 1},
	} {
		f := newFixture(t)
		f.Fail(drivertest.Exec, serverErr("40001")).Matching("first").Times(1)
		runs := 0
		err := Retry(t.Context(), func(ctx context.Context) error {
			if runs++; runs > 1 {
				return nil
			}
			if err := onOneConn(ctx, f.db, c.texts...); err != nil {
				t.Error(err)
			}
			return business
		})
		if runs != c.runs || (err == nil) != (c.runs == 2) {
			t.Errorf("%v: Retry gives %v after %d runs, want %d", c.texts, err, runs, c.runs)
		}
	}
}

func TestAfterARawEndStatementsStandAlone(t *testing.T) {
	for _, c := range []struct {
		texts []string
		want  error
	}{
		{[]string{"INSERT", "ROLLBACK"}, nil},
		{[]string{"INSERT", "ROLLBACK", "SELECT 1"}, nil},
		{[]string{"INSERT", "ROLLBACK", "INSERT"}, ErrAlreadyCommitted},
		{[]string{"INSERT", "END"}, ErrAlreadyCommitted},
	} {
		f := newFixture(t)
		conflict := serverErr("40001")
		runs := 0
		err := RunInTx(t.Context(), f.db, nil, func(ctx context.Context, tx *sql.Tx) error {
			if runs++; runs > 1 {
				return nil
			}
			for _, text := range c.texts {
				if _, err := tx.ExecContext(ctx, text); err != nil {
					t.Error(err)
				}
			}
			return conflict
		})
		if !errors.Is(err, c.want) || (runs == 2) != (c.want == nil) {
			t.Errorf("%v: RunInTx gives %v after %d runs, want %v", c.texts, err, runs, c.want)
		}
	}
}

func TestStatsKnowARawCommit(t *testing.T) {
	f := newFixture(t)
	tx, err := f.db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.ExecContext(t.Context(), "COMMIT"); err != nil {
		t.Fatal(err)
	}
	_ = tx.Rollback()
	if s, _ := StatsOf(f.db); s.Committed != 1 || s.Attempts != 1 {
		t.Errorf("stats are %+v", s)
	}
}

func TestADeadlockInCommitIsTold(t *testing.T) {
	o := newObservatory(t)
	f := newFixture(t, o.options()...)
	f.Fail(drivertest.Commit, deadlockErr).Times(1)
	if err := RunInTx(t.Context(), f.db, nil, transfer); err != nil {
		t.Fatal(err)
	}
	if got := o.tree(); strings.Count(got, "event:"+eventDeadlock) != 1 {
		t.Errorf("the spans are\n%s", got)
	}
}

func TestCommittedTransactionsRefillTheBudget(t *testing.T) {
	f := newFixture(t)
	for f.connector.budget.take() {
	}
	spent := f.connector.budget.spent.Load()
	if err := RunInTx(t.Context(), f.db, nil, transfer); err != nil {
		t.Fatal(err)
	}
	_ = RunInTx(t.Context(), f.db, nil, func(context.Context, *sql.Tx) error { return errors.New("no") })
	if got := f.connector.budget.spent.Load(); got != spent-budgetSuccessFee {
		t.Errorf("%d tokens are spent after one commit and one rollback, want %d", got, spent-budgetSuccessFee)
	}
}

func TestATransactionWhoseConnectionGoesAwayEndsWithIt(t *testing.T) {
	o := newObservatory(t)
	f := newFixture(t, o.options()...)
	c, err := f.connector.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.(driver.ConnBeginTx).BeginTx(t.Context(), driver.TxOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if got := o.tree(); !strings.Contains(got, "pgretry.attempt attempt=1 attempt.kind=replay outcome=rolled_back") {
		t.Errorf("the attempt's span is not ended:\n%s", got)
	}
}
