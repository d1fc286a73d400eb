package compat

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/lib/pq"

	"github.com/pgretry/pgretry"
	"github.com/pgretry/pgretry/internal/pgserver"
	"github.com/pgretry/pgretry/internal/workload"
)

// pair is two servers, each of which has one word and reaches the other one's through
// postgres_fdw, so that an application sees one table wherever it connects.
type pair struct {
	servers [2]*pgserver.Server
	plain   [2]*sql.DB
}

// newPair starts two servers. Waits for locks of what one sends to the other end after a
// time, as far as lockTimeout says. Each finds its own deadlocks after 10 ms.
func newPair(t *testing.T, lockTimeout string) *pair {
	t.Helper()
	t.Setenv(pgserver.EnvDSN, "") // the second server has to be another one
	var p pair
	for i := range p.servers {
		server, err := pgserver.Start(t.Context(), pgserver.WithSettings(map[string]string{"deadlock_timeout": "10ms"}))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := server.Stop(); err != nil {
				t.Error(err)
			}
		})
		p.servers[i] = server
		p.plain[i] = closedAtLast(t, openPq(t, server.DSN()))
	}
	words := [2]string{"hello", "world"}
	for i, db := range p.plain {
		other, err := url.Parse(p.servers[1-i].DSN())
		if err != nil {
			t.Fatal(err)
		}
		options := fmt.Sprintf(`host '%s', port '%s', dbname 'postgres'`, other.Hostname(), other.Port())
		if lockTimeout != "" {
			options += fmt.Sprintf(`, options '-c lock_timeout=%s'`, lockTimeout)
		}
		execAll(
			t, db,
			`CREATE EXTENSION postgres_fdw`,
			`CREATE SERVER other FOREIGN DATA WRAPPER postgres_fdw OPTIONS (`+options+`)`,
			fmt.Sprintf(`CREATE USER MAPPING FOR CURRENT_USER SERVER other OPTIONS (user '%s')`, other.User.Username()),
			`CREATE TABLE words (word text NOT NULL, n bigint NOT NULL) PARTITION BY LIST (word)`,
			fmt.Sprintf(`CREATE TABLE near PARTITION OF words (PRIMARY KEY (word)) FOR VALUES IN ('%s')`, words[i]),
			fmt.Sprintf(`CREATE FOREIGN TABLE far PARTITION OF words FOR VALUES IN ('%s') SERVER other OPTIONS (table_name 'near')`, words[1-i]),
			fmt.Sprintf(`INSERT INTO words VALUES ('%s', 0)`, words[i]),
		)
	}
	return &p
}

// with returns a server's DSN with parameters.
func (p *pair) with(t *testing.T, server int, parameters url.Values) string {
	t.Helper()
	u, err := url.Parse(p.servers[server].DSN())
	if err != nil {
		t.Fatal(err)
	}
	all := u.Query()
	for name, values := range parameters {
		all[name] = values
	}
	u.RawQuery = all.Encode()
	return u.String()
}

// holds checks on both servers that what was committed, and nothing else, is there.
func (p *pair) holds(t *testing.T, w workload.Workload, committed []int64) {
	t.Helper()
	for i, db := range p.plain {
		if err := w.Check(t.Context(), db, committed); err != nil {
			t.Errorf("server %d: %v", i, err)
		}
	}
}

type recipe struct {
	servers    int        // that the application connects to
	far        string     // lock_timeout of what one server sends to the other
	parameters url.Values // of the application's DSN
}

// recipes are the settings of docs/engines.md: for an application that connects to one of
// the servers, and for one that connects to both, whose own sessions can then be all that
// waits in a cycle.
var recipes = map[string]recipe{
	"one server":   {1, "100ms", url.Values{"pgretry_also_retry": {"55P03"}}},
	"both servers": {2, "100ms", url.Values{"pgretry_also_retry": {"55P03"}, "lock_timeout": {"300ms"}}},
}

func TestDeadlocksBetweenServersAreSurvived(t *testing.T) {
	for name, recipe := range recipes {
		t.Run(name, func(t *testing.T) {
			p := newPair(t, recipe.far)
			for way, run := range ways {
				t.Run(way, func(t *testing.T) { p.survives(t, recipe, run) })
			}
		})
	}
}

func (p *pair) survives(t *testing.T, r recipe, run way) {
	execAll(t, p.plain[0], `UPDATE words SET n = 0`)
	var dbs []*sql.DB
	for i := range r.servers {
		dbs = append(dbs, closedAtLast(t, openRetry(t, p.with(t, i, r.parameters))))
	}
	w := crossingWords(t)
	came := contend(t, w, 8, 25, dbs, run)
	if len(came.errs) > 0 {
		t.Errorf("errors are %v", came.errs)
	}
	p.holds(t, w, came.committed)
	timeouts := int64(0)
	for _, db := range dbs {
		for _, kind := range statsOf(t, db).Kinds {
			timeouts += kind.Deadlocks
		}
	}
	if timeouts == 0 {
		t.Error("nothing was ended by lock_timeout: there was no deadlock")
	}
}

// What was in the way is there without the driver: no server finds the deadlock, and what
// ends it is an error.
func TestDeadlocksBetweenServersAreErrorsOfLibPQ(t *testing.T) {
	p := newPair(t, "100ms")
	db := closedAtLast(t, openPq(t, p.servers[0].DSN()))
	errs := crossOnce(t, db, viaBeginTx)
	failed := 0
	for _, err := range errs {
		if err == nil {
			continue
		}
		failed++
		var server *pq.Error
		if !errors.As(err, &server) || server.Code != "55P03" || !strings.Contains(server.Where, "remote SQL command") {
			t.Errorf("the error is %#v", err)
		}
	}
	if failed != 1 {
		t.Errorf("%d of the two fail", failed)
	}
}

// Without a lock_timeout it lasts for ever, with the driver as without it: it knows of no
// conflict. Both sessions wait, each server for one of them.
func TestDeadlocksBetweenServersLastWithoutALockTimeout(t *testing.T) {
	p := newPair(t, "")
	for name, db := range map[string]*sql.DB{
		"lib/pq":  closedAtLast(t, openPq(t, p.servers[0].DSN())),
		"pgretry": closedAtLast(t, openRetry(t, p.servers[0].DSN())),
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			over := make(chan [2]error, 1)
			go func() { over <- crossOnceContext(ctx, db, viaBeginTx) }()
			// The server looks for deadlocks once, 10 ms after a wait has begun.
			for _, plain := range p.plain {
				eventuallyYes(t, plain, `SELECT count(*) = 1 FROM pg_stat_activity
					WHERE wait_event_type = 'Lock' AND cardinality(pg_blocking_pids(pid)) > 0 AND clock_timestamp() - query_start > '500ms'`)
			}
			select {
			case errs := <-over:
				t.Errorf("it is over: %v", errs)
			default:
			}
			cancel()
			<-over
		})
	}
}

// The other server commits before this one finds that it cannot.
func TestACommitThatFailsAfterTheOtherServersIsNotRepeated(t *testing.T) {
	serializable := &sql.TxOptions{Isolation: sql.LevelSerializable}
	for way, run := range ways {
		t.Run(way, func(t *testing.T) {
			p := newPair(t, "")
			db := closedAtLast(t, openRetry(t, p.servers[0].DSN()))
			execAll(t, p.plain[0], `CREATE TABLE duty (doctor text PRIMARY KEY, here boolean NOT NULL)`,
				`INSERT INTO duty VALUES ('alice', true), ('bob', true)`)
			leave := func(ctx context.Context, tx *sql.Tx, doctor string) error {
				var here int
				if err := tx.QueryRowContext(ctx, `SELECT count(*) FROM duty WHERE here`).Scan(&here); err != nil {
					return err
				}
				_, err := tx.ExecContext(ctx, `UPDATE duty SET here = false WHERE doctor = $1`, doctor)
				return err
			}
			runs := 0
			err := run(t.Context(), db, serializable, func(ctx context.Context, tx *sql.Tx) error {
				runs++
				other, err := p.plain[0].BeginTx(t.Context(), serializable)
				if err != nil {
					return err
				}
				defer other.Rollback()
				if err := leave(t.Context(), other, "bob"); err != nil {
					return err
				}
				if err := leave(ctx, tx, "alice"); err != nil {
					return err
				}
				if _, err := tx.ExecContext(ctx, `UPDATE words SET n = n + 1 WHERE word = 'world'`); err != nil {
					return err
				}
				return other.Commit()
			})
			var server *pq.Error
			if !errors.As(err, &server) || server.Code != "40001" || runs != 1 {
				t.Errorf("the transaction gives %v after %d runs", err, runs)
			}
			if way == withRunInTx && !errors.Is(err, pgretry.ErrAlreadyCommitted) {
				t.Errorf("RunInTx gives %v", err)
			}
			if way == withDriverName && statsOf(t, db).Refusals[pgretry.RefusedForeignTables] != 1 {
				t.Errorf("the statistics are %+v", statsOf(t, db))
			}
			var here, n int
			if err := p.plain[0].QueryRow(`SELECT count(*) FILTER (WHERE here), (SELECT n FROM words WHERE word = 'world') FROM duty`).Scan(&here, &n); err != nil {
				t.Fatal(err)
			}
			if here != 1 || n != 1 {
				t.Errorf("%d doctors are here, and the other server has committed %d times", here, n)
			}
		})
	}
}

// Nor is a closure run again whose transaction was begun under another context, as by
// upper/db, or by a statement, or that wrote in a statement outside one.
func TestACommitThatFailsAfterTheOtherServersIsNotRepeatedHoweverItCame(t *testing.T) {
	serializable := &sql.TxOptions{Isolation: sql.LevelSerializable}
	const (
		count = `SELECT count(*) FROM duty WHERE here`
		leave = `UPDATE duty SET here = false WHERE doctor = $1`
		world = `UPDATE words SET n = n + 1 WHERE word = 'world'`
	)
	type handle interface {
		ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
		QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
	}
	leaves := func(ctx context.Context, on handle, doctor string) error {
		var here int
		if err := on.QueryRowContext(ctx, count).Scan(&here); err != nil {
			return err
		}
		_, err := on.ExecContext(ctx, leave, doctor)
		return err
	}
	for name, run := range map[string]func(ctx context.Context, db *sql.DB, otherCommits func() error) error{
		"begun under another context": func(ctx context.Context, db *sql.DB, otherCommits func() error) error {
			tx, err := db.BeginTx(context.Background(), serializable)
			if err != nil {
				return err
			}
			defer tx.Rollback()
			if err := leaves(ctx, tx, "alice"); err != nil {
				return err
			}
			if _, err := tx.ExecContext(ctx, world); err != nil {
				return err
			}
			if err := otherCommits(); err != nil {
				return err
			}
			return tx.Commit()
		},
		"begun by a statement": func(ctx context.Context, db *sql.DB, otherCommits func() error) (err error) {
			conn, err := db.Conn(ctx)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, conn.Close()) }()
			if _, err := conn.ExecContext(ctx, `BEGIN ISOLATION LEVEL SERIALIZABLE`); err != nil {
				return err
			}
			if err := leaves(ctx, conn, "alice"); err != nil {
				return err
			}
			if _, err := conn.ExecContext(ctx, world); err != nil {
				return err
			}
			if err := otherCommits(); err != nil {
				return err
			}
			_, err = conn.ExecContext(ctx, `COMMIT`)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t, "")
			db := closedAtLast(t, openRetry(t, p.servers[0].DSN()))
			execAll(t, p.plain[0], `CREATE TABLE duty (doctor text PRIMARY KEY, here boolean NOT NULL)`,
				`INSERT INTO duty VALUES ('alice', true), ('bob', true)`)
			runs := 0
			err := pgretry.Retry(t.Context(), func(ctx context.Context) error {
				runs++
				other, err := p.plain[0].BeginTx(ctx, serializable)
				if err != nil {
					return err
				}
				defer other.Rollback()
				if runs > 1 {
					return run(ctx, db, func() error { return nil })
				}
				if err := leaves(ctx, other, "bob"); err != nil {
					return err
				}
				return run(ctx, db, other.Commit)
			})
			var n int
			if scan := p.plain[0].QueryRow(`SELECT n FROM words WHERE word = 'world'`).Scan(&n); scan != nil {
				t.Fatal(scan)
			}
			if !errors.Is(err, pgretry.ErrAlreadyCommitted) || runs != 1 || n != 1 {
				t.Errorf("Retry gives %v after %d runs, the other server has committed %d times", err, runs, n)
			}
		})
	}
}

func openRetry(t *testing.T, dsn string) *sql.DB {
	t.Helper()
	db, err := sql.Open(pgretry.DriverName, dsn)
	if err != nil {
		t.Fatal(err)
	}
	return db
}

// eventuallyYes asks a question until the answer is yes.
func eventuallyYes(t *testing.T, db *sql.DB, question string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for yes := false; !yes; {
		if err := db.QueryRowContext(ctx, question).Scan(&yes); err != nil {
			t.Fatalf("%s: %v", question, err)
		}
	}
}
