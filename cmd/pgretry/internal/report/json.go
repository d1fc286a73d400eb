package report

import (
	"encoding/json"
	"io"

	"github.com/pgretry/pgretry/cmd/pgretry/internal/runner"
	"github.com/pgretry/pgretry/cmd/pgretry/internal/spantree"
)

type document struct {
	ServerVersion          string          `json:"server_version"`
	DeadlockTimeoutSeconds float64         `json:"deadlock_timeout_seconds"`
	Workers                int             `json:"workers"`
	DurationSeconds        float64         `json:"duration_seconds"`
	Seed                   uint64          `json:"seed"`
	Results                []documentEntry `json:"results"`
	Transaction            *spantree.Span  `json:"transaction"`
}

type documentEntry struct {
	Workload                      string           `json:"workload"`
	Driver                        string           `json:"driver"`
	Commits                       int64            `json:"commits"`
	Errors                        int64            `json:"errors"`
	ErrorsBySQLState              map[string]int64 `json:"errors_by_sqlstate"`
	Attempts                      int64            `json:"attempts"`
	AttemptsPerCommit             float64          `json:"attempts_per_commit"`
	P50Seconds                    float64          `json:"p50_seconds"`
	P99Seconds                    float64          `json:"p99_seconds"`
	DeadlocksSurvived             int64            `json:"deadlocks_survived"`
	SerializationFailuresSurvived int64            `json:"serialization_failures_survived"`
	ElapsedSeconds                float64          `json:"elapsed_seconds"`
	InvariantHeld                 bool             `json:"invariant_held"`
	Violation                     string           `json:"violation,omitempty"`
}

// WriteJSON writes one JSON object and a line end.
func WriteJSON(out io.Writer, d Demo) error {
	doc := document{
		ServerVersion:          d.ServerVersion,
		DeadlockTimeoutSeconds: d.DeadlockTimeout.Seconds(),
		Workers:                d.Workers,
		DurationSeconds:        d.Duration.Seconds(),
		Seed:                   d.Seed,
		Results:                make([]documentEntry, 0, len(d.Results)),
		Transaction:            d.Transaction,
	}
	for _, r := range d.Results {
		doc.Results = append(doc.Results, entry(r))
	}
	encoder := json.NewEncoder(out)
	encoder.SetIndent("", "  ")
	return encoder.Encode(doc)
}

func entry(r runner.Result) documentEntry {
	codes := r.Codes
	if codes == nil {
		codes = map[string]int64{} // an object, not null
	}
	e := documentEntry{
		Workload: r.Workload, Driver: r.Side,
		Commits: r.Commits, Errors: r.Errors, ErrorsBySQLState: codes,
		Attempts: r.Attempts, AttemptsPerCommit: r.AttemptsPerCommit(),
		P50Seconds: r.P50.Seconds(), P99Seconds: r.P99.Seconds(),
		DeadlocksSurvived: r.Deadlocks, SerializationFailuresSurvived: r.SerializationFailures,
		ElapsedSeconds: r.Elapsed.Seconds(),
		InvariantHeld:  r.Violation == nil,
	}
	if r.Violation != nil {
		e.Violation = r.Violation.Error()
	}
	return e
}
