package pgretry

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/pgretry/pgretry/internal/drivertest"
)

func TestALoneTextIsJudgedByAllOfIt(t *testing.T) {
	for _, c := range []struct {
		text string
		err  error // of the text itself
		want error // nil if the closure may run again
	}{
		{"", nil, nil},
		{"-- nothing", nil, nil},
		{"RESET a", nil, nil},
		{"SHOW a", nil, nil},
		{"LISTEN a", nil, nil},
		{"UNLISTEN a", nil, nil},
		{"NOTIFY a", nil, ErrAlreadyCommitted},
		{"SET a = 1; INSERT INTO t VALUES (1)", nil, ErrAlreadyCommitted},
		{"INSERT INTO t VALUES (1); COMMIT; INSERT INTO t VALUES (2)", serverErr("23505"), ErrAlreadyCommitted},
		{`INSERT INTO t VALUES ('\'); COMMIT; --')`, serverErr("23505"), ErrAlreadyCommitted},
		{"INSERT INTO t VALUES (1)", serverErr("40003"), ErrAlreadyCommitted},
		{"INSERT INTO t VALUES (1)", &drivertest.Error{Severity: "FATAL", Code: "57P01", Message: "terminating"}, ErrAlreadyCommitted},
		{"INSERT INTO t VALUES (1)", serverErr("23505"), nil},
		{"VACUUM t", serverErr("57014"), ErrAlreadyCommitted},
	} {
		f := newFixture(t)
		first := f.On(drivertest.Exec).Times(1)
		if c.err != nil {
			first.Return(c.err)
		} else {
			first.Do(func(*drivertest.Invocation) error { return nil })
		}
		f.Fail(drivertest.Exec, serverErr("40001")).Matching("UPDATE last").Times(1)
		runs := 0
		err := Retry(t.Context(), func(ctx context.Context) error {
			if runs++; runs == 1 {
				if _, err := f.db.ExecContext(ctx, c.text); !errors.Is(err, c.err) {
					t.Errorf("%q gives %v", c.text, err)
				}
			}
			return inTx(ctx, f.db, transfer)
		})
		if !errors.Is(err, c.want) || (runs == 2) != (c.want == nil) {
			t.Errorf("%q failing with %v: Retry gives %v after %d runs, want %v", c.text, c.err, err, runs, c.want)
		}
	}
}

func TestAHiddenConflictAnywhereIsRetried(t *testing.T) {
	type way struct {
		calls drivertest.Call
		run   func(context.Context, *sql.Tx) error
	}
	query := func(ctx context.Context, tx *sql.Tx) error {
		rows, err := tx.QueryContext(ctx, "SELECT")
		if err != nil {
			return err
		}
		for more := true; more; more = rows.NextResultSet() {
			for rows.Next() {
			}
		}
		return errors.Join(rows.Err(), rows.Close())
	}
	prepared := func(exec bool) func(context.Context, *sql.Tx) error {
		return func(ctx context.Context, tx *sql.Tx) error {
			s, err := tx.PrepareContext(ctx, "SELECT")
			if err != nil {
				return err
			}
			if exec {
				_, err = s.ExecContext(ctx)
				return err
			}
			rows, err := s.QueryContext(ctx)
			if err != nil {
				return err
			}
			for rows.Next() {
			}
			return errors.Join(rows.Err(), rows.Close())
		}
	}
	for name, w := range map[string]way{
		"Exec":                 {drivertest.Exec, func(ctx context.Context, tx *sql.Tx) error { _, err := tx.ExecContext(ctx, "SELECT"); return err }},
		"Query":                {drivertest.Query, query},
		"Rows.Next":            {drivertest.RowsNext, query},
		"Rows.NextResultSet":   {drivertest.RowsNextResultSet, query},
		"Rows.Close":           {drivertest.RowsClose, query},
		"Prepare":              {drivertest.Prepare, prepared(true)},
		"Stmt.Exec":            {drivertest.StmtExec, prepared(true)},
		"Stmt.Query":           {drivertest.StmtQuery, prepared(false)},
		"Stmt.Query Rows.Next": {drivertest.RowsNext, prepared(false)},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.Rows("SELECT", drivertest.ResultSet{Columns: drivertest.Columns("a")}, drivertest.ResultSet{Columns: drivertest.Columns("a")})
			rule := f.Fail(w.calls, serverErr("40001")).Times(1)
			runs := 0
			err := Retry(t.Context(), func(ctx context.Context) error {
				runs++
				if err := inTx(ctx, f.db, w.run); err != nil {
					return fmt.Errorf("no: %v", err) //nolint:errorlint // that is the point
				}
				return nil
			})
			if err != nil || runs != 2 || rule.Fired() != 1 {
				t.Errorf("Retry gives %v after %d runs and %d conflicts", err, runs, rule.Fired())
			}
		})
	}
}

func TestALoneWriteOfAnyKindIsNotDoneAgain(t *testing.T) {
	for name, write := range map[string]func(context.Context, *sql.DB) error{
		"Exec": func(ctx context.Context, db *sql.DB) error { _, err := db.ExecContext(ctx, "INSERT"); return err },
		"Query": func(ctx context.Context, db *sql.DB) error {
			rows, err := db.QueryContext(ctx, "INSERT")
			if err != nil {
				return err
			}
			return rows.Close()
		},
		"Stmt.Exec": func(ctx context.Context, db *sql.DB) error {
			s, err := db.PrepareContext(ctx, "INSERT")
			if err != nil {
				return err
			}
			_, err = s.ExecContext(ctx)
			return errors.Join(err, s.Close())
		},
		"Stmt.Query": func(ctx context.Context, db *sql.DB) error {
			s, err := db.PrepareContext(ctx, "INSERT")
			if err != nil {
				return err
			}
			rows, err := s.QueryContext(ctx)
			if err != nil {
				return err
			}
			return errors.Join(rows.Close(), s.Close())
		},
	} {
		f := newFixture(t)
		f.Fail(drivertest.Commit, serverErr("40001"))
		err := RunInTx(t.Context(), f.db, nil, func(ctx context.Context, _ *sql.Tx) error { return write(ctx, f.db) })
		if !errors.Is(err, ErrAlreadyCommitted) {
			t.Errorf("%s: RunInTx gives %v", name, err)
		}
		// What fails while rows are read is taken back, whichever way it came.
		if strings.HasSuffix(name, "Query") {
			f := newFixture(t)
			f.Fail(drivertest.RowsClose, serverErr("40001")).Times(1)
			runs := 0
			err := Retry(t.Context(), func(ctx context.Context) error { runs++; return write(ctx, f.db) })
			if err != nil || runs != 2 {
				t.Errorf("%s: Retry gives %v after %d runs", name, err, runs)
			}
		}
	}
}

func TestEveryStatementOfAPlainTransactionIsBelowItsAttempt(t *testing.T) {
	o := newObservatory(t)
	f := newFixture(t, o.options()...)
	f.connector.config.now = time.Now
	if err := f.db.Ping(); err != nil {
		t.Fatal(err)
	}
	o.spans.Reset()
	ctx, caller := o.tracers.Tracer("test").Start(t.Context(), "request")
	err := inTx(ctx, f.db, func(ctx context.Context, tx *sql.Tx) error {
		s, err := tx.PrepareContext(ctx, "SELECT")
		if err != nil {
			return err
		}
		_, err = s.ExecContext(ctx)
		rows, queryErr := s.QueryContext(ctx)
		if err := errors.Join(err, queryErr); err != nil {
			return err
		}
		if err := rows.Close(); err != nil {
			return err
		}
		if rows, err = tx.QueryContext(ctx, "SELECT"); err != nil {
			return err
		}
		return rows.Close()
	})
	caller.End()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"sql.conn.begin_tx", "sql.conn.prepare", "sql.stmt.exec", "sql.stmt.query", "sql.conn.query", "sql.tx.commit"} {
		if got := o.tree(); !strings.Contains(got, "\n    "+name) {
			t.Errorf("%s is not below the attempt:\n%s", name, got)
		}
	}
}
