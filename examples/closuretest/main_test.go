package main

import (
	"context"
	"database/sql"
	"os"
	"testing"

	"github.com/pgretry/pgretry"
	"github.com/pgretry/pgretry/pgretrytest"
)

func TestCollectCanBeRunAgain(t *testing.T) {
	dsn := os.Getenv("DATABASE_URL")
	if dsn == "" {
		t.Fatal("DATABASE_URL has to name a database for tests")
	}
	db, err := pgretry.Open(dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.ExecContext(t.Context(), schema); err != nil {
		t.Fatal(err)
	}
	var collected int
	pgretrytest.Closure(t, db, func(ctx context.Context, tx *sql.Tx) error {
		return collect(ctx, tx, &collected)
	}, pgretrytest.Results(&collected))
}
