package script

import (
	"context"
	"database/sql"
	"time"

	"github.com/lib/pq"
)

// Open opens an application: the library, on the database that the DSN names, by the
// driver of that name. Nothing but the name tells it which driver that is.
type Open func(ctx context.Context, driverName, dsn string) (App, error)

// App is an application that is written with one library.
type App interface {
	// DB is the database below.
	DB() *sql.DB

	// Migrate makes the tables account, customer, purchase, stock and sample, or finds
	// them, with the library's means of migration where it has one.
	Migrate(ctx context.Context) error

	// Transact does the work in a transaction, with the library's helper where it has
	// one, and returns the work's error as the library returns it.
	Transact(ctx context.Context, work func(ctx context.Context, tx Tx) error) error

	// Lone is what the library does outside a transaction of the application's. It may
	// begin one itself.
	Lone() Tx

	// IsDuplicate says whether an error is the library's word for a duplicate key.
	IsDuplicate(err error) bool

	// Close closes the database and whatever else is open.
	Close() error
}

// Tx is what an application does in a transaction, each in the library's usual manner.
type Tx interface {
	// Pay adds to an account's balance, which locks its row until the end.
	Pay(ctx context.Context, account, amount int64) error

	// Lock reads an account's balance FOR UPDATE.
	Lock(ctx context.Context, account int64) (balance int64, err error)

	// CreateCustomer and CreatePurchase return the id that the database gave.
	CreateCustomer(ctx context.Context, name string) (id int64, err error)
	CreatePurchase(ctx context.Context, customer int64, item string) (id int64, err error)

	// CreateWithPurchases makes a customer and what it has bought, as associations where
	// the library knows any.
	CreateWithPurchases(ctx context.Context, name string, items ...string) (Customer, error)

	// Customers reads the customers whose name begins so, in order of the name, and what
	// they have bought, in order of the item, as associations where there are any.
	Customers(ctx context.Context, prefix string) ([]Customer, error)

	// InsertStock inserts in one batch. UpsertStock does, too, and adds to the quantity
	// of what is there.
	InsertStock(ctx context.Context, stock []Stock) error
	UpsertStock(ctx context.Context, stock []Stock) error

	// Nested does the work in a nested transaction, which is a savepoint, by hand where
	// the library has none. If the work fails it is undone and its error returned; the
	// transaction goes on.
	Nested(ctx context.Context, work func(ctx context.Context, tx Tx) error) error

	// RawExec adds to the quantity of the stock whose SKU begins so, RawQuery reads it in
	// order of the SKU; both as SQL text with arguments. RawExec returns how many it were.
	RawExec(ctx context.Context, prefix string, quantity int64) (affected int64, err error)
	RawQuery(ctx context.Context, prefix string) ([]Stock, error)

	// Prepared reads the quantity of each SKU by a statement that is prepared once, with
	// the library's means where it has any.
	Prepared(ctx context.Context, skus ...string) (quantities []int64, err error)

	// Stream reads the stock whose SKU begins so, in order of the SKU, one row at a time,
	// and stops where each returns an error, which it returns.
	Stream(ctx context.Context, prefix string, each func(Stock) error) error

	// InsertSample and LoadSample write and read a row that has many types.
	InsertSample(ctx context.Context, sample Sample) error
	LoadSample(ctx context.Context, id int64) (Sample, error)

	// Rows are the rows of a query as database/sql has them, through the library.
	Rows(ctx context.Context, query string, args ...any) (*sql.Rows, error)

	// Hooked inserts stock with the library's hooks set, and returns what these noted, or
	// ErrNone where the library has none.
	Hooked(ctx context.Context, stock Stock) (noted []string, err error)
}

// Customer is a row of the table customer, with its purchases.
type Customer struct {
	ID        int64
	Name      string
	Purchases []Purchase
}

// Purchase is a row of the table purchase.
type Purchase struct {
	ID         int64
	CustomerID int64
	Item       string
}

// Stock is a row of the table stock.
type Stock struct {
	SKU      string
	Quantity int64
}

// Sample is a row of the table sample, which has a column of each of many types.
type Sample struct {
	ID     int64
	Small  int16
	Float  float64
	Amount string // numeric
	Flag   bool
	Label  string
	Raw    []byte
	At     time.Time
	Doc    string // jsonb
	Tags   pq.StringArray
	Note   *string
}

// Tables make the application's tables, for libraries that have no migrations. Those that
// have make the same ones, but for details that no test looks at.
var Tables = []string{
	`CREATE TABLE IF NOT EXISTS account (id bigint PRIMARY KEY, balance bigint NOT NULL)`,
	`CREATE TABLE IF NOT EXISTS customer (id bigserial PRIMARY KEY, name text NOT NULL UNIQUE)`,
	`CREATE TABLE IF NOT EXISTS purchase (id bigserial PRIMARY KEY,
		customer_id bigint NOT NULL REFERENCES customer (id), item text NOT NULL)`,
	`CREATE TABLE IF NOT EXISTS stock (sku text PRIMARY KEY, quantity bigint NOT NULL)`,
	SampleTable,
}

// SampleTable makes the one table that few libraries' migrations can make.
const SampleTable = `CREATE TABLE IF NOT EXISTS sample (id bigint PRIMARY KEY, small smallint NOT NULL,
	float double precision NOT NULL, amount numeric(12, 4) NOT NULL, flag boolean NOT NULL,
	label text NOT NULL, raw bytea NOT NULL, at timestamptz NOT NULL, doc jsonb NOT NULL,
	tags text[] NOT NULL, note text)`
