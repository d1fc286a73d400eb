package abort

import (
	"fmt"
	"slices"
)

// Option configures a [Connector]. A wrong value is an error from [NewConnector].
type Option func(*config) error

type config struct {
	seed          uint64
	perCall       float64
	perAttempt    float64
	lone          float64
	withoutCommit bool
	withoutOwn    bool
	sqlStates     []string
	points        []int64 // the n-th is that of the n-th attempt: a statement, or atCommit
	at            map[place]bool
	control       *Control
}

// atCommit is the point that is no statement's.
const atCommit = 0

// place is one call inside one transaction.
type place struct{ transaction, call int64 }

func newConfig(options []Option) (config, error) {
	c := config{sqlStates: []string{"40001", "40P01"}}
	for _, option := range options {
		if err := option(&c); err != nil {
			return config{}, err
		}
	}
	if c.withoutCommit && slices.Contains(c.points, atCommit) {
		return config{}, fmt.Errorf("aborts at COMMIT are both asked for and ruled out")
	}
	return c, nil
}

// WithSeed sets what the choices are a function of. The default is 0.
func WithSeed(seed uint64) Option {
	return func(c *config) error {
		c.seed = seed
		return nil
	}
}

// WithProbability sets the probability, from 0 to 1, with which each call inside a
// transaction block fails. The default is 0.
func WithProbability(p float64) Option {
	return func(c *config) error {
		c.perCall = p
		return validProbability(p)
	}
}

// WithAttemptProbability sets the probability, from 0 to 1, with which each
// transaction block fails, at a call picked evenly among those that it is going to
// make. How many these are is guessed from the transactions before; a block that was
// to fail and comes to its COMMIT first fails there. After a rollback to a savepoint
// that undid such a failure, what is left of the block fails with the same
// probability. The default is 0.
func WithAttemptProbability(p float64) Option {
	return func(c *config) error {
		c.perAttempt = p
		return validProbability(p)
	}
}

// WithLoneProbability sets the probability, from 0 to 1, with which each statement
// outside a transaction block fails before it took effect. The default is 0.
func WithLoneProbability(p float64) Option {
	return func(c *config) error {
		c.lone = p
		return validProbability(p)
	}
}

func validProbability(p float64) error {
	if p >= 0 && p <= 1 {
		return nil
	}
	return fmt.Errorf("the probability is %v, allowed is 0 to 1", p)
}

// WithStatementPoint makes the next attempt of each transaction fail at its n-th
// statement: the first one, if no point was given before, the second one after one
// point, and so on. Statements are counted from 1, and commands about savepoints not
// at all.
func WithStatementPoint(n int) Option {
	return func(c *config) error {
		if n < 1 {
			return fmt.Errorf("the statement to abort at is %d, the first one is 1", n)
		}
		c.points = append(c.points, int64(n))
		return nil
	}
}

// WithCommitPoint is WithStatementPoint for COMMIT.
func WithCommitPoint() Option {
	return func(c *config) error {
		c.points = append(c.points, atCommit)
		return nil
	}
}

// WithoutCommit rules out that COMMIT fails, and does not count it as a call.
func WithoutCommit() Option {
	return func(c *config) error {
		c.withoutCommit = true
		return nil
	}
}

// WithoutOwn spares what pgretry asks and commands by itself, and does not count it.
func WithoutOwn() Option {
	return func(c *config) error {
		c.withoutOwn = true
		return nil
	}
}

// WithSQLStates sets the SQLSTATEs that are raised, each as likely as the others;
// one that is given twice is so twice. The default is 40001 and 40P01.
func WithSQLStates(states ...string) Option {
	return func(c *config) error {
		if len(states) == 0 {
			return fmt.Errorf("there is no SQLSTATE to raise")
		}
		for _, state := range states {
			if !isError(state) {
				return fmt.Errorf("SQLSTATE %q is none of an error", state)
			}
		}
		c.sqlStates = slices.Clone(states)
		return nil
	}
}

// isError says whether a server can be told to fail with the SQLSTATE.
func isError(state string) bool {
	if len(state) != 5 {
		return false
	}
	for _, c := range []byte(state) {
		if (c < '0' || c > '9') && (c < 'A' || c > 'Z') {
			return false
		}
	}
	switch state[:2] {
	case "00", "01", "02": // success, warning, no data
		return false
	}
	return true
}

// WithAbortAt makes exactly one call fail, besides those that the other options
// select: the one with the given number inside the transaction with the given number,
// both from 1. Transactions are counted over all connections, in the order in which
// they began. The option can be given more than once.
func WithAbortAt(transaction, call int) Option {
	return func(c *config) error {
		if transaction < 1 || call < 1 {
			return fmt.Errorf("call %d of transaction %d is to fail, both count from 1", call, transaction)
		}
		if c.at == nil {
			c.at = make(map[place]bool)
		}
		c.at[place{int64(transaction), int64(call)}] = true
		return nil
	}
}

// WithControl puts the connector under a control that it shares with others. The
// default is one of its own.
func WithControl(control *Control) Option {
	return func(c *config) error {
		c.control = control
		return nil
	}
}
