package fastpath

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/pgretry/pgretry/bench/internal/peer"
	"github.com/pgretry/pgretry/bench/internal/result"
	"github.com/pgretry/pgretry/bench/internal/target"
)

// MeasureSkewed times a hundred runs of a query whose plan depends on its parameter: the few jobs
// that are pending are found through the index on status, while a plan that is to suit any status
// walks through all the jobs that are done. Systems that prepare statements and leave the plan to
// the server fall into that after five runs.
func MeasureSkewed(ctx context.Context, server *target.Server, systems []peer.System, rows int, effort Effort) (result.Comparison, error) {
	return measureQuery(ctx, server, "skewed", systems, effort, []string{
		`CREATE TABLE job (id bigint PRIMARY KEY, status text NOT NULL, payload text NOT NULL)`,
		fmt.Sprintf(`INSERT INTO job SELECT n, CASE WHEN n > %[1]d - 50 THEN 'pending' ELSE 'done' END, 'payload ' || n
			FROM generate_series(1, %[1]d) AS n`, rows),
		`CREATE INDEX ON job (status)`,
		`ANALYZE job`,
	}, skewed)
}

func skewed(ctx context.Context, tx *sql.Tx) error {
	const runs, want = 100, 10
	for range runs {
		n, err := read(ctx, tx, func(rows *sql.Rows) error {
			var id int64
			var payload string
			return rows.Scan(&id, &payload)
		}, `SELECT id, payload FROM job WHERE status = $1 ORDER BY id LIMIT 10`, "pending")
		if err != nil {
			return err
		}
		if n != want {
			return fmt.Errorf("got %d rows instead of %d", n, want)
		}
	}
	return nil
}

const scanned = 100_000

// MeasureScan times reading 100,000 rows of four columns.
func MeasureScan(ctx context.Context, server *target.Server, systems []peer.System, effort Effort) (result.Comparison, error) {
	return measureQuery(ctx, server, "scan", systems, effort, []string{
		fmt.Sprintf(`CREATE TABLE scanned AS
			SELECT n AS id, 'name ' || n AS name, n / 7.0 AS amount, now() AS at FROM generate_series(1, %d) AS n`, scanned),
		`ANALYZE scanned`,
	}, scan)
}

func scan(ctx context.Context, tx *sql.Tx) error {
	n, err := read(ctx, tx, func(rows *sql.Rows) error {
		var id int64
		var name, amount string
		var at time.Time
		return rows.Scan(&id, &name, &amount, &at)
	}, `SELECT id, name, amount, at FROM scanned`)
	if err == nil && n != scanned {
		err = fmt.Errorf("got %d rows instead of %d", n, scanned)
	}
	return err
}

func read(ctx context.Context, tx *sql.Tx, each func(*sql.Rows) error, query string, args ...any) (n int, err error) {
	rows, err := tx.QueryContext(ctx, query, args...)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		if err := each(rows); err != nil {
			return n, err
		}
		n++
	}
	return n, rows.Err()
}

func measureQuery(ctx context.Context, server *target.Server, name string, systems []peer.System, effort Effort, setup []string, body func(context.Context, *sql.Tx) error) (seen result.Comparison, err error) {
	seen = result.Comparison{Name: name, Base: peer.LibPQ, Each: effort.Each}
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s: %w", name, err)
		}
	}()
	schema, err := server.Schema(ctx)
	if err != nil {
		return seen, err
	}
	defer func() { err = errors.Join(err, schema.Drop()) }()
	var all databases
	defer func() { err = errors.Join(err, all.close()) }()
	for i, system := range systems {
		db, err := all.open(system, schema.DSN(nil))
		if err != nil {
			return seen, err
		}
		if i > 0 {
			continue
		}
		for _, statement := range setup {
			if _, err := db.ExecContext(ctx, statement); err != nil {
				return seen, fmt.Errorf("create tables: %w", err)
			}
		}
	}
	var jobs []job
	for i, system := range systems {
		db := all[i]
		jobs = append(jobs, job{system.ID, func(ctx context.Context) error {
			return system.Transact(ctx, db.DB, peer.Work{Name: name, Body: body})
		}, db})
	}
	seen.Timings, err = compare(ctx, jobs, effort)
	return seen, err
}
