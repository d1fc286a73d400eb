package overhead

import (
	"context"
	"database/sql"
	"errors"
	"testing"
	"time"

	"github.com/pgretry/pgretry"
	"github.com/pgretry/pgretry/internal/pgserver/pgtest"
)

const scanned = 100_000

// scan reads the rows of a query in a transaction, as an application does.
func scan(ctx context.Context, db *sql.DB) (err error) {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tx.Rollback()) }()
	rows, err := tx.QueryContext(ctx, `SELECT id, name, amount, at FROM scanned`)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	n := 0
	for rows.Next() {
		var id int64
		var name, amount string
		var at time.Time
		if err := rows.Scan(&id, &name, &amount, &at); err != nil {
			return err
		}
		n++
	}
	if n != scanned {
		return errors.Join(errors.New("rows are missing"), rows.Err())
	}
	return rows.Err()
}

// BenchmarkScan reads 100,000 rows from a real server, with lib/pq and with us in
// turn, and reports the median of the ratios as x-libpq.
func BenchmarkScan(b *testing.B) {
	ctx := context.Background()
	dsn := pgtest.DSN(b)
	open := func(name string) *sql.DB {
		db, err := sql.Open(name, dsn)
		if err != nil {
			b.Fatal(err)
		}
		db.SetMaxOpenConns(1)
		b.Cleanup(func() {
			if err := db.Close(); err != nil {
				b.Error(err)
			}
		})
		return db
	}
	plain, ours := open("postgres"), open(pgretry.DriverName)
	if _, err := plain.ExecContext(ctx, `CREATE TABLE scanned AS
		SELECT n AS id, 'name ' || n AS name, n / 7.0 AS amount, now() AS at FROM generate_series(1, 100000) n`); err != nil {
		b.Fatal(err)
	}
	timed := func(db *sql.DB) time.Duration {
		start := time.Now()
		if err := scan(ctx, db); err != nil {
			b.Fatal(err)
		}
		return time.Since(start)
	}
	timed(plain)
	timed(ours)
	var ratios []float64
	for b.Loop() {
		first, second := timed(plain), timed(ours)
		ratios = append(ratios, float64(second)/float64(first))
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(middle(ratios), "x-libpq")
}
