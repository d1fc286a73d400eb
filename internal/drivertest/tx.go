package drivertest

import "context"

// tx is a transaction. Its ctx is that of BeginTx, which drivers may watch until
// the end of the transaction.
type tx struct {
	c     *conn
	ctx   context.Context
	ended bool
}

func (t *tx) Commit() error {
	inv := Invocation{Context: t.ctx, Call: Commit, Method: "Commit"}
	if err := t.alreadyEnded(inv); err != nil {
		return err
	}
	failed := t.c.d.txState && t.c.block.failed
	out := t.c.perform(inv)
	t.c.endTx()
	if out.err == nil && failed {
		return t.c.d.commitErr
	}
	return out.err
}

func (t *tx) Rollback() error {
	inv := Invocation{Context: t.ctx, Call: Rollback, Method: "Rollback"}
	if err := t.alreadyEnded(inv); err != nil {
		return err
	}
	out := t.c.perform(inv)
	t.c.endTx()
	return out.err
}

// alreadyEnded notes a second end. It does not go through perform, as the
// connection may be busy with something of its own by now.
func (t *tx) alreadyEnded(inv Invocation) error {
	if !t.ended {
		return nil
	}
	inv.Conn = t.c.id
	t.c.d.violate("conn %d: %s after the transaction has ended", t.c.id, inv.Method)
	t.c.d.record(inv)(errTxDone)
	return errTxDone
}
