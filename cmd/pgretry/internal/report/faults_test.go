package report_test

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/pgretry/pgretry/cmd/pgretry/internal/report"
	"github.com/pgretry/pgretry/internal/certainty"
)

func sampleFaults() report.Faults {
	return report.Faults{
		ServerVersion: "18.1", Seed: 42,
		LoneWithout: &certainty.LoneReport{
			Driver: "lib/pq", Trials: 240, Applied: [4]int{130, 95, 6, 9}, Affirmed: 60, Open: 180, Wrong: 15,
		},
		Lone: &certainty.LoneReport{Driver: "pgretry", Trials: 240, Applied: [4]int{137, 103, 0, 0}, Affirmed: 51, Open: 141, Denied: 48},
		CommitsWithout: &certainty.CommitReport{Driver: "lib/pq", Results: []*certainty.CommitResult{
			{Scenario: "a cut before", Trials: 17, Denied: 17},
			{Scenario: "a cut after", Trials: 19, There: 19, Denied: 19, Wrong: 19},
		}},
		Commits: &certainty.CommitReport{Driver: "pgretry", Results: []*certainty.CommitResult{
			{Scenario: "a cut before", Trials: 17, There: 17, Affirmed: 17},
			{Scenario: "a cut after", Trials: 19, There: 19, Affirmed: 19},
			{Scenario: "the server killed", Trials: 8, There: 2, Open: 8},
		}},
		BankWithout: &certainty.BankReport{
			Side: "lib/pq, repeating", Workers: 16, Duration: 6 * time.Second, Faults: map[string]int{"cut": 53, "server killed": 1},
			Transfers: 601, Committed: 594, Failed: 7, Doubled: 12, Denied: 1, WrongBalances: 2,
		},
		Banks: []*certainty.BankReport{
			{
				Side: "driver", Workers: 16, Duration: 6 * time.Second, Faults: map[string]int{"cut": 44},
				Told:      map[string]int{"deadline": 25, "no connection": 201},
				Transfers: 675, Committed: 449, Failed: 202, Unknown: 24,
			},
		},
	}
}

func TestTheTablesOfFaultsCompareWhatWasToldWithWhatIsThere(t *testing.T) {
	var out bytes.Buffer
	if err := report.WriteFaultsText(&out, sampleFaults()); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`
 with     writes  applied  once  twice  three  told  told    told     told
             cut    never               times  done  lost  failed  wrongly
───────────────────────────────────────────────────────────────────────────
 lib/pq      240      130    95      6      9    60   180       0       15
 pgretry     240      137   103      0      0    51   141      48        0
`,
		`
 COMMIT meets       with     trials      truly       told   told not     told     told
                                     committed  committed  committed  unknown  wrongly
───────────────────────────────────────────────────────────────────────────────────────
 a cut before       lib/pq       17          0          0         17        0        0
                    pgretry      17         17         17          0        0        0
───────────────────────────────────────────────────────────────────────────────────────
 a cut after        lib/pq       19         19          0         19        0       19
                    pgretry      19         19         19          0        0        0
───────────────────────────────────────────────────────────────────────────────────────
 the server killed  pgretry       8          2          0          0        8        0
`,
		`
 transfers with     faults  transfers       told    told     told  booked  told committed,  told failed,  balances
                                       committed  failed  unknown   twice       not booked        booked
───────────────────────────────────────────────────────────────────────────────────────────────────────────────────
 lib/pq, repeating      54        601        594       7        0      12                0             1     WRONG
 driver                 44        675        449     202       24       0                0             0     right
`,
		"A bank under fire, 16 workers and 6s of faults each:\n",
		"\nlib/pq, repeating met 53 × cut, 1 × server killed.\n\ndriver met 44 × cut.\nIt was told 201 × no connection, 25 × deadline.\n",
		"\nPostgreSQL 18.1, seed 42.\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("it lacks %s:\n%s", want, out.String())
		}
	}
}

func TestOnlyPGRetrysSidesOfFaultsBreakAPromise(t *testing.T) {
	faults := sampleFaults()
	if err := faults.Broken(); err != nil {
		t.Errorf("lib/pq's claims are counted: %v", err)
	}
	faults.Lone.Wrong = 2
	faults.Commits.Results[0].Wrong = 3
	err := faults.Broken()
	if err == nil || !strings.Contains(err.Error(), "pgretry: and 2 more") || !strings.Contains(err.Error(), "pgretry, a cut before: and 3 more") {
		t.Errorf("it says %v", err)
	}
}
