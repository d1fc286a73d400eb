package parity_test

import (
	"testing"

	"github.com/pgretry/pgretry/internal/drivertest"
	"github.com/pgretry/pgretry/internal/drivertest/parity"
)

func TestABareDriverEqualsItselfWithEveryFeatureSet(t *testing.T) {
	parity.RunScripted(t, bare)
}

func TestAFaithfulWrapperPassesWithEveryFeatureSet(t *testing.T) {
	parity.RunScripted(t, flaws{}.wrap, parity.ArgumentsFirst()...)
}

func TestAnUnfaithfulWrapperIsCaught(t *testing.T) {
	for _, c := range []struct {
		name     string
		flaws    flaws
		scenario string
		features string
	}{
		{"loses scan types", flaws{losesScanType: true}, "result sets and column types", "modern"},
		{"loses further result sets", flaws{losesResultSets: true}, "result sets and column types", "modern"},
		{"loses column lengths", flaws{losesLength: true}, "result sets and column types", "lib-pq"},
		{"wraps errors", flaws{wrapsErrors: true}, "errors of the server", "modern"},
		{"copies errors", flaws{copiesErrors: true}, "errors of the server", "modern"},
		{"wraps errors of rows", flaws{wrapsErrorsOfRows: true}, "errors of the driver", "modern"},
		{"hides errors of rows", flaws{hidesErrorsOfRows: true}, "aborted blocks", "modern"},
		{"wraps ErrSkip", flaws{wrapsSkip: true}, "skipped fast paths", "modern"},
		{"wraps ErrSkip of a driver without exec", flaws{wrapsSkip: true}, "results", "all-but-exec"},
		{"swallows affected rows", flaws{swallowsAffected: true}, "results", "modern"},
		{"offers a validator that is not there", flaws{alwaysValidates: true}, "cancelled idle transaction", "all-but-Validator"},
		{"hides the validator", flaws{neverValidates: true}, "invalid connections", "modern"},
		{"hides the validator from a cancelled transaction", flaws{neverValidates: true}, "cancelled idle transaction", "modern"},
		{"hides bad connections when resetting", flaws{dropsBadReset: true}, "resetting sessions", "modern"},
		{"loses contexts", flaws{losesContext: true}, "cancelled during", "modern"},
		{"loses labels of contexts", flaws{losesContext: true}, "deadlines", "modern"},
		{"ignores transaction options", flaws{ignoresOptions: true}, "transaction options", "modern"},
		{"ignores that options are not supported", flaws{ignoresOptions: true}, "transaction options", "only-ExecerContext"},
		{"loses the argument checker", flaws{losesArgumentChecker: true}, "arguments", "modern"},
		{"prepares everything", flaws{preparesEverything: true}, "results", "modern"},
		{"rolls back twice", flaws{rollsBackTwice: true}, "transactions", "modern"},
		{"leaks statements", flaws{leaksStatements: true}, "prepared statements", "modern"},
		{"leaves rows open", flaws{leavesRowsOpen: true}, "rows left open", "modern"},
		{"hides the real connection", flaws{hidesRaw: true}, "raw connections", "modern"},
		{"loses the connector's Close", flaws{losesConnectorClose: true}, "closing", "modern"},
		{"says an aborted block committed", flaws{commitsAborted: true}, "aborted blocks", "modern"},
		{"keeps bytes that are overwritten", flaws{copiesBytesLate: true}, "shared buffers", "modern"},
		{"connects a second time", flaws{reconnects: true}, "connecting", "modern"},
		{"pings twice", flaws{pingsTwice: true}, "ping", "modern"},
	} {
		t.Run(c.name, func(t *testing.T) {
			differences := parity.CompareScripted(c.flaws.wrap, nil, parity.Selection{Scenario: c.scenario, FeatureSet: c.features})
			if len(differences) == 0 {
				t.Errorf("not caught by scenario %q with features %s", c.scenario, c.features)
			}
			for _, d := range differences {
				t.Log(d)
			}
		})
	}
}

func TestAnExceptionExcusesWhatItNames(t *testing.T) {
	wrap := flaws{pingsTwice: true}.wrap
	scenario := parity.Selection{Scenario: "ping"}
	if d := parity.CompareScripted(wrap, nil, scenario); len(d) == 0 {
		t.Fatal("no difference to excuse")
	}
	excuse := parity.Exception{Scenario: "pi*", Reason: "a test"}
	if d := parity.CompareScripted(wrap, []parity.Exception{excuse}, scenario); len(d) > 0 {
		t.Errorf("scenario: %v", d)
	}
	resets := flaws{dropsBadReset: true}.wrap
	calls := parity.Exception{Calls: drivertest.ResetSession, Reason: "a test"}
	if d := parity.CompareScripted(resets, []parity.Exception{calls}, parity.Selection{Scenario: "results"}); len(d) > 0 {
		t.Errorf("calls: %v", d)
	}
	other := parity.Exception{Calls: drivertest.ResetSession, Query: "some text", Reason: "a test"}
	if d := parity.CompareScripted(resets, []parity.Exception{other}, parity.Selection{Scenario: "results"}); len(d) == 0 {
		t.Error("a text that does not occur excuses calls")
	}
}

func TestExceptionsAreHeldToAccount(t *testing.T) {
	for name, e := range map[string]parity.Exception{
		"needless":         {Reason: "a test"},
		"without a reason": {Scenario: "ping"},
	} {
		if d := parity.CompareScripted(bare, []parity.Exception{e}, parity.Selection{Scenario: "ping"}); len(d) != 1 || d[0].Scenario != "exceptions" {
			t.Errorf("%s: %v", name, d)
		}
	}
}
