package pgretry

import (
	"database/sql/driver"
	"unsafe"

	"github.com/pgretry/pgretry/internal/sqltext"
)

// callKind is what the application called.
type callKind uint8

const (
	callExec callKind = iota
	callQuery
	callPrepare
	callClose // of a prepared statement that has an effect when it is closed: COPY
)

// call is a statement with its arguments, on its way to the server.
type call struct {
	kind callKind
	text string
	stmt *stmt // nil if it goes by its text
	args []driver.NamedValue
}

// entry is what the application did and was shown.
type entry struct {
	call
	info   *sqltext.Info
	shown  shown
	cursor *rows // while it is open
	failed bool  // with a server's error, after what was shown
	closed bool  // it failed when it was closed
	undone bool  // the application went back to a savepoint before it
	count  int64 // rows affected, if it told
	copies int   // bytes that the copies of arguments take, beyond what valueSize says
}

const (
	entryBytes = int(unsafe.Sizeof(entry{}))
	argBytes   = int(unsafe.Sizeof(driver.NamedValue{})) + 8
)

// journal is what the application did in a transaction, in order. Its memory
// belongs to the connection and is used again by the next transaction.
type journal struct {
	entries []entry
	args    []driver.NamedValue
	arena   []byte // what arguments point to
	size    int    // in bytes, of all that it holds on to
}

// What a journal keeps for the next transaction, at most.
const (
	keptEntries = 64
	keptArgs    = 512
	keptArena   = 16 << 10
)

// reserve adds an entry for a call that is about to be made, with copies of its
// arguments: callers reuse buffers. It returns why that cannot be done, "" if it
// can.
func (j *journal) reserve(c call, info *sqltext.Info, limits *config) RefusalReason {
	size := entryBytes + len(c.text)
	for i := range c.args {
		size += argBytes + valueSize(c.args[i].Value)
	}
	if len(j.entries) >= limits.journalStatements || j.size+size > limits.journalBytes {
		return RefusedJournalFull
	}
	copies := 0
	if len(c.args) > 0 {
		first := len(j.args)
		j.args = append(j.args, c.args...)
		c.args = j.args[first:len(j.args):len(j.args)]
		for i := range c.args {
			copied, ok := j.copyValue(&c.args[i].Value, limits.journalBytes-j.size-size)
			if !ok {
				clear(c.args)
				j.args = j.args[:first]
				return RefusedArgument
			}
			copies, size = copies+copied, size+copied
		}
	}
	j.size += size
	j.entries = append(j.entries, entry{call: c, info: info, copies: copies})
	return ""
}

// last returns the newest entry.
func (j *journal) last() *entry { return &j.entries[len(j.entries)-1] }

// drop takes the newest entry back: nothing of it was shown.
func (j *journal) drop() {
	e := j.last()
	j.size -= entryBytes + len(e.text) + e.copies
	for i := range e.args {
		j.size -= argBytes + valueSize(e.args[i].Value)
		if copied, ok := e.args[i].Value.([]byte); ok {
			j.arena = j.arena[:len(j.arena)-len(copied)]
		}
	}
	clear(e.args)
	j.args = j.args[:len(j.args)-len(e.args)]
	*e = entry{}
	j.entries = j.entries[:len(j.entries)-1]
}

// reset forgets everything.
func (j *journal) reset() {
	clear(j.entries)
	clear(j.args)
	j.entries, j.args, j.arena, j.size = j.entries[:0], j.args[:0], j.arena[:0], 0
	if cap(j.entries) > keptEntries {
		j.entries = nil
	}
	if cap(j.args) > keptArgs {
		j.args = nil
	}
	if cap(j.arena) > keptArena {
		j.arena = nil
	}
}
