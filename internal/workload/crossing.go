package workload

import (
	"context"
	"database/sql"
)

// crossing updates two rows, every other transaction in the opposite order: the example of Citus'
// documentation on distributed deadlocks.
type crossing struct{ settings }

func (crossing) Name() string  { return "crossing" }
func (crossing) About() string { return "two rows, updated in opposite orders" }

func (crossing) TxOptions() *sql.TxOptions { return nil }

func (w crossing) Setup(ctx context.Context, db *sql.DB) error {
	return create(ctx, db, w, `
		CREATE TABLE words (word text PRIMARY KEY, n bigint NOT NULL);
		INSERT INTO words VALUES ('hello', 0), ('world', 0)`)
}

func (w crossing) Transaction(id int64) Body {
	order := [2]string{"hello", "world"}
	if id%2 != 0 && !w.ordered {
		order = [2]string{"world", "hello"}
	}
	return func(ctx context.Context, tx *sql.Tx) error {
		for i, word := range order {
			if i > 0 {
				if err := w.think(ctx); err != nil {
					return err
				}
			}
			if _, err := tx.ExecContext(ctx, `UPDATE words SET n = n + 1 WHERE word = $1`, word); err != nil {
				return err
			}
		}
		return nil
	}
}

func (w crossing) Check(ctx context.Context, db *sql.DB, committed []int64) error {
	for _, word := range []string{"hello", "world"} {
		err := expect(ctx, db, w, "the count of "+word, int64(len(committed)), `SELECT n FROM words WHERE word = $1`, word)
		if err != nil {
			return err
		}
	}
	return nil
}
