// Gorm shows pgretry under an ORM: gorm's own transactions survive a deadlock when
// Retry is around them. Nothing else changes but the driver's name.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"sync"

	"gorm.io/driver/postgres"
	"gorm.io/gorm"

	"github.com/pgretry/pgretry"
)

// Account is a row of the table accounts.
type Account struct {
	ID      uint
	Balance int
}

func main() {
	db, err := gorm.Open(postgres.New(postgres.Config{DriverName: pgretry.DriverName, DSN: os.Args[1]}), &gorm.Config{})
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

	ctx := pgretry.ContextWithName(context.Background(), "transfer")
	var both sync.WaitGroup
	for _, t := range [][2]uint{{a.ID, b.ID}, {b.ID, a.ID}} {
		both.Go(func() {
			for range 50 {
				if err := transfer(ctx, db, t[0], t[1]); err != nil {
					log.Fatal(err)
				}
			}
		})
	}
	both.Wait()
	if err := db.Find(&a, a.ID).Error; err != nil {
		log.Fatal(err)
	}
	fmt.Printf("100 transfers committed, the balance is %d\n", a.Balance)
}

func transfer(ctx context.Context, db *gorm.DB, from, to uint) error {
	return pgretry.Retry(ctx, func(ctx context.Context) error {
		return db.WithContext(ctx).Transaction(func(tx *gorm.DB) error {
			if err := tx.Model(&Account{}).Where("id = ?", from).Update("balance", gorm.Expr("balance - 1")).Error; err != nil {
				return err
			}
			return tx.Model(&Account{}).Where("id = ?", to).Update("balance", gorm.Expr("balance + 1")).Error
		})
	})
}
