package workload

import (
	"context"
	"database/sql"
	"fmt"
)

// share reads a row FOR SHARE and then updates it: two who hold the lock wait for each other. It is
// the first of Blue Matador's tips against deadlocks on RDS.
type share struct{ settings }

const shareRows = 2

func (share) Name() string  { return "share" }
func (share) About() string { return "SELECT … FOR SHARE, then UPDATE of the same row" }

func (share) TxOptions() *sql.TxOptions { return nil }

func (w share) Setup(ctx context.Context, db *sql.DB) error {
	return create(ctx, db, w, fmt.Sprintf(`
		CREATE TABLE stock (id integer PRIMARY KEY, n bigint NOT NULL);
		INSERT INTO stock SELECT id, 0 FROM generate_series(1, %d) AS id`, shareRows))
}

func (w share) Transaction(id int64) Body {
	row := w.row(id)
	read := `SELECT n FROM stock WHERE id = $1 FOR SHARE`
	if w.ordered {
		read = `SELECT n FROM stock WHERE id = $1 FOR UPDATE`
	}
	return func(ctx context.Context, tx *sql.Tx) error {
		var n int64
		if err := tx.QueryRowContext(ctx, read, row).Scan(&n); err != nil {
			return err
		}
		if err := w.think(ctx); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `UPDATE stock SET n = $1 WHERE id = $2`, n+1, row)
		return err
	}
}

func (w share) row(id int64) int { return 1 + draw(w.seed, id).IntN(shareRows) }

func (w share) Check(ctx context.Context, db *sql.DB, committed []int64) error {
	increments := map[int]int64{}
	for _, id := range committed {
		increments[w.row(id)]++
	}
	return expectEach(ctx, db, w, "the value of row", increments, `SELECT id, n FROM stock`)
}
