// Package report shows what the demo found: a table and trees of spans for people, JSON for
// programs, and progress meanwhile.
package report

import (
	"errors"
	"time"

	"github.com/pgretry/pgretry/cmd/pgretry/internal/runner"
	"github.com/pgretry/pgretry/cmd/pgretry/internal/spantree"
)

// Demo is everything the demo found.
type Demo struct {
	// ServerVersion and DeadlockTimeout describe the server.
	ServerVersion   string
	DeadlockTimeout time.Duration
	// Workers, Duration and Seed are the load's.
	Workers  int
	Duration time.Duration
	Seed     uint64
	// Results are in the order in which they were run: a workload's are together, a side each.
	Results []runner.Result
	// Closure and Replay are the span trees of two transactions that took several attempts: one
	// run by RunInTx, one replayed by the driver alone. Nil if there is none.
	Closure, Replay *spantree.Span
}

// Broken says what of pgretry's promise was not kept in the results, nil if all was.
func (d Demo) Broken() error {
	var broken []error
	for _, r := range d.Results {
		broken = append(broken, r.Broken())
	}
	return errors.Join(broken...)
}

// totals adds up one side.
type totals struct {
	commits, errors int64
	conflicts       runner.Conflicts
}

func (d Demo) totals(side runner.Side) totals {
	var t totals
	for _, r := range d.Results {
		if r.Side != side.Name {
			continue
		}
		t.commits += r.Commits
		t.errors += r.Errors
		t.conflicts = t.conflicts.Plus(r.Conflicts)
	}
	return t
}
