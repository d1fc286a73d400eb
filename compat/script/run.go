package script

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/pgretry/pgretry"
)

// run is one run of the script.
type run struct {
	*testing.T
	open       Open
	driverName string
	// outsideName is the driver for migrations and for what is done outside transactions.
	outsideName string
	dsn         string
	server      string // its DSN, for the rival
	app         App

	closures bool   // each transaction is the closure of a pgretry.Retry
	strict   bool   // the application does nothing again by itself
	rival    *Rival // nil where there is none

	saw []string
}

// migratesInSession is an application whose migrations hold something in the session, an
// advisory lock for instance: their statements outside transactions are not to be repeated.
type migratesInSession interface{ MigratesInSession() }

// play runs the script and returns what the application saw and what is in the database
// at last. The first transaction or statement that fails against the script ends it.
func (r *run) play() (saw []string, err error) {
	ctx := r.Context()
	migrating := r.app
	if _, ok := r.app.(migratesInSession); !ok {
		if migrating, err = r.start(r.outsideName); err != nil {
			return nil, err
		}
	}
	for range 2 { // the second time the tables are there
		if err := migrating.Migrate(ctx); err != nil {
			return nil, fmt.Errorf("migrate: %w", err)
		}
	}
	if err := r.quietly(func() error {
		_, err := r.app.DB().ExecContext(ctx, `INSERT INTO account VALUES (1, 100), (2, 100), (3, 100)`)
		return err
	}); err != nil {
		return nil, fmt.Errorf("accounts: %w", err)
	}
	for _, s := range steps {
		if err := r.step(s); err != nil {
			return r.saw, fmt.Errorf("%s: %w", s.name, err)
		}
	}
	outside, err := r.start(r.outsideName)
	if err != nil {
		return r.saw, err
	}
	seen, err := lone(ctx, outside.Lone())
	if err != nil {
		return r.saw, fmt.Errorf("outside transactions: %w", err)
	}
	r.note("outside transactions", seen)
	return r.saw, nil
}

func (r *run) note(title string, seen []string) {
	r.saw = append(r.saw, title)
	for _, s := range seen {
		r.saw = append(r.saw, "  "+s)
	}
}

// step runs one step. Where the application is shown an id, which a sequence never gives
// twice, it may have to do so again by itself: once, because the driver learns by that
// that it has to set savepoints; where what showed the id was aborted itself, or COMMIT; and
// where it was aborted again after the driver had gone back to a savepoint, which it does once.
func (r *run) step(s step) error {
	for try := 1; ; try++ {
		before := aborted(r.driverName)
		seen, err := r.attempt(s)
		after := aborted(r.driverName)
		hopeless := after.Commits > before.Commits || after.Rows > before.Rows || after.Statements > before.Statements+1
		switch {
		case s.want == nil && err == nil, s.want != nil && err != nil && s.want(r.app, err):
			r.note(s.name, seen)
			return nil
		case err == nil:
			return errors.New("no error")
		case s.generates && !r.closures && !r.strict && isConflict(err) && (try == 1 || hopeless):
			r.Logf("%s: again, an id had been shown: %v", s.name, err)
		default:
			return err
		}
	}
}

func (r *run) attempt(s step) (seen []string, err error) {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	if err := r.rival.Begin(ctx); err != nil {
		return nil, err
	}
	runs := 0
	transact := func(ctx context.Context) error {
		return r.app.Transact(ctx, func(ctx context.Context, tx Tx) error {
			runs++
			scene := &scene{cancel: cancel, first: func(ctx context.Context, tx Tx) error { return tx.Pay(ctx, 1, -1) }}
			scene.second = func(ctx context.Context, tx Tx) error {
				if err := r.rival.Wants(ctx); err != nil {
					return err
				}
				return tx.Pay(ctx, 2, 1)
			}
			err := s.do(ctx, r.app, tx, scene)
			seen = scene.saw
			return err
		})
	}
	if r.closures {
		err = pgretry.Retry(ctx, transact)
	} else {
		err = transact(ctx)
	}
	if runs != 1 && !r.closures {
		err = errors.Join(err, fmt.Errorf("the work ran %d times", runs))
	}
	return seen, errors.Join(err, r.rival.End())
}

// isConflict says whether an error is one with which the server aborts a transaction. Some
// libraries keep no more of it than its text.
func isConflict(err error) bool {
	switch sqlState(err) {
	case "40001", "40P01":
		return true
	}
	return strings.Contains(err.Error(), "(40001)") || strings.Contains(err.Error(), "(40P01)") ||
		strings.Contains(err.Error(), "SQLSTATE 40001") || strings.Contains(err.Error(), "SQLSTATE 40P01")
}

// state is what is in the database, but for ids, which depend on what was aborted.
func state(ctx context.Context, db *sql.DB) (lines []string, err error) {
	for _, query := range []string{
		`SELECT concat_ws(' ', 'account', id, balance) FROM account ORDER BY id`,
		`SELECT concat_ws(' ', 'customer', c.name, p.item) FROM customer c
			LEFT JOIN purchase p ON p.customer_id = c.id ORDER BY c.name, p.item`,
		`SELECT concat_ws(' ', 'stock', sku, quantity) FROM stock ORDER BY sku COLLATE "C"`,
		`SELECT to_jsonb(sample)::text FROM sample ORDER BY id`,
	} {
		found, err := read(ctx, db, query)
		if err != nil {
			return nil, err
		}
		lines = append(lines, found...)
	}
	return lines, nil
}

// read returns the only column of a query.
func read(ctx context.Context, db *sql.DB, query string) (lines []string, err error) {
	rows, err := db.QueryContext(ctx, query)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var line string
		if err := rows.Scan(&line); err != nil {
			return nil, err
		}
		lines = append(lines, line)
	}
	return lines, rows.Err()
}
