// Package report shows what the demo found: a table and a tree of spans for people, JSON for
// programs, and progress meanwhile.
package report

import (
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
	// Results are in the order in which they were run, and so two by two.
	Results []runner.Result
	// Transaction is the span tree of one transaction that took several attempts, nil if there is none.
	Transaction *spantree.Span
}

// Lost returns the results in which side let the application see a conflict.
func (d Demo) Lost(side runner.Side) []runner.Result {
	var lost []runner.Result
	for _, r := range d.Results {
		if r.Side == side.Name && r.Lost() {
			lost = append(lost, r)
		}
	}
	return lost
}

// totals adds up one side.
type totals struct {
	commits, errors, deadlocks, serializationFailures int64
}

func (d Demo) totals(side runner.Side) totals {
	var t totals
	for _, r := range d.Results {
		if r.Side != side.Name {
			continue
		}
		t.commits += r.Commits
		t.errors += r.Errors
		t.deadlocks += r.Deadlocks
		t.serializationFailures += r.SerializationFailures
	}
	return t
}
