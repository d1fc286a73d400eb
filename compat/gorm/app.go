// Package gorm is the application written with gorm.
package gorm

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/lib/pq"
	"gorm.io/driver/postgres"
	"gorm.io/gorm"
	"gorm.io/gorm/clause"
	"gorm.io/gorm/logger"

	"github.com/pgretry/pgretry/compat/script"
)

type account struct {
	ID      int64 `gorm:"primaryKey;autoIncrement:false"`
	Balance int64 `gorm:"not null"`
}

type customer struct {
	ID        int64
	Name      string     `gorm:"not null;unique"`
	Purchases []purchase `gorm:"foreignKey:CustomerID"`
}

type purchase struct {
	ID         int64
	CustomerID int64  `gorm:"not null"`
	Item       string `gorm:"not null"`
}

type stock struct {
	SKU      string `gorm:"primaryKey;column:sku"`
	Quantity int64  `gorm:"not null"`

	noted *[]string // by the hooks
}

type sample struct {
	ID     int64          `gorm:"primaryKey;autoIncrement:false"`
	Small  int16          `gorm:"type:smallint;not null"`
	Float  float64        `gorm:"type:double precision;not null"`
	Amount string         `gorm:"type:numeric(12,4);not null"`
	Flag   bool           `gorm:"not null"`
	Label  string         `gorm:"not null"`
	Raw    []byte         `gorm:"not null"`
	At     time.Time      `gorm:"not null"`
	Doc    string         `gorm:"type:jsonb;not null"`
	Tags   pq.StringArray `gorm:"type:text[];not null"`
	Note   *string
}

func (account) TableName() string  { return "account" }
func (customer) TableName() string { return "customer" }
func (purchase) TableName() string { return "purchase" }
func (stock) TableName() string    { return "stock" }
func (sample) TableName() string   { return "sample" }

func (s *stock) note(hook string) error {
	if s.noted != nil {
		*s.noted = append(*s.noted, hook+" "+s.SKU)
	}
	return nil
}

// BeforeSave is a hook, as are the others.
func (s *stock) BeforeSave(*gorm.DB) error { return s.note("before save") }

// BeforeCreate comes second.
func (s *stock) BeforeCreate(*gorm.DB) error { return s.note("before create") }

// AfterCreate is called before COMMIT. It reads what was written.
func (s *stock) AfterCreate(db *gorm.DB) error {
	if s.noted == nil {
		return nil
	}
	var found stock
	if err := db.Where("sku = ?", s.SKU).First(&found).Error; err != nil {
		return err
	}
	return found.noteTo(s.noted, "found")
}

// AfterSave comes last.
func (s *stock) AfterSave(*gorm.DB) error { return s.note("after save") }

// AfterFind is called for each row that is read.
func (s *stock) AfterFind(*gorm.DB) error { return s.note("after find") }

func (s *stock) noteTo(noted *[]string, hook string) error {
	s.noted = noted
	return s.note(hook)
}

// App is the application.
type App struct {
	db  *gorm.DB
	raw *sql.DB
}

var _ script.App = (*App)(nil)

// Open opens it.
func Open(ctx context.Context, driverName, dsn string) (script.App, error) {
	return open(ctx, driverName, dsn, gorm.Config{})
}

func open(_ context.Context, driverName, dsn string, config gorm.Config) (script.App, error) {
	return openWith(postgres.New(postgres.Config{DriverName: driverName, DSN: dsn}), config)
}

func openWith(dialector gorm.Dialector, config gorm.Config) (*App, error) {
	config.Logger, config.TranslateError = logger.Discard, true
	db, err := gorm.Open(dialector, &config)
	if err != nil {
		return nil, err
	}
	raw, err := db.DB()
	return &App{db, raw}, err
}

// DB is the database below.
func (a *App) DB() *sql.DB { return a.raw }

// Close closes it, and the statements that gorm keeps.
func (a *App) Close() error {
	if prepared, ok := a.db.ConnPool.(*gorm.PreparedStmtDB); ok {
		prepared.Close()
	}
	return a.raw.Close()
}

// Migrate is AutoMigrate.
func (a *App) Migrate(ctx context.Context) error {
	return a.db.WithContext(ctx).AutoMigrate(&account{}, &customer{}, &purchase{}, &stock{}, &sample{})
}

// Transact is gorm's Transaction.
func (a *App) Transact(ctx context.Context, work func(ctx context.Context, tx script.Tx) error) error {
	return a.db.WithContext(ctx).Transaction(func(db *gorm.DB) error { return work(ctx, tx{db}) })
}

// Lone is the database, on which gorm begins a transaction for each write.
func (a *App) Lone() script.Tx { return tx{a.db} }

// IsDuplicate relies on gorm's translation.
func (a *App) IsDuplicate(err error) bool { return errors.Is(err, gorm.ErrDuplicatedKey) }

type tx struct{ db *gorm.DB }

func (t tx) Pay(ctx context.Context, id, amount int64) error {
	return t.db.WithContext(ctx).Model(&account{ID: id}).
		Update("balance", gorm.Expr("balance + ?", amount)).Error
}

func (t tx) Lock(ctx context.Context, id int64) (int64, error) {
	var a account
	err := t.db.WithContext(ctx).Clauses(clause.Locking{Strength: clause.LockingStrengthUpdate}).First(&a, id).Error
	return a.Balance, err
}

func (t tx) CreateCustomer(ctx context.Context, name string) (int64, error) {
	c := customer{Name: name}
	err := t.db.WithContext(ctx).Create(&c).Error
	return c.ID, err
}

func (t tx) CreatePurchase(ctx context.Context, customer int64, item string) (int64, error) {
	p := purchase{CustomerID: customer, Item: item}
	err := t.db.WithContext(ctx).Create(&p).Error
	return p.ID, err
}

func (t tx) CreateWithPurchases(ctx context.Context, name string, items ...string) (script.Customer, error) {
	c := customer{Name: name}
	for _, item := range items {
		c.Purchases = append(c.Purchases, purchase{Item: item})
	}
	err := t.db.WithContext(ctx).Create(&c).Error
	return c.plain(), err
}

func (t tx) Customers(ctx context.Context, prefix string) (customers []script.Customer, err error) {
	var list []customer
	byItem := func(db *gorm.DB) *gorm.DB { return db.Order("item") }
	err = t.db.WithContext(ctx).Preload("Purchases", byItem).Where("name LIKE ?", prefix+"%").Order("name").Find(&list).Error
	for _, c := range list {
		customers = append(customers, c.plain())
	}
	return customers, err
}

func (c customer) plain() script.Customer {
	plain := script.Customer{ID: c.ID, Name: c.Name}
	for _, p := range c.Purchases {
		plain.Purchases = append(plain.Purchases, script.Purchase(p))
	}
	return plain
}

func rows(list []script.Stock) (rows []stock) {
	for _, s := range list {
		rows = append(rows, stock{SKU: s.SKU, Quantity: s.Quantity})
	}
	return rows
}

func (t tx) InsertStock(ctx context.Context, list []script.Stock) error {
	created := rows(list)
	return t.db.WithContext(ctx).Create(&created).Error
}

func (t tx) UpsertStock(ctx context.Context, list []script.Stock) error {
	created := rows(list)
	return t.db.WithContext(ctx).Clauses(clause.OnConflict{
		Columns:   []clause.Column{{Name: "sku"}},
		DoUpdates: clause.Assignments(map[string]any{"quantity": gorm.Expr("stock.quantity + excluded.quantity")}),
	}).CreateInBatches(&created, 4).Error
}

func (t tx) Nested(ctx context.Context, work func(ctx context.Context, tx script.Tx) error) error {
	return t.db.WithContext(ctx).Transaction(func(db *gorm.DB) error { return work(ctx, tx{db}) })
}

func (t tx) RawExec(ctx context.Context, prefix string, quantity int64) (int64, error) {
	done := t.db.WithContext(ctx).Exec("UPDATE stock SET quantity = quantity + @quantity WHERE sku LIKE @prefix",
		sql.Named("quantity", quantity), sql.Named("prefix", prefix+"%"))
	return done.RowsAffected, done.Error
}

func (t tx) RawQuery(ctx context.Context, prefix string) (list []script.Stock, err error) {
	err = t.db.WithContext(ctx).Raw("SELECT sku, quantity FROM stock WHERE sku LIKE ? ORDER BY sku", prefix+"%").Scan(&list).Error
	return list, err
}

// Prepared has gorm keep the statement, by PrepareStmt of a session.
func (t tx) Prepared(ctx context.Context, skus ...string) (quantities []int64, err error) {
	session := t.db.Session(&gorm.Session{PrepareStmt: true, Context: ctx})
	for _, sku := range skus {
		var s stock
		if err := session.Where("sku = ?", sku).Take(&s).Error; err != nil {
			return nil, err
		}
		quantities = append(quantities, s.Quantity)
	}
	return quantities, nil
}

func (t tx) Stream(ctx context.Context, prefix string, each func(script.Stock) error) (err error) {
	rows, err := t.db.WithContext(ctx).Model(&stock{}).Where("sku LIKE ?", prefix+"%").Order("sku").Rows()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var s stock
		if err := t.db.ScanRows(rows, &s); err != nil {
			return err
		}
		if err := each(script.Stock{SKU: s.SKU, Quantity: s.Quantity}); err != nil {
			return err
		}
	}
	return rows.Err()
}

func (t tx) InsertSample(ctx context.Context, s script.Sample) error {
	row := sample(s)
	return t.db.WithContext(ctx).Create(&row).Error
}

func (t tx) LoadSample(ctx context.Context, id int64) (script.Sample, error) {
	var s sample
	err := t.db.WithContext(ctx).First(&s, id).Error
	return script.Sample(s), err
}

func (t tx) Rows(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	return t.db.WithContext(ctx).Raw(query, args...).Rows()
}

func (t tx) Hooked(ctx context.Context, s script.Stock) (noted []string, err error) {
	err = t.db.WithContext(ctx).Create(&stock{SKU: s.SKU, Quantity: s.Quantity, noted: &noted}).Error
	return noted, err
}
