package pgretrytest

import (
	"fmt"

	"github.com/pgretry/pgretry"
	"github.com/pgretry/pgretry/internal/abort"
)

// Option says what a [Connector] or a [Driver] aborts. Without any it aborts nothing.
// A wrong value is an error from [NewConnector] or sql.Open.
type Option interface {
	engine() (abort.Option, error)
}

type option struct {
	made abort.Option
	err  error
}

func (o option) engine() (abort.Option, error) { return o.made, o.err }

func engineOptions(options []Option) ([]abort.Option, error) {
	made := make([]abort.Option, 0, len(options)+2)
	for _, o := range options {
		if o == nil {
			return nil, fmt.Errorf("pgretrytest: an option is nil")
		}
		engine, err := o.engine()
		if err != nil {
			return nil, err
		}
		made = append(made, engine)
	}
	return made, nil
}

// AtStatement aborts transactions at their n-th statement, which is not executed.
//
// Each AtStatement and each [AtCommit] is for one attempt: the first one is where the
// first attempt of every transaction is aborted, the second one where the second
// attempt is, and so on. Later attempts get through. So AtStatement(2) aborts every
// transaction once, at its second statement, and
//
//	AtStatement(2), AtStatement(2), AtCommit()
//
// twice at its second statement and then at COMMIT. An attempt that does not get as far
// as its point is not aborted there.
//
// In pgretry.RunInTx and pgretry.Retry attempts are their runs of the closure, however
// those before ended. Elsewhere a transaction that begins on a connection where the
// last one was aborted on purpose is its next attempt: a replay keeps its connection, and
// so does a loop of one's own in a pool that nobody else uses. What follows a rollback to
// a savepoint that undid an abort is the next attempt, too.
//
// Statements are counted from 1 and from BEGIN on, as they are executed, prepared or not;
// SAVEPOINT, RELEASE and ROLLBACK TO are none. Nor are statements outside transactions.
func AtStatement(n int) Option {
	if n < 1 {
		return option{err: fmt.Errorf("pgretrytest: the statement to abort at is %d, allowed is 1 or more", n)}
	}
	return option{made: abort.WithStatementPoint(n)}
}

// AtCommit aborts transactions at COMMIT, before it takes effect. Which attempts these
// are [AtStatement] says.
func AtCommit() Option { return option{made: abort.WithCommitPoint()} }

// WithProbability aborts each attempt of a transaction with probability p, from 0 to 1,
// whatever its length: with 0.5 it takes two attempts on average. The default is 0.
//
// The point is picked evenly among the calls that reach the server: statements, each
// prepared one once more when it is prepared, rows as they are read, results closed
// before their end, COMMIT. How many there will be is guessed from the last 16
// transactions that began with the same statement, whatever its values, and came to their
// end; in the first one of its kind from those of other kinds. An attempt that turns out
// to be shorter than the pick is aborted at COMMIT, if there is one. After a rollback to a
// savepoint that undid such an abort there is another draw, for what is left.
func WithProbability(p float64) Option {
	if err := validProbability(p); err != nil {
		return option{err: err}
	}
	return option{made: abort.WithAttemptProbability(p)}
}

// WithLoneProbability makes each statement outside a transaction fail with probability p,
// from 0 to 1, before it takes effect. The default is 0.
func WithLoneProbability(p float64) Option {
	if err := validProbability(p); err != nil {
		return option{err: err}
	}
	return option{made: abort.WithLoneProbability(p)}
}

func validProbability(p float64) error {
	if p >= 0 && p <= 1 {
		return nil
	}
	return fmt.Errorf("pgretrytest: the probability is %v, allowed is 0 to 1", p)
}

// WithoutCommit spares COMMIT: at READ COMMITTED a server aborts a transaction there for
// the sake of deferred constraints only. [WithProbability] then picks among the other
// calls, in the first transaction of all the first one, and an attempt that turns out to be
// shorter than the pick gets through. It cannot be combined with [AtCommit].
func WithoutCommit() Option { return option{made: abort.WithoutCommit()} }

// WithSQLStates sets the SQLSTATEs with which transactions are aborted, each as likely as
// the others. Allowed are those that pgretry retries, by itself or on request
// (pgretry.WithAlsoRetry). The default is 40001 and 40P01.
func WithSQLStates(states ...string) Option {
	for _, state := range states {
		switch pgretry.Classify(stateError(state), pgretry.PhaseStatement) {
		case pgretry.ClassRetryable, pgretry.ClassRetryableOptIn:
		default:
			return option{err: fmt.Errorf("pgretrytest: SQLSTATE %q is none that pgretry retries", state)}
		}
	}
	if len(states) == 0 {
		return option{err: fmt.Errorf("pgretrytest: no SQLSTATE is given, allowed is one or more")}
	}
	return option{made: abort.WithSQLStates(states...)}
}

// stateError is an error of a server of which nothing but the SQLSTATE is known.
type stateError string

func (e stateError) Error() string    { return "SQLSTATE " + string(e) }
func (e stateError) SQLState() string { return string(e) }

// WithSeed sets what the choices by chance are a function of, together with what was
// called before: the same calls, one after the other, meet the same aborts. The default
// is 0.
func WithSeed(seed uint64) Option { return option{made: abort.WithSeed(seed)} }
