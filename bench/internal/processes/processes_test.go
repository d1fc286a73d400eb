package processes_test

import (
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pgretry/pgretry/bench/internal/processes"
	"github.com/pgretry/pgretry/bench/internal/result"
	"github.com/pgretry/pgretry/bench/internal/target"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == processes.Argument {
		os.Exit(processes.Main())
	}
	goleak.VerifyTestMain(m)
}

func TestProcessesShareTheWorkAndTheInvariantHolds(t *testing.T) {
	server, err := target.Start(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	plan := processes.Plan{
		Conditions: result.Conditions{Workload: "upserts", Workers: 4, DeadlockTimeout: 10 * time.Millisecond},
		Processes:  2, Window: 100 * time.Millisecond, Patience: 30 * time.Second, Seed: 1,
	}
	group, err := processes.Start(t.Context(), server, plan)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := group.Turn(t.Context()); err != nil {
			t.Error(err)
		}
	}
	seen := group.Seen()
	if err := group.Close(); err != nil {
		t.Error(err)
	}
	if seen.Conditions != plan.Conditions || seen.Processes != 2 || len(seen.Rounds) != 2 {
		t.Errorf("got %+v", seen)
	}
	if seen.Violation != "" || seen.Unchecked != "" {
		t.Errorf("got %s%s", seen.Violation, seen.Unchecked)
	}
	for _, run := range seen.Rounds {
		if run.Committed == 0 || run.Lost() > 0 || run.Window != plan.Window {
			t.Errorf("got %+v", run)
		}
	}
}

func TestAProcessThatFailsIsAnError(t *testing.T) {
	server, err := target.Start(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	group, err := processes.Start(t.Context(), server, processes.Plan{
		Conditions: result.Conditions{Workload: "crossing", Workers: 2, DeadlockTimeout: 10 * time.Millisecond},
		Processes:  2, Window: 10 * time.Millisecond, Seed: 1,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := group.Turn(t.Context()); err == nil {
		t.Error("a turn without a server succeeded")
	}
	if err := group.Close(); err == nil {
		t.Error("the processes ended well")
	}
}
