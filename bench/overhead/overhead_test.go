package overhead

import (
	"cmp"
	"context"
	"database/sql"
	"math"
	"slices"
	"testing"
	"time"

	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/trace"

	"github.com/pgretry/pgretry"
	"github.com/pgretry/pgretry/internal/drivertest"
)

// transaction is the four statements that the figures of the README are about:
// BEGIN, a query for one row, two writes with arguments, COMMIT.
func transaction(ctx context.Context, tx *sql.Tx) error {
	rows, err := tx.QueryContext(ctx, `SELECT balance FROM account WHERE id = $1`, 1)
	if err != nil {
		return err
	}
	for rows.Next() {
		var balance int64
		if err := rows.Scan(&balance); err != nil {
			return err
		}
	}
	if err := rows.Close(); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, `UPDATE account SET balance = balance - $1 WHERE id = $2`, 1, 2); err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO transfer (amount) VALUES ($1)`, 1)
	return err
}

func begin(ctx context.Context, db *sql.DB) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if err := transaction(ctx, tx); err != nil {
		return err
	}
	return tx.Commit()
}

func runInTx(ctx context.Context, db *sql.DB) error {
	return pgretry.RunInTx(ctx, db, nil, transaction)
}

func retry(ctx context.Context, db *sql.DB) error {
	return pgretry.Retry(ctx, func(ctx context.Context) error { return begin(ctx, db) })
}

// batch is how many transactions are timed together.
const batch = 200

// system is one way to run the transaction.
type system struct {
	name string
	open func(tb testing.TB, inner *drivertest.Driver) *sql.DB
	run  func(ctx context.Context, db *sql.DB) error
}

func wrapped(options ...pgretry.Option) func(testing.TB, *drivertest.Driver) *sql.DB {
	return func(tb testing.TB, inner *drivertest.Driver) *sql.DB {
		connector, err := pgretry.NewConnector(inner.Connector(), options...)
		if err != nil {
			tb.Fatal(err)
		}
		return sql.OpenDB(connector)
	}
}

func systems() []system {
	sdk := []pgretry.Option{
		pgretry.WithTracerProvider(trace.NewTracerProvider()),
		pgretry.WithMeterProvider(metric.NewMeterProvider(metric.WithReader(metric.NewManualReader()))),
	}
	return []system{
		{"bare", func(_ testing.TB, inner *drivertest.Driver) *sql.DB { return sql.OpenDB(inner.Connector()) }, begin},
		{"replay", wrapped(), begin},
		{"no replay", wrapped(pgretry.WithMode(pgretry.ModeClosure)), begin},
		{"RunInTx", wrapped(), runInTx},
		{"Retry", wrapped(), retry},
		{"RunInTx with an SDK", wrapped(sdk...), runInTx},
	}
}

// BenchmarkTransaction times each system by itself.
func BenchmarkTransaction(b *testing.B) {
	for _, s := range systems() {
		b.Run(s.name, func(b *testing.B) {
			db := openSystem(b, s)
			b.ReportAllocs()
			for b.Loop() {
				if err := s.run(context.Background(), db); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkOverhead runs each system in turn with the bare driver, batch by batch,
// so that both see the same machine, and reports the median of the differences as
// over-ns/tx.
func BenchmarkOverhead(b *testing.B) {
	bare := systems()[0]
	for _, s := range systems()[1:] {
		b.Run(s.name, func(b *testing.B) {
			bareDB, db := openSystem(b, bare), openSystem(b, s)
			var bareTimes, over []time.Duration
			for b.Loop() {
				without, with := runBatch(b, bare, bareDB), runBatch(b, s, db)
				bareTimes = append(bareTimes, without/batch)
				over = append(over, (with-without)/batch)
			}
			b.ReportMetric(0, "ns/op") // a pair of batches is nobody's operation
			b.ReportMetric(float64(median(bareTimes)), "bare-ns/tx")
			b.ReportMetric(float64(median(over)), "over-ns/tx")
			b.ReportMetric(allocations(b, s, db)-allocations(b, bare, bareDB), "over-allocs/tx")
		})
	}
}

// BenchmarkJournal compares a transaction that can be replayed with one that cannot:
// what journal and digest cost over the driver without them.
func BenchmarkJournal(b *testing.B) {
	var with, without system
	for _, s := range systems() {
		switch s.name {
		case "replay":
			with = s
		case "no replay":
			without = s
		}
	}
	withDB, withoutDB := openSystem(b, with), openSystem(b, without)
	var over []time.Duration
	for b.Loop() {
		plain, journalled := runBatch(b, without, withoutDB), runBatch(b, with, withDB)
		over = append(over, (journalled-plain)/batch)
	}
	b.ReportMetric(0, "ns/op") // a pair of batches is nobody's operation
	b.ReportMetric(float64(median(over)), "over-ns/tx")
	b.ReportMetric(allocations(b, with, withDB)-allocations(b, without, withoutDB), "over-allocs/tx")
}

func openSystem(tb testing.TB, s system) *sql.DB {
	tb.Helper()
	db := s.open(tb, drivertest.New(drivertest.WithFeatures(drivertest.LibPQ), drivertest.WithoutLog()))
	db.SetMaxOpenConns(1)
	tb.Cleanup(func() {
		if err := db.Close(); err != nil {
			tb.Error(err)
		}
	})
	return db
}

func runBatch(tb testing.TB, s system, db *sql.DB) time.Duration {
	tb.Helper()
	start := time.Now()
	for range batch {
		if err := s.run(context.Background(), db); err != nil {
			tb.Fatal(err)
		}
	}
	return time.Since(start)
}

// allocations is the least of several counts: on a busy machine the runtime
// allocates goroutines of its own now and then.
func allocations(tb testing.TB, s system, db *sql.DB) float64 {
	tb.Helper()
	least := math.Inf(1)
	for range 20 {
		least = min(least, testing.AllocsPerRun(100, func() {
			if err := s.run(context.Background(), db); err != nil {
				tb.Fatal(err)
			}
		}))
	}
	return least
}

// The promise of the README: what a transaction without conflict costs beyond the
// inner driver, in allocations. Time is for the benchmark to tell.
func TestAtMostFourAllocationsATransaction(t *testing.T) {
	const most = 4
	all := systems()
	bare := allocations(t, all[0], openSystem(t, all[0]))
	for _, s := range all[1:5] {
		if extra := allocations(t, s, openSystem(t, s)) - bare; extra > most {
			t.Errorf("%s makes %.0f allocations more than the bare driver, want %d at most", s.name, extra, most)
		}
	}
}

func median(d []time.Duration) time.Duration { return middle(d) }

func middle[T cmp.Ordered](values []T) T {
	values = slices.Clone(values)
	slices.Sort(values)
	return values[len(values)/2]
}
