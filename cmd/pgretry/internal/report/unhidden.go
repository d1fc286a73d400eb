package report

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/jedib0t/go-pretty/v6/text"

	"github.com/pgretry/pgretry"
	"github.com/pgretry/pgretry/cmd/pgretry/internal/runner"
)

// explanations are in the words of somebody who has not read the package's documentation.
var explanations = map[runner.Cause]string{
	runner.CauseDiverged:    "run again, a statement showed something else than the application had already been shown",
	runner.CauseExhausted:   "the limit of attempts or of time was reached",
	runner.CauseUnexplained: "the driver gave no reason",

	runner.Cause(pgretry.RefusedMode):                "replay is switched off",
	runner.Cause(pgretry.RefusedByContext):           "replay is switched off for the transaction",
	runner.Cause(pgretry.RefusedAdvisoryLock):        "the transaction took an advisory lock of its session, which a rollback does not release",
	runner.Cause(pgretry.RefusedAdvisoryXactLock):    "the transaction took an advisory lock, which a replay would let go for a moment",
	runner.Cause(pgretry.RefusedSessionState):        "the transaction changed its session in a way that survives a rollback",
	runner.Cause(pgretry.RefusedPreparedTransaction): "the transaction has to do with two-phase commit",
	runner.Cause(pgretry.RefusedOutsideEffect):       "the transaction called a function whose effects survive a rollback",
	runner.Cause(pgretry.RefusedDeniedFunction):      "the transaction called a function that the application's list forbids to repeat",
	runner.Cause(pgretry.RefusedServerCopy):          "the transaction copied from or to a file or program of the server",
	runner.Cause(pgretry.RefusedTxControl):           "the transaction was begun or ended by statements of its own",
	runner.Cause(pgretry.RefusedUnreadable):          "the driver could not tell for sure what a statement does",
	runner.Cause(pgretry.RefusedForeignTables):       "COMMIT failed in a database with foreign tables, whose servers may have committed",
	runner.Cause(pgretry.RefusedRawConn):             "the application used the connection behind the driver's back",
	runner.Cause(pgretry.RefusedJournalFull):         "the transaction was too large to remember",
	runner.Cause(pgretry.RefusedArgument):            "an argument was of a type that the driver cannot keep",
	runner.Cause(pgretry.RefusedValue):               "a value was of a type that the driver cannot compare",
	runner.Cause(pgretry.RefusedInterrupted):         "a statement was interrupted and ended without an answer",
	runner.Cause(pgretry.RefusedSavepoint):           "the conflict came inside a savepoint of the application",
	runner.Cause(pgretry.RefusedConnectionLost):      "the connection broke during the replay",
	runner.Cause(pgretry.RefusedStatement):           "it was a statement outside a transaction of a kind that is not repeated",
}

// explain returns the words for a cause; of one that is not known, its name.
func explain(cause runner.Cause) string {
	if words, ok := explanations[cause]; ok {
		return words
	}
	return strings.ReplaceAll(string(cause), "_", " ")
}

const unhiddenWidth = 100

// unhidden lists why the driver alone could not hide conflicts, the most frequent cause first, and
// in which workloads. It is empty if there were none.
func (d Demo) unhidden() string {
	total := d.totals(runner.DriverOnly).conflicts.Unhidden
	if len(total) == 0 {
		return ""
	}
	causes := make([]runner.Cause, 0, len(total))
	for cause := range total {
		causes = append(causes, cause)
	}
	slices.SortFunc(causes, func(a, b runner.Cause) int {
		return cmp.Or(cmp.Compare(total[b], total[a]), cmp.Compare(a, b))
	})
	width := len(fmt.Sprint(total[causes[0]]))
	indent := strings.Repeat(" ", width+3)
	var s strings.Builder
	fmt.Fprintf(&s, "\nConflicts that the application saw with %q, and why they could not be hidden:\n", runner.DriverOnly.Name)
	for _, cause := range causes {
		fmt.Fprintf(&s, " %*d  %s\n", width, total[cause], explain(cause))
		var where []string
		for _, r := range d.Results {
			if n := r.Conflicts.Unhidden[cause]; n > 0 && r.Side == runner.DriverOnly.Name {
				where = append(where, fmt.Sprintf("%s %d", r.Workload, n))
			}
		}
		for line := range strings.Lines(text.WrapSoft(strings.Join(where, ", "), unhiddenWidth)) {
			fmt.Fprintf(&s, "%s%s\n", indent, strings.TrimSpace(line))
		}
	}
	return s.String()
}
