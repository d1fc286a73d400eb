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
				Codes: map[string]int64{"40P01": 10, "40001": 50},
				P50:   1500 * time.Microsecond, P99: 123450 * time.Microsecond, Elapsed: 2600 * time.Millisecond,
			},
			{
				Workload: "transfer/rr", Side: "pgretry", Commits: 300, Attempts: 375,
				P50: 900 * time.Microsecond, P99: 50 * time.Millisecond, Deadlocks: 5, SerializationFailures: 70, Elapsed: 2510 * time.Millisecond,
			},
			{Workload: "ids", Side: "lib/pq", Errors: 7, Codes: map[string]int64{"40P01": 7}, Attempts: 7},
			{Workload: "ids", Side: "pgretry", Commits: 10, Attempts: 10, Violation: errors.New("ids: the number of lines is 29 instead of 30")},
		},
		Transaction: &spantree.Span{Name: "pgretry.transaction", Duration: time.Millisecond},
	}
}

func TestTheTableHasALinePerWorkloadAndDriver(t *testing.T) {
	var out bytes.Buffer
	if err := report.WriteText(&out, sample()); err != nil {
		t.Fatal(err)
	}
	want := strings.TrimPrefix(`
 workload     driver   commits      errors    attempts  p50    p99  deadlocks  serialization  invariant
                                      seen  per commit   ms     ms   survived       failures
                                                                                    survived
────────────────────────────────────────────────────────────────────────────────────────────────────────
 transfer/rr  lib/pq       200  50 × 40001        1.30  1.5  123.5          0              0  held
                                10 × 40P01
              pgretry      300           0        1.25  0.9   50.0          5             70  held
────────────────────────────────────────────────────────────────────────────────────────────────────────
 ids          lib/pq         0   7 × 40P01           –    –      –          0              0  held
              pgretry       10           0        1.00    –      –          0              0  VIOLATED

PostgreSQL 18.1, deadlock_timeout 10ms, 8 workers, 2.5s per workload and driver, seed 42.
Errors are those the application saw; p50 and p99 are of committed transactions, waits and repetitions included.
lib/pq: 67 of 267 transactions failed.
pgretry: 0 of 310 transactions failed; it survived 5 deadlocks and 70 serialization failures.

One transaction, as OpenTelemetry saw it (REPEATABLE READ; rivals made it fail twice):
── pgretry.transaction  1ms
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
			Workload, Driver          string
			Commits, Errors, Attempts int64
			ErrorsBySQLState          map[string]int64 `json:"errors_by_sqlstate"`
			AttemptsPerCommit         float64          `json:"attempts_per_commit"`
			P50                       float64          `json:"p50_seconds"`
			P99                       float64          `json:"p99_seconds"`
			Deadlocks                 int64            `json:"deadlocks_survived"`
			SerializationFailures     int64            `json:"serialization_failures_survived"`
			Elapsed                   float64          `json:"elapsed_seconds"`
			InvariantHeld             bool             `json:"invariant_held"`
			Violation                 string
		}
		Transaction spantree.Span
	}
	decoder := json.NewDecoder(&out)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&got); err != nil {
		t.Fatal(err)
	}
	if got.ServerVersion != "18.1" || got.DeadlockTimeout != 0.01 || got.Workers != 8 || got.Duration != 2.5 || got.Seed != 42 || len(got.Results) != 4 {
		t.Errorf("got %+v", got)
	}
	plain, retrying := got.Results[0], got.Results[1]
	if plain.Workload != "transfer/rr" || plain.Driver != "lib/pq" || plain.Commits != 200 || plain.Errors != 60 || plain.ErrorsBySQLState["40001"] != 50 ||
		plain.Attempts != 260 || plain.AttemptsPerCommit != 1.3 || plain.P50 != 0.0015 || plain.P99 != 0.12345 || plain.Elapsed != 2.6 || !plain.InvariantHeld {
		t.Errorf("lib/pq: got %+v", plain)
	}
	if retrying.Deadlocks != 5 || retrying.SerializationFailures != 70 || retrying.ErrorsBySQLState == nil || len(retrying.ErrorsBySQLState) != 0 {
		t.Errorf("pgretry: got %+v", retrying)
	}
	if last := got.Results[3]; last.InvariantHeld || last.Violation != "ids: the number of lines is 29 instead of 30" {
		t.Errorf("violation: got %+v", last)
	}
	if got.Transaction.Name != "pgretry.transaction" || got.Transaction.Duration != time.Millisecond {
		t.Errorf("transaction: got %+v", got.Transaction)
	}
}

func TestLostNamesWhatTheApplicationCouldSee(t *testing.T) {
	lost := sample().Lost(runner.Retrying)
	if len(lost) != 1 || lost[0].Workload != "ids" {
		t.Errorf("got %+v, want the violated invariant of ids", lost)
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
		progress.Begin("transfer/ser", "pgretry"),
		progress.End(runner.Result{Commits: 56}),
		progress.Close(),
	}
	if err := errors.Join(steps...); err != nil {
		t.Fatal(err)
	}
	want := `starting PostgreSQL
[ 1/20] crossing     lib/pq       12 commits     34 errors
[ 2/20] transfer/ser pgretry      56 commits      0 errors
`
	if got := out.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
