package certainty

import (
	"context"
	"database/sql"
	"errors"
	"flag"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pgretry/pgretry"
	"github.com/pgretry/pgretry/internal/pgserver"
)

var (
	commitTrials  = flag.Int("certainty.commits", 150, "how many COMMITs meet a fault")
	commitOnly    = flag.String("certainty.commits.only", "", "the scenarios to run, separated by semicolons; all if empty")
	commitOutcome = flag.String("certainty.commits.outcome", "", "pgretry_commit_outcome; resolve if empty")
	commitSeed    = flag.Uint64("certainty.commits.seed", 1, "decides when faults strike")
)

// commits runs scenarios and checks that they leave no goroutine.
func commits(t *testing.T, config CommitConfig) *CommitReport {
	t.Helper()
	// Somebody else's server is not to be killed.
	t.Setenv(pgserver.EnvDSN, "")
	before := goleak.IgnoreCurrent()
	config.Seed, config.Logf = *commitSeed, t.Logf
	report, err := Commits(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	goleak.VerifyNone(t, before)
	t.Logf("driver %s, outcome %s, server %s\n%s", report.Driver, report.Outcome, report.Server, report.Markdown())
	return report
}

func openLibPQ(dsn string, _ ...pgretry.Option) (*sql.DB, error) { return sql.Open("postgres", dsn) }

func TestWhatIsToldOfACommitIsTrue(t *testing.T) {
	config := CommitConfig{Trials: *commitTrials, Outcome: *commitOutcome}
	if *commitOnly != "" {
		config.Only = strings.Split(*commitOnly, ";")
	}
	report := commits(t, config)
	if err := report.Broken(); err != nil {
		t.Error(err)
	}
	for _, s := range report.Results {
		if s.Missed == s.Trials {
			t.Errorf("%s: no fault struck", s.Scenario)
		}
		if strings.Contains(s.Scenario, "killed with -9") && s.Reissued == 0 {
			t.Errorf("%s: nobody got an id that the crash had made free", s.Scenario)
		}
	}
	if total := report.Total(); *commitOnly == "" && total.Trials < *commitTrials {
		t.Errorf("%d trials, want %d", total.Trials, *commitTrials)
	}
}

// A driver that says the same whether it was committed or not is found out.
func TestCommitsFindOutThatLibPQCannotTell(t *testing.T) {
	report := commits(t, CommitConfig{
		Trials: 100, Driver: "lib/pq alone", Open: openLibPQ, Bare: true,
		Only: []string{"a cut before the server got it", "a cut after the server answered", "a cut of COMMIT PREPARED"},
	})
	if before := report.Results[0]; before.Wrong > 0 || before.There > 0 || before.Denied != before.Trials {
		t.Errorf("COMMIT did not reach the server: %+v", before)
	}
	if after := report.Results[1]; after.Wrong != after.Trials || after.There != after.Trials || after.Denied != after.Trials {
		t.Errorf("COMMIT was done and every error denies it: %+v", after)
	}
	if report.Broken() == nil || !strings.Contains(report.Broken().Error(), "reported not committed and is there") {
		t.Errorf("the report says %v", report.Broken())
	}
}

func TestCommitsThatAreInterruptedLeaveNothing(t *testing.T) {
	t.Setenv(pgserver.EnvDSN, "")
	const quick = "a cut, and NOTIFY was all there was"
	for _, scenario := range []string{"a backend killed with -9, others taking ids", "a failover to a synchronous standby", "a synchronous standby that pauses"} {
		t.Run(scenario, func(t *testing.T) {
			before := goleak.IgnoreCurrent()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var interrupted *time.Timer
			_, err := Commits(ctx, CommitConfig{
				Trials: 2000, Only: []string{quick, scenario}, Bare: true, Open: openLibPQ,
				Logf: func(string, ...any) { interrupted = time.AfterFunc(300*time.Millisecond, cancel) },
			})
			if interrupted == nil || !errors.Is(err, context.Canceled) {
				t.Errorf("interrupted commits ended with %v", err)
			}
			goleak.VerifyNone(t, before)
		})
	}
}
