package ent

import (
	"context"
	"database/sql"
	"errors"

	"entgo.io/ent/dialect"
	entsql "entgo.io/ent/dialect/sql"

	"github.com/pgretry/pgretry/compat/ent/model"
	"github.com/pgretry/pgretry/compat/ent/model/account"
	"github.com/pgretry/pgretry/compat/ent/model/customer"
	"github.com/pgretry/pgretry/compat/ent/model/purchase"
	"github.com/pgretry/pgretry/compat/ent/model/stock"
	"github.com/pgretry/pgretry/compat/plain"
	"github.com/pgretry/pgretry/compat/script"
)

// tx is a client, bound to a transaction or not.
type tx struct {
	client     *model.Client
	savepoints *int
}

var _ script.Tx = tx{}

func newTx(client *model.Client) tx { return tx{client, new(int)} }

// Pay updates where the id is the account's, which is one UPDATE. After UpdateOneID ent
// reads the row: from then on, as after every plain read, the driver goes back to BEGIN
// or not at all, neither to a returned id nor to a savepoint.
func (t tx) Pay(ctx context.Context, id, amount int64) error {
	return t.client.Account.Update().Where(account.ID(id)).AddBalance(amount).Exec(ctx)
}

// lone is a client outside transactions.
type lone struct{ tx }

// Pay updates by id, for which ent begins a transaction of its own.
func (l lone) Pay(ctx context.Context, id, amount int64) error {
	return l.client.Account.UpdateOneID(id).AddBalance(amount).Exec(ctx)
}

// Lock queries for update.
func (t tx) Lock(ctx context.Context, id int64) (balance int64, err error) {
	a, err := t.client.Account.Query().Where(account.ID(id)).ForUpdate().Only(ctx)
	if err != nil {
		return 0, err
	}
	return a.Balance, nil
}

// CreateCustomer creates.
func (t tx) CreateCustomer(ctx context.Context, name string) (id int64, err error) {
	c, err := t.client.Customer.Create().SetName(name).Save(ctx)
	if err != nil {
		return 0, err
	}
	return c.ID, nil
}

// CreatePurchase creates.
func (t tx) CreatePurchase(ctx context.Context, customerID int64, item string) (id int64, err error) {
	p, err := t.client.Purchase.Create().SetCustomerID(customerID).SetItem(item).Save(ctx)
	if err != nil {
		return 0, err
	}
	return p.ID, nil
}

// CreateWithPurchases creates the customer and then, in one batch, its purchases with
// their edge to it, which they cannot be without.
func (t tx) CreateWithPurchases(ctx context.Context, name string, items ...string) (script.Customer, error) {
	c, err := t.client.Customer.Create().SetName(name).Save(ctx)
	if err != nil {
		return script.Customer{}, err
	}
	c.Edges.Purchases, err = t.client.Purchase.MapCreateBulk(items, func(p *model.PurchaseCreate, i int) {
		p.SetCustomer(c).SetItem(items[i])
	}).Save(ctx)
	if err != nil {
		return script.Customer{}, err
	}
	return customerOf(c), nil
}

func customerOf(c *model.Customer) script.Customer {
	result := script.Customer{ID: c.ID, Name: c.Name}
	for _, p := range c.Edges.Purchases {
		result.Purchases = append(result.Purchases, script.Purchase{ID: p.ID, CustomerID: p.CustomerID, Item: p.Item})
	}
	return result
}

// Customers loads the edges eagerly.
func (t tx) Customers(ctx context.Context, prefix string) (list []script.Customer, err error) {
	found, err := t.client.Customer.Query().
		Where(customer.NameHasPrefix(prefix)).
		Order(customer.ByName()).
		WithPurchases(func(q *model.PurchaseQuery) { q.Order(purchase.ByItem()) }).
		All(ctx)
	for _, c := range found {
		list = append(list, customerOf(c))
	}
	return list, err
}

func (t tx) create(rows []script.Stock) *model.StockCreateBulk {
	return t.client.Stock.MapCreateBulk(rows, func(s *model.StockCreate, i int) {
		s.SetID(rows[i].SKU).SetQuantity(rows[i].Quantity)
	})
}

// InsertStock creates in bulk, and a single one as such: ent adds RETURNING only in bulk.
func (t tx) InsertStock(ctx context.Context, rows []script.Stock) error {
	if len(rows) == 1 {
		return t.client.Stock.Create().SetID(rows[0].SKU).SetQuantity(rows[0].Quantity).Exec(ctx)
	}
	return t.create(rows).Exec(ctx)
}

// UpsertStock does, too, and resolves conflicts by an expression.
func (t tx) UpsertStock(ctx context.Context, rows []script.Stock) error {
	return t.create(rows).OnConflict(
		entsql.ConflictColumns(stock.FieldID),
		entsql.ResolveWith(func(u *entsql.UpdateSet) {
			u.Set(stock.FieldQuantity, entsql.Expr("stock.quantity + excluded.quantity"))
		}),
	).Exec(ctx)
}

// Nested sets a savepoint by hand: ent's transactions do not nest.
func (t tx) Nested(ctx context.Context, work func(ctx context.Context, tx script.Tx) error) error {
	return plain.Nested(ctx, t.client, t.savepoints, func(ctx context.Context) error { return work(ctx, t) })
}

// RawExec is the client's ExecContext.
func (t tx) RawExec(ctx context.Context, prefix string, quantity int64) (int64, error) {
	result, err := t.client.ExecContext(ctx, `UPDATE stock SET quantity = quantity + $1 WHERE sku LIKE $2`, quantity, prefix+"%")
	if err != nil {
		return 0, err
	}
	return result.RowsAffected()
}

// RawQuery is the client's QueryContext, its rows scanned by ent.
func (t tx) RawQuery(ctx context.Context, prefix string) (list []script.Stock, err error) {
	rows, err := t.client.QueryContext(ctx, `SELECT sku, quantity FROM stock WHERE sku LIKE $1 ORDER BY sku`, prefix+"%")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	return list, entsql.ScanSlice(rows, &list)
}

// Prepared prepares by a method that a template of ours has ent generate: ent has no
// prepared statements.
func (t tx) Prepared(ctx context.Context, skus ...string) (quantities []int64, err error) {
	statement, err := t.client.PrepareContext(ctx, `SELECT quantity FROM stock WHERE sku = $1`)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, statement.Close()) }()
	for _, sku := range skus {
		var quantity int64
		if err := statement.QueryRowContext(ctx, sku).Scan(&quantity); err != nil {
			return nil, err
		}
		quantities = append(quantities, quantity)
	}
	return quantities, nil
}

// Stream executes what ent's builder of SQL has built, and reads row by row by hand: ent
// itself reads all.
func (t tx) Stream(ctx context.Context, prefix string, each func(script.Stock) error) (err error) {
	query, args := entsql.Dialect(dialect.Postgres).
		Select(stock.FieldID, stock.FieldQuantity).From(entsql.Table(stock.Table)).
		Where(entsql.HasPrefix(stock.FieldID, prefix)).OrderBy(stock.FieldID).Query()
	rows, err := t.client.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var s script.Stock
		if err := rows.Scan(&s.SKU, &s.Quantity); err != nil {
			return err
		}
		if err := each(s); err != nil {
			return err
		}
	}
	return rows.Err()
}

// InsertSample creates.
func (t tx) InsertSample(ctx context.Context, s script.Sample) error {
	return t.client.Sample.Create().
		SetID(s.ID).SetSmall(s.Small).SetFloat(s.Float).SetAmount(s.Amount).SetFlag(s.Flag).SetLabel(s.Label).
		SetRaw(s.Raw).SetAt(s.At).SetDoc(s.Doc).SetTags(s.Tags).SetNillableNote(s.Note).Exec(ctx)
}

// LoadSample gets by id.
func (t tx) LoadSample(ctx context.Context, id int64) (script.Sample, error) {
	s, err := t.client.Sample.Get(ctx, id)
	if err != nil {
		return script.Sample{}, err
	}
	return script.Sample{
		ID: s.ID, Small: s.Small, Float: s.Float, Amount: s.Amount, Flag: s.Flag, Label: s.Label,
		Raw: s.Raw, At: s.At, Doc: s.Doc, Tags: s.Tags, Note: s.Note,
	}, nil
}

// Rows is the client's QueryContext.
func (t tx) Rows(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	return t.client.QueryContext(ctx, query, args...)
}
