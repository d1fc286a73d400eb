package pgretry

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/XSAM/otelsql"
	"github.com/cenkalti/backoff/v4"
	"github.com/lib/pq"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.opentelemetry.io/otel/trace"

	"github.com/pgretry/pgretry/internal/drivertest"
)

func TestRowsOfAnEarlierTransactionSayNothingOfThisOne(t *testing.T) {
	f := newFixture(t)
	c, err := f.connector.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	begin := func() driver.Tx {
		tx, err := c.(driver.ConnBeginTx).BeginTx(t.Context(), driver.TxOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return tx
	}
	first := begin()
	rows, err := c.(driver.QueryerContext).QueryContext(t.Context(), "SELECT", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Rollback(); err != nil {
		t.Fatal(err)
	}
	second := begin()
	f.Fail(drivertest.RowsClose, serverErr("40001"))
	_ = rows.Close()
	if err := second.Rollback(); err != nil {
		t.Error(err)
	}
	if s := f.connector.stats.snapshot(); s.PlainConflicts != 0 {
		t.Errorf("stats are %+v", s)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

func TestTheConnectionIsTheSameAsTheDriversAfterAReset(t *testing.T) {
	f := newFixture(t)
	f.Fail(drivertest.ResetSession, driver.ErrBadConn).Drops().Times(1)
	for range 2 {
		if err := f.db.PingContext(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if n := len(f.Log(drivertest.Connect)); n != 2 {
		t.Errorf("%d connections were made: the inner driver's ResetSession was not asked", n)
	}
}

func TestARawBlockDoesNotOutliveItsUseOfTheConnection(t *testing.T) {
	f := newFixture(t)
	f.connector.config.closing = time.Millisecond
	_ = Retry(t.Context(), func(ctx context.Context) error { return onOneConn(ctx, f.db, "BEGIN", "INSERT") })
	f.Fail(drivertest.Commit, serverErr("40001")).Times(1)
	// The same connection: what is done on it now is not that closure's.
	err := RunInTx(t.Context(), f.db, nil, func(_ context.Context, _ *sql.Tx) error { return nil })
	_ = err
	c, connErr := f.db.Conn(t.Context())
	if connErr != nil {
		t.Fatal(connErr)
	}
	_ = c.Raw(func(dc any) error {
		if dc.(interface{ itself() *conn }).itself().rawBlock.attempt != nil {
			t.Error("the connection still belongs to the closure that is over")
		}
		return nil
	})
	_ = c.Close()
}

func TestADriverMadeForTwoDatabasesKeepsItsOptions(t *testing.T) {
	options := []Option{WithPolicy(Policy{MaxAttempts: 3})}
	d := WrapDriver(&pq.Driver{}, options...)
	options[0] = WithPolicy(Policy{MaxAttempts: 4})
	c, err := d.OpenConnector("host=h")
	if err != nil {
		t.Fatal(err)
	}
	if n := c.(*Connector).config.policy.MaxAttempts; n != 3 {
		t.Errorf("MaxAttempts is %d, want 3", n)
	}
	again, err := c.Driver().(*Driver).OpenConnector("host=h")
	if err != nil {
		t.Fatal(err)
	}
	if n := again.(*Connector).config.policy.MaxAttempts; n != 3 {
		t.Errorf("MaxAttempts of the connector's own driver is %d, want 3", n)
	}
}

func TestClosingTheDatabaseClosesTheInnerConnector(t *testing.T) {
	for _, options := range [][]Option{nil, {WithStatementSpans()}} {
		d := drivertest.New(drivertest.WithFeatures(drivertest.Modern))
		connector, err := NewConnector(d.Connector(), options...)
		if err != nil {
			t.Fatal(err)
		}
		if err := sql.OpenDB(connector).Close(); err != nil {
			t.Error(err)
		}
		if d.OpenConnectors() != 0 || len(d.Log(drivertest.CloseConnector)) != 1 {
			t.Errorf("%d connectors are open", d.OpenConnectors())
		}
	}
}

func TestAConfigurationHasAllThatItWasGiven(t *testing.T) {
	c, err := newConfig([]Option{
		WithAttributes(attribute.Int("a", 1)), WithAttributes(attribute.Int("b", 2)),
		WithStatementSpans(otelsql.WithDisableSkipErrMeasurement(true)), WithStatementSpans(otelsql.WithDisableSkipErrMeasurement(true)),
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(c.attributes) != 2 || len(c.otelsqlOptions) != 2 {
		t.Errorf("the configuration has %d attributes and %d options of otelsql's, want 2 and 2", len(c.attributes), len(c.otelsqlOptions))
	}
	states := []string{"55P03"}
	o := WithAlsoRetry(states...)
	if err := o.apply(c); err != nil {
		t.Fatal(err)
	}
	states[0] = "23505"
	if c.alsoRetry[0] != "55P03" {
		t.Errorf("also retried is %v", c.alsoRetry)
	}
}

// once is a BackOff that has been used before.
type once struct {
	backoff.ConstantBackOff
	used bool
}

func (o *once) Reset() { o.used = false }
func (o *once) NextBackOff() time.Duration {
	if o.used {
		return backoff.Stop
	}
	return o.Interval
}

func TestABackOffIsResetBeforeUse(t *testing.T) {
	f := newFixture(t, WithBackOff(func() backoff.BackOff { return &once{backoff.ConstantBackOff{Interval: 5}, true} }))
	f.Fail(drivertest.Exec, serverErr("40001")).Times(2)
	if err := RunInTx(t.Context(), f.db, nil, transfer); err != nil {
		t.Error(err)
	}
}

func TestWithoutAnSDKThereAreNoSpansUnlessTheCallerHasOne(t *testing.T) {
	c := newTelemetry(&config{})
	if c.idle == nil {
		t.Fatal("an SDK is installed in this process")
	}
	if c.tracing(t.Context()) {
		t.Error("spans are made although they go nowhere")
	}
	sc := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{1}})
	if !c.tracing(trace.ContextWithSpanContext(t.Context(), sc)) {
		t.Error("the caller's span context is not passed on")
	}
}

func TestPlainTransactionsAreMeasuredWithoutTracing(t *testing.T) {
	o := newObservatory(t)
	f := newFixture(t, WithMeterProvider(o.meters))
	f.Fail(drivertest.Commit, serverErr("40003")).Times(1)
	_ = inTx(ContextWithName(t.Context(), "plain"), f.db, transfer)
	_ = inTx(t.Context(), f.db, transfer)
	var data metricdata.ResourceMetrics
	if err := o.reader.Collect(t.Context(), &data); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, scope := range data.ScopeMetrics {
		for _, m := range scope.Metrics {
			if strings.HasPrefix(m.Name, "pgretry.") {
				got[m.Name] = points(t, m)
			}
		}
	}
	if got["pgretry.commit.unknown"] != "{:1}" || got["pgretry.transaction.duration"] != "{outcome=committed:1 bounds 9}{outcome=unknown:1 bounds 9}" {
		t.Errorf("the metrics are %v", got)
	}
	if s, _ := StatsOf(f.db); s.UnknownCommits != 1 || s.Plain != 2 || s.Attempts != 2 || s.Committed != 1 || s.PlainConflicts != 0 {
		t.Errorf("stats are %+v", s)
	}
}

func TestAPlainTransactionHasItsName(t *testing.T) {
	o := newObservatory(t)
	f := newFixture(t, o.options()...)
	if err := inTx(ContextWithName(t.Context(), "transfer"), f.db, transfer); err != nil {
		t.Fatal(err)
	}
	if got := o.tree(); !strings.Contains(got, "transaction.name=transfer") {
		t.Errorf("the spans are\n%s", got)
	}
}

func TestTheServersAttributes(t *testing.T) {
	for dsn, want := range map[string]string{
		"host=h port=5433 dbname=d user=u":        "db.namespace=d server.address=h server.port=5433",
		"host=h user=u":                           "db.namespace=u server.address=h server.port=5432",
		"host=h hostaddr=127.0.0.9 user=u":        "db.namespace=u server.address=127.0.0.9 server.port=5432",
		"host=h,i port=5432,5433 user=u dbname=d": "db.namespace=d",
		"postgres://u@h:5433/d?sslmode=disable":   "db.namespace=d server.address=h server.port=5433",
	} {
		c, err := (&Driver{}).OpenConnector(dsn)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, a := range c.(*Connector).config.attributes {
			got = append(got, string(a.Key)+"="+a.Value.String())
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %v, want %s", dsn, got, want)
		}
	}
}

func TestStatsAreACopy(t *testing.T) {
	f := newFixture(t)
	f.Fail(drivertest.Exec, serverErr("40001")).Times(1)
	if err := RunInTx(t.Context(), f.db, nil, transfer); err != nil {
		t.Fatal(err)
	}
	s, _ := StatsOf(f.db)
	s.RetriesBySQLState["40001"] = 99
	if again, _ := StatsOf(f.db); again.RetriesBySQLState["40001"] != 1 || again.Retries != 1 || again.Exhausted != 0 {
		t.Errorf("stats are %+v", again)
	}
	if got := (Stats{Closures: 3, Plain: 1}).ProtectedShare(); got != 0.75 {
		t.Errorf("the protected share is %v", got)
	}
}

func TestWhatARetryErrorSays(t *testing.T) {
	cause := errors.New("why")
	for _, c := range []struct {
		err  RetryError
		want string
	}{
		{RetryError{Reason: ErrExhausted, Attempts: 1, Err: serverErr("40001")}, "after 1 attempt in 0s"},
		{RetryError{Reason: ErrExhausted, Attempts: 2, Err: serverErr("40001"), Limit: "a limit", cause: cause}, "(a limit) after 2 attempts in 0s"},
	} {
		if !strings.Contains(c.err.Error(), c.want) || c.err.SQLState() != "40001" || errors.Is(&c.err, cause) != (c.err.cause != nil) {
			t.Errorf("the error is %v", &c.err)
		}
	}
}

func TestWhatAnEventLogs(t *testing.T) {
	e := Event{Decision: DecisionRefused, Reason: RefusedAlreadyCommitted, Class: ClassRetryable, SQLState: "40P01", Attempt: 2, Name: "transfer", Wait: time.Second}
	e.Deadlock, _ = ParseDeadlock(deadlockErr)
	got := e.LogValue().String()
	for _, want := range []string{"refused", "already_committed", "40P01", "transfer", "ShareLock"} {
		if !strings.Contains(got, want) {
			t.Errorf("logged is %s, want %s in it", got, want)
		}
	}
	if strings.Contains(got, "wait=") {
		t.Errorf("logged is %s, but nothing is waited for", got)
	}
	e.Decision = DecisionRetried
	if got := e.LogValue().String(); !strings.Contains(got, "wait=1s") {
		t.Errorf("logged is %s, want the wait in it", got)
	}
}

func TestTheBudgetIsWhatItSays(t *testing.T) {
	var b retryBudget
	n := 0
	for b.take() {
		n++
	}
	if n != budgetTokens/budgetRetryCost {
		t.Errorf("a full bucket pays for %d retries, want %d", n, budgetTokens/budgetRetryCost)
	}
	for range budgetTokens + 5 {
		b.succeeded()
	}
	if got := b.spent.Load(); got != 0 {
		t.Errorf("after many successes %d are spent", got)
	}
}
