package abort

import (
	"context"
	"database/sql/driver"
)

var _ driver.Tx = (*tx)(nil)

type tx struct {
	inner driver.Tx
	conn  *conn
	ctx   context.Context // the one it began with
}

// Commit commits, or makes the server fail first and then roll back, which is
// where a COMMIT that failed leaves a session.
func (t *tx) Commit() error {
	c := t.conn
	whole := c.block.injected == 0
	if c.block.state == active {
		if state, fails := c.draw(Commit, statement{}, nil); fails {
			err := c.raise(context.Background(), Commit, state)
			if sqlState(err) != inFailedTransaction {
				// The connection is broken if this fails, and it will say so itself.
				_ = t.inner.Rollback()
				c.leave(whole)
				return err
			}
			// Something unseen had aborted the block, and COMMIT will say so.
		} else if c.block.script != nil {
			return t.commitByScript()
		}
	}
	c.leave(whole)
	return t.inner.Commit()
}

// commitByScript ends the transaction as its script says, and undoes it.
func (t *tx) commitByScript() error {
	c := t.conn
	err := c.block.script.Commit(t.ctx, Session{&c.session})
	if sqlState(err) == inFailedTransaction {
		c.leave(false)
		return t.inner.Commit() // something unseen had aborted the block
	}
	c.leave(false)
	if rollbackErr := t.inner.Rollback(); err == nil {
		err = rollbackErr
	}
	return err
}

func (t *tx) Rollback() error {
	t.conn.leave(t.conn.block.injected == 0)
	return t.inner.Rollback()
}
