package pgretry

import (
	"database/sql"
	"strings"

	"github.com/pgretry/pgretry/internal/sqltext"
)

// A pin is a savepoint of the driver's own. All of them have one name: the newest
// hides the others, and the newest is the only one that is gone back to.
const (
	pinName  = "pgretry_pin"
	setPin   = "SAVEPOINT " + pinName
	unsetPin = "RELEASE SAVEPOINT " + pinName

	// Beyond 64 subtransactions PostgreSQL's cache of them overflows, which slows
	// everybody down.
	maxPins = 64
)

// savepoint is one that exists on the server.
type savepoint struct {
	name  string
	pin   bool
	after int // index of the first entry that going back to it undoes
}

// savepoints are those of the current attempt, the newest last: the application's
// and ours in one stack, as on the server.
type savepoints struct {
	stack  []savepoint
	pins   int  // that were set in this attempt
	noPins bool // for the rest of this attempt

	looked int  // entries before this one are known not to need a pin, or to have one
	due    bool // some entry needs a pin
	needed bool // some entry has needed one
}

// reset forgets all, for a new attempt.
func (s *savepoints) reset() { *s = savepoints{stack: s.stack[:0]} }

// cut forgets what is above a savepoint that was gone back to.
func (s *savepoints) cut(at int) {
	s.stack = s.stack[:at+1]
	s.looked, s.due = s.stack[at].after, false
}

// note follows the statement of entry i, which succeeded.
func (s *savepoints) note(j *journal, i int) {
	e := &j.entries[i]
	if e.kind == callPrepare || e.kind == callClose {
		return
	}
	if e.info.Keyword == sqltext.RollbackTo {
		if at := s.find(e.info.Savepoint); at >= 0 {
			for k := s.stack[at].after; k < i; k++ {
				j.entries[k].undone = true
			}
		}
	}
	s.follow(e.info, i+1)
}

// follow does to the stack what a statement that succeeded did on the server; after
// is the index of the entry behind it.
func (s *savepoints) follow(info *sqltext.Info, after int) {
	switch info.Keyword {
	case sqltext.Savepoint:
		s.stack = append(s.stack, savepoint{name: info.Savepoint, after: after})
		s.looked, s.due = after, false // this is as good as a pin
	case sqltext.Release:
		if at := s.find(info.Savepoint); at >= 0 {
			s.stack = s.stack[:at]
			s.due = s.needed || s.due // the pins above it are gone
		}
	case sqltext.RollbackTo:
		if at := s.find(info.Savepoint); at >= 0 {
			s.stack = s.stack[:at+1]
		}
	case sqltext.SetTransaction:
		s.noPins = true // it may be under another level now
	case sqltext.Declare:
		// Going back does not rewind a cursor.
		s.noPins = true
		for i := range s.stack {
			if s.stack[i].pin {
				s.stack[i].after = -1
			}
		}
	}
}

// find returns the index of the application's newest savepoint of that name, -1 if
// there is none.
func (s *savepoints) find(name string) int {
	for i := len(s.stack) - 1; i >= 0; i-- {
		if !s.stack[i].pin && s.stack[i].name == name {
			return i
		}
	}
	return -1
}

// newest returns the index of the application's newest savepoint, -1 if there is
// none.
func (s *savepoints) newest() int {
	for i := len(s.stack) - 1; i >= 0; i-- {
		if !s.stack[i].pin {
			return i
		}
	}
	return -1
}

// backTo returns the statement that goes back to a savepoint.
func (s savepoint) backTo() string {
	return `ROLLBACK TO SAVEPOINT "` + strings.ReplaceAll(s.name, `"`, `""`) + `"`
}

// showing is what kind of thing an entry has shown.
type showing uint8

const (
	showsNothing showing = iota
	showsOwn             // what the transaction wrote or locked: it stays true until undone
	showsOther           // what others may change; a cursor too, because going back does not rewind it
)

func (e *entry) shows() showing {
	if e.failed {
		return showsOther
	}
	if e.kind == callPrepare || e.info.Copy == sqltext.CopyFromClient {
		return showsNothing
	}
	seen := int64(e.shown.rows)
	switch {
	case e.kind == callExec:
		seen = e.count
	case seen == 0 && !e.shown.end && len(e.shown.earlier) == 0:
		return showsNothing // its rows were not fetched, or the first of them met a conflict
	}
	switch e.info.Keyword {
	case sqltext.None, sqltext.Savepoint, sqltext.Release, sqltext.RollbackTo, sqltext.Set, sqltext.SetLocal,
		sqltext.SetTransaction, sqltext.SetConstraints, sqltext.Reset, sqltext.Listen, sqltext.Unlisten, sqltext.Notify,
		sqltext.Lock, sqltext.DDL, sqltext.Truncate, sqltext.Close:
		if e.info.Statements <= 1 && seen == 0 {
			return showsNothing
		}
	}
	if e.info.OwnRows && seen > 0 && !e.undone {
		return showsOwn
	}
	return showsOther
}

// deservesPin says whether the entry has shown what executing it again might not
// show again, though it stays true if it is not undone.
func (e *entry) deservesPin() bool {
	return (e.info.Returning || e.info.LocksRows) && e.shows() == showsOwn
}

// showsReads says whether anything was shown that others may change. If so, going
// back to a savepoint is no way out of a deadlock: the other side has still to commit,
// so that a read shows what it showed, and what is then written on its strength
// overwrites what the other side has done. Errors in what is executed again, from an
// entry on, are no such thing: they come again or do not.
func (j *journal) showsReads(again int) bool {
	for i := range j.entries {
		if e := &j.entries[i]; e.shows() == showsOther && (!e.failed || i < again) {
			return true
		}
	}
	return false
}

// hasOpenCursor says whether rows of an entry before one are still being read.
func (j *journal) hasOpenCursor(before int) bool {
	for i := range before {
		if j.entries[i].cursor != nil {
			return true
		}
	}
	return false
}

// needsPin says whether there is something before entry i that executing it again
// would not show again, though it is true as long as it is not undone.
func (s *savepoints) needsPin(j *journal, i int) bool {
	for s.looked < i {
		e := &j.entries[s.looked]
		if e.cursor != nil {
			return false // still being read
		}
		if e.kind == callQuery && e.deservesPin() {
			s.due, s.needed = true, true
		}
		s.looked++
	}
	if s.due && j.showsReads(i) {
		s.noPins = true // they would be of no use
	}
	return s.due && !s.noPins
}

// showsCountsOnly says whether nothing was shown but how many rows were affected.
func (j *journal) showsCountsOnly() bool {
	for i := range j.entries {
		e := &j.entries[i]
		if e.failed || e.kind == callQuery || e.count == 0 && e.shows() != showsNothing {
			return false
		}
	}
	return true
}

// mayBeReadCommitted says whether going back to a savepoint is any use. Under the
// other levels the snapshot stays, and so does the conflict.
func mayBeReadCommitted(level sql.IsolationLevel) bool {
	return level == sql.LevelDefault || level == sql.LevelReadCommitted || level == sql.LevelReadUncommitted
}
