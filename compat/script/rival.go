package script

import (
	"context"
	"database/sql"
	"errors"
	"testing"
)

// Rival is a session that locks account 2 before a transaction of the application's
// begins, and wants account 1 once that has it: a deadlock. The rival never looks for
// deadlocks, so that it is always the application that the server aborts. It changes
// nothing.
type Rival struct {
	db   *sql.DB
	conn *sql.Conn
	pid  int

	asked chan error // for the second lock: how that ended
}

// NewRival connects one, until the test ends.
func NewRival(t *testing.T, dsn string) *Rival {
	t.Helper()
	met, err := newRival(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := met.close(); err != nil {
			t.Error(err)
		}
	})
	return met
}

func newRival(ctx context.Context, dsn string) (*Rival, error) {
	db, err := sql.Open("postgres", dsn)
	if err != nil {
		return nil, err
	}
	r := &Rival{db: db}
	if r.conn, err = db.Conn(ctx); err != nil {
		return nil, err
	}
	if _, err := r.conn.ExecContext(ctx, `SET deadlock_timeout = '1h'`); err != nil {
		return nil, err
	}
	return r, r.conn.QueryRowContext(ctx, `SELECT pg_backend_pid()`).Scan(&r.pid)
}

func (r *Rival) close() error {
	if err := r.conn.Close(); err != nil {
		return err
	}
	return r.db.Close()
}

const takes = `UPDATE account SET balance = balance WHERE id = $1`

// Begin locks account 2.
func (r *Rival) Begin(ctx context.Context) error {
	if r == nil {
		return nil
	}
	if _, err := r.conn.ExecContext(ctx, `BEGIN`); err != nil {
		return err
	}
	_, err := r.conn.ExecContext(ctx, takes, 2)
	return err
}

// Wants asks for the lock that the application has, and returns when it waits for it.
// That happens once in a step: when it has it, the rival commits.
func (r *Rival) Wants(ctx context.Context) error {
	if r == nil || r.asked != nil {
		return nil
	}
	r.asked = make(chan error, 1)
	go func() {
		_, err := r.conn.ExecContext(context.WithoutCancel(ctx), takes, 1)
		if err == nil {
			_, err = r.conn.ExecContext(context.WithoutCancel(ctx), `COMMIT`)
		}
		r.asked <- err
	}()
	for waits := false; !waits; {
		if err := r.db.QueryRowContext(ctx, `SELECT wait_event_type IS NOT DISTINCT FROM 'Lock' FROM pg_stat_activity WHERE pid = $1`, r.pid).Scan(&waits); err != nil {
			return err
		}
	}
	return nil
}

// End waits for the rival to be done. What it never asked for it gives up.
func (r *Rival) End() error {
	if r == nil {
		return nil
	}
	if r.asked == nil {
		_, err := r.conn.ExecContext(context.Background(), `ROLLBACK`)
		return errors.Join(errors.New("the rival was never met"), err)
	}
	err := <-r.asked
	r.asked = nil
	return err
}
