// Bun shows pgretry under bun: transactions of bun's own survive a deadlock, nested
// ones included, though nothing but the driver's name is changed.
package main

import (
	"context"
	"database/sql"
	"fmt"
	"log"
	"os"
	"sync"

	"github.com/uptrace/bun"
	"github.com/uptrace/bun/dialect/pgdialect"

	"github.com/pgretry/pgretry"
)

func main() {
	dsn := os.Getenv("DATABASE_URL")
	if len(os.Args) > 1 {
		dsn = os.Args[1]
	}
	sqlDB, err := sql.Open(pgretry.DriverName, dsn) // was: sql.Open("postgres", dsn)
	if err != nil {
		log.Fatal(err)
	}
	defer sqlDB.Close()
	db := bun.NewDB(sqlDB, pgdialect.New())
	ctx := context.Background()
	if _, err := db.NewCreateTable().Model((*Account)(nil)).IfNotExists().Exec(ctx); err != nil {
		log.Fatal(err)
	}
	accounts := []Account{{ID: 1, Balance: 100}, {ID: 2, Balance: 100}}
	if _, err := db.NewInsert().Model(&accounts).On("CONFLICT (id) DO UPDATE").Set("balance = EXCLUDED.balance").Exec(ctx); err != nil {
		log.Fatal(err)
	}

	// To deadlock for sure, neither asks for its second account before both have one.
	var locked, done sync.WaitGroup
	locked.Add(2)
	for _, t := range [][2]int{{1, 2}, {2, 1}} {
		done.Go(func() {
			err := db.RunInTx(ctx, nil, func(ctx context.Context, tx bun.Tx) error {
				if err := book(ctx, tx, t[0], -1); err != nil {
					return err
				}
				locked.Done()
				locked.Wait()
				return tx.RunInTx(ctx, nil, func(ctx context.Context, nested bun.Tx) error { // a savepoint
					return book(ctx, nested, t[1], 1)
				})
			})
			if err != nil {
				log.Fatal(err)
			}
			fmt.Println("committed")
		})
	}
	done.Wait()
	if err := db.NewSelect().Model(&accounts).WherePK().Scan(ctx); err != nil {
		log.Fatal(err)
	}
	fmt.Println("the balances are", accounts[0].Balance, "and", accounts[1].Balance)
	stats, err := pgretry.StatsOf(sqlDB)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("deadlocks nobody saw: %d, replays: %d\n", stats.HiddenBySQLState["40P01"], stats.Replays)
}
