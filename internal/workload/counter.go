package workload

import (
	"context"
	"database/sql"
	"fmt"
)

// counter inserts a child and then updates its parent's counter, as ActiveRecord's counter caches
// do, with an event that refers to the child by the id the database gave it. The foreign key's check
// locks the parent FOR KEY SHARE. Since PostgreSQL 9.3 an UPDATE of another column gets along with
// that; a lock FOR UPDATE, which many put before it, does not.
type counter struct{ settings }

const counterParents = 2

func (counter) Name() string { return "counter" }
func (counter) About() string {
	return "insert a child, RETURNING its id, then lock and update the parent's counter"
}

func (counter) TxOptions() *sql.TxOptions { return nil }

// The column request names the logical transaction: the ids have gaps.
func (w counter) Setup(ctx context.Context, db *sql.DB) error {
	return create(ctx, db, w, fmt.Sprintf(`
		CREATE TABLE parents (id integer PRIMARY KEY, children bigint NOT NULL);
		CREATE TABLE children (
			id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
			parent integer NOT NULL REFERENCES parents, request bigint NOT NULL
		);
		CREATE TABLE events (child bigint NOT NULL, request bigint NOT NULL);
		INSERT INTO parents SELECT id, 0 FROM generate_series(1, %d) AS id`, counterParents))
}

func (w counter) Transaction(id int64) Body {
	parent := w.parent(id)
	return func(ctx context.Context, tx *sql.Tx) error {
		var child, children int64
		insertChild := func() error {
			err := tx.QueryRowContext(ctx, `INSERT INTO children (parent, request) VALUES ($1, $2) RETURNING id`, parent, id).Scan(&child)
			if err != nil {
				return fmt.Errorf("insert the child: %w", err)
			}
			return nil
		}
		lockParent := func() error {
			err := tx.QueryRowContext(ctx, `SELECT children FROM parents WHERE id = $1 FOR UPDATE`, parent).Scan(&children)
			if err != nil {
				return fmt.Errorf("lock the parent: %w", err)
			}
			return nil
		}
		first, second := insertChild, lockParent
		if w.ordered {
			first, second = lockParent, insertChild
		}
		for _, step := range []func() error{first, second} {
			if err := step(); err != nil {
				return err
			}
			if err := w.think(ctx); err != nil {
				return err
			}
		}
		if _, err := tx.ExecContext(ctx, `UPDATE parents SET children = $1 WHERE id = $2`, children+1, parent); err != nil {
			return fmt.Errorf("update the counter: %w", err)
		}
		if err := w.think(ctx); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `INSERT INTO events (child, request) VALUES ($1, $2)`, child, id); err != nil {
			return fmt.Errorf("insert the event: %w", err)
		}
		return nil
	}
}

func (w counter) parent(id int64) int { return 1 + draw(w.seed, id).IntN(counterParents) }

func (w counter) Check(ctx context.Context, db *sql.DB, committed []int64) error {
	counts := map[int]int64{}
	for _, id := range committed {
		counts[w.parent(id)]++
	}
	if err := expectEach(ctx, db, w, "the counter of parent", counts, `SELECT id, children FROM parents`); err != nil {
		return err
	}
	if err := expectEach(ctx, db, w, "the number of children of parent", counts, `SELECT parent, count(*) FROM children GROUP BY parent`); err != nil {
		return err
	}
	if err := expectIDs(ctx, db, w, "requests with a child", committed, `SELECT request FROM children ORDER BY request`); err != nil {
		return err
	}
	if err := expectIDs(ctx, db, w, "requests with an event", committed, `SELECT request FROM events ORDER BY request`); err != nil {
		return err
	}
	return expect(ctx, db, w, "the number of events that refer to their own transaction's child", int64(len(committed)),
		`SELECT count(*) FROM events JOIN children ON children.id = events.child AND children.request = events.request`)
}
