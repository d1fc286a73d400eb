// Withoutreplay shows a transaction that must not be replayed, because it relies on
// its lock for work outside the database, and what the coverage report says of it.
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
	db, err := sql.Open(pgretry.DriverName, dsn)
	if err != nil {
		log.Fatal(err)
	}
	defer db.Close()
	ctx := context.Background()
	if _, err := db.ExecContext(ctx, `
		CREATE TABLE IF NOT EXISTS device (id int PRIMARY KEY, state text NOT NULL);
		INSERT INTO device VALUES (1, 'off') ON CONFLICT (id) DO UPDATE SET state = 'off'`); err != nil {
		log.Fatal(err)
	}

	// While it holds the row, nobody else talks to the device. A replay would let go
	// of the row for a moment.
	if err := switchOn(pgretry.ContextWithoutReplay(ctx), db); err != nil {
		log.Fatal(err)
	}

	stats, err := pgretry.StatsOf(db)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%d of %d transactions could be replayed; not: %v\n", stats.Protected, stats.Plain, stats.Unprotected)
}

func switchOn(ctx context.Context, db *sql.DB) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() // does nothing after Commit
	var state string
	if err := tx.QueryRowContext(ctx, `SELECT state FROM device WHERE id = 1 FOR UPDATE`).Scan(&state); err != nil {
		return err
	}
	fmt.Println("the device is", state, "and is told to switch on")
	if _, err := tx.ExecContext(ctx, `UPDATE device SET state = 'on' WHERE id = 1`); err != nil {
		return err
	}
	return tx.Commit()
}
