package pgretry

import (
	"context"
	"fmt"
	"regexp"
	"strings"

	"github.com/pgretry/pgretry/internal/sqltext"
)

// RefusalReason says why a transaction, or a statement outside one, is not run
// again although its error would be retried. What hides behind a name (a view, a
// trigger, a default, a stored function) the driver does not see.
type RefusalReason string

// Reasons of closures.
const (
	// RefusedAlreadyCommitted is behind [ErrAlreadyCommitted].
	RefusedAlreadyCommitted RefusalReason = "already_committed"
	// RefusedNotObserved is behind [ErrNotObserved].
	RefusedNotObserved RefusalReason = "not_observed"
	// RefusedTxStillOpen is behind [ErrTxStillOpen].
	RefusedTxStillOpen RefusalReason = "tx_still_open"
)

// Reasons of transactions that the driver would replay by itself. They are behind
// [ErrRefused].
const (
	// RefusedMode: the mode is not [ModeReplay].
	RefusedMode RefusalReason = "mode"
	// RefusedByContext: the transaction began under [ContextWithoutReplay].
	RefusedByContext RefusalReason = "context"
	// RefusedAdvisoryLock: an advisory lock of the session was taken or released.
	// It survives a rollback.
	RefusedAdvisoryLock RefusalReason = "advisory_lock"
	// RefusedAdvisoryXactLock: an advisory lock of the transaction was taken. A
	// replay lets go of it for a moment, and what it excludes is often outside the
	// database; [WithAllowedFunctions] permits it.
	RefusedAdvisoryXactLock RefusalReason = "advisory_xact_lock"
	// RefusedSessionState: PREPARE, DEALLOCATE, LOAD, DISCARD or a cursor WITH HOLD
	// changed the session in a way that survives a rollback, or EXECUTE ran a
	// statement that PREPARE has hidden. Or the connection was lost, and a statement
	// since it was opened may have changed the session in a way that a new one lacks:
	// SET, set_config, a temporary table, LISTEN, or a function that is not known.
	RefusedSessionState RefusalReason = "session_state"
	// RefusedPreparedTransaction: the transaction was, or had to do with, one
	// prepared for two-phase commit.
	RefusedPreparedTransaction RefusalReason = "prepared_transaction"
	// RefusedOutsideEffect: a function was called whose effects no rollback undoes,
	// such as dblink or setval.
	RefusedOutsideEffect RefusalReason = "outside_effect"
	// RefusedDeniedFunction: a function was called that [WithDeniedFunctions] names.
	RefusedDeniedFunction RefusalReason = "denied_function"
	// RefusedServerCopy: COPY read or wrote a file or a program of the server.
	RefusedServerCopy RefusalReason = "server_copy"
	// RefusedTxControl: the transaction was begun or ended by a statement, or
	// several statements in one text had BEGIN, COMMIT, a savepoint or the like
	// among them.
	RefusedTxControl RefusalReason = "tx_control"
	// RefusedUnreadable: a text may mean something else to the server than to the
	// driver.
	RefusedUnreadable RefusalReason = "unreadable"
	// RefusedForeignTables: COMMIT failed in a database with foreign tables, whose
	// servers may have committed their part.
	RefusedForeignTables RefusalReason = "foreign_tables"
	// RefusedRawConn: [RawConn] handed out the inner connection.
	RefusedRawConn RefusalReason = "raw_conn"
	// RefusedJournalFull: the transaction is larger than [WithJournalLimit] allows
	// to remember.
	RefusedJournalFull RefusalReason = "journal_full"
	// RefusedArgument: an argument is of a type that the driver cannot copy, so
	// that it may have changed since.
	RefusedArgument RefusalReason = "argument"
	// RefusedValue: the inner driver returned a value of a type that cannot be
	// compared.
	RefusedValue RefusalReason = "value"
	// RefusedInterrupted: a statement ended without an answer from the server, for
	// example because its context did.
	RefusedInterrupted RefusalReason = "interrupted"
	// RefusedSavepoint: the conflict came inside a savepoint of the application and
	// what lies inside could not be replayed. The error was handed out and the
	// application's ROLLBACK TO works as it does without the driver.
	RefusedSavepoint RefusalReason = "savepoint"
	// RefusedConnectionLost: something that had to work for the replay did not, such as
	// ROLLBACK, or a new connection for a reason that does not pass.
	RefusedConnectionLost RefusalReason = "connection_lost"
	// RefusedStatement: a statement outside a transaction that may leave a part of its
	// work behind when it fails (CALL, DO, VACUUM, what is done CONCURRENTLY), or that is
	// neither a query or write nor usual DDL; or a text of several statements.
	RefusedStatement RefusalReason = "statement"
)

// tells says whether the reason is worth telling where an error comes up: not if it
// is what the application asked for.
func (r RefusalReason) tells() bool {
	return r != "" && r != RefusedMode && r != RefusedByContext
}

var refusalWords = map[RefusalReason]string{
	RefusedAdvisoryLock:        "it uses advisory locks of the session",
	RefusedAdvisoryXactLock:    "it takes advisory locks",
	RefusedSessionState:        "it changes the session in a way that survives a rollback",
	RefusedPreparedTransaction: "it has to do with a prepared transaction",
	RefusedOutsideEffect:       "it has effects that no rollback undoes",
	RefusedDeniedFunction:      "it calls a function that WithDeniedFunctions names",
	RefusedServerCopy:          "it copies from or to a file or a program of the server",
	RefusedTxControl:           "a transaction is begun, ended or divided by a text of the application's",
	RefusedUnreadable:          "a text cannot be read with certainty",
	RefusedForeignTables:       "there are foreign tables, whose servers may have committed",
	RefusedRawConn:             "the inner connection was handed out",
	RefusedJournalFull:         "it is larger than WithJournalLimit allows",
	RefusedArgument:            "an argument cannot be copied",
	RefusedValue:               "a value cannot be compared",
	RefusedInterrupted:         "a statement ended without an answer",
	RefusedSavepoint:           "the conflict is inside a savepoint and cannot be replayed from there",
	RefusedConnectionLost:      "the connection was lost for good",
	RefusedStatement:           "only single queries, writes and DDL that leave nothing behind when they fail are executed again",
}

// explain is the sentence that a conflict's hint gains.
func explain(o outcome, reason RefusalReason, words string) string {
	switch o {
	case outcomeDiverged:
		return "pgretry: not replayed, because the replay showed something else than the application has seen: " + words + "."
	case outcomeExhausted:
		return "pgretry: not replayed again: " + words + "."
	}
	if words != "" {
		words = " (" + words + ")"
	}
	return fmt.Sprintf("pgretry: not replayed, because %s%s [%s].", refusalWords[reason], words, reason)
}

// met returns a conflict that is not replayed to the application, as it is but for
// the hint, and other errors as they are.
func (t *tx) met(v verdict) error {
	if !t.replayable(v) {
		return v.err
	}
	t.surface()
	if !t.refusal.tells() {
		return v.err
	}
	t.tellFinal(outcomeRefused, v, t.refusal, t.refusedFor)
	return explained(v.err, outcomeRefused, t.refusal, t.refusedFor)
}

// surface counts a conflict that the application sees.
func (t *tx) surface() {
	t.surfaced = true
	if t.closure != nil {
		t.closure.sawFailure(ClassRetryable)
	}
	t.conn.connector.stats.surfaced()
}

// refuse gives up the journal: from now on the transaction is as it would be without
// the driver.
func (t *tx) refuse(reason RefusalReason, what string) {
	if !t.covered {
		return
	}
	t.covered, t.refusal, t.refusedFor = false, reason, what
	t.conn.connector.stats.peak(t.journal().size)
	t.journal().reset()
	t.conn.connector.telemetry.unprotected(t.began, reason)
}

// refuseForeignTables looks for foreign tables, whose servers have their part of the
// transaction committed even if COMMIT failed here.
func (t *tx) refuseForeignTables() {
	for i := range t.journal().entries {
		// A foreign table that the transaction made is gone by now.
		if e := &t.journal().entries[i]; e.info.Keywords.Has(sqltext.DDL) && mayNameForeignTable(e.text) {
			t.refuse(RefusedForeignTables, "")
			return
		}
	}
	if found, err := t.conn.hasForeignTables(t.began); err != nil || found {
		t.refuse(RefusedForeignTables, "")
	}
}

// noteForeignCommit tells a closure whose COMMIT has met a conflict that the servers of
// foreign tables may have committed.
func (t *tx) noteForeignCommit(v verdict) {
	if (t.attempt != nil || t.closure != nil) && t.state == txActive && t.conn.foreignMayHaveCommitted(t.began, v.class) {
		t.noteCommitted(foreignPart)
	}
}

const foreignPart = "a transaction's part on the server of a foreign table, perhaps"

// foreignMayHaveCommitted says, after a COMMIT of whatever kind has met a conflict, whether
// the servers of foreign tables may have committed their part before. A database that does
// not understand the question has no such tables; without an answer it may.
func (c *conn) foreignMayHaveCommitted(ctx context.Context, class Class) bool {
	if class != ClassRetryable && class != ClassRetryableOptIn {
		return false
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pingTimeout)
	defer cancel()
	found, err := c.hasForeignTables(ctx)
	return found || sqlState(err) != "" || contextError(ctx) != nil || Classify(err, PhaseStatement) == ClassConnectionLost
}

// foreignKey is what DDL says of tables that are not foreign.
var foreignKey = regexp.MustCompile(`(?i)foreign\s+key\b`)

// mayNameForeignTable says whether a text may be about foreign tables. A guess is enough:
// if it is wrong, a conflict of COMMIT is the application's.
func mayNameForeignTable(text string) bool {
	return strings.Contains(strings.ToLower(foreignKey.ReplaceAllLiteralString(text, " ")), "foreign")
}

func (c *conn) hasForeignTables(ctx context.Context) (bool, error) {
	found, err := c.ask(ctx, "SELECT 'yes' FROM pg_catalog.pg_foreign_table LIMIT 1")
	switch sqlState(err) {
	case "42P01", "3F000": // an engine without that catalog, and so without such tables
		return false, nil
	}
	return found == "yes", err
}

// refuses says whether a statement stands in the way of a replay, and what of it.
func (c *config) refuses(kind callKind, info *sqltext.Info) (reason RefusalReason, what string) {
	if kind == callPrepare || kind == callClose {
		return "", "" // it is executed later, or is COPY from the client
	}
	switch {
	case info.Hazard == sqltext.HazardPreparedTransaction:
		return RefusedPreparedTransaction, info.HazardName
	case info.EndsTx, info.BeginsTx:
		return RefusedTxControl, info.Keyword.String()
	case info.Keywords.Has(sqltext.Execute):
		return RefusedSessionState, "EXECUTE" // of what was prepared the text is not known
	}
	if len(c.denied) > 0 {
		for _, name := range info.Functions {
			if c.denied.match(name) {
				return RefusedDeniedFunction, name
			}
		}
	}
	if info.Hazard == sqltext.HazardNone {
		return "", ""
	}
	if len(c.allowed) > 0 && byFunction(info.Hazard) {
		for _, name := range info.Functions {
			if hazard := sqltext.HazardOfFunction(name); hazard != sqltext.HazardNone && !c.allowed.match(name) {
				return hazardReasons[hazard], name
			}
		}
		return "", ""
	}
	return hazardReasons[info.Hazard], info.HazardName
}

// byFunction says whether a hazard lies in functions and nothing else.
func byFunction(hazard sqltext.Hazard) bool {
	switch hazard {
	case sqltext.HazardAdvisoryLock, sqltext.HazardAdvisoryXactLock, sqltext.HazardOutside:
		return true
	}
	return false
}

var hazardReasons = map[sqltext.Hazard]RefusalReason{
	sqltext.HazardUnreadable:          RefusedUnreadable,
	sqltext.HazardTxControl:           RefusedTxControl,
	sqltext.HazardPreparedTransaction: RefusedPreparedTransaction,
	sqltext.HazardAdvisoryLock:        RefusedAdvisoryLock,
	sqltext.HazardAdvisoryXactLock:    RefusedAdvisoryXactLock,
	sqltext.HazardSessionState:        RefusedSessionState,
	sqltext.HazardCopy:                RefusedServerCopy,
	sqltext.HazardOutside:             RefusedOutsideEffect,
}
