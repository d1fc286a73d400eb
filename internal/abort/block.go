package abort

import (
	"context"

	"github.com/pgretry/pgretry/internal/sqltext"
)

type blockState uint8

const (
	outside blockState = iota
	active
	aborted // the server refuses everything but a rollback
)

// block is the transaction block of a connection, as the server keeps it.
type block struct {
	state      blockState
	serial     int64 // of this connection's blocks, for rows to know theirs
	number     int64 // over all connections, from 1; 0 if it began while injection was off
	attempt    int64 // which attempt of its transaction it is, from 1
	calls      int64 // inside, that could have failed
	statements int64 // of these, statements but for savepoint commands
	executed   int64 // statements, whatever they are

	script ScriptedBlock // decides, nil for none

	onPurpose bool  // its last abort was of our making, and no savepoint has undone it
	injected  int64 // aborts of our making

	drawn bool   // the choices below were made
	kind  string // what its length is known by
	pick  int64  // the call that is to fail, 0 for none
}

func (c *conn) enter(ctx context.Context) {
	c.leave(c.block.injected == 0)
	c.block = block{state: active, serial: c.block.serial + 1}
	if c.connector.control.off.Load() {
		return
	}
	c.block.number = c.connector.transactions.Add(1)
	c.block.attempt = c.streak + 1
	if attempt := attemptOf(ctx); attempt > 0 {
		c.block.attempt = int64(attempt)
	}
}

// leave notes the end of the block, if there is one. whole says that it made all the
// calls that it would have made undisturbed.
func (c *conn) leave(whole bool) {
	b := &c.block
	if b.state == outside {
		return
	}
	b.state = outside
	if b.number == 0 || b.script != nil {
		return
	}
	c.streak = 0
	if b.onPurpose {
		c.streak = b.attempt
	}
	if b.drawn && whole {
		c.connector.lengths.add(b.kind, b.calls)
	}
}

// failed notes an error.
func (b *block) failed(err error) {
	if b.state == active && err != nil && sqlState(err) != "" {
		b.state = aborted
	}
}

// executed notes the outcome of a text that the server was asked to run.
func (c *conn) executed(ctx context.Context, s statement, err error) {
	switch {
	case err != nil:
		c.block.failed(err)
	case s.info.BeginsTx:
		c.enter(ctx)
	case s.info.EndsTx:
		c.leave(c.block.injected == 0)
	case s.info.Keyword == sqltext.RollbackTo && c.block.state == aborted:
		c.block.backToSavepoint()
	}
}

// backToSavepoint begins what is left of the block anew.
func (b *block) backToSavepoint() {
	b.state = active
	if b.onPurpose {
		b.onPurpose, b.drawn = false, false
		b.attempt++
	}
}

// kindOf returns the kind of a call with the statement, inside being its kind in a
// block, and whether the call may be made to fail.
func (c *conn) kindOf(s statement, inside Kind) (Kind, bool) {
	never := s.info.Statements == 0 || s.info.BeginsTx || s.info.EndsTx ||
		s.info.Keyword == sqltext.RollbackTo || c.block.state == aborted
	if c.block.state == outside {
		return Lone, !never
	}
	return inside, !never
}
