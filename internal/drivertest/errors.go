package drivertest

import "errors"

// ErrCommitOfAborted is what Tx.Commit returns for an aborted transaction block
// when [WithTransactionState] was given no other error.
var ErrCommitOfAborted = errors.New("drivertest: commit of an aborted transaction rolled it back")

var (
	errConnClosed     = errors.New("drivertest: connection is closed")
	errStmtClosed     = errors.New("drivertest: statement is closed")
	errRowsClosed     = errors.New("drivertest: rows are closed")
	errTxDone         = errors.New("drivertest: transaction has ended already")
	errInTransaction  = errors.New("drivertest: a transaction is open on this connection")
	errCursorOpen     = errors.New("drivertest: rows are still open on this connection")
	errNoMoreFeatures = errors.New("drivertest: no type was generated for this combination of connection interfaces")
)

// Error is an error of a PostgreSQL server. Its fields are named like those of
// pgconn.PgError; the zero value is an error with an empty SQLSTATE.
type Error struct {
	Severity            string
	SeverityUnlocalized string
	Code                string // SQLSTATE
	Message             string
	Detail              string
	Hint                string
	Position            int32
	InternalPosition    int32
	InternalQuery       string
	Where               string
	SchemaName          string
	TableName           string
	ColumnName          string
	DataTypeName        string
	ConstraintName      string
	File                string
	Line                int32
	Routine             string
}

// Error returns severity, message and SQLSTATE in one line.
func (e *Error) Error() string {
	return e.Severity + ": " + e.Message + " (SQLSTATE " + e.Code + ")"
}

// SQLState returns the five characters of the SQLSTATE.
func (e *Error) SQLState() string { return e.Code }
