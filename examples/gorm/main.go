// Gorm shows pgretry under an ORM: gorm's own transactions survive a deadlock though
// nothing but the driver's name is changed.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"sync"

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
	db, err := gorm.Open(postgres.New(postgres.Config{DriverName: pgretry.DriverName, DSN: dsn}), // was: postgres.Open(dsn)
		&gorm.Config{Logger: logger.Default.LogMode(logger.Error)}) // not that a deadlock took long
	if err != nil {
		log.Fatal(err)
	}
	if err := db.AutoMigrate(&Account{}); err != nil {
		log.Fatal(err)
	}
	a, b := Account{Balance: 100}, Account{Balance: 100}
	if err := db.Create([]*Account{&a, &b}).Error; err != nil {
		log.Fatal(err)
	}

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
			if err != nil {
				log.Fatal(err)
			}
			fmt.Println("committed")
		})
	}
	done.Wait()
	if err := db.First(&a, a.ID).Error; err != nil {
		log.Fatal(err)
	}
	fmt.Println("the balance is", a.Balance)
	sqlDB, err := db.DB()
	if err != nil {
		log.Fatal(err)
	}
	stats, err := pgretry.StatsOf(sqlDB)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("deadlocks nobody saw: %d, replays: %d\n", stats.HiddenBySQLState["40P01"], stats.Replays)
}
