package histories

import (
	"fmt"
	"strings"
)

// The anomalies that [Check] finds. G… are Adya's names.
const (
	G0             = "G0 (dirty write)"
	G1a            = "G1a (aborted read)"
	G1b            = "G1b (intermediate read)"
	G1c            = "G1c (circular information flow)"
	GSingle        = "G-single (read skew)"
	GNonadjacent   = "G-nonadjacent (long fork or the like)"
	G2             = "G2 (not serializable)"
	LostUpdate     = "lost update"
	LostAppend     = "lost write"
	DoubledAppend  = "doubled write"
	Undead         = "write of a failed transaction"
	RolledBack     = "write that was rolled back to a savepoint"
	Torn           = "half of a transaction"
	Garbage        = "value that nobody wrote"
	Internal       = "own operations seen wrongly"
	Unrepeatable   = "reads of two snapshots"
	LockBroken     = "write of another transaction in spite of a lock"
	Order          = "orders of versions that contradict each other"
	Stale          = "stale read"
	FailedCommit   = "commit in spite of a failure"
	WrongIDs       = "generated ids"
	WrongRecording = "history that cannot be"
)

// Anomaly is something in a history that must not be.
type Anomaly struct {
	// Name is one of the constants.
	Name string
	// Text says what was found.
	Text string
	// Txs are those concerned.
	Txs []*Tx
}

// Report describes the anomalies, the first few of them at length.
func Report(anomalies []Anomaly) string {
	const atLength, byName = 4, 40
	var text strings.Builder
	fmt.Fprintf(&text, "%d anomalies\n", len(anomalies))
	for i, a := range anomalies[:min(len(anomalies), byName)] {
		fmt.Fprintf(&text, "\n%d. %s: %s\n", i+1, a.Name, a.Text)
		if i >= atLength {
			continue
		}
		for _, tx := range a.Txs {
			text.WriteString(tx.String())
		}
	}
	if len(anomalies) > byName {
		fmt.Fprintf(&text, "\nand %d more\n", len(anomalies)-byName)
	}
	return text.String()
}

// String lists the operations of a transaction, each in a line.
func (tx *Tx) String() string {
	var text strings.Builder
	lone := ""
	if tx.Lone {
		lone = ", a lone statement"
	}
	fmt.Fprintf(&text, "  %s, %s%s, %s, from %d to %d\n", tx.Name, tx.Level, lone, tx.Outcome, tx.Began, tx.Ended)
	for i, op := range tx.Ops {
		fmt.Fprintf(&text, "    %2d @%-6d %s\n", i+1, op.Began, op.String())
	}
	if tx.Err != "" {
		fmt.Fprintf(&text, "    end      %s\n", tx.Err)
	}
	return text.String()
}

// String returns the operation in one line.
func (op Op) String() string {
	text := op.what()
	if op.SQL != "" {
		text += "   -- " + op.SQL
	}
	if op.Err != "" {
		text += "\n                FAILED: " + op.Err
	}
	return text
}

func (op Op) what() string {
	shown := func(format string, args ...any) string {
		if op.Err != "" {
			return ""
		}
		return " → " + fmt.Sprintf(format, args...)
	}
	switch op.Kind {
	case Read:
		locked, through := "", ""
		if op.Locked {
			locked = " and lock"
		}
		if op.Cursor != 0 {
			through = fmt.Sprintf(" by the cursor of %d", op.Cursor)
		}
		return fmt.Sprintf("read%s %d%s", locked, op.Key, through) + shown("%s", listText(op.List))
	case Length:
		return fmt.Sprintf("length of %d", op.Key) + shown("%d", op.N)
	case Contains:
		if op.Found < 0 {
			return fmt.Sprintf("look for value %d in %d to %d", op.Val, op.Key, op.High) + shown("none")
		}
		return fmt.Sprintf("look for value %d in %d to %d", op.Val, op.Key, op.High) + shown("in %d", op.Found)
	case Append:
		return fmt.Sprintf("append to %d value %d", op.Key, op.Val) + shown("%d rows", op.N)
	case Write:
		return fmt.Sprintf("write to %d the list %s and value %d", op.Key, listText(op.List), op.Val) + shown("%d rows", op.N)
	case InsertParent:
		return fmt.Sprintf("insert parent, value %d", op.Val) + shown("id %d", op.ID)
	case InsertChild:
		return fmt.Sprintf("insert child of id %d, value %d", op.ID, op.Val)
	case CountChildren:
		return fmt.Sprintf("count children of id %d", op.ID) + shown("%d", op.N)
	case SetMark:
		return fmt.Sprintf("set mark to %d", op.Val)
	case ShowMark:
		return "show mark" + shown("%d", op.Val)
	case Savepoint:
		return "savepoint " + op.Name
	case Release:
		return "release " + op.Name
	case RollbackTo:
		return "rollback to " + op.Name
	case Declare:
		return fmt.Sprintf("declare cursor for %d to %d", op.Key, op.High)
	}
	return "statement"
}

// listText shows the end of a list: that is where things happen.
func listText(list []int32) string {
	const most = 12
	if len(list) <= most {
		return fmt.Sprint(list)
	}
	return fmt.Sprintf("[…%d more %s", len(list)-most, fmt.Sprint(list[len(list)-most:])[1:])
}
