// Package upper is the application written with upper/db.
package upper

import (
	"context"
	"database/sql"
	"errors"
	"strings"

	"github.com/upper/db/v4"
	"github.com/upper/db/v4/adapter/postgresql"

	"github.com/pgretry/pgretry/compat/plain"
	"github.com/pgretry/pgretry/compat/script"
)

// App is the application.
type App struct {
	raw  *sql.DB
	sess db.Session
}

var _ script.App = (*App)(nil)

// Open opens it. upper's own Open knows one name of a driver only, so it is given a
// database that is open.
func Open(ctx context.Context, driverName, dsn string) (script.App, error) {
	return open(ctx, driverName, dsn, false)
}

func open(_ context.Context, driverName, dsn string, prepared bool) (script.App, error) {
	db.LC().SetLevel(db.LogLevelFatal)
	raw, err := sql.Open(driverName, dsn)
	if err != nil {
		return nil, err
	}
	sess, err := postgresql.New(raw)
	if err != nil {
		return nil, errors.Join(err, raw.Close())
	}
	sess.SetPreparedStatementCache(prepared)
	return &App{raw, sess}, nil
}

// DB is the database below.
func (a *App) DB() *sql.DB { return a.raw }

// Close closes it, and the statements that upper keeps.
func (a *App) Close() error { return a.sess.Close() }

// Migrate executes the schema, because upper has no migrations.
func (a *App) Migrate(ctx context.Context) error {
	for _, table := range script.Tables {
		if _, err := a.sess.SQL().ExecContext(ctx, table); err != nil {
			return err
		}
	}
	return nil
}

// Transact is upper's TxContext.
func (a *App) Transact(ctx context.Context, work func(ctx context.Context, tx script.Tx) error) error {
	return a.sess.TxContext(ctx, func(sess db.Session) error { return work(ctx, newTx(sess)) }, nil)
}

// Lone is the session, which begins a transaction for each record that it saves.
func (a *App) Lone() script.Tx { return newTx(a.sess) }

// IsDuplicate looks for the SQLSTATE, because upper translates no such errors.
func (a *App) IsDuplicate(err error) bool { return plain.IsDuplicate(err) }

type tx struct {
	sess       db.Session
	savepoints *int
}

func newTx(sess db.Session) tx { return tx{sess, new(int)} }

// sql is the builder, whose methods all use the session's context.
func (t tx) sql(ctx context.Context) db.SQL { return t.sess.WithContext(ctx).SQL() }

func (t tx) Pay(ctx context.Context, id, amount int64) error {
	_, err := t.sql(ctx).Update("account").Set("balance = balance + ?", amount).Where("id", id).Exec()
	return err
}

// Lock amends the query, because upper has no FOR UPDATE.
func (t tx) Lock(ctx context.Context, id int64) (int64, error) {
	var a account
	err := t.sql(ctx).SelectFrom("account").Where("id", id).
		Amend(func(query string) string { return query + " FOR UPDATE" }).One(&a)
	return a.Balance, err
}

// create inserts RETURNING the id. Save and InsertReturning would read the row as well,
// and a transaction that has read something is not replayed from a pin.
func (t tx) create(ctx context.Context, collection string, item any) (int64, error) {
	result, err := t.sess.WithContext(ctx).Collection(collection).Insert(item)
	if err != nil {
		return 0, err
	}
	return result.ID().(int64), nil
}

func (t tx) CreateCustomer(ctx context.Context, name string) (int64, error) {
	return t.create(ctx, "customer", customer{Name: name})
}

func (t tx) CreatePurchase(ctx context.Context, customer int64, item string) (int64, error) {
	return t.create(ctx, "purchase", purchase{CustomerID: customer, Item: item})
}

// CreateWithPurchases inserts the purchases in batches that return their ids.
func (t tx) CreateWithPurchases(ctx context.Context, name string, items ...string) (script.Customer, error) {
	id, err := t.CreateCustomer(ctx, name)
	if err != nil {
		return script.Customer{}, err
	}
	created := script.Customer{ID: id, Name: name}
	batch := t.sql(ctx).InsertInto("purchase").Columns("customer_id", "item").
		Returning("id", "customer_id", "item").Batch(len(items))
	for _, item := range items {
		batch.Values(id, item)
	}
	batch.Done()
	for purchases := []purchase(nil); batch.NextResult(&purchases); {
		for _, p := range purchases {
			created.Purchases = append(created.Purchases, script.Purchase(p))
		}
	}
	return created, batch.Err()
}

// Customers is a join, because upper knows no associations.
func (t tx) Customers(ctx context.Context, prefix string) (customers []script.Customer, err error) {
	var list []bought
	err = t.sql(ctx).Select("c.id", "c.name", "p.id AS purchase_id", "p.item").From("customer AS c").
		LeftJoin("purchase AS p").On("p.customer_id = c.id").
		Where("c.name LIKE ?", prefix+"%").OrderBy("c.name", "p.item").All(&list)
	for _, b := range list {
		if len(customers) == 0 || customers[len(customers)-1].ID != b.ID {
			customers = append(customers, script.Customer{ID: b.ID, Name: b.Name})
		}
		if b.PurchaseID != nil {
			c := &customers[len(customers)-1]
			c.Purchases = append(c.Purchases, script.Purchase{ID: *b.PurchaseID, CustomerID: b.ID, Item: *b.Item})
		}
	}
	return customers, err
}

// InsertStock is a batch that has room for all: with less of it another goroutine would
// have to fill it, and upper leaves that one behind if an INSERT fails.
func (t tx) InsertStock(ctx context.Context, list []script.Stock) error {
	batch := t.sql(ctx).InsertInto("stock").Columns("sku", "quantity").Batch(len(list))
	for _, s := range list {
		batch.Values(s.SKU, s.Quantity)
	}
	batch.Done()
	return batch.Wait()
}

// UpsertStock is SQL, because upper has no ON CONFLICT. Its cache of statements would
// take an amended INSERT for one that is not amended.
func (t tx) UpsertStock(ctx context.Context, list []script.Stock) error {
	var args []any
	for _, s := range list {
		args = append(args, s.SKU, s.Quantity)
	}
	_, err := t.sess.SQL().ExecContext(ctx, "INSERT INTO stock (sku, quantity) VALUES (?, ?)"+strings.Repeat(", (?, ?)", len(list)-1)+
		" ON CONFLICT (sku) DO UPDATE SET quantity = stock.quantity + excluded.quantity", args...)
	return err
}

// Nested sets a savepoint by hand: a transaction within one would be upper's second
// one, on another connection.
func (t tx) Nested(ctx context.Context, work func(ctx context.Context, tx script.Tx) error) error {
	return plain.Nested(ctx, t.sess.Driver().(*sql.Tx), t.savepoints, func(ctx context.Context) error { return work(ctx, t) })
}

func (t tx) RawExec(ctx context.Context, prefix string, quantity int64) (int64, error) {
	result, err := t.sess.SQL().ExecContext(ctx, "UPDATE stock SET quantity = quantity + ? WHERE sku LIKE ?", quantity, prefix+"%")
	if err != nil {
		return 0, err
	}
	return result.RowsAffected()
}

func (t tx) RawQuery(ctx context.Context, prefix string) ([]script.Stock, error) {
	var list []stock
	err := t.sess.SQL().IteratorContext(ctx, "SELECT sku, quantity FROM stock WHERE sku LIKE ? ORDER BY sku", prefix+"%").All(&list)
	return plainStock(list), err
}

// Prepared is a statement of database/sql, which upper prepares.
func (t tx) Prepared(ctx context.Context, skus ...string) (quantities []int64, err error) {
	stmt, err := t.sess.SQL().Select("quantity").From("stock").Where("sku = ?", "").PrepareContext(ctx)
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

// Stream is a collection's result, read by Next.
func (t tx) Stream(ctx context.Context, prefix string, each func(script.Stock) error) (err error) {
	result := t.sess.WithContext(ctx).Collection("stock").Find(db.Cond{"sku LIKE": prefix + "%"}).OrderBy("sku")
	defer func() { err = errors.Join(err, result.Close()) }()
	for s := (stock{}); result.Next(&s); {
		if err := each(script.Stock{SKU: s.SKU, Quantity: s.Quantity}); err != nil {
			return err
		}
	}
	return result.Err()
}

func (t tx) InsertSample(ctx context.Context, s script.Sample) error {
	_, err := t.sess.WithContext(ctx).Collection("sample").Insert(sample{
		s.ID, s.Small, s.Float, s.Amount, s.Flag, s.Label, s.Raw, s.At, s.Doc, postgresql.StringArray(s.Tags), s.Note,
	})
	return err
}

func (t tx) LoadSample(ctx context.Context, id int64) (script.Sample, error) {
	var s sample
	err := t.sess.WithContext(ctx).Collection("sample").Find(id).One(&s)
	return script.Sample{
		ID: s.ID, Small: s.Small, Float: s.Float, Amount: s.Amount, Flag: s.Flag, Label: s.Label,
		Raw: s.Raw, At: s.At, Doc: s.Doc, Tags: []string(s.Tags), Note: s.Note,
	}, err
}

func (t tx) Rows(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	return t.sess.SQL().QueryContext(ctx, query, args...)
}

func (t tx) Hooked(ctx context.Context, s script.Stock) (noted []string, err error) {
	err = t.sess.WithContext(ctx).Save(&stock{SKU: s.SKU, Quantity: s.Quantity, noted: &noted})
	return noted, err
}
