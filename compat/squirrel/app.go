// Package squirrel is the application with statements that squirrel builds and runs.
package squirrel

import (
	"context"
	"database/sql"
	"errors"

	"github.com/Masterminds/squirrel"

	"github.com/pgretry/pgretry/compat/plain"
	"github.com/pgretry/pgretry/compat/script"
)

// App is the application. Migrations and all else that squirrel leaves to database/sql
// are those of plain.
type App struct{ *plain.App }

var _ script.App = App{}

// Open opens it.
func Open(_ context.Context, driverName, dsn string) (script.App, error) {
	app, err := plain.New(driverName, dsn)
	return App{app}, err
}

// Transact is by hand, because squirrel knows no transactions.
func (a App) Transact(ctx context.Context, work func(ctx context.Context, tx script.Tx) error) error {
	handle, err := a.DB().BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if err := work(ctx, newTx(handle)); err != nil {
		if undo := handle.Rollback(); !errors.Is(undo, sql.ErrTxDone) {
			err = errors.Join(err, undo)
		}
		return err
	}
	return handle.Commit()
}

// Lone is the database.
func (a App) Lone() script.Tx { return newTx(a.DB()) }

// handle is what *sql.DB and *sql.Tx have.
type handle interface {
	squirrel.StdSqlCtx
	squirrel.PreparerContext
}

// tx is a builder that runs what it builds. Nested transactions are those of plain, by
// hand, and hooks there are none.
type tx struct {
	squirrel.StatementBuilderType
	handle     handle
	savepoints *int
}

func newTx(h handle) tx {
	return tx{squirrel.StatementBuilder.PlaceholderFormat(squirrel.Dollar).RunWith(h), h, new(int)}
}

func (t tx) Pay(ctx context.Context, account, amount int64) error {
	_, err := t.Update("account").Set("balance", squirrel.Expr("balance + ?", amount)).
		Where(squirrel.Eq{"id": account}).ExecContext(ctx)
	return err
}

func (t tx) Lock(ctx context.Context, account int64) (balance int64, err error) {
	err = t.Select("balance").From("account").Where(squirrel.Eq{"id": account}).Suffix("FOR UPDATE").
		QueryRowContext(ctx).Scan(&balance)
	return balance, err
}

func (t tx) CreateCustomer(ctx context.Context, name string) (id int64, err error) {
	err = t.Insert("customer").SetMap(map[string]any{"name": name}).Suffix("RETURNING id").QueryRowContext(ctx).Scan(&id)
	return id, err
}

func (t tx) CreatePurchase(ctx context.Context, customer int64, item string) (id int64, err error) {
	err = t.Insert("purchase").SetMap(map[string]any{"customer_id": customer, "item": item}).
		Suffix("RETURNING id").QueryRowContext(ctx).Scan(&id)
	return id, err
}

// CreateWithPurchases inserts all purchases at once.
func (t tx) CreateWithPurchases(ctx context.Context, name string, items ...string) (c script.Customer, err error) {
	c.Name = name
	if c.ID, err = t.CreateCustomer(ctx, name); err != nil || len(items) == 0 {
		return c, err
	}
	insert := t.Insert("purchase").Columns("customer_id", "item").Suffix("RETURNING id, customer_id, item")
	for _, item := range items {
		insert = insert.Values(c.ID, item)
	}
	rows, err := insert.QueryContext(ctx)
	if err != nil {
		return c, err
	}
	err = each(rows, func() error {
		var p script.Purchase
		err := rows.Scan(&p.ID, &p.CustomerID, &p.Item)
		c.Purchases = append(c.Purchases, p)
		return err
	})
	return c, err
}

// each reads rows and closes them.
func each(rows *sql.Rows, read func() error) (err error) {
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		if err := read(); err != nil {
			return err
		}
	}
	return rows.Err()
}

// Customers asks for the customers, and for the purchases of all of them by IN.
func (t tx) Customers(ctx context.Context, prefix string) (list []script.Customer, err error) {
	rows, err := t.Select("id", "name").From("customer").Where(squirrel.Like{"name": prefix + "%"}).
		OrderBy("name").QueryContext(ctx)
	if err != nil {
		return nil, err
	}
	at := make(map[int64]int)
	var ids []int64
	if err := each(rows, func() error {
		var c script.Customer
		err := rows.Scan(&c.ID, &c.Name)
		at[c.ID] = len(list)
		list, ids = append(list, c), append(ids, c.ID)
		return err
	}); err != nil {
		return nil, err
	}
	rows, err = t.Select("id", "customer_id", "item").From("purchase").Where(squirrel.Eq{"customer_id": ids}).
		OrderBy("item").QueryContext(ctx)
	if err != nil {
		return nil, err
	}
	return list, each(rows, func() error {
		var p script.Purchase
		if err := rows.Scan(&p.ID, &p.CustomerID, &p.Item); err != nil {
			return err
		}
		c := &list[at[p.CustomerID]]
		c.Purchases = append(c.Purchases, p)
		return nil
	})
}

func (t tx) insert(stock []script.Stock) squirrel.InsertBuilder {
	insert := t.Insert("stock").Columns("sku", "quantity")
	for _, s := range stock {
		insert = insert.Values(s.SKU, s.Quantity)
	}
	return insert
}

func (t tx) InsertStock(ctx context.Context, stock []script.Stock) error {
	_, err := t.insert(stock).ExecContext(ctx)
	return err
}

func (t tx) UpsertStock(ctx context.Context, stock []script.Stock) error {
	_, err := t.insert(stock).
		Suffix("ON CONFLICT (sku) DO UPDATE SET quantity = stock.quantity + excluded.quantity").ExecContext(ctx)
	return err
}

func (t tx) Nested(ctx context.Context, work func(ctx context.Context, tx script.Tx) error) error {
	return plain.Nested(ctx, t.handle, t.savepoints, func(ctx context.Context) error { return work(ctx, t) })
}

func (t tx) RawExec(ctx context.Context, prefix string, quantity int64) (int64, error) {
	result, err := squirrel.ExecContextWith(ctx, t.handle,
		squirrel.Expr(`UPDATE stock SET quantity = quantity + $1 WHERE sku LIKE $2`, quantity, prefix+"%"))
	if err != nil {
		return 0, err
	}
	return result.RowsAffected()
}

func (t tx) RawQuery(ctx context.Context, prefix string) (list []script.Stock, err error) {
	rows, err := t.Rows(ctx, `SELECT sku, quantity FROM stock WHERE sku LIKE $1 ORDER BY sku`, prefix+"%")
	if err != nil {
		return nil, err
	}
	err = each(rows, func() error {
		var s script.Stock
		err := rows.Scan(&s.SKU, &s.Quantity)
		list = append(list, s)
		return err
	})
	return list, err
}

// Prepared is a builder that runs with squirrel's cache of statements.
func (t tx) Prepared(ctx context.Context, skus ...string) (quantities []int64, err error) {
	cache := squirrel.NewStmtCache(t.handle)
	defer func() { err = errors.Join(err, cache.Clear()) }()
	cached := t.RunWith(cache)
	for _, sku := range skus {
		var quantity int64
		if err := cached.Select("quantity").From("stock").Where(squirrel.Eq{"sku": sku}).
			QueryRowContext(ctx).Scan(&quantity); err != nil {
			return nil, err
		}
		quantities = append(quantities, quantity)
	}
	return quantities, nil
}

func (t tx) Stream(ctx context.Context, prefix string, work func(script.Stock) error) error {
	rows, err := t.Select("sku", "quantity").From("stock").Where(squirrel.Like{"sku": prefix + "%"}).
		OrderBy("sku").QueryContext(ctx)
	if err != nil {
		return err
	}
	return each(rows, func() error {
		var s script.Stock
		if err := rows.Scan(&s.SKU, &s.Quantity); err != nil {
			return err
		}
		return work(s)
	})
}

func (t tx) InsertSample(ctx context.Context, s script.Sample) error {
	_, err := t.Insert("sample").SetMap(map[string]any{
		"id": s.ID, "small": s.Small, "float": s.Float, "amount": s.Amount, "flag": s.Flag, "label": s.Label,
		"raw": s.Raw, "at": s.At, "doc": s.Doc, "tags": s.Tags, "note": s.Note,
	}).ExecContext(ctx)
	return err
}

func (t tx) LoadSample(ctx context.Context, id int64) (s script.Sample, err error) {
	err = t.Select("id", "small", "float", "amount", "flag", "label", "raw", "at", "doc", "tags", "note").
		From("sample").Where(squirrel.Eq{"id": id}).
		ScanContext(ctx, &s.ID, &s.Small, &s.Float, &s.Amount, &s.Flag, &s.Label, &s.Raw, &s.At, &s.Doc, &s.Tags, &s.Note)
	return s, err
}

func (t tx) Rows(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	return squirrel.QueryContextWith(ctx, t.handle, squirrel.Expr(query, args...))
}

func (t tx) Hooked(context.Context, script.Stock) ([]string, error) { return nil, script.ErrNone }
