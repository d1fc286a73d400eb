package jobs

import (
	"context"
	"time"
)

// For how long a leader is elected, and how old an attempt is that is given up.
const (
	term  = time.Minute
	stuck = 30 * time.Minute
)

// Lead stands for election, and if the client is the leader, then or since before, it
// rescues jobs that others have begun and never ended. Both are one transaction.
func (c *Client) Lead(ctx context.Context) (leads bool, err error) {
	err = c.InTx(ctx, func(ctx context.Context, tx Tx) error {
		elected, err := tx.Exec(ctx, `INSERT INTO job_leader (leader_id, elected_at, expires_at)
			VALUES ($1, coalesce($2::timestamptz, now()), coalesce($2::timestamptz, now()) + make_interval(secs => $3))
			ON CONFLICT (name) DO UPDATE SET leader_id = excluded.leader_id, expires_at = excluded.expires_at,
				elected_at = CASE job_leader.leader_id WHEN excluded.leader_id THEN job_leader.elected_at ELSE excluded.elected_at END
			WHERE job_leader.leader_id = excluded.leader_id OR job_leader.expires_at < excluded.elected_at`,
			c.ID, c.now(), term.Seconds())
		leads = err == nil && elected == 1
		if !leads {
			return err
		}
		return c.rescue(ctx, tx)
	})
	return leads && err == nil, err
}

// rescue makes jobs available that are stuck.
func (c *Client) rescue(ctx context.Context, tx Tx) error {
	rescued, err := tx.Exec(ctx, `UPDATE job SET state = 'available', errors = array_append(errors, 'stuck')
		WHERE state = 'running' AND attempted_at < coalesce($1::timestamptz, now()) - make_interval(secs => $2)`,
		c.now(), stuck.Seconds())
	if err != nil || rescued == 0 {
		return err
	}
	return tx.notify(ctx)
}
