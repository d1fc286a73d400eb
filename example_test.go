package pgretry_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"time"

	"github.com/lib/pq"

	"github.com/pgretry/pgretry"
)

var (
	ctx = context.Background()
	db  *sql.DB
)

func Example() {
	db, err := sql.Open(pgretry.DriverName, "postgres://localhost/shop?pgretry_max_elapsed=10s")
	if err != nil {
		log.Fatal(err)
	}
	err = pgretry.RunInTx(context.Background(), db, nil, func(ctx context.Context, tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, `UPDATE account SET balance = balance - 10 WHERE id = 1`); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `UPDATE account SET balance = balance + 10 WHERE id = 2`)
		return err
	})
	if err != nil {
		log.Fatal(err)
	}
}

// What the closure fills is reset when it begins, because it may run again.
func ExampleRunInTx() {
	var names []string
	err := pgretry.RunInTx(pgretry.ContextWithName(ctx, "names"), db, &sql.TxOptions{Isolation: sql.LevelSerializable},
		func(ctx context.Context, tx *sql.Tx) error {
			names = names[:0]
			rows, err := tx.QueryContext(ctx, `SELECT name FROM customer`)
			if err != nil {
				return err
			}
			defer rows.Close()
			for rows.Next() {
				var name string
				if err := rows.Scan(&name); err != nil {
					return err
				}
				names = append(names, name)
			}
			return rows.Err()
		})
	fmt.Println(names, err)
}

// Around a helper that begins and commits by itself.
func ExampleRetry() {
	transfer := func(ctx context.Context) error {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer tx.Rollback()
		if _, err := tx.ExecContext(ctx, `UPDATE account SET balance = balance - 10 WHERE id = 1`); err != nil {
			return err
		}
		return tx.Commit()
	}
	if err := pgretry.Retry(ctx, transfer); err != nil {
		log.Fatal(err)
	}
}

// What to do with each kind of error.
func ExampleRetryError() {
	err := pgretry.RunInTx(ctx, db, nil, func(context.Context, *sql.Tx) error { return nil })
	var unknown *pgretry.CommitUnknownError
	var server *pq.Error
	switch {
	case err == nil:
		// Committed, once.
	case errors.As(err, &unknown):
		// It may be committed or not: look into the database before doing it again.
	case errors.Is(err, pgretry.ErrExhausted):
		// Rolled back. Nothing happened; the server is busy, or sick.
	case errors.Is(err, pgretry.ErrAlreadyCommitted):
		// A part of what the closure does is committed, the rest is rolled back.
	case errors.As(err, &server):
		// The server's own error, for example a constraint.
	default:
		// The closure's own error.
	}
}

func ExampleOpen() {
	db, err := pgretry.Open("host=localhost dbname=shop",
		pgretry.WithPolicy(pgretry.Policy{MaxAttempts: 10, MaxElapsed: 5 * time.Second}),
		pgretry.WithOnRetry(func(ctx context.Context, e pgretry.Event) {
			slog.WarnContext(ctx, "transaction", "pgretry", e)
		}),
	)
	if err != nil {
		log.Fatal(err)
	}
	defer db.Close()
}

// Under a name of one's own, for libraries that open the database themselves.
func ExampleWrapDriver() {
	sql.Register("orders", pgretry.WrapDriver(&pq.Driver{}, pgretry.WithAlsoRetry("55P03")))
	db, err := sql.Open("orders", "postgres://localhost/orders")
	if err != nil {
		log.Fatal(err)
	}
	defer db.Close()
}

// With notices, or anything else that lib/pq's connector does: such handlers go
// inside.
func ExampleNewConnector() {
	inner, err := pq.NewConnector("postgres://localhost/shop")
	if err != nil {
		log.Fatal(err)
	}
	connector, err := pgretry.NewConnector(pq.ConnectorWithNoticeHandler(inner, func(notice *pq.Error) {
		slog.Info(notice.Message)
	}))
	if err != nil {
		log.Fatal(err)
	}
	db := sql.OpenDB(connector)
	defer db.Close()
}

func ExampleStatsOf() {
	stats, err := pgretry.StatsOf(db)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%.0f %% of the transactions are in closures, %d conflicts outside them\n",
		100*stats.ProtectedShare(), stats.PlainConflicts)
}

func ExampleClassify() {
	err := fmt.Errorf("transfer: %w", &pq.Error{Severity: "ERROR", Code: "40001"})
	fmt.Println(pgretry.Classify(err, pgretry.PhaseCommit))
	// Output: retryable
}

func ExampleFullJitter() {
	jitter, err := pgretry.NewFullJitter(10*time.Millisecond, 25*time.Millisecond, func(n int64) int64 { return n - 1 })
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(jitter.NextBackOff(), jitter.NextBackOff(), jitter.NextBackOff())
	// Output: 10ms 20ms 25ms
}
