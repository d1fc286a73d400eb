package pgretry

import (
	"regexp"
	"strconv"
	"strings"
)

// deadlockDetected is the SQLSTATE of a deadlock.
const deadlockDetected = "40P01"

// Deadlock is what a server reports of a deadlock it has resolved: who waited for
// what. It is for people to read; nothing is decided by it.
type Deadlock struct {
	// Edges is the cycle of waiting sessions, the server's victim first. It is
	// empty if the server sent no details (Citus' distributed deadlocks) or none
	// that could be read.
	Edges []DeadlockEdge

	// Relation is the table whose row the victim was waiting for, without its
	// schema, or "" if the server did not name one.
	Relation string
}

// DeadlockEdge is one session that waited for another.
type DeadlockEdge struct {
	// PID is the process id of the waiting server session.
	PID int
	// Mode is the lock mode it waited for, such as ShareLock.
	Mode string
	// Object is what was to be locked, in the server's words and language, such
	// as "transaction 729" or "tuple (0,2) of relation 16384 of database 5".
	Object string
	// BlockedBy is the process id of the session that was in the way.
	BlockedBy int
}

// ParseDeadlock reads the server's report from a deadlock's error. It is true if
// and only if the error's SQLSTATE is 40P01; the report is filled in as far as
// its text, which the server may have translated, is understood.
func ParseDeadlock(err error) (*Deadlock, bool) {
	server, ok := asServerError(err)
	if !ok || server.code != deadlockDetected {
		return nil, false
	}
	deadlock := &Deadlock{Relation: lockedRelation(server.where)}
	for line := range strings.SplitSeq(server.detail, "\n") {
		if edge, ok := parseDeadlockEdge(strings.TrimSpace(line)); ok {
			deadlock.Edges = append(deadlock.Edges, edge)
		}
	}
	return deadlock, true
}

// String returns the cycle on one line: "123 waits for ShareLock on transaction
// 729, blocked by 124; 124 waits for …". Without edges it is empty.
func (d *Deadlock) String() string {
	if d == nil {
		return ""
	}
	var text strings.Builder
	for i, edge := range d.Edges {
		if i > 0 {
			text.WriteString("; ")
		}
		text.WriteString(strconv.Itoa(edge.PID))
		text.WriteString(" waits for ")
		text.WriteString(edge.Mode)
		if edge.Object != "" {
			text.WriteString(" on ")
			text.WriteString(edge.Object)
		}
		text.WriteString(", blocked by ")
		text.WriteString(strconv.Itoa(edge.BlockedBy))
	}
	return text.String()
}

var (
	// The sentence of PostgreSQL's deadlock.c.
	englishEdge = regexp.MustCompile(`^Process (\d+) waits for (\S+) on (.+); blocked by process (\d+)\.$`)

	// In translations only the numbers and the mode are sure to be there. The two
	// clauses are divided by one of these marks in every language PostgreSQL
	// speaks, the waiting process comes first and the blocking one last.
	lockMode           = regexp.MustCompile(`(?:AccessShare|AccessExclusive|RowShare|RowExclusive|ShareUpdateExclusive|ShareRowExclusive|Share|Exclusive|SIRead)Lock`)
	deadlockNumber     = regexp.MustCompile(`\d+`)
	deadlockClauseMark = regexp.MustCompile(`[;；、]`)
	afterLockMode      = regexp.MustCompile(`^(?:-\S+)?\s+\S+\s+`) // "-Sperre auf ", " sur ", " を "
	tupleAddress       = regexp.MustCompile(`\d+, ?\d+`)
)

func parseDeadlockEdge(line string) (DeadlockEdge, bool) {
	if match := englishEdge.FindStringSubmatch(line); match != nil {
		return newDeadlockEdge(match[1], match[2], match[3], match[4])
	}
	if strings.HasPrefix(line, "Process ") && strings.Contains(line, " waits for ") {
		return DeadlockEdge{}, false // cut off: what is left of it would be misread
	}
	marks := deadlockClauseMark.FindAllStringIndex(line, -1)
	if marks == nil {
		return DeadlockEdge{}, false
	}
	mark := marks[len(marks)-1]
	waiting, blocking := line[:mark[0]], line[mark[1]:]
	pid := deadlockNumber.FindStringIndex(waiting)
	mode := lockMode.FindStringIndex(waiting)
	blockedBy := deadlockNumber.FindString(blocking)
	if pid == nil || mode == nil || pid[1] > mode[0] || blockedBy == "" || strings.HasSuffix(blocking, blockedBy) {
		return DeadlockEdge{}, false
	}
	object := translatedObject(waiting[pid[1]:mode[0]], waiting[mode[1]:])
	return newDeadlockEdge(waiting[pid[0]:pid[1]], waiting[mode[0]:mode[1]], object, blockedBy)
}

func newDeadlockEdge(pid, mode, object, blockedBy string) (DeadlockEdge, bool) {
	waiter, err := strconv.Atoi(pid)
	if err != nil {
		return DeadlockEdge{}, false
	}
	blocker, err := strconv.Atoi(blockedBy)
	if err != nil {
		return DeadlockEdge{}, false
	}
	return DeadlockEdge{PID: waiter, Mode: mode, Object: object, BlockedBy: blocker}, true
}

// translatedObject takes the locked object, which has numbers in it in every
// language, out of what stands before and after the lock mode.
func translatedObject(before, after string) string {
	if !deadlockNumber.MatchString(after) { // Chinese names the object first
		return strings.TrimPrefix(endAtNumber(strings.TrimSpace(before)), "等待在")
	}
	object := after
	if word := afterLockMode.FindStringIndex(after); word != nil {
		object = after[word[1]:]
	}
	if _, inParentheses, ok := strings.Cut(object, ": "); ok { // Korean
		return strings.TrimSuffix(inParentheses, ")")
	}
	object = strings.TrimSpace(object)
	if len(object) > 1 && object[0] == '"' && object[len(object)-1] == '"' { // Russian
		return object[1 : len(object)-1]
	}
	if strings.HasPrefix(after, " を ") {
		return endAtNumber(object)
	}
	return object
}

// endAtNumber drops words that follow the last number or closing bracket.
func endAtNumber(text string) string {
	return text[:strings.LastIndexAny(text, "0123456789)]")+1]
}

// lockedRelation finds the table in the CONTEXT of an error met while waiting for
// a row: `while updating tuple (0,2) in relation "t"`. The server puts the name
// between quotes as it is, doubling none that it contains.
func lockedRelation(where string) string {
	for line := range strings.SplitSeq(where, "\n") {
		for _, quotes := range [...][2]string{{`"`, `"`}, {"« ", " »"}, {"«\u00a0", "\u00a0»"}, {"»", "«"}, {"«", "»"}, {"„", "“"}, {"“", "”"}} {
			before, rest, opened := strings.Cut(line, quotes[0])
			end := strings.LastIndex(rest, quotes[1])
			if !opened || end < 0 {
				continue
			}
			// The address of the row stands outside the quotes, which tells this
			// line from one that quotes a statement.
			if tupleAddress.MatchString(before) || tupleAddress.MatchString(rest[end:]) {
				return rest[:end]
			}
		}
	}
	return ""
}

// serializationReason returns why PostgreSQL chose to cancel a serializable
// transaction, from the DETAIL of its error (always in English), such as
// "Canceled on identification as a pivot, during write", or "".
func serializationReason(detail string) string {
	_, reason, ok := strings.Cut(detail, "Reason code: ")
	if !ok {
		return ""
	}
	reason, _, _ = strings.Cut(reason, "\n")
	return strings.TrimSuffix(strings.TrimSpace(reason), ".")
}
