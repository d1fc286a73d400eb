// Pgx shows pgretry around another driver than lib/pq: two transfers that deadlock
// are committed, and an error of the server is pgx's own.
package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log"
	"os"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/pgretry/pgretry"
)

func main() {
	dsn := os.Getenv("DATABASE_URL")
	if len(os.Args) > 1 {
		dsn = os.Args[1]
	}
	config, err := pgx.ParseConfig(dsn)
	if err != nil {
		log.Fatal(err)
	}
	connector, err := pgretry.NewConnector(stdlib.GetConnector(*config)) // was: stdlib.OpenDB(*config)
	if err != nil {
		log.Fatal(err)
	}
	db := sql.OpenDB(connector)
	defer db.Close()
	ctx := context.Background()
	if _, err := db.ExecContext(ctx, `CREATE TABLE IF NOT EXISTS account (id int PRIMARY KEY, balance int NOT NULL)`); err != nil {
		log.Fatal(err)
	}
	if _, err := db.ExecContext(ctx, `INSERT INTO account VALUES (1, 100), (2, 100) ON CONFLICT (id) DO UPDATE SET balance = 100`); err != nil {
		log.Fatal(err)
	}

	// So that they deadlock for sure, neither asks for its second account before
	// both have their first.
	var locked, done sync.WaitGroup
	locked.Add(2)
	for _, t := range [][2]int{{1, 2}, {2, 1}} {
		done.Go(func() {
			meet, attempts := sync.OnceFunc(func() { locked.Done(); locked.Wait() }), 0
			err := pgretry.RunInTx(ctx, db, nil, func(ctx context.Context, tx *sql.Tx) error {
				attempts++
				if _, err := tx.ExecContext(ctx, `UPDATE account SET balance = balance - 1 WHERE id = $1`, t[0]); err != nil {
					return err
				}
				meet()
				_, err := tx.ExecContext(ctx, `UPDATE account SET balance = balance + 1 WHERE id = $1`, t[1])
				return err
			})
			if err != nil {
				log.Fatal(err)
			}
			fmt.Printf("from %d to %d: committed, attempts: %d\n", t[0], t[1], attempts)
		})
	}
	done.Wait()

	_, err = db.ExecContext(ctx, `INSERT INTO account VALUES (1, 100)`)
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) {
		log.Fatalf("a duplicate gives %v", err)
	}
	fmt.Println("a duplicate is a", pgErr.Code, "of", pgErr.ConstraintName)
}
