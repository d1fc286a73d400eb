package pgretrytest

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"

	"github.com/pgretry/pgretry/internal/abort"
	"github.com/pgretry/pgretry/internal/bridge"
)

// stage is where closures are on trial.
type stage struct {
	db        *sql.DB // whose transactions can be aborted
	reader    *reader
	side      abort.Session // that sees what is committed
	sequences *sequences
	ends      []func() error
}

// errNotOurs means that a database cannot be used for trials.
var errNotOurs = errors.New("the database was not opened through pgretry, by sql.Open(pgretry.DriverName, …), pgretry.Open or pgretry.NewConnector")

// errNotAborting is errNotOurs for what has to run on the database itself.
var errNotAborting = errors.New("the database has no connector of this package inside: open it with pgretrytest.NewConnector or pgretrytest.WrapDriver between pgretry and the driver")

// newStage makes ready for trials: on db itself if its transactions can be aborted, or else
// on a database like it. With itself nothing but db will do.
func newStage(ctx context.Context, db *sql.DB, schemas []string, itself bool) (_ *stage, err error) {
	inner := bridge.Inner(db)
	if inner == nil {
		return nil, errNotOurs
	}
	s := &stage{db: db, reader: newReader(schemas)}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	aborting, aborts := inner.(*Connector)
	switch {
	case aborts:
		inner = aborting.given
	case itself:
		return nil, errNotAborting
	default:
		if err := s.openAnother(db, inner); err != nil {
			return nil, err
		}
	}
	side, end, err := abort.Dial(ctx, inner)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	s.side = side
	s.ends = append(s.ends, end)
	s.sequences, err = s.reader.sequences(ctx, side)
	return s, err
}

// unclosed is a connector that somebody else will close.
type unclosed struct{ driver.Connector }

// openAnother opens a database like db whose transactions can be aborted. Each of them has
// a connection of its own, which leaves nothing to the next.
func (s *stage) openAnother(db *sql.DB, inner driver.Connector) error {
	between, err := abort.NewConnector(unclosed{inner})
	if err != nil {
		return err
	}
	outer, err := bridge.Around(db, between)
	if err != nil {
		return err
	}
	s.db = sql.OpenDB(outer)
	s.db.SetMaxIdleConns(-1)
	s.ends = append(s.ends, s.db.Close)
	return nil
}

func (s *stage) close() (err error) {
	for _, end := range s.ends {
		err = errors.Join(err, end())
	}
	s.ends = nil
	return err
}

// committed returns what is committed, the rows of the tables that want asks for among it.
func (s *stage) committed(ctx context.Context, want func(name, digest string) bool) (snapshot, error) {
	return s.reader.take(ctx, s.side, want)
}

func nothing(string, string) bool { return false }
