package workload

import (
	"context"
	"database/sql"
	"slices"
)

// cache deletes what has expired and reads the rest, beside upserts that prolong entries, several of
// which expire at the same time. It is a frequent question: why does a DELETE deadlock?
type cache struct{ settings }

const (
	cacheKeys  = 24
	cacheBatch = 6
)

func (cache) Name() string { return "cache" }
func (cache) About() string {
	return "DELETE of expired rows, then SELECT, beside upserts that prolong them"
}

func (cache) TxOptions() *sql.TxOptions { return nil }

// Every row counts the writes it has taken since it was inserted, and who deletes it notes the
// count: so no write can vanish unseen.
func (w cache) Setup(ctx context.Context, db *sql.DB) error {
	return create(ctx, db, w, `
		CREATE TABLE cache (key integer PRIMARY KEY, expires timestamptz NOT NULL, writes bigint NOT NULL);
		CREATE TABLE sweeps (id bigint NOT NULL, writes bigint NOT NULL)`)
}

func (w cache) Transaction(id int64) Body {
	if w.sweeps(id) {
		return w.sweep(id)
	}
	keys := choose(draw(w.seed, id), cacheBatch, cacheKeys)
	if w.ordered {
		slices.Sort(keys)
	}
	return func(ctx context.Context, tx *sql.Tx) error {
		for i, key := range keys {
			if i > 0 {
				if err := w.think(ctx); err != nil {
					return err
				}
			}
			_, err := tx.ExecContext(ctx, `
				INSERT INTO cache (key, expires, writes) VALUES ($1, now(), 1)
				ON CONFLICT (key) DO UPDATE SET expires = excluded.expires, writes = cache.writes + 1`, key)
			if err != nil {
				return err
			}
		}
		return nil
	}
}

func (w cache) sweep(id int64) Body {
	expired := `expires < now()`
	if w.ordered {
		expired = `key IN (SELECT key FROM cache WHERE expires < now() ORDER BY key FOR UPDATE)`
	}
	return func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `
			WITH expired AS (DELETE FROM cache WHERE `+expired+` RETURNING writes)
			INSERT INTO sweeps SELECT $1, coalesce(sum(writes), 0) FROM expired`, id)
		if err != nil {
			return err
		}
		if err := w.think(ctx); err != nil {
			return err
		}
		var left int
		return tx.QueryRowContext(ctx, `SELECT count(*) FROM cache`).Scan(&left)
	}
}

// sweeps reports whether the transaction is one of those that delete: one in four.
func (cache) sweeps(id int64) bool { return id%4 == 0 }

func (w cache) Check(ctx context.Context, db *sql.DB, committed []int64) error {
	var writes int64
	var sweepers []int64
	for _, id := range committed {
		if w.sweeps(id) {
			sweepers = append(sweepers, id)
		} else {
			writes += cacheBatch
		}
	}
	err := expect(ctx, db, w, "the number of writes in rows kept and rows swept", writes,
		`SELECT (SELECT coalesce(sum(writes), 0) FROM cache) + (SELECT coalesce(sum(writes), 0) FROM sweeps)`)
	if err != nil {
		return err
	}
	return expectIDs(ctx, db, w, "sweeps", sweepers, `SELECT id FROM sweeps ORDER BY id`)
}
