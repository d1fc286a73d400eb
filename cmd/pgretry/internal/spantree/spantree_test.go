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

func TestTheTransactionOnShowTakesThreeAttempts(t *testing.T) {
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
	root, err := spantree.Capture(t.Context(), box)
	if err != nil {
		t.Fatal(err)
	}
	if root.Name != "pgretry.transaction" || root.Failed {
		t.Errorf("the root is %+v", root)
	}
	var attempts []*spantree.Span
	for _, child := range root.Children {
		if child.Name == "pgretry.attempt" {
			attempts = append(attempts, child)
		}
	}
	want := []struct{ outcome, sqlstate string }{{"retried", "40P01"}, {"retried", "40001"}, {"committed", ""}}
	if len(attempts) != len(want) {
		t.Fatalf("%d attempts, want %d:\n%v", len(attempts), len(want), root)
	}
	for i, attempt := range attempts {
		sqlstate, _ := attempt.Attributes["db.response.status_code"].(string)
		if attempt.Attributes["pgretry.outcome"] != want[i].outcome || sqlstate != want[i].sqlstate {
			t.Errorf("attempt %d ended with %v %s, want %s %s", i+1, attempt.Attributes["pgretry.outcome"], sqlstate, want[i].outcome, want[i].sqlstate)
		}
		if _, waited := attempt.Attributes["pgretry.backoff"]; waited != (want[i].sqlstate != "") {
			t.Errorf("attempt %d: a wait is recorded: %t", i+1, waited)
		}
		if attempt.Failed != (want[i].sqlstate != "") {
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
			{Name: "pgretry.attempt", Duration: time.Millisecond, Attributes: map[string]any{"pgretry.attempt": int64(2), "pgretry.outcome": "committed"}},
		},
	}
	want := strings.TrimPrefix(`
── pgretry.transaction  12.35ms  pgretry.transaction.name=greeting  pgretry.outcome=committed
   ├─ pgretry.attempt 1  10ms  pgretry.outcome=retried  db.response.status_code=40P01  pgretry.backoff=2.1ms  status=error
   │  ├─ sql.conn.exec  120µs
   │  ╰─ event pgretry.deadlock  1 -> 2 -> 1
   ╰─ pgretry.attempt 2  1ms  pgretry.outcome=committed`, "\n")
	if got := root.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
