// Package sqlboiler is an application with the models that sqlboiler generates from the
// tables of a database.
package sqlboiler

import (
	"context"
	"database/sql"
	"errors"

	"github.com/aarondl/null/v8"
	"github.com/aarondl/sqlboiler/v4/boil"
	"github.com/aarondl/sqlboiler/v4/queries"
	"github.com/aarondl/sqlboiler/v4/queries/qm"
	"github.com/aarondl/sqlboiler/v4/types"

	"github.com/pgretry/pgretry/compat/plain"
	"github.com/pgretry/pgretry/compat/script"
	"github.com/pgretry/pgretry/compat/sqlboiler/models"
)

//go:generate go run generate.go

var _ script.App = (*App)(nil)

// App is the application.
type App struct{ db *sql.DB }

// Open opens it.
func Open(_ context.Context, driverName, dsn string) (script.App, error) {
	db, err := sql.Open(driverName, dsn)
	return &App{db}, err
}

// DB is the database.
func (a *App) DB() *sql.DB { return a.db }

// Close closes the database.
func (a *App) Close() error { return a.db.Close() }

// Migrate makes the tables that the models were generated from: sqlboiler makes none.
func (a *App) Migrate(ctx context.Context) error {
	for _, table := range script.Tables {
		if _, err := queries.Raw(table).ExecContext(ctx, a.db); err != nil {
			return err
		}
	}
	return nil
}

// Transact gives a transaction of database/sql to the models. boil.BeginTx does the same
// with a database that is global.
func (a *App) Transact(ctx context.Context, work func(ctx context.Context, tx script.Tx) error) error {
	tx, err := a.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if err := work(ctx, Tx{tx, new(int)}); err != nil {
		return err
	}
	return tx.Commit()
}

// Lone gives the database to the models.
func (a *App) Lone() script.Tx { return Tx{a.db, new(int)} }

// IsDuplicate looks for the driver's error in the one that sqlboiler wraps around it.
func (a *App) IsDuplicate(err error) bool { return plain.IsDuplicate(err) }

// Handle is what the models need, and what else is done by hand.
type Handle interface {
	boil.ContextExecutor
	PrepareContext(ctx context.Context, query string) (*sql.Stmt, error)
}

// Tx is a transaction, or the database.
type Tx struct {
	handle     Handle
	savepoints *int
}

var _ script.Tx = Tx{}

// Pay is a raw query: an update of a model sets a value that was read before.
func (t Tx) Pay(ctx context.Context, account, amount int64) error {
	_, err := queries.Raw(`UPDATE account SET balance = balance + $1 WHERE id = $2`, amount, account).ExecContext(ctx, t.handle)
	return err
}

// Lock has the query modifier For.
func (t Tx) Lock(ctx context.Context, account int64) (int64, error) {
	a, err := models.Accounts(models.AccountWhere.ID.EQ(account), qm.For("UPDATE")).One(ctx, t.handle)
	if err != nil {
		return 0, err
	}
	return a.Balance, nil
}

// CreateCustomer inserts a model, into which sqlboiler puts the id.
func (t Tx) CreateCustomer(ctx context.Context, name string) (int64, error) {
	c := models.Customer{Name: name}
	err := c.Insert(ctx, t.handle, boil.Infer())
	return c.ID, err
}

// CreatePurchase does, too.
func (t Tx) CreatePurchase(ctx context.Context, customer int64, item string) (int64, error) {
	p := models.Purchase{CustomerID: customer, Item: item}
	err := p.Insert(ctx, t.handle, boil.Infer())
	return p.ID, err
}

// CreateWithPurchases inserts the customer and adds the purchases to it, which sqlboiler
// inserts one after the other.
func (t Tx) CreateWithPurchases(ctx context.Context, name string, items ...string) (script.Customer, error) {
	c := models.Customer{Name: name}
	if err := c.Insert(ctx, t.handle, boil.Infer()); err != nil {
		return script.Customer{}, err
	}
	var purchases []*models.Purchase
	for _, item := range items {
		purchases = append(purchases, &models.Purchase{Item: item})
	}
	if err := c.AddPurchases(ctx, t.handle, true, purchases...); err != nil {
		return script.Customer{}, err
	}
	return customer(&c), nil
}

// Customers loads the purchases eagerly, with a query of their own.
func (t Tx) Customers(ctx context.Context, prefix string) (list []script.Customer, err error) {
	customers, err := models.Customers(
		models.CustomerWhere.Name.LIKE(prefix+"%"),
		qm.OrderBy(models.CustomerColumns.Name),
		qm.Load(models.CustomerRels.Purchases, qm.OrderBy(models.PurchaseColumns.Item)),
	).All(ctx, t.handle)
	for _, c := range customers {
		list = append(list, customer(c))
	}
	return list, err
}

// customer turns a model and what was loaded with it into the script's.
func customer(c *models.Customer) script.Customer {
	out := script.Customer{ID: c.ID, Name: c.Name}
	for _, p := range c.R.GetPurchases() {
		out.Purchases = append(out.Purchases, script.Purchase{ID: p.ID, CustomerID: p.CustomerID, Item: p.Item})
	}
	return out
}

// InsertStock is a raw query that inserts arrays: sqlboiler inserts one model at a time.
func (t Tx) InsertStock(ctx context.Context, stock []script.Stock) error {
	var skus types.StringArray
	var quantities types.Int64Array
	for _, s := range stock {
		skus, quantities = append(skus, s.SKU), append(quantities, s.Quantity)
	}
	_, err := queries.Raw(`INSERT INTO stock (sku, quantity) SELECT unnest($1::text[]), unnest($2::bigint[])`, skus, quantities).
		ExecContext(ctx, t.handle)
	return err
}

// UpsertStock upserts one model after the other, as sqlboiler has it.
func (t Tx) UpsertStock(ctx context.Context, stock []script.Stock) error {
	for _, s := range stock {
		m := models.Stock{Sku: s.SKU, Quantity: s.Quantity}
		if err := m.Upsert(ctx, t.handle, true, []string{models.StockColumns.Sku},
			boil.Whitelist(models.StockColumns.Quantity), boil.Infer(),
			models.UpsertUpdateSet(`quantity = stock.quantity + excluded.quantity`)); err != nil {
			return err
		}
	}
	return nil
}

// Nested sets a savepoint by hand.
func (t Tx) Nested(ctx context.Context, work func(ctx context.Context, tx script.Tx) error) error {
	return plain.Nested(ctx, t.handle, t.savepoints, func(ctx context.Context) error { return work(ctx, t) })
}

// RawExec is a raw query.
func (t Tx) RawExec(ctx context.Context, prefix string, quantity int64) (int64, error) {
	result, err := queries.Raw(`UPDATE stock SET quantity = quantity + $1 WHERE sku LIKE $2`, quantity, prefix+"%").ExecContext(ctx, t.handle)
	if err != nil {
		return 0, err
	}
	return result.RowsAffected()
}

// RawQuery is one that sqlboiler binds to models.
func (t Tx) RawQuery(ctx context.Context, prefix string) (list []script.Stock, err error) {
	var rows models.StockSlice
	err = queries.Raw(`SELECT * FROM stock WHERE sku LIKE $1 ORDER BY sku`, prefix+"%").Bind(ctx, t.handle, &rows)
	for _, row := range rows {
		list = append(list, script.Stock{SKU: row.Sku, Quantity: row.Quantity})
	}
	return list, err
}

// Prepared prepares by hand: sqlboiler prepares nothing.
func (t Tx) Prepared(ctx context.Context, skus ...string) (quantities []int64, err error) {
	stmt, err := t.handle.PrepareContext(ctx, `SELECT quantity FROM stock WHERE sku = $1`)
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

// Stream binds the rows of a query of models one by one.
func (t Tx) Stream(ctx context.Context, prefix string, each func(script.Stock) error) (err error) {
	rows, err := models.Stocks(models.StockWhere.Sku.LIKE(prefix+"%"), qm.OrderBy(models.StockColumns.Sku)).QueryContext(ctx, t.handle)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for {
		var row models.Stock
		if err := queries.Bind(rows, &row); errors.Is(err, sql.ErrNoRows) {
			return rows.Err()
		} else if err != nil {
			return err
		}
		if err := each(script.Stock{SKU: row.Sku, Quantity: row.Quantity}); err != nil {
			return err
		}
	}
}

// InsertSample is raw: sqlboiler's type for numbers hides one behind a pointer, which with
// pgx inside, that is given it as it is, cannot be copied for a replay.
func (t Tx) InsertSample(ctx context.Context, s script.Sample) error {
	_, err := queries.Raw(`INSERT INTO sample (id, small, float, amount, flag, label, raw, at, doc, tags, note)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)`,
		s.ID, s.Small, s.Float, s.Amount, s.Flag, s.Label, s.Raw, s.At, types.JSON(s.Doc), types.StringArray(s.Tags),
		null.StringFromPtr(s.Note)).ExecContext(ctx, t.handle)
	return err
}

// LoadSample finds it by its key.
func (t Tx) LoadSample(ctx context.Context, id int64) (script.Sample, error) {
	row, err := models.FindSample(ctx, t.handle, id)
	if err != nil {
		return script.Sample{}, err
	}
	return script.Sample{
		ID: row.ID, Small: row.Small, Float: row.Float, Amount: row.Amount.String(), Flag: row.Flag, Label: row.Label, Raw: row.Raw,
		At: row.At, Doc: string(row.Doc), Tags: []string(row.Tags), Note: row.Note.Ptr(),
	}, nil
}

// Rows is a raw query.
func (t Tx) Rows(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	return queries.Raw(query, args...).QueryContext(ctx, t.handle)
}

// notes is the key of a context's notes of hooks.
type notes struct{}

// Hooks belong to a model, for all of the program.
func init() {
	for name, point := range map[string]boil.HookPoint{"before": boil.BeforeInsertHook, "after": boil.AfterInsertHook} {
		models.AddStockHook(point, func(ctx context.Context, _ boil.ContextExecutor, s *models.Stock) error {
			if noted, ok := ctx.Value(notes{}).(*[]string); ok {
				*noted = append(*noted, name+" "+s.Sku)
			}
			return nil
		})
	}
}

// Hooked inserts a model between two hooks.
func (t Tx) Hooked(ctx context.Context, stock script.Stock) (noted []string, err error) {
	row := models.Stock{Sku: stock.SKU, Quantity: stock.Quantity}
	err = row.Insert(context.WithValue(ctx, notes{}, &noted), t.handle, boil.Infer())
	return noted, err
}
