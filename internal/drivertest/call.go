package drivertest

import (
	"bytes"
	"context"
	"database/sql/driver"
	"fmt"
	"math/bits"
	"strings"
	"time"
)

// Call is a kind of call into the driver, or a set of kinds joined by "|".
type Call uint32

// The kinds of calls. A call through a superseded interface (Exec without a
// context, Begin, …) is of the same kind as its modern form; [Entry.Method] tells
// them apart.
const (
	OpenConnector Call = 1 << iota
	Open
	Connect
	CloseConnector
	Ping
	ResetSession
	IsValid
	CheckNamedValue
	Prepare
	Begin
	Exec
	Query
	Close
	StmtExec
	StmtQuery
	StmtClose
	StmtCheckNamedValue
	ConvertColumn
	RowsNext
	RowsNextResultSet
	RowsClose
	Commit
	Rollback

	callsEnd
)

// Sets of kinds.
const (
	// AnyExec, AnyQuery and AnyStatement match whether or not database/sql, lacking
	// an ExecerContext or QueryerContext, went through a prepared statement.
	AnyExec      = Exec | StmtExec
	AnyQuery     = Query | StmtQuery
	AnyStatement = AnyExec | AnyQuery
	// AnyCall matches everything.
	AnyCall = callsEnd - 1
)

var callNames = [...]string{
	"open-connector", "open", "connect", "close-connector", "ping", "reset", "valid", "check-named-value",
	"prepare", "begin", "exec", "query", "close", "stmt-exec", "stmt-query", "stmt-close",
	"stmt-check-named-value", "convert-column", "rows-next", "rows-next-resultset", "rows-close", "commit", "rollback",
}

// String names the kind, or lists the names of a set joined by "|".
func (c Call) String() string {
	if bits.OnesCount32(uint32(c)) == 1 && c < callsEnd {
		return callNames[bits.TrailingZeros32(uint32(c))]
	}
	var names []string
	for i, name := range callNames {
		if c&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, "|")
}

// Invocation is one call, as a hook sees it. The arguments belong to the caller
// and may change after the hook has returned.
type Invocation struct {
	// Context is the one the call was given; for rows and transactions, which get
	// none, it is that of the query or BEGIN they came from.
	Context context.Context
	Call    Call
	Method  string // name of the interface method
	Conn    int    // connection number, counted from 1 in the order of connecting; 0 if there is none
	Stmt    int    // prepared statement number, 0 if there is none
	Rows    int    // rows number, 0 if there is none
	Query   string // text of the statement the call belongs to, or the DSN
	Args    []driver.NamedValue
	Options driver.TxOptions
	N       int // which call this is among those its rule matched, from 1
}

// Entry is a logged call.
type Entry struct {
	Invocation
	ContextErr  error  // Context.Err() when the call arrived
	HasDeadline bool   // whether the context had a deadline
	Label       string // what [WithLabel] put into the context
	Done        bool   // whether the call has returned
	Err         error  // what the call returned
}

// String returns the entry in one line, without the context's address.
func (e Entry) String() string {
	var b strings.Builder
	if e.Conn != 0 {
		fmt.Fprintf(&b, "conn %d: ", e.Conn)
	}
	b.WriteString(e.Method)
	if e.Stmt != 0 {
		fmt.Fprintf(&b, " stmt %d", e.Stmt)
	}
	if e.Rows != 0 {
		fmt.Fprintf(&b, " rows %d", e.Rows)
	}
	if e.Query != "" {
		fmt.Fprintf(&b, " %q", e.Query)
	}
	for _, arg := range e.Args {
		fmt.Fprintf(&b, " $%d", arg.Ordinal)
		if arg.Name != "" {
			fmt.Fprintf(&b, "(%s)", arg.Name)
		}
		b.WriteString("=" + formatValue(arg.Value))
	}
	if e.Call == Begin && e.Options.Isolation != 0 {
		fmt.Fprintf(&b, " isolation=%d", e.Options.Isolation)
	}
	if e.Options.ReadOnly {
		b.WriteString(" read-only")
	}
	if e.Label != "" {
		b.WriteString(" label=" + e.Label)
	}
	if e.HasDeadline {
		b.WriteString(" deadline")
	}
	if e.ContextErr != nil {
		fmt.Fprintf(&b, " ctx=%v", e.ContextErr)
	}
	switch {
	case !e.Done:
		b.WriteString(" …")
	case e.Err != nil:
		fmt.Fprintf(&b, " -> %v", e.Err)
	}
	return b.String()
}

func formatValue(v any) string {
	switch v := v.(type) {
	case nil:
		return "nil"
	case []byte:
		return fmt.Sprintf("[]byte(%q)", v)
	case string:
		return fmt.Sprintf("%q", v)
	case time.Time:
		return v.Format(time.RFC3339Nano)
	default:
		return fmt.Sprintf("%T(%v)", v, v)
	}
}

type labelKey struct{}

// WithLabel returns a context whose label appears in the log of every call that
// is given it or a context derived from it. It shows whether a wrapper passes
// contexts on.
func WithLabel(ctx context.Context, label string) context.Context {
	return context.WithValue(ctx, labelKey{}, label)
}

func newEntry(inv Invocation) *Entry {
	args := make([]driver.NamedValue, len(inv.Args))
	for i, arg := range inv.Args {
		if b, ok := arg.Value.([]byte); ok {
			arg.Value = bytes.Clone(b)
		}
		args[i] = arg
	}
	inv.Args = args
	e := &Entry{Invocation: inv}
	if ctx := inv.Context; ctx != nil {
		e.ContextErr = ctx.Err()
		_, e.HasDeadline = ctx.Deadline()
		e.Label, _ = ctx.Value(labelKey{}).(string)
	}
	return e
}
