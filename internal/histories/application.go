package histories

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/lib/pq"
)

// executor is a transaction or, for lone statements, a database.
type executor interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	PrepareContext(ctx context.Context, query string) (*sql.Stmt, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// application runs one plan as a program would that knows nothing of retries, and
// records what it sees.
type application struct {
	round  *round
	ctx    context.Context
	plan   plan
	worker int
	on     executor
	block  *sql.Tx // nil for a lone statement
	tx     *Tx     // the record

	memory     map[int32][]int32 // lists that it means to overwrite
	parents    []int64           // ids
	cursor     *cursor
	savepoints []saved
	broken     bool // a statement failed
}

// saved is what the application knows at a savepoint and has to remember when it
// goes back there.
type saved struct {
	name    string
	memory  map[int32][]int32
	parents int
	cursor  *cursor
}

// cursor is one made by DECLARE.
type cursor struct {
	declared  int // the number of the operation, from 1
	last      int32
	high      int32
	exhausted bool // or not to be used any more
}

// now is the time before a statement is sent.
func (a *application) now() uint64 { return a.round.now() }

// record notes an operation and returns its error.
func (a *application) record(op Op, err error) error {
	if err != nil {
		op.Err = err.Error()
		a.failed(err)
	}
	a.tx.Ops = append(a.tx.Ops, op)
	return err
}

// failed notes an error of the server.
func (a *application) failed(err error) {
	switch state := sqlState(err); {
	case a.broken: // a consequence
	case state == "40001" || state == "40P01":
		a.tx.Conflicts++
	case state == "23505" || state == "22012" || state == "25006" && a.plan.readOnly:
		// Asked for.
	default:
		a.tx.Unexpected = append(a.tx.Unexpected, err.Error())
	}
	a.broken = true
	if a.cursor != nil {
		a.cursor.exhausted = true
	}
}

func (a *application) runLone() {
	switch err := a.step(a.plan.steps[0]); {
	case err == nil:
		a.tx.Outcome = Committed
	case sqlState(err) == "":
		a.tx.Outcome = Unknown
	}
}

func (a *application) run() {
	opts := &sql.TxOptions{Isolation: a.plan.level.isolation(), ReadOnly: a.plan.readOnly}
	block, err := a.round.db.BeginTx(a.ctx, opts)
	if err != nil {
		a.tx.Err = "begin: " + err.Error()
		a.failed(err)
		return
	}
	a.block, a.on = block, block
	for _, s := range a.plan.steps {
		if err := a.step(s); err != nil && !a.goesOn(s.reaction) {
			a.rollback("it gave up")
			return
		}
	}
	if a.plan.rollback {
		a.rollback("it did so voluntarily")
		return
	}
	switch err := block.Commit(); {
	case err == nil:
		a.tx.Outcome = Committed
	case a.broken || isRefusal(err):
		a.tx.Err = "commit: " + err.Error()
		if !a.broken {
			a.failed(err)
		}
	default:
		a.tx.Outcome, a.tx.Err = Unknown, "commit: "+err.Error()
		a.failed(err)
	}
}

func (a *application) rollback(why string) {
	a.tx.Err = "rollback, " + why
	if err := a.block.Rollback(); err != nil {
		a.tx.Err += ": " + err.Error()
		if !a.broken {
			a.tx.Unexpected = append(a.tx.Unexpected, a.tx.Err)
		}
	}
}

// isRefusal says whether an error of COMMIT means that nothing was committed.
func isRefusal(err error) bool {
	state := sqlState(err)
	return state != "" && state != "40003" && state != "08007"
}

// goesOn says whether the application goes on after a step has failed.
func (a *application) goesOn(r reaction) bool {
	switch r {
	case ignore:
		return true
	case goBack:
		if len(a.savepoints) > 0 {
			return a.rollbackTo(a.savepoints[len(a.savepoints)-1].name) == nil
		}
	}
	return false
}

func (a *application) step(s step) error {
	switch s.action {
	case readOne:
		return a.readOne(s)
	case readRange:
		return a.readRange(s)
	case readLengths:
		return a.readLengths(s)
	case findValue:
		return a.findValue(s)
	case appendOne:
		return a.append(s)
	case insertOne:
		return a.exec(Op{Kind: Append, Key: s.key, Val: s.val}, `INSERT INTO lists (key, vals) VALUES ($1, ARRAY[$2::int])`, s.key, s.val)
	case remember:
		return a.remember(s)
	case overwrite:
		return a.overwrite(s)
	case insertParent:
		return a.insertParent(s)
	case insertChild:
		return a.insertChild(s)
	case countChildren:
		return a.countChildren(s)
	case savepoint:
		return a.savepoint(s.name)
	case release:
		return a.release(s.name)
	case rollbackTo:
		return a.rollbackTo(s.name)
	case declare:
		return a.declare(s)
	case fetch:
		return a.fetch(s)
	case closeCursor:
		return a.closeCursor()
	case setMark:
		return a.exec(Op{Kind: SetMark, Val: s.val}, fmt.Sprintf(`SET LOCAL histories.mark = '%d'`, s.val))
	case showMark:
		return a.showMark()
	case violate:
		return a.exec(Op{Kind: Statement}, `INSERT INTO fixed VALUES (1)`)
	case divide:
		return a.exec(Op{Kind: Statement}, `SELECT 1/0`)
	}
	panic(fmt.Sprintf("histories: there is no action %d", s.action))
}

// exec runs a statement that shows how many rows it affected.
func (a *application) exec(op Op, text string, args ...any) error {
	op.Began, op.SQL = a.now(), text
	result, err := a.on.ExecContext(a.ctx, text, args...)
	return a.affected(op, result, err)
}

// affected records an operation with the number of rows that it affected.
func (a *application) affected(op Op, result sql.Result, err error) error {
	if err == nil && (op.Kind == Append || op.Kind == Write) {
		var n int64
		if n, err = result.RowsAffected(); err == nil {
			op.N = int(n)
		}
	}
	err = a.record(op, err)
	if err == nil {
		a.wrote(op)
	}
	return err
}

// wrote notes that a list has changed.
func (a *application) wrote(op Op) {
	if op.Kind == Append || op.Kind == Write {
		a.round.latest[a.worker].Store(op.Val)
		delete(a.memory, op.Key)
	}
}

// each runs a query and hands over its rows until there are no more or the function
// has had enough.
func (a *application) each(rows *sql.Rows, err error, row func(*sql.Rows) (enough bool, err error)) error {
	if err != nil {
		return err
	}
	for rows.Next() {
		enough, err := row(rows)
		if err != nil || enough {
			return errors.Join(err, rows.Close())
		}
	}
	if err := rows.Err(); err != nil {
		rows.Close()
		return err
	}
	return rows.Close()
}

func (a *application) savepoint(name string) error {
	err := a.exec(Op{Kind: Savepoint, Name: name}, `SAVEPOINT `+name)
	if err == nil {
		a.savepoints = append(a.savepoints, saved{name, maps.Clone(a.memory), len(a.parents), a.cursor})
	}
	return err
}

// at returns the index of the innermost savepoint of that name, -1 if there is none:
// the application may have gone back to an earlier one.
func (a *application) at(name string) int {
	for i, s := range slices.Backward(a.savepoints) {
		if s.name == name {
			return i
		}
	}
	return -1
}

func (a *application) release(name string) error {
	at := a.at(name)
	if at < 0 {
		return nil
	}
	err := a.exec(Op{Kind: Release, Name: name}, `RELEASE SAVEPOINT `+name)
	if err == nil {
		a.savepoints = a.savepoints[:at]
	}
	return err
}

func (a *application) rollbackTo(name string) error {
	at := a.at(name)
	if at < 0 {
		return nil
	}
	err := a.exec(Op{Kind: RollbackTo, Name: name}, `ROLLBACK TO SAVEPOINT `+name)
	if err == nil {
		s := a.savepoints[at]
		a.savepoints = a.savepoints[:at+1]
		a.memory, a.parents, a.cursor = maps.Clone(s.memory), a.parents[:s.parents], s.cursor
		a.broken = false
	}
	return err
}

func (a *application) insertParent(s step) error {
	op := Op{Kind: InsertParent, Val: s.val, Began: a.now(), SQL: `INSERT INTO parents (val) VALUES ($1) RETURNING id`}
	err := a.on.QueryRowContext(a.ctx, op.SQL, s.val).Scan(&op.ID)
	if a.record(op, err) == nil {
		a.parents = append(a.parents, op.ID)
	}
	return err
}

// parent chooses one of the rows inserted so far.
func (a *application) parent(s step) (id int64, ok bool) {
	if len(a.parents) == 0 {
		return 0, false
	}
	return a.parents[int(s.key)%len(a.parents)], true
}

func (a *application) insertChild(s step) error {
	id, ok := a.parent(s)
	if !ok {
		return nil
	}
	return a.exec(Op{Kind: InsertChild, ID: id, Val: s.val}, `INSERT INTO children (parent, val) VALUES ($1, $2)`, id, s.val)
}

func (a *application) countChildren(s step) error {
	id, ok := a.parent(s)
	if !ok {
		return nil
	}
	op := Op{Kind: CountChildren, ID: id, Began: a.now(), SQL: `SELECT count(*) FROM children WHERE parent = $1`}
	err := a.on.QueryRowContext(a.ctx, op.SQL, id).Scan(&op.N)
	return a.record(op, err)
}

func (a *application) showMark() error {
	op := Op{Kind: ShowMark, Began: a.now(), SQL: `SELECT coalesce(nullif(current_setting('histories.mark', true), ''), '0')`}
	err := a.on.QueryRowContext(a.ctx, op.SQL).Scan(&op.Val)
	return a.record(op, err)
}

// sqlState returns the SQLSTATE of an error, "" if it has none.
func sqlState(err error) string {
	if errors.Is(err, pq.ErrInFailedTransaction) {
		return "25P02"
	}
	var state interface{ SQLState() string }
	if errors.As(err, &state) {
		return state.SQLState()
	}
	return ""
}
