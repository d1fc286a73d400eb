package abort

import (
	"context"
	"database/sql/driver"
	"errors"
	"math/rand/v2"
)

// The errors, as the server would word them.
var failures = [...]struct{ sqlState, text string }{
	{"40001", `DO $$ BEGIN RAISE EXCEPTION 'could not serialize access (injected)' USING ERRCODE = '40001'; END $$`},
	{"40P01", `DO $$ BEGIN RAISE EXCEPTION 'deadlock detected (injected)' USING ERRCODE = '40P01'; END $$`},
}

// errNotRaised means that the server let pass what cannot pass.
var errNotRaised = errors.New("abort: the server did not raise the error it was told to")

// draw counts a call and says whether it has to fail, and with which error.
func (c *conn) draw(kind Kind) (failure int, fails bool) {
	connector := c.connector
	if connector.off.Load() {
		return 0, false
	}
	c.calls++
	random := rand.New(rand.NewPCG(connector.config.seed, uint64(c.number)<<32|uint64(c.calls)))
	failure = random.IntN(len(failures))
	p := connector.config.inside
	if kind == Lone {
		p = connector.config.lone
	} else {
		c.block.calls++
		fails = connector.config.at[place{c.block.number, c.block.calls}]
	}
	// One more draw in any case: the outcome of this must not depend on the above.
	return failure, random.Float64() < p || fails
}

// raise makes the server fail and returns its error.
func (c *conn) raise(ctx context.Context, kind Kind, failure int) error {
	_, err := c.session.ExecContext(ctx, failures[failure].text, nil)
	if err == nil {
		return errNotRaised
	}
	if sqlState(err) == failures[failure].sqlState {
		c.connector.injected[kind].Add(1)
	}
	c.block.failed(err)
	return err
}

// abort makes the server fail in place of a call, if the call is one that has to.
// It returns nil if the call should be made.
func (c *conn) abort(ctx context.Context, kind Kind) error {
	failure, fails := c.draw(kind)
	if !fails {
		return nil
	}
	return c.raise(ctx, kind, failure)
}

// sqlState returns the SQLSTATE of a server's error, or "".
func sqlState(err error) string {
	var state interface{ SQLState() string }
	if errors.As(err, &state) {
		return state.SQLState()
	}
	return ""
}

// named gives arguments from before names the form of today.
func named(values []driver.Value) []driver.NamedValue {
	list := make([]driver.NamedValue, len(values))
	for i, value := range values {
		list[i] = driver.NamedValue{Ordinal: i + 1, Value: value}
	}
	return list
}
