package pgretry

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"database/sql/driver"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/lib/pq"
	"github.com/lib/pq/pqerror"
)

// The shapes of pgx's errors, which this package cannot import.
type (
	pgxError struct {
		Severity            string
		SeverityUnlocalized string
		Code                string
		Message             string
		Detail              string
		Hint                string
		Position            int32
		Where               string
		SchemaName          string
		TableName           string
		ConstraintName      string
		Line                int32
		Routine             string
	}
	pgxConnectError struct{ err error }
	pgxLockError    struct{ status string }
	pgxTimeout      struct{ err error }
)

var errPgxConnClosed = errors.New("conn closed")

func (e *pgxError) Error() string {
	return e.Severity + ": " + e.Message + " (SQLSTATE " + e.Code + ")"
}
func (e *pgxError) SQLState() string      { return e.Code }
func (e *pgxConnectError) Error() string  { return "failed to connect: " + e.err.Error() }
func (e *pgxConnectError) Unwrap() error  { return e.err }
func (e *pgxLockError) Error() string     { return e.status }
func (e *pgxLockError) SafeToRetry() bool { return true }
func (e *pgxTimeout) Error() string       { return "timeout: " + e.err.Error() }
func (e *pgxTimeout) Unwrap() error       { return e.err }
func (e *pgxTimeout) SafeToRetry() bool   { return false }
func pgxAnswer(severity, code, msg string) error {
	return &pgxError{Severity: severity, SeverityUnlocalized: severity, Code: code, Message: msg}
}

func (e *pgxLockError) Unwrap() error {
	if e.status == "conn closed" {
		return errPgxConnClosed
	}
	return nil
}

func pqAnswer(severity, code, msg string) error {
	return &pq.Error{Severity: severity, Code: pqerror.Code(code), Message: msg}
}

// A bareState is an error of which only the SQLSTATE is known.
type bareState string

func (e bareState) Error() string    { return "SQLSTATE " + string(e) }
func (e bareState) SQLState() string { return string(e) }

var connectionRefused = &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}

// A recordedError is one line of testdata/facts/errors.jsonl: what a real server
// was made to answer, at which phase, and the class it must get (want).
type recordedError struct {
	Engine, Version, Driver, Scenario, Step string
	Phase, Want                             string

	Severity, Code, Message, Detail, Hint, Context, Routine string
	Table, Constraint                                       string

	GoType    string `json:"go_type"`
	GoErr     string `json:"go_err"`
	IsBadConn bool   `json:"is_errbadconn"`
	Outcome   string

	line int
}

func (r recordedError) String() string {
	return fmt.Sprintf("line %d: %s %s %s, %s: %s", r.line, r.Engine, r.Driver, r.Scenario, r.Step, r.GoErr)
}

func recordedErrors(t testing.TB) []recordedError {
	t.Helper()
	data, err := os.ReadFile("testdata/facts/errors.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	var all []recordedError
	lines := bufio.NewScanner(bytes.NewReader(data))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		r := recordedError{line: len(all) + 1}
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			t.Fatalf("line %d: %v", r.line, err)
		}
		all = append(all, r)
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	if len(all) != 741 {
		t.Fatalf("%d recorded errors, want 741", len(all))
	}
	return all
}

// rebuild makes the error that the driver returned when the line was recorded.
func (r recordedError) rebuild(t testing.TB) error {
	t.Helper()
	switch r.GoType {
	case "":
		if r.GoErr != "<nil>" {
			t.Fatalf("%v: no type", r)
		}
		return nil
	case "*pq.Error":
		return &pq.Error{
			Severity: r.Severity, Code: pqerror.Code(r.Code), Message: r.Message, Detail: r.Detail, Hint: r.Hint,
			Where: r.Context, Table: r.Table, Constraint: r.Constraint, Routine: r.Routine,
		}
	case "*pgconn.PgError":
		return r.pgx()
	case "*pgconn.ConnectError":
		if r.Code != "" {
			return &pgxConnectError{fmt.Errorf("server error: %w", r.pgx())}
		}
		if !strings.Contains(r.GoErr, "connection refused") {
			t.Fatalf("%v: unknown cause", r)
		}
		return &pgxConnectError{errors.Join(fmt.Errorf("dial error: %w", connectionRefused))}
	case "*pgconn.connLockError":
		return &pgxLockError{r.GoErr}
	case "*pgconn.errTimeout":
		return &pgxTimeout{context.DeadlineExceeded}
	case "*net.OpError":
		if strings.Contains(r.GoErr, "connection refused") {
			return connectionRefused
		}
		return &net.OpError{Op: "read", Net: "tcp", Err: os.NewSyscallError("read", syscall.ECONNRESET)}
	case "(several)":
		return errors.New(r.GoErr)
	case "*errors.errorString":
		for _, known := range []error{driver.ErrBadConn, io.ErrUnexpectedEOF, sql.ErrConnDone, pq.ErrInFailedTransaction} {
			if known.Error() == r.GoErr {
				return known
			}
		}
		if strings.HasPrefix(r.GoErr, `commit answered with command tag "ROLLBACK"`) { // seen below pgx, which makes this of it
			return errors.New("commit unexpectedly resulted in rollback")
		}
	}
	t.Fatalf("%v: cannot rebuild %s", r, r.GoType)
	return nil
}

func (r recordedError) pgx() error {
	return &pgxError{
		Severity: r.Severity, SeverityUnlocalized: r.Severity, Code: r.Code, Message: r.Message, Detail: r.Detail,
		Hint: r.Hint, Where: r.Context, TableName: r.Table, ConstraintName: r.Constraint, Routine: r.Routine,
	}
}

func phaseNamed(t testing.TB, name string) Phase {
	t.Helper()
	for phase := PhaseConnect; phase <= PhaseCommit; phase++ {
		if phase.String() == name {
			return phase
		}
	}
	t.Fatalf("no phase is named %q", name)
	return 0
}

func TestRecordedErrorsGetTheClassOfTheTable(t *testing.T) {
	for _, r := range recordedErrors(t) {
		err := r.rebuild(t)
		phase := phaseNamed(t, r.Phase)
		if r.IsBadConn != errors.Is(err, driver.ErrBadConn) {
			t.Errorf("%v: rebuilt as %T", r, err)
		}
		if got := Classify(err, phase).String(); got != r.Want {
			t.Errorf("%v (%s): %s, want %s", r, phase, got, r.Want)
		}
		if err == nil {
			continue
		}
		wrapped := fmt.Errorf("while testing: %w", errors.Join(err))
		if got := Classify(wrapped, phase).String(); got != r.Want {
			t.Errorf("%v (%s): wrapped %s, want %s", r, phase, got, r.Want)
		}
	}
}

// What the database said afterwards is the judge: a transaction that is there may
// not be in a class that says it is not.
func TestRecordedCommitsThatTookEffectAreNeverCalledRolledBack(t *testing.T) {
	tookEffect := regexp.MustCompile(`v=77 \(77 = committed\)|: COMMITTED|^row on w1 v=77, row on w2 v=0$`)
	seen := 0
	for _, r := range recordedErrors(t) {
		err := r.rebuild(t)
		if r.Phase != "commit" || err == nil || !tookEffect.MatchString(r.Outcome) {
			continue
		}
		seen++
		if got := Classify(err, PhaseCommit); got != ClassUnknownOutcome {
			t.Errorf("%v: %v, but the database says %q", r, got, r.Outcome)
		}
	}
	if seen != 21 {
		t.Errorf("%d failed COMMITs that took effect, want %d", seen, 21)
	}
}

func TestEveryRowOfTheClassTable(t *testing.T) {
	const distributed = "canceling the transaction since it was involved in a distributed deadlock"
	const globalDetector = `canceling statement due to user request: "cancelled by global deadlock detector"`

	tests := []struct {
		name  string
		err   error
		class [4]Class // at connect, begin, statement, commit
	}{}
	add := func(name string, err error, connect, begin, statement, commit Class) {
		tests = append(tests, struct {
			name  string
			err   error
			class [4]Class
		}{name, err, [4]Class{connect, begin, statement, commit}})
	}
	const (
		none, permanent, retryable, optIn   = ClassNone, ClassPermanent, ClassRetryable, ClassRetryableOptIn
		notStarted, lost, unknown, aborted_ = ClassNotStarted, ClassConnectionLost, ClassUnknownOutcome, ClassAborted
	)

	add("no error", nil, none, none, none, none)

	for _, server := range []func(severity, code, msg string) error{pqAnswer, pgxAnswer} {
		answer := func(code, msg string, connect, begin, statement, commit Class) {
			add(fmt.Sprintf("ERROR %s %s", code, msg), server("ERROR", code, msg), connect, begin, statement, commit)
		}
		fatal := func(code, msg string, connect, begin, statement, commit Class) {
			add(fmt.Sprintf("FATAL %s %s", code, msg), server("FATAL", code, msg), connect, begin, statement, commit)
		}

		// Retryable.
		answer("40001", "could not serialize access due to concurrent update", notStarted, retryable, retryable, retryable)
		answer("40P01", "deadlock detected", notStarted, retryable, retryable, retryable)
		answer("40000", "transaction rollback", notStarted, retryable, retryable, retryable)
		answer("40P01", distributed, notStarted, retryable, retryable, retryable)
		answer("40001", "canceling statement due to conflict with recovery", notStarted, retryable, retryable, retryable)
		answer("40001", "restart transaction: TransactionRetryWithProtoRefreshError: WriteTooOldError", notStarted, retryable, retryable, retryable)
		answer("40001", "Restart read required at: { read: { physical: 1586581117344246 } }", notStarted, retryable, retryable, retryable)
		answer("XX000", "Query error: Restart read required at: { read: { physical: 1586581117344246 } }", notStarted, retryable, retryable, retryable)
		answer("XX000", "restart transaction: HandledRetryableTxnError", notStarted, retryable, retryable, retryable)
		answer("CR000", "restart transaction: HandledRetryableTxnError", permanent, retryable, retryable, retryable)
		answer("40001", "change conflicts with another transaction, please retry: (OC000)", notStarted, retryable, retryable, retryable)
		answer("OC000", "mutation conflicts with another transaction", permanent, retryable, retryable, retryable)
		answer("OC001", "schema has been updated by another transaction", permanent, retryable, retryable, retryable)
		answer("40001", "ABORTED: Transaction was aborted.", notStarted, retryable, retryable, retryable)
		answer("57014", globalDetector, permanent, retryable, retryable, retryable)

		// RetryableOptIn.
		answer("55P03", "could not obtain lock on row in relation \"t\"", permanent, optIn, optIn, optIn)
		answer("23505", "duplicate key value violates unique constraint \"t_pkey\"", permanent, optIn, optIn, optIn)
		answer("23P01", "conflicting key value violates exclusion constraint", permanent, optIn, optIn, optIn)
		answer("0A000", "cached plan must not change result type", permanent, optIn, optIn, optIn)
		answer("25P04", "transaction timeout", permanent, optIn, optIn, optIn)
		answer("53200", "out of memory", notStarted, optIn, optIn, optIn)
		answer("53100", "could not extend file: No space left on device", notStarted, optIn, optIn, optIn)
		answer("53300", "too many connections", notStarted, notStarted, optIn, optIn)

		// NotStarted.
		fatal("57P03", "the database system is starting up", notStarted, notStarted, lost, unknown)
		fatal("53300", "sorry, too many clients already", notStarted, notStarted, lost, unknown)
		fatal("08001", "could not connect to server", notStarted, notStarted, lost, unknown)
		fatal("08004", "connection rejected", notStarted, notStarted, lost, unknown)
		fatal("57P01", "terminating connection due to administrator command", notStarted, lost, lost, unknown)
		fatal("XX000", "(EMAXCONNSESSION) max clients reached in session mode - max clients are limited to pool_size: 15", notStarted, notStarted, lost, unknown)
		fatal("XX000", "(EMAXCONN) max client connections reached, limit: 200", notStarted, notStarted, lost, unknown)
		fatal("XX000", "Max client connections reached", notStarted, notStarted, lost, unknown)
		fatal("XX000", "MaxClientsInSessionMode: max clients reached - in Session mode max clients are limited to pool_size", notStarted, notStarted, lost, unknown)
		answer("08001", "could not connect to server \"other\"", notStarted, notStarted, permanent, permanent) // postgres_fdw in a transaction

		// PgBouncer.
		fatal("08P01", "query_wait_timeout", notStarted, notStarted, lost, unknown)
		fatal("08P01", "no more connections allowed (max_client_conn)", notStarted, notStarted, lost, unknown)
		fatal("08P01", "server login has been failing, try again later (server_login_retry)", notStarted, notStarted, lost, unknown)
		fatal("08P01", "pgbouncer cannot connect to server", notStarted, notStarted, lost, unknown)
		fatal("08P01", "server conn crashed?", notStarted, lost, lost, unknown)
		fatal("08P01", "client_login_timeout (server down)", notStarted, lost, lost, unknown)
		fatal("08P01", "pooler is shutting down", notStarted, lost, lost, unknown)
		fatal("08P01", "query timeout", permanent, lost, lost, unknown)
		fatal("08P01", "database removed", permanent, lost, lost, unknown)
		fatal("08P01", "bouncer config error", permanent, lost, lost, unknown)
		fatal("08P01", "unsupported startup parameter: search_path", permanent, lost, lost, unknown)
		fatal("08P01", "no such database: shop", permanent, lost, lost, unknown)

		// ConnectionLost: the severity decides, not the code.
		for _, code := range []string{"57P02", "08000", "08003", "08006", "40001"} {
			fatal(code, "terminating connection", notStarted, lost, lost, unknown)
		}
		for _, code := range []string{"57P05", "25P03", "25P04", "57P04", "57014", "XX000", "40002"} {
			fatal(code, "terminating connection", permanent, lost, lost, unknown)
		}
		add("PANIC", server("PANIC", "XX000", "stuck spinlock detected"), permanent, lost, lost, unknown)
		answer("57P01", "terminating connection due to administrator command", notStarted, permanent, permanent, permanent)
		answer("08006", "connection to the remote node postgres@10.0.0.1:5432 failed", notStarted, permanent, permanent, permanent)

		// UnknownOutcome.
		answer("40003", "result is ambiguous: error=rpc error", unknown, unknown, unknown, unknown)
		fatal("40003", "statement completion unknown", unknown, unknown, unknown, unknown)
		answer("08007", "transaction resolution unknown", unknown, unknown, unknown, unknown)
		answer("XX000", "could not commit transaction for shard 102008 on at least one active node", permanent, permanent, permanent, unknown)

		// Aborted.
		answer("25P02", "current transaction is aborted, commands ignored until end of transaction block", permanent, aborted_, aborted_, aborted_)

		// Permanent.
		for _, code := range []string{"42601", "23503", "23514", "57014", "25006", "40002", "57P04", "XX000", "0A000", "26000", "42P05", "P0001", "ZZZZZ"} {
			answer(code, "no", permanent, permanent, permanent, permanent)
		}
		fatal("28P01", "password authentication failed for user \"app\"", permanent, lost, lost, unknown)
		fatal("28000", "no pg_hba.conf entry for host", permanent, lost, lost, unknown)
		fatal("3D000", "database \"shop\" does not exist", permanent, lost, lost, unknown)
	}

	// Aborted, without an answer.
	add("lib/pq in a failed transaction", pq.ErrInFailedTransaction, permanent, aborted_, aborted_, aborted_)
	add("pgx.ErrTxCommitRollback", errors.New("commit unexpectedly resulted in rollback"), permanent, aborted_, aborted_, aborted_)
	add("lib/pq, COMMIT answered ROLLBACK", errors.New("unexpected command tag ROLLBACK"), permanent, aborted_, aborted_, aborted_)

	// Connections.
	for _, err := range []error{
		driver.ErrBadConn, io.EOF, io.ErrUnexpectedEOF, io.ErrClosedPipe, net.ErrClosed,
		likeBadConn{},
		&pgxLockError{"conn closed"},
		connectionRefused,
		&net.OpError{Op: "read", Net: "tcp", Err: os.NewSyscallError("read", syscall.ECONNRESET)},
		&net.OpError{Op: "read", Net: "tcp", Err: os.ErrDeadlineExceeded},
		&net.OpError{Op: "dial", Net: "unix", Err: os.NewSyscallError("connect", syscall.ENOENT)},
		&net.OpError{Op: "dial", Net: "tcp", Err: &net.DNSError{Err: "server misbehaving", Name: "db", IsTemporary: true}},
		dialTimeout(t),
	} {
		add(fmt.Sprintf("%T %v", err, err), err, notStarted, lost, lost, unknown)
	}
	for _, err := range []error{
		&net.OpError{Op: "dial", Net: "tcp", Err: &net.DNSError{Err: "no such host", Name: "db", IsNotFound: true}},
		&net.OpError{Op: "dial", Net: "unix", Err: os.NewSyscallError("connect", syscall.EACCES)},
		&net.OpError{Op: "dial", Net: "tcp", Err: &net.AddrError{Err: "missing port in address", Addr: "db"}},
		&net.OpError{Op: "remote error", Err: tls.AlertError(42)},
	} {
		add(fmt.Sprintf("%T %v", err, err), err, permanent, lost, lost, unknown)
	}
	add("a host is not found (pgx)", &pgxConnectError{&net.DNSError{Err: "no such host", Name: "db", IsNotFound: true}}, permanent, permanent, permanent, unknown)
	for _, err := range []error{
		&tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}},
		x509.HostnameError{Certificate: &x509.Certificate{}, Host: "db"},
		tls.RecordHeaderError{Msg: "first record does not look like a TLS handshake"},
		pq.ErrSSLNotSupported,
		&fs.PathError{Op: "open", Path: "root.crt", Err: syscall.ENOENT},
		errors.New("pq: unknown authentication response: 99"),
	} {
		add(fmt.Sprintf("%T %v", err, err), err, permanent, permanent, permanent, unknown)
	}
	add("the standby was not promoted yet", errors.New("server is in hot standby mode"), notStarted, permanent, permanent, unknown)
	add("one of two hosts is down", errors.Join(pqAnswer("FATAL", "28P01", "no"), connectionRefused), notStarted, lost, lost, unknown)
	add("one of two hosts is starting up",
		errors.Join(pqAnswer("FATAL", "28P01", "no"), pqAnswer("FATAL", "57P03", "wait")), notStarted, lost, lost, unknown)

	// Contexts.
	for _, err := range []error{
		context.Canceled, context.DeadlineExceeded,
		&pgxTimeout{context.DeadlineExceeded},
		errors.Join(context.Canceled, driver.ErrBadConn),
		&net.OpError{Op: "dial", Net: "tcp", Err: dialCanceled(t)},
	} {
		add(fmt.Sprintf("context: %v", err), err, permanent, permanent, permanent, unknown)
	}
	add("context, with the server's answer", errors.Join(context.Canceled, pqAnswer("ERROR", "57014", "canceling statement due to user request")),
		permanent, permanent, permanent, permanent)
	add("context, with the server's conflict", errors.Join(context.DeadlineExceeded, pqAnswer("ERROR", "40001", "could not serialize access")),
		permanent, permanent, permanent, retryable)

	// A broken connection beside a conflict: the verdict on the COMMIT stands, the session does not.
	add("conflict and a bad connection", errors.Join(pqAnswer("ERROR", "40001", "could not serialize access"), driver.ErrBadConn),
		notStarted, lost, lost, retryable)

	// Where something speaks for an answer that got lost, nothing else counts.
	add("aborted, and a bad connection", errors.Join(pq.ErrInFailedTransaction, driver.ErrBadConn), notStarted, lost, lost, unknown)
	add("aborted, and a context", errors.Join(pq.ErrInFailedTransaction, context.Canceled), permanent, permanent, permanent, unknown)
	add("nothing sent, and a context", errors.Join(sql.ErrTxDone, context.Canceled), permanent, permanent, permanent, unknown)

	// Nothing was sent.
	for _, err := range []error{sql.ErrTxDone, sql.ErrConnDone, sql.ErrNoRows, errors.New("tx is closed")} {
		add(err.Error(), err, permanent, permanent, permanent, permanent)
	}
	// Nobody knows what this is, so nobody knows what became of the COMMIT.
	add("an unknown error", errors.New("boom"), permanent, permanent, permanent, unknown)
	add("a SQLSTATE that is none", bareState("0x"), permanent, permanent, permanent, unknown)

	// Only the SQLSTATE is known.
	add("bare 40001", bareState("40001"), notStarted, retryable, retryable, retryable)
	add("bare 57P01", bareState("57P01"), notStarted, lost, lost, unknown)
	add("bare 08006", bareState("08006"), notStarted, lost, lost, unknown)

	for _, test := range tests {
		for i, want := range test.class {
			phase := PhaseConnect + Phase(i)
			if got := Classify(test.err, phase); got != want {
				t.Errorf("%s (%T) at %v: %v, want %v", test.name, test.err, phase, got, want)
			}
		}
		for _, phase := range []Phase{0, 99} {
			if got, want := Classify(test.err, phase), Classify(test.err, PhaseStatement); got != want {
				t.Errorf("%s (%T) at %v: %v, want as in a statement, %v", test.name, test.err, phase, got, want)
			}
		}
	}
}

// dialTimeout is the error of a dialer whose own time is up: it claims to be
// context.DeadlineExceeded, although no context of a caller's is done.
func dialTimeout(t *testing.T) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), -1)
	defer cancel()
	_, err := new(net.Dialer).DialContext(ctx, "tcp", "127.0.0.1:1")
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("%v, want a deadline", err)
	}
	return err
}

func dialCanceled(t *testing.T) error {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := new(net.Dialer).DialContext(ctx, "tcp", "127.0.0.1:1")
	var op *net.OpError
	if !errors.As(err, &op) || !errors.Is(err, context.Canceled) {
		t.Fatalf("%v, want a cancelled dial", err)
	}
	return op.Err
}

func TestWordsOfAnEngineInTheWrongPlaceMeanNothing(t *testing.T) {
	for _, err := range []error{
		pqAnswer("ERROR", "23514", `new row violates check constraint "restart transaction: Restart read required at: OC000"`),
		pqAnswer("ERROR", "23514", `"cancelled by global deadlock detector"`),
		pqAnswer("ERROR", "XX000", `error in column "restart transaction:"`),
		pqAnswer("ERROR", "P0001", "restart transaction: please"),
		pqAnswer("ERROR", "57014", "canceling statement due to user request"),
		pqAnswer("ERROR", "22P02", "invalid input syntax for type integer: \"OC000\""),
		pqAnswer("ERROR", "0A000", `cannot alter type of a column used by a view named "cached plan must not change result type"`),
		pqAnswer("ERROR", "XX000", `message "could not commit transaction for shard 1 on at least one active node"`),
		errors.New("pq: deadlock detected (40P01)"),
		errors.New("the bouncer said: conn closed"),
	} {
		if got := Classify(err, PhaseStatement); got != ClassPermanent {
			t.Errorf("%v: %v, want permanent", err, got)
		}
	}
	err := pqAnswer("ERROR", "XX000", `message "could not commit transaction for shard 1 on at least one active node"`)
	if got := Classify(err, PhaseCommit); got != ClassPermanent {
		t.Errorf("%v: %v, want permanent", err, got)
	}
	err = pqAnswer("FATAL", "XX000", `role "(EMAXCONN)" is broken`)
	if got := Classify(err, PhaseConnect); got != ClassPermanent {
		t.Errorf("%v: %v, want permanent", err, got)
	}
}

func TestTranslatedServersAreUnderstood(t *testing.T) {
	for _, fatal := range []string{
		"FATAL", "FATALE", "FATALT", "ВАЖНО", "ФАТАЛЬНО", "ფატალური", "치명적오류", "致命错误", "致命的エラー", "KATASTROFALNY", "ÖLÜMCÜL",
		"PANIC", "PANIK", "PANICO", "PÂNICO", "ПАНИКА", "ПАНІКА", "პანიკა", "손상", "比致命错误还过分的错误",
	} {
		if got := Classify(pqAnswer(fatal, "40001", "…"), PhaseStatement); got != ClassConnectionLost {
			t.Errorf("%s 40001: %v, want connection_lost", fatal, got)
		}
		if got := Classify(pqAnswer(fatal, "40001", "…"), PhaseCommit); got != ClassUnknownOutcome {
			t.Errorf("%s 40001 at COMMIT: %v, want unknown_outcome", fatal, got)
		}
	}
	for _, severity := range []string{"FEHLER", "ERREUR", "ERRORE", "FEL", "ОШИБКА", "ПОМИЛКА", "შეცდომა", "오류", "错误", "エラー", "ERRO", "BŁĄD", "HATA", "CHYBA"} {
		if got := Classify(pqAnswer(severity, "57P01", "…"), PhaseStatement); got != ClassPermanent {
			t.Errorf("%s 57P01: %v, want permanent", severity, got)
		}
	}
	for _, code := range []string{"57P01", "57P02", "57P05", "25P03", "25P04", "08006", "08P01"} {
		if got := Classify(pqAnswer("qapla'", code, "…"), PhaseStatement); got != ClassConnectionLost {
			t.Errorf("%s in an unknown language: %v, want connection_lost", code, got)
		}
	}
	if got := Classify(pqAnswer("qapla'", "40001", "…"), PhaseStatement); got != ClassRetryable {
		t.Errorf("40001 in an unknown language: %v, want retryable", got)
	}

	// pgx keeps the severity that is not translated.
	err := &pgxError{Severity: "qapla'", SeverityUnlocalized: "ERROR", Code: "57P01"}
	if got := Classify(err, PhaseStatement); got != ClassPermanent {
		t.Errorf("unlocalized ERROR 57P01: %v, want permanent", got)
	}

	// The routine is not translated where the message is.
	err = &pgxError{Severity: "ERROR", Code: "0A000", Message: "gecachter Plan darf den Ergebnistyp nicht ändern", Routine: "RevalidateCachedQuery"}
	if got := Classify(err, PhaseStatement); got != ClassRetryableOptIn {
		t.Errorf("German cached plan: %v, want retryable_opt_in", got)
	}
}

// likeBadConn only says that it is driver.ErrBadConn.
type likeBadConn struct{}

func (likeBadConn) Error() string        { return "lost" }
func (likeBadConn) Is(target error) bool { return target == driver.ErrBadConn }

type (
	endless   struct{ _ int }
	panicking struct{}
	valueNil  struct{ *pgxError }
	funcError func()
	sliceErr  []string
)

func (e *endless) Error() string   { return "endless" }
func (e *endless) Unwrap() error   { return e }
func (panicking) Error() string    { panic("Error") }
func (panicking) Unwrap() error    { panic("Unwrap") }
func (panicking) Is(error) bool    { panic("Is") }
func (panicking) SQLState() string { panic("SQLState") }
func (funcError) Error() string    { return "func" }
func (sliceErr) Error() string     { return "slice" }
func (sliceErr) SQLState() string  { return "40001" }

type forest struct{}

func (f forest) Error() string   { return "forest" }
func (f forest) Unwrap() []error { return []error{f, f, nil, f} }

func TestHostileErrorsDoNoHarm(t *testing.T) {
	for name, err := range map[string]error{
		"nil *pq.Error":     (*pq.Error)(nil),
		"nil pgx error":     (*pgxError)(nil),
		"nil *net.OpError":  (*net.OpError)(nil),
		"OpError of nil":    &net.OpError{Op: "dial"},
		"nil func":          funcError(nil),
		"endless chain":     &endless{},
		"endless tree":      forest{},
		"methods panic":     panicking{},
		"embedded nil":      valueNil{},
		"embedded nil, ptr": &valueNil{},
		"join of nil error": errors.Join((*pq.Error)(nil), (*pgxError)(nil)),
	} {
		if got := Classify(err, PhaseStatement); got != ClassPermanent && got != ClassConnectionLost {
			t.Errorf("%s: %v", name, got)
		}
		if got := Classify(err, PhaseCommit); got != ClassUnknownOutcome {
			t.Errorf("%s at COMMIT: %v, want unknown_outcome", name, got)
		}
		if _, ok := asServerError(err); ok {
			t.Errorf("%s: taken for a server's error", name)
		}
		if _, ok := ParseDeadlock(err); ok {
			t.Errorf("%s: taken for a deadlock", name)
		}
		// What is beside the hostile error is still seen.
		if got := Classify(errors.Join(err, pqAnswer("ERROR", "40P01", "deadlock detected")), PhaseStatement); got != ClassRetryable &&
			name != "endless chain" && name != "endless tree" && name != "OpError of nil" {
			t.Errorf("%s beside a deadlock: %v, want retryable", name, got)
		}
	}
	if got := Classify(sliceErr{"x"}, PhaseStatement); got != ClassRetryable {
		t.Errorf("a slice with a SQLSTATE: %v, want retryable", got)
	}
}

func TestClassAndPhaseHaveStableNames(t *testing.T) {
	for class, want := range map[Class]string{
		ClassNone: "none", ClassPermanent: "permanent", ClassRetryable: "retryable", ClassRetryableOptIn: "retryable_opt_in",
		ClassNotStarted: "not_started", ClassConnectionLost: "connection_lost", ClassUnknownOutcome: "unknown_outcome",
		ClassAborted: "aborted", 200: "Class(200)",
	} {
		if class.String() != want {
			t.Errorf("%d: %q, want %q", class, class, want)
		}
	}
	for phase, want := range map[Phase]string{
		PhaseConnect: "connect", PhaseBegin: "begin", PhaseStatement: "statement", PhaseCommit: "commit",
		0: "Phase(0)", 200: "Phase(200)",
	} {
		if phase.String() != want {
			t.Errorf("%d: %q, want %q", phase, phase, want)
		}
	}
}

func FuzzClassify(f *testing.F) {
	f.Add("ERROR", "40001", "could not serialize access", uint8(PhaseCommit), uint8(0))
	f.Add("FATAL", "57P01", "terminating connection", uint8(PhaseCommit), uint8(1))
	f.Add("ВАЖНО", "08P01", "query_wait_timeout", uint8(PhaseBegin), uint8(2))
	f.Add("", "", "conn closed", uint8(PhaseStatement), uint8(3))
	f.Add("ERROR", "XX000", "could not commit transaction for shard 1 on at least one active node", uint8(PhaseCommit), uint8(4))
	f.Fuzz(func(t *testing.T, severity, code, message string, phase, kind uint8) {
		var err error
		switch kind % 7 {
		case 0:
			err = pqAnswer(severity, code, message)
		case 1:
			err = pgxAnswer(severity, code, message)
		case 2:
			err = bareState(code)
		case 3:
			err = errors.New(message)
		case 4:
			err = errors.Join(driver.ErrBadConn, pqAnswer(severity, code, message))
		case 5:
			err = fmt.Errorf("%w: %w", context.Canceled, pgxAnswer(severity, code, message))
		case 6:
			err = &net.OpError{Op: message, Err: errors.New(code)}
		}
		class := Classify(err, Phase(phase))
		if class == ClassNone || class > ClassAborted {
			t.Fatalf("%v at %d: %v", err, phase, class)
		}
		for _, same := range []error{err, fmt.Errorf("%s: %w", message, err), errors.Join(nil, err), fmt.Errorf("%w, %w", err, err)} {
			if again := Classify(same, Phase(phase)); again != class {
				t.Fatalf("%v at %d: %v, and as %T %v", err, phase, class, same, again)
			}
		}
		switch phase := Phase(phase); {
		case phase == PhaseConnect && class != ClassNotStarted && class != ClassPermanent && class != ClassUnknownOutcome:
			t.Fatalf("%v at connect: %v", err, class)
		case phase == PhaseCommit && (class == ClassNotStarted || class == ClassConnectionLost):
			t.Fatalf("%v at COMMIT: %v", err, class)
		case phase == PhaseCommit && severity == "FATAL" && kind%7 < 2 && isSQLState(code) && class != ClassUnknownOutcome:
			t.Fatalf("FATAL %v at COMMIT: %v", err, class)
		}
	})
}

func BenchmarkClassify(b *testing.B) {
	for _, bench := range []struct {
		name string
		err  error
	}{
		{"nil", nil},
		{"pq", pqAnswer("ERROR", "40001", "could not serialize access due to concurrent update")},
		{"pgx", pgxAnswer("ERROR", "40P01", "deadlock detected")},
		{"wrapped", fmt.Errorf("transfer: %w", fmt.Errorf("update: %w", pqAnswer("ERROR", "40P01", "deadlock detected")))},
		{"badconn", driver.ErrBadConn},
		{"unknown", errors.New("boom")},
	} {
		b.Run(bench.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				Classify(bench.err, PhaseStatement)
			}
		})
	}
}
