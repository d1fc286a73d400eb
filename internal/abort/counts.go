package abort

import "sync/atomic"

// Kind is a kind of call that can fail.
type Kind uint8

// The kinds of calls, as database/sql makes them.
const (
	Exec      Kind = iota // a connection's ExecContext inside a block
	Query                 // a connection's QueryContext inside a block
	Prepare               // a connection's PrepareContext inside a block
	StmtExec              // a prepared statement's ExecContext inside a block
	StmtQuery             // a prepared statement's QueryContext inside a block
	Next                  // a cursor's Next inside a block
	Close                 // the Close of a cursor inside a block, its end not yet seen
	Commit                // a transaction's Commit
	Lone                  // any statement outside a block

	kinds
)

var kindNames = [kinds]string{"Exec", "Query", "Prepare", "StmtExec", "StmtQuery", "Next", "Close", "Commit", "Lone"}

// String returns the kind's name.
func (k Kind) String() string {
	if k < kinds {
		return kindNames[k]
	}
	return "none"
}

// IsStatement is true of the calls that execute a statement in a block.
func (k Kind) IsStatement() bool {
	switch k {
	case Exec, Query, StmtExec, StmtQuery:
		return true
	}
	return false
}

// Counts says how many calls of each kind were made to fail. Kinds without any
// are absent.
type Counts map[Kind]int64

// Total is the sum over all kinds.
func (c Counts) Total() int64 {
	var total int64
	for _, n := range c {
		total += n
	}
	return total
}

type counters [kinds]atomic.Int64

func (c *counters) snapshot() Counts {
	counts := make(Counts)
	for k := range c {
		if n := c[k].Load(); n != 0 {
			counts[Kind(k)] = n
		}
	}
	return counts
}
