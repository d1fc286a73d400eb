// Ownname registers the driver under a name of one's own, with options, for code that
// opens databases by a driver's name and a DSN. What the DSN says wins over the options;
// it has to be in the URL form here.
package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log"
	"os"
	"strings"
	"time"

	"github.com/lib/pq"

	"github.com/pgretry/pgretry"
)

func init() {
	sql.Register("orders", pgretry.WrapDriver(&pq.Driver{},
		pgretry.WithPolicy(pgretry.Policy{MaxAttempts: 10, MaxElapsed: 5 * time.Second}),
		pgretry.WithAlsoRetry("55P03"))) // a row that others hold, asked for with NOWAIT
}

func main() {
	dsn := os.Getenv("DATABASE_URL")
	if len(os.Args) > 1 {
		dsn = os.Args[1]
	}
	if !strings.Contains(dsn, "?") {
		dsn += "?"
	}
	_, err := sql.Open("orders", dsn+"&pgretry_max_attempts=many")
	fmt.Println("a wrong DSN:", err)
	db, err := sql.Open("orders", dsn+"&pgretry_max_attempts=3")
	if err != nil {
		log.Fatal(err)
	}
	defer db.Close()
	ctx := context.Background()
	if _, err := db.ExecContext(ctx, `
		CREATE TABLE IF NOT EXISTS account (id int PRIMARY KEY, balance int NOT NULL);
		INSERT INTO account VALUES (1, 100) ON CONFLICT (id) DO UPDATE SET balance = 100`); err != nil {
		log.Fatal(err)
	}

	// While somebody holds the account there are three attempts, not ten.
	holder, err := db.BeginTx(ctx, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer holder.Rollback() // does nothing after Commit
	if _, err := holder.ExecContext(ctx, `UPDATE account SET balance = balance - 1 WHERE id = 1`); err != nil {
		log.Fatal(err)
	}
	var failed *pgretry.RetryError
	if err := charge(ctx, db); !errors.As(err, &failed) {
		log.Fatalf("the account is held, and charging it gives %v", err)
	}
	fmt.Printf("given up after %d attempts: %v\n", failed.Attempts, failed.Err)
	if err := holder.Commit(); err != nil {
		log.Fatal(err)
	}
	if err := charge(ctx, db); err != nil {
		log.Fatal(err)
	}
	fmt.Println("charged")
}

func charge(ctx context.Context, db *sql.DB) error {
	return pgretry.RunInTx(ctx, db, nil, func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `
			WITH free AS (SELECT id FROM account WHERE id = 1 FOR UPDATE NOWAIT)
			UPDATE account SET balance = balance - 10 FROM free WHERE account.id = free.id`)
		return err
	})
}
