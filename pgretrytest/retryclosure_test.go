package pgretrytest_test

import (
	"context"
	"database/sql"
	"regexp"
	"testing"

	"github.com/pgretry/pgretry"
	"github.com/pgretry/pgretry/pgretrytest"
)

// helper is what ORMs have: it begins a transaction and commits it.
func helper(ctx context.Context, db *sql.DB, fn func(ctx context.Context, tx *sql.Tx) error) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if err := fn(ctx, tx); err != nil {
		return err
	}
	return tx.Commit()
}

func TestClosuresOfRetryPass(t *testing.T) {
	// What the connector aborts otherwise has nothing to do with the trials.
	db, aborting := open(t, pgretrytest.WithProbability(1), pgretrytest.AtCommit())
	schema := inOwnSchema(t, db)
	runs := 0
	pgretrytest.RetryClosure(t, db, func(ctx context.Context) error {
		runs++
		return helper(ctx, db, move)
	}, schema)
	if runs != 2+2*3 {
		t.Errorf("it ran %d times, two statements and COMMIT are three points", runs)
	}
	if got := aborting.Counts(); got != (pgretrytest.Counts{}) {
		t.Errorf("the trials count: %+v", got)
	}
	aborting.Pause()
	if n := moved(t, db); n != 0 {
		t.Errorf("the trials have moved %d", n)
	}
	if err := pgretry.Retry(t.Context(), func(ctx context.Context) error { return helper(ctx, db, move) }); err != nil || moved(t, db) != 1 {
		t.Errorf("after the trials Retry gives %v, and %d were moved", err, moved(t, db))
	}
}

// Sessions draw numbers in advance, and those of a pool live longer than an attempt.
func TestNumbersDrawnInAdvanceAreForgotten(t *testing.T) {
	db, aborting := open(t)
	aborting.Pause()
	mustExec(t, db, `CREATE SEQUENCE number CACHE 10`)
	var numbers []int
	pgretrytest.RetryClosure(t, db, func(ctx context.Context) error {
		numbers = nil
		return helper(ctx, db, func(ctx context.Context, tx *sql.Tx) error {
			var n int
			if err := tx.QueryRowContext(ctx, `SELECT nextval('number')`).Scan(&n); err != nil {
				return err
			}
			numbers = append(numbers, n)
			_, err := tx.ExecContext(ctx, takeOne, n)
			return err
		})
	}, pgretrytest.Results(&numbers), inOwnSchema(t, db))
}

func TestConnectorInTheDatabaseLetsTheClosureUseIt(t *testing.T) {
	db, aborting := open(t)
	stmt, err := db.PrepareContext(t.Context(), giveOne)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := stmt.Close(); err != nil {
			t.Error(err)
		}
	}()
	closureOn(t, db, func(ctx context.Context, tx *sql.Tx) error {
		if _, err := tx.StmtContext(ctx, stmt).ExecContext(ctx, 1); err != nil {
			return err
		}
		return pgretry.RunInTx(ctx, db, nil, move)
	})
	aborting.Pause()
	if n := moved(t, db); n != 0 {
		t.Errorf("the trials have moved %d", n)
	}
}

func TestClosuresOfRetryThatKeepSomethingFail(t *testing.T) {
	for name, test := range map[string]struct {
		fn   func(db *sql.DB) func(ctx context.Context) error
		want string
	}{
		"an abort swallowed": {
			func(db *sql.DB) func(ctx context.Context) error {
				return func(ctx context.Context) error {
					_ = helper(ctx, db, move)
					return nil
				}
			},
			`aborted at statement 1 of 2, UPDATE account .*:\n\s+the closure swallowed the abort: it returned no error and was not run again`,
		},
		"a counter": {
			func(db *sql.DB) func(ctx context.Context) error {
				n := 0
				return func(ctx context.Context) error {
					return helper(ctx, db, func(ctx context.Context, tx *sql.Tx) error {
						n++
						_, err := tx.ExecContext(ctx, `UPDATE account SET balance = $1`, n)
						return err
					})
				}
			},
			`two runs of the closure differ though nothing disturbed them`,
		},
		"two transactions": {
			func(db *sql.DB) func(ctx context.Context) error {
				return func(ctx context.Context) error {
					if err := helper(ctx, db, move); err != nil {
						return err
					}
					return helper(ctx, db, move)
				}
			},
			`begins another transaction after one that was to be committed`,
		},
		"a transaction to read, and one to write": {
			func(db *sql.DB) func(ctx context.Context) error {
				return func(ctx context.Context) error {
					look, err := db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
					if err != nil {
						return err
					}
					if err := look.Rollback(); err != nil {
						return err
					}
					return helper(ctx, db, move)
				}
			},
			`undisturbed, the closure begins 2 transactions; what is on trial is one`,
		},
		"a loop of its own": {
			func(db *sql.DB) func(ctx context.Context) error {
				return func(ctx context.Context) error {
					if err := helper(ctx, db, move); err == nil {
						return nil
					}
					return helper(ctx, db, func(ctx context.Context, tx *sql.Tx) error {
						_, err := tx.ExecContext(ctx, `UPDATE account SET balance = 0`)
						return err
					})
				}
			},
			`its attempt 2 took another path: statement 1 is\s+UPDATE account SET balance = 0\s+undisturbed\s+UPDATE account SET balance = balance - 1`,
		},
		"another context": {
			func(db *sql.DB) func(ctx context.Context) error {
				return func(context.Context) error { return helper(context.Background(), db, move) }
			},
			`something was committed in \S+account`,
		},
		"another context, and nothing changed": {
			func(db *sql.DB) func(ctx context.Context) error {
				return func(context.Context) error {
					return helper(context.Background(), db, func(context.Context, *sql.Tx) error { return nil })
				}
			},
			`begins no transaction on the database under the context that it is given`,
		},
		"nothing committed": {
			func(db *sql.DB) func(ctx context.Context) error {
				return func(ctx context.Context) error {
					tx, err := db.BeginTx(ctx, nil)
					if err != nil {
						return err
					}
					return tx.Rollback()
				}
			},
			`commits nothing, but returns no error`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			db, _ := open(t)
			fn := test.fn(db)
			r := recorded(t, func(tb testing.TB) { pgretrytest.RetryClosure(tb, db, fn, inOwnSchema(t, db)) })
			if !regexp.MustCompile(test.want).MatchString(r.all()) {
				t.Errorf("it does not say %s, but\n%s", test.want, r.all())
			}
		})
	}
}
