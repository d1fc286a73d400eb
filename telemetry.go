package pgretry

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"sync"
	"time"

	"github.com/XSAM/otelsql"
	"github.com/lib/pq"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
)

// Version is the version of this package, which is also the instrumentation
// scope's.
const Version = "0.1.0"

const scopeName = "github.com/pgretry/pgretry"

// Names of spans, of the event and of the attributes that no convention has.
const (
	spanTransaction = "pgretry.transaction"
	spanAttempt     = "pgretry.attempt"
	eventDeadlock   = "pgretry.deadlock"

	eventResolved = "pgretry.commit.resolved"

	keyFate        = attribute.Key("pgretry.commit.fate")
	keyElapsed     = attribute.Key("pgretry.commit.resolve.duration")
	keyPlace       = attribute.Key("pgretry.connection.place")
	keyAttempt     = attribute.Key("pgretry.attempt")
	keyAttempts    = attribute.Key("pgretry.attempts")
	keyBackoff     = attribute.Key("pgretry.backoff")
	keyClass       = attribute.Key("pgretry.class")
	keyFingerprint = attribute.Key("pgretry.transaction.fingerprint")
	keyIsolation   = attribute.Key("pgretry.transaction.isolation")
	keyKind        = attribute.Key("pgretry.attempt.kind")
	keyMode        = attribute.Key("pgretry.mode")
	keyName        = attribute.Key("pgretry.transaction.name")
	keyOutcome     = attribute.Key("pgretry.outcome")
	keyReadOnly    = attribute.Key("pgretry.transaction.read_only")
	keyReason      = attribute.Key("pgretry.refusal.reason")
	keyStatements  = attribute.Key("pgretry.statements")
	keyBlockers    = attribute.Key("pgretry.deadlock.blockers")
	keyCycle       = attribute.Key("pgretry.deadlock.cycle")
	keyModes       = attribute.Key("pgretry.deadlock.modes")
	keyObjects     = attribute.Key("pgretry.deadlock.objects")
	keyRelation    = attribute.Key("pgretry.deadlock.relation")
	keyWaiters     = attribute.Key("pgretry.deadlock.waiters")
	kindClosure    = "closure"
)

// durationBoundaries are those of the semantic conventions for database
// durations, in seconds; no SDK has them by default.
var durationBoundaries = []float64{.001, .005, .01, .05, .1, .5, 1, 5, 10}

// telemetry is the tracer and the meter of a connector, with all that can be
// built beforehand.
type telemetry struct {
	tracer trace.Tracer
	// idle is the global provider from before any SDK was installed: as long as
	// it is still the global one, spans would go nowhere and are not made. It is
	// nil if the provider was given or an SDK was there already.
	idle       trace.TracerProvider
	given      bool // the provider was given by option
	attributes []attribute.KeyValue

	duration      metric.Float64Histogram
	attempts      metric.Int64Histogram
	retries       metric.Int64Counter
	backoff       metric.Float64Histogram
	refusals      metric.Int64Counter
	uncovered     metric.Int64Counter
	commitUnknown metric.Int64Counter
	resolve       metric.Float64Histogram
	lost          metric.Int64Counter
	replaced      metric.Int64Counter
	limit         metric.Int64Gauge
	queue         metric.Float64Histogram
	early         metric.Int64Counter
	byOutcome     [outcomes][]metric.RecordOption
}

// defaultTelemetry serves Retry until it meets a database.
var defaultTelemetry = sync.OnceValue(func() *telemetry { return newTelemetry(&config{}) })

func newTelemetry(c *config) *telemetry {
	t := &telemetry{given: c.tracerProvider != nil}
	t.attributes = append([]attribute.KeyValue{semconv.DBSystemNamePostgreSQL}, c.attributes...)

	tracers := c.tracerProvider
	if tracers == nil {
		tracers = otel.GetTracerProvider()
		if fmt.Sprintf("%T", tracers) == "*global.tracerProvider" {
			t.idle = tracers
		}
	}
	t.tracer = tracers.Tracer(scopeName, trace.WithInstrumentationVersion(Version), trace.WithSchemaURL(semconv.SchemaURL))

	meters := c.meterProvider
	if meters == nil {
		meters = otel.GetMeterProvider()
	}
	t.instruments(meters.Meter(scopeName, metric.WithInstrumentationVersion(Version), metric.WithSchemaURL(semconv.SchemaURL)))
	for o := range outcomes {
		set := attribute.NewSet(append(t.attributes[:1:1], keyOutcome.String(o.String()))...)
		t.byOutcome[o] = []metric.RecordOption{metric.WithAttributeSet(set)}
	}
	return t
}

// instruments makes the instruments. What cannot be made does nothing and is
// reported to OpenTelemetry's error handler: measuring is no reason not to work.
func (t *telemetry) instruments(meter metric.Meter) {
	var errs [13]error
	t.duration, errs[0] = meter.Float64Histogram("pgretry.transaction.duration",
		metric.WithUnit("s"), metric.WithExplicitBucketBoundaries(durationBoundaries...),
		metric.WithDescription("Duration of logical transactions, all attempts and waits included."))
	t.attempts, errs[1] = meter.Int64Histogram("pgretry.transaction.attempts",
		metric.WithUnit("{attempt}"), metric.WithExplicitBucketBoundaries(1, 2, 3, 5, 10, 20, 50),
		metric.WithDescription("Attempts per logical transaction."))
	t.retries, errs[2] = meter.Int64Counter("pgretry.retries",
		metric.WithUnit("{retry}"), metric.WithDescription("Attempts that failed and were followed by another."))
	t.backoff, errs[3] = meter.Float64Histogram("pgretry.backoff.duration",
		metric.WithUnit("s"), metric.WithExplicitBucketBoundaries(durationBoundaries...),
		metric.WithDescription("Waits between attempts, as decided before they begin."))
	t.refusals, errs[4] = meter.Int64Counter("pgretry.refusals",
		metric.WithUnit("{transaction}"), metric.WithDescription("Transactions and statements that met a conflict and were not run again, by reason."))
	t.uncovered, errs[6] = meter.Int64Counter("pgretry.unprotected",
		metric.WithUnit("{transaction}"), metric.WithDescription("Transactions that the driver stopped being able to replay, by reason, with or without a conflict."))
	t.commitUnknown, errs[5] = meter.Int64Counter("pgretry.commit.unknown",
		metric.WithUnit("{commit}"), metric.WithDescription("COMMITs whose outcome is unknown."))
	t.resolve, errs[7] = meter.Float64Histogram("pgretry.commit.resolve.duration",
		metric.WithUnit("s"), metric.WithExplicitBucketBoundaries(durationBoundaries...),
		metric.WithDescription("Time to find out what became of a COMMIT whose answer was lost, by fate."))
	t.lost, errs[8] = meter.Int64Counter("pgretry.connection.lost",
		metric.WithUnit("{connection}"), metric.WithDescription("Connections that broke, by where that was noticed."))
	t.replaced, errs[9] = meter.Int64Counter("pgretry.connection.replaced",
		metric.WithUnit("{connection}"), metric.WithDescription("New sessions that took the place of lost ones for a replay."))
	t.limit, errs[10] = meter.Int64Gauge("pgretry.contention.limit",
		metric.WithUnit("{transaction}"), metric.WithDescription("Transactions of a kind that deadlocks that may run at once; 0 for any number."))
	t.queue, errs[11] = meter.Float64Histogram("pgretry.contention.queue.duration",
		metric.WithUnit("s"), metric.WithExplicitBucketBoundaries(durationBoundaries...),
		metric.WithDescription("Time that transactions of such a kind waited before they could run."))
	t.early, errs[12] = meter.Int64Counter("pgretry.contention.deadlocks.early",
		metric.WithUnit("{deadlock}"), metric.WithDescription("Deadlocks found and ended by the driver, before the server's deadlock_timeout."))
	for _, err := range errs {
		if err != nil {
			otel.Handle(err)
		}
	}
}

// tracing says whether spans may go anywhere.
func (t *telemetry) tracing(ctx context.Context) bool {
	return t.idle == nil || otel.GetTracerProvider() != t.idle || trace.SpanContextFromContext(ctx).IsValid()
}

// startTransaction opens the span of a logical transaction that a closure runs.
func (t *telemetry) startTransaction(ctx context.Context, name string, opts *sql.TxOptions, started time.Time) (context.Context, trace.Span) {
	attributes := t.describe(name, opts, 0)
	return t.tracer.Start(ctx, spanTransaction, trace.WithAttributes(attributes...), trace.WithTimestamp(started))
}

// attemptStart is what is known of an attempt when it begins.
type attemptStart struct {
	number   int
	kind     string // "" if nothing would run it again
	name     string
	opts     *sql.TxOptions
	previous trace.SpanContext // of the attempt before, invalid for the first
	started  time.Time
}

func (t *telemetry) startAttempt(ctx context.Context, s attemptStart) (context.Context, trace.Span) {
	attributes := append(t.describe(s.name, s.opts, 2), keyAttempt.Int(s.number))
	if s.kind != "" {
		attributes = append(attributes, keyKind.String(s.kind))
	}
	options := []trace.SpanStartOption{trace.WithAttributes(attributes...), trace.WithTimestamp(s.started)}
	if s.previous.IsValid() {
		options = append(options, trace.WithLinks(trace.Link{SpanContext: s.previous}))
	}
	return t.tracer.Start(ctx, spanAttempt, options...)
}

// describe returns the attributes that transaction and attempt have in common.
func (t *telemetry) describe(name string, opts *sql.TxOptions, room int) []attribute.KeyValue {
	attributes := make([]attribute.KeyValue, len(t.attributes), len(t.attributes)+3+room)
	copy(attributes, t.attributes)
	if name != "" {
		attributes = append(attributes, keyName.String(name))
	}
	if opts != nil {
		if opts.Isolation != sql.LevelDefault {
			attributes = append(attributes, keyIsolation.String(opts.Isolation.String()))
		}
		if opts.ReadOnly {
			attributes = append(attributes, keyReadOnly.Bool(true))
		}
	}
	return attributes
}

// ending is what is known of an attempt, or of a transaction, when it ends.
type ending struct {
	outcome    outcome
	class      Class
	err        error
	reason     RefusalReason
	statements int           // of an attempt
	wait       time.Duration // until the next attempt
	attempts   int           // of a transaction
}

// endSpan closes a span. Error texts stay out: the server's may quote data.
func endSpan(span trace.Span, e ending) {
	if span == nil {
		return
	}
	attributes := make([]attribute.KeyValue, 0, 8)
	attributes = append(attributes, keyOutcome.String(e.outcome.String()))
	if e.attempts > 0 {
		attributes = append(attributes, keyAttempts.Int(e.attempts))
	} else {
		attributes = append(attributes, keyStatements.Int(e.statements))
	}
	if e.outcome == outcomeRetried {
		attributes = append(attributes, keyBackoff.Float64(e.wait.Seconds()))
	}
	if e.reason != "" {
		attributes = append(attributes, keyReason.String(string(e.reason)))
	}
	if e.err != nil {
		attributes = append(attributes, keyClass.String(e.class.String()))
		attributes = append(attributes, errorAttributes(e.err)...)
		span.SetStatus(codes.Error, e.class.String())
	}
	span.SetAttributes(attributes...)
	span.End()
}

// errorAttributes tell an error by its SQLSTATE or, if it is not the server's, by
// its type.
func errorAttributes(err error) []attribute.KeyValue {
	if err == driver.ErrSkip { //nolint:errorlint // drivers must return it bare
		return nil
	}
	if state := sqlState(err); state != "" {
		return []attribute.KeyValue{semconv.ErrorTypeKey.String(state), semconv.DBResponseStatusCode(state)}
	}
	return []attribute.KeyValue{semconv.ErrorType(err)}
}

// deadlock adds the event that tells who waited for whom.
func (t *telemetry) deadlock(span trace.Span, err error) {
	if span == nil || !span.IsRecording() {
		return
	}
	deadlock, ok := ParseDeadlock(err)
	if !ok {
		return
	}
	var waiters, blockers []int
	var modes, objects []string
	for _, edge := range deadlock.Edges {
		waiters = append(waiters, edge.PID)
		modes = append(modes, edge.Mode)
		objects = append(objects, edge.Object)
		blockers = append(blockers, edge.BlockedBy)
	}
	attributes := []attribute.KeyValue{
		keyCycle.String(deadlock.String()),
		keyWaiters.IntSlice(waiters), keyModes.StringSlice(modes),
		keyObjects.StringSlice(objects), keyBlockers.IntSlice(blockers),
	}
	if deadlock.Relation != "" {
		attributes = append(attributes, keyRelation.String(deadlock.Relation))
	}
	span.AddEvent(eventDeadlock, trace.WithAttributes(attributes...))
}

// transactionEnded measures a logical transaction.
func (t *telemetry) transactionEnded(ctx context.Context, o outcome, attempts int, elapsed time.Duration) {
	t.duration.Record(ctx, elapsed.Seconds(), t.byOutcome[o]...)
	t.attempts.Record(ctx, int64(attempts), t.byOutcome[o]...)
}

// measuring says whether transactionEnded would reach anybody.
func (t *telemetry) measuring(ctx context.Context) bool {
	return t.duration.Enabled(ctx) || t.attempts.Enabled(ctx)
}

func (t *telemetry) retried(ctx context.Context, kind Kind, class Class, sqlState string, wait time.Duration) {
	attributes := []attribute.KeyValue{semconv.DBSystemNamePostgreSQL, keyClass.String(class.String()), keyMode.String(kind.String())}
	if sqlState != "" {
		attributes = append(attributes, semconv.DBResponseStatusCode(sqlState))
	}
	t.retries.Add(ctx, 1, metric.WithAttributes(attributes...))
	t.backoff.Record(ctx, wait.Seconds(), metric.WithAttributes(semconv.DBSystemNamePostgreSQL))
}

func (t *telemetry) refused(ctx context.Context, reason RefusalReason) {
	t.refusals.Add(ctx, 1, metric.WithAttributes(semconv.DBSystemNamePostgreSQL, keyReason.String(string(reason))))
}

func (t *telemetry) unprotected(ctx context.Context, reason RefusalReason) {
	t.uncovered.Add(ctx, 1, metric.WithAttributes(semconv.DBSystemNamePostgreSQL, keyReason.String(string(reason))))
}

func (t *telemetry) unknownCommit(ctx context.Context) {
	t.commitUnknown.Add(ctx, 1, metric.WithAttributes(semconv.DBSystemNamePostgreSQL))
}

func (t *telemetry) connectionLost(ctx context.Context, place lossPlace) {
	t.lost.Add(ctx, 1, metric.WithAttributes(semconv.DBSystemNamePostgreSQL, keyPlace.String(lossPlaceNames[place])))
}

func (t *telemetry) reconnected(ctx context.Context) {
	t.replaced.Add(ctx, 1, metric.WithAttributes(semconv.DBSystemNamePostgreSQL))
}

// commitResolved tells what became of a COMMIT whose answer was lost.
func (t *telemetry) commitResolved(ctx context.Context, span trace.Span, f fate, elapsed time.Duration) {
	t.resolve.Record(ctx, elapsed.Seconds(), metric.WithAttributes(semconv.DBSystemNamePostgreSQL, keyFate.String(fateNames[f])))
	if span != nil {
		span.AddEvent(eventResolved, trace.WithAttributes(keyFate.String(fateNames[f]), keyElapsed.Float64(elapsed.Seconds())))
	}
}

// plainTx is the telemetry of a transaction that no closure runs: the driver
// opens and closes its attempts' spans itself.
type plainTx struct {
	ctx      context.Context // BEGIN's
	span     trace.Span      // of the current attempt; nil while spans go nowhere
	started  time.Time       // zero while nothing is measured
	begin    attemptStart    // of the first attempt
	previous trace.SpanContext
}

// start opens the span of the first attempt.
func (p *plainTx) start(ctx context.Context, t *telemetry, now time.Time, opts driver.TxOptions, covered bool) {
	tracing := t.tracing(ctx)
	if !tracing && !t.measuring(ctx) {
		return
	}
	p.started, p.ctx = now, ctx
	if !tracing {
		return
	}
	p.begin = attemptStart{
		number:  1,
		name:    nameFrom(ctx),
		opts:    &sql.TxOptions{Isolation: sql.IsolationLevel(opts.Isolation), ReadOnly: opts.ReadOnly},
		started: now,
	}
	if covered {
		p.begin.kind = KindReplay.String()
	}
	_, p.span = t.startAttempt(ctx, p.begin)
}

// retried closes an attempt's span; another attempt follows.
func (p *plainTx) retried(e ending) {
	if p.span != nil {
		p.previous = p.span.SpanContext()
		endSpan(p.span, e)
	}
}

// next opens the span of a further attempt.
func (p *plainTx) next(t *telemetry, now time.Time, number int) {
	if p.span == nil {
		return
	}
	start := p.begin
	start.number, start.started, start.previous = number, now, p.previous
	_, p.span = t.startAttempt(p.ctx, start)
}

func (p *plainTx) end(t *telemetry, now func() time.Time, attempts int, e ending) {
	if p.started.IsZero() {
		return
	}
	endSpan(p.span, e)
	t.transactionEnded(p.ctx, e.outcome, attempts, now().Sub(p.started))
}

// serverAttributes tell where lib/pq connects to. Of several hosts nobody knows
// beforehand which it will be.
func serverAttributes(c pq.Config) []attribute.KeyValue {
	database := c.Database
	if database == "" {
		database = c.User // libpq's rule
	}
	attributes := []attribute.KeyValue{semconv.DBNamespace(database)}
	if len(c.Multi) == 0 {
		address := c.Host
		if c.Hostaddr.IsValid() {
			address = c.Hostaddr.String()
		}
		attributes = append(attributes, semconv.ServerAddress(address), semconv.ServerPort(int(c.Port)))
	}
	return attributes
}

// otelsqlOptions are ours first, so that the user's win.
func otelsqlOptions(c *config) []otelsql.Option {
	options := []otelsql.Option{
		otelsql.WithAttributes(append([]attribute.KeyValue{semconv.DBSystemNamePostgreSQL}, c.attributes...)...),
		otelsql.WithSpanOptions(otelsql.SpanOptions{
			DisableErrSkip:       true,
			DisableQuery:         true,
			OmitConnResetSession: true,
			OmitRows:             true,
			// Not the status either: a conflict that is survived is no error, and
			// the attempt's span says what there is to say.
			RecordError: func(error) bool { return false },
		}),
		otelsql.WithDisableSkipErrMeasurement(true),
		otelsql.WithSpanErrorAttributesGetter(errorAttributes),
		otelsql.WithInstrumentErrorAttributesGetter(stateAttributes),
	}
	if c.tracerProvider != nil {
		options = append(options, otelsql.WithTracerProvider(c.tracerProvider))
	}
	if c.meterProvider != nil {
		options = append(options, otelsql.WithMeterProvider(c.meterProvider))
	}
	return append(options, c.otelsqlOptions...)
}

// stateAttributes add the SQLSTATE to otelsql's metrics, whose error.type is the
// Go type and always "*pq.Error".
func stateAttributes(err error) []attribute.KeyValue {
	if state := sqlState(err); state != "" {
		return []attribute.KeyValue{semconv.DBResponseStatusCode(state)}
	}
	return nil
}

// attributes of a kind of transactions. There are maxKinds of them at most.
func (k *kind) attributes(t *telemetry) metric.MeasurementOption {
	name, key := k.key.name, keyName
	if name == "" {
		name, key = k.key.fingerprint, keyFingerprint
	}
	return metric.WithAttributes(append(t.attributes[:1:1], key.String(name))...)
}

// queued measures a wait at the gate of a kind.
func (t *telemetry) queued(ctx context.Context, k *kind, waited time.Duration) {
	t.queue.Record(ctx, waited.Seconds(), k.attributes(t))
}

// limited tells that another number of transactions of a kind may run at once.
func (t *telemetry) limited(k *kind, limit int) {
	t.limit.Record(context.Background(), int64(limit), k.attributes(t))
}

// foundEarly counts a deadlock that the driver has ended.
func (t *telemetry) foundEarly(ctx context.Context) {
	t.early.Add(ctx, 1, metric.WithAttributes(t.attributes[:1:1]...))
}
