package abort

import "github.com/pgretry/pgretry/internal/sqltext"

type blockState uint8

const (
	outside blockState = iota
	active
	aborted // the server refuses everything but a rollback
)

// block is the transaction block of a connection, as the server keeps it.
type block struct {
	state  blockState
	number int64 // over all connections, from 1; 0 if it began while injection was off
	calls  int64 // inside, that could have failed
	serial int64 // of this connection's blocks, for rows to know theirs
}

func (c *conn) enter() {
	c.block = block{state: active, serial: c.block.serial + 1}
	if !c.connector.off.Load() {
		c.block.number = c.connector.transactions.Add(1)
	}
}

// failed notes an error.
func (b *block) failed(err error) {
	if b.state == active && err != nil && sqlState(err) != "" {
		b.state = aborted
	}
}

// executed notes the outcome of a text that the server was asked to run.
func (c *conn) executed(info sqltext.Info, err error) {
	switch {
	case err != nil:
		c.block.failed(err)
	case info.BeginsTx:
		c.enter()
	case info.EndsTx:
		c.block.state = outside
	case info.Keyword == sqltext.RollbackTo && c.block.state == aborted:
		c.block.state = active
	}
}

// kindOf returns the kind of a call with the text, inside being its kind in a
// block, and whether the call may be made to fail.
func (c *conn) kindOf(info sqltext.Info, inside Kind) (Kind, bool) {
	never := info.Statements == 0 || info.BeginsTx || info.EndsTx ||
		info.Keyword == sqltext.RollbackTo || c.block.state == aborted
	if c.block.state == outside {
		return Lone, !never
	}
	return inside, !never
}
