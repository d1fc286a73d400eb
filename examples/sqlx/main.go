// Sqlx shows pgretry under sqlx: Retry around a transaction of sqlx's own, and
// RunInTx, which takes a *sqlx.DB as well, where a *sql.Tx is enough.
package main

import (
	"context"
	"database/sql"
	"fmt"
	"log"
	"os"

	"github.com/jmoiron/sqlx"

	"github.com/pgretry/pgretry"
)

type account struct {
	ID      int
	Balance int
}

func main() {
	dsn := os.Getenv("DATABASE_URL")
	if len(os.Args) > 1 {
		dsn = os.Args[1]
	}
	// sqlx goes by the driver's name to know how placeholders are written.
	sqlx.BindDriver(pgretry.DriverName, sqlx.DOLLAR)
	db, err := sqlx.Open(pgretry.DriverName, dsn)
	if err != nil {
		log.Fatal(err)
	}
	defer db.Close()
	ctx := context.Background()

	err = pgretry.RunInTx(ctx, db, nil, func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `
			CREATE TABLE IF NOT EXISTS account (id int PRIMARY KEY, balance int NOT NULL);
			INSERT INTO account VALUES (1, 100), (2, 100) ON CONFLICT (id) DO UPDATE SET balance = 100`)
		return err
	})
	if err != nil {
		log.Fatal(err)
	}

	from, to := account{ID: 1}, account{ID: 2}
	err = inTx(ctx, db, func(ctx context.Context, tx *sqlx.Tx) error {
		if _, err := tx.NamedExecContext(ctx, `UPDATE account SET balance = balance - 30 WHERE id = :id`, from); err != nil {
			return err
		}
		if _, err := tx.NamedExecContext(ctx, `UPDATE account SET balance = balance + 30 WHERE id = :id`, to); err != nil {
			return err
		}
		return tx.GetContext(ctx, &from, tx.Rebind(`SELECT id, balance FROM account WHERE id = ?`), from.ID)
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("account %d has %d left\n", from.ID, from.Balance)
}

// inTx is RunInTx with a *sqlx.Tx.
func inTx(ctx context.Context, db *sqlx.DB, fn func(ctx context.Context, tx *sqlx.Tx) error) error {
	return pgretry.Retry(ctx, func(ctx context.Context) error {
		tx, err := db.BeginTxx(ctx, nil)
		if err != nil {
			return err
		}
		defer tx.Rollback() // does nothing after Commit
		if err := fn(ctx, tx); err != nil {
			return err
		}
		return tx.Commit()
	})
}
