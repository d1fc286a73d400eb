package sqltext

import "math/bits"

// Keyword says what kind of statement a text begins with. The zero value is
// None: there is no statement at all.
type Keyword uint8

// The kinds of statement that are told apart. Where SQL has two spellings for
// one thing, they share a Keyword.
const (
	None  Keyword = iota // no statement: only white space, comments and semicolons
	Other                // a statement this package knows nothing about

	Select
	Values
	Table // the command TABLE name
	With  // a WITH list before a statement of any kind
	Insert
	Update
	Delete
	Merge

	Begin              // BEGIN, START TRANSACTION
	Commit             // COMMIT, END
	Rollback           // ROLLBACK, ABORT
	Savepoint          // SAVEPOINT
	Release            // RELEASE [SAVEPOINT]
	RollbackTo         // ROLLBACK TO [SAVEPOINT]
	PrepareTransaction // PREPARE TRANSACTION
	CommitPrepared     // COMMIT PREPARED
	RollbackPrepared   // ROLLBACK PREPARED

	Prepare // PREPARE name AS
	Execute
	Deallocate
	Declare // DECLARE name CURSOR
	Fetch
	Move
	Close

	Copy
	Call // a procedure may commit and roll back on its own
	Do   // a code block may commit and roll back on its own

	Set            // SET and SET SESSION: outlives the transaction
	SetLocal       // SET LOCAL
	SetTransaction // SET TRANSACTION
	SetConstraints // SET CONSTRAINTS
	Reset
	Show
	Discard
	Load

	Listen
	Unlisten
	Notify

	Lock
	Explain
	DDL      // ALTER, COMMENT, CREATE, DROP, GRANT, IMPORT, REASSIGN, REFRESH, REVOKE, SECURITY
	Truncate // TRUNCATE
	Vacuum
	AnalyzeTables // ANALYZE, ANALYSE
	Cluster
	Reindex
	Checkpoint

	keywords // how many there are
)

var keywordNames = [keywords]string{
	None: "none", Other: "other",
	Select: "SELECT", Values: "VALUES", Table: "TABLE", With: "WITH",
	Insert: "INSERT", Update: "UPDATE", Delete: "DELETE", Merge: "MERGE",
	Begin: "BEGIN", Commit: "COMMIT", Rollback: "ROLLBACK", Savepoint: "SAVEPOINT", Release: "RELEASE", RollbackTo: "ROLLBACK TO",
	PrepareTransaction: "PREPARE TRANSACTION", CommitPrepared: "COMMIT PREPARED", RollbackPrepared: "ROLLBACK PREPARED",
	Prepare: "PREPARE", Execute: "EXECUTE", Deallocate: "DEALLOCATE", Declare: "DECLARE", Fetch: "FETCH", Move: "MOVE", Close: "CLOSE",
	Copy: "COPY", Call: "CALL", Do: "DO",
	Set: "SET", SetLocal: "SET LOCAL", SetTransaction: "SET TRANSACTION", SetConstraints: "SET CONSTRAINTS",
	Reset: "RESET", Show: "SHOW", Discard: "DISCARD", Load: "LOAD",
	Listen: "LISTEN", Unlisten: "UNLISTEN", Notify: "NOTIFY",
	Lock: "LOCK", Explain: "EXPLAIN", DDL: "DDL", Truncate: "TRUNCATE",
	Vacuum: "VACUUM", AnalyzeTables: "ANALYZE", Cluster: "CLUSTER", Reindex: "REINDEX", Checkpoint: "CHECKPOINT",
}

// String returns the keyword as SQL writes it, upper case; "none", "other" and
// "DDL" for the three that SQL has no word for.
func (k Keyword) String() string {
	if k >= keywords {
		return "invalid"
	}
	return keywordNames[k]
}

// KeywordSet is the set of the kinds of all statements in a text. The zero
// value is empty.
type KeywordSet uint64

// KeywordsOf returns the set of the given keywords.
func KeywordsOf(ks ...Keyword) KeywordSet {
	var s KeywordSet
	for _, k := range ks {
		s |= 1 << k
	}
	return s
}

// Has reports whether k is in the set.
func (s KeywordSet) Has(k Keyword) bool { return s&(1<<k) != 0 }

// Intersects reports whether the two sets share a keyword.
func (s KeywordSet) Intersects(other KeywordSet) bool { return s&other != 0 }

// Len returns the number of keywords in the set.
func (s KeywordSet) Len() int { return bits.OnesCount64(uint64(s)) }

// CopyKind says where the data of a COPY comes from or goes to.
type CopyKind uint8

const (
	CopyNone       CopyKind = iota // no COPY
	CopyFromClient                 // COPY … FROM STDIN
	CopyToClient                   // COPY … TO STDOUT
	CopyOnServer                   // a file or a program of the server's, or not understood
)
