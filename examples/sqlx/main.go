// Sqlx shows pgretry under sqlx: Retry around a transaction of sqlx's own, and RunInTx,
// which takes a *sqlx.DB as well, where a *sql.Tx is enough.
package main

import (
	"context"
	"database/sql"
	"fmt"
	"log"
	"os"
	"sync"

	"github.com/jmoiron/sqlx"

	"github.com/pgretry/pgretry"
)

type account struct{ ID, Balance int }

func main() {
	dsn := os.Getenv("DATABASE_URL")
	if len(os.Args) > 1 {
		dsn = os.Args[1]
	}
	// sqlx goes by the driver's name to know how placeholders are written.
	sqlx.BindDriver(pgretry.DriverName, sqlx.DOLLAR)
	db, err := sqlx.Open(pgretry.DriverName, dsn) // was: sqlx.Open("postgres", dsn)
	if err != nil {
		log.Fatal(err)
	}
	defer db.Close()
	ctx := context.Background()
	err = pgretry.RunInTx(ctx, db, nil, func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `
			CREATE TABLE IF NOT EXISTS account (id int PRIMARY KEY, balance int NOT NULL);
			INSERT INTO account VALUES (1, 100), (2, 100) ON CONFLICT (id) DO UPDATE SET balance = 100`)
		return err
	})
	if err != nil {
		log.Fatal(err)
	}

	// To deadlock for sure, neither asks for its second account before both have one.
	var locked, done sync.WaitGroup
	locked.Add(2)
	for _, t := range [][2]account{{{ID: 1}, {ID: 2}}, {{ID: 2}, {ID: 1}}} {
		done.Go(func() {
			meet := sync.OnceFunc(func() { locked.Done(); locked.Wait() })
			from, to := t[0], t[1]
			err := inTx(ctx, db, func(ctx context.Context, tx *sqlx.Tx) error {
				if err := tx.GetContext(ctx, &from, tx.Rebind(`SELECT id, balance FROM account WHERE id = ? FOR UPDATE`), from.ID); err != nil {
					return err
				}
				meet()
				from.Balance -= 30
				if _, err := tx.NamedExecContext(ctx, `UPDATE account SET balance = :balance WHERE id = :id`, from); err != nil {
					return err
				}
				_, err := tx.NamedExecContext(ctx, `UPDATE account SET balance = balance + 30 WHERE id = :id`, to)
				return err
			})
			if err != nil {
				log.Fatal(err)
			}
			fmt.Printf("account %d has %d left\n", from.ID, from.Balance)
		})
	}
	done.Wait()
}
