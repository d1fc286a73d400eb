// Tracing prints the spans of a transaction that needed two attempts, as
// OpenTelemetry's console exporter writes them.
package main

import (
	"context"
	"database/sql"
	"log"
	"os"

	"go.opentelemetry.io/otel/exporters/stdout/stdouttrace"
	"go.opentelemetry.io/otel/sdk/trace"

	"github.com/pgretry/pgretry"
)

func main() {
	exporter, err := stdouttrace.New(stdouttrace.WithPrettyPrint())
	if err != nil {
		log.Fatal(err)
	}
	tracers := trace.NewTracerProvider(trace.WithBatcher(exporter))
	db, err := pgretry.Open(os.Args[1], pgretry.WithTracerProvider(tracers))
	if err != nil {
		log.Fatal(err)
	}
	defer db.Close()

	ctx := pgretry.ContextWithName(context.Background(), "example")
	if _, err := db.ExecContext(ctx, `CREATE SEQUENCE IF NOT EXISTS tries`); err != nil {
		log.Fatal(err)
	}
	err = pgretry.RunInTx(ctx, db, nil, func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `DO $$ BEGIN
			IF nextval('tries') = 1 THEN RAISE EXCEPTION 'could not serialize access' USING ERRCODE = '40001'; END IF;
		END $$`)
		return err
	})
	if err != nil {
		log.Fatal(err)
	}
	if err := tracers.Shutdown(ctx); err != nil {
		log.Fatal(err)
	}
}
