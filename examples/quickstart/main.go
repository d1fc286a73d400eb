// Quickstart is the program of the README: two transfers in opposite directions,
// a hundred times.
package main

import (
	"context"
	"database/sql"
	"fmt"
	"log"
	"os"
	"sync"

	"github.com/pgretry/pgretry"
)

func main() {
	db, err := sql.Open(pgretry.DriverName, os.Args[1]) // was: sql.Open("postgres", …)
	if err != nil {
		log.Fatal(err)
	}
	defer db.Close()
	ctx := context.Background()
	if _, err := db.ExecContext(ctx, `
		CREATE TABLE IF NOT EXISTS account (id int PRIMARY KEY, balance int NOT NULL);
		INSERT INTO account VALUES (1, 100), (2, 100) ON CONFLICT (id) DO UPDATE SET balance = 100`); err != nil {
		log.Fatal(err)
	}

	// Two transfers in opposite directions lock the accounts in opposite order.
	var both sync.WaitGroup
	for _, t := range [][2]int{{1, 2}, {2, 1}} {
		both.Go(func() {
			for range 100 {
				if err := transfer(ctx, db, t[0], t[1]); err != nil {
					log.Fatal(err)
				}
			}
		})
	}
	both.Wait()

	stats, err := pgretry.StatsOf(db)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("200 transfers committed, %d of them in spite of deadlocks\n", stats.HiddenBySQLState["40P01"])
}

// An ordinary transaction, which knows nothing of retries.
func transfer(ctx context.Context, db *sql.DB, from, to int) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(ctx, `UPDATE account SET balance = balance - 1 WHERE id = $1`, from); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, `UPDATE account SET balance = balance + 1 WHERE id = $1`, to); err != nil {
		return err
	}
	return tx.Commit()
}
