package pgretry

import (
	"context"
	"database/sql"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.opentelemetry.io/otel"
)

// inProcessOfItsOwn runs the test once more, alone: package otel delegates to the
// first provider installed and never forgets it.
func inProcessOfItsOwn(t *testing.T) bool {
	t.Helper()
	if os.Getenv("PGRETRY_ALONE") == t.Name() {
		return true
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), "PGRETRY_ALONE="+t.Name())
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("%v:\n%s", err, out)
	}
	return false
}

func TestAGlobalProviderInstalledAfterTheDatabaseWasOpenedIsUsed(t *testing.T) {
	if !inProcessOfItsOwn(t) {
		return
	}
	f := newFixture(t)
	f.connector.config.now = time.Now
	if err := RunInTx(t.Context(), f.db, nil, transfer); err != nil {
		t.Fatal(err)
	}
	o := newObservatory(t)
	otel.SetTracerProvider(o.tracers)
	if err := RunInTx(t.Context(), f.db, nil, transfer); err != nil {
		t.Fatal(err)
	}
	if err := Retry(t.Context(), func(ctx context.Context) error { return inTx(ctx, f.db, transfer) }); err != nil {
		t.Fatal(err)
	}
	if err := inTx(t.Context(), f.db, func(context.Context, *sql.Tx) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if got := o.tree(); strings.Count(got, spanTransaction) != 2 || strings.Count(got, spanAttempt) != 3 {
		t.Errorf("the spans are\n%s", got)
	}
}

func TestSpansThatTheGlobalProviderRecordsAreNotMadeTwice(t *testing.T) {
	if !inProcessOfItsOwn(t) {
		return
	}
	global, o := newObservatory(t), newObservatory(t)
	otel.SetTracerProvider(global.tracers)
	f := newFixture(t, WithTracerProvider(o.tracers))
	f.connector.config.now = time.Now
	if err := Retry(t.Context(), func(ctx context.Context) error { return inTx(ctx, f.db, transfer) }); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(global.tree()+o.tree(), spanTransaction); n != 1 {
		t.Errorf("there are %d spans of the transaction:\n%s\n%s", n, global.tree(), o.tree())
	}
	if got := global.tree(); !strings.Contains(got, spanTransaction+" outcome=committed") {
		t.Errorf("the span is not ended:\n%s", got)
	}
}

func TestASpanIsNotMadeForAnAttemptThatIsOver(t *testing.T) {
	o := newObservatory(t)
	var started, ended atomic.Int64
	o.tracers.RegisterSpanProcessor(counter{&started, &ended})
	f := newFixture(t, WithTracerProvider(o.tracers))
	goOn, done := make(chan struct{}), make(chan struct{})
	runs := 0
	var first context.Context
	err := Retry(t.Context(), func(ctx context.Context) error {
		if runs++; runs == 1 {
			first = ctx
			attemptFrom(ctx).sawFailure(ClassRetryable) // as if a database without telemetry had told
			return serverErr("40001")
		}
		go func() {
			defer close(done)
			<-goOn
			_, _ = f.db.ExecContext(first, "SELECT 1") // of the first attempt, late
		}()
		close(goOn)
		<-done
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if started.Load() != ended.Load() {
		t.Errorf("%d spans were started and %d ended:\n%s", started.Load(), ended.Load(), o.tree())
	}
}
