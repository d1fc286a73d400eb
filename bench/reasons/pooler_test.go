package reasons

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/lib/pq"

	"github.com/pgretry/pgretry/internal/pgbouncer"
	"github.com/pgretry/pgretry/internal/pgserver/pgtest"
)

// BenchmarkPreparedBehindAPooler shows why statements stay prepared only in sessions that
// are known to be the driver's alone. Sixteen clients prepare eight statements each with
// lib/pq, as a cache would, each client in an order of its own, and execute them in
// transactions, behind a PgBouncer that gives each transaction to one of three sessions.
// It reports how many of 5000 inserts went into another statement's table, although they
// were reported as done, and how many failed.
func BenchmarkPreparedBehindAPooler(b *testing.B) {
	var astray, failed []int64
	for b.Loop() {
		a, f := insertThroughPooler(b)
		astray, failed = append(astray, a), append(failed, f)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(median(astray)), "astray/5000")
	b.ReportMetric(float64(median(failed)), "failed/5000")
}

func insertThroughPooler(b *testing.B) (astray, failed int64) {
	const tables, clients, inserts = 8, 16, 5000
	direct := pgtest.DSN(b)
	owner := session(b, direct)
	var schema string // the pooler does not pass on what the DSN says of it
	if err := owner.QueryRowContext(b.Context(), `SELECT current_schema()`).Scan(&schema); err != nil {
		b.Fatal(err)
	}
	for n := range tables {
		execute(b, owner, fmt.Sprintf(`DROP TABLE IF EXISTS into_%[1]d; CREATE TABLE into_%[1]d (home int, n int)`, n))
	}
	bouncer, err := pgbouncer.Start(b.Context(), direct, "transaction", 3)
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := bouncer.Stop(); err != nil {
			b.Error(err)
		}
	}()
	var next, lost atomic.Int64
	var all sync.WaitGroup
	for client := range clients {
		all.Go(func() {
			if err := insert(b.Context(), bouncer.DSN(), schema, func() (home, n int, ok bool) {
				n = int(next.Add(1))
				return (n + 3*client) % tables, n, n <= inserts
			}, &lost); err != nil {
				b.Error(err)
			}
		})
	}
	all.Wait()
	for n := range tables {
		var wrong int64
		if err := owner.QueryRowContext(b.Context(), fmt.Sprintf(`SELECT count(*) FROM into_%d WHERE home <> $1`, n), n).Scan(&wrong); err != nil {
			b.Fatal(err)
		}
		astray += wrong
	}
	return astray, lost.Load()
}

// insert inserts with one client what next says, and counts what fails.
func insert(ctx context.Context, dsn, schema string, next func() (home, n int, ok bool), failed *atomic.Int64) (err error) {
	connector, err := pq.NewConnector(dsn)
	if err != nil {
		return err
	}
	conn, err := connector.Connect(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	prepared := make(map[int]driver.Stmt)
	for home, n, ok := next(); ok; home, n, ok = next() {
		done := func() error {
			tx, err := conn.(driver.ConnBeginTx).BeginTx(ctx, driver.TxOptions{})
			if err != nil {
				return err
			}
			if prepared[home] == nil {
				if prepared[home], err = conn.Prepare(fmt.Sprintf(`INSERT INTO %s.into_%d VALUES ($1, $2)`, schema, home)); err != nil {
					delete(prepared, home)
					return errors.Join(err, tx.Rollback())
				}
			}
			args := []driver.NamedValue{{Ordinal: 1, Value: int64(home)}, {Ordinal: 2, Value: int64(n)}}
			if _, err := prepared[home].(driver.StmtExecContext).ExecContext(ctx, args); err != nil {
				return errors.Join(err, tx.Rollback())
			}
			return tx.Commit()
		}()
		var refused *pq.Error
		switch {
		case errors.As(done, &refused):
			failed.Add(1)
		case done != nil:
			return done
		}
	}
	return nil
}
