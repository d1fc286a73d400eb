package contention_test

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pgretry/pgretry/bench/internal/contention"
	"github.com/pgretry/pgretry/bench/internal/peer"
	"github.com/pgretry/pgretry/bench/internal/report"
	"github.com/pgretry/pgretry/bench/internal/result"
	"github.com/pgretry/pgretry/bench/internal/target"
	"github.com/pgretry/pgretry/internal/pgserver/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

func start(t *testing.T) *target.Server {
	t.Helper()
	server := target.Of(pgtest.Server(t))
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
	return server
}

func measured(t *testing.T, server *target.Server, plan contention.Plan) result.Cell {
	t.Helper()
	cell, err := contention.Measure(t.Context(), server, plan, func(string, result.Run) {})
	if err != nil {
		t.Fatal(err)
	}
	return cell
}

func brief(workload string, systems ...peer.System) contention.Plan {
	return contention.Plan{
		Conditions: result.Conditions{Workload: workload, Workers: 4, DeadlockTimeout: 10 * time.Millisecond},
		Systems:    systems, Rounds: 2, Window: 50 * time.Millisecond, Patience: 30 * time.Second, Seed: 1,
	}
}

// forgetful is lib/pq with a way of running transactions that says of every third one that it was
// committed, when it was rolled back.
func forgetful() peer.System {
	system := peer.Named(peer.LibPQ)[0]
	system.ID, system.Ours = peer.Pgretry, true
	var n atomic.Int64
	honest := system.Transact
	system.Transact = func(ctx context.Context, db *sql.DB, work peer.Work) error {
		if n.Add(1)%3 != 0 {
			return honest(ctx, db, work)
		}
		tx, err := db.BeginTx(ctx, work.Options)
		if err != nil {
			return err
		}
		return errors.Join(work.Body(ctx, tx), tx.Rollback())
	}
	return system
}

func TestASystemThatLosesTransactionsGetsTheLoudLine(t *testing.T) {
	server := start(t)
	plan := brief("share", forgetful(), peer.Named(peer.OrderedLimit)[0])
	plan.Workers = 1 // so that nothing else goes wrong
	cell := measured(t, server, plan)
	broken := report.AllBroken(&result.Results{Contention: []result.Cell{cell}})
	if len(broken) != 1 || !broken[0].Ours() || broken[0].System != peer.Pgretry {
		t.Fatalf("got %v, want one of a system that is ours", broken)
	}
	if line := broken[0].String(); !strings.HasPrefix(line, "BROKEN: pgretry, driver only, share, 1 workers") || !strings.Contains(line, "the value of row") {
		t.Errorf("got %q", line)
	}
}

func TestEverySystemIsMeasuredInEveryRound(t *testing.T) {
	server := start(t)
	plan := brief("transfer/write", peer.All()...)
	plan.Think = time.Millisecond
	cell := measured(t, server, plan)
	var measured []string
	for _, c := range cell.Contenders {
		measured = append(measured, c.System)
		if c.Violation != "" || c.Unchecked != "" {
			t.Errorf("%s: %s%s", c.System, c.Violation, c.Unchecked)
		}
		if len(c.Rounds) != plan.Rounds {
			t.Errorf("%s has %d rounds, want %d", c.System, len(c.Rounds), plan.Rounds)
		}
		for _, run := range c.Rounds {
			if run.Committed == 0 || run.Attempts < run.Committed || run.InWindow > run.Committed || run.Max < run.P50 || run.Longest < run.Max || run.P50 < 2*plan.Think {
				t.Errorf("%s: got %+v", c.System, run)
			}
			if retries := c.System == peer.Loop || c.System == peer.RunInTx || c.System == peer.OrderedLimit; retries && run.Lost() > 0 {
				t.Errorf("%s lost %d transactions: %v %s", c.System, run.Lost(), run.Failed, run.Failure)
			}
			if limit := c.System == peer.OrderedLimit || c.System == peer.OneWorker; limit && run.Attempts != run.Committed {
				t.Errorf("%s needed %d attempts for %d commits", c.System, run.Attempts, run.Committed)
			}
		}
	}
	var all []string
	for _, system := range peer.All() {
		all = append(all, system.ID)
	}
	if !slices.Equal(measured, all) {
		t.Errorf("measured %v, want %v", measured, all)
	}
}

// Without a retry, one of two that wait for each other fails, with PostgreSQL's own code.
func TestWhatTheApplicationSawIsCountedBySQLSTATE(t *testing.T) {
	server := start(t)
	plan := brief("share", peer.Named(peer.LibPQ)...)
	plan.Workers, plan.Think = 8, 5*time.Millisecond
	cell := measured(t, server, plan)
	for _, run := range cell.Contenders[0].Rounds {
		if run.Failed["40P01"] == 0 || run.Lost() != run.Failed["40P01"] || !strings.Contains(run.Failure, "deadlock") {
			t.Errorf("got %v, %q, want deadlocks only", run.Failed, run.Failure)
		}
	}
}

func TestTheWarmupIsNotMeasured(t *testing.T) {
	server := start(t)
	plan := brief("crossing", peer.Named(peer.OneWorker)...)
	plan.Rounds, plan.Warmup, plan.Window = 1, 300*time.Millisecond, time.Nanosecond
	run := measured(t, server, plan).Contenders[0].Rounds[0]
	if run.Committed < 2 || run.InWindow > 1 || run.Attempts != run.Committed || run.Lost() > 0 {
		t.Errorf("got %+v, want all but the last one before the window", run)
	}
}

// One transaction holds its locks for longer than anybody waits.
func TestTransactionsBeyondThePatienceAreGivenUpAndNotCounted(t *testing.T) {
	server := start(t)
	plan := brief("transfer/write", peer.Named(peer.Loop)...)
	plan.Think, plan.Patience, plan.Rounds = time.Minute, 50*time.Millisecond, 1
	cell := measured(t, server, plan)
	run := cell.Contenders[0].Rounds[0]
	if run.Committed != 0 || run.Unfinished != int64(plan.Workers) || run.Lost() != run.Unfinished {
		t.Errorf("got %+v, want all %d unfinished", run, plan.Workers)
	}
	if cell.Contenders[0].Violation != "" {
		t.Errorf("got %s: what was given up must count as not committed", cell.Contenders[0].Violation)
	}
}

func TestPatientTransactionsFollowTheStorm(t *testing.T) {
	server := start(t)
	plan := brief("transfer/write")
	plan.Workers, plan.Think, plan.OurPatience = 8, 20*time.Millisecond, time.Minute
	for _, system := range peer.Named(peer.Loop, peer.RunInTx) {
		p, err := contention.MeasurePatience(t.Context(), server, plan, system, 300*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		if p.Storm.Attempts <= p.Storm.Committed {
			t.Errorf("%s: the storm had %d attempts for %d commits, want conflicts", system.ID, p.Storm.Attempts, p.Storm.Committed)
		}
		if p.Run.Committed == 0 || p.Run.P50 < 2*plan.Think || p.Violation != "" {
			t.Errorf("%s: got %+v", system.ID, p)
		}
		if p.Run.Attempts != p.Run.Committed {
			t.Errorf("%s: ordered transactions needed %d attempts for %d commits", system.ID, p.Run.Attempts, p.Run.Committed)
		}
	}
}

func TestAnUnknownWorkloadIsAnError(t *testing.T) {
	server := start(t)
	for _, workload := range []string{"transfers", "transfer"} { // none, and four
		_, err := contention.Measure(t.Context(), server, brief(workload, peer.Named(peer.LibPQ)...), nil)
		if err == nil || !strings.Contains(err.Error(), workload) {
			t.Errorf("%s: got %v", workload, err)
		}
	}
}
