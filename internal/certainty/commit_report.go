package certainty

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
)

// CommitReport is what a run of [Commits] found.
type CommitReport struct {
	// Driver is the name of the driver that was tried, Outcome its
	// pgretry_commit_outcome, Server the server's version.
	Driver, Outcome, Server string
	// Results are those of the scenarios, in the order they ran.
	Results []*CommitResult
	// NotRun are the names of scenarios that need a server of their own, where
	// PGRETRY_DSN named another.
	NotRun []string
}

// CommitResult is what one scenario found. Its counts are of transactions.
type CommitResult struct {
	Scenario string
	Trials   int
	// Affirmed were reported committed, Denied not committed, Open unknown.
	Affirmed, Denied, Open int
	// There is how many were in the database at last.
	There int
	// Wrong were reported one way and were the other, or were there twice, which
	// Doubled counts.
	Wrong, Doubled int
	// Missed were not hit by the fault: they ended before it.
	Missed int
	// Stuck are those whose verdict came only when their connection was cut at last.
	Stuck int
	// Median and P99 are of the time from the fault to the verdict.
	Median, P99 time.Duration
	// Reissued is how many of the transactions' ids belonged to another transaction
	// after a crash.
	Reissued int

	mu         sync.Mutex
	waited     []time.Duration
	violations []string
}

// commitFinding is what was found of one transaction.
type commitFinding struct {
	id     string
	err    error // what was told
	claim  commitClaim
	truth  commitTruth
	early  bool // reported committed before it was replicated
	struck bool
	stuck  bool          // the verdict came when the connection was cut, at last
	waited time.Duration // from the fault to the verdict
}

// commitListed is how many violations of a scenario are kept in words.
const commitListed = 10

// add counts a finding.
func (r *CommitResult) add(f commitFinding) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Trials++
	switch f.claim {
	case commitAffirmed:
		r.Affirmed++
	case commitDenied:
		r.Denied++
	case commitOpen:
		r.Open++
	}
	if f.truth.most > 0 {
		r.There++
	}
	if f.truth.most > 1 {
		r.Doubled++
	}
	if f.stuck {
		r.Stuck++
	}
	if f.struck {
		r.waited = append(r.waited, f.waited)
	} else {
		r.Missed++
	}
	fault := commitJudgement(f.claim, f.truth)
	if fault == "" && f.early && f.claim == commitAffirmed {
		fault = "it was reported committed before the standby had it"
	}
	if fault == "" {
		return
	}
	r.Wrong++
	if len(r.violations) < commitListed {
		r.violations = append(r.violations, fmt.Sprintf("%s: %s (the application was told: %T %v)", f.id, fault, f.err, f.err))
	}
}

// finish works out the quantiles.
func (r *CommitResult) finish() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Median, r.P99 = quantile(r.waited, 0.5), quantile(r.waited, 0.99)
}

// Total sums the scenarios up.
func (r *CommitReport) Total() *CommitResult {
	total := &CommitResult{Scenario: "all"}
	for _, s := range r.Results {
		total.Trials += s.Trials
		total.Affirmed += s.Affirmed
		total.Denied += s.Denied
		total.Open += s.Open
		total.There += s.There
		total.Wrong += s.Wrong
		total.Doubled += s.Doubled
		total.Missed += s.Missed
		total.Reissued += s.Reissued
		total.Stuck += s.Stuck
		total.waited = append(total.waited, s.waited...)
	}
	total.finish()
	return total
}

// Broken says in an error what was wrong, nil if nothing was.
func (r *CommitReport) Broken() error {
	var all []error
	for _, s := range r.Results {
		for _, violation := range s.violations {
			all = append(all, fmt.Errorf("%s, %s: %s", r.Driver, s.Scenario, violation))
		}
		if unlisted := s.Wrong - len(s.violations); unlisted > 0 {
			all = append(all, fmt.Errorf("%s, %s: and %d more", r.Driver, s.Scenario, unlisted))
		}
	}
	return errors.Join(all...)
}

// Markdown returns a table with a line for each scenario and one for their sum.
func (r *CommitReport) Markdown() string {
	header := []string{
		"COMMIT meets", "trials", "told committed", "told not committed", "told unknown", "truly committed",
		"wrong", "doubled", "median to verdict", "p99", "remarks",
	}
	var rows [][]string
	for _, s := range append(r.Results[:len(r.Results):len(r.Results)], r.Total()) {
		row := []string{s.Scenario}
		for _, n := range []int{s.Trials, s.Affirmed, s.Denied, s.Open, s.There, s.Wrong, s.Doubled} {
			row = append(row, fmt.Sprint(n))
		}
		rows = append(rows, append(row, commitMillis(s.Median), commitMillis(s.P99), s.remarks()))
	}
	var text strings.Builder
	text.WriteString(markdown(header, rows))
	if len(r.NotRun) > 0 {
		fmt.Fprintf(&text, "\nNot run, as they need a server of their own: %s.\n", strings.Join(r.NotRun, "; "))
	}
	return text.String()
}

func (r *CommitResult) remarks() string {
	var remarks []string
	if r.Missed > 0 {
		remarks = append(remarks, fmt.Sprintf("%d ended before the fault", r.Missed))
	}
	if r.Stuck > 0 {
		remarks = append(remarks, fmt.Sprintf("%d had to be cut to get an answer", r.Stuck))
	}
	if r.Reissued > 0 {
		remarks = append(remarks, fmt.Sprintf("%d ids issued again", r.Reissued))
	}
	return strings.Join(remarks, ", ")
}

func commitMillis(d time.Duration) string {
	if d == 0 {
		return "–"
	}
	return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
}
