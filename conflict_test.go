package pgretry

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lib/pq"

	"github.com/pgretry/pgretry/internal/pgserver/pgtest"
)

// openReal opens a database on the real server and runs the statements in it.
func openReal(t *testing.T, options []Option, statements ...string) *sql.DB {
	t.Helper()
	db, err := tested.open(pgtest.DSN(t), options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, s := range statements {
		if _, err := db.Exec(s); err != nil {
			t.Fatal(err)
		}
	}
	return db
}

const accounts = `CREATE TABLE account (id int PRIMARY KEY, balance int NOT NULL); INSERT INTO account SELECT n, 100 FROM generate_series(1, 4) n`

// move transfers money, locking the accounts in the order given.
func move(ctx context.Context, tx *sql.Tx, from, to int) error {
	if _, err := tx.ExecContext(ctx, `UPDATE account SET balance = balance - 1 WHERE id = $1`, from); err != nil {
		return err
	}
	_, err := tx.ExecContext(ctx, `UPDATE account SET balance = balance + 1 WHERE id = $1`, to)
	return err
}

func TestEveryTransferIsCommittedOnce(t *testing.T) {
	const workers, transfers = 8, 25
	for _, level := range []sql.IsolationLevel{sql.LevelDefault, sql.LevelRepeatableRead, sql.LevelSerializable} {
		for _, api := range []string{"RunInTx", "Retry"} {
			t.Run(fmt.Sprintf("%s/%s", api, level), func(t *testing.T) {
				db := openReal(t, []Option{WithPolicy(Policy{MaxAttempts: 10_000, MaxElapsed: time.Minute})},
					accounts, `CREATE TABLE done (worker int, n int)`)
				var all sync.WaitGroup
				for worker := range workers {
					all.Go(func() {
						for n := range transfers {
							body := func(ctx context.Context, tx *sql.Tx) error {
								if err := move(ctx, tx, 1+(worker+n)%2, 2-(worker+n)%2); err != nil {
									return err
								}
								_, err := tx.ExecContext(ctx, `INSERT INTO done VALUES ($1, $2)`, worker, n)
								return err
							}
							opts := &sql.TxOptions{Isolation: level}
							err := RunInTx(t.Context(), db, opts, body)
							if api == "Retry" {
								err = errors.Join(err, Retry(t.Context(), func(ctx context.Context) error {
									tx, err := db.BeginTx(ctx, opts)
									if err != nil {
										return err
									}
									defer tx.Rollback()
									if err := move(ctx, tx, 3+(worker+n)%2, 4-(worker+n)%2); err != nil {
										return err
									}
									return tx.Commit()
								}))
							}
							if err != nil {
								t.Errorf("worker %d, transfer %d: %v", worker, n, err)
							}
						}
					})
				}
				all.Wait()
				var sum, count, distinct int
				if err := db.QueryRow(`SELECT (SELECT sum(balance) FROM account), count(*), count(DISTINCT (worker, n)) FROM done`).Scan(&sum, &count, &distinct); err != nil {
					t.Fatal(err)
				}
				if sum != 400 || count != workers*transfers || distinct != count {
					t.Errorf("sum is %d, %d transfers recorded, %d of them distinct", sum, count, distinct)
				}
				s, err := StatsOf(db)
				if err != nil || s.Retries == 0 || s.PlainConflicts != 0 || s.Exhausted != 0 {
					t.Errorf("no conflict was met, or one was lost: %+v, %v", s, err)
				}
			})
		}
	}
}

// withoutRetry is the same workload by hand with lib/pq: it must fail, or the
// test above proves nothing.
func TestTheSameTransfersFailWithLibPQ(t *testing.T) {
	dsn := pgtest.DSN(t)
	db, err := tested.plainly(dsn)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(accounts); err != nil {
		t.Fatal(err)
	}
	failed := deadlock(t, func(ctx context.Context, from, to int, locked func()) error {
		return inTx(ctx, db, func(ctx context.Context, tx *sql.Tx) error { return moveTogether(ctx, tx, from, to, locked) })
	})
	if failed != 1 {
		t.Errorf("%d of two transactions failed, want 1", failed)
	}
	if err := db.Close(); err != nil {
		t.Error(err)
	}
}

// deadlock runs two transfers in opposite order that both hold their first
// account before either asks for its second, and counts those that failed.
func deadlock(t *testing.T, transfer func(ctx context.Context, from, to int, locked func()) error) (failed int) {
	t.Helper()
	var both, done sync.WaitGroup
	both.Add(2)
	var mu sync.Mutex
	for i := range 2 {
		done.Go(func() {
			var once sync.Once
			locked := func() {
				once.Do(func() {
					both.Done()
					both.Wait()
				})
			}
			if err := transfer(t.Context(), 1+i, 2-i, locked); err != nil {
				mu.Lock()
				failed++
				mu.Unlock()
				if sqlState(err) != "40P01" {
					t.Error(err)
				}
			}
		})
	}
	done.Wait()
	return failed
}

// moveTogether is move with a meeting point in the middle.
func moveTogether(ctx context.Context, tx *sql.Tx, from, to int, locked func()) error {
	if _, err := tx.ExecContext(ctx, `UPDATE account SET balance = balance - 1 WHERE id = $1`, from); err != nil {
		return err
	}
	locked()
	_, err := tx.ExecContext(ctx, `UPDATE account SET balance = balance + 1 WHERE id = $1`, to)
	return err
}

func TestADeadlockIsSurvivedAndTold(t *testing.T) {
	var mu sync.Mutex
	var events []Event
	hook := WithOnRetry(func(_ context.Context, e Event) {
		mu.Lock()
		defer mu.Unlock()
		events = append(events, e)
	})
	db := openReal(t, []Option{hook}, accounts)
	failed := deadlock(t, func(ctx context.Context, from, to int, locked func()) error {
		return RunInTx(ctx, db, nil, func(ctx context.Context, tx *sql.Tx) error { return moveTogether(ctx, tx, from, to, locked) })
	})
	if failed != 0 || len(events) == 0 { // the loser may deadlock again
		t.Fatalf("%d transactions failed, events are %+v", failed, events)
	}
	d := events[0].Deadlock
	if d == nil || len(d.Edges) != 2 || d.Relation != "account" || d.Edges[0].Mode != "ShareLock" ||
		d.Edges[0].BlockedBy != d.Edges[1].PID || d.Edges[1].BlockedBy != d.Edges[0].PID {
		t.Errorf("the deadlock is %+v", d)
	}
}

func TestWriteSkewAtCommitIsRetried(t *testing.T) {
	db := openReal(t, nil, `CREATE TABLE doctor (name text PRIMARY KEY, on_call bool NOT NULL); INSERT INTO doctor VALUES ('a', true), ('b', true)`)
	var both, done sync.WaitGroup
	both.Add(2)
	runs := make([]int, 2)
	for i, name := range []string{"a", "b"} {
		done.Go(func() {
			err := RunInTx(t.Context(), db, &sql.TxOptions{Isolation: sql.LevelSerializable}, func(ctx context.Context, tx *sql.Tx) error {
				runs[i]++
				var n int
				if err := tx.QueryRowContext(ctx, `SELECT count(*) FROM doctor WHERE on_call`).Scan(&n); err != nil {
					return err
				}
				if runs[i] == 1 {
					both.Done()
					both.Wait()
				}
				if n < 2 {
					return nil
				}
				_, err := tx.ExecContext(ctx, `UPDATE doctor SET on_call = false WHERE name = $1`, name)
				return err
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	done.Wait()
	var onCall int
	if err := db.QueryRow(`SELECT count(*) FROM doctor WHERE on_call`).Scan(&onCall); err != nil || onCall != 1 || runs[0]+runs[1] < 3 {
		t.Errorf("%d doctors are on call after %v runs, %v", onCall, runs, err)
	}
}

func TestAConflictOfADeferredTriggerAtCommitIsRetried(t *testing.T) {
	db := openReal(t, nil, `CREATE TABLE t (n int)`, `CREATE SEQUENCE tries`,
		`CREATE FUNCTION conflict_once() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			IF nextval('tries') = 1 THEN RAISE EXCEPTION 'scripted' USING ERRCODE = '40001'; END IF;
			RETURN NULL;
		END $$`,
		`CREATE CONSTRAINT TRIGGER late AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION conflict_once()`)
	err := RunInTx(t.Context(), db, nil, func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO t VALUES (1)`)
		return err
	})
	var rows, tries int
	if err != nil {
		t.Fatal(err)
	}
	if err := db.QueryRow(`SELECT (SELECT count(*) FROM t), last_value FROM tries`).Scan(&rows, &tries); err != nil || rows != 1 || tries != 2 {
		t.Errorf("%d rows after %d tries, %v", rows, tries, err)
	}
}

func TestAnErrorIsTheInnerDriversOwn(t *testing.T) {
	db := openReal(t, nil, accounts)
	_, err := db.Exec(`INSERT INTO account VALUES (1, 1)`)
	if server, ok := tested.said(err); !ok || server.code != "23505" || server.constraint != "account_pkey" {
		t.Errorf("the error is %#v", err)
	}
}

func TestATerminatedBackendIsReplacedAndTheTransactionCommittedOnce(t *testing.T) {
	db := openReal(t, nil, accounts)
	runs := 0
	err := RunInTx(t.Context(), db, nil, func(ctx context.Context, tx *sql.Tx) error {
		runs++
		var pid int
		if err := tx.QueryRowContext(ctx, `SELECT pg_backend_pid()`).Scan(&pid); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `UPDATE account SET balance = balance + 1`); err != nil {
			return err
		}
		if runs == 1 {
			if err := terminate(db, pid); err != nil {
				return err
			}
		}
		_, err := tx.ExecContext(ctx, `UPDATE account SET balance = balance + 1`)
		return err
	})
	var sum int
	if err != nil {
		t.Fatal(err)
	}
	if err := db.QueryRow(`SELECT sum(balance) FROM account`).Scan(&sum); err != nil || sum != 408 || runs != 2 {
		t.Errorf("the sum is %d after %d runs, %v", sum, runs, err)
	}
}

// terminate ends a backend and waits until it is gone.
func terminate(db *sql.DB, pid int) error {
	var gone bool
	// Without a context: it is no part of what the closure does.
	if err := db.QueryRow(`SELECT pg_terminate_backend($1, 10000)`, pid).Scan(&gone); err != nil || !gone {
		return fmt.Errorf("backend %d is still there: %w", pid, err)
	}
	return nil
}

func TestACommitOverATerminatedConnectionIsRunAgainOnlyIfItWasNotSent(t *testing.T) {
	db := openReal(t, nil, accounts)
	runs := 0
	err := RunInTx(t.Context(), db, nil, func(ctx context.Context, tx *sql.Tx) error {
		runs++
		var pid int
		if err := tx.QueryRowContext(ctx, `SELECT pg_backend_pid()`).Scan(&pid); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `UPDATE account SET balance = balance + 1`); err != nil {
			return err
		}
		if runs > 1 {
			return nil
		}
		if err := terminate(db, pid); err != nil {
			return err
		}
		// The driver learns of it here, so that lib/pq sends no COMMIT.
		if _, err := tx.ExecContext(ctx, `SELECT 1`); err == nil {
			t.Error("a statement over a terminated connection succeeded")
		}
		return nil
	})
	var sum int
	if err != nil || runs != 2 {
		t.Fatalf("RunInTx gives %v after %d runs", err, runs)
	}
	if err := db.QueryRow(`SELECT sum(balance) FROM account`).Scan(&sum); err != nil || sum != 404 {
		t.Errorf("the sum is %d, %v", sum, err)
	}

	// Whereas here nothing is known until COMMIT is on its way.
	for policy, want := range map[CommitOutcome]int{CommitReport: 1, CommitResolve: 2} {
		db := openReal(t, []Option{WithCommitOutcome(policy)}, accounts)
		runs = 0
		err = RunInTx(t.Context(), db, nil, func(ctx context.Context, tx *sql.Tx) error {
			runs++
			var pid int
			if err := tx.QueryRowContext(ctx, `UPDATE account SET balance = balance + 1 WHERE id = 1 RETURNING pg_backend_pid()`).Scan(&pid); err != nil {
				return err
			}
			if runs > 1 {
				return nil
			}
			return terminate(db, pid)
		})
		var unknown *CommitUnknownError
		if errors.As(err, &unknown) != (policy == CommitReport) || policy == CommitResolve && err != nil || runs != want {
			t.Errorf("%s: RunInTx gives %v after %d runs", policy, err, runs)
		}
	}
}

func TestOneConnectionIsEnough(t *testing.T) {
	db := openReal(t, nil, accounts)
	db.SetMaxOpenConns(1)
	connector := connectorOf(db)
	waited := false
	connector.config.wait = func(ctx context.Context, _ time.Duration) error {
		waited = true
		return db.PingContext(ctx) // would hang if the failed attempt held the connection
	}
	runs := 0
	err := RunInTx(t.Context(), db, nil, func(ctx context.Context, tx *sql.Tx) error {
		if runs++; runs == 1 {
			rows, err := tx.QueryContext(ctx, `SELECT 1`) // left open
			if err != nil || !rows.Next() {
				return err
			}
			return &pq.Error{Severity: "ERROR", Code: "40001"}
		}
		return nil
	})
	if err != nil || !waited || db.Stats().InUse != 0 {
		t.Errorf("RunInTx gives %v, waited %t, %d connections in use", err, waited, db.Stats().InUse)
	}
}

func TestACancelledStatementEndsTheTransactionAndNothingElse(t *testing.T) {
	db := openReal(t, nil, accounts)
	db.SetMaxOpenConns(2)
	holder, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := holder.Exec(`UPDATE account SET balance = 0`); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	runs := 0
	done := make(chan error, 1)
	go func() {
		done <- RunInTx(ctx, db, nil, func(ctx context.Context, tx *sql.Tx) error {
			runs++
			_, err := tx.ExecContext(ctx, `UPDATE account SET balance = 1`)
			return err
		})
	}()
	for waiting := 0; waiting == 0; {
		if err := holder.QueryRow(`SELECT count(*) FROM pg_locks WHERE NOT granted`).Scan(&waiting); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	if err := <-done; err == nil || runs != 1 {
		t.Errorf("RunInTx gives %v after %d runs", err, runs)
	}
	if err := holder.Rollback(); err != nil {
		t.Error(err)
	}
	if err := RunInTx(t.Context(), db, nil, func(ctx context.Context, tx *sql.Tx) error { return move(ctx, tx, 1, 2) }); err != nil {
		t.Errorf("the database is not usable afterwards: %v", err)
	}
}

func TestBeginningTwiceOnOneConnIsLeftToTheInnerDriver(t *testing.T) {
	for name, end := range map[string]func(*sql.Tx) error{"commit": (*sql.Tx).Commit, "rollback": (*sql.Tx).Rollback} {
		t.Run(name, func(t *testing.T) {
			dsn := pgtest.DSN(t)
			errs := map[string][3]string{}
			for _, name := range []string{"postgres", DriverName} {
				db, err := sql.Open(name, dsn)
				if err != nil {
					t.Fatal(err)
				}
				c, err := db.Conn(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				first, err := c.BeginTx(t.Context(), nil)
				if err != nil {
					t.Fatal(err)
				}
				_, second := c.BeginTx(t.Context(), nil)
				if second == nil {
					t.Errorf("%s: a second transaction began", name)
				}
				errs[name] = [3]string{fmt.Sprint(second), fmt.Sprint(end(first)), fmt.Sprint(c.Close())}
				if err := db.Close(); err != nil {
					t.Error(err)
				}
			}
			if name == "commit" && strings.Contains(errs[DriverName][1], "the connection was lost") {
				// What database/sql must not see as a bad connection; the rest follows.
				errs[DriverName] = [3]string{errs[DriverName][0], errs["postgres"][1], errs["postgres"][2]}
			}
			if errs["postgres"] != errs[DriverName] {
				t.Errorf("lib/pq gives %q, we give %q", errs["postgres"], errs[DriverName])
			}
		})
	}
}

func TestOurParametersNeverReachTheServer(t *testing.T) {
	dsn := pgtest.DSN(t)
	db, err := sql.Open(tested.registered, dsn+"&pgretry_max_attempts=3&pgretry_statement_spans=true")
	if err != nil {
		t.Fatal(err)
	}
	// lib/pq sends parameters that it does not know, and the server refuses the
	// connection.
	if err := db.Ping(); err != nil {
		t.Error(err)
	}
	if err := db.Close(); err != nil {
		t.Error(err)
	}
	raw, err := tested.plainly(dsn + "&pgretry_max_attempts=3")
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Ping(); sqlState(err) != "42704" {
		t.Errorf("lib/pq gives %v: this test proves nothing", err)
	}
	if err := raw.Close(); err != nil {
		t.Error(err)
	}
}

func TestAServerThatIsNotThereGivesTheDialError(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	db, err := tested.open("postgres://u:s3cret@" + address + "/d?sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	waits := 0
	connectorOf(db).config.wait = func(context.Context, time.Duration) error {
		waits++
		return nil
	}
	err = RunInTx(t.Context(), db, nil, func(context.Context, *sql.Tx) error { return nil })
	var dial *net.OpError
	var retry *RetryError
	if !errors.As(err, &dial) || !errors.As(err, &retry) || retry.Attempts != unavailableRetries+1 || waits != unavailableRetries || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("RunInTx gives %v after %d waits", err, waits)
	}
	var plain *net.OpError
	if err := db.Ping(); !errors.As(err, &plain) {
		t.Errorf("Ping gives %v", err)
	}
	if err := db.Close(); err != nil {
		t.Error(err)
	}
}
