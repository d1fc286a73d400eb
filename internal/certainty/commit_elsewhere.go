package certainty

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/lib/pq"

	"github.com/pgretry/pgretry/internal/faultproxy"
)

// commitChannel is what NOTIFY is heard on.
const commitChannel = "certainty"

// commitEar hears notifications, each of which proves a commit.
type commitEar struct {
	listener *pq.Listener
	done     chan struct{}

	mu    sync.Mutex
	heard map[string]int
	news  chan struct{} // closed and replaced when something was heard
}

func listen(dsn string) (*commitEar, error) {
	e := &commitEar{
		listener: pq.NewListener(dsn, 10*time.Millisecond, time.Second, nil),
		done:     make(chan struct{}), heard: make(map[string]int), news: make(chan struct{}),
	}
	go func() {
		defer close(e.done)
		for n := range e.listener.Notify {
			if n == nil {
				continue // it has connected again
			}
			e.mu.Lock()
			e.heard[n.Extra]++
			close(e.news)
			e.news = make(chan struct{})
			e.mu.Unlock()
		}
	}()
	if err := e.listener.Listen(commitChannel); err != nil {
		return nil, errors.Join(fmt.Errorf("listen: %w", err), e.close())
	}
	return e, nil
}

func (e *commitEar) close() error {
	err := e.listener.Close()
	<-e.done
	return err
}

// await waits until a payload has been heard.
func (e *commitEar) await(ctx context.Context, payload string) error {
	limit, cancel := context.WithTimeout(ctx, commitPatience)
	defer cancel()
	for {
		e.mu.Lock()
		n, news := e.heard[payload], e.news
		e.mu.Unlock()
		if n > 0 {
			return nil
		}
		select {
		case <-news:
		case <-limit.Done():
			return fmt.Errorf("wait for the notification %s: %w", payload, context.Cause(limit))
		}
	}
}

func (e *commitEar) times(payload string) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.heard[payload]
}

// notifications: the transaction has no id, though it did something.
func notifications(ctx context.Context, r *commitRun, trials int, result *CommitResult) (err error) {
	ear, err := listen(r.server.DSN())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ear.close()) }()
	work := commitWork{
		do: func(ctx context.Context, db *sql.DB, t *commitTrial) error {
			return inTransaction(ctx, db, t, func(ctx context.Context, tx *sql.Tx) error {
				if t.number%4 < 2 {
					_, err := tx.ExecContext(ctx, fmt.Sprintf(`NOTIFY %s, '%s'`, commitChannel, t.id))
					return err
				}
				_, err := tx.ExecContext(ctx, `SELECT pg_notify($1, $2)`, commitChannel, t.id)
				return err
			})
		},
		// Notifications are heard in the order of their commits.
		truth: func(ctx context.Context, t *commitTrial) (commitTruth, error) {
			last := t.id + "-last"
			if err := r.do(ctx, `SELECT pg_notify($1, $2)`, commitChannel, last); err != nil {
				return commitTruth{}, err
			}
			if err := ear.await(ctx, last); err != nil {
				return commitTruth{}, err
			}
			n := ear.times(t.id)
			return commitTruth{n, n}, nil
		},
	}
	return r.overWire(ctx, r.config.Workers, work, commitFault{request: cutAround, answer: cutAnsweredAtTimes}, trials, result)
}

// foreignTables: what counts is done in another session, which commits first. Every
// other transaction writes nothing but that.
func foreignTables(ctx context.Context, r *commitRun, trials int, result *CommitResult) error {
	address, err := commitAddress(r.server.DSN())
	if err != nil {
		return err
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	for _, text := range []string{
		`CREATE EXTENSION IF NOT EXISTS postgres_fdw`,
		fmt.Sprintf(`CREATE SERVER loopback FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '%s', port '%s', dbname 'postgres')`, host, port),
		`CREATE USER MAPPING FOR CURRENT_USER SERVER loopback OPTIONS (user 'pgretry')`,
		`CREATE FOREIGN TABLE far_marker (id text) SERVER loopback OPTIONS (table_name 'marker')`,
	} {
		if err := r.do(ctx, text); err != nil {
			return err
		}
	}
	work := commitWork{
		do: func(ctx context.Context, db *sql.DB, t *commitTrial) error {
			return inTransaction(ctx, db, t, func(ctx context.Context, tx *sql.Tx) error {
				if _, err := tx.ExecContext(ctx, `INSERT INTO far_marker VALUES ($1)`, t.id); err != nil || t.number%4 < 2 {
					return err
				}
				_, err := tx.ExecContext(ctx, `INSERT INTO companion VALUES ($1)`, t.id)
				return err
			})
		},
		truth: func(ctx context.Context, t *commitTrial) (commitTruth, error) {
			truth, err := commitMarkers(ctx, t)
			if err != nil || t.number%4 < 2 {
				return truth, err
			}
			var near int
			err = r.ask(ctx, `SELECT count(*) FROM companion WHERE id = $1`, []any{t.id}, &near)
			return commitTruth{min(truth.least, near), max(truth.most, near)}, err
		},
		lingers: []string{"postgres_fdw"},
	}
	fault := commitFault{
		request: func(t *commitTrial, m faultproxy.Message) faultproxy.Action {
			if t.number%6 == 5 {
				return terminateForeign(t)
			}
			return cutAround(t, m)
		},
		answer: func(t *commitTrial, m faultproxy.Message) faultproxy.Action {
			if t.number%6 == 5 {
				return faultproxy.Action{}
			}
			return cutAnsweredAtTimes(t, m)
		},
	}
	// One at a time: nobody can tell whose a session of the foreign side is.
	if err := r.overWire(ctx, 1, work, fault, trials, result); err != nil {
		return err
	}
	// Where foreign tables exist, a driver may be more careful than it has to.
	return r.do(ctx, `DROP EXTENSION postgres_fdw CASCADE`)
}

// terminateForeign ends the local backend while it commits in two places.
func terminateForeign(t *commitTrial) faultproxy.Action {
	wait := t.lane.chance.upTo(time.Millisecond)
	t.bystanders.Go(func() {
		_ = commitPause(context.Background(), wait) // does not fail
		t.strike()
		terminate(t)
	})
	return faultproxy.Action{}
}
