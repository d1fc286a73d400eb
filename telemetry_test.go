package pgretry

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/XSAM/otelsql"
	"github.com/lib/pq"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/pgretry/pgretry/internal/drivertest"
)

// observatory is an SDK that keeps everything in memory.
type observatory struct {
	spans   *tracetest.InMemoryExporter
	tracers *sdktrace.TracerProvider
	reader  *metric.ManualReader
	meters  *metric.MeterProvider
}

func newObservatory(t *testing.T) *observatory {
	o := &observatory{spans: tracetest.NewInMemoryExporter(), reader: metric.NewManualReader()}
	o.tracers = sdktrace.NewTracerProvider(sdktrace.WithSyncer(o.spans))
	o.meters = metric.NewMeterProvider(metric.WithReader(o.reader))
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		if err := errors.Join(o.tracers.Shutdown(ctx), o.meters.Shutdown(ctx)); err != nil {
			t.Error(err)
		}
	})
	return o
}

func (o *observatory) options() []Option {
	return []Option{WithTracerProvider(o.tracers), WithMeterProvider(o.meters)}
}

// tree prints spans below each other, each with its attributes but those that
// every span has.
func (o *observatory) tree() string {
	spans := o.spans.GetSpans()
	slices.SortStableFunc(spans, func(a, b tracetest.SpanStub) int { return a.StartTime.Compare(b.StartTime) })
	// The clock of tests stands still, so the order of starts is that of IDs given
	// out: the exporter has the order of ends, children before parents.
	var b strings.Builder
	var print func(parent trace.SpanID, depth int)
	print = func(parent trace.SpanID, depth int) {
		for _, s := range spans {
			if s.Parent.SpanID() != parent {
				continue
			}
			fmt.Fprintf(&b, "%s%s", strings.Repeat("  ", depth), s.Name)
			for _, a := range s.Attributes {
				if a.Key != "db.system.name" {
					fmt.Fprintf(&b, " %s=%s", strings.TrimPrefix(string(a.Key), "pgretry."), a.Value.String())
				}
			}
			if s.Status.Code == codes.Error {
				b.WriteString(" ERROR:" + s.Status.Description)
			}
			for _, l := range s.Links {
				for _, other := range spans {
					if other.SpanContext.SpanID() == l.SpanContext.SpanID() {
						fmt.Fprintf(&b, " link:%s", value(other, keyAttempt))
					}
				}
			}
			for _, e := range s.Events {
				b.WriteString(" event:" + e.Name)
			}
			b.WriteByte('\n')
			print(s.SpanContext.SpanID(), depth+1)
		}
	}
	print(trace.SpanID{}, 0)
	return b.String()
}

func value(s tracetest.SpanStub, key attribute.Key) string {
	for _, a := range s.Attributes {
		if a.Key == key {
			return a.Value.String()
		}
	}
	return ""
}

var deadlockErr = &pq.Error{
	Severity: "ERROR", Code: "40P01", Message: "deadlock detected",
	Detail: "Process 11 waits for ShareLock on transaction 729; blocked by process 12.\nProcess 12 waits for ShareLock on transaction 728; blocked by process 11.",
	Where:  `while updating tuple (0,2) in relation "account"`,
}

func TestTheSpansOfATransactionThatNeededThreeAttempts(t *testing.T) {
	o := newObservatory(t)
	f := newFixture(t, append(o.options(), WithAttributes(attribute.String("server.address", "db1")))...)
	f.connector.config.now = time.Now // spans have to begin one after the other
	f.Fail(drivertest.Exec, deadlockErr).Matching("last").Times(1)
	f.Fail(drivertest.Commit, serverErr("40001")).Times(1)
	ctx, caller := o.tracers.Tracer("test").Start(ContextWithName(t.Context(), "transfer"), "request")
	err := RunInTx(ctx, f.db, &sql.TxOptions{Isolation: sql.LevelSerializable}, func(ctx context.Context, tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, "UPDATE first"); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, "UPDATE last", 42)
		return err
	})
	caller.End()
	if err != nil {
		t.Fatal(err)
	}
	const start = "server.address=db1 transaction.name=transfer transaction.isolation=Serializable"
	want := `
request
  pgretry.transaction ` + start + ` outcome=committed attempts=3
    pgretry.attempt ` + start + ` attempt=1 attempt.kind=closure outcome=retried statements=2 backoff=0.01 class=retryable error.type=40P01 db.response.status_code=40P01 ERROR:retryable event:pgretry.deadlock
      sql.connector.connect server.address=db1
      sql.conn.begin_tx server.address=db1
      sql.conn.exec server.address=db1
      sql.conn.exec server.address=db1 error.type=40P01 db.response.status_code=40P01
      sql.tx.rollback server.address=db1
    pgretry.attempt ` + start + ` attempt=2 attempt.kind=closure outcome=retried statements=2 backoff=0.02 class=retryable error.type=40001 db.response.status_code=40001 ERROR:retryable link:1
      sql.conn.begin_tx server.address=db1
      sql.conn.exec server.address=db1
      sql.conn.exec server.address=db1
      sql.tx.commit server.address=db1 error.type=40001 db.response.status_code=40001
    pgretry.attempt ` + start + ` attempt=3 attempt.kind=closure outcome=committed statements=2 link:2
      sql.conn.begin_tx server.address=db1
      sql.conn.exec server.address=db1
      sql.conn.exec server.address=db1
      sql.tx.commit server.address=db1
`
	// The look for foreign tables left out.
	if got := withoutLines("\n"+o.tree(), "sql.conn.query"); got != want {
		t.Errorf("the spans are%s\nwant%s", got, want)
	}
	for _, s := range o.spans.GetSpans() {
		wantKind := trace.SpanKindInternal
		if strings.HasPrefix(s.Name, "sql.") {
			wantKind = trace.SpanKindClient
		}
		if s.SpanKind != wantKind {
			t.Errorf("%s has kind %s", s.Name, s.SpanKind)
		}
		if strings.HasPrefix(s.Name, "pgretry.") && (s.InstrumentationScope.Name != "github.com/pgretry/pgretry" ||
			s.InstrumentationScope.Version != Version || s.InstrumentationScope.SchemaURL == "") {
			t.Errorf("%s has scope %+v", s.Name, s.InstrumentationScope)
		}
		for _, e := range s.Events {
			if e.Name == eventDeadlock {
				got := fmt.Sprint(e.Attributes)
				for _, part := range []string{"11 waits for ShareLock on transaction 729", "[11,12]", "account"} {
					if !strings.Contains(got, part) {
						t.Errorf("the deadlock's event is %s, want %s in it", got, part)
					}
				}
			}
		}
	}
}

func TestSpansOfRetryAreMadeForTheDatabaseItMeets(t *testing.T) {
	o := newObservatory(t)
	f := newFixture(t, WithTracerProvider(o.tracers))
	f.connector.config.now = time.Now
	f.Fail(drivertest.Exec, serverErr("40001")).Times(1)
	err := Retry(t.Context(), func(ctx context.Context) error {
		return inTx(ctx, f.db, func(ctx context.Context, tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, "UPDATE")
			return err
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	// The first connection is made before anybody knows the database.
	want := `
pgretry.transaction outcome=committed attempts=2
  pgretry.attempt attempt=1 attempt.kind=closure outcome=retried statements=1 backoff=0.01 class=retryable error.type=40001 db.response.status_code=40001 ERROR:retryable
    sql.conn.begin_tx
    sql.conn.exec error.type=40001 db.response.status_code=40001
    sql.tx.rollback
  pgretry.attempt attempt=2 attempt.kind=closure outcome=committed statements=1 link:1
    sql.conn.begin_tx
    sql.conn.exec
    sql.tx.commit
sql.connector.connect
`
	if got := "\n" + o.tree(); got != want {
		t.Errorf("the spans are%s\nwant%s", got, want)
	}
}

func TestAPlainTransactionIsOneAttempt(t *testing.T) {
	o := newObservatory(t)
	f := newFixture(t, append(o.options(), WithMode(ModeClosure))...)
	f.connector.config.now = time.Now
	f.Fail(drivertest.Exec, deadlockErr).Matching("last")
	if err := f.db.Ping(); err != nil {
		t.Fatal(err)
	}
	o.spans.Reset()
	ctx, caller := o.tracers.Tracer("test").Start(t.Context(), "request")
	tx, err := f.db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.ExecContext(ctx, "UPDATE first"); err != nil {
		t.Fatal(err)
	}
	own, span := o.tracers.Tracer("test").Start(ctx, "a step of the caller's")
	if _, err := tx.ExecContext(own, "UPDATE first"); err != nil {
		t.Fatal(err)
	}
	span.End()
	if _, err := tx.ExecContext(ctx, "UPDATE last"); !errors.Is(err, deadlockErr) {
		t.Fatal(err)
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	caller.End()
	want := `
request
  pgretry.attempt transaction.read_only=true attempt=1 outcome=rolled_back statements=3 class=retryable error.type=40P01 db.response.status_code=40P01 ERROR:retryable event:pgretry.deadlock
    sql.conn.begin_tx
    sql.conn.exec
    sql.conn.exec error.type=40P01 db.response.status_code=40P01
    sql.tx.rollback
  a step of the caller's
    sql.conn.exec
`
	if got := "\n" + o.tree(); got != want {
		t.Errorf("the spans are%s\nwant%s", got, want)
	}
	if s, _ := StatsOf(f.db); s.Plain != 1 || s.PlainConflicts != 1 || s.Closures != 0 || s.ProtectedShare() != 0 {
		t.Errorf("stats are %+v", s)
	}
}

func TestEveryEndHasItsOutcome(t *testing.T) {
	business := errors.New("out of stock")
	for want, run := range map[string]func(ctx context.Context, f *fixture) error{
		"committed": func(ctx context.Context, f *fixture) error { return RunInTx(ctx, f.db, nil, transfer) },
		"rolled_back": func(ctx context.Context, f *fixture) error {
			return RunInTx(ctx, f.db, nil, func(context.Context, *sql.Tx) error { return business })
		},
		"exhausted": func(ctx context.Context, f *fixture) error {
			f.Fail(drivertest.Exec, serverErr("40001"))
			return RunInTx(ctx, f.db, nil, transfer, WithPolicy(Policy{MaxAttempts: 1}))
		},
		"refused": func(ctx context.Context, f *fixture) error {
			f.Fail(drivertest.Exec, serverErr("40001")).Matching("last")
			return RunInTx(ctx, f.db, nil, func(ctx context.Context, tx *sql.Tx) error {
				if _, err := f.db.ExecContext(ctx, "INSERT"); err != nil {
					return err
				}
				return transfer(ctx, tx)
			})
		},
		"unknown": func(ctx context.Context, f *fixture) error {
			f.Fail(drivertest.Commit, serverErr("08007"))
			return RunInTx(ctx, f.db, nil, transfer)
		},
		"panicked": func(ctx context.Context, f *fixture) (err error) {
			defer func() { err = fmt.Errorf("recovered %v", recover()) }()
			return RunInTx(ctx, f.db, nil, func(context.Context, *sql.Tx) error { panic("no") })
		},
	} {
		t.Run(want, func(t *testing.T) {
			o := newObservatory(t)
			f := newFixture(t, WithTracerProvider(o.tracers))
			err := run(t.Context(), f)
			if want == "panicked" {
				want = "rolled_back"
			}
			for _, name := range []string{spanTransaction, spanAttempt} {
				i := slices.IndexFunc(o.spans.GetSpans(), func(s tracetest.SpanStub) bool { return s.Name == name })
				if i < 0 {
					t.Fatalf("there is no %s", name)
				}
				s := o.spans.GetSpans()[i]
				if got := value(s, keyOutcome); got != want {
					t.Errorf("%s has outcome %s, want %s", name, got, want)
				}
				if (s.Status.Code == codes.Error) != (err != nil) {
					t.Errorf("%s has status %v, the error is %v", name, s.Status, err)
				}
				if want == "refused" && value(s, keyReason) != "already_committed" {
					t.Errorf("%s has no reason: %v", name, s.Attributes)
				}
			}
		})
	}
}

func TestTheMetrics(t *testing.T) {
	o := newObservatory(t)
	f := newFixture(t, WithMeterProvider(o.meters))
	run := func(options ...RunOption) { _ = RunInTx(t.Context(), f.db, nil, transfer, options...) }
	f.Fail(drivertest.Exec, serverErr("40P01")).Times(2)
	run() // committed after two retries
	f.Fail(drivertest.Commit, serverErr("40003")).Times(1)
	run() // unknown
	_ = RunInTx(t.Context(), f.db, nil, func(ctx context.Context, tx *sql.Tx) error {
		if _, err := f.db.ExecContext(ctx, "INSERT"); err != nil {
			return err
		}
		return errors.Join(transfer(ctx, tx), serverErr("40001"))
	}) // refused
	if err := inTx(t.Context(), f.db, transfer); err != nil { // plain
		t.Fatal(err)
	}

	var data metricdata.ResourceMetrics
	if err := o.reader.Collect(t.Context(), &data); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, scope := range data.ScopeMetrics {
		if scope.Scope.Name != scopeName {
			continue
		}
		for _, m := range scope.Metrics {
			got[m.Name] = m.Unit + " " + points(t, m)
		}
	}
	for name, want := range map[string]string{
		"pgretry.transaction.duration": "s {outcome=committed:2 bounds 9}{outcome=refused:1 bounds 9}{outcome=unknown:1 bounds 9}",
		"pgretry.transaction.attempts": "{attempt} {outcome=committed:2 sum 4}{outcome=refused:1 sum 1}{outcome=unknown:1 sum 1}",
		"pgretry.retries":              "{retry} {db.response.status_code=40P01,class=retryable,mode=closure:2}",
		"pgretry.backoff.duration":     "s {:2 bounds 9}",
		"pgretry.refusals":             "{transaction} {refusal.reason=already_committed:1}",
		"pgretry.commit.unknown":       "{commit} {:1}",

		"pgretry.commit.resolve.duration": "s {commit.fate=unknown:1 bounds 9}",
		"pgretry.connection.lost":         "{connection} {connection.place=commit:1}",
		"pgretry.contention.limit":        "{transaction} {transaction.fingerprint=654ad11cbfcaa1c4:1}",
	} {
		if got[name] != want {
			t.Errorf("%s is %s\nwant %s", name, got[name], want)
		}
	}
	if len(got) != 9 {
		t.Errorf("there are %d metrics: %v", len(got), got)
	}
}

// points prints the data points of a metric, sorted.
func points(t *testing.T, m metricdata.Metrics) string {
	t.Helper()
	set := func(s attribute.Set) string {
		var parts []string
		for _, a := range s.ToSlice() {
			if a.Key != "db.system.name" {
				parts = append(parts, strings.TrimPrefix(string(a.Key), "pgretry.")+"="+a.Value.String())
			}
		}
		return strings.Join(parts, ",")
	}
	var all []string
	switch d := m.Data.(type) {
	case metricdata.Histogram[float64]:
		for _, p := range d.DataPoints {
			all = append(all, fmt.Sprintf("{%s:%d bounds %d}", set(p.Attributes), p.Count, len(p.Bounds)))
		}
	case metricdata.Histogram[int64]:
		for _, p := range d.DataPoints {
			all = append(all, fmt.Sprintf("{%s:%d sum %d}", set(p.Attributes), p.Count, p.Sum))
		}
	case metricdata.Sum[int64]:
		for _, p := range d.DataPoints {
			all = append(all, fmt.Sprintf("{%s:%d}", set(p.Attributes), p.Value))
		}
	case metricdata.Gauge[int64]:
		for _, p := range d.DataPoints {
			all = append(all, fmt.Sprintf("{%s:%d}", set(p.Attributes), p.Value))
		}
	default:
		t.Errorf("%s is a %T", m.Name, d)
	}
	slices.Sort(all)
	return strings.Join(all, "")
}

func TestNothingPersonalIsRecorded(t *testing.T) {
	o := newObservatory(t)
	f := newFixture(t, append(o.options(), WithStatementSpans())...)
	secret := "s3cret"
	f.Fail(drivertest.Exec, &pq.Error{Severity: "ERROR", Code: "22P02", Message: `invalid input syntax for type integer: "` + secret + `"`}).Matching("UPDATE")
	f.Fail(drivertest.Query, &pq.Error{Severity: "ERROR", Code: "40001", Message: secret}).Matching("SELECT").Times(1)
	_ = RunInTx(t.Context(), f.db, nil, func(ctx context.Context, tx *sql.Tx) error {
		var n int
		if err := tx.QueryRowContext(ctx, "SELECT '"+secret+"'").Scan(&n); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, "UPDATE t SET a = $1", secret)
		return err
	})
	if got := fmt.Sprintf("%+v", o.spans.GetSpans()); strings.Contains(got, secret) || !strings.Contains(got, "22P02") {
		t.Errorf("spans hold what they should not, or not what they should:\n%s", got)
	}
	var data metricdata.ResourceMetrics
	if err := o.reader.Collect(t.Context(), &data); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprintf("%+v", data); strings.Contains(got, secret) {
		t.Errorf("metrics hold what they should not:\n%s", got)
	}
}

func TestOtelsqlsOptionsWinOverOurs(t *testing.T) {
	o := newObservatory(t)
	f := newFixture(t, append(o.options(), WithStatementSpans(otelsql.WithSpanOptions(otelsql.SpanOptions{})))...)
	if _, err := f.db.ExecContext(t.Context(), "UPDATE t SET a = 1"); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprintf("%+v", o.spans.GetSpans()); !strings.Contains(got, "UPDATE t SET a = 1") {
		t.Errorf("the statement's text was asked for and is not there:\n%s", got)
	}
}

func TestOtelsqlIsInThePathOnlyWhenAskedFor(t *testing.T) {
	o := newObservatory(t)
	for name, c := range map[string]struct {
		options []Option
		want    bool
	}{
		"nothing":          {nil, false},
		"policy":           {[]Option{WithPolicy(Policy{})}, false},
		"tracer provider":  {[]Option{WithTracerProvider(o.tracers)}, true},
		"meter provider":   {[]Option{WithMeterProvider(o.meters)}, true},
		"statement spans":  {[]Option{WithStatementSpans()}, true},
		"attributes alone": {[]Option{WithAttributes(attribute.Int("a", 1))}, false},
	} {
		c1, err := NewConnector(drivertest.New().Connector(), c.options...)
		if err != nil {
			t.Fatal(err)
		}
		if _, direct := c1.inner.(tapConnector); direct == c.want {
			t.Errorf("%s: otelsql in the path is %t, want %t", name, !direct, c.want)
		}
	}
	for dsn, want := range map[string]bool{"": false, "pgretry_statement_spans=true": true, "pgretry_statement_spans=false": false} {
		c, err := (&Driver{}).OpenConnector(dsn)
		if err != nil {
			t.Fatal(err)
		}
		if _, direct := c.(*Connector).inner.(tapConnector); direct == want {
			t.Errorf("%s: otelsql in the path is %t, want %t", dsn, !direct, want)
		}
	}
}
