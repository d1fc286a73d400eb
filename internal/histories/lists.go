package histories

import (
	"database/sql"
	"errors"
	"fmt"
	"slices"

	"github.com/lib/pq"
)

// The statements about lists that exist in several forms.
const (
	readText   = `SELECT vals FROM lists WHERE key = $1`
	appendText = `UPDATE lists SET vals = vals || $2::int WHERE key = $1`
	upsertText = `INSERT INTO lists (key, vals) VALUES ($1, ARRAY[$2::int]) ON CONFLICT (key) DO UPDATE SET vals = lists.vals || EXCLUDED.vals`
	rangeText  = `SELECT key, vals FROM lists WHERE key BETWEEN %s AND %s ORDER BY key`
)

// oneList takes the list from a query for one, and says whether its row exists.
func oneList(rows *sql.Row) (values []int32, exists bool, err error) {
	var scanned pq.Int32Array
	err = rows.Scan(&scanned)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, false, nil
	}
	return scanned, err == nil, err
}

// listOf runs a query for one list to its end.
func (a *application) listOf(text string, args ...any) (values []int32, exists bool, err error) {
	rows, err := a.on.QueryContext(a.ctx, text, args...)
	err = a.each(rows, err, func(rows *sql.Rows) (bool, error) {
		var scanned pq.Int32Array
		err := rows.Scan(&scanned)
		values, exists = scanned, err == nil
		return false, err
	})
	return values, exists, err
}

// bound returns a statement that was prepared before, for use here.
func (a *application) bound(stmt *sql.Stmt) *sql.Stmt {
	if a.block == nil {
		return stmt
	}
	return a.block.StmtContext(a.ctx, stmt)
}

// prepared prepares a statement, uses and closes it.
func (a *application) prepared(text string, use func(*sql.Stmt) error) error {
	stmt, err := a.on.PrepareContext(a.ctx, text)
	if err != nil {
		return err
	}
	if err := use(stmt); err != nil {
		// The first error is the one that counts.
		_ = stmt.Close()
		return err
	}
	return stmt.Close()
}

func (a *application) readOne(s step) error {
	op := Op{Kind: Read, Key: s.key, Began: a.now(), SQL: readText}
	var err error
	exists := false
	switch s.form {
	case 0:
		op.List, exists, err = a.listOf(readText, s.key)
	case 1:
		op.List, exists, err = oneList(a.on.QueryRowContext(a.ctx, readText, s.key))
	case 2:
		op.SQL += ` FOR UPDATE`
		op.List, exists, err = oneList(a.on.QueryRowContext(a.ctx, op.SQL, s.key))
		op.Locked = exists
	case 3:
		op.SQL = "prepared before: " + readText
		op.List, exists, err = oneList(a.bound(a.round.readStmt).QueryRowContext(a.ctx, s.key))
	case 4:
		op.SQL = "prepared inside: " + readText
		err = a.prepared(readText, func(stmt *sql.Stmt) (err error) {
			op.List, exists, err = oneList(stmt.QueryRowContext(a.ctx, s.key))
			return err
		})
	case 5:
		op.SQL = fmt.Sprintf(`SELECT vals FROM lists WHERE key = %d`, s.key)
		op.List, exists, err = oneList(a.on.QueryRowContext(a.ctx, op.SQL))
	case 6:
		op.SQL += ` FOR SHARE`
		op.List, exists, err = a.listOf(op.SQL, s.key)
		op.Locked = exists
	}
	return a.record(op, err)
}

// readRange reads several lists, or the first few of them.
func (a *application) readRange(s step) error {
	text, args := fmt.Sprintf(rangeText, "$1", "$2"), []any{s.key, s.high}
	switch s.form {
	case 1:
		text, args = fmt.Sprintf(rangeText, fmt.Sprint(s.key), fmt.Sprint(s.high)), nil
	case 2:
		text += ` FOR UPDATE`
	case 3:
		text += ` FOR SHARE`
	}
	began, next := a.now(), s.key
	if s.stop == 0 {
		rows, err := a.on.QueryContext(a.ctx, text, args...)
		if err == nil {
			err = rows.Close()
		}
		return a.record(Op{Kind: Statement, Began: began, SQL: text}, err)
	}
	rows, err := a.on.QueryContext(a.ctx, text, args...)
	left := s.stop
	err = a.each(rows, err, func(rows *sql.Rows) (bool, error) {
		err := a.keyAndList(rows, &next, Op{Kind: Read, Locked: s.form >= 2, Began: began, SQL: text})
		left--
		return left == 0, err
	})
	if err != nil {
		return a.record(Op{Kind: Statement, Began: began, SQL: text}, err)
	}
	if left != 0 {
		a.absent(next, s.high, Op{Kind: Read, Began: began, SQL: text})
	}
	return nil
}

// keyAndList records a row of a query for several lists, and that there is none for
// the keys from next on that were passed over.
func (a *application) keyAndList(rows *sql.Rows, next *int32, op Op) error {
	var scanned pq.Int32Array
	if err := rows.Scan(&op.Key, &scanned); err != nil {
		return err
	}
	a.absent(*next, op.Key-1, Op{Kind: Read, Cursor: op.Cursor, Began: op.Began, SQL: op.SQL})
	op.List = scanned
	*next = op.Key + 1
	a.tx.Ops = append(a.tx.Ops, op)
	return nil
}

// absent records that keys have no row.
func (a *application) absent(from, to int32, op Op) {
	for key := from; key <= to; key++ {
		op.Key = key
		a.tx.Ops = append(a.tx.Ops, op)
	}
}

func (a *application) readLengths(s step) error {
	op := Op{Kind: Length, Began: a.now(), SQL: `SELECT key, cardinality(vals) FROM lists WHERE key BETWEEN $1 AND $2 ORDER BY key`}
	next := s.key
	rows, err := a.on.QueryContext(a.ctx, op.SQL, s.key, s.high)
	err = a.each(rows, err, func(rows *sql.Rows) (bool, error) {
		op := op
		if err := rows.Scan(&op.Key, &op.N); err != nil {
			return false, err
		}
		a.absent(next, op.Key-1, Op{Kind: Length, Began: op.Began, SQL: op.SQL})
		next = op.Key + 1
		a.tx.Ops = append(a.tx.Ops, op)
		return false, nil
	})
	if err != nil {
		op.Kind = Statement
		return a.record(op, err)
	}
	a.absent(next, s.high, op)
	return nil
}

// findValue looks where a value is that a worker has appended a moment ago.
func (a *application) findValue(s step) error {
	op := Op{
		Kind: Contains, Key: s.key, High: s.high, Found: -1, Val: a.round.latest[s.worker].Load(),
		Began: a.now(), SQL: `SELECT key FROM lists WHERE key BETWEEN $1 AND $2 AND vals @> ARRAY[$3::int]`,
	}
	rows, err := a.on.QueryContext(a.ctx, op.SQL, s.key, s.high, op.Val)
	err = a.each(rows, err, func(rows *sql.Rows) (bool, error) { return false, rows.Scan(&op.Found) })
	return a.record(op, err)
}

func (a *application) append(s step) error {
	op := Op{Kind: Append, Key: s.key, Val: s.val, Began: a.now()}
	var err error
	var result sql.Result
	switch s.form {
	case 0:
		return a.exec(op, appendText, s.key, s.val)
	case 1:
		op.Upserted = true
		return a.exec(op, upsertText, s.key, s.val)
	case 2:
		op.SQL = appendText + ` RETURNING vals`
		return a.returning(op, func() ([]int32, bool, error) {
			return oneList(a.on.QueryRowContext(a.ctx, op.SQL, s.key, s.val))
		})
	case 3:
		op.SQL = "prepared before: " + appendText
		result, err = a.bound(a.round.appendStmt).ExecContext(a.ctx, s.key, s.val)
	case 4:
		op.SQL = "prepared inside: " + appendText
		err = a.prepared(appendText, func(stmt *sql.Stmt) (err error) {
			result, err = stmt.ExecContext(a.ctx, s.key, s.val)
			return err
		})
	case 5:
		return a.exec(op, fmt.Sprintf(`UPDATE lists SET vals = vals || %d WHERE key = %d`, s.val, s.key))
	case 6:
		op.SQL, op.Upserted = upsertText+` RETURNING vals`, true
		return a.returning(op, func() ([]int32, bool, error) { return a.listOf(op.SQL, s.key, s.val) })
	case 7:
		op.SQL = `WITH written AS (` + appendText + ` RETURNING vals) SELECT vals FROM written`
		return a.returning(op, func() ([]int32, bool, error) { return a.listOf(op.SQL, s.key, s.val) })
	case 8:
		// Takes effect although nobody looks at what it returns.
		op.SQL, op.N, op.Upserted = upsertText+` RETURNING vals`, 1, true
		rows, err := a.on.QueryContext(a.ctx, op.SQL, s.key, s.val)
		if err == nil {
			err = rows.Close()
		}
		if a.record(op, err) == nil {
			a.wrote(op)
		}
		return err
	}
	return a.affected(op, result, err)
}

// returning records an append that shows the list with the new value in it.
func (a *application) returning(op Op, run func() ([]int32, bool, error)) error {
	values, exists, err := run()
	if exists {
		op.N = 1
	}
	if a.record(op, err) != nil {
		return err
	}
	if exists {
		a.tx.Ops = append(a.tx.Ops, Op{Kind: Read, Key: op.Key, List: values, Began: op.Began, SQL: "RETURNING"})
	}
	a.wrote(op)
	return nil
}

// remember reads a list for an overwrite that is to follow.
func (a *application) remember(s step) error {
	op := Op{Kind: Read, Key: s.key, Began: a.now(), SQL: readText + [...]string{``, ` FOR UPDATE`, ` FOR NO KEY UPDATE`}[s.form]}
	values, exists, err := oneList(a.on.QueryRowContext(a.ctx, op.SQL, s.key))
	op.List, op.Locked = values, exists && s.form != 0
	if a.record(op, err) == nil && exists {
		a.memory[s.key] = values
	}
	return err
}

// overwrite writes the list that was read with a value added, or just adds the value
// if that is not known any more.
func (a *application) overwrite(s step) error {
	values, known := a.memory[s.key]
	if !known {
		return a.exec(Op{Kind: Append, Key: s.key, Val: s.val}, appendText, s.key, s.val)
	}
	return a.exec(Op{Kind: Write, Key: s.key, List: values, Val: s.val}, `UPDATE lists SET vals = $2 WHERE key = $1`,
		s.key, pq.Array(append(slices.Clip(values), s.val)))
}

func (a *application) declare(s step) error {
	op := Op{Kind: Declare, Key: s.key, High: s.high}
	err := a.exec(op, `DECLARE c CURSOR FOR `+fmt.Sprintf(rangeText, fmt.Sprint(s.key), fmt.Sprint(s.high)))
	if err == nil {
		a.cursor = &cursor{declared: len(a.tx.Ops), last: s.key - 1, high: s.high}
	}
	return err
}

func (a *application) fetch(s step) error {
	c := a.cursor
	if c == nil || c.exhausted {
		return nil
	}
	op := Op{Kind: Read, Cursor: c.declared, Began: a.now(), SQL: fmt.Sprintf(`FETCH %d FROM c`, s.stop)}
	next, left := c.last+1, s.stop
	rows, err := a.on.QueryContext(a.ctx, op.SQL)
	err = a.each(rows, err, func(rows *sql.Rows) (bool, error) {
		left--
		return false, a.keyAndList(rows, &next, op)
	})
	if err != nil {
		return a.record(Op{Kind: Statement, Began: op.Began, SQL: op.SQL}, err)
	}
	c.last = next - 1
	if left > 0 {
		a.absent(next, c.high, op)
		c.exhausted = true
	}
	return nil
}

func (a *application) closeCursor() error {
	c := a.cursor
	if c == nil || c.exhausted {
		return nil
	}
	c.exhausted = true
	return a.exec(Op{Kind: Statement}, `CLOSE c`)
}
