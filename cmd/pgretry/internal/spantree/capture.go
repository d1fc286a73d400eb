package spantree

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/pgretry/pgretry"
	"github.com/pgretry/pgretry/cmd/pgretry/internal/sandbox"
)

// takes is how often the scene is played until it goes as written. Which of two transactions the
// server aborts in a deadlock is its own decision: a very busy machine can make it take the other.
const takes = 3

const (
	lockPollInterval = 2 * time.Millisecond
	readWord         = `SELECT n FROM scene WHERE word = $1`
	updateWord       = `UPDATE scene SET n = n + 1 WHERE word = $1`
)

// Capture runs one transaction whose first attempt ends in a deadlock, whose second ends in a
// serialization failure and whose third is committed, and returns the spans it left.
func Capture(ctx context.Context, box *sandbox.Sandbox) (root *Span, err error) {
	exporter := tracetest.NewInMemoryExporter()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(exporter), sdktrace.WithSampler(sdktrace.AlwaysSample()))
	defer func() { err = errors.Join(err, provider.Shutdown(context.WithoutCancel(ctx))) }()

	db, err := pgretry.Open(box.DSN(), pgretry.WithTracerProvider(provider))
	if err != nil {
		return nil, fmt.Errorf("open the database: %w", err)
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if err := db.PingContext(ctx); err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	rivals, err := box.Plain()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rivals.Close()) }()

	for range takes {
		if err := box.Empty(ctx); err != nil {
			return nil, err
		}
		if _, err := box.DB().ExecContext(ctx, `
			CREATE TABLE scene (word text PRIMARY KEY, n integer NOT NULL);
			INSERT INTO scene VALUES ('hello', 0), ('world', 0)`); err != nil {
			return nil, fmt.Errorf("create tables: %w", err)
		}
		exporter.Reset()
		if err := play(ctx, db, rivals, box.DB()); err != nil {
			return nil, fmt.Errorf("bring about a deadlock and a serialization failure: %w", err)
		}
		if root, err = build(exporter.GetSpans()); err != nil {
			return nil, err
		}
		if len(root.attempts()) > 2 {
			break
		}
	}
	return root, nil
}

// play runs the transaction against rivals that do, in each attempt, what makes it fail.
func play(ctx context.Context, db, rivals, watch *sql.DB) error {
	crossed := make(chan error, 1)
	first, err := begin(ctx, rivals)
	if err != nil {
		return err
	}
	defer first.tx.Rollback() // has an effect only if the scene broke off
	if _, err := first.tx.ExecContext(ctx, updateWord, "world"); err != nil {
		return err
	}
	attempt := 0
	options := &sql.TxOptions{Isolation: sql.LevelRepeatableRead}
	err = pgretry.RunInTx(pgretry.ContextWithName(ctx, "greeting"), db, options, func(ctx context.Context, tx *sql.Tx) error {
		attempt++
		if attempt == 2 {
			// Until then it holds "hello", and the second attempt must get further than the first.
			if err := <-crossed; err != nil {
				return fmt.Errorf("rival transaction: %w", err)
			}
		}
		var n int
		if err := tx.QueryRowContext(ctx, readWord, "hello").Scan(&n); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, updateWord, "hello"); err != nil {
			return err
		}
		switch attempt {
		case 1:
			go func() { crossed <- first.crossOver(ctx) }()
			if err := first.waitUntilCheckedForDeadlock(ctx, watch); err != nil {
				return err
			}
		case 2:
			// Behind this transaction's snapshot.
			if _, err := rivals.ExecContext(ctx, updateWord, "world"); err != nil {
				return fmt.Errorf("rival transaction: %w", err)
			}
		}
		_, err := tx.ExecContext(ctx, updateWord, "world")
		return err
	})
	return err
}

// rival is a session that is in the way.
type rival struct {
	tx  *sql.Tx
	pid int
}

func begin(ctx context.Context, db *sql.DB) (*rival, error) {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return nil, err
	}
	r := &rival{tx: tx}
	if err := tx.QueryRowContext(ctx, `SELECT pg_backend_pid()`).Scan(&r.pid); err != nil {
		return nil, errors.Join(err, tx.Rollback())
	}
	return r, nil
}

// crossOver asks for the row that the transaction on show holds.
func (r *rival) crossOver(ctx context.Context) error {
	if _, err := r.tx.ExecContext(ctx, updateWord, "hello"); err != nil {
		return err
	}
	return r.tx.Commit()
}

// waitUntilCheckedForDeadlock returns when the rival has waited for a lock for so long that its
// server process has looked for a deadlock. It does that once per wait, so whoever closes the
// circle after that is the one who finds it, and is aborted.
func (r *rival) waitUntilCheckedForDeadlock(ctx context.Context, watch *sql.DB) error {
	ticker := time.NewTicker(lockPollInterval)
	defer ticker.Stop()
	for {
		var checked bool
		err := watch.QueryRowContext(ctx, `
			SELECT count(*) > 0 FROM pg_stat_activity
			WHERE pid = $1 AND wait_event_type = 'Lock'
			AND clock_timestamp() - query_start > current_setting('deadlock_timeout')::interval + interval '50 ms'`, r.pid,
		).Scan(&checked)
		if err != nil {
			return fmt.Errorf("watch the rival transaction: %w", err)
		}
		if checked {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-ticker.C:
		}
	}
}
