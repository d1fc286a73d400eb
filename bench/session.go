package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/pgretry/pgretry/bench/internal/contention"
	"github.com/pgretry/pgretry/bench/internal/fastpath"
	"github.com/pgretry/pgretry/bench/internal/peer"
	"github.com/pgretry/pgretry/bench/internal/processes"
	"github.com/pgretry/pgretry/bench/internal/report"
	"github.com/pgretry/pgretry/bench/internal/result"
	"github.com/pgretry/pgretry/bench/internal/target"
	"github.com/pgretry/pgretry/internal/workload"
)

// session is one run of the command.
type session struct {
	*settings
	log     io.Writer
	server  *target.Server
	results *result.Results
	shouted int // how many broken invariants were told already
}

func (s *session) run(ctx context.Context) (err error) {
	if s.render != "" {
		s.results, err = readResults(s.render)
		return err
	}
	return s.measure(ctx)
}

func readResults(name string) (results *result.Results, err error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	return result.Read(file)
}

func (s *session) measure(ctx context.Context) (err error) {
	var before *result.Results
	if s.out != "" { // before hours are spent
		if err := os.MkdirAll(s.out, 0o777); err != nil {
			return err
		}
	}
	if s.again {
		if before, err = readResults(filepath.Join(s.out, "results.json")); err != nil {
			return err
		}
	}
	if s.server, err = target.Start(ctx, s.dsn); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.server.Stop()) }()
	durable := "a throwaway server, fsync, synchronous_commit and full_page_writes off"
	if s.server.External() {
		durable = "a server that was there before, with its own settings"
	}
	began := time.Now()
	s.results = &result.Results{Environment: result.Environment{
		Date: began, Command: strings.TrimSpace("go run ./bench " + strings.Join(s.shown(), " ")),
		GoVersion: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH, CPUs: runtime.NumCPU(),
		Server: s.server.Version(), Durable: durable, Seed: s.seed,
	}}
	defer func() {
		s.results.Environment.Elapsed = time.Since(began)
		if before == nil {
			return
		}
		if err == nil { // half a part is not a part
			before.Renew(s.results)
		}
		s.results = before
	}()
	for _, part := range []struct {
		name    string
		measure func(context.Context) error
	}{
		{onlyFastPath, s.fastPath},
		{onlyScan, s.scan},
		{onlyContention, s.contention},
		{onlyProcesses, s.processes},
	} {
		if !slices.Contains(s.only, part.name) {
			continue
		}
		if err := part.measure(ctx); err != nil {
			if cause := context.Cause(ctx); cause != nil {
				return fmt.Errorf("interrupted: %w", cause)
			}
			return err
		}
	}
	return nil
}

// shown are the arguments without what may hold a password.
func (s *session) shown() []string {
	args := slices.Clone(s.args)
	for i, arg := range args {
		name, _, together := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		switch {
		case name != "dsn" || !strings.HasPrefix(arg, "-"):
		case together:
			args[i] = "-dsn=…"
		case i+1 < len(args):
			args[i+1] = "…"
		}
	}
	return args
}

func (s *session) progress(format string, args ...any) {
	fmt.Fprintf(s.log, "%s  "+format+"\n", append([]any{time.Now().Format(time.TimeOnly)}, args...)...)
}

// shout tells of invariants that were broken since the last call.
func (s *session) shout() {
	all := report.AllBroken(s.results)
	for _, b := range all[min(s.shouted, len(all)):] {
		fmt.Fprintln(s.log, b)
	}
	s.shouted = len(all)
}

func (s *session) fastPath(ctx context.Context) error {
	for _, transport := range fastpath.Transports(s.server) {
		s.progress("fast path over %s", transport.Name)
		c, err := fastpath.MeasureTransaction(ctx, s.server, transport, s.among(fastPath...), s.transactionEffort(transport))
		if err != nil {
			return err
		}
		s.results.FastPath = append(s.results.FastPath, c)
		if transport.Delay > 0 {
			relay, err := fastpath.MeasureRelay(ctx, s.server, transport.Delay, fastpath.Effort{Rounds: 20, Each: 20})
			if err != nil {
				return err
			}
			s.results.RelayCost = append(s.results.RelayCost, relay)
		}
		s.shout()
	}
	for _, name := range s.workloads {
		s.progress("%s without conflicts", name)
		w, err := workload.Select(s.seed, []string{name})
		if err != nil {
			return err
		}
		c, err := fastpath.MeasureNoConflict(ctx, s.server, w[0], s.among(withoutConflicts...), s.noConflictEffort())
		if err != nil {
			return err
		}
		s.results.NoConflict = append(s.results.NoConflict, c)
		s.shout()
	}
	return nil
}

func (s *session) scan(ctx context.Context) error {
	s.progress("a skewed query")
	effort, rows := s.skewedEffort()
	skewed, err := fastpath.MeasureSkewed(ctx, s.server, s.among(readers...), rows, effort)
	if err != nil {
		return err
	}
	s.results.Skewed = &skewed
	s.progress("a large result")
	scan, err := fastpath.MeasureScan(ctx, s.server, s.among(readers...), s.scanEffort())
	if err != nil {
		return err
	}
	s.results.Scan = &scan
	return nil
}

func (s *session) contention(ctx context.Context) error {
	if err := s.mayChangeTimeouts(ctx); err != nil {
		return err
	}
	plans := s.cells()
	var left time.Duration
	for _, plan := range plans {
		left += plan.Estimate()
	}
	for i, plan := range plans {
		s.progress("contention %d/%d, about %s to go: %s", i+1, len(plans), left.Round(time.Second), plan.Conditions)
		cell, err := contention.Measure(ctx, s.server, plan, func(system string, run result.Run) {
			s.progress("  %-12s %8.0f/s  %.2f attempts  %d lost  p99 %s", system, run.Rate(), run.AttemptsPerCommit(), run.Lost(), run.P99.Round(time.Microsecond))
		})
		if err != nil {
			return err
		}
		s.results.Contention = append(s.results.Contention, cell)
		left -= plan.Estimate()
		s.shout()
	}
	if s.restricted {
		return nil
	}
	plan, storm := s.patience()
	for _, system := range s.among(peer.Pgretry, peer.RunInTx) {
		s.progress("false aborts: %s", system.ID)
		p, err := contention.MeasurePatience(ctx, s.server, plan, system, storm)
		if err != nil {
			return err
		}
		s.progress("  %d attempts, %d commits", p.Run.Attempts, p.Run.Committed)
		s.results.Patience = append(s.results.Patience, p)
		s.shout()
	}
	return nil
}

func (s *session) mayChangeTimeouts(ctx context.Context) (err error) {
	schema, err := s.server.Schema(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, schema.Drop()) }()
	return schema.MayChange(ctx, target.DeadlockTimeout(s.deadlockTimeouts[0]))
}

func (s *session) processes(ctx context.Context) error {
	all, rounds := s.groups()
	for _, plans := range all {
		if err := s.turns(ctx, plans, rounds); err != nil {
			return err
		}
		s.shout()
	}
	return nil
}

// turns lets groups of processes take turns.
func (s *session) turns(ctx context.Context, plans []processes.Plan, rounds int) (err error) {
	var groups []*processes.Group
	defer func() {
		for _, group := range groups {
			err = errors.Join(err, group.Close())
		}
	}()
	for _, plan := range plans {
		s.progress("%d processes, lease %t: %s", plan.Processes, plan.Lease, plan.Conditions)
		group, err := processes.Start(ctx, s.server, plan)
		if err != nil {
			return err
		}
		groups = append(groups, group)
	}
	for range rounds {
		for _, i := range rand.Perm(len(groups)) {
			if err := groups[i].Turn(ctx); err != nil {
				return err
			}
		}
	}
	for _, group := range groups {
		s.results.Processes = append(s.results.Processes, group.Seen())
	}
	return nil
}

// show prints the tables, and writes the files that were asked for.
func (s *session) show(out io.Writer) error {
	var plots []report.Plot
	if s.out != "" {
		if err := os.MkdirAll(s.out, 0o777); err != nil {
			return err
		}
		var err error
		if plots, err = report.Plots(s.out, s.results); err != nil {
			return err
		}
	}
	var tables bytes.Buffer
	if err := report.Markdown(&tables, s.results, plots); err != nil {
		return err
	}
	if s.out != "" {
		var saved bytes.Buffer
		if err := s.results.Write(&saved); err != nil {
			return err
		}
		for name, content := range map[string][]byte{"results.md": tables.Bytes(), "results.json": saved.Bytes()} {
			if err := os.WriteFile(filepath.Join(s.out, name), content, 0o666); err != nil {
				return err
			}
		}
	}
	_, err := out.Write(tables.Bytes())
	return err
}

// broken says whether pgretry broke an invariant.
func (s *session) broken() bool {
	return s.results != nil && slices.ContainsFunc(report.AllBroken(s.results), report.Broken.Ours)
}
