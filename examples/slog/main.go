// Slog shows a hook that logs what becomes of conflicts, one JSON object a line. Without
// it the driver logs nothing, and a deadlock that is survived leaves no trace but in the
// metrics.
package main

import (
	"context"
	"database/sql"
	"log"
	"log/slog"
	"os"
	"sync"

	"github.com/pgretry/pgretry"
)

func main() {
	dsn := os.Getenv("DATABASE_URL")
	if len(os.Args) > 1 {
		dsn = os.Args[1]
	}
	logger := slog.New(slog.NewJSONHandler(os.Stdout, nil))
	db, err := pgretry.Open(dsn, pgretry.WithOnRetry(func(ctx context.Context, e pgretry.Event) {
		if e.Decision == pgretry.DecisionRetried {
			logger.InfoContext(ctx, "a transaction is run again", "pgretry", e)
			return
		}
		// The application gets the error. An Event leaves its text out, which may
		// quote data; e.Err has it.
		logger.WarnContext(ctx, "a transaction cannot be run again", "pgretry", e)
	}))
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

	// So that they deadlock for sure, neither asks for its second account before
	// both have their first.
	var locked, done sync.WaitGroup
	locked.Add(2)
	for _, t := range [][2]int{{1, 2}, {2, 1}} {
		done.Go(func() {
			err := transfer(pgretry.ContextWithName(ctx, "transfer"), db, t[0], t[1], func() { locked.Done(); locked.Wait() })
			if err != nil {
				log.Fatal(err)
			}
			logger.InfoContext(ctx, "committed", "from", t[0], "to", t[1])
		})
	}
	done.Wait()
}

// An ordinary transaction, which the driver replays.
func transfer(ctx context.Context, db *sql.DB, from, to int, hasLocked func()) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() // does nothing after Commit
	if _, err := tx.ExecContext(ctx, `UPDATE account SET balance = balance - 1 WHERE id = $1`, from); err != nil {
		return err
	}
	hasLocked()
	if _, err := tx.ExecContext(ctx, `UPDATE account SET balance = balance + 1 WHERE id = $1`, to); err != nil {
		return err
	}
	return tx.Commit()
}
