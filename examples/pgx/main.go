// Pgx shows pgretry around another driver than lib/pq, with a hook that logs every
// decision and a policy of its own.
package main

import (
	"context"
	"database/sql"
	"fmt"
	"log"
	"log/slog"
	"os"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/pgretry/pgretry"
)

func main() {
	config, err := pgx.ParseConfig(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	connector, err := pgretry.NewConnector(stdlib.GetConnector(*config),
		pgretry.WithPolicy(pgretry.Policy{BaseDelay: 5 * time.Millisecond, MaxElapsed: 10 * time.Second}),
		pgretry.WithOnRetry(func(ctx context.Context, e pgretry.Event) {
			slog.WarnContext(ctx, "transaction", "pgretry", e)
		}))
	if err != nil {
		log.Fatal(err)
	}
	db := sql.OpenDB(connector)
	defer db.Close()

	// The server is made to report a conflict the first two times.
	ctx := pgretry.ContextWithName(context.Background(), "example")
	if _, err := db.ExecContext(ctx, `CREATE SEQUENCE IF NOT EXISTS tries`); err != nil {
		log.Fatal(err)
	}
	attempts := 0
	err = pgretry.RunInTx(ctx, db, &sql.TxOptions{Isolation: sql.LevelSerializable}, func(ctx context.Context, tx *sql.Tx) error {
		attempts++
		_, err := tx.ExecContext(ctx, `DO $$ BEGIN
			IF nextval('tries') < 3 THEN RAISE EXCEPTION 'could not serialize access' USING ERRCODE = '40001'; END IF;
		END $$`)
		return err
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("committed after %d attempts\n", attempts)
}
