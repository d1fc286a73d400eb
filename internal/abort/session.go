package abort

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
)

// session is the inner connection with every optional interface. Where it lacks
// one, what database/sql would do without it is done here.
type session struct {
	driver.Conn

	beginner  driver.ConnBeginTx
	checker   driver.NamedValueChecker
	execer    driver.ExecerContext
	execerOld driver.Execer //nolint:staticcheck // database/sql still falls back to it
	pinger    driver.Pinger
	preparer  driver.ConnPrepareContext
	query     driver.QueryerContext
	queryOld  driver.Queryer //nolint:staticcheck // the same
	resetter  driver.SessionResetter
	validator driver.Validator
}

func newSession(inner driver.Conn) session {
	s := session{Conn: inner}
	s.beginner, _ = inner.(driver.ConnBeginTx)
	s.checker, _ = inner.(driver.NamedValueChecker)
	s.execer, _ = inner.(driver.ExecerContext)
	s.execerOld, _ = inner.(driver.Execer) //nolint:staticcheck // see the field
	s.pinger, _ = inner.(driver.Pinger)
	s.preparer, _ = inner.(driver.ConnPrepareContext)
	s.query, _ = inner.(driver.QueryerContext)
	s.queryOld, _ = inner.(driver.Queryer) //nolint:staticcheck // see the field
	s.resetter, _ = inner.(driver.SessionResetter)
	s.validator, _ = inner.(driver.Validator)
	return s
}

func (s *session) execContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	if s.execer != nil {
		return s.execer.ExecContext(ctx, query, args)
	}
	values, err := positional(ctx, args)
	if err != nil {
		return nil, err
	}
	return s.execerOld.Exec(query, values)
}

func (s *session) queryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	if s.query != nil {
		return s.query.QueryContext(ctx, query, args)
	}
	values, err := positional(ctx, args)
	if err != nil {
		return nil, err
	}
	return s.queryOld.Query(query, values)
}

func (s *session) prepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	if s.preparer != nil {
		return s.preparer.PrepareContext(ctx, query)
	}
	stmt, err := s.Prepare(query)
	if err == nil && ctx.Err() != nil {
		// As in database/sql: the context's end is the error, whatever Close says.
		_ = stmt.Close()
		return nil, ctx.Err()
	}
	return stmt, err
}

func (s *session) beginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	if s.beginner != nil {
		return s.beginner.BeginTx(ctx, opts)
	}
	// The words are database/sql's own, which programs may have come to know.
	if sql.IsolationLevel(opts.Isolation) != sql.LevelDefault {
		return nil, errors.New("sql: driver does not support non-default isolation level")
	}
	if opts.ReadOnly {
		return nil, errors.New("sql: driver does not support read-only transactions")
	}
	tx, err := s.Begin()
	if err == nil && ctx.Err() != nil {
		_ = tx.Rollback()
		return nil, ctx.Err()
	}
	return tx, err
}

// run executes a text without arguments, whatever the connection offers for that.
func (s *session) run(ctx context.Context, text string) error {
	if s.execer != nil || s.execerOld != nil {
		if _, err := s.execContext(ctx, text, nil); err != driver.ErrSkip { //nolint:errorlint // drivers must return it bare
			return err
		}
	}
	stmt, err := s.prepareContext(ctx, text)
	if err != nil {
		return err
	}
	_, err = execStmt(ctx, stmt, nil)
	return errors.Join(err, stmt.Close())
}

// all returns the rows of a query without arguments whose columns are all text.
func (s *session) all(ctx context.Context, text string) (list [][]*string, err error) {
	var rows driver.Rows
	err = driver.ErrSkip
	if s.query != nil || s.queryOld != nil {
		rows, err = s.queryContext(ctx, text, nil)
	}
	if err == driver.ErrSkip { //nolint:errorlint // drivers must return it bare
		stmt, prepareErr := s.prepareContext(ctx, text)
		if prepareErr != nil {
			return nil, prepareErr
		}
		defer func() { err = errors.Join(err, stmt.Close()) }()
		rows, err = queryStmt(ctx, stmt, nil)
	}
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	values := make([]driver.Value, len(rows.Columns()))
	for {
		switch err := rows.Next(values); {
		case err == io.EOF: //nolint:errorlint // drivers must return it bare
			return list, nil
		case err != nil:
			return nil, err
		}
		row := make([]*string, len(values))
		for i, value := range values {
			switch value := value.(type) {
			case nil:
			case string:
				row[i] = &value
			case []byte:
				text := string(value)
				row[i] = &text
			default:
				return nil, fmt.Errorf("abort: a %T where there should be text", value)
			}
		}
		list = append(list, row)
	}
}

func execStmt(ctx context.Context, stmt driver.Stmt, args []driver.NamedValue) (driver.Result, error) {
	if execer, ok := stmt.(driver.StmtExecContext); ok {
		return execer.ExecContext(ctx, args)
	}
	values, err := positional(ctx, args)
	if err != nil {
		return nil, err
	}
	return stmt.Exec(values) //nolint:staticcheck // there is no other
}

func queryStmt(ctx context.Context, stmt driver.Stmt, args []driver.NamedValue) (driver.Rows, error) {
	if query, ok := stmt.(driver.StmtQueryContext); ok {
		return query.QueryContext(ctx, args)
	}
	values, err := positional(ctx, args)
	if err != nil {
		return nil, err
	}
	return stmt.Query(values) //nolint:staticcheck // there is no other
}

// positional prepares a call of an interface from before contexts and names, as
// database/sql does.
func positional(ctx context.Context, args []driver.NamedValue) ([]driver.Value, error) {
	values := make([]driver.Value, len(args))
	for i, arg := range args {
		if arg.Name != "" {
			return nil, errors.New("sql: driver does not support the use of Named Parameters")
		}
		values[i] = arg.Value
	}
	return values, ctx.Err()
}

// named gives arguments from before names the form of today.
func named(values []driver.Value) []driver.NamedValue {
	list := make([]driver.NamedValue, len(values))
	for i, value := range values {
		list[i] = driver.NamedValue{Ordinal: i + 1, Value: value}
	}
	return list
}
