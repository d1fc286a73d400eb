package abort

import "fmt"

// Option configures a [Connector]. A wrong value is an error from [NewConnector].
type Option func(*config) error

type config struct {
	seed   uint64
	inside float64
	lone   float64
	at     map[place]bool
}

// place is one call inside one transaction.
type place struct{ transaction, call int64 }

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
		c.inside = p
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
	return fmt.Errorf("abort: probability is %v, allowed is 0 to 1", p)
}

// WithAbortAt makes exactly one call fail, besides those that chance selects: the
// one with the given number inside the transaction with the given number, both
// from 1. Transactions are counted over all connections, in the order in which
// they began. The option can be given more than once.
func WithAbortAt(transaction, call int) Option {
	return func(c *config) error {
		if transaction < 1 || call < 1 {
			return fmt.Errorf("abort: call %d of transaction %d, both count from 1", call, transaction)
		}
		if c.at == nil {
			c.at = make(map[place]bool)
		}
		c.at[place{int64(transaction), int64(call)}] = true
		return nil
	}
}
