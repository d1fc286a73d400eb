package compat

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/lib/pq"
	"gorm.io/driver/postgres"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/pgretry/pgretry"
	"github.com/pgretry/pgretry/internal/abort"
	"github.com/pgretry/pgretry/internal/drivertest/parity"
	"github.com/pgretry/pgretry/internal/pgserver/pgtest"
	"github.com/pgretry/pgretry/pgretrytest"
)

var fast = pgretry.WithPolicy(pgretry.Policy{BaseDelay: time.Microsecond, MaxDelay: time.Microsecond})

// openAborting opens a database over pgx with two accounts in it, whose transactions
// are aborted as the options say.
func openAborting(t *testing.T, options ...pgretrytest.Option) (*sql.DB, *pgretrytest.Connector) {
	t.Helper()
	aborting, err := pgretrytest.NewConnector(stdlib.GetConnector(pgxConfig(t, pgtest.DSN(t))), options...)
	if err != nil {
		t.Fatal(err)
	}
	connector, err := pgretry.NewConnector(aborting, fast)
	if err != nil {
		t.Fatal(err)
	}
	db := closedAtLast(t, sql.OpenDB(connector))
	aborting.Pause()
	for _, statement := range []string{accounts, `INSERT INTO account VALUES (1, 100), (2, 100)`} {
		if _, err := db.Exec(statement); err != nil {
			t.Fatal(err)
		}
	}
	aborting.Resume()
	return db, aborting
}

func TestDatabaseSQLSeesPgxBehindWhatAborts(t *testing.T) {
	dsn := pgtest.DSN(t)
	parity.Run(t, parity.Opener{
		Raw: func(t *testing.T) *sql.DB {
			return closedAtLast(t, sql.OpenDB(stdlib.GetConnector(pgxConfig(t, dsn))))
		},
		Wrapped: func(t *testing.T) *sql.DB {
			connector, err := abort.NewConnector(stdlib.GetConnector(pgxConfig(t, dsn)))
			if err != nil {
				t.Fatal(err)
			}
			return closedAtLast(t, sql.OpenDB(connector))
		},
	})
}

// lib/pq has its turn in package abort; here it is every set of optional interfaces.
func TestDatabaseSQLSeesTheInterfacesBehindWhatAborts(t *testing.T) {
	parity.RunScripted(t, func(inner driver.Connector) driver.Connector {
		connector, err := abort.NewConnector(inner)
		if err != nil {
			t.Fatal(err)
		}
		return connector
	})
}

// readAndMove reads rows, half of them and all of them, and moves one from the first
// account to the second with a prepared statement.
func readAndMove(ctx context.Context, tx *sql.Tx) error {
	for _, wanted := range []int{1, 2} {
		if err := readSome(ctx, tx, wanted); err != nil {
			return err
		}
	}
	if _, err := tx.ExecContext(ctx, takeOne, 1); err != nil {
		return err
	}
	stmt, err := tx.PrepareContext(ctx, giveOne)
	if err != nil {
		return err
	}
	defer func() { _ = stmt.Close() }() // whatever it says was said before
	_, err = stmt.ExecContext(ctx, 2)
	return err
}

func readSome(ctx context.Context, tx *sql.Tx, wanted int) error {
	rows, err := tx.QueryContext(ctx, `SELECT id FROM account ORDER BY id`)
	if err != nil {
		return err
	}
	defer rows.Close()
	for id := 1; id <= wanted; id++ {
		var got int
		if !rows.Next() {
			return errors.Join(rows.Err(), fmt.Errorf("there is no account %d", id))
		}
		if err := rows.Scan(&got); err != nil || got != id {
			return errors.Join(err, fmt.Errorf("account %d instead of %d", got, id))
		}
	}
	return rows.Close()
}

func TestTransactionsOverPgxGetThroughAborts(t *testing.T) {
	const rounds = 60
	for way, transaction := range map[string]func(ctx context.Context, db *sql.DB) error{
		"RunInTx": func(ctx context.Context, db *sql.DB) error {
			return pgretry.RunInTx(ctx, db, nil, readAndMove)
		},
		"replay": func(ctx context.Context, db *sql.DB) error { return inTx(ctx, ctx, db) },
	} {
		t.Run(way, func(t *testing.T) {
			db, aborting := openAborting(t, pgretrytest.WithProbability(0.5), pgretrytest.WithLoneProbability(0.5))
			for range rounds {
				if err := transaction(t.Context(), db); err != nil {
					t.Error(err)
				}
				if _, err := db.ExecContext(t.Context(), takeOne, 2); err != nil {
					t.Error(err)
				}
			}
			if got := aborting.Counts(); got.Statements == 0 || got.Rows == 0 || got.Commits == 0 || got.Lone == 0 {
				t.Errorf("aborted are %+v", got)
			}
			aborting.Pause()
			var a, b int
			if err := db.QueryRow(`SELECT max(balance) FILTER (WHERE id = 1), max(balance) FILTER (WHERE id = 2) FROM account`).Scan(&a, &b); err != nil || a != 100-rounds || b != 100 {
				t.Errorf("balances are %d and %d, %v", a, b, err)
			}
		})
	}
}

// inTx runs the transaction without a closure.
func inTx(ctx, begin context.Context, db *sql.DB) error {
	tx, err := db.BeginTx(begin, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if err := readAndMove(ctx, tx); err != nil {
		return err
	}
	return tx.Commit()
}

func TestAbortsOverPgxComeAtTheirPointsWithPgxsErrors(t *testing.T) {
	db, aborting := openAborting(t, pgretrytest.AtStatement(4), pgretrytest.AtCommit(), pgretrytest.AtStatement(1), pgretrytest.WithSQLStates("40P01"))
	for attempt, want := range []pgretrytest.Counts{
		{Statements: 1}, {Statements: 1, Commits: 1}, {Statements: 2, Commits: 1}, {Statements: 2, Commits: 1},
	} {
		err := inTx(t.Context(), pgretry.ContextWithoutReplay(t.Context()), db)
		if last := attempt == 3; last != (err == nil) {
			t.Errorf("attempt %d gives %v", attempt+1, err)
		}
		if pgErr, ok := err.(*pgconn.PgError); err != nil && (!ok || pgErr.Code != "40P01") { //nolint:errorlint // it has to be the error itself
			t.Errorf("attempt %d gives %#v", attempt+1, err)
		}
		if got := aborting.Counts(); got != want {
			t.Errorf("after attempt %d aborted are %+v, want %+v", attempt+1, got, want)
		}
	}
}

const trialSchema = `
CREATE TABLE entry (id bigserial PRIMARY KEY, account int NOT NULL REFERENCES account DEFERRABLE INITIALLY DEFERRED, note text, made timestamptz NOT NULL DEFAULT clock_timestamp(), token uuid NOT NULL DEFAULT gen_random_uuid())`

// trialDB is a database over pgx as an application opens it.
func trialDB(t *testing.T) *sql.DB {
	t.Helper()
	db := prepare(t)
	if _, err := db.Exec(trialSchema); err != nil {
		t.Fatal(err)
	}
	return db
}

func TestClosuresOverPgxThatCanBeRunAgainPass(t *testing.T) {
	var ids []int64
	for name, c := range map[string]struct {
		fn      func(ctx context.Context, tx *sql.Tx) error
		options []pgretrytest.ClosureOption
	}{
		"reads and prepared statements": {fn: readAndMove},
		"ids, times and UUIDs": {
			fn: func(ctx context.Context, tx *sql.Tx) error {
				ids = nil
				for _, note := range []string{"a", "b"} {
					var id int64
					var token [16]byte
					if err := tx.QueryRowContext(ctx, `INSERT INTO entry (account, note, made) VALUES (1, $1, $2) RETURNING id`, note, time.Now()).Scan(&id); err != nil {
						return err
					}
					ids = append(ids, id)
					token[0] = byte(time.Now().UnixNano())
					token[1] = byte(time.Now().UnixNano() >> 8)
					if _, err := tx.ExecContext(ctx, `UPDATE entry SET token = $1 WHERE id = $2`, token, id); err != nil {
						return err
					}
				}
				return nil
			},
			options: []pgretrytest.ClosureOption{pgretrytest.Results(&ids)},
		},
		"a savepoint and a deferred constraint": {fn: func(ctx context.Context, tx *sql.Tx) error {
			for _, text := range []string{`INSERT INTO entry (account) VALUES (3)`, `SAVEPOINT a`, `DELETE FROM entry`, `ROLLBACK TO a`, `INSERT INTO account VALUES (3, 0)`} {
				if _, err := tx.ExecContext(ctx, text); err != nil {
					return err
				}
			}
			return nil
		}},
		"lists for arguments": {fn: func(ctx context.Context, tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, `UPDATE account SET balance = 0 WHERE id = ANY ($1)`, []int32{1, 2})
			return err
		}},
	} {
		t.Run(name, func(t *testing.T) {
			db := trialDB(t)
			pgretrytest.Closure(t, db, c.fn, append(c.options, inOwnSchema(t, db))...)
		})
	}
}

// inOwnSchema leaves out what others do on a server that they share.
func inOwnSchema(t *testing.T, db *sql.DB) pgretrytest.ClosureOption {
	t.Helper()
	var schema string
	if err := db.QueryRowContext(t.Context(), `SELECT current_schema()`).Scan(&schema); err != nil {
		t.Fatal(err)
	}
	return pgretrytest.InSchemas(schema)
}

// failing is a test that may fail without anybody's failing.
type failing struct {
	testing.TB
	said strings.Builder
}

func (f *failing) Helper()             {}
func (f *failing) Logf(string, ...any) {}

func (f *failing) Errorf(format string, args ...any) { fmt.Fprintf(&f.said, format, args...) }

func (f *failing) Fatalf(format string, args ...any) {
	fmt.Fprintf(&f.said, format, args...)
	runtime.Goexit()
}

// said runs a test and returns what it says.
func said(t *testing.T, test func(tb testing.TB)) string {
	t.Helper()
	f := &failing{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		test(f)
	}()
	<-done
	return f.said.String()
}

func TestClosuresOverPgxThatKeepSomethingFail(t *testing.T) {
	var names []string
	total := 0
	for name, c := range map[string]struct {
		fn      func(ctx context.Context, tx *sql.Tx) error
		options []pgretrytest.ClosureOption
		want    string
	}{
		"a counter": {
			func(ctx context.Context, tx *sql.Tx) error {
				total++
				_, err := tx.ExecContext(ctx, giveOne, total)
				return err
			},
			nil,
			`two runs of the closure differ`,
		},
		"a list": {
			func(ctx context.Context, tx *sql.Tx) error {
				names = append(names, "new")
				_, err := tx.ExecContext(ctx, `INSERT INTO entry (account, note) SELECT 1, unnest($1::text[])`, names)
				return err
			},
			[]pgretrytest.ClosureOption{pgretrytest.Results(&names)},
			`aborted at COMMIT, with 40P01:\n\s+its attempt 2 sent other arguments: statement 1 is\s+.* \$1=\[new new\]\s+undisturbed\s+.* \$1=\[new\]`,
		},
		"an abort swallowed in a savepoint": {
			func(ctx context.Context, tx *sql.Tx) error {
				if _, err := tx.ExecContext(ctx, `SAVEPOINT a`); err != nil {
					return err
				}
				if _, err := tx.ExecContext(ctx, giveOne, 1); err != nil {
					_, err = tx.ExecContext(ctx, `ROLLBACK TO a`)
					return err
				}
				return nil
			},
			nil,
			`aborted at statement 2 of 2, UPDATE account .*\n\s+the closure swallowed the abort`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			db := trialDB(t)
			got := said(t, func(tb testing.TB) { pgretrytest.Closure(tb, db, c.fn, append(c.options, inOwnSchema(t, db))...) })
			if !regexp.MustCompile(c.want).MatchString(got) {
				t.Errorf("it does not say %s, but\n%s", c.want, got)
			}
		})
	}
}

// Over pgx and over lib/pq, and gorm's own transaction helper with a nested one in it.
func TestGormsTransactionsAreTried(t *testing.T) {
	libPQ := func(t *testing.T, dsn string) driver.Connector {
		t.Helper()
		connector, err := pq.NewConnector(dsn)
		if err != nil {
			t.Fatal(err)
		}
		return connector
	}
	for name, inner := range map[string]func(t *testing.T, dsn string) driver.Connector{
		"lib/pq": libPQ,
		"pgx":    func(t *testing.T, dsn string) driver.Connector { return stdlib.GetConnector(pgxConfig(t, dsn)) },
	} {
		t.Run(name, func(t *testing.T) {
			aborting, err := pgretrytest.NewConnector(inner(t, pgtest.DSN(t)))
			if err != nil {
				t.Fatal(err)
			}
			connector, err := pgretry.NewConnector(aborting, fast)
			if err != nil {
				t.Fatal(err)
			}
			raw := closedAtLast(t, sql.OpenDB(connector))
			db, err := gorm.Open(postgres.New(postgres.Config{Conn: raw}), &gorm.Config{Logger: logger.Discard})
			if err != nil {
				t.Fatal(err)
			}
			if err := db.AutoMigrate(&Account{}); err != nil {
				t.Fatal(err)
			}
			schema := inOwnSchema(t, raw)
			var created []int
			run := func(ctx context.Context) error {
				return db.WithContext(ctx).Transaction(func(tx *gorm.DB) error {
					account := Account{Balance: 1 + len(created)}
					if err := tx.Create(&account).Error; err != nil {
						return err
					}
					created = append(created, account.ID)
					return tx.Transaction(func(nested *gorm.DB) error {
						return nested.Model(&Account{}).Where("id = ?", account.ID).Update("balance", gorm.Expr("balance + 1")).Error
					})
				})
			}
			pgretrytest.RetryClosure(t, raw, func(ctx context.Context) error {
				created = nil
				return run(ctx)
			}, pgretrytest.Results(&created), schema)
			got := said(t, func(tb testing.TB) { pgretrytest.RetryClosure(tb, raw, run, pgretrytest.Results(&created), schema) })
			for _, want := range []string{`aborted at COMMIT`, `table \S+\.account:\n\s+- id="1" balance="2"\n\s+\+ id="1" balance="3"`, `result 1 \(\[\]int\) is \[1 1\], undisturbed \[1\]`} {
				if !regexp.MustCompile(want).MatchString(got) {
					t.Errorf("a closure that keeps a list does not make it say %s, but\n%s", want, got)
				}
			}
			var n int64
			if err := db.Model(&Account{}).Count(&n).Error; err != nil || n != 0 {
				t.Errorf("the trials have left %d accounts, %v", n, err)
			}
		})
	}
}

func TestPgxsDriverIsAbortedByItsName(t *testing.T) {
	aborting := pgretrytest.WrapDriver(stdlib.GetDefaultDriver(), pgretrytest.AtCommit())
	name := fmt.Sprintf("pgx-aborting-%d", time.Now().UnixNano())
	sql.Register(name, pgretry.WrapDriver(aborting, fast))
	db, err := sql.Open(name, pgtest.DSN(t))
	if err != nil {
		t.Fatal(err)
	}
	closedAtLast(t, db)
	err = pgretry.RunInTx(t.Context(), db, nil, func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `CREATE TABLE made (n int)`)
		return err
	})
	if err != nil || aborting.Counts() != (pgretrytest.Counts{Commits: 1}) {
		t.Errorf("RunInTx gives %v, aborted are %+v", err, aborting.Counts())
	}
}
