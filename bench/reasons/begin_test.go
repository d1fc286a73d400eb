package reasons

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgretry/pgretry/bench/internal/relay"
	"github.com/pgretry/pgretry/bench/internal/target"
	"github.com/pgretry/pgretry/internal/pgserver/pgtest"
)

// BenchmarkBeginWithTheFirstStatement shows what it would save to send BEGIN together with
// the first statement, which pgx's batches can do and lib/pq cannot. It reports what the
// transaction takes then as a multiple of what it takes with BEGIN sent by itself.
func BenchmarkBeginWithTheFirstStatement(b *testing.B) {
	schema, err := target.Of(pgtest.Server(b)).Schema(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := schema.Drop(); err != nil {
			b.Error(err)
		}
	})
	execute(
		b, session(b, schema.DSN(nil)),
		`CREATE TABLE account (id int PRIMARY KEY, balance int); CREATE TABLE transfer (account int)`,
		`INSERT INTO account VALUES (1, 0)`,
	)
	b.Run("Socket", func(b *testing.B) { beginTogether(b, schema.DSN(nil), 50) })
	b.Run("Delayed1ms", func(b *testing.B) {
		address, ok := target.Address(schema.TCP(nil))
		if !ok {
			b.Fatal("the server has no address")
		}
		delayed, err := relay.Start(address, time.Millisecond)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() {
			if err := delayed.Close(); err != nil {
				b.Error(err)
			}
		})
		dsn, err := target.Via(schema.TCP(nil), delayed.Address())
		if err != nil {
			b.Fatal(err)
		}
		beginTogether(b, dsn, 5)
	})
}

const readBalance = `SELECT balance FROM account WHERE id = $1`

func beginTogether(b *testing.B, dsn string, each int) {
	conn, err := pgx.Connect(b.Context(), dsn)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := conn.Close(context.Background()); err != nil {
			b.Error(err)
		}
	})
	// The batch's text of BEGIN is prepared like any other, so that it costs what it has to.
	apart := func(ctx context.Context) error {
		if _, err := conn.Exec(ctx, `BEGIN`); err != nil {
			return err
		}
		var balance int
		if err := conn.QueryRow(ctx, readBalance, 1).Scan(&balance); err != nil {
			return err
		}
		return write(ctx, conn)
	}
	together := func(ctx context.Context) error {
		var batch pgx.Batch
		batch.Queue(`BEGIN`)
		batch.Queue(readBalance, 1)
		results := conn.SendBatch(ctx, &batch)
		var balance int
		_, err := results.Exec()
		if err = errors.Join(err, results.QueryRow().Scan(&balance), results.Close()); err != nil {
			return err
		}
		return write(ctx, conn)
	}
	duel{apart, together, each}.fight(b, "together-x-apart")
}

// write is the rest of the transaction.
func write(ctx context.Context, conn *pgx.Conn) error {
	if _, err := conn.Exec(ctx, `UPDATE account SET balance = balance + $1 WHERE id = $2`, 1, 1); err != nil {
		return err
	}
	if _, err := conn.Exec(ctx, `INSERT INTO transfer VALUES ($1)`, 1); err != nil {
		return err
	}
	_, err := conn.Exec(ctx, `COMMIT`)
	return err
}
