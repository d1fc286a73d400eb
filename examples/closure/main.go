// Closure shows what a transaction in a closure can be told: a name, an isolation
// level, limits, and a hook that logs every decision.
//
// Of two doctors on call, both want to go home, and both first look whether the
// other one stays. Under SERIALIZABLE the server lets one of them go and ends the
// other's transaction. That one runs again and sees that it has to stay.
package main

import (
	"context"
	"database/sql"
	"fmt"
	"log"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/pgretry/pgretry"
)

func main() {
	dsn := os.Getenv("DATABASE_URL")
	if len(os.Args) > 1 {
		dsn = os.Args[1]
	}
	db, err := pgretry.Open(dsn,
		pgretry.WithPolicy(pgretry.Policy{MaxAttempts: 10, MaxElapsed: 5 * time.Second}),
		pgretry.WithOnRetry(func(ctx context.Context, e pgretry.Event) {
			slog.WarnContext(ctx, "transaction", "pgretry", e)
		}))
	if err != nil {
		log.Fatal(err)
	}
	defer db.Close()
	ctx := pgretry.ContextWithName(context.Background(), "go home")
	if _, err := db.ExecContext(ctx, `
		CREATE TABLE IF NOT EXISTS doctor (name text PRIMARY KEY, on_call bool NOT NULL);
		INSERT INTO doctor VALUES ('Ann', true), ('Bob', true) ON CONFLICT (name) DO UPDATE SET on_call = true`); err != nil {
		log.Fatal(err)
	}

	// So that there is a conflict for sure, neither writes before both have read.
	var read, done sync.WaitGroup
	read.Add(2)
	for _, name := range []string{"Ann", "Bob"} {
		done.Go(func() {
			goesHome, err := goHome(ctx, db, name, sync.OnceFunc(func() { read.Done(); read.Wait() }))
			if err != nil {
				log.Fatal(err)
			}
			fmt.Printf("%s goes home: %t\n", name, goesHome)
		})
	}
	done.Wait()
}

func goHome(ctx context.Context, db *sql.DB, name string, hasRead func()) (goesHome bool, err error) {
	err = pgretry.RunInTx(ctx, db, &sql.TxOptions{Isolation: sql.LevelSerializable}, func(ctx context.Context, tx *sql.Tx) error {
		goesHome = false // what an attempt before has left here
		var others int
		if err := tx.QueryRowContext(ctx, `SELECT count(*) FROM doctor WHERE on_call AND name <> $1`, name).Scan(&others); err != nil {
			return err
		}
		hasRead()
		if others == 0 {
			return nil
		}
		goesHome = true
		_, err := tx.ExecContext(ctx, `UPDATE doctor SET on_call = false WHERE name = $1`, name)
		return err
	})
	return goesHome, err
}
