// Package processes measures several processes that share a server: each has its own memory of
// conflicts, and nobody who sees all of them.
package processes

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"github.com/pgretry/pgretry/bench/internal/load"
	"github.com/pgretry/pgretry/bench/internal/peer"
	"github.com/pgretry/pgretry/bench/internal/result"
	"github.com/pgretry/pgretry/bench/internal/target"
	"github.com/pgretry/pgretry/internal/workload"
)

// Argument is the first argument of a process that Measure starts: a program that calls Measure
// must call Main and do nothing else where it has that.
const Argument = "-worker-process"

// Plan says what to measure.
type Plan struct {
	result.Conditions // Workers is the sum over all processes
	Processes         int
	Lease             bool

	Warmup, Window, Patience time.Duration
	Seed                     uint64
}

// order is what a process is told to do.
type order struct {
	DSN      string
	Workload string
	Lease    bool
	Workers  int
	FirstID  int64
	Think    time.Duration
	Seed     uint64

	Warmup, Window, Patience time.Duration
}

// Main is the work of a process. It reads an order, and then one line for each round, of which it
// writes "ready" and the outcome. It returns the exit code.
func Main() int {
	if err := work(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "worker process:", err)
		return 1
	}
	return 0
}

func work(in io.Reader, out io.Writer) (err error) {
	lines := bufio.NewReader(in)
	line, err := lines.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("read the order: %w", err)
	}
	var o order
	if err := json.Unmarshal(line, &o); err != nil {
		return fmt.Errorf("read the order: %w", err)
	}
	var options []workload.Option
	if o.Think > 0 {
		options = append(options, workload.Pausing(load.Think(o.Think)))
	}
	selected, err := workload.Select(o.Seed, []string{o.Workload}, options...)
	if err != nil {
		return err
	}
	system := system(o.Lease)
	db, err := system.Open(o.DSN)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	answer := json.NewEncoder(out)
	next := load.Counter(o.FirstID)
	for {
		if _, err := lines.ReadString('\n'); err != nil {
			return nil // no more rounds are wanted
		}
		outcome, err := load.Run(context.Background(), load.Subject{System: system, Database: db, Workload: selected[0], NextID: next}, load.Load{
			Workers: o.Workers, Warmup: o.Warmup, Window: o.Window, Patience: o.Patience,
			Ready: func() error {
				if err := answer.Encode("ready"); err != nil {
					return err
				}
				_, err := lines.ReadString('\n')
				return err
			},
		})
		if err != nil {
			return err
		}
		if err := answer.Encode(outcome); err != nil {
			return err
		}
	}
}

func system(lease bool) peer.System {
	if lease {
		system, _ := peer.Leased()
		return system
	}
	return peer.Named(peer.RunInTx)[0]
}

// Group is the processes of one plan. They keep what they have learned over all rounds.
type Group struct {
	plan      Plan
	schema    *target.Schema
	check     *peer.Database
	workload  workload.Workload
	members   []*member
	committed []int64
	seen      result.Processes
}

type member struct {
	command *exec.Cmd
	in      io.WriteCloser
	out     *json.Decoder
}

// idsPerProcess keeps the ids of processes apart.
const idsPerProcess = 1_000_000_000

// Start starts the processes of a plan.
func Start(ctx context.Context, server *target.Server, p Plan) (g *Group, err error) {
	g = &Group{plan: p, seen: result.Processes{Conditions: p.Conditions, System: system(p.Lease).ID, Processes: p.Processes}}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("start %d processes: %w", p.Processes, err), g.Close())
			g = nil
		}
	}()
	selected, err := workload.Select(p.Seed, []string{p.Workload})
	if err != nil {
		return g, err
	}
	g.workload = selected[0]
	if g.schema, err = server.Schema(ctx); err != nil {
		return g, err
	}
	if g.check, err = peer.Named(peer.LibPQ)[0].Open(g.schema.DSN(nil)); err != nil {
		return g, err
	}
	g.check.SetMaxIdleConns(0)
	if err := g.workload.Setup(ctx, g.check.DB); err != nil {
		return g, err
	}
	program, err := os.Executable()
	if err != nil {
		return g, err
	}
	for i := range p.Processes {
		m, err := start(ctx, program)
		if err != nil {
			return g, err
		}
		g.members = append(g.members, m)
		if err := json.NewEncoder(m.in).Encode(order{
			DSN: g.schema.DSN(target.DeadlockTimeout(p.DeadlockTimeout)), Workload: p.Workload, Lease: p.Lease,
			Workers: p.Workers / p.Processes, FirstID: 1 + int64(i)*idsPerProcess,
			Warmup: p.Warmup, Window: p.Window, Patience: p.Patience, Think: p.Think, Seed: p.Seed,
		}); err != nil {
			return g, err
		}
	}
	return g, nil
}

func start(ctx context.Context, program string) (*member, error) {
	command := exec.CommandContext(ctx, program, Argument)
	command.Stderr = os.Stderr
	in, err := command.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := command.Start(); err != nil {
		return nil, err
	}
	return &member{command: command, in: in, out: json.NewDecoder(out)}, nil
}

// Turn runs one round in all processes at once.
func (g *Group) Turn(ctx context.Context) error {
	if err := g.turn(ctx); err != nil {
		return fmt.Errorf("%d processes, %s: %w", g.plan.Processes, g.plan.Conditions, err)
	}
	return nil
}

func (g *Group) turn(ctx context.Context) error {
	tell := func() error {
		for _, m := range g.members {
			if _, err := io.WriteString(m.in, "go\n"); err != nil {
				return err
			}
		}
		return nil
	}
	if err := tell(); err != nil {
		return err
	}
	for _, m := range g.members {
		var ready string
		if err := m.out.Decode(&ready); err != nil {
			return fmt.Errorf("wait for its connections: %w", err)
		}
	}
	if err := tell(); err != nil {
		return err
	}
	var sum result.Run
	for _, m := range g.members {
		var outcome load.Outcome
		if err := m.out.Decode(&outcome); err != nil {
			return fmt.Errorf("wait for its outcome: %w", err)
		}
		add(&sum, outcome.Run)
		g.committed = append(g.committed, outcome.IDs...)
		if outcome.Unknown > 0 {
			g.seen.Unchecked = fmt.Sprintf("%d transactions were cancelled in their COMMIT", outcome.Unknown)
		}
	}
	g.seen.Rounds = append(g.seen.Rounds, sum)
	if g.seen.Unchecked != "" || g.seen.Violation != "" {
		return nil
	}
	var err error
	g.seen.Violation, err = load.Violation(g.workload.Check(ctx, g.check.DB, g.committed))
	return err
}

// add adds what one process saw. Of percentiles it keeps the worst process's.
func add(sum *result.Run, one result.Run) {
	sum.Window = one.Window
	sum.InWindow += one.InWindow
	sum.Committed += one.Committed
	sum.Attempts += one.Attempts
	sum.Unfinished += one.Unfinished
	for code, n := range one.Failed {
		if sum.Failed == nil {
			sum.Failed = map[string]int64{}
		}
		sum.Failed[code] += n
	}
	if sum.Failure == "" {
		sum.Failure = one.Failure
	}
	sum.P50, sum.P99 = max(sum.P50, one.P50), max(sum.P99, one.P99)
	sum.Max, sum.Longest = max(sum.Max, one.Max), max(sum.Longest, one.Longest)
}

// Seen is what was measured so far.
func (g *Group) Seen() result.Processes { return g.seen }

// Close ends the processes and drops their tables.
func (g *Group) Close() error {
	var err error
	for _, m := range g.members {
		err = errors.Join(err, m.in.Close())
	}
	for _, m := range g.members {
		err = errors.Join(err, m.command.Wait())
	}
	if g.check != nil {
		err = errors.Join(err, g.check.Close())
	}
	if g.schema != nil {
		err = errors.Join(err, g.schema.Drop())
	}
	return err
}
