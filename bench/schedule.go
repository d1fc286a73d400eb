package main

import (
	"slices"
	"time"

	"github.com/pgretry/pgretry/bench/internal/contention"
	"github.com/pgretry/pgretry/bench/internal/fastpath"
	"github.com/pgretry/pgretry/bench/internal/peer"
	"github.com/pgretry/pgretry/bench/internal/processes"
	"github.com/pgretry/pgretry/bench/internal/result"
)

// What is measured for how long is decided here. A full run has some 40 minutes for 134 cells of up
// to nine systems, so most cells make do with one short round: they show ranks and find broken
// systems. Cells that a claim is about have all systems and three long rounds. Where the server
// looks for deadlocks after a second, systems that wait for that make ten commits in the time: there
// turns are longer, and only the systems that make a difference have their turns.

// Systems under contention: in most cells, in cells with a long deadlock_timeout, and in a short
// run.
var (
	contenders = []string{
		peer.LibPQ, "otelsql", peer.PGX, peer.Loop, "crdb", peer.Pgretry, peer.RunInTx, peer.OrderedLimit, peer.OneWorker,
	}
	patientContenders = []string{peer.LibPQ, peer.Loop, peer.RunInTx, peer.OrderedLimit}
	claimContenders   = []string{peer.LibPQ, peer.PGX, peer.Loop, "crdb", peer.Pgretry, peer.RunInTx, peer.OrderedLimit}
	fewContenders     = []string{peer.LibPQ, peer.Loop, "crdb", peer.Pgretry, peer.RunInTx, peer.OrderedLimit}
)

// longTimeout is what a deadlock_timeout is from which on the patient's rules hold.
const longTimeout = 200 * time.Millisecond

// claimed are the cells that a claim is about.
func claimed() []result.Conditions {
	var all []result.Conditions
	for _, timeout := range []time.Duration{10 * time.Millisecond, time.Second} {
		all = append(
			all,
			result.Conditions{Workload: "transfer/write", Workers: 32, DeadlockTimeout: timeout},
			result.Conditions{Workload: "upserts", Workers: 16, DeadlockTimeout: timeout},
			result.Conditions{Workload: "transfer/rr", Workers: 32, DeadlockTimeout: timeout},
			result.Conditions{Workload: "transfer/ser", Workers: 32, DeadlockTimeout: timeout},
		)
	}
	return all
}

// cells returns the plans for contention, workload by workload.
func (s *settings) cells() []contention.Plan {
	var conditions []result.Conditions
	add := func(c result.Conditions) {
		if !slices.Contains(conditions, c) {
			conditions = append(conditions, c)
		}
	}
	workers, timeouts, think := s.workers, s.deadlockTimeouts, s.think
	if s.short && !s.restricted {
		timeouts, think = []time.Duration{10 * time.Millisecond}, []time.Duration{0}
	}
	for _, name := range s.workloads {
		if s.short && !s.restricted {
			workers = []int{8}
			if slices.ContainsFunc(claimed(), func(c result.Conditions) bool { return c.Workload == name }) {
				workers = nil // the claim's will do
			}
		}
		for _, pause := range think {
			for _, timeout := range timeouts {
				for _, n := range workers {
					add(result.Conditions{Workload: name, Workers: n, DeadlockTimeout: timeout, Think: pause})
				}
				for _, c := range claimed() {
					if !s.restricted && c.Workload == name && c.Think == pause && c.DeadlockTimeout == timeout {
						add(c)
					}
				}
			}
		}
		if s.short && !s.restricted && name == "transfer/write" {
			add(result.Conditions{Workload: name, Workers: 32, DeadlockTimeout: time.Second})
		}
	}
	var plans []contention.Plan
	for _, c := range conditions {
		plans = append(plans, s.plan(c))
	}
	return plans
}

func (s *settings) plan(c result.Conditions) contention.Plan {
	p := contention.Plan{Conditions: c, Seed: s.seed, Rounds: 1, Patience: 2 * time.Second}
	patient := c.DeadlockTimeout >= longTimeout
	switch {
	case s.short:
		p.Systems, p.Warmup, p.Window = s.chosen(fewContenders...), 150*time.Millisecond, 150*time.Millisecond
		if slices.Contains(claimed(), c) {
			p.Systems, p.Warmup, p.Window = s.chosen(patientContenders...), 400*time.Millisecond, 300*time.Millisecond
		}
		if patient {
			p.Warmup, p.Window, p.Patience = 2*time.Second, time.Second, time.Second
		}
	case slices.Contains(claimed(), c):
		p.Systems, p.Rounds = s.chosen(contenders...), 3
		p.Warmup, p.Window, p.OurPatience = 500*time.Millisecond, 2500*time.Millisecond, 30*time.Second
		if patient {
			p.Systems, p.Warmup, p.Window = s.chosen(claimContenders...), 2*time.Second, 4*time.Second
		}
	case patient:
		p.Systems, p.Patience = s.chosen(patientContenders...), 1500*time.Millisecond
		p.Warmup, p.Window = time.Second, 1500*time.Millisecond
	default:
		p.Systems, p.Warmup, p.Window = s.chosen(contenders...), 200*time.Millisecond, 400*time.Millisecond
	}
	if s.rounds > 0 {
		p.Rounds = s.rounds
	}
	if s.window > 0 {
		p.Warmup, p.Window = min(p.Warmup, s.window), s.window
	}
	return p
}

// patience returns the plan for false aborts, and how long the storm before is.
func (s *settings) patience() (p contention.Plan, storm time.Duration) {
	p = contention.Plan{
		Conditions: result.Conditions{Workload: "transfer/write", Workers: 32, DeadlockTimeout: time.Second, Think: 100 * time.Millisecond},
		Seed:       s.seed, Patience: 5 * time.Second, OurPatience: time.Minute, Window: 10 * time.Second,
	}
	storm = 5 * time.Second
	if s.short {
		p.Window, p.Patience, storm = 2*time.Second, time.Second, 2*time.Second
	}
	if s.window > 0 {
		p.Window, storm = s.window, s.window
	}
	return p, storm
}

// The systems of the fast path.
var (
	fastPath = []string{
		peer.LibPQ, "otelsql", "otelsql-sdk", peer.PGX, peer.Loop, "crdb",
		peer.Pgretry, peer.RunInTx, peer.PgretrySDK, peer.RunInTxSDK, peer.PgretryPGX,
	}
	withoutConflicts = []string{peer.LibPQ, peer.Pgretry, peer.RunInTx}
	readers          = []string{peer.LibPQ, "otelsql", peer.PGX, peer.Pgretry, peer.PgretryPGX}
)

func (s *settings) effort(full, short fastpath.Effort) fastpath.Effort {
	if s.short {
		full = short
	}
	if s.rounds > 0 {
		full.Rounds = s.rounds
	}
	return full
}

// transactionEffort makes a round short: a machine that does other things as well is not the same
// one a second later.
func (s *settings) transactionEffort(t fastpath.Transport) fastpath.Effort {
	if t.Delay > 0 {
		return s.effort(fastpath.Effort{Rounds: 40, Each: 8, Warm: 12}, fastpath.Effort{Rounds: 4, Each: 4, Warm: 12})
	}
	return s.effort(fastpath.Effort{Rounds: 100, Each: 40, Warm: 20}, fastpath.Effort{Rounds: 12, Each: 30, Warm: 20})
}

func (s *settings) noConflictEffort() fastpath.Effort {
	return s.effort(fastpath.Effort{Rounds: 60, Each: 20, Warm: 12}, fastpath.Effort{Rounds: 8, Each: 10, Warm: 12})
}

func (s *settings) scanEffort() fastpath.Effort {
	return s.effort(fastpath.Effort{Rounds: 40, Each: 1, Warm: 1}, fastpath.Effort{Rounds: 3, Each: 1, Warm: 1})
}

func (s *settings) skewedEffort() (effort fastpath.Effort, rows int) {
	rows = 200_000
	if s.short {
		rows = 50_000
	}
	return s.effort(fastpath.Effort{Rounds: 15, Each: 1}, fastpath.Effort{Rounds: 3, Each: 1}), rows
}

// groups returns the plans for several processes and how many rounds they have. Those of equal
// conditions take turns.
func (s *settings) groups() (plans [][]processes.Plan, rounds int) {
	timeouts := []time.Duration{10 * time.Millisecond, time.Second}
	leases := []bool{false}
	if _, can := peer.Leased(); can {
		leases = append(leases, true)
	}
	rounds = 3
	warmup, window, patience, names := 2*time.Second, 3*time.Second, 5*time.Second, []string{"transfer/write", "upserts"}
	if s.short {
		timeouts, rounds = timeouts[:1], 1
		warmup, window, patience = 500*time.Millisecond, 500*time.Millisecond, 2*time.Second
	}
	if s.rounds > 0 {
		rounds = s.rounds
	}
	if s.window > 0 {
		warmup, window = min(warmup, s.window), s.window
	}
	for _, name := range names {
		if !slices.Contains(s.workloads, name) {
			continue
		}
		for _, timeout := range timeouts {
			warmup, window := warmup, window
			if timeout >= longTimeout && s.window == 0 {
				// Each process meets its first deadlock in the warm-up, which takes so long.
				warmup, window = 5*time.Second, 5*time.Second
			}
			var turns []processes.Plan
			for _, lease := range leases {
				for _, n := range []int{1, 4} {
					turns = append(turns, processes.Plan{
						Conditions: result.Conditions{Workload: name, Workers: 32, DeadlockTimeout: timeout},
						Processes:  n, Lease: lease, Warmup: warmup, Window: window, Patience: patience, Seed: s.seed,
					})
				}
			}
			plans = append(plans, turns)
		}
	}
	return plans, rounds
}
