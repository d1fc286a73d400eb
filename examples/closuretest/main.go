// Closuretest is a program whose closure has a test beside it, main_test.go: it runs the closure
// once for every point at which the server could abort it.
package main

import (
	"context"
	"database/sql"
	"fmt"
	"log"
	"os"

	"github.com/pgretry/pgretry"
)

func main() {
	dsn := os.Getenv("DATABASE_URL")
	if len(os.Args) > 1 {
		dsn = os.Args[1]
	}
	db, err := pgretry.Open(dsn)
	if err != nil {
		log.Fatal(err)
	}
	defer db.Close()
	ctx := context.Background()
	if _, err := db.ExecContext(ctx, schema); err != nil {
		log.Fatal(err)
	}
	var collected int
	err = pgretry.RunInTx(ctx, db, nil, func(ctx context.Context, tx *sql.Tx) error {
		return collect(ctx, tx, &collected)
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("collected:", collected)
}

const schema = `
	CREATE TABLE IF NOT EXISTS account (id int PRIMARY KEY, balance int NOT NULL);
	INSERT INTO account VALUES (1, 0), (2, 130), (3, 120) ON CONFLICT (id) DO UPDATE SET balance = excluded.balance`

// collect moves what the accounts have above 100 to the first one.
func collect(ctx context.Context, tx *sql.Tx, collected *int) error {
	*collected = 0 // what an attempt before has left here
	for id := 2; id <= 3; id++ {
		var balance int
		if err := tx.QueryRowContext(ctx, `SELECT balance FROM account WHERE id = $1 FOR UPDATE`, id).Scan(&balance); err != nil {
			return err
		}
		*collected += balance - 100
		if _, err := tx.ExecContext(ctx, `UPDATE account SET balance = 100 WHERE id = $1`, id); err != nil {
			return err
		}
	}
	_, err := tx.ExecContext(ctx, `UPDATE account SET balance = balance + $1 WHERE id = 1`, *collected)
	return err
}
