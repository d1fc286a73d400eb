// Package plain is an application on database/sql alone, with transactions and
// savepoints by hand. Query builders and migration tools that leave the rest to
// database/sql build on it.
package plain

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/lib/pq"

	"github.com/pgretry/pgretry/compat/script"
)

var _ script.App = (*App)(nil)

// App is the application.
type App struct{ db *sql.DB }

// Open opens it.
func Open(_ context.Context, driverName, dsn string) (script.App, error) {
	return New(driverName, dsn)
}

// New opens it, for applications that are more than this one.
func New(driverName, dsn string) (*App, error) {
	db, err := sql.Open(driverName, dsn)
	return &App{db}, err
}

// DB is the database.
func (a *App) DB() *sql.DB { return a.db }

// Close closes the database.
func (a *App) Close() error { return a.db.Close() }

// Migrate makes the tables one by one.
func (a *App) Migrate(ctx context.Context) error {
	for _, table := range script.Tables {
		if _, err := a.db.ExecContext(ctx, table); err != nil {
			return err
		}
	}
	return nil
}

// Transact is what everybody writes for database/sql.
func (a *App) Transact(ctx context.Context, work func(ctx context.Context, tx script.Tx) error) error {
	tx, err := a.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if err := work(ctx, NewTx(tx)); err != nil {
		return errors.Join(err, ignoreDone(tx.Rollback()))
	}
	return tx.Commit()
}

// ignoreDone is for a transaction that the end of its context has rolled back.
func ignoreDone(err error) error {
	if errors.Is(err, sql.ErrTxDone) {
		return nil
	}
	return err
}

// Lone is the database outside transactions.
func (a *App) Lone() script.Tx { return NewTx(a.db) }

// IsDuplicate looks for the SQLSTATE in the driver's error.
func (a *App) IsDuplicate(err error) bool { return IsDuplicate(err) }

// IsDuplicate says whether it is lib/pq's or pgx's error for a duplicate key.
func IsDuplicate(err error) bool {
	var pqErr *pq.Error
	var pgErr *pgconn.PgError
	return errors.As(err, &pqErr) && pqErr.Code == "23505" || errors.As(err, &pgErr) && pgErr.Code == "23505"
}

// Handle is what *sql.DB, *sql.Tx, *sql.Conn and many libraries' own types have.
type Handle interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
	PrepareContext(ctx context.Context, query string) (*sql.Stmt, error)
}

// Tx is a transaction, or the database.
type Tx struct {
	handle     Handle
	savepoints *int
}

var _ script.Tx = Tx{}

// NewTx returns a transaction on a handle.
func NewTx(handle Handle) Tx { return Tx{handle, new(int)} }

// Pay is one UPDATE.
func (t Tx) Pay(ctx context.Context, account, amount int64) error {
	_, err := t.handle.ExecContext(ctx, `UPDATE account SET balance = balance + $1 WHERE id = $2`, amount, account)
	return err
}

// Lock reads with FOR UPDATE.
func (t Tx) Lock(ctx context.Context, account int64) (balance int64, err error) {
	err = t.handle.QueryRowContext(ctx, `SELECT balance FROM account WHERE id = $1 FOR UPDATE`, account).Scan(&balance)
	return balance, err
}

// CreateCustomer inserts RETURNING id.
func (t Tx) CreateCustomer(ctx context.Context, name string) (id int64, err error) {
	err = t.handle.QueryRowContext(ctx, `INSERT INTO customer (name) VALUES ($1) RETURNING id`, name).Scan(&id)
	return id, err
}

// CreatePurchase inserts RETURNING id.
func (t Tx) CreatePurchase(ctx context.Context, customer int64, item string) (id int64, err error) {
	err = t.handle.QueryRowContext(ctx, `INSERT INTO purchase (customer_id, item) VALUES ($1, $2) RETURNING id`, customer, item).Scan(&id)
	return id, err
}

// CreateWithPurchases inserts one after the other.
func (t Tx) CreateWithPurchases(ctx context.Context, name string, items ...string) (c script.Customer, err error) {
	c.Name = name
	if c.ID, err = t.CreateCustomer(ctx, name); err != nil {
		return c, err
	}
	for _, item := range items {
		id, err := t.CreatePurchase(ctx, c.ID, item)
		if err != nil {
			return c, err
		}
		c.Purchases = append(c.Purchases, script.Purchase{ID: id, CustomerID: c.ID, Item: item})
	}
	return c, nil
}

// Customers joins.
func (t Tx) Customers(ctx context.Context, prefix string) ([]script.Customer, error) {
	rows, err := t.handle.QueryContext(ctx, `SELECT c.id, c.name, p.id, p.item FROM customer c
		LEFT JOIN purchase p ON p.customer_id = c.id WHERE c.name LIKE $1 ORDER BY c.name, p.item`, prefix+"%")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var list []script.Customer
	for rows.Next() {
		var id int64
		var name string
		var purchase sql.Null[int64]
		var item sql.NullString
		if err := rows.Scan(&id, &name, &purchase, &item); err != nil {
			return nil, err
		}
		if len(list) == 0 || list[len(list)-1].ID != id {
			list = append(list, script.Customer{ID: id, Name: name})
		}
		if purchase.Valid {
			c := &list[len(list)-1]
			c.Purchases = append(c.Purchases, script.Purchase{ID: purchase.V, CustomerID: id, Item: item.String})
		}
	}
	return list, rows.Err()
}

// values returns the VALUES of a statement that inserts stock, and its arguments.
func values(stock []script.Stock) (text string, args []any) {
	var rows []string
	for _, s := range stock {
		rows = append(rows, "($"+strconv.Itoa(len(args)+1)+", $"+strconv.Itoa(len(args)+2)+")")
		args = append(args, s.SKU, s.Quantity)
	}
	return `INSERT INTO stock (sku, quantity) VALUES ` + strings.Join(rows, ", "), args
}

// InsertStock is one INSERT of many rows.
func (t Tx) InsertStock(ctx context.Context, stock []script.Stock) error {
	text, args := values(stock)
	_, err := t.handle.ExecContext(ctx, text, args...)
	return err
}

// UpsertStock has ON CONFLICT.
func (t Tx) UpsertStock(ctx context.Context, stock []script.Stock) error {
	text, args := values(stock)
	_, err := t.handle.ExecContext(ctx, text+` ON CONFLICT (sku) DO UPDATE SET quantity = stock.quantity + excluded.quantity`, args...)
	return err
}

// Nested sets a savepoint by hand.
func (t Tx) Nested(ctx context.Context, work func(ctx context.Context, tx script.Tx) error) error {
	return Nested(ctx, t.handle, t.savepoints, func(ctx context.Context) error { return work(ctx, t) })
}

// Nested sets a savepoint by hand, for libraries that know none. It counts them.
func Nested(ctx context.Context, handle interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}, savepoints *int, work func(ctx context.Context) error,
) error {
	*savepoints++
	name := fmt.Sprintf("nested_%d", *savepoints)
	if _, err := handle.ExecContext(ctx, `SAVEPOINT `+name); err != nil {
		return err
	}
	if err := work(ctx); err != nil {
		if _, undo := handle.ExecContext(ctx, `ROLLBACK TO SAVEPOINT `+name); undo != nil {
			return errors.Join(err, undo)
		}
		return err
	}
	_, err := handle.ExecContext(ctx, `RELEASE SAVEPOINT `+name)
	return err
}

// RawExec is an UPDATE.
func (t Tx) RawExec(ctx context.Context, prefix string, quantity int64) (int64, error) {
	result, err := t.handle.ExecContext(ctx, `UPDATE stock SET quantity = quantity + $1 WHERE sku LIKE $2`, quantity, prefix+"%")
	if err != nil {
		return 0, err
	}
	return result.RowsAffected()
}

// RawQuery reads all rows.
func (t Tx) RawQuery(ctx context.Context, prefix string) (list []script.Stock, err error) {
	err = t.Stream(ctx, prefix, func(s script.Stock) error {
		list = append(list, s)
		return nil
	})
	return list, err
}

// Prepared prepares and executes.
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

// Stream reads row by row.
func (t Tx) Stream(ctx context.Context, prefix string, each func(script.Stock) error) (err error) {
	rows, err := t.handle.QueryContext(ctx, `SELECT sku, quantity FROM stock WHERE sku LIKE $1 ORDER BY sku`, prefix+"%")
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

// InsertSample inserts a value of each type.
func (t Tx) InsertSample(ctx context.Context, s script.Sample) error {
	_, err := t.handle.ExecContext(ctx, `INSERT INTO sample (id, small, float, amount, flag, label, raw, at, doc, tags, note)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)`,
		s.ID, s.Small, s.Float, s.Amount, s.Flag, s.Label, s.Raw, s.At, s.Doc, s.Tags, s.Note)
	return err
}

// LoadSample reads it.
func (t Tx) LoadSample(ctx context.Context, id int64) (s script.Sample, err error) {
	err = t.handle.QueryRowContext(ctx, `SELECT id, small, float, amount, flag, label, raw, at, doc, tags, note FROM sample WHERE id = $1`, id).
		Scan(&s.ID, &s.Small, &s.Float, &s.Amount, &s.Flag, &s.Label, &s.Raw, &s.At, &s.Doc, &s.Tags, &s.Note)
	return s, err
}

// Rows queries.
func (t Tx) Rows(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	return t.handle.QueryContext(ctx, query, args...)
}

// Hooked does nothing: database/sql has no hooks.
func (t Tx) Hooked(context.Context, script.Stock) ([]string, error) { return nil, script.ErrNone }
