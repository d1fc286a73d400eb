package report_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/pgretry/pgretry/cmd/pgretry/internal/report"
	"github.com/pgretry/pgretry/cmd/pgretry/internal/runner"
	"github.com/pgretry/pgretry/cmd/pgretry/internal/spantree"
)

func sample() report.Demo {
	return report.Demo{
		ServerVersion: "18.1", DeadlockTimeout: 10 * time.Millisecond,
		Workers: 8, Duration: 2500 * time.Millisecond, Seed: 42,
		Results: []runner.Result{
			{
				Workload: "transfer/rr", Side: "lib/pq", Commits: 200, Errors: 60, Attempts: 260,
				Codes: map[string]int64{"40P01": 10, "40001": 50}, Conflicts: runner.Conflicts{Seen: 60},
				P50: 1500 * time.Microsecond, P99: 123450 * time.Microsecond, Elapsed: 2600 * time.Millisecond,
			},
			{
				Workload: "transfer/rr", Side: "driver only", Commits: 250, Errors: 14, Attempts: 300,
				Codes: map[string]int64{"40001": 14},
				P50:   time.Millisecond, P99: 60 * time.Millisecond, Elapsed: 2550 * time.Millisecond,
				Conflicts: runner.Conflicts{Seen: 14, Hidden: 6, Replays: 9, Unhidden: map[runner.Cause]int64{"diverged": 12, "exhausted": 2}},
			},
			{
				Workload: "transfer/rr", Side: "RunInTx", Commits: 300, Attempts: 375,
				P50: 900 * time.Microsecond, P99: 50 * time.Millisecond, Elapsed: 2510 * time.Millisecond,
				Conflicts: runner.Conflicts{Hidden: 75, Retries: map[string]int64{"40P01": 5, "40001": 70}},
			},
			{Workload: "ids", Side: "lib/pq", Errors: 7, Codes: map[string]int64{"40P01": 7}, Attempts: 7, Conflicts: runner.Conflicts{Seen: 7}},
			{
				Workload: "ids", Side: "driver only", Commits: 9000, Errors: 2, Codes: map[string]int64{"40P01": 2}, Attempts: 9002,
				Conflicts: runner.Conflicts{Seen: 2, Hidden: 4998, Replays: 5000, Partial: 4000, Unhidden: map[runner.Cause]int64{"diverged": 1, "journal_full": 1}},
			},
			{Workload: "ids", Side: "RunInTx", Commits: 10, Attempts: 10, Violation: errors.New("ids: the number of lines is 29 instead of 30")},
		},
		Closure: &spantree.Span{Name: "pgretry.transaction", Duration: time.Millisecond},
		Replay:  &spantree.Span{Name: "POST /greeting", Duration: 2 * time.Millisecond},
	}
}

func TestTheTableHasALinePerWorkloadAndSide(t *testing.T) {
	var out bytes.Buffer
	if err := report.WriteText(&out, sample()); err != nil {
		t.Fatal(err)
	}
	want := strings.TrimPrefix(`
 workload     with         commits      errors  conflicts    share    attempts  p50    p99  invariant
                                          seen     hidden   hidden  per commit   ms     ms
──────────────────────────────────────────────────────────────────────────────────────────────────────
 transfer/rr  lib/pq           200  50 × 40001          0    0.0 %        1.30  1.5  123.5  held
                                    10 × 40P01
              driver only      250  14 × 40001          6   30.0 %        1.20  1.0   60.0  held
              RunInTx          300           0         75  100.0 %        1.25  0.9   50.0  held
──────────────────────────────────────────────────────────────────────────────────────────────────────
 ids          lib/pq             0   7 × 40P01          0    0.0 %           –    –      –  held
              driver only     9000   2 × 40P01       4998   99.9 %        1.00    –      –  held
              RunInTx           10           0          0        –        1.00    –      –  VIOLATED

PostgreSQL 18.1, deadlock_timeout 10ms, 8 workers, 2.5s per workload and side, seed 42.
All sides run the same transactions; "driver only" differs from "lib/pq" in the driver's name alone.
Errors are those the application saw; a conflict is hidden if the transaction was run again instead.
p50 and p99 are of committed transactions, waits and repetitions included.
lib/pq: 67 of 267 transactions failed.
driver only: 16 of 9266 transactions failed; 5004 of 5020 conflicts were hidden (99.7 %).
RunInTx: 0 of 310 transactions failed; it survived 5 deadlocks and 70 serialization failures.

Conflicts that the application saw with "driver only", and why they could not be hidden:
 13  run again, a statement showed something else than the application had already been shown
     transfer/rr 12, ids 1
  2  the limit of attempts or of time was reached
     transfer/rr 2
  1  the transaction was too large to remember
     ids 1

One transaction with RunInTx, as OpenTelemetry saw it (REPEATABLE READ; rivals made it fail twice):
── pgretry.transaction  1ms

Another without a closure (READ COMMITTED; a rival deadlocked with it):
── POST /greeting  2ms
`, "\n")
	if got := out.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestJSONHoldsWhatTheTableHolds(t *testing.T) {
	var out bytes.Buffer
	if err := report.WriteJSON(&out, sample()); err != nil {
		t.Fatal(err)
	}
	var got struct {
		ServerVersion   string  `json:"server_version"`
		DeadlockTimeout float64 `json:"deadlock_timeout_seconds"`
		Workers         int
		Duration        float64 `json:"duration_seconds"`
		Seed            uint64
		Results         []struct {
			Workload, Side            string
			Commits, Errors, Attempts int64
			ErrorsBySQLState          map[string]int64 `json:"errors_by_sqlstate"`
			Seen                      int64            `json:"conflicts_seen"`
			Hidden                    int64            `json:"conflicts_hidden"`
			HiddenShare               *float64         `json:"hidden_share"`
			NotHidden                 map[string]int64 `json:"not_hidden_because"`
			Replays                   int64
			PartialReplays            int64            `json:"partial_replays"`
			Retries                   map[string]int64 `json:"retries_by_sqlstate"`
			AttemptsPerCommit         float64          `json:"attempts_per_commit"`
			P50                       float64          `json:"p50_seconds"`
			P99                       float64          `json:"p99_seconds"`
			Elapsed                   float64          `json:"elapsed_seconds"`
			InvariantHeld             bool             `json:"invariant_held"`
			Violation                 string
		}
		Closure spantree.Span `json:"closure_transaction"`
		Replay  spantree.Span `json:"replayed_transaction"`
	}
	decoder := json.NewDecoder(&out)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&got); err != nil {
		t.Fatal(err)
	}
	if got.ServerVersion != "18.1" || got.DeadlockTimeout != 0.01 || got.Workers != 8 || got.Duration != 2.5 || got.Seed != 42 || len(got.Results) != 6 {
		t.Fatalf("got %+v", got)
	}
	plain, alone, closure, pinned := got.Results[0], got.Results[1], got.Results[2], got.Results[4]
	if plain.Workload != "transfer/rr" || plain.Side != "lib/pq" || plain.Commits != 200 || plain.Errors != 60 || plain.ErrorsBySQLState["40001"] != 50 ||
		plain.Seen != 60 || plain.Hidden != 0 || *plain.HiddenShare != 0 || plain.NotHidden == nil || plain.Retries == nil ||
		plain.Attempts != 260 || plain.AttemptsPerCommit != 1.3 || plain.P50 != 0.0015 || plain.P99 != 0.12345 || plain.Elapsed != 2.6 || !plain.InvariantHeld {
		t.Errorf("lib/pq: got %+v", plain)
	}
	if alone.Side != "driver only" || alone.Seen != 14 || alone.Hidden != 6 || *alone.HiddenShare != 0.3 || alone.Replays != 9 ||
		len(alone.NotHidden) != 2 || alone.NotHidden["diverged"] != 12 || alone.NotHidden["exhausted"] != 2 {
		t.Errorf("driver only: got %+v", alone)
	}
	if pinned.PartialReplays != 4000 || pinned.NotHidden["journal_full"] != 1 || *pinned.HiddenShare != 0.9996 {
		t.Errorf("driver only: got %+v", pinned)
	}
	if closure.Side != "RunInTx" || closure.Retries["40P01"] != 5 || closure.Retries["40001"] != 70 || closure.ErrorsBySQLState == nil || len(closure.ErrorsBySQLState) != 0 {
		t.Errorf("RunInTx: got %+v", closure)
	}
	if last := got.Results[5]; last.InvariantHeld || last.Violation != "ids: the number of lines is 29 instead of 30" || last.HiddenShare != nil {
		t.Errorf("violation: got %+v", last)
	}
	if got.Closure.Name != "pgretry.transaction" || got.Closure.Duration != time.Millisecond || got.Replay.Name != "POST /greeting" {
		t.Errorf("transactions: got %+v and %+v", got.Closure, got.Replay)
	}
}

func TestWhatWasPromisedAndNotKeptIsNamed(t *testing.T) {
	demo := sample()
	want := "pgretry (RunInTx) violated an invariant: ids: the number of lines is 29 instead of 30"
	if err := demo.Broken(); err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	demo.Results = demo.Results[:5]
	if err := demo.Broken(); err != nil {
		t.Errorf("got %v though nothing is broken", err)
	}
}

func TestNothingIsExplainedAndNoTreeIsDrawnWhereThereIsNone(t *testing.T) {
	demo := sample()
	demo.Closure, demo.Replay = nil, nil
	demo.Results = []runner.Result{
		{Workload: "ids", Side: "driver only", Commits: 7, Conflicts: runner.Conflicts{Hidden: 5000, Unhidden: map[runner.Cause]int64{}}},
	}
	var out bytes.Buffer
	if err := report.WriteText(&out, demo); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), " 100.0 % ") || !strings.HasSuffix(out.String(), "0 deadlocks and 0 serialization failures.\n") {
		t.Errorf("got\n%s", out.String())
	}
}

func TestProgressIsALinePerRunAwayFromATerminal(t *testing.T) {
	var out bytes.Buffer
	progress := report.NewProgress(&out, 20)
	steps := []error{
		progress.Say("starting %s", "PostgreSQL"),
		progress.Begin("crossing", "lib/pq"),
		progress.Observe(runner.Progress{Done: 0.5, Commits: 3}),
		progress.End(runner.Result{Commits: 12, Errors: 34}),
		progress.Begin("transfer/write", "driver only"),
		progress.End(runner.Result{Commits: 56}),
		progress.Close(),
	}
	if err := errors.Join(steps...); err != nil {
		t.Fatal(err)
	}
	want := `starting PostgreSQL
[ 1/20] crossing       lib/pq          12 commits     34 errors
[ 2/20] transfer/write driver only     56 commits      0 errors
`
	if got := out.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
