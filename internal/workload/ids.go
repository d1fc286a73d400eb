package workload

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
)

// ids inserts an order, reads the id the database gave it, and inserts lines that refer to it, each
// of which takes something from a product's stock: what every ORM does on Save.
type ids struct{ settings }

const (
	idsProducts = 6
	idsLines    = 3
)

func (ids) Name() string { return "ids" }
func (ids) About() string {
	return "INSERT … RETURNING id, then rows that refer to it, beside stock updates"
}

func (ids) TxOptions() *sql.TxOptions { return nil }

// The column request names the logical transaction on both sides, so that a line that refers to
// another transaction's order can be told.
func (w ids) Setup(ctx context.Context, db *sql.DB) error {
	return create(ctx, db, w, fmt.Sprintf(`
		CREATE TABLE products (id integer PRIMARY KEY, sold bigint NOT NULL);
		CREATE TABLE orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, request bigint NOT NULL);
		CREATE TABLE lines (order_id bigint NOT NULL, product integer NOT NULL, request bigint NOT NULL);
		INSERT INTO products SELECT id, 0 FROM generate_series(1, %d) AS id`, idsProducts))
}

func (w ids) Transaction(id int64) Body {
	products := w.products(id)
	if w.ordered {
		slices.Sort(products)
	}
	return func(ctx context.Context, tx *sql.Tx) error {
		var order int64
		if err := tx.QueryRowContext(ctx, `INSERT INTO orders (request) VALUES ($1) RETURNING id`, id).Scan(&order); err != nil {
			return fmt.Errorf("insert the order: %w", err)
		}
		for _, product := range products {
			if err := w.think(ctx); err != nil {
				return err
			}
			if _, err := tx.ExecContext(ctx, `UPDATE products SET sold = sold + 1 WHERE id = $1`, product); err != nil {
				return fmt.Errorf("take from the stock: %w", err)
			}
			if err := w.think(ctx); err != nil {
				return err
			}
			_, err := tx.ExecContext(ctx, `INSERT INTO lines (order_id, product, request) VALUES ($1, $2, $3)`, order, product, id)
			if err != nil {
				return fmt.Errorf("insert a line: %w", err)
			}
		}
		return nil
	}
}

func (w ids) products(id int64) []int { return choose(draw(w.seed, id), idsLines, idsProducts) }

func (w ids) Check(ctx context.Context, db *sql.DB, committed []int64) error {
	if err := expectIDs(ctx, db, w, "requests with an order", committed, `SELECT request FROM orders ORDER BY request`); err != nil {
		return err
	}
	sold := map[int]int64{}
	for _, id := range committed {
		for _, product := range w.products(id) {
			sold[product]++
		}
	}
	if err := expectEach(ctx, db, w, "the sales of product", sold, `SELECT id, sold FROM products`); err != nil {
		return err
	}
	err := expect(ctx, db, w, "the number of lines that refer to their own transaction's order", idsLines*int64(len(committed)),
		`SELECT count(*) FROM lines JOIN orders ON orders.id = lines.order_id AND orders.request = lines.request`)
	if err != nil {
		return err
	}
	return expect(ctx, db, w, "the number of lines", idsLines*int64(len(committed)), `SELECT count(*) FROM lines`)
}
