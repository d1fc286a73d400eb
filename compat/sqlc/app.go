// Package sqlc is an application with the code that sqlc generates from the tables in the
// folder schema and from query.sql, with statements that it prepares and without.
package sqlc

import (
	"context"
	"database/sql"
	"embed"
	"encoding/json"
	"errors"
	"io/fs"
	"sync"

	"github.com/pgretry/pgretry/compat/plain"
	"github.com/pgretry/pgretry/compat/script"
	"github.com/pgretry/pgretry/compat/sqlc/store"
)

//go:generate go run github.com/sqlc-dev/sqlc/cmd/sqlc@v1.31.1 generate

//go:embed schema
var schema embed.FS

var _ script.App = (*App)(nil)

// App is the application.
type App struct {
	db *sql.DB

	mu      sync.Mutex // protects what follows
	queries *store.Queries
	prepare bool // the generated Prepare is still to be called
}

// Open opens it with the generated New: statements are sent as texts.
func Open(_ context.Context, driverName, dsn string) (script.App, error) {
	db, err := sql.Open(driverName, dsn)
	return &App{db: db, queries: store.New(db)}, err
}

// OpenPrepared opens it with the generated Prepare for transactions: each statement is
// prepared for the database once, when there are tables, and used with Tx.StmtContext.
func OpenPrepared(_ context.Context, driverName, dsn string) (script.App, error) {
	db, err := sql.Open(driverName, dsn)
	return &App{db: db, queries: store.New(db), prepare: true}, err
}

// DB is the database.
func (a *App) DB() *sql.DB { return a.db }

// Close closes the prepared statements and the database.
func (a *App) Close() error { return errors.Join(a.queries.Close(), a.db.Close()) }

// Migrate makes the tables by the schema that sqlc has read, for it has no migrations.
func (a *App) Migrate(ctx context.Context) error {
	files, err := fs.Glob(schema, "schema/*.sql")
	if err != nil {
		return err
	}
	for _, file := range files {
		text, err := fs.ReadFile(schema, file)
		if err != nil {
			return err
		}
		if _, err := a.db.ExecContext(ctx, string(text)); err != nil {
			return err
		}
	}
	return nil
}

// statements returns the generated methods, prepared if they are to be.
func (a *App) statements(ctx context.Context) (*store.Queries, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.prepare {
		queries, err := store.Prepare(ctx, a.db)
		if err != nil {
			return nil, err
		}
		a.queries, a.prepare = queries, false
	}
	return a.queries, nil
}

// Transact is what sqlc's documentation writes, with the generated WithTx.
func (a *App) Transact(ctx context.Context, work func(ctx context.Context, tx script.Tx) error) error {
	queries, err := a.statements(ctx)
	if err != nil {
		return err
	}
	tx, err := a.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if err := work(ctx, Tx{tx, queries.WithTx(tx), new(int)}); err != nil {
		return err
	}
	return tx.Commit()
}

// Lone is the database outside transactions, with the generated New.
func (a *App) Lone() script.Tx { return Tx{a.db, store.New(a.db), new(int)} }

// IsDuplicate looks into the driver's error, which the generated code hands on.
func (a *App) IsDuplicate(err error) bool { return plain.IsDuplicate(err) }

// Tx is a transaction, or the database.
type Tx struct {
	handle     store.DBTX
	queries    *store.Queries
	savepoints *int
}

var _ script.Tx = Tx{}

// Pay is an :exec.
func (t Tx) Pay(ctx context.Context, account, amount int64) error {
	return t.queries.Pay(ctx, store.PayParams{Amount: amount, Account: account})
}

// Lock is a :one with FOR UPDATE.
func (t Tx) Lock(ctx context.Context, account int64) (balance int64, err error) {
	return t.queries.LockBalance(ctx, account)
}

// CreateCustomer is a :one that inserts RETURNING *.
func (t Tx) CreateCustomer(ctx context.Context, name string) (id int64, err error) {
	c, err := t.queries.CreateCustomer(ctx, name)
	return c.ID, err
}

// CreatePurchase is another one.
func (t Tx) CreatePurchase(ctx context.Context, customer int64, item string) (id int64, err error) {
	p, err := t.queries.CreatePurchase(ctx, store.CreatePurchaseParams{CustomerID: customer, Item: item})
	return p.ID, err
}

// CreateWithPurchases inserts the customer and then all that it has bought, as an array:
// sqlc has no associations.
func (t Tx) CreateWithPurchases(ctx context.Context, name string, items ...string) (script.Customer, error) {
	created, err := t.queries.CreateCustomer(ctx, name)
	if err != nil {
		return script.Customer{}, err
	}
	c := script.Customer{ID: created.ID, Name: created.Name}
	if len(items) == 0 {
		return c, nil
	}
	purchases, err := t.queries.CreatePurchases(ctx, store.CreatePurchasesParams{CustomerID: c.ID, Items: items})
	for _, p := range purchases {
		c.Purchases = append(c.Purchases, script.Purchase(p))
	}
	return c, err
}

// Customers reads the customers and then what all of them have bought.
func (t Tx) Customers(ctx context.Context, prefix string) ([]script.Customer, error) {
	customers, err := t.queries.ListCustomers(ctx, prefix)
	if err != nil {
		return nil, err
	}
	ids := make([]int64, len(customers))
	for i, c := range customers {
		ids[i] = c.ID
	}
	purchases, err := t.queries.ListPurchases(ctx, ids)
	if err != nil {
		return nil, err
	}
	of := make(map[int64][]script.Purchase)
	for _, p := range purchases {
		of[p.CustomerID] = append(of[p.CustomerID], script.Purchase(p))
	}
	var list []script.Customer
	for _, c := range customers {
		list = append(list, script.Customer{ID: c.ID, Name: c.Name, Purchases: of[c.ID]})
	}
	return list, nil
}

// columns turns rows into arrays, one of each column.
func columns(stock []script.Stock) (skus []string, quantities []int64) {
	for _, s := range stock {
		skus, quantities = append(skus, s.SKU), append(quantities, s.Quantity)
	}
	return skus, quantities
}

// InsertStock inserts arrays by unnest, for sqlc's :copyfrom and :batchexec are for pgx alone.
func (t Tx) InsertStock(ctx context.Context, stock []script.Stock) error {
	skus, quantities := columns(stock)
	return t.queries.InsertStock(ctx, store.InsertStockParams{Skus: skus, Quantities: quantities})
}

// UpsertStock does, with ON CONFLICT.
func (t Tx) UpsertStock(ctx context.Context, stock []script.Stock) error {
	skus, quantities := columns(stock)
	return t.queries.UpsertStock(ctx, store.UpsertStockParams{Skus: skus, Quantities: quantities})
}

// Nested sets a savepoint by hand.
func (t Tx) Nested(ctx context.Context, work func(ctx context.Context, tx script.Tx) error) error {
	return plain.Nested(ctx, t.handle, t.savepoints, func(ctx context.Context) error { return work(ctx, t) })
}

// RawExec is an :execrows: all that sqlc knows is SQL text.
func (t Tx) RawExec(ctx context.Context, prefix string, quantity int64) (int64, error) {
	return t.queries.AddToStock(ctx, store.AddToStockParams{Quantity: quantity, Prefix: prefix})
}

// RawQuery is a :many.
func (t Tx) RawQuery(ctx context.Context, prefix string) (list []script.Stock, err error) {
	rows, err := t.queries.ListStock(ctx, prefix)
	for _, row := range rows {
		list = append(list, script.Stock{SKU: row.Sku, Quantity: row.Quantity})
	}
	return list, err
}

// Prepared calls the generated method, which executes what the generated Prepare has
// prepared, in a transaction by Tx.StmtContext. With the generated New nothing is prepared.
func (t Tx) Prepared(ctx context.Context, skus ...string) (quantities []int64, err error) {
	for _, sku := range skus {
		quantity, err := t.queries.Quantity(ctx, sku)
		if err != nil {
			return nil, err
		}
		quantities = append(quantities, quantity)
	}
	return quantities, nil
}

// Stream leaves sqlc, whose :many reads all rows before it returns.
func (t Tx) Stream(ctx context.Context, prefix string, each func(script.Stock) error) (err error) {
	rows, err := t.handle.QueryContext(ctx, `SELECT sku, quantity FROM stock WHERE sku LIKE $1 ORDER BY sku`, prefix+"%")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var row store.Stock
		if err := rows.Scan(&row.Sku, &row.Quantity); err != nil {
			return err
		}
		if err := each(script.Stock{SKU: row.Sku, Quantity: row.Quantity}); err != nil {
			return err
		}
	}
	return rows.Err()
}

// InsertSample inserts a value of each type that sqlc has chosen.
func (t Tx) InsertSample(ctx context.Context, s script.Sample) error {
	note := sql.NullString{Valid: s.Note != nil}
	if note.Valid {
		note.String = *s.Note
	}
	return t.queries.InsertSample(ctx, store.InsertSampleParams{
		ID: s.ID, Small: s.Small, Float: s.Float, Amount: s.Amount, Flag: s.Flag, Label: s.Label, Raw: s.Raw,
		At: s.At, Doc: json.RawMessage(s.Doc), Tags: s.Tags, Note: note,
	})
}

// LoadSample reads it.
func (t Tx) LoadSample(ctx context.Context, id int64) (script.Sample, error) {
	row, err := t.queries.LoadSample(ctx, id)
	s := script.Sample{
		ID: row.ID, Small: row.Small, Float: row.Float, Amount: row.Amount, Flag: row.Flag, Label: row.Label, Raw: row.Raw,
		At: row.At, Doc: string(row.Doc), Tags: row.Tags,
	}
	if row.Note.Valid {
		s.Note = &row.Note.String
	}
	return s, err
}

// Rows leaves sqlc, which has queries only that it has generated code for.
func (t Tx) Rows(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	return t.handle.QueryContext(ctx, query, args...)
}

// Hooked does nothing: sqlc has no hooks.
func (t Tx) Hooked(context.Context, script.Stock) ([]string, error) { return nil, script.ErrNone }
