package certainty

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/pgretry/pgretry"
)

func TestOnlyTwoErrorsClaimNothing(t *testing.T) {
	for _, test := range []struct {
		err  error
		want commitClaim
	}{
		{nil, commitAffirmed},
		{&pgretry.CommitUnknownError{Cause: driver.ErrBadConn}, commitOpen},
		{fmt.Errorf("transfer: %w", &pgretry.CommitUnknownError{Cause: driver.ErrBadConn}), commitOpen},
		{&pgretry.ConnectionLostError{Cause: driver.ErrBadConn}, commitOpen},
		{&pgretry.ConnectionLostError{Cause: driver.ErrBadConn, RolledBack: true}, commitDenied},
		{driver.ErrBadConn, commitDenied},
		{context.Canceled, commitDenied},
		{errors.New("something else"), commitDenied},
	} {
		if got := commitClaimed(test.err); got != test.want {
			t.Errorf("%v claims %d, not %d", test.err, got, test.want)
		}
	}
}

func TestFalseClaimsAreFoundOut(t *testing.T) {
	for _, test := range []struct {
		name  string
		claim commitClaim
		truth commitTruth
		wrong string
	}{
		{"committed", commitAffirmed, commitTruth{1, 1}, ""},
		{"rolled back", commitDenied, commitTruth{0, 0}, ""},
		{"unknown and there", commitOpen, commitTruth{1, 1}, ""},
		{"unknown and not there", commitOpen, commitTruth{0, 0}, ""},
		{"unknown and there by halves", commitOpen, commitTruth{0, 1}, ""},
		{"invented", commitAffirmed, commitTruth{0, 0}, "reported committed and is not there"},
		{"half invented", commitAffirmed, commitTruth{0, 1}, "reported committed and is not there"},
		{"denied", commitDenied, commitTruth{1, 1}, "reported not committed and is there"},
		{"half denied", commitDenied, commitTruth{0, 1}, "reported not committed and is there"},
		{"committed twice", commitAffirmed, commitTruth{2, 2}, "it is there 2 times"},
		{"unknown and there twice", commitOpen, commitTruth{2, 2}, "it is there 2 times"},
		{"denied and there three times", commitDenied, commitTruth{1, 3}, "it is there 3 times"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := commitJudgement(test.claim, test.truth)
			if got != test.wrong && (test.wrong == "" || !strings.Contains(got, test.wrong)) {
				t.Errorf("the judgement is %q, want %q", got, test.wrong)
			}
			result := &CommitResult{Scenario: "made up"}
			result.add(commitFinding{id: "x", claim: test.claim, truth: test.truth, struck: true, waited: time.Millisecond})
			result.finish()
			report := &CommitReport{Driver: "liar", Results: []*CommitResult{result}}
			if wrong := report.Total().Wrong; (wrong == 1) != (test.wrong != "") || (report.Broken() != nil) != (test.wrong != "") {
				t.Errorf("%d wrong answers, and the report says %v", wrong, report.Broken())
			}
		})
	}
}

func TestToBeToldOfACommitBeforeTheStandbyHasItIsWrong(t *testing.T) {
	for _, claim := range []commitClaim{commitAffirmed, commitOpen, commitDenied} {
		result := &CommitResult{}
		truth := commitTruth{1, 1}
		if claim == commitDenied {
			truth = commitTruth{}
		}
		result.add(commitFinding{claim: claim, truth: truth, early: true})
		if (result.Wrong == 1) != (claim == commitAffirmed) {
			t.Errorf("claim %d: %d wrong", claim, result.Wrong)
		}
	}
}

func TestAReportIsATable(t *testing.T) {
	result := &CommitResult{Scenario: "made up"}
	for i := range 100 {
		result.add(commitFinding{claim: commitAffirmed, truth: commitTruth{1, 1}, struck: i > 0, waited: time.Duration(i) * time.Millisecond})
	}
	result.Reissued = 3
	result.finish()
	report := &CommitReport{Driver: "lib/pq", Results: []*CommitResult{result}, NotRun: []string{"a crash"}}
	want := `| COMMIT meets | trials | told committed | told not committed | told unknown | truly committed | wrong | doubled | median to verdict | p99 | remarks |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| made up | 100 | 100 | 0 | 0 | 100 | 0 | 0 | 50.0 ms | 99.0 ms | 1 ended before the fault, 3 ids issued again |
| all | 100 | 100 | 0 | 0 | 100 | 0 | 0 | 50.0 ms | 99.0 ms | 1 ended before the fault, 3 ids issued again |

Not run, as they need a server of their own: a crash.
`
	if got := report.Markdown(); got != want {
		t.Errorf("the table is\n%s\nnot\n%s", got, want)
	}
}
