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
	if c.block.state == active {
		if failure, fails := c.draw(Commit); fails {
			err := c.raise(context.Background(), Commit, failure)
			// The connection is broken if this fails, and it will say so itself.
			_ = t.inner.Rollback()
			c.block.state = outside
			return err
		}
	}
	c.block.state = outside
	return t.inner.Commit()
}

func (t *tx) Rollback() error {
	t.conn.block.state = outside
	return t.inner.Rollback()
}
