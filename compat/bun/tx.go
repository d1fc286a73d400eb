package bun

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"

	"github.com/uptrace/bun"

	"github.com/pgretry/pgretry/compat/script"
)

// tx is a transaction, or the database.
type tx struct {
	bun.IDB
	preparer
	db *bun.DB // which scans single rows
}

// preparer is the database/sql below, which prepares statements for bun.
type preparer interface {
	PrepareContext(ctx context.Context, query string) (*sql.Stmt, error)
}

var _ script.Tx = tx{}

// Pay updates where the id is the account's.
func (t tx) Pay(ctx context.Context, id, amount int64) error {
	_, err := t.NewUpdate().Model((*account)(nil)).Set("balance = balance + ?", amount).Where("id = ?", id).Exec(ctx)
	return err
}

// Lock selects for update.
func (t tx) Lock(ctx context.Context, id int64) (balance int64, err error) {
	a := account{ID: id}
	err = t.NewSelect().Model(&a).WherePK().For("UPDATE").Scan(ctx)
	return a.Balance, err
}

// CreateCustomer inserts a model, to which bun adds RETURNING.
func (t tx) CreateCustomer(ctx context.Context, name string) (id int64, err error) {
	c := customer{Name: name}
	_, err = t.NewInsert().Model(&c).Exec(ctx)
	return c.ID, err
}

// CreatePurchase inserts a model.
func (t tx) CreatePurchase(ctx context.Context, customerID int64, item string) (id int64, err error) {
	p := purchase{CustomerID: customerID, Item: item}
	_, err = t.NewInsert().Model(&p).Exec(ctx)
	return p.ID, err
}

// CreateWithPurchases inserts the customer and then all purchases: bun inserts no
// relations by itself.
func (t tx) CreateWithPurchases(ctx context.Context, name string, items ...string) (script.Customer, error) {
	c := customer{Name: name}
	if _, err := t.NewInsert().Model(&c).Exec(ctx); err != nil {
		return script.Customer{}, err
	}
	for _, item := range items {
		c.Purchases = append(c.Purchases, purchase{CustomerID: c.ID, Item: item})
	}
	if len(items) > 0 {
		if _, err := t.NewInsert().Model(&c.Purchases).Exec(ctx); err != nil {
			return script.Customer{}, err
		}
	}
	return c.row(), nil
}

// Customers selects with the relation, which is a second query.
func (t tx) Customers(ctx context.Context, prefix string) ([]script.Customer, error) {
	var found []customer
	if err := t.NewSelect().Model(&found).Where("name LIKE ?", prefix+"%").Order("name").
		Relation("Purchases", func(q *bun.SelectQuery) *bun.SelectQuery { return q.Order("item") }).Scan(ctx); err != nil {
		return nil, err
	}
	list := make([]script.Customer, len(found))
	for i, c := range found {
		list[i] = c.row()
	}
	return list, nil
}

// InsertStock inserts a slice of models.
func (t tx) InsertStock(ctx context.Context, rows []script.Stock) error {
	list := models(rows)
	_, err := t.NewInsert().Model(&list).Exec(ctx)
	return err
}

// UpsertStock does, too, ON CONFLICT.
func (t tx) UpsertStock(ctx context.Context, rows []script.Stock) error {
	list := models(rows)
	_, err := t.NewInsert().Model(&list).On("CONFLICT (sku) DO UPDATE").
		Set("quantity = stock.quantity + EXCLUDED.quantity").Exec(ctx)
	return err
}

// Nested is RunInTx again, which sets a savepoint under a random name.
func (t tx) Nested(ctx context.Context, work func(ctx context.Context, tx script.Tx) error) error {
	return t.RunInTx(ctx, nil, func(ctx context.Context, inner bun.Tx) error {
		return work(ctx, tx{inner, inner, t.db})
	})
}

// RawExec executes a text with bun's placeholders.
func (t tx) RawExec(ctx context.Context, prefix string, quantity int64) (int64, error) {
	result, err := t.NewRaw(`UPDATE stock SET quantity = quantity + ? WHERE sku LIKE ?`, quantity, prefix+"%").Exec(ctx)
	if err != nil {
		return 0, err
	}
	return result.RowsAffected()
}

// RawQuery scans into a slice.
func (t tx) RawQuery(ctx context.Context, prefix string) (list []script.Stock, err error) {
	err = t.NewRaw(`SELECT sku, quantity FROM stock WHERE sku LIKE ? ORDER BY sku`, prefix+"%").Scan(ctx, &list)
	return list, err
}

// Prepared prepares as database/sql does: all that bun has for that is the same method.
func (t tx) Prepared(ctx context.Context, skus ...string) (quantities []int64, err error) {
	stmt, err := t.PrepareContext(ctx, `SELECT quantity FROM stock WHERE sku = $1`)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stmt.Close()) }()
	for _, sku := range skus {
		var quantity int64
		if err := stmt.QueryRowContext(ctx, sku).Scan(&quantity); err != nil {
			return nil, err
		}
		quantities = append(quantities, quantity)
	}
	return quantities, nil
}

// Stream scans model by model.
func (t tx) Stream(ctx context.Context, prefix string, each func(script.Stock) error) (err error) {
	rows, err := t.NewSelect().Model((*stock)(nil)).Where("sku LIKE ?", prefix+"%").Order("sku").Rows(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var s stock
		if err := t.db.ScanRow(ctx, rows, &s); err != nil {
			return err
		}
		if err := each(script.Stock{SKU: s.SKU, Quantity: s.Quantity}); err != nil {
			return err
		}
	}
	return rows.Err()
}

// InsertSample inserts a model.
func (t tx) InsertSample(ctx context.Context, s script.Sample) error {
	_, err := t.NewInsert().Model(&sample{
		ID: s.ID, Small: s.Small, Float: s.Float, Amount: s.Amount, Flag: s.Flag, Label: s.Label,
		Raw: s.Raw, At: s.At, Doc: json.RawMessage(s.Doc), Tags: s.Tags, Note: s.Note,
	}).Exec(ctx)
	return err
}

// LoadSample selects by the primary key.
func (t tx) LoadSample(ctx context.Context, id int64) (script.Sample, error) {
	s := sample{ID: id}
	err := t.NewSelect().Model(&s).WherePK().Scan(ctx)
	return script.Sample{
		ID: s.ID, Small: s.Small, Float: s.Float, Amount: s.Amount, Flag: s.Flag, Label: s.Label,
		Raw: s.Raw, At: s.At, Doc: string(s.Doc), Tags: s.Tags, Note: s.Note,
	}, err
}

// Rows queries.
func (t tx) Rows(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	return t.QueryContext(ctx, query, args...)
}
