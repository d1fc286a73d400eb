// Package sqlx is the application written with sqlx.
package sqlx

import (
	"context"
	"database/sql"
	"errors"

	"github.com/jmoiron/sqlx"

	"github.com/pgretry/pgretry/compat/plain"
	"github.com/pgretry/pgretry/compat/script"
)

// App is the application.
type App struct{ db *sqlx.DB }

var _ script.App = (*App)(nil)

// Open opens it. Because sqlx goes by the driver's name, it has to be told once how
// arguments are written.
func Open(_ context.Context, driverName, dsn string) (script.App, error) {
	sqlx.BindDriver(driverName, sqlx.DOLLAR)
	db, err := sqlx.Open(driverName, dsn)
	return &App{db}, err
}

// DB is the database below.
func (a *App) DB() *sql.DB { return a.db.DB }

// Close closes it.
func (a *App) Close() error { return a.db.Close() }

// Migrate executes the schema, as sqlx has no migrations.
func (a *App) Migrate(ctx context.Context) error {
	for _, table := range script.Tables {
		if _, err := a.db.ExecContext(ctx, table); err != nil {
			return err
		}
	}
	return nil
}

// Transact is by hand.
func (a *App) Transact(ctx context.Context, work func(ctx context.Context, tx script.Tx) error) error {
	handle, err := a.db.BeginTxx(ctx, nil)
	if err != nil {
		return err
	}
	if err := work(ctx, tx{handle, new(int)}); err != nil {
		if undo := handle.Rollback(); !errors.Is(undo, sql.ErrTxDone) {
			err = errors.Join(err, undo)
		}
		return err
	}
	return handle.Commit()
}

// Lone is the database.
func (a *App) Lone() script.Tx { return tx{a.db, new(int)} }

// IsDuplicate looks into the driver's error, as sqlx translates none.
func (a *App) IsDuplicate(err error) bool { return plain.IsDuplicate(err) }

// handle is what *sqlx.DB and *sqlx.Tx have.
type handle interface {
	sqlx.ExtContext
	sqlx.PreparerContext
	NamedExecContext(ctx context.Context, query string, arg any) (sql.Result, error)
	PrepareNamedContext(ctx context.Context, query string) (*sqlx.NamedStmt, error)
	PreparexContext(ctx context.Context, query string) (*sqlx.Stmt, error)
	GetContext(ctx context.Context, dest any, query string, args ...any) error
	SelectContext(ctx context.Context, dest any, query string, args ...any) error
}

type tx struct {
	handle
	savepoints *int
}

func (t tx) Pay(ctx context.Context, account, amount int64) error {
	_, err := t.NamedExecContext(ctx, `UPDATE account SET balance = balance + :amount WHERE id = :id`,
		map[string]any{"id": account, "amount": amount})
	return err
}

func (t tx) Lock(ctx context.Context, account int64) (balance int64, err error) {
	err = t.GetContext(ctx, &balance, t.Rebind(`SELECT balance FROM account WHERE id = ? FOR UPDATE`), account)
	return balance, err
}

func (t tx) CreateCustomer(ctx context.Context, name string) (id int64, err error) {
	stmt, err := t.PrepareNamedContext(ctx, `INSERT INTO customer (name) VALUES (:name) RETURNING id`)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, stmt.Close()) }()
	return id, stmt.GetContext(ctx, &id, script.Customer{Name: name})
}

func (t tx) CreatePurchase(ctx context.Context, customer int64, item string) (id int64, err error) {
	err = t.GetContext(ctx, &id, `INSERT INTO purchase (customer_id, item) VALUES ($1, $2) RETURNING id`, customer, item)
	return id, err
}

func (t tx) CreateWithPurchases(ctx context.Context, name string, items ...string) (c script.Customer, err error) {
	c.Name = name
	if c.ID, err = t.CreateCustomer(ctx, name); err != nil || len(items) == 0 {
		return c, err
	}
	rows := make([]map[string]any, len(items))
	for i, item := range items {
		rows[i] = map[string]any{"customer": c.ID, "item": item}
	}
	query, args, err := t.BindNamed(`INSERT INTO purchase (customer_id, item) VALUES (:customer, :item) RETURNING id, customer_id AS customerid, item`, rows)
	if err != nil {
		return c, err
	}
	return c, t.SelectContext(ctx, &c.Purchases, query, args...)
}

// Customers asks for the customers, and for the purchases of all of them by IN.
func (t tx) Customers(ctx context.Context, prefix string) (list []script.Customer, err error) {
	if err := t.SelectContext(ctx, &list, `SELECT id, name FROM customer WHERE name LIKE $1 ORDER BY name`, prefix+"%"); err != nil || len(list) == 0 {
		return nil, err
	}
	var ids []int64
	for _, c := range list {
		ids = append(ids, c.ID)
	}
	query, args, err := sqlx.In(`SELECT id, customer_id AS customerid, item FROM purchase WHERE customer_id IN (?) ORDER BY item`, ids)
	if err != nil {
		return nil, err
	}
	var purchases []script.Purchase
	if err := t.SelectContext(ctx, &purchases, t.Rebind(query), args...); err != nil {
		return nil, err
	}
	for i := range list {
		for _, p := range purchases {
			if p.CustomerID == list[i].ID {
				list[i].Purchases = append(list[i].Purchases, p)
			}
		}
	}
	return list, nil
}

func (t tx) InsertStock(ctx context.Context, stock []script.Stock) error {
	_, err := t.NamedExecContext(ctx, `INSERT INTO stock (sku, quantity) VALUES (:sku, :quantity)`, stock)
	return err
}

func (t tx) UpsertStock(ctx context.Context, stock []script.Stock) error {
	_, err := t.NamedExecContext(ctx, `INSERT INTO stock (sku, quantity) VALUES (:sku, :quantity)
		ON CONFLICT (sku) DO UPDATE SET quantity = stock.quantity + excluded.quantity`, stock)
	return err
}

// Nested is by hand: sqlx has no nested transactions.
func (t tx) Nested(ctx context.Context, work func(ctx context.Context, tx script.Tx) error) error {
	return plain.Nested(ctx, t, t.savepoints, func(ctx context.Context) error { return work(ctx, t) })
}

func (t tx) RawExec(ctx context.Context, prefix string, quantity int64) (int64, error) {
	result, err := t.ExecContext(ctx, t.Rebind(`UPDATE stock SET quantity = quantity + ? WHERE sku LIKE ?`), quantity, prefix+"%")
	if err != nil {
		return 0, err
	}
	return result.RowsAffected()
}

func (t tx) RawQuery(ctx context.Context, prefix string) (list []script.Stock, err error) {
	err = t.SelectContext(ctx, &list, `SELECT sku, quantity FROM stock WHERE sku LIKE $1 ORDER BY sku`, prefix+"%")
	return list, err
}

func (t tx) Prepared(ctx context.Context, skus ...string) (quantities []int64, err error) {
	stmt, err := t.PreparexContext(ctx, `SELECT quantity FROM stock WHERE sku = $1`)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stmt.Close()) }()
	for _, sku := range skus {
		var quantity int64
		if err := stmt.GetContext(ctx, &quantity, sku); err != nil {
			return nil, err
		}
		quantities = append(quantities, quantity)
	}
	return quantities, nil
}

func (t tx) Stream(ctx context.Context, prefix string, each func(script.Stock) error) (err error) {
	rows, err := t.QueryxContext(ctx, `SELECT sku, quantity FROM stock WHERE sku LIKE $1 ORDER BY sku`, prefix+"%")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var s script.Stock
		if err := rows.StructScan(&s); err != nil {
			return err
		}
		if err := each(s); err != nil {
			return err
		}
	}
	return rows.Err()
}

func (t tx) InsertSample(ctx context.Context, s script.Sample) error {
	_, err := t.NamedExecContext(ctx, `INSERT INTO sample (id, small, float, amount, flag, label, raw, at, doc, tags, note)
		VALUES (:id, :small, :float, :amount, :flag, :label, :raw, :at, :doc, :tags, :note)`, s)
	return err
}

func (t tx) LoadSample(ctx context.Context, id int64) (s script.Sample, err error) {
	err = t.GetContext(ctx, &s, `SELECT * FROM sample WHERE id = $1`, id)
	return s, err
}

func (t tx) Rows(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	return t.QueryContext(ctx, query, args...)
}

// Hooked does nothing: sqlx has no hooks.
func (t tx) Hooked(context.Context, script.Stock) ([]string, error) { return nil, script.ErrNone }
