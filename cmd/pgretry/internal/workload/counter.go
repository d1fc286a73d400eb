package workload

import (
	"context"
	"database/sql"
	"fmt"
)

// counter inserts a child and then updates its parent's counter, as ActiveRecord's counter caches
// do. The foreign key's check locks the parent FOR KEY SHARE. Since PostgreSQL 9.3 an UPDATE of
// another column gets along with that; a lock FOR UPDATE, which many put before it, does not.
type counter struct{ seed uint64 }

const counterParents = 2

func (counter) Name() string  { return "counter" }
func (counter) About() string { return "insert a child, then lock and update the parent's counter" }

func (counter) TxOptions() *sql.TxOptions { return nil }

func (w counter) Setup(ctx context.Context, db *sql.DB) error {
	return create(ctx, db, w, fmt.Sprintf(`
		CREATE TABLE parents (id integer PRIMARY KEY, children bigint NOT NULL);
		CREATE TABLE children (id bigint NOT NULL, parent integer NOT NULL REFERENCES parents);
		INSERT INTO parents SELECT id, 0 FROM generate_series(1, %d) AS id`, counterParents))
}

func (w counter) Transaction(id int64) Body {
	parent := w.parent(id)
	return func(ctx context.Context, tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, `INSERT INTO children (id, parent) VALUES ($1, $2)`, id, parent); err != nil {
			return err
		}
		var children int64
		if err := tx.QueryRowContext(ctx, `SELECT children FROM parents WHERE id = $1 FOR UPDATE`, parent).Scan(&children); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `UPDATE parents SET children = $1 WHERE id = $2`, children+1, parent)
		return err
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
	return expectIDs(ctx, db, w, "children", committed, `SELECT id FROM children ORDER BY id`)
}
