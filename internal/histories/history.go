package histories

import "database/sql"

// Level is an isolation level as PostgreSQL has them.
type Level uint8

// The levels, weakest first. READ UNCOMMITTED is READ COMMITTED in PostgreSQL.
const (
	ReadCommitted Level = iota
	RepeatableRead
	Serializable

	levels
)

// Levels are all of them.
var Levels = []Level{ReadCommitted, RepeatableRead, Serializable}

// String returns the level as SQL writes it.
func (l Level) String() string {
	return [levels]string{"READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"}[l]
}

func (l Level) isolation() sql.IsolationLevel {
	return [levels]sql.IsolationLevel{sql.LevelReadCommitted, sql.LevelRepeatableRead, sql.LevelSerializable}[l]
}

// Outcome is what the application knows about the end of a transaction.
type Outcome uint8

const (
	// Failed: certainly not committed, rolled back voluntarily included.
	Failed Outcome = iota
	// Committed: Commit returned nil.
	Committed
	// Unknown: Commit returned an error that does not say.
	Unknown
)

// String returns "failed", "committed" or "unknown".
func (o Outcome) String() string { return [...]string{"failed", "committed", "unknown"}[o] }

// Tx is a transaction as the application saw it.
type Tx struct {
	Name    string
	Level   Level
	Outcome Outcome
	// Lone says that it is a single statement outside a block.
	Lone bool
	Ops  []Op
	// Err is the error of Commit or of a lone statement, for reports.
	Err string
	// Began is the time before it began, Ended that after its outcome was known, on a
	// clock that counts events. Zero means not known.
	Began, Ended uint64
	// Conflicts is how many deadlocks and serialization failures the application saw.
	Conflicts int
	// Unexpected are errors that nothing in the transaction asked for.
	Unexpected []string
}

// Kind is a kind of operation.
type Kind uint8

// The kinds of operations. Which fields of an [Op] a kind uses is said here.
const (
	// Read saw List under Key. A key without a row has an empty list.
	Read Kind = iota + 1
	// Length saw that the list under Key has N values.
	Length
	// Contains looked for Val in the keys from Key to High and saw that it is in the
	// list of key Found, or in none if that is -1.
	Contains
	// Append added Val to the list under Key. N is the number of rows it affected;
	// with 0, the key has no row.
	Append
	// Write replaced the list under Key by List with Val added.
	Write
	// InsertParent inserted a row with Val and was given ID for it.
	InsertParent
	// InsertChild inserted a row with Val that refers to ID.
	InsertChild
	// CountChildren saw that N rows refer to ID.
	CountChildren
	// SetMark changed a setting, until the end of the transaction, to Val.
	SetMark
	// ShowMark saw Val as that setting, 0 meaning that it is not set.
	ShowMark
	// Savepoint, Release and RollbackTo are about the savepoint Name.
	Savepoint
	Release
	RollbackTo
	// Declare opened a cursor, which goes on showing the lists as they were then.
	Declare
	// Statement is any other one.
	Statement
)

// Op is an operation of a transaction with what it showed.
type Op struct {
	Kind  Kind
	Key   int32
	High  int32
	Found int32
	Val   int32
	N     int
	ID    int64
	List  []int32
	Name  string
	// Locked says that a Read locked the row that it saw.
	Locked bool
	// Upserted says that an Append was INSERT … ON CONFLICT DO UPDATE.
	Upserted bool
	// Cursor is the number, from 1, of the Declare among the transaction's operations
	// through whose cursor a Read saw it. 0 means none.
	Cursor int
	// Began is the time before the statement was sent, as in [Tx].
	Began uint64
	// Err is the error that the statement returned instead of what is above; "" if
	// it worked. What it had shown before are operations of their own.
	Err string
	// SQL is the statement's form, for reports.
	SQL string
}

// Row is a row of one of the two tables with generated ids.
type Row struct {
	ID  int64 // of a parent: its own; of a child: the parent's
	Val int32
}

// State is what the database holds when all transactions are over.
type State struct {
	Lists    map[int32][]int32
	Parents  []Row
	Children []Row
}

// History is what can be checked.
type History struct {
	Txs   []*Tx
	Final State
}
