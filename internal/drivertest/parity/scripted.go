package parity

import (
	"database/sql"
	"database/sql/driver"
	"slices"
	"strconv"
	"testing"

	"github.com/pgretry/pgretry/internal/drivertest"
)

// RunScripted compares a scripted driver with what wrap makes of it, in every
// scenario over every feature set, and reports the differences as subtests. The
// inner connection must be reachable from the wrapped one by one or more methods
// Raw() driver.Conn.
func RunScripted(t *testing.T, wrap func(driver.Connector) driver.Connector, except ...Exception) {
	t.Helper()
	x := newExceptions(except)
	skipped := false
	for _, sc := range scriptedScenarios {
		ran := false
		t.Run(sc.name, func(t *testing.T) {
			ran = true
			for _, set := range sc.featureSets() {
				if text := compareScripted(x, sc, set, wrap); text != "" {
					t.Errorf("with features %s:\n%s", set.Name, text)
				}
			}
		})
		skipped = skipped || !ran
	}
	if skipped {
		return // an exception may be for what was not run
	}
	for _, problem := range x.problems() {
		t.Error(problem)
	}
}

// Selection limits a comparison to the scenarios and feature sets whose names match
// patterns of path.Match; empty ones match everything.
type Selection struct {
	Scenario   string
	FeatureSet string
}

// CompareScripted returns what [RunScripted] reports, of the part selected.
func CompareScripted(wrap func(driver.Connector) driver.Connector, except []Exception, only Selection) []Difference {
	x := newExceptions(except)
	var differences []Difference
	for _, sc := range scriptedScenarios {
		if !matchPattern(only.Scenario, sc.name) {
			continue
		}
		for _, set := range sc.featureSets() {
			if !matchPattern(only.FeatureSet, set.Name) {
				continue
			}
			if text := compareScripted(x, sc, set, wrap); text != "" {
				differences = append(differences, Difference{sc.name, set.Name, text})
			}
		}
	}
	return append(differences, x.problems()...)
}

// featureSets returns the sets a scenario runs over.
func (sc scenario) featureSets() []drivertest.NamedFeatures {
	sets := drivertest.FeatureSets()
	if !sc.connOnly {
		return sets
	}
	const others = drivertest.RowsFeatures | drivertest.DriverContext | drivertest.ConnectorCloser
	seen := make(map[drivertest.Features]bool)
	return slices.DeleteFunc(sets, func(set drivertest.NamedFeatures) bool {
		rest := set.Features &^ others
		defer func() { seen[rest] = true }()
		return seen[rest]
	})
}

func compareScripted(x *exceptions, sc scenario, set drivertest.NamedFeatures, wrap func(driver.Connector) driver.Connector) string {
	bare := func(c driver.Connector) driver.Connector { return c }
	return x.compare(sc.name, set, observeScripted(sc, set, bare), observeScripted(sc, set, wrap))
}

func observeScripted(sc scenario, set drivertest.NamedFeatures, wrap func(driver.Connector) driver.Connector) observation {
	options := append([]drivertest.Option{drivertest.WithFeatures(set.Features)}, sc.options...)
	inner := drivertest.New(options...)
	s := &session{script: inner, db: sql.OpenDB(wrap(inner.Connector()))}
	play(s, sc)
	s.note("left open: connections %d, statements %d, rows %d, transactions %d, connectors %d",
		inner.OpenConns(), inner.OpenStmts(), inner.OpenRows(), inner.OpenTxs(), inner.OpenConnectors())
	for _, violation := range inner.Violations() {
		s.note("violation: %s", violation)
	}
	if sc.unordered {
		calls := make(map[drivertest.Call]int)
		for _, e := range inner.Entries() {
			calls[e.Call]++
		}
		for call := drivertest.Call(1); call < drivertest.AnyCall; call <<= 1 {
			// How often connections are opened, reset and closed is a matter of luck, and
			// the checks of arguments are compared elsewhere.
			if call&(drivertest.CheckNamedValue|drivertest.StmtCheckNamedValue|drivertest.Connect|drivertest.Close|drivertest.ResetSession|drivertest.IsValid) == 0 {
				s.note("inner calls %v: %s", call, strconv.Itoa(calls[call]))
			}
		}
		return observation{lines: s.snapshot()}
	}
	return observation{s.snapshot(), inner.Entries()}
}
