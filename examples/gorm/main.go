// Gorm shows pgretry under an ORM, with pgx inside, which is what postgres.Open takes:
// gorm's own transactions survive a deadlock though nothing but how it is opened is changed.
package main

import (
	"context"
	"database/sql"
	"fmt"
	"log"
	"os"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"gorm.io/driver/postgres"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/pgretry/pgretry"
)

// Account is a row of the table accounts.
type Account struct {
	ID      uint
	Balance int
}

func main() {
	dsn := os.Getenv("DATABASE_URL")
	if len(os.Args) > 1 {
		dsn = os.Args[1]
	}
	// Who has lib/pq below gorm needs no connector, only DriverName: pgretry.DriverName.
	config, err := pgx.ParseConfig(dsn)
	check(err)
	connector, err := pgretry.NewConnector(stdlib.GetConnector(*config))
	check(err)
	sqlDB := sql.OpenDB(connector)
	db, err := gorm.Open(postgres.New(postgres.Config{Conn: sqlDB}), // was: postgres.Open(dsn)
		&gorm.Config{Logger: logger.Default.LogMode(logger.Error)}) // not that a deadlock took long
	check(err)
	check(db.AutoMigrate(&Account{}))
	a, b := Account{Balance: 100}, Account{Balance: 100}
	check(db.Create([]*Account{&a, &b}).Error)

	// So that they deadlock for sure, neither asks for its second account before
	// both have their first.
	ctx := context.Background()
	var locked, done sync.WaitGroup
	locked.Add(2)
	for _, t := range [][2]uint{{a.ID, b.ID}, {b.ID, a.ID}} {
		done.Go(func() {
			err := db.WithContext(ctx).Transaction(func(tx *gorm.DB) error {
				if err := tx.Model(&Account{}).Where("id = ?", t[0]).Update("balance", gorm.Expr("balance - 1")).Error; err != nil {
					return err
				}
				locked.Done()
				locked.Wait()
				return tx.Model(&Account{}).Where("id = ?", t[1]).Update("balance", gorm.Expr("balance + 1")).Error
			})
			check(err)
			fmt.Println("committed")
		})
	}
	done.Wait()
	check(db.First(&a, a.ID).Error)
	fmt.Println("the balance is", a.Balance)
	stats, err := pgretry.StatsOf(sqlDB)
	check(err)
	fmt.Printf("deadlocks nobody saw: %d, replays: %d\n", stats.HiddenBySQLState["40P01"], stats.Replays)
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
