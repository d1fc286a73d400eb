package abort

import (
	"database/sql/driver"
	"math/rand/v2"
)

// draw counts a call and says whether it has to fail, and with which SQLSTATE. The
// statement is the zero value for calls that have none.
func (c *conn) draw(kind Kind, s statement, args []driver.NamedValue) (sqlState string, fails bool) {
	if c.block.script != nil && kind != Lone {
		return c.drawScripted(Call{Kind: kind, Text: s.text, Args: args, Statement: c.block.executed})
	}
	connector := c.connector
	config := &connector.config
	if connector.control.off.Load() || c.own && config.withoutOwn {
		return "", false
	}
	c.calls++
	random := rand.New(rand.NewPCG(config.seed, uint64(c.number)<<32|uint64(c.calls)))
	sqlState = config.sqlStates[random.IntN(len(config.sqlStates))]
	if kind == Lone {
		return sqlState, random.Float64() < config.lone
	}
	if kind == Commit && config.withoutCommit {
		return "", false
	}
	b := &c.block
	b.calls++
	if kind.IsStatement() && !s.isSavepoint() {
		b.statements++
	}
	// The draw comes in any case: what follows must not depend on the rest.
	fails = random.Float64() < config.perCall
	fails = fails || config.at[place{b.number, b.calls}]
	if b.number == 0 {
		return sqlState, fails
	}
	return sqlState, c.isPicked(kind, s, random) || c.isPoint(kind, s) || fails
}

// unknownLength is what a transaction is thought to have while none was seen.
const unknownLength = 4

// callsLeft guesses how many calls the block is going to make, this one included.
func (c *conn) callsLeft(random *rand.Rand) int64 {
	guess := c.connector.lengths.guess(c.block.kind, random)
	if guess == 0 && !c.connector.config.withoutCommit {
		guess = unknownLength // if it is too much, there still is COMMIT
	}
	return max(1, guess-c.block.calls+1)
}

// isPicked says whether the call is the one that the block's own draw picked. An
// attempt that is to fail and comes to its COMMIT before, fails there.
func (c *conn) isPicked(kind Kind, s statement, random *rand.Rand) bool {
	b, config := &c.block, &c.connector.config
	if config.perAttempt == 0 {
		return false
	}
	if !b.drawn {
		b.drawn, b.pick = true, 0
		done := b.calls - 1
		if done == 0 {
			b.kind = kindOfLength(s)
		}
		if fails := random.Float64() < config.perAttempt; fails {
			b.pick = done + 1 + random.Int64N(c.callsLeft(random))
		}
	}
	return b.pick == b.calls || kind == Commit && b.pick > b.calls
}

// isPoint says whether the call is the point at which this attempt is to fail.
func (c *conn) isPoint(kind Kind, s statement) bool {
	b, points := &c.block, c.connector.config.points
	if b.attempt > int64(len(points)) {
		return false
	}
	n := points[b.attempt-1]
	if n == atCommit {
		return kind == Commit
	}
	return kind.IsStatement() && !s.isSavepoint() && b.statements == n
}
