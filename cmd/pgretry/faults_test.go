package main

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/pgretry/pgretry/internal/pgserver"
)

// faultOutcome is what a program that reads the JSON relies on.
type faultOutcome struct {
	LoneWrites []struct {
		With        string
		Writes      int
		Twice       int `json:"applied_twice"`
		ThreeTimes  int `json:"applied_three_times"`
		ToldDone    int `json:"told_done"`
		ToldLost    int `json:"told_lost"`
		ToldFailed  int `json:"told_failed"`
		ToldWrongly int `json:"told_wrongly"`
	} `json:"lone_writes"`
	Commits []struct {
		With             string
		Meets            string `json:"commit_meets"`
		Trials           int
		Committed        int
		ToldCommitted    int `json:"told_committed"`
		ToldNotCommitted int `json:"told_not_committed"`
		ToldUnknown      int `json:"told_unknown"`
		ToldWrongly      int `json:"told_wrongly"`
	}
	Banks []struct {
		With                   string
		Workers                int
		Faults                 map[string]int
		Transfers              int
		ToldCommitted          int  `json:"told_committed"`
		BookedTwice            int  `json:"booked_twice"`
		ToldCommittedNotBooked int  `json:"told_committed_not_booked"`
		ToldFailedBooked       int  `json:"told_failed_booked"`
		CommittedAfterwards    int  `json:"committed_after_the_last_fault"`
		BalancesRight          bool `json:"balances_right"`
	}
}

func TestTheDemoOfFaultsShowsThatLibPQMisleadsAndThatPGRetryDoesNot(t *testing.T) {
	t.Setenv(pgserver.EnvDSN, "")
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
	var stdout, stderr bytes.Buffer
	if code := run(t.Context(), []string{"demo", "--faults", "--duration", "2s", "--workers", "8", "--json"}, &stdout, &stderr); code != 0 {
		t.Errorf("exit status %d: %s", code, stderr.String())
	}
	var got faultOutcome
	if err := json.Unmarshal(stdout.Bytes(), &got); err != nil {
		t.Fatalf("%v in %s", err, stdout.String())
	}
	if len(got.LoneWrites) != 2 || len(got.Commits) != 9 || len(got.Banks) != 3 {
		t.Fatalf("%d, %d and %d results, want 2, 9 and 3", len(got.LoneWrites), len(got.Commits), len(got.Banks))
	}
	for _, r := range got.LoneWrites {
		switch plain := r.With == "lib/pq"; {
		case r.Writes != r.ToldDone+r.ToldLost+r.ToldFailed:
			t.Errorf("writes do not add up: %+v", r)
		case plain && (r.ThreeTimes == 0 || r.ToldWrongly == 0):
			t.Errorf("lib/pq applied no write three times: %+v", r)
		case !plain && (r.Twice+r.ThreeTimes+r.ToldWrongly > 0 || r.ToldDone == 0):
			t.Errorf("pgretry: %+v", r)
		}
	}
	for _, r := range got.Commits {
		switch plain := r.With == "lib/pq"; {
		case plain && r.ToldNotCommitted != r.Trials:
			t.Errorf("lib/pq tells one from the other: %+v", r)
		case plain && (r.ToldWrongly > 0) == strings.Contains(r.Meets, "before"):
			t.Errorf("lib/pq: %+v", r)
		case !plain && r.ToldWrongly > 0:
			t.Errorf("pgretry: %+v", r)
		case !plain && r.Meets != serverDeath && r.ToldCommitted != r.Trials:
			t.Errorf("pgretry did not find out: %+v", r)
		}
	}
	for i, r := range got.Banks {
		if r.Workers != 8 || r.Transfers == 0 || r.ToldCommitted == 0 || len(r.Faults) == 0 || r.CommittedAfterwards == 0 || !r.BalancesRight {
			t.Errorf("a bank: %+v", r)
		}
		if i > 0 && r.BookedTwice+r.ToldCommittedNotBooked+r.ToldFailedBooked > 0 {
			t.Errorf("pgretry: %+v", r)
		}
	}
}

func TestFaultsAreNotForTheUsersServer(t *testing.T) {
	t.Setenv(pgserver.EnvDSN, "postgres://me:secret@127.0.0.1:1/db")
	var stdout, stderr bytes.Buffer
	code := run(t.Context(), []string{"demo", "--faults"}, &stdout, &stderr)
	want := "pgretry: --faults kills the server it uses: unset PGRETRY_DSN, so that it starts its own (see \"pgretry demo --help\")\n"
	if code != exitUsage || stderr.String() != want || stdout.Len() > 0 {
		t.Errorf("exit status %d, stderr %q", code, stderr.String())
	}
}

func TestAnInterruptionOfFaultsLeavesNothingBehind(t *testing.T) {
	for _, moment := range []string{"[1/7] writes outside a transaction", "[4/7] COMMITs", "[6/7] a bank under fire: driver"} {
		t.Run(moment, func(t *testing.T) {
			t.Parallel()
			c := start(t, "demo", "--faults", "--duration", "500ms")
			c.waitFor(t, moment)
			if err := c.Process.Signal(os.Interrupt); err != nil {
				t.Fatal(err)
			}
			c.mustEndInterrupted(t)
		})
	}
}
