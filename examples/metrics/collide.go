package main

import (
	"context"
	"database/sql"
	"log"
	"sync"

	"github.com/pgretry/pgretry"
)

// collide runs two transfers that deadlock.
func collide(ctx context.Context, db *sql.DB) {
	if _, err := db.ExecContext(ctx, `
		CREATE TABLE IF NOT EXISTS account (id int PRIMARY KEY, balance int NOT NULL);
		INSERT INTO account VALUES (1, 100), (2, 100) ON CONFLICT (id) DO UPDATE SET balance = 100`); err != nil {
		log.Fatal(err)
	}
	var locked, done sync.WaitGroup
	locked.Add(2)
	for _, t := range [][2]int{{1, 2}, {2, 1}} {
		done.Go(func() {
			meet := sync.OnceFunc(func() { locked.Done(); locked.Wait() })
			err := pgretry.RunInTx(ctx, db, nil, func(ctx context.Context, tx *sql.Tx) error {
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
		})
	}
	done.Wait()
}
