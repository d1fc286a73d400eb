package pgretrytest_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/lib/pq"

	"github.com/pgretry/pgretry"
	"github.com/pgretry/pgretry/internal/pgserver/pgtest"
	"github.com/pgretry/pgretry/pgretrytest"
)

const closureSchema = `
CREATE TABLE account (id int PRIMARY KEY, balance int NOT NULL);
INSERT INTO account VALUES (1, 100), (2, 100);
CREATE TABLE entry (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, account int NOT NULL REFERENCES account DEFERRABLE INITIALLY DEFERRED, amount int NOT NULL, note text);
CREATE TABLE token (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), made timestamptz NOT NULL DEFAULT clock_timestamp(), secret text);
CREATE TABLE big (n int PRIMARY KEY);
INSERT INTO big SELECT generate_series(1, 3000);
`

// closureDB returns a database, opened as an application does, with the schema in it.
func closureDB(t *testing.T) *sql.DB {
	t.Helper()
	db, err := sql.Open(pgretry.DriverName, pgtest.DSN(t))
	if err != nil {
		t.Fatal(err)
	}
	closedAtLast(t, db)
	mustExec(t, db, closureSchema)
	return db
}

// closureOn is Closure for the schema of the test alone: others may share the server.
func closureOn(tb testing.TB, db *sql.DB, fn func(ctx context.Context, tx *sql.Tx) error, options ...pgretrytest.ClosureOption) {
	tb.Helper()
	pgretrytest.Closure(tb, db, fn, append(options, inOwnSchema(tb, db))...)
}

func inOwnSchema(tb testing.TB, db *sql.DB) pgretrytest.ClosureOption {
	tb.Helper()
	var schema string
	if err := db.QueryRowContext(tb.Context(), `SELECT current_schema()`).Scan(&schema); err != nil {
		tb.Fatalf("%v", err)
	}
	return pgretrytest.InSchemas(schema)
}

// contents is everything in the tables and where the sequence stands.
func contents(t *testing.T, db *sql.DB) string {
	t.Helper()
	var text string
	if err := db.QueryRowContext(t.Context(), `SELECT concat(
		(SELECT string_agg(a::text, ' ' ORDER BY id) FROM account a), ' ',
		(SELECT string_agg(e::text, ' ' ORDER BY id) FROM entry e), ' ', (SELECT count(*) FROM token), ' ',
		(SELECT string_agg(sequencename || last_value::text, ' ') FROM pg_sequences WHERE schemaname = current_schema()))`).Scan(&text); err != nil {
		t.Fatal(err)
	}
	return text
}

func exec(ctx context.Context, tx *sql.Tx, texts ...string) error {
	for _, text := range texts {
		if _, err := tx.ExecContext(ctx, text); err != nil {
			return err
		}
	}
	return nil
}

// entries reads ids with a query and adds them to a list.
func addEntry(ctx context.Context, tx *sql.Tx, note string) (id int64, err error) {
	err = tx.QueryRowContext(ctx, `INSERT INTO entry (account, amount, note) VALUES (1, 5, $1) RETURNING id`, note).Scan(&id)
	return id, err
}

// closure is one on trial. It is made anew for each test, with what it fills.
type closure struct {
	fn      func(ctx context.Context, tx *sql.Tx) error
	options []pgretrytest.ClosureOption
}

func goodClosures() map[string]closure {
	var ids []int64
	var total, runs int
	var now, struck time.Time
	var made struct {
		ID string
		At time.Time
	}
	return map[string]closure{
		"nothing but a read": {fn: func(ctx context.Context, tx *sql.Tx) error {
			var n int
			return tx.QueryRowContext(ctx, `SELECT count(*) FROM big`).Scan(&n)
		}},
		"an upsert": {fn: func(ctx context.Context, tx *sql.Tx) error {
			return exec(ctx, tx, `INSERT INTO account VALUES (2, 1), (3, 1) ON CONFLICT (id) DO UPDATE SET balance = account.balance + 1`)
		}},
		"ids from a sequence, collected anew": {
			fn: func(ctx context.Context, tx *sql.Tx) error {
				ids = ids[:0]
				for _, note := range []string{"a", "b", "c"} {
					id, err := addEntry(ctx, tx, note)
					if err != nil {
						return err
					}
					ids = append(ids, id)
				}
				for _, id := range ids {
					if _, err := tx.ExecContext(ctx, `UPDATE entry SET amount = amount + 1 WHERE id = $1`, id); err != nil {
						return err
					}
				}
				return nil
			},
			options: []pgretrytest.ClosureOption{pgretrytest.Results(&ids)},
		},
		"savepoints": {fn: func(ctx context.Context, tx *sql.Tx) error {
			if err := exec(ctx, tx, `SAVEPOINT a`); err != nil {
				return err
			}
			if _, err := tx.ExecContext(ctx, `INSERT INTO account VALUES (1, 0)`); err != nil {
				// A duplicate is expected, a conflict is not to be got over here.
				var server *pq.Error
				if !errors.As(err, &server) || server.Code != "23505" {
					return err
				}
				if err := exec(ctx, tx, `ROLLBACK TO a`); err != nil {
					return err
				}
			}
			return exec(ctx, tx, `RELEASE a`, `UPDATE account SET balance = 0 WHERE id = 1`)
		}},
		"the time and UUIDs": {
			fn: func(ctx context.Context, tx *sql.Tx) error {
				if err := tx.QueryRowContext(ctx, `INSERT INTO token DEFAULT VALUES RETURNING id, made`).Scan(&made.ID, &made.At); err != nil {
					return err
				}
				_, err := tx.ExecContext(ctx, `UPDATE token SET made = $1 WHERE id = $2`, time.Now(), made.ID)
				return err
			},
			options: []pgretrytest.ClosureOption{pgretrytest.Results(&made)},
		},
		"chance, where it is ignored": {
			fn: func(ctx context.Context, tx *sql.Tx) error {
				_, err := tx.ExecContext(ctx, `INSERT INTO token (id, secret) VALUES ('00000000-0000-0000-0000-000000000001', $1)`, fmt.Sprint(time.Now().UnixNano()))
				return err
			},
			options: []pgretrytest.ClosureOption{pgretrytest.IgnoreColumns("token.secret"), pgretrytest.IgnoreArgument("INSERT INTO token", 1)},
		},
		"savepoints with names by lot": {fn: func(ctx context.Context, tx *sql.Tx) error {
			name := fmt.Sprintf("s%d", time.Now().UnixNano())
			return exec(ctx, tx, `SAVEPOINT `+name, `DELETE FROM big`, `ROLLBACK TO `+name, `SAVEPOINT `+name+`b`, `RELEASE `+name+`b`)
		}},
		"a clock that strikes later": {
			fn: func(ctx context.Context, tx *sql.Tx) error {
				if runs++; runs == 1 || runs > 2 {
					now = time.Now()
				}
				struck = now
				_, err := tx.ExecContext(ctx, `INSERT INTO token (id, made) VALUES ('00000000-0000-0000-0000-000000000001', $1)`, struck)
				return err
			},
			options: []pgretrytest.ClosureOption{pgretrytest.Results(&struck)},
		},
		"many rows": {
			fn: func(ctx context.Context, tx *sql.Tx) error {
				total = 0
				rows, err := tx.QueryContext(ctx, `SELECT n FROM big`)
				if err != nil {
					return err
				}
				defer rows.Close()
				for rows.Next() {
					var n int
					if err := rows.Scan(&n); err != nil {
						return err
					}
					total += n
				}
				return rows.Err()
			},
			options: []pgretrytest.ClosureOption{pgretrytest.Results(&total)},
		},
		"prepared statements": {fn: func(ctx context.Context, tx *sql.Tx) error {
			stmt, err := tx.PrepareContext(ctx, giveOne)
			if err != nil {
				return err
			}
			defer func() { _ = stmt.Close() }() // whatever it says was said before
			for id := range 3 {
				if _, err := stmt.ExecContext(ctx, id); err != nil {
					return err
				}
			}
			return nil
		}},
		"deferred constraints": {fn: func(ctx context.Context, tx *sql.Tx) error {
			return exec(ctx, tx, `INSERT INTO entry (account, amount) VALUES (9, 1)`, `INSERT INTO account VALUES (9, 1)`)
		}},
		"SERIALIZABLE": {
			fn:      move,
			options: []pgretrytest.ClosureOption{pgretrytest.WithTxOptions(&sql.TxOptions{Isolation: sql.LevelSerializable})},
		},
		"DDL and temporary tables": {fn: func(ctx context.Context, tx *sql.Tx) error {
			return exec(ctx, tx, `CREATE TABLE made (n serial)`, `INSERT INTO made DEFAULT VALUES`, `ALTER TABLE account ADD COLUMN x int DEFAULT 3`,
				`CREATE TEMP TABLE scratch (n int)`, `INSERT INTO scratch VALUES (1)`, `TRUNCATE big`, `DROP TABLE token`)
		}},
		"COPY": {fn: func(ctx context.Context, tx *sql.Tx) error {
			stmt, err := tx.PrepareContext(ctx, `COPY account (id, balance) FROM STDIN`)
			if err != nil {
				return err
			}
			for id := 3; id < 6; id++ {
				if _, err := stmt.ExecContext(ctx, id, 0); err != nil {
					return err
				}
			}
			if _, err := stmt.ExecContext(ctx); err != nil {
				return err
			}
			return stmt.Close()
		}},
	}
}

func TestClosuresThatCanBeRunAgainPass(t *testing.T) {
	for name, c := range goodClosures() {
		t.Run(name, func(t *testing.T) {
			db := closureDB(t)
			before := contents(t, db)
			closureOn(t, db, c.fn, c.options...)
			if after := contents(t, db); after != before {
				t.Errorf("the trials have left\n%s, there was\n%s", after, before)
			}
		})
	}
}

func TestClosuresThatKeepSomethingFail(t *testing.T) {
	for name, test := range map[string]struct {
		make func(db *sql.DB) closure
		want []string // patterns of what is said
	}{
		"a counter that goes into the database": {
			make: func(*sql.DB) closure {
				n := 0
				return closure{fn: func(ctx context.Context, tx *sql.Tx) error {
					n++
					_, err := tx.ExecContext(ctx, `UPDATE account SET balance = $1 WHERE id = 1`, n)
					return err
				}}
			},
			want: []string{
				`two runs of the closure differ though nothing disturbed them`,
				`it sent other arguments: statement 1 is\s+UPDATE account SET balance = \$1 WHERE id = 1 \$1=2\s+undisturbed\s+UPDATE account SET balance = \$1 WHERE id = 1 \$1=1\n`,
				`table \S+\.account:\n\s+- id="1" balance="1"\n\s+\+ id="1" balance="2"\n`,
				`IgnoreColumns`,
			},
		},
		"a counter that is named": {
			make: func(*sql.DB) closure {
				total := 0
				return closure{
					fn: func(ctx context.Context, tx *sql.Tx) error {
						for id := 1; id <= 2; id++ {
							var balance int
							if err := tx.QueryRowContext(ctx, `SELECT balance FROM account WHERE id = $1`, id).Scan(&balance); err != nil {
								return err
							}
							total += balance
						}
						_, err := tx.ExecContext(ctx, `INSERT INTO account VALUES (3, $1)`, total)
						return err
					},
					options: []pgretrytest.ClosureOption{pgretrytest.Results(&total)},
				}
			},
			want: []string{
				`aborted at COMMIT, with 40\w+:\n`,
				`aborted at statement 3 of 3, INSERT INTO account VALUES \(3, \$1\), with 40\w+:\n`,
				`its attempt 2 sent other arguments: statement 3 is\s+INSERT INTO account VALUES \(3, \$1\) \$1=400\s+undisturbed\s+INSERT INTO account VALUES \(3, \$1\) \$1=200`,
				`- id="3" balance="200"\n\s+\+ id="3" balance="400"`,
				`result 1 \(int\) is 400, undisturbed 200`,
				// Before the first balance is read nothing is kept.
				`^pgretrytest: aborted at statement 2 of 3`,
			},
		},
		"a list that is inserted": {
			make: func(*sql.DB) closure {
				var notes []string
				return closure{
					fn: func(ctx context.Context, tx *sql.Tx) error {
						notes = append(notes, "new")
						for _, note := range notes {
							if _, err := addEntry(ctx, tx, note); err != nil {
								return err
							}
						}
						return nil
					},
					options: []pgretrytest.ClosureOption{pgretrytest.Results(&notes)},
				}
			},
			want: []string{`took another path: after 1 statements it sent INSERT INTO entry .* \$1="new"`, `\+ id="2" account="1" amount="5" note="new"`},
		},
		"a list in memory only": {
			make: func(*sql.DB) closure {
				var ids []int
				return closure{
					fn: func(ctx context.Context, tx *sql.Tx) error {
						rows, err := tx.QueryContext(ctx, `SELECT id FROM account ORDER BY id`)
						if err != nil {
							return err
						}
						defer rows.Close()
						for rows.Next() {
							var id int
							if err := rows.Scan(&id); err != nil {
								return err
							}
							ids = append(ids, id)
						}
						return rows.Err()
					},
					options: []pgretrytest.ClosureOption{pgretrytest.Results(&ids)},
				}
			},
			want: []string{`aborted at the end of the rows of statement 1 of 1, SELECT id FROM account ORDER BY id, with 40\w+:\n\s+result 1 \(\[\]int\) is \[1 2 1 2\], undisturbed \[1 2\]`},
		},
		"a buffer used again": {
			make: func(*sql.DB) closure {
				buffer := make([]byte, 1)
				return closure{fn: func(ctx context.Context, tx *sql.Tx) error {
					buffer[0]++
					_, err := tx.ExecContext(ctx, `INSERT INTO token (secret) VALUES (encode($1::bytea, 'hex'))`, buffer)
					return err
				}}
			},
			want: []string{`sent other arguments: statement 1 is\s+INSERT INTO token .* \$1="\\x02"\s+undisturbed\s+INSERT INTO token .* \$1="\\x01"`},
		},
		"an abort swallowed in a savepoint": {
			make: func(*sql.DB) closure {
				return closure{fn: func(ctx context.Context, tx *sql.Tx) error {
					if err := exec(ctx, tx, `SAVEPOINT a`); err != nil {
						return err
					}
					if err := exec(ctx, tx, `UPDATE account SET balance = 7 WHERE id = 2`); err != nil {
						return exec(ctx, tx, `ROLLBACK TO a`)
					}
					return nil
				}}
			},
			want: []string{`aborted at statement 2 of 2, UPDATE account`, `the closure swallowed the abort: it returned no error and was not run again`, `- id="2" balance="7"\n\s+\+ id="2" balance="100"`},
		},
		"an error that is made of every failure": {
			make: func(*sql.DB) closure {
				tried := false
				return closure{
					fn: func(ctx context.Context, tx *sql.Tx) error {
						if tried {
							return errors.New("already tried")
						}
						tried = true
						return exec(ctx, tx, `UPDATE account SET balance = 7 WHERE id = 2`)
					},
					options: []pgretrytest.ClosureOption{pgretrytest.Results(&tried)},
				}
			},
			want: []string{`RunInTx returned: already tried`, `took another path: it ended after statement 0 of 1, before UPDATE account`},
		},
		"a statement on the database itself": {
			make: func(db *sql.DB) closure {
				return closure{fn: func(ctx context.Context, tx *sql.Tx) error {
					if _, err := db.ExecContext(ctx, `UPDATE account SET balance = balance + 1 WHERE id = 2`); err != nil {
						return err
					}
					return exec(ctx, tx, `UPDATE account SET balance = 7 WHERE id = 1`)
				}}
			},
			want: []string{`something was committed in \S+\.account though .* on another connection than its transaction's`},
		},
		"a statement on the database itself that leaves nothing behind": {
			make: func(db *sql.DB) closure {
				return closure{fn: func(ctx context.Context, tx *sql.Tx) error {
					if _, err := db.ExecContext(ctx, `UPDATE account SET balance = balance WHERE id = 2`); err != nil {
						return err
					}
					return exec(ctx, tx, `UPDATE account SET balance = 7 WHERE id = 1`)
				}}
			},
			want: []string{`the closure was not run again`, `RunInTx returned: .*already committed`},
		},
		"a time that goes on": {
			make: func(*sql.DB) closure {
				at := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
				return closure{fn: func(ctx context.Context, tx *sql.Tx) error {
					at = at.Add(24 * time.Hour)
					_, err := tx.ExecContext(ctx, `INSERT INTO token (id, made) VALUES ('00000000-0000-0000-0000-000000000001', $1)`, at)
					return err
				}}
			},
			want: []string{`two runs of the closure differ`, `sent other arguments: .*\s.*\$1=2030-01-03`, `- id=\S+ made="2030-01-0`},
		},
		"16 bytes": {
			make: func(*sql.DB) closure {
				sum := []byte("0123456789abcdef")
				return closure{fn: func(ctx context.Context, tx *sql.Tx) error {
					sum[0]++
					_, err := tx.ExecContext(ctx, `SELECT $1::bytea`, sum)
					return err
				}}
			},
			want: []string{`two runs of the closure differ`, `sent other arguments`},
		},
		"a path by chance": {
			make: func(*sql.DB) closure {
				runs := 0
				return closure{fn: func(ctx context.Context, tx *sql.Tx) error {
					runs++
					return exec(ctx, tx, fmt.Sprintf(`UPDATE account SET balance = 7 WHERE id = %d`, 1+runs%2))
				}}
			},
			want: []string{`took another path: statement 1 is\s+UPDATE account SET balance = 7 WHERE id = 1\s+undisturbed\s+UPDATE account SET balance = 7 WHERE id = 2`},
		},
		"a path that changes later": {
			make: func(*sql.DB) closure {
				runs := 0
				return closure{fn: func(ctx context.Context, tx *sql.Tx) error {
					runs++
					if runs > 2 {
						return exec(ctx, tx, `SELECT 1`, `UPDATE account SET balance = 7 WHERE id = 1`)
					}
					return exec(ctx, tx, `UPDATE account SET balance = 7 WHERE id = 1`)
				}}
			},
			want: []string{`it did not come to that point\n\s+its first attempt took another path`},
		},
		"another savepoint": {
			make: func(*sql.DB) closure {
				runs := 0
				return closure{fn: func(ctx context.Context, tx *sql.Tx) error {
					runs++
					back := []string{`ROLLBACK TO a`, `ROLLBACK TO b`}[runs%2]
					return exec(ctx, tx, `SAVEPOINT a`, `SAVEPOINT b`, back)
				}}
			},
			want: []string{`took another path: statement 3 is\s+ROLLBACK TO a\s+undisturbed\s+ROLLBACK TO b`},
		},
		"an end by a statement": {
			make: func(*sql.DB) closure {
				return closure{fn: func(ctx context.Context, tx *sql.Tx) error {
					return exec(ctx, tx, `UPDATE account SET balance = 7 WHERE id = 1`, `COMMIT`)
				}}
			},
			want: []string{`undisturbed, RunInTx returns: .*must be begun and ended by its own methods`},
		},
		"a failure that nothing disturbs": {
			make: func(*sql.DB) closure {
				return closure{fn: func(ctx context.Context, tx *sql.Tx) error {
					return exec(ctx, tx, `INSERT INTO entry (account, amount) VALUES (9, 1)`)
				}}
			},
			want: []string{`undisturbed, RunInTx returns: .*entry_account_fkey`},
		},
		"a conflict of its own": {
			make: func(*sql.DB) closure {
				runs := 0
				return closure{fn: func(ctx context.Context, tx *sql.Tx) error {
					if runs++; runs == 1 {
						return exec(ctx, tx, `DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '40001'; END $$`)
					}
					return nil
				}}
			},
			want: []string{`undisturbed, it takes 2 attempts`},
		},
	} {
		t.Run(name, func(t *testing.T) {
			db := closureDB(t)
			c := test.make(db)
			r := recorded(t, func(tb testing.TB) { closureOn(tb, db, c.fn, c.options...) })
			said := r.all()
			for _, pattern := range test.want {
				if !regexp.MustCompile(`(?m)` + pattern).MatchString(said) {
					t.Errorf("it does not say %s, but\n%s", pattern, said)
				}
			}
			if t.Failed() || testing.Verbose() {
				t.Log(said)
			}
		})
	}
}

// What ends a closure is often an assertion in it.
func TestClosureThatEndsTheTestLeavesNothing(t *testing.T) {
	for name, end := range map[string]func(tb testing.TB){
		"by Fatalf":  func(tb testing.TB) { tb.Fatalf("the assertion fails") },
		"by a panic": func(testing.TB) { panic("as nil maps do") },
	} {
		t.Run(name, func(t *testing.T) {
			db := closureDB(t)
			before := contents(t, db)
			r := recorded(t, func(tb testing.TB) {
				defer func() {
					if v := recover(); v != nil {
						tb.Fatalf("%v", v)
					}
				}()
				closureOn(tb, db, func(ctx context.Context, tx *sql.Tx) error {
					if _, err := addEntry(ctx, tx, "new"); err != nil {
						return err
					}
					end(tb)
					return nil
				})
			})
			if r.fatal == "" || strings.Contains(r.all(), "pgretrytest") {
				t.Errorf("it says %q", r.all())
			}
			if after := contents(t, db); after != before {
				t.Errorf("the trial has left\n%s, there was\n%s", after, before)
			}
		})
	}
}

// A sequence that is set back below what is in the table draws numbers that are there.
func TestSequencesOfWhatWasReallyCommittedAreNotSetBack(t *testing.T) {
	insert := `INSERT INTO entry (account, amount) VALUES (1, 5)`
	for name, attempt := range map[string]func(ctx context.Context, run int, tx *sql.Tx) error{
		"undisturbed": func(ctx context.Context, _ int, tx *sql.Tx) error { return move(ctx, tx) },
		"with a conflict of its own": func(ctx context.Context, run int, tx *sql.Tx) error {
			if run > 1 {
				return move(ctx, tx)
			}
			return exec(ctx, tx, `DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '40001'; END $$`)
		},
		"and the closure then ends the test": func(context.Context, int, *sql.Tx) error {
			runtime.Goexit()
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			db := closureDB(t)
			runs := 0
			r := recorded(t, func(tb testing.TB) {
				closureOn(tb, db, func(ctx context.Context, tx *sql.Tx) error {
					runs++
					if _, err := db.ExecContext(ctx, insert); err != nil {
						return err
					}
					return attempt(ctx, runs, tx)
				})
			})
			if !regexp.MustCompile(`something was committed in \S+\.entry .*WithContext\(ctx\)`).MatchString(r.all()) {
				t.Errorf("it says %q", r.all())
			}
			if runs != 1 {
				t.Errorf("it ran %d times", runs)
			}
			mustExec(t, db, insert) // as the application does next
		})
	}
}

func TestEachPointIsTriedWhateverTheOthersShow(t *testing.T) {
	db := closureDB(t)
	total := 0
	r := recorded(t, func(tb testing.TB) {
		closureOn(tb, db, func(ctx context.Context, tx *sql.Tx) error {
			total++
			return exec(ctx, tx, `UPDATE account SET balance = 7 WHERE id = 1`, `UPDATE account SET balance = 7 WHERE id = 2`)
		}, pgretrytest.Results(&total))
	})
	if len(r.errors) != 3 {
		t.Errorf("two statements and COMMIT are %d points:\n%s", len(r.errors), r.all())
	}
	if total != 0 {
		t.Errorf("the result is left at %d", total)
	}
}

func TestPointsAreBounded(t *testing.T) {
	db := closureDB(t)
	runs := 0
	fn := func(ctx context.Context, tx *sql.Tx) error {
		runs++
		for range 20 {
			if err := exec(ctx, tx, `UPDATE account SET balance = 7 WHERE id = 1`); err != nil {
				return err
			}
		}
		return nil
	}
	r := recorded(t, func(tb testing.TB) { closureOn(tb, db, fn, pgretrytest.MaxPoints(5)) })
	if said := r.all(); strings.TrimSpace(said) != "" {
		t.Error(said)
	}
	if runs != 2+2*5 {
		t.Errorf("it ran %d times", runs)
	}
	if len(r.logs) != 1 || !strings.Contains(r.logs[0], "of 21 points 5 are tried") {
		t.Errorf("it logged %q", r.logs)
	}
	runs = 0
	closureOn(t, db, fn)
	if runs != 2+2*21 {
		t.Errorf("without a bound it ran %d times", runs)
	}
}

func TestRowsOfAQueryAreThreePointsAtMost(t *testing.T) {
	db := closureDB(t)
	runs := 0
	closureOn(t, db, func(ctx context.Context, tx *sql.Tx) error {
		runs++
		rows, err := tx.QueryContext(ctx, `SELECT n FROM big`)
		if err != nil {
			return err
		}
		defer rows.Close()
		for range 1000 {
			if !rows.Next() {
				return rows.Err()
			}
		}
		return rows.Close()
	})
	// The query, its first row, its last, its closing and COMMIT.
	if runs != 2+2*5 {
		t.Errorf("it ran %d times", runs)
	}
}

func TestWhatIsNotComparedIsLogged(t *testing.T) {
	db := closureDB(t)
	var at time.Time
	r := recorded(t, func(tb testing.TB) {
		closureOn(tb, db, func(ctx context.Context, tx *sql.Tx) error {
			at = time.Now()
			_, err := tx.ExecContext(ctx, `INSERT INTO token (made) VALUES ($1)`, at)
			return err
		}, pgretrytest.Results(&at))
	})
	if said := strings.TrimSpace(r.all()); said != "" {
		t.Error(said)
	}
	if len(r.logs) != 1 {
		t.Fatalf("it logged %q", r.logs)
	}
	for _, part := range []string{".token.id", ".token.made", "argument 1 of statement 1", "result 1 (time.Time)"} {
		if !strings.Contains(r.logs[0], part) {
			t.Errorf("%q does not name %s", r.logs[0], part)
		}
	}
}

func TestOtherSchemasMayChangeIfTheyAreLeftOut(t *testing.T) {
	db := closureDB(t)
	other, err := sql.Open(pgretry.DriverName, pgtest.DSN(t))
	if err != nil {
		t.Fatal(err)
	}
	closedAtLast(t, other)
	mustExec(t, other, `CREATE TABLE noise (n bigserial PRIMARY KEY)`)
	fn := func(ctx context.Context, tx *sql.Tx) error {
		if _, err := other.ExecContext(context.Background(), `INSERT INTO noise DEFAULT VALUES`); err != nil {
			return err
		}
		return move(ctx, tx)
	}
	closureOn(t, db, fn)
	r := recorded(t, func(tb testing.TB) { pgretrytest.Closure(tb, db, fn) })
	if !strings.Contains(r.fatal, "noise") {
		t.Errorf("without the option it says %q", r.all())
	}
}

func TestWrongUseOfClosureEndsTheTest(t *testing.T) {
	db := closureDB(t)
	plain, err := sql.Open("postgres", pgtest.DSN(t))
	if err != nil {
		t.Fatal(err)
	}
	closedAtLast(t, plain)
	var value int
	for name, test := range map[string]struct {
		run  func(tb testing.TB)
		want string
	}{
		"another driver":    {func(tb testing.TB) { pgretrytest.Closure(tb, plain, move) }, "not opened through pgretry"},
		"no database":       {func(tb testing.TB) { pgretrytest.Closure(tb, nil, move) }, "database is nil"},
		"no closure":        {func(tb testing.TB) { pgretrytest.Closure(tb, db, nil) }, "closure is nil"},
		"no pointer":        {func(tb testing.TB) { pgretrytest.Closure(tb, db, move, pgretrytest.Results(value)) }, "result 1 is a int"},
		"no table":          {func(tb testing.TB) { pgretrytest.Closure(tb, db, move, pgretrytest.IgnoreColumns("id")) }, `"id"`},
		"no argument":       {func(tb testing.TB) { pgretrytest.Closure(tb, db, move, pgretrytest.IgnoreArgument("", 0)) }, "argument"},
		"no points":         {func(tb testing.TB) { pgretrytest.Closure(tb, db, move, pgretrytest.MaxPoints(0)) }, "MaxPoints"},
		"nil for an option": {func(tb testing.TB) { pgretrytest.Closure(tb, db, move, nil) }, "option is nil"},
		"Retry without a connector of this package": {
			func(tb testing.TB) {
				pgretrytest.RetryClosure(tb, db, func(context.Context) error { return nil })
			}, "no connector of this package",
		},
	} {
		t.Run(name, func(t *testing.T) {
			if r := recorded(t, test.run); !strings.Contains(r.fatal, test.want) || len(r.errors) > 0 {
				t.Errorf("it says %q", r.all())
			}
		})
	}
}
