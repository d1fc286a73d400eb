// Package xorm is the application written with xorm.
package xorm

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"xorm.io/xorm"
	"xorm.io/xorm/core"
	"xorm.io/xorm/dialects"
	"xorm.io/xorm/log"
	"xorm.io/xorm/names"

	"github.com/pgretry/pgretry/compat/plain"
	"github.com/pgretry/pgretry/compat/script"
)

// App is the application.
type App struct{ engine *xorm.Engine }

var _ script.App = (*App)(nil)

// Open opens it. xorm knows drivers by their names only, so it has to be told that
// ours is one for PostgreSQL.
func Open(_ context.Context, driverName, dsn string) (script.App, error) {
	if dialects.QueryDriver(driverName) == nil {
		dialects.RegisterDriver(driverName, dialects.QueryDriver("postgres"))
	}
	engine, err := xorm.NewEngine(driverName, dsn)
	if err != nil {
		return nil, err
	}
	engine.SetLogger(log.DiscardLogger{})
	engine.SetMapper(names.GonicMapper{})
	engine.AddHook(noteStatements{})
	return &App{engine}, nil
}

// DB is the database below.
func (a *App) DB() *sql.DB { return a.engine.DB().DB }

// Close closes it.
func (a *App) Close() error { return a.engine.Close() }

// Migrate is Sync, but for the types that Sync cannot make. It looks for tables in one
// schema, which is public unless it is told.
func (a *App) Migrate(ctx context.Context) error {
	var schema string
	if err := a.engine.DB().QueryRowContext(ctx, "SELECT current_schema()").Scan(&schema); err != nil {
		return err
	}
	a.engine.SetSchema(schema)
	if err := a.engine.Context(ctx).Sync(&account{}, &customer{}, &purchase{}, &stock{}); err != nil {
		return err
	}
	_, err := a.engine.Context(ctx).Exec(script.SampleTable)
	return err
}

// Transact is a session, as xorm's own helper Transaction takes no context.
func (a *App) Transact(ctx context.Context, work func(ctx context.Context, tx script.Tx) error) (err error) {
	session := a.engine.NewSession().Context(ctx)
	defer func() {
		// The end of a context rolls back before Close can.
		if closed := session.Close(); closed != nil && !errors.Is(closed, sql.ErrTxDone) {
			err = errors.Join(err, closed)
		}
	}()
	if err := session.Begin(); err != nil {
		return err
	}
	if err := work(ctx, tx{a.engine, session, new(int)}); err != nil {
		return err
	}
	return session.Commit()
}

// Lone is the engine, which makes a session for each call.
func (a *App) Lone() script.Tx { return tx{a.engine, nil, new(int)} }

// IsDuplicate looks for the SQLSTATE, because xorm translates no errors.
func (a *App) IsDuplicate(err error) bool { return plain.IsDuplicate(err) }

// tx is a session with a transaction, or without one the engine.
type tx struct {
	engine     *xorm.Engine
	session    *xorm.Session
	savepoints *int
}

func (t tx) with(ctx context.Context) *xorm.Session {
	if t.session != nil {
		return t.session.Context(ctx)
	}
	return t.engine.Context(ctx)
}

// below is what xorm has below its sessions.
func (t tx) below() core.QueryExecuter {
	if t.session != nil {
		return t.session.Tx()
	}
	return t.engine.DB()
}

func (t tx) Pay(ctx context.Context, id, amount int64) error {
	_, err := t.with(ctx).ID(id).Incr("balance", amount).Update(&account{})
	return err
}

func (t tx) Lock(ctx context.Context, id int64) (int64, error) {
	var a account
	err := t.with(ctx).ID(id).ForUpdate().GetOrError(&a)
	return a.Balance, err
}

func (t tx) CreateCustomer(ctx context.Context, name string) (int64, error) {
	c := customer{Name: name}
	_, err := t.with(ctx).Insert(&c)
	return c.ID, err
}

func (t tx) CreatePurchase(ctx context.Context, customer int64, item string) (int64, error) {
	p := purchase{CustomerID: customer, Item: item}
	_, err := t.with(ctx).Insert(&p)
	return p.ID, err
}

// CreateWithPurchases inserts one after the other, as one INSERT of many rows returns
// no ids with xorm.
func (t tx) CreateWithPurchases(ctx context.Context, name string, items ...string) (script.Customer, error) {
	c := customer{Name: name}
	if _, err := t.with(ctx).Insert(&c); err != nil {
		return script.Customer{}, err
	}
	created := script.Customer{ID: c.ID, Name: c.Name}
	for _, item := range items {
		p := purchase{CustomerID: c.ID, Item: item}
		if _, err := t.with(ctx).Insert(&p); err != nil {
			return created, err
		}
		created.Purchases = append(created.Purchases, script.Purchase(p))
	}
	return created, nil
}

// Customers is a join, whose rows are structs of both tables.
func (t tx) Customers(ctx context.Context, prefix string) (customers []script.Customer, err error) {
	var list []bought
	err = t.with(ctx).Table("customer").Select("customer.*, purchase.*").
		Join("LEFT", "purchase", "purchase.customer_id = customer.id").
		Where("customer.name LIKE ?", prefix+"%").Asc("customer.name", "purchase.item").Find(&list)
	for _, b := range list {
		if len(customers) == 0 || customers[len(customers)-1].ID != b.Customer.ID {
			customers = append(customers, script.Customer{ID: b.Customer.ID, Name: b.Customer.Name})
		}
		if b.Purchase.ID != 0 {
			c := &customers[len(customers)-1]
			c.Purchases = append(c.Purchases, script.Purchase(b.Purchase))
		}
	}
	return customers, err
}

func (t tx) InsertStock(ctx context.Context, list []script.Stock) error {
	created := rows(list)
	_, err := t.with(ctx).Insert(&created)
	return err
}

// UpsertStock is SQL, because xorm has no ON CONFLICT.
func (t tx) UpsertStock(ctx context.Context, list []script.Stock) error {
	var args []any
	for _, s := range list {
		args = append(args, s.SKU, s.Quantity)
	}
	text := fmt.Sprintf("INSERT INTO stock (sku, quantity) VALUES (?, ?)%s"+
		" ON CONFLICT (sku) DO UPDATE SET quantity = stock.quantity + excluded.quantity", strings.Repeat(", (?, ?)", len(list)-1))
	_, err := t.with(ctx).Exec(append([]any{text}, args...)...)
	return err
}

// Nested sets a savepoint by hand, because xorm knows none.
func (t tx) Nested(ctx context.Context, work func(ctx context.Context, tx script.Tx) error) error {
	return plain.Nested(ctx, t.below(), t.savepoints, func(ctx context.Context) error { return work(ctx, t) })
}

func (t tx) RawExec(ctx context.Context, prefix string, quantity int64) (int64, error) {
	result, err := t.with(ctx).Exec("UPDATE stock SET quantity = quantity + ? WHERE sku LIKE ?", quantity, prefix+"%")
	if err != nil {
		return 0, err
	}
	return result.RowsAffected()
}

func (t tx) RawQuery(ctx context.Context, prefix string) ([]script.Stock, error) {
	var list []stock
	err := t.with(ctx).SQL("SELECT sku, quantity FROM stock WHERE sku LIKE ? ORDER BY sku", prefix+"%").Find(&list)
	return plainStock(list), err
}

// Prepared has the session prepare the statement, which keeps it until it is closed.
func (t tx) Prepared(ctx context.Context, skus ...string) (quantities []int64, err error) {
	for _, sku := range skus {
		var quantity int64
		if err := t.with(ctx).Prepare().Table("stock").Where("sku = ?", sku).Cols("quantity").GetOrError(&quantity); err != nil {
			return nil, err
		}
		quantities = append(quantities, quantity)
	}
	return quantities, nil
}

// Stream is Iterate.
func (t tx) Stream(ctx context.Context, prefix string, each func(script.Stock) error) error {
	return t.with(ctx).Where("sku LIKE ?", prefix+"%").Asc("sku").Iterate(new(stock), func(_ int, row any) error {
		return each(row.(*stock).plain())
	})
}

func (t tx) InsertSample(ctx context.Context, s script.Sample) error {
	_, err := t.with(ctx).Insert(&sample{s.ID, s.Small, s.Float, s.Amount, s.Flag, s.Label, s.Raw, s.At, s.Doc, tags(s.Tags), s.Note})
	return err
}

func (t tx) LoadSample(ctx context.Context, id int64) (script.Sample, error) {
	var s sample
	err := t.with(ctx).ID(id).GetOrError(&s)
	return script.Sample{
		ID: s.ID, Small: s.Small, Float: s.Float, Amount: s.Amount, Flag: s.Flag, Label: s.Label,
		Raw: s.Raw, At: s.At, Doc: s.Doc, Tags: []string(s.Tags), Note: s.Note,
	}, err
}

// Rows are of what is below a session, because the session's own are others.
func (t tx) Rows(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	rows, err := t.below().QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	return rows.Rows, nil
}

func (t tx) Hooked(ctx context.Context, s script.Stock) (noted []string, err error) {
	ctx = context.WithValue(ctx, notedKey{}, &noted)
	created := stock{SKU: s.SKU, Quantity: s.Quantity, noted: &noted}
	_, err = t.with(ctx).Before(func(any) { created.note("closure before insert") }).Insert(&created)
	if err != nil {
		return nil, err
	}
	found := stock{noted: &noted}
	err = t.with(ctx).ID(s.SKU).GetOrError(&found)
	return noted, err
}
