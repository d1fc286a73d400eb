package report

import (
	"encoding/json"
	"io"
)

type faultsDocument struct {
	ServerVersion string        `json:"server_version"`
	Seed          uint64        `json:"seed"`
	LoneWrites    []loneEntry   `json:"lone_writes"`
	Commits       []commitEntry `json:"commits"`
	Banks         []bankEntry   `json:"banks"`
}

type loneEntry struct {
	With         string `json:"with"`
	Writes       int    `json:"writes"`
	NeverApplied int    `json:"never_applied"`
	AppliedOnce  int    `json:"applied_once"`
	Twice        int    `json:"applied_twice"`
	ThreeTimes   int    `json:"applied_three_times"`
	ToldDone     int    `json:"told_done"`
	ToldLost     int    `json:"told_lost"`
	ToldFailed   int    `json:"told_failed"`
	ToldWrongly  int    `json:"told_wrongly"`
}

type commitEntry struct {
	With             string  `json:"with"`
	Meets            string  `json:"commit_meets"`
	Trials           int     `json:"trials"`
	Committed        int     `json:"committed"`
	ToldCommitted    int     `json:"told_committed"`
	ToldNotCommitted int     `json:"told_not_committed"`
	ToldUnknown      int     `json:"told_unknown"`
	ToldWrongly      int     `json:"told_wrongly"`
	MedianSeconds    float64 `json:"median_seconds_to_verdict"`
}

type bankEntry struct {
	With                   string         `json:"with"`
	Workers                int            `json:"workers"`
	DurationSeconds        float64        `json:"duration_seconds"`
	Faults                 map[string]int `json:"faults"`
	Transfers              int            `json:"transfers"`
	ToldCommitted          int            `json:"told_committed"`
	ToldFailed             int            `json:"told_failed"`
	ToldUnknown            int            `json:"told_unknown"`
	Errors                 map[string]int `json:"errors"`
	BookedTwice            int            `json:"booked_twice"`
	ToldCommittedNotBooked int            `json:"told_committed_not_booked"`
	ToldFailedBooked       int            `json:"told_failed_booked"`
	CommittedAfterwards    int            `json:"committed_after_the_last_fault"`
	BalancesRight          bool           `json:"balances_right"`
}

// WriteFaultsJSON writes one JSON object and a line end.
func WriteFaultsJSON(out io.Writer, f Faults) error {
	doc := faultsDocument{ServerVersion: f.ServerVersion, Seed: f.Seed}
	for _, r := range f.lone() {
		doc.LoneWrites = append(doc.LoneWrites, loneEntry{
			With: r.Driver, Writes: r.Trials,
			NeverApplied: r.Applied[0], AppliedOnce: r.Applied[1], Twice: r.Applied[2], ThreeTimes: r.Applied[3],
			ToldDone: r.Affirmed, ToldLost: r.Open, ToldFailed: r.Denied, ToldWrongly: r.Wrong,
		})
	}
	for _, report := range f.commits() {
		for _, r := range report.Results {
			doc.Commits = append(doc.Commits, commitEntry{
				With: report.Driver, Meets: r.Scenario, Trials: r.Trials, Committed: r.There,
				ToldCommitted: r.Affirmed, ToldNotCommitted: r.Denied, ToldUnknown: r.Open, ToldWrongly: r.Wrong,
				MedianSeconds: r.Median.Seconds(),
			})
		}
	}
	for _, r := range f.banks() {
		doc.Banks = append(doc.Banks, bankEntry{
			With: r.Side, Workers: r.Workers, DurationSeconds: r.Duration.Seconds(), Faults: r.Faults, Errors: r.Told,
			Transfers: r.Transfers, ToldCommitted: r.Committed, ToldFailed: r.Failed, ToldUnknown: r.Unknown,
			BookedTwice: r.Doubled, ToldCommittedNotBooked: r.Missing, ToldFailedBooked: r.Denied,
			CommittedAfterwards: r.CommittedAfterwards, BalancesRight: r.WrongBalances == 0,
		})
	}
	encoder := json.NewEncoder(out)
	encoder.SetIndent("", "  ")
	return encoder.Encode(doc)
}
