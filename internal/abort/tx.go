package abort

import (
	"context"
	"database/sql/driver"
)

var _ driver.Tx = (*tx)(nil)

type tx struct {
	inner driver.Tx
	conn  *conn
}

// Commit commits, or makes the server fail first and then roll back, which is
// where a COMMIT that failed leaves a session.
func (t *tx) Commit() error {
	c := t.conn
	whole := c.block.injected == 0
	if c.block.state == active {
		if state, fails := c.draw(Commit, statement{}); fails {
			err := c.raise(context.Background(), Commit, state)
			if sqlState(err) != inFailedTransaction {
				// The connection is broken if this fails, and it will say so itself.
				_ = t.inner.Rollback()
				c.leave(whole)
				return err
			}
			// Something unseen had aborted the block, and COMMIT will say so.
		}
	}
	c.leave(whole)
	return t.inner.Commit()
}

func (t *tx) Rollback() error {
	t.conn.leave(t.conn.block.injected == 0)
	return t.inner.Rollback()
}
