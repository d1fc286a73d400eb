// Ent shows pgretry under ent: its transactions survive a deadlock though nothing but the
// driver's name is changed. The module has to be called example.com/shop, because the
// generated code imports itself.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"sync"

	entsql "entgo.io/ent/dialect/sql"

	"example.com/shop/ent"
	"example.com/shop/ent/wallet"

	"github.com/pgretry/pgretry"
)

func main() {
	dsn := os.Getenv("DATABASE_URL")
	if len(os.Args) > 1 {
		dsn = os.Args[1]
	}
	driver, err := entsql.Open(pgretry.DriverName, dsn) // was: entsql.Open(dialect.Postgres, dsn)
	if err != nil {
		log.Fatal(err)
	}
	client := ent.NewClient(ent.Driver(driver))
	ctx := context.Background()
	if err := client.Schema.Create(ctx); err != nil {
		log.Fatal(err)
	}
	a, err := client.Wallet.Create().SetBalance(100).Save(ctx)
	if err != nil {
		log.Fatal(err)
	}
	b, err := client.Wallet.Create().SetBalance(100).Save(ctx)
	if err != nil {
		log.Fatal(err)
	}

	// To deadlock for sure, neither asks for its second wallet before both have one.
	var locked, done sync.WaitGroup
	locked.Add(2)
	for _, t := range [][2]int{{a.ID, b.ID}, {b.ID, a.ID}} {
		done.Go(func() {
			err := inTx(ctx, client, func(tx *ent.Tx) error {
				// UpdateOneID would also read the row back, and what has been read a
				// replay must not find changed: then put pgretry.Retry around inTx.
				if err := tx.Wallet.Update().Where(wallet.ID(t[0])).AddBalance(-1).Exec(ctx); err != nil {
					return err
				}
				locked.Done()
				locked.Wait()
				return tx.Wallet.Update().Where(wallet.ID(t[1])).AddBalance(1).Exec(ctx)
			})
			if err != nil {
				log.Fatal(err)
			}
			fmt.Println("committed")
		})
	}
	done.Wait()
	balances, err := client.Wallet.Query().Where(wallet.IDIn(a.ID, b.ID)).Select(wallet.FieldBalance).Ints(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("the balances are", balances)
	stats, err := pgretry.StatsOf(driver.DB())
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("deadlocks nobody saw: %d, replays: %d\n", stats.HiddenBySQLState["40P01"], stats.Replays)
}
