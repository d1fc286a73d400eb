package pgretrytest_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log"
	"os"
	"testing"

	"github.com/lib/pq"

	"github.com/pgretry/pgretry"
	"github.com/pgretry/pgretry/pgretrytest"
)

// A closure that collects what it reads begins by emptying what it fills.
func ExampleClosure() {
	var t *testing.T // of the test around
	var db *sql.DB   // opened through pgretry
	var orders []int64
	take := func(ctx context.Context, tx *sql.Tx) error {
		orders = orders[:0] // without this, an attempt would add to what the one before has left
		rows, err := tx.QueryContext(ctx, `UPDATE orders SET taken = true WHERE NOT taken RETURNING id`)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var id int64
			if err := rows.Scan(&id); err != nil {
				return err
			}
			orders = append(orders, id)
		}
		return rows.Err()
	}
	pgretrytest.Closure(t, db, take, pgretrytest.Results(&orders))
}

// A transaction helper, an ORM's for example, has to run on a database that can abort.
func ExampleRetryClosure() {
	var t *testing.T // of the test around
	sql.Register("postgres-on-trial", pgretry.WrapDriver(pgretrytest.WrapDriver(&pq.Driver{})))
	db, err := sql.Open("postgres-on-trial", os.Getenv("DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	defer db.Close()
	pgretrytest.RetryClosure(t, db, func(ctx context.Context) error {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer tx.Rollback()
		if _, err := tx.ExecContext(ctx, `UPDATE account SET balance = balance - 1 WHERE id = 1`); err != nil {
			return err
		}
		return tx.Commit()
	})
}

// What an application does when there is no further attempt.
func ExampleNewConnector() {
	inner, err := pq.NewConnector(os.Getenv("DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	aborting, err := pgretrytest.NewConnector(inner, pgretrytest.WithProbability(1))
	if err != nil {
		log.Fatal(err)
	}
	connector, err := pgretry.NewConnector(aborting, pgretry.WithPolicy(pgretry.Policy{MaxAttempts: 3}))
	if err != nil {
		log.Fatal(err)
	}
	db := sql.OpenDB(connector)
	defer db.Close()
	err = pgretry.RunInTx(context.Background(), db, nil, func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `UPDATE account SET balance = balance - 1 WHERE id = 1`)
		return err
	})
	fmt.Println(errors.Is(err, pgretry.ErrExhausted), aborting.Counts().Total())
}
