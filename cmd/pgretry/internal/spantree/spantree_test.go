package spantree_test

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pgretry/pgretry/cmd/pgretry/internal/sandbox"
	"github.com/pgretry/pgretry/cmd/pgretry/internal/spantree"
	"github.com/pgretry/pgretry/internal/pgserver/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

func newSandbox(t *testing.T) *sandbox.Sandbox {
	t.Helper()
	dsn := pgtest.DSN(t)
	t.Cleanup(func() { goleak.VerifyNone(t, goleak.IgnoreCurrent()) })
	box, err := sandbox.Open(t.Context(), dsn, sandbox.Settings{DeadlockTimeout: 10 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := box.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return box
}

// wanted is what an attempt's span says.
type wanted struct{ kind, outcome, sqlstate string }

func mustHaveAttempts(t *testing.T, root *spantree.Span, want []wanted) {
	t.Helper()
	var attempts []*spantree.Span
	for _, child := range root.Children {
		if child.Name == "pgretry.attempt" {
			attempts = append(attempts, child)
		}
	}
	if len(attempts) != len(want) {
		t.Fatalf("%d attempts, want %d:\n%v", len(attempts), len(want), root)
	}
	for i, attempt := range attempts {
		var got wanted
		got.kind, _ = attempt.Attributes["pgretry.attempt.kind"].(string)
		got.outcome, _ = attempt.Attributes["pgretry.outcome"].(string)
		got.sqlstate, _ = attempt.Attributes["db.response.status_code"].(string)
		if got != want[i] {
			t.Errorf("attempt %d is %+v, want %+v", i+1, got, want[i])
		}
		if number := attempt.Attributes["pgretry.attempt"]; number != int64(i+1) {
			t.Errorf("attempt %d has the number %v", i+1, number)
		}
		failed := want[i].sqlstate != ""
		if _, waited := attempt.Attributes["pgretry.backoff"]; waited != failed {
			t.Errorf("attempt %d: a wait is recorded: %t", i+1, waited)
		}
		if attempt.Failed != failed {
			t.Errorf("attempt %d: failed is %t", i+1, attempt.Failed)
		}
		if len(attempt.Children) == 0 {
			t.Errorf("attempt %d has no statement spans", i+1)
		}
		if attempt.Start < 0 || attempt.Start+attempt.Duration > root.Duration {
			t.Errorf("attempt %d is not within the transaction", i+1)
		}
	}
}

func TestTheClosureOnShowTakesThreeAttempts(t *testing.T) {
	root, err := spantree.Capture(t.Context(), newSandbox(t))
	if err != nil {
		t.Fatal(err)
	}
	if root.Name != "pgretry.transaction" || root.Failed {
		t.Errorf("the root is %+v", root)
	}
	mustHaveAttempts(t, root, []wanted{{"closure", "retried", "40P01"}, {"closure", "retried", "40001"}, {"closure", "committed", ""}})
}

func TestTheReplayOnShowTakesTwoAttemptsBelowTheApplicationsSpan(t *testing.T) {
	root, err := spantree.CaptureReplay(t.Context(), newSandbox(t))
	if err != nil {
		t.Fatal(err)
	}
	if root.Name != "POST /greeting" || root.Failed {
		t.Errorf("the root is %+v", root)
	}
	mustHaveAttempts(t, root, []wanted{{"replay", "retried", "40P01"}, {"replay", "committed", ""}})
}

func TestACaptureThatIsInterruptedLeavesNothingRunning(t *testing.T) {
	for name, capture := range map[string]func(context.Context, *sandbox.Sandbox) (*spantree.Span, error){
		"closure": spantree.Capture, "replay": spantree.CaptureReplay,
	} {
		t.Run(name, func(t *testing.T) {
			box := newSandbox(t)
			ctx, cancel := context.WithTimeout(t.Context(), 40*time.Millisecond)
			defer cancel()
			if _, err := capture(ctx, box); err == nil {
				t.Error("it was not interrupted")
			}
		})
	}
}

func TestATreeIsDrawnALinePerSpan(t *testing.T) {
	root := &spantree.Span{
		Name: "pgretry.transaction", Duration: 12345 * time.Microsecond,
		Attributes: map[string]any{"pgretry.transaction.name": "greeting", "pgretry.outcome": "committed"},
		Children: []*spantree.Span{
			{
				Name: "pgretry.attempt", Duration: 10 * time.Millisecond, Failed: true,
				Attributes: map[string]any{
					"pgretry.attempt": int64(1), "pgretry.outcome": "retried", "pgretry.transaction.name": "greeting",
					"db.response.status_code": "40P01", "pgretry.backoff": 0.0021, "db.namespace": "postgres",
				},
				Children: []*spantree.Span{{Name: "sql.conn.exec", Duration: 123 * time.Microsecond}},
				Events:   []spantree.Event{{Name: "pgretry.deadlock", Attributes: map[string]any{"pgretry.deadlock.cycle": "1 -> 2 -> 1"}}},
			},
			{
				Name: "pgretry.attempt", Duration: time.Millisecond,
				Attributes: map[string]any{"pgretry.attempt": int64(2), "pgretry.attempt.kind": "closure", "pgretry.outcome": "committed"},
			},
			{
				Name: "pgretry.attempt", Duration: time.Millisecond,
				Attributes: map[string]any{"pgretry.attempt": int64(3), "pgretry.attempt.kind": "replay", "pgretry.outcome": "committed"},
			},
		},
	}
	want := strings.TrimPrefix(`
── pgretry.transaction  12.35ms  pgretry.transaction.name=greeting  pgretry.outcome=committed
   ├─ pgretry.attempt 1  10ms  pgretry.outcome=retried  db.response.status_code=40P01  pgretry.backoff=2.1ms  status=error
   │  ├─ sql.conn.exec  120µs
   │  ╰─ event pgretry.deadlock  1 -> 2 -> 1
   ├─ pgretry.attempt 2  1ms  pgretry.outcome=committed
   ╰─ pgretry.attempt 3 (replay)  1ms  pgretry.outcome=committed`, "\n")
	if got := root.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
