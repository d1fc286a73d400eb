// Tracing prints the spans of two transactions that deadlock, as OpenTelemetry's
// console exporter writes them, one a line: an attempt that was retried, with the
// deadlock as an event, two that were committed, and the transactions they belong
// to. To read them:
//
//	go run . "$DATABASE_URL" | jq '{Name, Attributes, Events}'
package main

import (
	"context"
	"database/sql"
	"log"
	"os"
	"sync"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/exporters/stdout/stdouttrace"
	"go.opentelemetry.io/otel/sdk/trace"

	"github.com/pgretry/pgretry"
)

func main() {
	dsn := os.Getenv("DATABASE_URL")
	if len(os.Args) > 1 {
		dsn = os.Args[1]
	}
	exporter, err := stdouttrace.New()
	if err != nil {
		log.Fatal(err)
	}
	tracers := trace.NewTracerProvider(trace.WithBatcher(exporter))
	otel.SetTracerProvider(tracers)
	// With pgretry.Open(dsn, pgretry.WithStatementSpans()) each statement would
	// have a span as well.
	db, err := sql.Open(pgretry.DriverName, dsn)
	if err != nil {
		log.Fatal(err)
	}
	defer db.Close()
	ctx := pgretry.ContextWithName(context.Background(), "transfer")
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
	if err := tracers.Shutdown(ctx); err != nil {
		log.Fatal(err)
	}
}
