// Sqlc shows pgretry under code that sqlc has generated: what RunInTx hands to the
// closure is all that the queries need. The closure reads a balance and then writes, and
// reads again when it runs again.
package main

import (
	"context"
	"database/sql"
	_ "embed"
	"errors"
	"fmt"
	"log"
	"os"
	"sync"

	"github.com/pgretry/pgretry"
)

//go:generate go run github.com/sqlc-dev/sqlc/cmd/sqlc@v1.31.1 generate

//go:embed schema.sql
var schema string

func main() {
	dsn := os.Getenv("DATABASE_URL")
	if len(os.Args) > 1 {
		dsn = os.Args[1]
	}
	db, err := sql.Open(pgretry.DriverName, dsn) // was: sql.Open("postgres", dsn)
	if err != nil {
		log.Fatal(err)
	}
	defer db.Close()
	ctx := context.Background()
	if _, err := db.ExecContext(ctx, schema); err != nil {
		log.Fatal(err)
	}
	for _, id := range []int32{1, 2} {
		if err := New(db).ResetAccount(ctx, ResetAccountParams{ID: id, Balance: 100}); err != nil {
			log.Fatal(err)
		}
	}

	// So that they deadlock for sure, neither asks for its second account before
	// both have their first.
	var locked, done sync.WaitGroup
	locked.Add(2)
	for _, t := range [][2]int32{{1, 2}, {2, 1}} {
		done.Go(func() {
			left, err := transfer(ctx, db, t[0], t[1], sync.OnceFunc(func() { locked.Done(); locked.Wait() }))
			if err != nil {
				log.Fatal(err)
			}
			fmt.Printf("account %d has %d left\n", t[0], left)
		})
	}
	done.Wait()
}

var errTooLittle = errors.New("the account has too little")

func transfer(ctx context.Context, db *sql.DB, from, to int32, hasLocked func()) (left int32, err error) {
	err = pgretry.RunInTx(ctx, db, nil, func(ctx context.Context, tx *sql.Tx) error {
		queries := New(tx)
		account, err := queries.LockAccount(ctx, from)
		if err != nil {
			return err
		}
		hasLocked()
		if left = account.Balance - 30; left < 0 {
			return errTooLittle
		}
		if err := queries.AddToAccount(ctx, AddToAccountParams{ID: from, Amount: -30}); err != nil {
			return err
		}
		return queries.AddToAccount(ctx, AddToAccountParams{ID: to, Amount: 30})
	})
	return left, err
}
