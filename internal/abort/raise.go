package abort

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"

	"github.com/pgretry/pgretry/internal/sqltext"
)

// inFailedTransaction is the SQLSTATE of everything in a block that is aborted.
const inFailedTransaction = "25P02"

// words are what the server says with some SQLSTATEs.
var words = map[string]string{
	"40001": "could not serialize access",
	"40P01": "deadlock detected",
}

// raising returns a text that makes the server fail.
func raising(sqlState string) string {
	said, ok := words[sqlState]
	if !ok {
		said = "aborted on purpose"
	}
	return fmt.Sprintf(`DO $$ BEGIN RAISE EXCEPTION '%s (injected)' USING ERRCODE = '%s'; END $$`, said, sqlState)
}

// errNotRaised means that the server let pass what cannot pass.
var errNotRaised = errors.New("abort: the server did not raise the error it was told to")

// raise makes the server fail and returns its error. If something unseen had aborted the
// block, that is what the call would have got, too.
func (c *conn) raise(ctx context.Context, kind Kind, state string) error {
	err := c.session.run(ctx, raising(state))
	if err == nil {
		return errNotRaised
	}
	raised := sqlState(err)
	if raised == state {
		if c.block.script == nil {
			c.connector.control.injected[kind].Add(1)
		}
		if kind != Lone {
			c.block.onPurpose = true
			c.block.injected++
		}
	}
	c.block.failed(err)
	if raised != state && raised != "" && raised != inFailedTransaction {
		return fmt.Errorf("%w: %w", errNotRaised, err)
	}
	return err
}

// abort makes the server fail in place of a call with the statement, if the call is
// one that has to; inside is its kind in a block. It returns nil if the call should
// be made.
func (c *conn) abort(ctx context.Context, inside Kind, s statement, args []driver.NamedValue) error {
	if err := c.checkScripted(s); err != nil {
		return err
	}
	kind, may := c.kindOf(s, inside)
	if kind.IsStatement() && !c.own {
		c.block.executed++
	}
	if !may {
		if c.block.script != nil && !c.own && s.info.Keyword == sqltext.RollbackTo {
			c.block.script.Call(Call{Kind: kind, Text: s.text, Args: args, Statement: c.block.executed, Spared: true})
		}
		return nil
	}
	state, fails := c.draw(kind, s, args)
	if !fails {
		return nil
	}
	return c.raise(ctx, kind, state)
}

// sqlState returns the SQLSTATE of a server's error, or "".
func sqlState(err error) string {
	var state interface{ SQLState() string }
	if errors.As(err, &state) {
		return state.SQLState()
	}
	return ""
}
