package compat

import (
	"context"
	"database/sql"
	"errors"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
	"github.com/uptrace/bun"
	"github.com/uptrace/bun/dialect/pgdialect"
	"gorm.io/driver/postgres"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/pgretry/pgretry"
	"github.com/pgretry/pgretry/internal/pgserver/pgtest"
)

// Account is the table of every library here.
type Account struct {
	bun.BaseModel `bun:"table:account" gorm:"-" db:"-"`

	ID      int `gorm:"primaryKey" bun:",pk" db:"id"`
	Balance int `db:"balance"`
}

// TableName is for gorm.
func (Account) TableName() string { return "account" }

// A library opens the database under a driver's name and hands back how it makes the
// table, inserts an account and does a transfer in a transaction helper of its own.
type library struct {
	open func(t *testing.T, driverName, dsn string) opened
}

type opened struct {
	migrate  func(ctx context.Context) error
	transfer func(ctx context.Context, from, to int, locked func()) error
	insert   func(ctx context.Context, id int) error
	// insertTwice inserts an account and, in a nested transaction, once more; that
	// this fails it only notes in inner. It is nil where a library has none.
	insertTwice func(ctx context.Context, id int, inner *error) error
	// duplicate says whether an error is the library's word for a duplicate key.
	duplicate func(error) bool
	db        *sql.DB
}

var libraries = map[string]library{
	"gorm": {openGorm},
	"sqlx": {openSqlx},
	"bun":  {openBun},
}

func openGorm(t *testing.T, driverName, dsn string) opened {
	t.Helper()
	db, err := gorm.Open(postgres.New(postgres.Config{DriverName: driverName, DSN: dsn}),
		&gorm.Config{Logger: logger.Discard, TranslateError: true})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := db.DB()
	if err != nil {
		t.Fatal(err)
	}
	return opened{
		db:      raw,
		migrate: func(ctx context.Context) error { return db.WithContext(ctx).AutoMigrate(&Account{}) },
		insertTwice: func(ctx context.Context, id int, inner *error) error {
			return db.WithContext(ctx).Transaction(func(tx *gorm.DB) error {
				if err := tx.Create(&Account{ID: id}).Error; err != nil {
					return err
				}
				*inner = tx.Transaction(func(nested *gorm.DB) error { return nested.Create(&Account{ID: id}).Error })
				return tx.Model(&Account{}).Where("id = ?", id).Update("balance", 7).Error
			})
		},
		transfer: func(ctx context.Context, from, to int, locked func()) error {
			return db.WithContext(ctx).Transaction(func(tx *gorm.DB) error {
				if err := tx.Model(&Account{}).Where("id = ?", from).Update("balance", gorm.Expr("balance - 1")).Error; err != nil {
					return err
				}
				// A nested transaction is a savepoint; what fails in it is undone.
				business := errors.New("no")
				if err := tx.Transaction(func(nested *gorm.DB) error {
					if err := nested.Model(&Account{}).Where("id = ?", from).Update("balance", 0).Error; err != nil {
						return err
					}
					return business
				}); !errors.Is(err, business) {
					return err
				}
				locked()
				return tx.Model(&Account{}).Where("id = ?", to).Update("balance", gorm.Expr("balance + 1")).Error
			})
		},
		insert:    func(ctx context.Context, id int) error { return db.WithContext(ctx).Create(&Account{ID: id}).Error },
		duplicate: func(err error) bool { return errors.Is(err, gorm.ErrDuplicatedKey) },
	}
}

func openSqlx(t *testing.T, driverName, dsn string) opened {
	t.Helper()
	sqlx.BindDriver(pgretry.DriverName, sqlx.DOLLAR)
	db, err := sqlx.Open(driverName, dsn)
	if err != nil {
		t.Fatal(err)
	}
	return opened{
		db: db.DB,
		migrate: func(ctx context.Context) error {
			_, err := db.ExecContext(ctx, `CREATE TABLE IF NOT EXISTS account (id int PRIMARY KEY, balance int NOT NULL)`)
			return err
		},
		transfer: func(ctx context.Context, from, to int, locked func()) error {
			tx, err := db.BeginTxx(ctx, nil)
			if err != nil {
				return err
			}
			defer tx.Rollback()
			if _, err := tx.ExecContext(ctx, tx.Rebind(`UPDATE account SET balance = balance - 1 WHERE id = ?`), from); err != nil {
				return err
			}
			locked()
			if _, err := tx.NamedExecContext(ctx, `UPDATE account SET balance = balance + 1 WHERE id = :id`, Account{ID: to}); err != nil {
				return err
			}
			return tx.Commit()
		},
		insert: func(ctx context.Context, id int) error {
			_, err := db.NamedExecContext(ctx, `INSERT INTO account VALUES (:id, :balance)`, Account{ID: id})
			return err
		},
		duplicate: isDuplicate,
	}
}

func openBun(t *testing.T, driverName, dsn string) opened {
	t.Helper()
	raw, err := sql.Open(driverName, dsn)
	if err != nil {
		t.Fatal(err)
	}
	db := bun.NewDB(raw, pgdialect.New())
	return opened{
		db: raw,
		migrate: func(ctx context.Context) error {
			_, err := db.NewCreateTable().Model((*Account)(nil)).IfNotExists().Exec(ctx)
			return err
		},
		insertTwice: func(ctx context.Context, id int, inner *error) error {
			return db.RunInTx(ctx, nil, func(ctx context.Context, tx bun.Tx) error {
				if _, err := tx.NewInsert().Model(&Account{ID: id}).Exec(ctx); err != nil {
					return err
				}
				*inner = tx.RunInTx(ctx, nil, func(ctx context.Context, nested bun.Tx) error {
					_, err := nested.NewInsert().Model(&Account{ID: id}).Exec(ctx)
					return err
				})
				_, err := tx.NewUpdate().Model((*Account)(nil)).Set("balance = 7").Where("id = ?", id).Exec(ctx)
				return err
			})
		},
		transfer: func(ctx context.Context, from, to int, locked func()) error {
			return db.RunInTx(ctx, nil, func(ctx context.Context, tx bun.Tx) error {
				if _, err := tx.NewUpdate().Model((*Account)(nil)).Set("balance = balance - 1").Where("id = ?", from).Exec(ctx); err != nil {
					return err
				}
				locked()
				_, err := tx.NewUpdate().Model((*Account)(nil)).Set("balance = balance + 1").Where("id = ?", to).Exec(ctx)
				return err
			})
		},
		insert: func(ctx context.Context, id int) error {
			_, err := db.NewInsert().Model(&Account{ID: id}).Exec(ctx)
			return err
		},
		duplicate: isDuplicate,
	}
}

func isDuplicate(err error) bool {
	var pqErr *pq.Error
	var pgErr *pgconn.PgError
	return errors.As(err, &pqErr) && pqErr.Code == "23505" || errors.As(err, &pgErr) && pgErr.Code == "23505"
}

// use opens a library with the accounts there.
func (l library) use(t *testing.T, driverName string) opened {
	t.Helper()
	o := l.open(t, driverName, pgtest.DSN(t))
	t.Cleanup(func() {
		if err := o.db.Close(); err != nil {
			t.Error(err)
		}
	})
	// Twice, because the second time a library reads what is there.
	for range 2 {
		if err := o.migrate(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range []int{1, 2} {
		if err := o.insert(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	return o
}

func (o opened) balances(t *testing.T) (balances [2]int) {
	t.Helper()
	for i := range balances {
		if err := o.db.QueryRow(`SELECT balance FROM account WHERE id = $1`, i+1).Scan(&balances[i]); err != nil {
			t.Fatal(err)
		}
	}
	return balances
}

func TestALibrarysTransactionSurvivesADeadlockInRetry(t *testing.T) {
	for name, l := range libraries {
		t.Run(name, func(t *testing.T) {
			o := l.use(t, pgretry.DriverName)
			errs := collide(t, func(ctx context.Context, from, to int, locked func()) error {
				return pgretry.Retry(ctx, func(ctx context.Context) error { return o.transfer(ctx, from, to, locked) })
			})
			stats, err := pgretry.StatsOf(o.db)
			if errs != [2]error{} || o.balances(t) != [2]int{} || err != nil || stats.RetriesBySQLState["40P01"] == 0 || stats.Closures != 2 {
				t.Errorf("the errors are %v, the balances %v, the stats %+v, %v", errs, o.balances(t), stats, err)
			}
		})
	}
}

// Without us one of the two fails, or the test above proves nothing.
func TestALibrarysTransactionFailsWithLibPQ(t *testing.T) {
	for name, l := range libraries {
		t.Run(name, func(t *testing.T) {
			o := l.use(t, "postgres")
			errs := collide(t, o.transfer)
			failed := 0
			for _, err := range errs {
				var pqErr *pq.Error
				if errors.As(err, &pqErr) && pqErr.Code == "40P01" {
					failed++
				}
			}
			if failed != 1 {
				t.Errorf("the errors are %v, want one deadlock", errs)
			}
		})
	}
}

func TestALibrarysOwnErrorsArriveAsWithLibPQ(t *testing.T) {
	for name, l := range libraries {
		t.Run(name, func(t *testing.T) {
			raw, ours := l.use(t, "postgres").insert(t.Context(), 1), l.use(t, pgretry.DriverName)
			err := ours.insert(t.Context(), 1)
			if err == nil || raw == nil || err.Error() != raw.Error() {
				t.Errorf("a duplicate gives %v, with lib/pq %v", err, raw)
			}
			if !ours.duplicate(err) || !ours.duplicate(raw) {
				t.Errorf("%v is not recognised as a duplicate", err)
			}
		})
	}
}

func TestALibrarysNestedTransactionCanFailAlone(t *testing.T) {
	for name, l := range libraries {
		t.Run(name, func(t *testing.T) {
			o := l.use(t, pgretry.DriverName)
			if o.insertTwice == nil {
				return // sqlx has no nested transactions
			}
			runs := 0
			var inner error
			err := pgretry.Retry(t.Context(), func(ctx context.Context) error {
				runs++
				return o.insertTwice(ctx, 3, &inner)
			})
			if err != nil || !o.duplicate(inner) || runs != 1 {
				t.Errorf("Retry gives %v after %d runs, the nested transaction %v", err, runs, inner)
			}
			var balance int
			if err := o.db.QueryRow(`SELECT balance FROM account WHERE id = 3`).Scan(&balance); err != nil || balance != 7 {
				t.Errorf("the balance is %d, %v", balance, err)
			}
		})
	}
}

func TestRunInTxTakesASqlxDatabase(t *testing.T) {
	o := libraries["sqlx"].use(t, pgretry.DriverName)
	db := sqlx.NewDb(o.db, pgretry.DriverName)
	errs := collide(t, func(ctx context.Context, from, to int, locked func()) error {
		return pgretry.RunInTx(ctx, db, nil, func(ctx context.Context, outer *sql.Tx) error {
			return pgretry.RunInTx(ctx, o.db, nil, func(ctx context.Context, tx *sql.Tx) error {
				if tx != outer {
					t.Error("the same database in another wrapper does not join")
				}
				return moveTogether(ctx, tx, from, to, locked)
			})
		})
	})
	if errs != [2]error{} {
		t.Errorf("the errors are %v", errs)
	}
}
