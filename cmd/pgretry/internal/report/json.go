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
	Closure                *spantree.Span  `json:"closure_transaction"`
	Replay                 *spantree.Span  `json:"replayed_transaction"`
}

type documentEntry struct {
	Workload          string           `json:"workload"`
	Side              string           `json:"side"`
	Commits           int64            `json:"commits"`
	Errors            int64            `json:"errors"`
	ErrorsBySQLState  map[string]int64 `json:"errors_by_sqlstate"`
	ConflictsSeen     int64            `json:"conflicts_seen"`
	ConflictsHidden   int64            `json:"conflicts_hidden"`
	HiddenShare       *float64         `json:"hidden_share"` // null without conflicts
	NotHiddenBecause  map[string]int64 `json:"not_hidden_because"`
	Replays           int64            `json:"replays"`
	PartialReplays    int64            `json:"partial_replays"`
	RetriesBySQLState map[string]int64 `json:"retries_by_sqlstate"`
	Attempts          int64            `json:"attempts"`
	AttemptsPerCommit float64          `json:"attempts_per_commit"`
	P50Seconds        float64          `json:"p50_seconds"`
	P99Seconds        float64          `json:"p99_seconds"`
	ElapsedSeconds    float64          `json:"elapsed_seconds"`
	InvariantHeld     bool             `json:"invariant_held"`
	Violation         string           `json:"violation,omitempty"`
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
		Closure:                d.Closure,
		Replay:                 d.Replay,
	}
	for _, r := range d.Results {
		doc.Results = append(doc.Results, entry(r))
	}
	encoder := json.NewEncoder(out)
	encoder.SetIndent("", "  ")
	return encoder.Encode(doc)
}

func entry(r runner.Result) documentEntry {
	e := documentEntry{
		Workload: r.Workload, Side: r.Side,
		Commits: r.Commits, Errors: r.Errors, ErrorsBySQLState: object(r.Codes),
		ConflictsSeen: r.Conflicts.Seen, ConflictsHidden: r.Conflicts.Hidden,
		NotHiddenBecause: object(r.Conflicts.Unhidden),
		Replays:          r.Conflicts.Replays, PartialReplays: r.Conflicts.Partial,
		RetriesBySQLState: object(r.Conflicts.Retries),
		Attempts:          r.Attempts, AttemptsPerCommit: r.AttemptsPerCommit(),
		P50Seconds: r.P50.Seconds(), P99Seconds: r.P99.Seconds(),
		ElapsedSeconds: r.Elapsed.Seconds(),
		InvariantHeld:  r.Violation == nil,
	}
	if share, ok := r.Conflicts.HiddenShare(); ok {
		e.HiddenShare = &share
	}
	if r.Violation != nil {
		e.Violation = r.Violation.Error()
	}
	return e
}

// object makes an object of counts even where there are none: {} and not null.
func object[K ~string](counts map[K]int64) map[string]int64 {
	o := make(map[string]int64, len(counts))
	for key, n := range counts {
		o[string(key)] = n
	}
	return o
}
