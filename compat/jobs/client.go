package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"time"

	"github.com/lib/pq"
)

// ErrLost is for a job that is no longer the client's: it was rescued, and is another's.
var ErrLost = errors.New("the job is no longer ours")

// Job is a job as it was claimed.
type Job struct {
	ID      int64
	Kind    string
	Attempt int
	Args    json.RawMessage
}

// Work does a job in a transaction, which completes the job as well.
type Work func(ctx context.Context, tx Tx, job Job) error

// Client does jobs. All fields but Failed, Done and Now have to be set.
type Client struct {
	App   *App
	ID    string
	Slots int // jobs that it does at once
	Work  Work

	// InTx runs a transaction: App.InTx, or that in a closure.
	InTx func(ctx context.Context, work func(ctx context.Context, tx Tx) error) error

	// Failed is told each error with which a statement or a transaction of the queue
	// failed, though it is tried again. Done is told each job that is done. Both may be
	// called from several goroutines at once.
	Failed func(error)
	Done   func(Job)

	// Now is the time, the server's if nil.
	Now func() time.Time
}

// now is an argument for coalesce($n::timestamptz, now()).
func (c *Client) now() any {
	if c.Now == nil {
		return nil
	}
	return c.Now()
}

// Listen hears of jobs to do on a connection of lib/pq's own, for database/sql knows no
// notifications. The listener is to be given to Run, and closed.
func Listen(dsn string) (*pq.Listener, error) {
	l := pq.NewListener(dsn, 10*time.Millisecond, time.Second, nil)
	if err := l.Listen(channel); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// Run claims jobs and does them, until the context ends. It looks for jobs at once, when it
// is notified, and when it has done one: never for time.
func (c *Client) Run(ctx context.Context, jobs *pq.Listener) error {
	var working sync.WaitGroup
	defer working.Wait()
	done := make(chan error, c.Slots)
	free := c.Slots
	for {
		claimed, err := c.claim(ctx, free)
		if err != nil {
			return err
		}
		for _, job := range claimed {
			free--
			working.Go(func() { done <- c.do(ctx, job) })
		}
		select {
		case err := <-done:
			if err != nil {
				return err
			}
			free++
		case <-jobs.Notify:
		case <-ctx.Done():
			return nil
		}
	}
}

// claim is Claim as often as it takes.
func (c *Client) claim(ctx context.Context, limit int) (claimed []Job, err error) {
	err = c.again(ctx, func() (err error) {
		claimed, err = c.Claim(ctx, limit)
		return err
	})
	return claimed, err
}

// again does something again after a conflict, as everybody has to without a driver that
// does. At the context's end it returns nil.
func (c *Client) again(ctx context.Context, do func() error) error {
	for {
		err := do()
		if err == nil || ctx.Err() != nil {
			return nil //nolint:nilerr // the end was asked for
		}
		if c.Failed != nil {
			c.Failed(err)
		}
		if !IsConflict(err) {
			return err
		}
	}
}

// IsConflict says whether it is an error with which a server aborts a transaction.
func IsConflict(err error) bool {
	var state interface{ SQLState() string }
	return errors.As(err, &state) && (state.SQLState() == "40001" || state.SQLState() == "40P01")
}

// Claim makes some of the jobs that are available this client's, outside a transaction, in
// the order of their priority. They stay the client's until they are completed, failed or
// rescued.
func (c *Client) Claim(ctx context.Context, limit int) ([]Job, error) {
	return claim(ctx, newTx(c.App.DB()), c, limit)
}

func claim(ctx context.Context, tx Tx, c *Client, limit int) (claimed []Job, err error) {
	if limit == 0 {
		return nil, nil
	}
	rows, err := tx.Rows(ctx, `UPDATE job SET state = 'running', attempt = attempt + 1,
			attempted_at = coalesce($1::timestamptz, now()), attempted_by = $2
		WHERE id IN (SELECT id FROM job WHERE state = 'available' ORDER BY priority, id LIMIT $3 FOR UPDATE SKIP LOCKED)
		RETURNING id, kind, attempt, args`, c.now(), c.ID, limit)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var j Job
		if err := rows.Scan(&j.ID, &j.Kind, &j.Attempt, &j.Args); err != nil {
			return nil, err
		}
		claimed = append(claimed, j)
	}
	return claimed, rows.Err()
}

// do does a job that was claimed. If that fails, the job is available again.
func (c *Client) do(ctx context.Context, job Job) error {
	err := c.Do(ctx, job)
	switch {
	case err == nil:
		if c.Done != nil {
			c.Done(job)
		}
		return nil
	case c.Failed != nil:
		c.Failed(err)
	}
	return c.again(ctx, func() error { return c.fail(ctx, job, err) })
}

// Do does a job that was claimed: its effect and its completion are one transaction. It
// returns ErrLost if the job is no longer the client's.
func (c *Client) Do(ctx context.Context, job Job) error {
	return c.InTx(ctx, func(ctx context.Context, tx Tx) error {
		if err := c.Work(ctx, tx, job); err != nil {
			return err
		}
		return complete(ctx, tx, job)
	})
}

func complete(ctx context.Context, tx Tx, job Job) error {
	completed, err := tx.Exec(ctx, `UPDATE job SET state = 'completed', finalized_at = now()
		WHERE id = $1 AND state = 'running' AND attempt = $2`, job.ID, job.Attempt)
	if err == nil && completed == 0 {
		return ErrLost
	}
	return err
}

// fail makes a job available that was attempted in vain.
func (c *Client) fail(ctx context.Context, job Job, why error) error {
	return c.InTx(ctx, func(ctx context.Context, tx Tx) error {
		failed, err := tx.Exec(ctx, `UPDATE job SET state = 'available', errors = array_append(errors, $3)
			WHERE id = $1 AND state = 'running' AND attempt = $2`, job.ID, job.Attempt, why.Error())
		if err != nil || failed == 0 {
			return err
		}
		return tx.notify(ctx)
	})
}

// DoNext claims a job and does it in one transaction: what is locked by that is nobody
// else's. It returns false if there is none that is not locked.
func (c *Client) DoNext(ctx context.Context) (found bool, err error) {
	var job Job
	err = c.InTx(ctx, func(ctx context.Context, tx Tx) error {
		found = false
		claimed, err := claim(ctx, tx, c, 1)
		if err != nil || len(claimed) == 0 {
			return err
		}
		found, job = true, claimed[0]
		if err := c.Work(ctx, tx, job); err != nil {
			return err
		}
		return complete(ctx, tx, job)
	})
	if err == nil && found && c.Done != nil {
		c.Done(job)
	}
	return found, err
}
