package pgretry

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/XSAM/otelsql"
	"github.com/cenkalti/backoff/v4"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"

	"github.com/pgretry/pgretry/internal/gate"
)

// Mode says who retries.
type Mode uint8

const (
	// ModeReplay: transactions are replayed by the driver itself, statement by
	// statement, as long as that can be proved to show the application nothing new;
	// so are statements outside transactions. [RunInTx] and [Retry] run their
	// closures again instead. The default.
	ModeReplay Mode = iota
	// ModeClosure: RunInTx and Retry run their closures again; other transactions and
	// statements are not executed again. What else the driver does it still does.
	ModeClosure
	// ModeOff: nothing is retried. RunInTx and Retry run their closures once and
	// return the error as it is, except that a COMMIT without an answer still is a
	// CommitUnknownError. Spans, metrics and stats go on.
	ModeOff
)

var modeNames = []string{ModeReplay: "replay", ModeClosure: "closure", ModeOff: "off"}

// String returns the mode's name as the DSN parameter pgretry_mode has it.
func (m Mode) String() string {
	if int(m) < len(modeNames) {
		return modeNames[m]
	}
	return fmt.Sprintf("Mode(%d)", uint8(m))
}

// optInStates are the SQLSTATEs of [ClassRetryableOptIn] that [WithAlsoRetry]
// takes.
var optInStates = []string{
	"0A000", "23505", "23P01", "25P04", "53000", "53100", "53200", "53300", "53400", "55P03",
}

// Option configures a [Driver] or a [Connector]. A wrong value is an error from
// [Open], [NewConnector] or sql.Open.
type Option interface {
	apply(*config) error
}

// RunOption is an [Option] that can also be given to one call of [RunInTx] or
// [Retry], where it overrides what the database was opened with.
type RunOption interface {
	Option
	runOption()
}

type (
	option    func(*config) error
	runOption func(*config) error
)

func (o option) apply(c *config) error    { return o(c) }
func (o runOption) apply(c *config) error { return o(c) }
func (runOption) runOption()              {}

// WithPolicy bounds attempts, delays and elapsed time. Fields that are zero stay as
// they were: a call's policy changes the database's only in what it names.
func WithPolicy(policy Policy) RunOption {
	return runOption(func(c *config) error {
		if err := policy.validate(); err != nil {
			return err
		}
		c.policy = policy.over(c.policy)
		return nil
	})
}

// WithBackOff replaces full jitter for the waits after a conflict. factory is
// called once per transaction that has to wait, and its result is Reset before
// use; should it return nil, that transaction waits with full jitter. A
// [backoff.Stop] ends the retries. The attempts and elapsed time of the [Policy]
// still hold.
func WithBackOff(factory func() backoff.BackOff) RunOption {
	return runOption(func(c *config) error {
		if factory == nil {
			return errors.New("pgretry: the factory given to WithBackOff is nil, allowed is a function that returns a new BackOff")
		}
		c.newBackOff = factory
		return nil
	})
}

// WithMode sets who retries. The default is [ModeReplay].
func WithMode(mode Mode) RunOption {
	return runOption(func(c *config) error {
		if int(mode) >= len(modeNames) {
			return fmt.Errorf("pgretry: mode is %d, allowed are ModeReplay, ModeClosure and ModeOff", mode)
		}
		c.mode = mode
		return nil
	})
}

// WithAlsoRetry retries errors that may be conflicts but may as well be mistakes
// that no retry cures, at most four times in a transaction. Allowed are the SQLSTATEs
// 55P03 (lock not available; where PostgreSQL says it because a lock_timeout of the
// application's own has ended a wait, also at the other end of postgres_fdw, it is treated
// like a deadlock, with that one's limits, because it may be one that nobody can see), 23505 and 23P01 (duplicates, which under
// SERIALIZABLE can stem from a conflict: PostgreSQL manual, 13.5), 0A000 (only
// "cached plan must not change result type"), 25P04 (transaction timeout) and
// 53000, 53100, 53200, 53300, 53400 (insufficient resources). The default is none.
func WithAlsoRetry(sqlStates ...string) RunOption {
	return runOption(func(c *config) error {
		for _, state := range sqlStates {
			if !slices.Contains(optInStates, state) {
				return fmt.Errorf("pgretry: SQLSTATE %q cannot be retried on request, allowed are %s", state, strings.Join(optInStates, ", "))
			}
		}
		c.alsoRetry = slices.Clone(sqlStates)
		return nil
	})
}

// PinPolicy says when the driver sets savepoints of its own, see [WithPins].
type PinPolicy uint8

const (
	// PinsLearned: as PinsReturning, but only in transactions of a kind, see
	// [WithContention], whose replay has shown something else before, for want of a pin,
	// and where they are of use. The default.
	PinsLearned PinPolicy = iota
	// PinsReturning: after a statement that showed rows which the transaction
	// itself wrote or locked, such as INSERT … RETURNING and SELECT … FOR UPDATE.
	PinsReturning
	// PinsNever: no savepoints but the application's.
	PinsNever
)

var pinPolicyNames = []string{PinsLearned: "learned", PinsReturning: "returning", PinsNever: "never"}

// String returns the policy's name as the DSN parameter pgretry_pins has it.
func (p PinPolicy) String() string {
	if int(p) < len(pinPolicyNames) {
		return pinPolicyNames[p]
	}
	return fmt.Sprintf("PinPolicy(%d)", uint8(p))
}

// WithPins says when the driver sets savepoints of its own, called pins, in
// transactions under READ COMMITTED that it may have to replay. A number from a
// sequence that INSERT … RETURNING has shown comes out different when the INSERT is
// executed again; after a later conflict the driver goes back to the pin behind it
// instead, and what was shown stays true because it was never undone.
//
// A pin is a SAVEPOINT before the next statement: one more round trip after each
// statement that needs one, at most 64 in a transaction, and none once a plain read has
// shown what others may change: the other side of a deadlock commits only afterwards,
// and what it writes must not be overwritten. Pins are of no use where the deadlock is
// about a lock that is older than the pin. The default is [PinsLearned], which costs nothing
// where nothing conflicts.
func WithPins(policy PinPolicy) Option {
	return option(func(c *config) error {
		if int(policy) >= len(pinPolicyNames) {
			return fmt.Errorf("pgretry: pin policy is %d, allowed are PinsLearned, PinsReturning and PinsNever", policy)
		}
		c.pins = policy
		return nil
	})
}

// CommitOutcome says what is done to know the fate of a COMMIT whose answer is lost,
// see [WithCommitOutcome].
type CommitOutcome uint8

const (
	// CommitAuto: the transaction's id is asked for where that is cheap: where the
	// question takes no longer than 3 % of what the transaction has taken already, and
	// for a minute after a connection was lost. The default.
	CommitAuto CommitOutcome = iota
	// CommitResolve: the id of every transaction that may have written is asked for.
	CommitResolve
	// CommitReport: nothing is asked for. A COMMIT without an answer is a
	// [*CommitUnknownError], unless it was certainly not sent or the transaction
	// certainly wrote nothing.
	CommitReport
)

var commitOutcomeNames = []string{CommitAuto: "auto", CommitResolve: "resolve", CommitReport: "report"}

// String returns the name as the DSN parameter pgretry_commit_outcome has it.
func (o CommitOutcome) String() string {
	if int(o) < len(commitOutcomeNames) {
		return commitOutcomeNames[o]
	}
	return fmt.Sprintf("CommitOutcome(%d)", uint8(o))
}

// WithCommitOutcome says what is done to know the fate of a COMMIT whose answer is
// lost. With the transaction's id, which has to be known beforehand, the server can be
// asked over a new connection: if it says committed, Commit returns nil; if it says
// aborted, the transaction is replayed, or the closure runs again; if it cannot say, or
// has crashed or failed over since, Commit returns a [*CommitUnknownError].
//
// The id costs a round trip before COMMIT, in transactions that may have written; those
// of proven reads pay nothing. Before its first transaction each connection is asked once
// where it leads to, unless this is [CommitReport] or the inner driver is neither lib/pq
// nor pgx and this is CommitAuto (for the statement cache and the detector it may be
// asked all the same). It needs PostgreSQL 10 or later with the functions
// txid_current_if_assigned, txid_status and pg_control_system; where these are missing
// nothing is asked for. The default is [CommitAuto].
func WithCommitOutcome(outcome CommitOutcome) Option {
	return option(func(c *config) error {
		if int(outcome) >= len(commitOutcomeNames) {
			return fmt.Errorf("pgretry: commit outcome is %d, allowed are CommitAuto, CommitResolve and CommitReport", outcome)
		}
		c.commitOutcome = outcome
		return nil
	})
}

// DefaultResolveTimeout is the default of [WithResolveTimeout].
const DefaultResolveTimeout = 5 * time.Second

// WithResolveTimeout bounds the time that is spent on finding out the fate of a COMMIT
// whose answer is lost, from its loss on. Where COMMIT waits for a standby, that is how
// long the wait goes on before the outcome is called unknown. It is positive; once the
// context of BEGIN is done, it is a second at most. The default is 5 s.
func WithResolveTimeout(timeout time.Duration) Option {
	return option(func(c *config) error {
		if timeout <= 0 {
			return fmt.Errorf("pgretry: the resolve timeout is %s, allowed is a positive duration", timeout)
		}
		c.resolveTimeout = timeout
		return nil
	})
}

// Contention is what is done about transactions that deadlock with each other, see
// [WithContention]. Parts are combined with |.
type Contention uint8

const (
	// ContentionLimit: of a kind of transactions that deadlocks only so many run at once
	// as do best. The others wait, the oldest goes first.
	ContentionLimit Contention = 1 << iota
	// ContentionDetector: while there are such kinds, a connection of the driver's own looks
	// for deadlocks whenever a statement that may wait for locks has taken 20 ms, and ends
	// them by cancelling a statement, long before the server does after its
	// deadlock_timeout.
	ContentionDetector
	// ContentionProbes: where nobody can look, as behind a pooler, waits for locks in
	// RunInTx and Retry are bounded by lock_timeout: 20 ms, twice as long with each attempt,
	// and from the seventh on not at all.
	ContentionProbes
	// ContentionProbeTransactions: also in transactions that the driver replays by itself,
	// as long as they have shown nothing but row counts.
	ContentionProbeTransactions
	// ContentionShared: processes take turns with the transactions of such a kind, by an
	// advisory lock of the session that the driver's own connection holds. The server has to
	// be reached directly.
	ContentionShared

	// ContentionOff: nothing is remembered and nothing is done, nor are there pins that
	// would have to be learned.
	ContentionOff Contention = 0
	// ContentionDefault is the default.
	ContentionDefault = ContentionLimit | ContentionDetector | ContentionProbes
)

var contentionNames = []string{"limit", "detector", "probes", "transaction_probes", "shared"}

// String returns the names of the parts as the DSN parameter pgretry_contention has them.
func (c Contention) String() string {
	if c == ContentionOff {
		return "off"
	}
	var names []string
	for i, name := range contentionNames {
		if c&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	if c>>len(contentionNames) != 0 {
		return fmt.Sprintf("Contention(%d)", uint8(c))
	}
	return strings.Join(names, ",")
}

// WithContention says what is done about transactions that deadlock with each other. Waiting
// longer between attempts does not end a storm of deadlocks, each of which holds its locks
// for the server's deadlock_timeout, one second by default; fewer transactions at once do,
// and finding deadlocks sooner.
//
// The driver remembers, for five minutes, which kinds of transactions have deadlocked. A kind
// is what [ContextWithName] says, or else the fingerprint of the first statement that locks
// something. Others are not slowed down. What is done may delay a transaction, within
// bounds, and changes nothing of what it does. The default is [ContentionDefault].
func WithContention(parts Contention) Option {
	return option(func(c *config) error {
		if parts>>len(contentionNames) != 0 {
			return fmt.Errorf("pgretry: contention is %d, allowed are the Contention constants and their combinations", parts)
		}
		c.contention = parts
		return nil
	})
}

// DefaultStatementCache is the default size of [WithStatementCache].
const DefaultStatementCache = 256

// WithStatementCache sets how many statements with arguments each connection keeps
// prepared, most recently used, from their second use on, so that each costs one round trip
// instead of two; 0 means none. The default is 256 where the session is known to be ours
// alone and none elsewhere, such as behind PgBouncer. A size given here insists on the cache
// wherever the connection leads: behind a pooler that gives each transaction to another
// process the statements have to be known there too, as with PgBouncer's
// max_prepared_statements.
//
// It is for lib/pq, and not with binary_parameters=yes, which needs no second round trip;
// pgx has a cache of its own. The server goes on planning for the arguments at hand, as it does
// for statements that are not prepared: one that it has executed five times, so that it would
// think of a plan for all arguments, is prepared anew. Those that insert values or find one row
// by a unique index, of which no plan could be better, are left to it: the driver asks for
// that plan once (EXPLAIN). What may change the
// meaning of a text empties the cache: DDL, SET, RESET, DISCARD, DO, CALL, a function whose
// effect is not known ([WithAllowedFunctions] names those that do no harm). What other sessions
// do is noticed by the server, with these exceptions for up to a minute: a table or a function
// created where it is found earlier; a column that has got another type, to which a kept
// statement still sends its arguments as the old one. Where nothing is replayed or run again, a
// transaction may fail with 0A000 after DDL of another session.
func WithStatementCache(size int) Option {
	return option(func(c *config) error {
		if size < 0 {
			return fmt.Errorf("pgretry: the statement cache is to hold %d statements, allowed is 0 or more", size)
		}
		c.statementCache, c.statementCacheInsists = size, true
		return nil
	})
}

// Defaults of [WithJournalLimit].
const (
	DefaultJournalBytes      = 1 << 20
	DefaultJournalStatements = 10_000
)

// WithJournalLimit bounds what the driver remembers of one transaction in order to
// replay it: bytes, of statement texts, arguments and bookkeeping, and statements.
// A transaction that grows beyond goes on without protection
// ([RefusedJournalFull]). Rows that it reads take no room. The defaults are 1 MiB
// and 10,000; both must be positive.
func WithJournalLimit(bytes, statements int) Option {
	return option(func(c *config) error {
		if bytes <= 0 {
			return fmt.Errorf("pgretry: the journal limit is %d bytes, allowed is 1 or more", bytes)
		}
		if statements <= 0 {
			return fmt.Errorf("pgretry: the journal limit is %d statements, allowed is 1 or more", statements)
		}
		c.journalBytes, c.journalStatements = bytes, statements
		return nil
	})
}

// WithDeniedFunctions names functions after whose call nothing is replayed, because
// of effects that no rollback undoes: those of one's own that send something or
// write through dblink, for example. A name counts in every schema unless it has
// one, upper and lower case as in the catalog, and may end in * for all that begin
// so: "audit_*", "billing.charge". They add to those that the driver knows.
func WithDeniedFunctions(names ...string) Option {
	return option(func(c *config) (err error) {
		c.denied, err = newFunctionPatterns("WithDeniedFunctions", names)
		return err
	})
}

// WithAllowedFunctions names functions that the driver would refuse to replay but
// that do no harm here, "pg_advisory_xact_lock" for one; names are as in
// [WithDeniedFunctions], which wins.
func WithAllowedFunctions(names ...string) Option {
	return option(func(c *config) (err error) {
		c.allowed, err = newFunctionPatterns("WithAllowedFunctions", names)
		return err
	})
}

// WithTracerProvider sets where spans go, the default being the global provider
// of package otel. It also puts otelsql around the inner driver, so that each
// physical statement has a span.
func WithTracerProvider(provider trace.TracerProvider) Option {
	return option(func(c *config) error {
		if provider == nil {
			return errors.New("pgretry: the provider given to WithTracerProvider is nil, allowed is a TracerProvider; leave the option out for the global one")
		}
		c.tracerProvider = provider
		return nil
	})
}

// WithMeterProvider sets where metrics go, the default being the global provider
// of package otel. It also puts otelsql around the inner driver, so that each
// physical call is measured.
func WithMeterProvider(provider metric.MeterProvider) Option {
	return option(func(c *config) error {
		if provider == nil {
			return errors.New("pgretry: the provider given to WithMeterProvider is nil, allowed is a MeterProvider; leave the option out for the global one")
		}
		c.meterProvider = provider
		return nil
	})
}

// WithStatementSpans puts otelsql around the inner driver, so that each physical
// statement has a span and a duration, even where providers are the global ones.
// options are passed on to otelsql and win over ours, which are: no statement
// text, no spans for rows and session resets, errors by their SQLSTATE instead of
// their message, since texts and messages may carry data. To have the text, for
// one, pass otelsql.WithSpanOptions(otelsql.SpanOptions{}).
func WithStatementSpans(options ...otelsql.Option) Option {
	return option(func(c *config) error {
		if slices.Contains(options, nil) {
			return errors.New("pgretry: an option given to WithStatementSpans is nil")
		}
		c.statementSpans = true
		c.otelsqlOptions = append(slices.Clip(c.otelsqlOptions), options...)
		return nil
	})
}

// WithAttributes adds attributes to every transaction and attempt span, for
// example the server's address where the inner connector, unlike the one made
// from a DSN, does not tell it.
func WithAttributes(attributes ...attribute.KeyValue) Option {
	return option(func(c *config) error {
		c.attributes = append(slices.Clip(c.attributes), attributes...)
		return nil
	})
}

// WithOnRetry calls hook for every decision about a failed attempt, of closures, of
// transactions that the driver replays, and of statements outside transactions: after
// the attempt was rolled back and before any wait, or, where the application is to
// roll back because nothing is replayed, before it does. The hook runs on the
// transaction's own goroutine: what it takes, the transaction waits.
func WithOnRetry(hook func(context.Context, Event)) Option {
	return option(func(c *config) error {
		if hook == nil {
			return errors.New("pgretry: the hook given to WithOnRetry is nil, allowed is a function")
		}
		c.onRetry = hook
		return nil
	})
}

// config is the resolved configuration behind the options. It does not change
// once a connector has it.
type config struct {
	policy     Policy
	newBackOff func() backoff.BackOff // nil means full jitter after policy
	mode       Mode
	alsoRetry  []string

	pins              PinPolicy
	journalBytes      int
	journalStatements int
	denied, allowed   functionPatterns
	commitOutcome     CommitOutcome
	resolveTimeout    time.Duration

	contention Contention
	gate       gate.Config

	statementCache        int // statements, 0 for none
	statementCacheInsists bool

	tracerProvider trace.TracerProvider
	meterProvider  metric.MeterProvider
	statementSpans bool
	otelsqlOptions []otelsql.Option
	attributes     []attribute.KeyValue
	onRetry        func(context.Context, Event)

	// What tests replace: time and chance.
	closing time.Duration
	now     func() time.Time
	wait    func(context.Context, time.Duration) error
	random  func(n int64) int64
}

func newConfig(options []Option) (*config, error) {
	c := &config{
		policy: defaultPolicy,
		now:    time.Now,
		wait:   wait,

		journalBytes:      DefaultJournalBytes,
		journalStatements: DefaultJournalStatements,
		resolveTimeout:    DefaultResolveTimeout,
		statementCache:    DefaultStatementCache,
		contention:        ContentionDefault,
		gate:              gate.Config{MaxWait: queueMaxWait},

		closing: closingTime,
	}
	if err := applyOptions(c, options); err != nil {
		return nil, err
	}
	return c, nil
}

func applyOptions[O Option](c *config, options []O) error {
	for i, o := range options {
		if any(o) == nil {
			return fmt.Errorf("pgretry: option %d is nil", i+1)
		}
		if err := o.apply(c); err != nil {
			return err
		}
	}
	return nil
}

// usesOtelsql says whether otelsql is put around the inner driver. It costs
// microseconds per call even without an SDK, so it has to be asked for.
func (c *config) usesOtelsql() bool {
	return c.statementSpans || c.tracerProvider != nil || c.meterProvider != nil
}

// conflictBackOff returns the delays of one transaction after conflicts.
func (c *config) conflictBackOff() backoff.BackOff {
	if c.newBackOff != nil {
		if b := c.newBackOff(); b != nil {
			b.Reset()
			return b
		}
	}
	return newFullJitter(c.policy.BaseDelay, c.policy.MaxDelay, c.random)
}

// contextError returns what a context that is done should match, its error and
// its cause, or nil.
func contextError(ctx context.Context) error {
	err, cause := ctx.Err(), context.Cause(ctx)
	if err == nil || errors.Is(cause, err) {
		return cause
	}
	return errors.Join(err, cause)
}

// wait returns nil after d, or what ended the context as soon as it is done.
func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return contextError(ctx)
	}
}
