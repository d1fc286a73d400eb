package spantree

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/lib/pq"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

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
	deadlockDetected = "40P01"
)

// Capture runs one transaction whose first attempt ends in a deadlock, whose second ends in a
// serialization failure and whose third is committed, and returns the spans it left.
func Capture(ctx context.Context, box *sandbox.Sandbox) (*Span, error) {
	return capture(ctx, box, scene{play: playClosure, root: transactionSpan, attempts: 3})
}

// CaptureReplay runs one transaction without a closure whose first attempt ends in a deadlock and
// which the driver then replays, and returns the spans it left, below one of the application's own.
// If the driver does not replay it, there is but one attempt.
func CaptureReplay(ctx context.Context, box *sandbox.Sandbox) (*Span, error) {
	return capture(ctx, box, scene{play: playReplay, root: applicationSpan, attempts: 2})
}

// scene is what is captured.
type scene struct {
	play func(ctx context.Context, s stage) error
	// root is the name of the outermost span, and attempts how many it has if all goes as written.
	root     string
	attempts int
}

// stage is what a scene needs.
type stage struct {
	// db is what the transaction on show uses, its rivals and the watch being lib/pq's.
	db, rivals, watch *sql.DB
	tracer            trace.Tracer
}

func capture(ctx context.Context, box *sandbox.Sandbox, scene scene) (root *Span, err error) {
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
		err := scene.play(ctx, stage{db: db, rivals: rivals, watch: box.DB(), tracer: provider.Tracer("application")})
		if err != nil {
			return nil, fmt.Errorf("bring about a conflict to show: %w", err)
		}
		if root, err = build(exporter.GetSpans(), scene.root); err != nil {
			return nil, err
		}
		if len(root.attempts()) >= scene.attempts {
			break
		}
	}
	return root, nil
}

// playClosure runs the transaction against rivals that do, in each attempt, what makes it fail.
func playClosure(ctx context.Context, s stage) error {
	crossed := make(chan error, 1)
	first, err := begin(ctx, s.rivals)
	if err != nil {
		return err
	}
	defer first.tx.Rollback() // has an effect only if the scene broke off
	if _, err := first.tx.ExecContext(ctx, updateWord, "world"); err != nil {
		return err
	}
	attempt := 0
	options := &sql.TxOptions{Isolation: sql.LevelRepeatableRead}
	err = pgretry.RunInTx(pgretry.ContextWithName(ctx, "greeting"), s.db, options, func(ctx context.Context, tx *sql.Tx) error {
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
			if err := first.waitUntilCheckedForDeadlock(ctx, s.watch); err != nil {
				return err
			}
		case 2:
			// Behind this transaction's snapshot.
			if _, err := s.rivals.ExecContext(ctx, updateWord, "world"); err != nil {
				return fmt.Errorf("rival transaction: %w", err)
			}
		}
		_, err := tx.ExecContext(ctx, updateWord, "world")
		return err
	})
	return err
}

// playReplay runs a transaction as an application does that knows nothing of retries, against a
// rival that makes its first attempt fail.
func playReplay(ctx context.Context, s stage) error {
	first, err := begin(ctx, s.rivals)
	if err != nil {
		return err
	}
	defer first.tx.Rollback() // has an effect only if the scene broke off
	if _, err := first.tx.ExecContext(ctx, updateWord, "world"); err != nil {
		return err
	}
	var crossed chan error
	ended := []error{s.greet(ctx, func() error {
		crossed = make(chan error, 1)
		go func() { crossed <- first.crossOver(ctx) }()
		return first.waitUntilCheckedForDeadlock(ctx, s.watch)
	})}
	if crossed != nil {
		ended = append(ended, <-crossed)
	}
	// Either of the two may be the one that the server aborts.
	for _, err := range ended {
		if server, ok := errors.AsType[*pq.Error](err); err != nil && (!ok || server.Code != deadlockDetected) {
			return err
		}
	}
	return nil
}

// greet is the application, with a gap in which something happens.
func (s stage) greet(ctx context.Context, between func() error) error {
	ctx, span := s.tracer.Start(ctx, applicationSpan)
	defer span.End()
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() // has an effect only if it was not committed
	if _, err := tx.ExecContext(ctx, updateWord, "hello"); err != nil {
		return err
	}
	if err := between(); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, updateWord, "world"); err != nil {
		return err
	}
	return tx.Commit()
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
