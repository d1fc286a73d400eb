package pgretrytest

import (
	"database/sql"
	"fmt"
	"reflect"
	"strings"
)

// ClosureOption changes what [Closure] and [RetryClosure] do. A wrong value ends the test.
type ClosureOption func(*closureConfig) error

// DefaultMaxPoints is the default of [MaxPoints].
const DefaultMaxPoints = 200

type closureConfig struct {
	tx        *sql.TxOptions
	results   []any
	columns   []string
	arguments []argument
	schemas   []string
	maxPoints int

	runs int // how often the closure was run since the loop around it began
}

// argument is one that is not compared.
type argument struct {
	prefix   string // of the statement
	position int    // from 1
}

func newClosureConfig(options []ClosureOption) (*closureConfig, error) {
	c := &closureConfig{maxPoints: DefaultMaxPoints}
	for _, option := range options {
		if option == nil {
			return nil, fmt.Errorf("an option is nil")
		}
		if err := option(c); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// Results names the variables outside the closure that it fills, by pointers to them: to
// slices, structs, maps, numbers. Before each run, and in the end, they get back the values
// that they have now, deep copies, so that nothing else should lead to what is in them. After
// each run they must hold what the undisturbed run has left (reflect.DeepEqual, but for the
// times and UUIDs that [Closure] does not compare): an attempt must not add to what the
// aborted one before has left.
//
// What stands for something outside is shared and not compared: contexts, databases, mutexes, and
// what pointers, interfaces, maps, functions and channels in fields that are not exported lead to,
// but for numbers of math/big, which are compared.
//
// They have to be named because Go offers no way to look into a closure. What is not named
// is noticed only if it changes what is sent to the database.
func Results(pointers ...any) ClosureOption {
	return func(c *closureConfig) error {
		for i, pointer := range pointers {
			if v := reflect.ValueOf(pointer); v.Kind() != reflect.Pointer || v.IsNil() {
				return fmt.Errorf("result %d is a %T, allowed are pointers to what the closure fills", i+1, pointer)
			}
		}
		c.results = append(c.results, pointers...)
		return nil
	}
}

// IgnoreColumns leaves columns out when what the database holds is compared, because their
// values may differ each time: "token.secret", or "auth.token.secret" with the schema.
// Columns of UUIDs, and of times within their runs, that differ between two undisturbed runs are
// left out without being named.
func IgnoreColumns(names ...string) ClosureOption {
	return func(c *closureConfig) error {
		for _, name := range names {
			if !strings.Contains(name, ".") {
				return fmt.Errorf("the column to ignore is %q, allowed is table.column", name)
			}
		}
		c.columns = append(c.columns, names...)
		return nil
	}
}

// IgnoreArgument leaves an argument out when statements are compared, because its value may
// differ each time: that with the position, counted from 1, of the statements whose text
// begins with prefix. UUIDs, and times within their runs, that differ between two undisturbed
// runs are left out without being named.
func IgnoreArgument(prefix string, position int) ClosureOption {
	return func(c *closureConfig) error {
		if position < 1 {
			return fmt.Errorf("the argument to ignore is %d, the first one is 1", position)
		}
		c.arguments = append(c.arguments, argument{prefix, position})
		return nil
	}
}

// InSchemas has only the tables of these schemas, and temporary ones, compared, and only their
// sequences set back. Those of others may then be used by others during the trials. The
// default is all that the role can read.
func InSchemas(names ...string) ClosureOption {
	return func(c *closureConfig) error {
		c.schemas = append(c.schemas, names...)
		return nil
	}
}

// MaxPoints bounds at how many points, 1 or more, the closure is aborted. Where it has more
// calls, points evenly spread over them are chosen. The default is 200.
func MaxPoints(n int) ClosureOption {
	return func(c *closureConfig) error {
		if n < 1 {
			return fmt.Errorf("MaxPoints is %d, allowed is 1 or more", n)
		}
		c.maxPoints = n
		return nil
	}
}

// WithTxOptions sets the options of the transactions that [Closure] begins. The default is
// nil, as for pgretry.RunInTx. [RetryClosure] does not need it.
func WithTxOptions(opts *sql.TxOptions) ClosureOption {
	return func(c *closureConfig) error {
		c.tx = opts
		return nil
	}
}
