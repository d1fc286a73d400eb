package parity

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/pgretry/pgretry/internal/drivertest"
)

// Difference is what a scenario saw on one side only.
type Difference struct {
	Scenario   string
	FeatureSet string // of the scripted driver; empty on a real server
	Text       string
}

// String returns the difference with a heading that names scenario and features.
func (d Difference) String() string {
	name := d.Scenario
	if d.FeatureSet != "" {
		name += " with features " + d.FeatureSet
	}
	return name + ":\n" + d.Text
}

// Exception excuses differences. Scenario and FeatureSet are patterns of
// path.Match; empty ones match everything.
type Exception struct {
	Scenario   string
	FeatureSet string
	// When, if not nil, limits the exception to sets of features for which it
	// returns true. On a real server it is not asked.
	When func(drivertest.Features) bool
	// Calls, if not 0, limits the exception to the log of inner calls: calls of
	// these kinds are left out of the comparison, all of it with drivertest.AnyCall.
	// Query, if not empty, limits it further to calls whose text contains it.
	Calls drivertest.Call
	Query string
	// Reason says why the difference is meant. It is required.
	Reason string
}

func (e Exception) String() string {
	return fmt.Sprintf("scenario %q, features %q, calls %q, query %q (%s)", e.Scenario, e.FeatureSet, e.Calls, e.Query, e.Reason)
}

func (e Exception) matches(scenario string, set drivertest.NamedFeatures) bool {
	return matchPattern(e.Scenario, scenario) && matchPattern(e.FeatureSet, set.Name) &&
		(e.When == nil || e.When(set.Features))
}

// ArgumentsFirst excuses what a wrapper cannot help that always implements
// ExecerContext and QueryerContext and answers driver.ErrSkip where the inner driver
// has neither these nor Execer and Queryer: database/sql checks the arguments before
// it asks, and again after preparing, instead of only then. The application sees no
// difference, except from a driver whose statements can check arguments and whose
// connections cannot.
func ArgumentsFirst() []Exception {
	prepares := func(f drivertest.Features) bool {
		return f&(drivertest.ExecerContext|drivertest.Execer) == 0 || f&(drivertest.QueryerContext|drivertest.Queryer) == 0
	}
	return []Exception{
		{
			When:   prepares,
			Calls:  drivertest.AnyCall,
			Reason: "arguments are checked before ErrSkip and once more after preparing",
		},
		{
			Scenario: "argument*",
			When: func(f drivertest.Features) bool {
				return prepares(f) && f.Has(drivertest.StmtNamedValueChecker) && !f.Has(drivertest.NamedValueChecker)
			},
			Reason: "arguments that only the statement would take are refused before it exists",
		},
	}
}

func matchPattern(pattern, name string) bool {
	if pattern == "" {
		return true
	}
	ok, err := path.Match(pattern, name)
	return err == nil && ok
}

// exceptions keeps account of which exceptions were needed.
type exceptions struct {
	list   []Exception
	needed []bool
}

func newExceptions(list []Exception) *exceptions {
	return &exceptions{list: list, needed: make([]bool, len(list))}
}

// problems returns what is wrong with the list once everything has been compared.
func (x *exceptions) problems() []Difference {
	var problems []Difference
	for i, e := range x.list {
		switch {
		case e.Reason == "":
			problems = append(problems, Difference{Scenario: "exceptions", Text: "no reason given: " + e.String()})
		case !x.needed[i]:
			problems = append(problems, Difference{Scenario: "exceptions", Text: "excuses nothing any more: " + e.String()})
		}
	}
	return problems
}

// observation is all that was seen of one side.
type observation struct {
	lines []string           // transcript
	calls []drivertest.Entry // inner calls, nil on a real server
}

// compare returns the difference between two observations that no exception
// excuses, or "".
func (x *exceptions) compare(scenario string, set drivertest.NamedFeatures, raw, wrapped observation) string {
	whole := func(o observation) []string {
		lines := slices.Clone(o.lines)
		for _, call := range o.calls {
			lines = append(lines, "inner "+call.String())
		}
		return lines
	}
	text := diff(whole(raw), whole(wrapped))
	if text == "" {
		return ""
	}
	for i, e := range x.list {
		if e.Reason == "" || !e.matches(scenario, set) {
			continue
		}
		if e.Calls == 0 {
			x.needed[i] = true
			return ""
		}
		without := func(o observation) observation {
			excused := func(call drivertest.Entry) bool {
				return call.Call&e.Calls != 0 && strings.Contains(call.Query, e.Query)
			}
			return observation{o.lines, slices.DeleteFunc(slices.Clone(o.calls), excused)}
		}
		raw, wrapped = without(raw), without(wrapped)
		less := diff(whole(raw), whole(wrapped))
		if less != text {
			x.needed[i] = true
		}
		if text = less; text == "" {
			return ""
		}
	}
	return text
}

// diff shows the first place where two lists differ, with the lines before and
// after it.
func diff(raw, wrapped []string) string {
	if slices.Equal(raw, wrapped) {
		return ""
	}
	raw, wrapped = maskAll(raw), maskAll(wrapped)
	if slices.Equal(raw, wrapped) {
		return ""
	}
	const before, after = 3, 4
	at := 0
	for at < len(raw) && at < len(wrapped) && raw[at] == wrapped[at] {
		at++
	}
	var b strings.Builder
	for _, line := range raw[max(0, at-before):at] {
		b.WriteString("  both     " + line + "\n")
	}
	for _, line := range raw[at:min(len(raw), at+after)] {
		b.WriteString("  raw      " + line + "\n")
	}
	if at == len(raw) {
		b.WriteString("  raw      (ends here)\n")
	}
	for _, line := range wrapped[at:min(len(wrapped), at+after)] {
		b.WriteString("  wrapped  " + line + "\n")
	}
	if at == len(wrapped) {
		b.WriteString("  wrapped  (ends here)\n")
	}
	return b.String()
}

func maskAll(lines []string) []string {
	masked := make([]string, len(lines))
	for i, line := range lines {
		masked[i] = mask(line)
	}
	return masked
}
