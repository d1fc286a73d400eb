package abort

import (
	"context"
	"database/sql/driver"
	"errors"
)

// Script decides, in place of chance, what happens in the transactions that begin under
// its context, see [ContextWithScript].
type Script interface {
	// Begin is called before a transaction begins on a session. An error is that of BEGIN.
	Begin(ctx context.Context, on Session) (ScriptedBlock, error)
}

// ScriptedBlock decides what happens in one transaction block. Calls of pgretry's own it
// does not see.
type ScriptedBlock interface {
	// Call is told each call before it is made, and returns the SQLSTATE it is to fail
	// with; "" has it made.
	Call(call Call) (sqlState string)
	// Skipped takes back the last call: the inner driver has not made it and asks for
	// another one.
	Skipped()
	// Commit is called in place of COMMIT, in the transaction, which is rolled back
	// afterwards. What it returns is what COMMIT returns. It is not called if the block
	// is aborted.
	Commit(ctx context.Context, on Session) error
}

// Call is a call inside a block.
type Call struct {
	Kind      Kind
	Text      string              // of statements, and of what is prepared
	Args      []driver.NamedValue // of statements; they may change after the call
	Statement int64               // counts the block's statements, from 1; of rows the one that they belong to
	Spared    bool                // it is a ROLLBACK TO, which does not fail
}

type scriptKey struct{}

// ContextWithScript returns a context under which the transactions of every [Connector]
// follow the script. The connector's own options are about other transactions.
func ContextWithScript(ctx context.Context, script Script) context.Context {
	return context.WithValue(ctx, scriptKey{}, script)
}

func scriptFrom(ctx context.Context) Script {
	script, _ := ctx.Value(scriptKey{}).(Script)
	return script
}

// drawScripted is draw in a block that follows a script.
func (c *conn) drawScripted(call Call) (sqlState string, fails bool) {
	if c.own {
		return "", false
	}
	sqlState = c.block.script.Call(call)
	return sqlState, sqlState != ""
}

// errOwnEnd means that a transaction which follows a script would be ended by a text.
var errOwnEnd = errors.New("abort: a transaction on trial must be begun and ended by its own methods, not by a statement")

// checkScripted returns an error if a statement would take the block from its script.
func (c *conn) checkScripted(s statement) error {
	if c.block.script != nil && c.block.state != outside && (s.info.BeginsTx || s.info.EndsTx) {
		return errOwnEnd
	}
	return nil
}

// Session is a connection for what belongs to no application.
type Session struct{ session *session }

// Dial opens a session of its own on the inner connector, without anything around it.
func Dial(ctx context.Context, inner driver.Connector) (_ Session, end func() error, err error) {
	conn, err := inner.Connect(ctx)
	if err != nil {
		return Session{}, nil, err
	}
	s := newSession(conn)
	return Session{&s}, conn.Close, nil
}

// Exec executes a text.
func (s Session) Exec(ctx context.Context, text string) error { return s.session.run(ctx, text) }

// Query returns the rows of a query whose columns are all text; nil is NULL.
func (s Session) Query(ctx context.Context, text string) ([][]*string, error) {
	return s.session.all(ctx, text)
}
