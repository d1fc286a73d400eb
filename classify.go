package pgretry

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"io"
	"io/fs"
	"net"
	"reflect"
	"strconv"
	"strings"

	"github.com/lib/pq"
)

// Class says what an error means for the transaction it ended. The zero value is
// [ClassNone].
type Class uint8

const (
	// ClassNone: there was no error.
	ClassNone Class = iota

	// ClassPermanent: running the transaction again would fail again, or nothing
	// is known that would speak for it. Errors of a done context before COMMIT
	// are here too.
	ClassPermanent

	// ClassRetryable: the server says that it rolled the transaction back because
	// of others, and that it may well succeed when run again (40001, 40P01).
	ClassRetryable

	// ClassRetryableOptIn: the transaction was rolled back, because of others or
	// because of a mistake that would repeat itself (55P03, 23505, 53200).
	ClassRetryableOptIn

	// ClassNotStarted: nothing was begun. It can be tried again slowly, on a new
	// connection.
	ClassNotStarted

	// ClassConnectionLost: the session is gone before COMMIT was sent, and the
	// server rolls the transaction back, now or when it notices.
	ClassConnectionLost

	// ClassUnknownOutcome: COMMIT was sent and there is no verdict.
	ClassUnknownOutcome

	// ClassAborted: a symptom of an earlier error in the same transaction. The
	// class of that first error counts.
	ClassAborted
)

var classNames = [...]string{
	ClassNone:           "none",
	ClassPermanent:      "permanent",
	ClassRetryable:      "retryable",
	ClassRetryableOptIn: "retryable_opt_in",
	ClassNotStarted:     "not_started",
	ClassConnectionLost: "connection_lost",
	ClassUnknownOutcome: "unknown_outcome",
	ClassAborted:        "aborted",
}

// String returns the class in lower case with underscores, as in metrics.
func (c Class) String() string {
	if int(c) < len(classNames) {
		return classNames[c]
	}
	return "Class(" + strconv.Itoa(int(c)) + ")"
}

// Phase is what was being done when an error came. It matters as much as the
// error: a connection that is lost in a statement takes the transaction with it,
// one that is lost in COMMIT leaves it unknown. There is no useful zero value;
// [Classify] takes every value it does not know for [PhaseStatement].
type Phase uint8

const (
	// PhaseConnect: a connection was being established.
	PhaseConnect Phase = iota + 1
	// PhaseBegin: a transaction was being begun.
	PhaseBegin
	// PhaseStatement: anything within a transaction, ROLLBACK included, or a
	// single statement outside one.
	PhaseStatement
	// PhaseCommit: COMMIT was being executed.
	PhaseCommit
)

var phaseNames = [...]string{
	PhaseConnect:   "connect",
	PhaseBegin:     "begin",
	PhaseStatement: "statement",
	PhaseCommit:    "commit",
}

// String returns the phase in lower case.
func (p Phase) String() string {
	if int(p) < len(phaseNames) && phaseNames[p] != "" {
		return phaseNames[p]
	}
	return "Phase(" + strconv.Itoa(int(p)) + ")"
}

// Classify says what err, met in the given phase, means for the transaction. It
// looks through everything err wraps, never panics and depends on nothing but
// its arguments; in particular it does not know whether the caller's context is
// done, in which case nothing should be retried whatever the class.
//
// It understands the errors of lib/pq, of pgx and of any driver whose errors have
// a method SQLState() string, as sent by PostgreSQL, Citus, CockroachDB,
// YugabyteDB, Aurora DSQL, Spanner, Greenplum, PgBouncer and Supavisor.
func Classify(err error, phase Phase) Class {
	if err == nil {
		return ClassNone
	}
	found := findEvidence(err)
	if found.ours != ClassNone {
		return found.ours
	}
	if isAmbiguous(found.server.code) {
		return ClassUnknownOutcome
	}
	switch phase {
	case PhaseConnect:
		return found.classAtConnect()
	case PhaseCommit:
		return found.classAtCommit()
	default:
		return found.classBeforeCommit(phase)
	}
}

// evidence is what an error and all that it wraps have to say.
type evidence struct {
	server   serverError // zero unless answered
	answered bool        // the server sent an ErrorResponse

	ours Class // what an error of this package says, which knew more

	contextDone bool // the caller's context ended it
	lost        bool // the connection is not usable any more
	unreachable bool // the connection could not be established, but later it may
	aborted     bool // the transaction had failed before
	refused     bool // database/sql or the driver sent nothing at all
}

func findEvidence(err error) evidence {
	var found evidence
	eachError(err, func(node error, leaf bool) bool {
		if server, ok := serverErrorOf(node); ok {
			if !found.answered || found.server.message == "" {
				found.server, found.answered = server, true
			}
			found.unreachable = found.unreachable || server.refusesConnections()
			return true
		}
		found.addError(node)
		if leaf {
			found.addText(node.Error())
		}
		return true
	})
	return found
}

func (found *evidence) addError(node error) {
	switch node := node.(type) {
	case *ConnectionLostError:
		found.ours = ClassUnknownOutcome // of the statement, which is a transaction by itself
		if node.RolledBack {
			found.ours = ClassConnectionLost
		}
		return
	case *CommitUnknownError:
		found.ours = ClassUnknownOutcome
		return
	}
	switch node {
	case driver.ErrBadConn, io.EOF, io.ErrUnexpectedEOF, io.ErrClosedPipe, net.ErrClosed:
		found.lost, found.unreachable = true, true
		return
	case context.Canceled, context.DeadlineExceeded:
		found.contextDone = true
		return
	case pq.ErrInFailedTransaction:
		found.aborted = true
		return
	case sql.ErrTxDone, sql.ErrConnDone, sql.ErrNoRows:
		found.refused = true
		return
	}
	switch node := node.(type) {
	case *net.OpError:
		found.lost = true
		found.unreachable = found.unreachable || mayBeReachableLater(node)
	case *net.DNSError:
		found.unreachable = found.unreachable || !node.IsNotFound
	case net.Error:
		// The system's own error number says nothing by itself: a missing
		// certificate file ends in one too. A net.OpError around it was seen before.
		if kind := reflect.TypeOf(node).Kind(); kind != reflect.Uintptr && kind != reflect.String {
			found.lost = true
			found.unreachable = found.unreachable || node.Timeout()
		}
	}
	if matcher, ok := node.(interface{ Is(error) bool }); ok {
		// A dialer's own timeout claims to be context.DeadlineExceeded, although
		// no context of the caller's need be done.
		_, ofNet := node.(net.Error)
		if matcher.Is(context.Canceled) || !ofNet && matcher.Is(context.DeadlineExceeded) {
			found.contextDone = true
		}
		if matcher.Is(driver.ErrBadConn) {
			found.lost, found.unreachable = true, true
		}
	}
}

// addText recognises errors of drivers that cannot be imported here, by the whole
// text of an error that wraps nothing.
func (found *evidence) addText(text string) {
	switch text {
	case "conn closed": // pgconn.ErrConnClosed
		found.lost, found.unreachable = true, true
	case "commit unexpectedly resulted in rollback", // pgx.ErrTxCommitRollback
		"unexpected command tag ROLLBACK": // lib/pq, of a COMMIT that the server answered so
		found.aborted = true
	case "tx is closed": // pgx.ErrTxClosed
		found.refused = true
	case // target_session_attrs of lib/pq and pgx: every host is, for now, of the other kind
		"session is read-only", "session is not read-only",
		"server is in hot standby mode", "server is not in hot standby mode",
		"read only connection", "connection is not read only", "server is in standby mode":
		found.unreachable = true
	}
}

// mayBeReachableLater tells a server that is down from one that is misconfigured.
func mayBeReachableLater(err *net.OpError) bool {
	if err.Op == "remote error" || err.Op == "local error" { // a TLS alert
		return false
	}
	var dns *net.DNSError
	if errors.As(err.Err, &dns) {
		return !dns.IsNotFound
	}
	var network net.UnknownNetworkError
	var address *net.AddrError
	var syntax *net.ParseError
	return !errors.As(err.Err, &network) && !errors.As(err.Err, &address) && !errors.As(err.Err, &syntax) &&
		!errors.Is(err.Err, fs.ErrPermission)
}

func (found evidence) classAtConnect() Class {
	switch {
	case found.contextDone:
		return ClassPermanent
	case found.unreachable:
		return ClassNotStarted
	default:
		return ClassPermanent
	}
}

func (found evidence) classBeforeCommit(phase Phase) Class {
	switch {
	case found.contextDone:
		return ClassPermanent
	case phase == PhaseBegin && found.answered && found.server.refusesTransactions():
		return ClassNotStarted
	case found.lost || found.answered && found.server.endsSession():
		return ClassConnectionLost
	case found.answered:
		return found.server.classOfCode()
	case found.aborted:
		return ClassAborted
	default:
		return ClassPermanent
	}
}

// classAtCommit calls the outcome known only where the server answered with an
// error, which means on PostgreSQL that it did not commit, or where COMMIT was
// certainly not sent. An error that nobody recognises is neither.
func (found evidence) classAtCommit() Class {
	switch {
	case found.answered && (found.server.endsSession() || found.server.isCitusLostShard()):
		return ClassUnknownOutcome
	case found.answered:
		return found.server.classOfCode()
	case found.lost || found.contextDone:
		return ClassUnknownOutcome
	case found.aborted:
		return ClassAborted
	case found.refused:
		return ClassPermanent
	default:
		return ClassUnknownOutcome
	}
}

// isAmbiguous is true of the SQLSTATEs by which a server says that it does not
// know itself: statement completion unknown (CockroachDB's "result is ambiguous")
// and transaction resolution unknown.
func isAmbiguous(code string) bool { return code == "40003" || code == "08007" }

// classOfCode is the class of an answer that left the session alive.
func (s serverError) classOfCode() Class {
	switch s.code {
	case "40001", deadlockDetected, "40000",
		"OC000", "OC001", // Aurora DSQL, where it is not in the message of a 40001
		"CR000": // CockroachDB before 2.0
		return ClassRetryable
	case "55P03", "23505", "23P01", "25P04":
		return ClassRetryableOptIn
	case "25P02":
		return ClassAborted
	case "57014":
		if s.isGlobalDeadlock() {
			return ClassRetryable
		}
	case "XX000":
		if s.asksForRestart() {
			return ClassRetryable
		}
	case "0A000":
		if s.isCachedPlanChange() {
			return ClassRetryableOptIn
		}
	default:
		if strings.HasPrefix(s.code, "53") { // insufficient resources
			return ClassRetryableOptIn
		}
	}
	return ClassPermanent
}

// isGlobalDeadlock recognises Greenplum's detector, which cancels its victim like
// a user would and only adds, untranslated, why.
func (s serverError) isGlobalDeadlock() bool {
	return strings.Contains(s.message, `"cancelled by global deadlock detector"`)
}

// asksForRestart recognises the serialization failures of early versions of
// CockroachDB and YugabyteDB, which left them at XX000 on some paths.
func (s serverError) asksForRestart() bool {
	message := strings.TrimPrefix(s.message, "Query error: ")
	return strings.HasPrefix(message, "restart transaction:") ||
		strings.HasPrefix(message, "Restart read required at:")
}

func (s serverError) isCachedPlanChange() bool {
	return s.routine == "RevalidateCachedQuery" ||
		strings.HasPrefix(s.message, "cached plan must not change result type")
}

// isCitusLostShard recognises Citus' answer to a COMMIT on one worker that did
// not confirm it, whether because the worker refused, died before or died after.
func (s serverError) isCitusLostShard() bool {
	return s.code == "XX000" && strings.HasPrefix(s.message, "could not commit transaction for shard ")
}

// endsSession reports whether the server closes the session after this answer.
// The severity decides: Citus sends 08006 and 57P01 as ERROR on a session that
// lives on. lib/pq gives the severity only as translated, so where it is a word
// of an unknown language the code has to do.
func (s serverError) endsSession() bool {
	switch s.severity {
	case "FATAL", "PANIC",
		"FATALE", "FATALT", "ВАЖНО", "ФАТАЛЬНО", "ფატალური", "치명적오류", "致命错误", "致命的エラー",
		"KATASTROFALNY", "ÖLÜMCÜL",
		"PANIK", "PANICO", "PÂNICO", "ПАНИКА", "ПАНІКА", "პანიკა", "손상", "比致命错误还过分的错误":
		return true
	case "ERROR",
		"FEHLER", "ERREUR", "ERRORE", "FEL", "ОШИБКА", "ПОМИЛКА", "შეცდომა", "오류", "错误", "エラー",
		"ERRO", "BŁĄD", "HATA", "CHYBA":
		return false
	}
	switch s.code {
	case "57P01", "57P02", "57P03", "57P05", "25P03", "25P04":
		return true
	default:
		return strings.HasPrefix(s.code, "08")
	}
}

// refusesConnections reports whether this answer to an attempt to connect is one
// that may pass: the server starts, stops, fails over or is full. A wrong
// password, an unknown database or a bad parameter is none.
func (s serverError) refusesConnections() bool {
	switch s.code {
	case "57P01", "57P02", "57P03", "40001", deadlockDetected, "40000":
		return true
	case "XX000":
		return s.isSupavisorFull() || s.asksForRestart()
	case "08P01": // a protocol violation, unless it is PgBouncer's
		return s.isBouncerRefusal() ||
			strings.HasPrefix(s.message, "server conn crashed?") ||
			strings.HasPrefix(s.message, "pooler is shutting down") ||
			strings.HasPrefix(s.message, "client_login_timeout")
	default:
		return strings.HasPrefix(s.code, "08") || strings.HasPrefix(s.code, "53")
	}
}

// refusesTransactions reports whether this answer to BEGIN comes from a pooler
// that found no server for it.
func (s serverError) refusesTransactions() bool {
	switch s.code {
	case "57P03", "53300", "08001", "08004":
		return true
	case "XX000":
		return s.isSupavisorFull()
	case "08P01":
		return s.isBouncerRefusal()
	default:
		return false
	}
}

func (s serverError) isSupavisorFull() bool {
	return strings.HasPrefix(s.message, "(EMAXCONN") || // also EMAXCONNSESSION
		strings.HasPrefix(s.message, "EMAXCONN") ||
		strings.HasPrefix(s.message, "MaxClientsInSessionMode:") ||
		s.message == "Max client connections reached"
}

// isBouncerRefusal recognises those of PgBouncer's errors that come before the
// client got a server. All of PgBouncer's errors are FATAL 08P01.
func (s serverError) isBouncerRefusal() bool {
	for _, prefix := range [...]string{
		"query_wait_timeout",
		"no more connections allowed",
		"client connections exceeded",
		"server login has been failing",
		"server login failed",
		"server DNS lookup failed",
		"pgbouncer cannot connect to server",
		"connect failed",
		"connect timeout",
		"bouncer resources exhaustion",
	} {
		if strings.HasPrefix(s.message, prefix) {
			return true
		}
	}
	return false
}
