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
	app App
	dsn string // of the server itself, for the rival and for a last look

	closures bool   // each transaction is the closure of a pgretry.Retry
	strict   bool   // the application does nothing again by itself
	rival    *rival // nil where there is none
	aborts   *aborts

	saw []string
}

// play runs the script and returns what the application saw and what is in the database
// at last. The first transaction or statement that fails against the script ends it.
func (r *run) play() (saw []string, err error) {
	ctx := r.Context()
	for range 2 { // the second time the tables are there
		if err := r.app.Migrate(ctx); err != nil {
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
	r.note("outside transactions", nil)
	if r.aborts != nil {
		r.aborts.outside(true)
		defer r.aborts.outside(false)
	}
	seen, err := lone(ctx, r.app.Lone())
	if err != nil {
		return r.saw, fmt.Errorf("outside transactions: %w", err)
	}
	r.note("", seen)
	return r.saw, nil
}

func (r *run) note(title string, seen []string) {
	if title != "" {
		r.saw = append(r.saw, title)
	}
	for _, s := range seen {
		r.saw = append(r.saw, "  "+s)
	}
}

// step runs one step. Where the application is shown an id, which a sequence never gives
// twice, it may have to do so again by itself: once, because the driver learns by that
// that it has to set savepoints; and where what showed the id was aborted itself, or COMMIT.
func (r *run) step(s step) error {
	for try := 1; ; try++ {
		before := r.aborts.unprovable()
		seen, err := r.attempt(s)
		switch {
		case s.want == nil && err == nil, s.want != nil && err != nil && s.want(r.app, err):
			r.note(s.name, seen)
			return nil
		case err == nil:
			return errors.New("no error")
		case s.generates && !r.closures && !r.strict && isConflict(err) && (try == 1 || r.aborts.unprovable() > before):
			r.Logf("%s: again, an id had been shown: %v", s.name, err)
		default:
			return err
		}
	}
}

func (r *run) attempt(s step) (seen []string, err error) {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	if err := r.rival.begin(ctx); err != nil {
		return nil, err
	}
	runs := 0
	transact := func(ctx context.Context) error {
		return r.app.Transact(ctx, func(ctx context.Context, tx Tx) error {
			runs++
			s := s
			scene := &scene{cancel: cancel}
			scene.first = func(ctx context.Context, tx Tx) error { return tx.Pay(ctx, 1, -1) }
			scene.second = func(ctx context.Context, tx Tx) error {
				if err := r.rival.wants(ctx); err != nil {
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
	if runs > 1 && !r.closures {
		err = errors.Join(err, fmt.Errorf("the work ran %d times", runs))
	}
	return seen, errors.Join(err, r.rival.end())
}

// quietly does something that nothing disturbs.
func (r *run) quietly(do func() error) error {
	if r.aborts != nil {
		r.aborts.pause(true)
		defer r.aborts.pause(false)
	}
	return do()
}

// isConflict says whether an error is one that the server aborts a transaction with.
func isConflict(err error) bool {
	return strings.Contains(err.Error(), "40001") || strings.Contains(err.Error(), "40P01") ||
		sqlState(err) == "40001" || sqlState(err) == "40P01"
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
		rows, err := db.QueryContext(ctx, query)
		if err != nil {
			return nil, err
		}
		for rows.Next() {
			var line string
			if err := rows.Scan(&line); err != nil {
				return nil, errors.Join(err, rows.Close())
			}
			lines = append(lines, line)
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			return nil, err
		}
	}
	return lines, nil
}
