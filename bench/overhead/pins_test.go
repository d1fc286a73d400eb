package overhead

import (
	"context"
	"database/sql"
	"testing"
	"time"

	"github.com/pgretry/pgretry"
	"github.com/pgretry/pgretry/internal/pgserver/pgtest"
)

// order inserts a row, is told its id, and inserts two more that refer to it.
func order(ctx context.Context, db *sql.DB) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // of a transaction that is over already, mostly
	var id int64
	if err := tx.QueryRowContext(ctx, `INSERT INTO orders DEFAULT VALUES RETURNING id`).Scan(&id); err != nil {
		return err
	}
	for n := range 2 {
		if _, err := tx.ExecContext(ctx, `INSERT INTO lines VALUES ($1, $2)`, id, n); err != nil {
			return err
		}
	}
	return tx.Commit()
}

// BenchmarkPins runs a transaction in which one pin is set, with and without pins and
// with lib/pq alone in turn, and reports the medians of the ratios.
func BenchmarkPins(b *testing.B) {
	const batch = 20
	ctx := context.Background()
	dsn := pgtest.DSN(b)
	plain, err := sql.Open("postgres", dsn)
	if err != nil {
		b.Fatal(err)
	}
	never, err := pgretry.Open(dsn, pgretry.WithPins(pgretry.PinsNever))
	if err != nil {
		b.Fatal(err)
	}
	pinned, err := pgretry.Open(dsn, pgretry.WithPins(pgretry.PinsReturning))
	if err != nil {
		b.Fatal(err)
	}
	for _, db := range []*sql.DB{plain, never, pinned} {
		db.SetMaxOpenConns(1)
		b.Cleanup(func() {
			if err := db.Close(); err != nil {
				b.Error(err)
			}
		})
	}
	if _, err := plain.ExecContext(ctx, `CREATE TABLE orders (id bigserial PRIMARY KEY); CREATE TABLE lines (id bigint, n int)`); err != nil {
		b.Fatal(err)
	}
	timed := func(db *sql.DB) time.Duration {
		start := time.Now()
		for range batch {
			if err := order(ctx, db); err != nil {
				b.Fatal(err)
			}
		}
		return time.Since(start)
	}
	timed(plain)
	timed(never)
	timed(pinned)
	var without, with, pins []float64
	for b.Loop() {
		raw, unpinned, all := timed(plain), timed(never), timed(pinned)
		without = append(without, float64(unpinned)/float64(raw))
		with = append(with, float64(all)/float64(raw))
		pins = append(pins, float64(all)/float64(unpinned))
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(middle(without), "never-x-libpq")
	b.ReportMetric(middle(with), "returning-x-libpq")
	b.ReportMetric(middle(pins), "returning-x-never")
}
