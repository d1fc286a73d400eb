package overhead

import (
	"context"
	"database/sql"
	"net/url"
	"testing"
	"time"

	"github.com/pgretry/pgretry"
	"github.com/pgretry/pgretry/internal/faultproxy"
	"github.com/pgretry/pgretry/internal/pgserver"
)

// writing is a transaction of two reads and two writes with arguments; reading of four
// reads.
func writing(ctx context.Context, db *sql.DB) error { return four(ctx, db, true) }
func reading(ctx context.Context, db *sql.DB) error { return four(ctx, db, false) }

func four(ctx context.Context, db *sql.DB, write bool) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // of a transaction that is over already, mostly
	for id := range 4 {
		if write && id%2 == 1 {
			if _, err := tx.ExecContext(ctx, `UPDATE account SET balance = balance + 1 WHERE id = $1`, id); err != nil {
				return err
			}
			continue
		}
		var balance int
		if err := tx.QueryRowContext(ctx, `SELECT balance FROM account WHERE id = $1`, id).Scan(&balance); err != nil {
			return err
		}
	}
	return tx.Commit()
}

// BenchmarkCommitOutcome runs transactions with each policy and with lib/pq alone in
// turn, on a server that forces each COMMIT to the disk, and reports the medians of the
// ratios: what it costs to know the fate of every COMMIT.
func BenchmarkCommitOutcome(b *testing.B) {
	server, err := pgserver.Start(context.Background(), pgserver.WithSettings(map[string]string{
		"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on",
	}))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := server.Stop(); err != nil {
			b.Error(err)
		}
	})
	address, err := url.Parse(server.DSN())
	if err != nil {
		b.Fatal(err)
	}
	proxy, err := faultproxy.Start("tcp", address.Host, func(m faultproxy.Message) faultproxy.Action {
		if m.Type == 'S' || m.Type == 'Q' { // what ends a flight
			return faultproxy.Action{Kind: faultproxy.Delay, Wait: time.Millisecond}
		}
		return faultproxy.Action{}
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := proxy.Close(); err != nil {
			b.Error(err)
		}
	})
	slow, err := proxy.DSN(server.DSN())
	if err != nil {
		b.Fatal(err)
	}
	for _, network := range []struct{ name, dsn string }{{"socket", server.SocketDSN()}, {"tcp", server.DSN()}, {"1ms", slow}} {
		for _, body := range []struct {
			name string
			run  func(context.Context, *sql.DB) error
		}{{"writing", writing}, {"reading", reading}} {
			b.Run(network.name+"/"+body.name, func(b *testing.B) { policies(b, network.dsn, body.run) })
		}
	}
}

func policies(b *testing.B, dsn string, run func(context.Context, *sql.DB) error) {
	const batch = 20
	ctx := context.Background()
	plain, err := sql.Open("postgres", dsn)
	if err != nil {
		b.Fatal(err)
	}
	all := []*sql.DB{plain}
	for _, policy := range []pgretry.CommitOutcome{pgretry.CommitReport, pgretry.CommitAuto, pgretry.CommitResolve} {
		db, err := pgretry.Open(dsn, pgretry.WithCommitOutcome(policy))
		if err != nil {
			b.Fatal(err)
		}
		all = append(all, db)
	}
	if _, err := plain.ExecContext(ctx, `CREATE TABLE IF NOT EXISTS account (id int PRIMARY KEY, balance int);
		INSERT INTO account SELECT n, 0 FROM generate_series(0, 3) n ON CONFLICT DO NOTHING`); err != nil {
		b.Fatal(err)
	}
	timed := func(db *sql.DB) float64 {
		start := time.Now()
		for range batch {
			if err := run(ctx, db); err != nil {
				b.Fatal(err)
			}
		}
		return float64(time.Since(start))
	}
	for _, db := range all {
		db.SetMaxOpenConns(1)
		timed(db)
	}
	var raw, report, auto, resolve, price []float64
	for b.Loop() {
		times := make([]float64, len(all))
		for i, db := range all {
			times[i] = timed(db)
		}
		raw = append(raw, times[0]/batch/1e3)
		report = append(report, times[1]/times[0])
		auto = append(auto, times[2]/times[1])
		resolve = append(resolve, times[3]/times[1])
		price = append(price, (times[3]-times[1])/batch/1e3)
	}
	for _, db := range all {
		if err := db.Close(); err != nil {
			b.Error(err)
		}
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(middle(raw), "libpq-us")
	b.ReportMetric(middle(report), "report-x-libpq")
	b.ReportMetric(middle(auto), "auto-x-report")
	b.ReportMetric(middle(resolve), "resolve-x-report")
	b.ReportMetric(middle(price), "resolve-us-more")
}
