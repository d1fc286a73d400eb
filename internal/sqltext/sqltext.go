// Package sqltext looks at PostgreSQL SQL text as the server's scanner does and
// answers a few questions about it: how many statements it holds, what they
// begin with, whether they control transactions, which functions they name,
// and whether they can be proven to read only.
//
// It is a lexer with a memory of a few tokens, not a parser. Its answers are
// conservative: what is not understood is never a proven read.
//
// # What it assumes
//
//   - standard_conforming_strings is on, or it does not matter: a plain '…'
//     literal that would end elsewhere if it were off makes the text
//     Suspicious.
//   - The client encoding is UTF-8 or another one whose multi-byte characters
//     have no byte below 0x80. Invalid UTF-8 does no harm.
//
// # What it cannot see
//
// The text alone does not say what a name refers to. These can run code that
// the text does not show, in a proven read too:
//
//   - views, rules, row security policies, foreign tables and the defaults,
//     triggers and constraints of tables;
//   - a user's function that shares its unqualified name with a harmless
//     built-in one: the server looks in pg_catalog first, but a function whose
//     argument types fit better wins, and so does one in a schema that
//     search_path lists before pg_catalog;
//   - a function of one row argument written as a column (account.transfer
//     for transfer(account));
//   - operators, aggregates, casts and types that users made: an operator is
//     not looked at, and a cast only by the name of the type it leads to;
//   - what a called function, procedure or code block does inside.
package sqltext

// Info is what is known about a text. The zero value describes a text without
// statements.
type Info struct {
	// Statements is the number of statements, separated by semicolons that
	// are neither quoted nor in parentheses nor in the BEGIN ATOMIC body of a
	// routine. Empty ones do not count.
	Statements int
	// Keyword is the kind of the first statement. Parentheses before it are
	// ignored: (SELECT 1) is a Select.
	Keyword Keyword
	// Keywords holds the kinds of all statements, and Execute also for one inside
	// EXPLAIN or CREATE TABLE AS.
	Keywords KeywordSet

	// TxControl is set if any statement begins, ends, chains or prepares a
	// transaction, or decides on a prepared one. Savepoints do not count. CALL
	// and DO may do the same unseen: see Keywords.
	TxControl bool
	// BeginsTx is set if any statement begins a transaction: BEGIN, START
	// TRANSACTION, or the AND CHAIN of one that ends another.
	BeginsTx bool
	// EndsTx is set if any statement ends the session's transaction: COMMIT,
	// END, ROLLBACK, ABORT, PREPARE TRANSACTION. COMMIT PREPARED and ROLLBACK
	// PREPARED do not; ROLLBACK TO does not.
	EndsTx bool
	// LeavesTxOpen is set if the last of the statements that begin or end a
	// transaction begins one.
	LeavesTxOpen bool
	// AndChain is set if any statement ends a transaction with AND CHAIN.
	AndChain bool

	// ProvenRead is set if the text is exactly one statement that, as far as
	// its text shows, changes nothing and may be run any number of times:
	// SELECT, VALUES, TABLE or WITH that modifies no data, creates no table,
	// locks no rows, casts to built-in types only and calls only harmless
	// functions (see Harmless); SHOW; EXPLAIN without ANALYZE of such a
	// statement or of one that modifies data. The package comment says what
	// the text does not show.
	ProvenRead bool
	// DataModifying is set if INSERT, UPDATE, DELETE or MERGE stands where a
	// statement does, in a WITH list too. EXPLAIN counts if it may execute,
	// PREPARE does not. TRUNCATE, COPY and what functions do are no part of it.
	DataModifying bool
	// LocksRows is set if there is a FOR [NO KEY] UPDATE or FOR [KEY] SHARE. It
	// does not say which of the rows that are read are locked.
	LocksRows bool
	// WithHold is set if a DECLARE makes a cursor that outlives its transaction.
	WithHold bool
	// Temporary is set if a temporary object is made or a schema whose name
	// begins with pg_temp is mentioned.
	Temporary bool
	// Copy says where the first COPY of the text reads or writes.
	Copy CopyKind

	// Functions holds the names before an opening parenthesis that can be
	// those of functions, each once, in order of appearance: lower case unless
	// quoted, dotted as written ("pg_catalog.now"). A part that holds a dot
	// itself keeps its quotes, so what follows the last dot is the function's
	// own name or ends in a quote. Relations in INSERT INTO and the like, WITH
	// lists, aliases after AS and types after a cast are left out; where the
	// text is ambiguous a name that is no function is included.
	Functions []string

	// Hazard is what stands in the way of a replay. If several things do, it is
	// the first of: HazardUnreadable, HazardTxControl, the gravest of what the
	// statements' first words say, and that of the first function in Functions
	// that has one. So if it is a function's, only other functions can stand in
	// the way besides: see HazardOfFunction.
	Hazard Hazard
	// HazardName is what the Hazard was found in: a function as in Functions,
	// or a command in capitals ("PREPARE", "LOAD", "DECLARE … WITH HOLD").
	// Empty if there is none, and if the text is unreadable.
	HazardName string

	// Savepoint is the name, as the server compares it, that the only statement
	// of the text, SAVEPOINT, RELEASE [SAVEPOINT] or ROLLBACK [WORK |
	// TRANSACTION] TO [SAVEPOINT], is about: lower case unless quoted, without
	// quotes, cut to 63 bytes. Empty for any other text.
	Savepoint string

	// OwnRows is set if the text is exactly one statement and the rows it
	// returns or counts are of the transaction's own making or locked by it, so
	// that what it shows stays true for as long as it is not undone: INSERT of
	// VALUES or of a SELECT without FROM, such as one of unnest, that skips no row
	// for a conflict, UPDATE and DELETE without any other relation, SELECT of one
	// relation FOR [NO KEY] UPDATE or FOR SHARE, SELECT without FROM. It calls only
	// harmless functions that do not look at the catalog, nextval, currval,
	// lastval and pg_notify, and casts to built-in types only. It says nothing
	// about rows that were not found: they can appear. The package comment says
	// what the text does not show.
	OwnRows bool
	// Returning is set if an INSERT, UPDATE, DELETE or MERGE of the text, one
	// in a WITH list not among them, has a RETURNING clause.
	Returning bool
	// Whole is set if the text is exactly one statement that the server does as a
	// whole or not at all, outside a transaction too, and that can be executed again
	// if it was not done: SELECT, VALUES, TABLE, WITH, SHOW, INSERT, UPDATE, DELETE,
	// MERGE; TRUNCATE, COMMENT, GRANT, REVOKE, and CREATE, ALTER and DROP of what
	// applications have, but nothing CONCURRENTLY. Functions that commit by themselves
	// (dblink) have a Hazard.
	Whole bool
	// CopyFreeze is set if a COPY has the option FREEZE.
	CopyFreeze bool

	// SessionState is set if executing the text may leave something in the
	// session that outlives the transaction and that a new session does not
	// have, or asks for such: SET but for SET LOCAL, SET TRANSACTION and SET
	// CONSTRAINTS; RESET, DISCARD, LISTEN, UNLISTEN, PREPARE, DEALLOCATE, LOAD;
	// DECLARE … WITH HOLD; temporary objects and any mention of pg_temp, ON
	// COMMIT DROP or not; DO, CALL, EXECUTE; a statement this package knows
	// nothing about; a function whose effect is not known, or known to be one
	// on the session: advisory locks of the session, set_config unless its
	// third argument is the word TRUE, setseed, and currval and lastval, which
	// show what nextval and setval have left. These two and random do not count
	// themselves, nor do the advisory locks of the transaction, large objects,
	// and objects in the database that are not temporary.
	//
	// What is local to a transaction does not count either, though a parameter
	// with a dot in its name that was set so for the first time is the empty
	// string ever after, and not unknown. The package comment says what the
	// text does not show. See LeavesSessionState.
	SessionState bool
	// HiddenEffect is set if executing the text may have an effect outside the
	// session that takes place although the transaction gets no transaction
	// id, as that of pg_notify does at COMMIT, or that reaches outside the
	// database: NOTIFY; DO, CALL, EXECUTE; COPY of a file or a program of the
	// server's; ALTER SYSTEM; COMMIT PREPARED and ROLLBACK PREPARED; a
	// statement this package knows nothing about; a function whose effect is
	// not known, or known to be such. nextval, setval and advisory locks do not
	// count: they wait for no COMMIT.
	//
	// It does not speak of what DataModifying statements do without getting an
	// id: by triggers that are called though no row is changed, by instead-of
	// triggers and rules, and on foreign tables.
	HiddenEffect bool

	// Suspicious is set if the text may not mean to the server what it means
	// here: something is unterminated or unbalanced, a character is none of
	// SQL's, a backslash in a plain literal may escape the quote after it, a
	// number runs into a word, an identifier is written as U&"…". The other
	// fields are then guesses, ProvenRead and OwnRows are false, SessionState
	// and HiddenEffect are true, and Hazard is HazardUnreadable.
	Suspicious bool

	// stateByCommand is set if SessionState is for a reason that is no
	// function; stateFunctions are those that are one, each once.
	stateByCommand bool
	stateFunctions []string
}

// CallsOnlyHarmless reports whether every function named in the text is
// harmless (see Harmless), which is so if none is named.
func (i *Info) CallsOnlyHarmless() bool {
	for _, name := range i.Functions {
		if !Harmless(name) {
			return false
		}
	}
	return true
}
