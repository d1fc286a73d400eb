package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/pgretry/pgretry/cmd/pgretry/internal/fetch"
	"github.com/pgretry/pgretry/cmd/pgretry/internal/report"
	"github.com/pgretry/pgretry/cmd/pgretry/internal/runner"
	"github.com/pgretry/pgretry/cmd/pgretry/internal/sandbox"
	"github.com/pgretry/pgretry/cmd/pgretry/internal/spantree"
	"github.com/pgretry/pgretry/cmd/pgretry/internal/workload"
	"github.com/pgretry/pgretry/internal/pgserver"
)

const (
	maxWorkers = 64
	// cleanupTimeout bounds what is done after an interruption on a server that is not ours.
	cleanupTimeout = 700 * time.Millisecond
)

// demo is what the flags of "pgretry demo" say.
type demo struct {
	workloads       []string
	workers         int
	duration        time.Duration
	dsn             string
	json            bool
	seed            uint64
	deadlockTimeout time.Duration
	// deadlockTimeoutGiven is whether the user asked for that deadlock_timeout.
	deadlockTimeoutGiven bool
}

func newDemoCommand() *cobra.Command {
	d := &demo{workers: 8, duration: 2500 * time.Millisecond, seed: 1, deadlockTimeout: 10 * time.Millisecond}
	command := &cobra.Command{
		Use:   "demo",
		Short: "Run transactions that conflict, with lib/pq and with pgretry, and compare",
		Long:  demoHelp(),
		Example: `  pgretry demo
  pgretry demo --workload crossing,upserts --workers 16 --duration 10s
  pgretry demo --dsn postgres://me@localhost/test --json > result.json`,
		Args: noArguments,
		RunE: func(command *cobra.Command, _ []string) error {
			if command.Flags().Changed("dsn") && strings.TrimSpace(d.dsn) == "" {
				return usageError{fmt.Errorf(`invalid argument "" for "--dsn" flag: %w`, sandbox.ErrDSN)}
			}
			d.deadlockTimeoutGiven = command.Flags().Changed("deadlock-timeout")
			return d.run(command)
		},
	}
	flags := command.Flags()
	flags.SortFlags = false
	flags.Var(workloadsValue{&d.workloads}, "workload", "run only these `names`, separated by commas or in several flags")
	flags.Var(countValue{&d.workers, 2, maxWorkers}, "workers", fmt.Sprintf("goroutines, each with its own connection, 2 to %d", maxWorkers))
	flags.Var(durationValue{&d.duration, 10 * time.Millisecond, time.Hour}, "duration", "time per workload and driver; transactions under way are then finished")
	flags.StringVar(&d.dsn, "dsn", "", "use the server at this connection `string`, in a schema that is dropped afterwards")
	flags.Var(durationValue{&d.deadlockTimeout, time.Millisecond, time.Minute}, "deadlock-timeout", "PostgreSQL's deadlock_timeout for the demo's sessions; its own default is 1s")
	flags.Var(seedValue{&d.seed}, "seed", "decides which rows each transaction touches")
	flags.BoolVar(&d.json, "json", false, "write the result to stdout as JSON")
	return command
}

func demoHelp() string {
	var help strings.Builder
	help.WriteString(`Run transactions that deadlock or fail to serialize: each workload first with lib/pq, every
transaction tried once, then the same work with pgretry. At the end a table says what the
application saw of it, and a tree shows the OpenTelemetry spans of one transaction that took
three attempts.

Without --dsn, or the variable ` + pgserver.EnvDSN + ` that means the same, it starts a throwaway
PostgreSQL server on 127.0.0.1 and removes it afterwards. The server's binaries are looked for on
this machine and otherwise downloaded; the variable ` + repositoryVariable + ` names another
Maven repository to take them from.

Workloads:
`)
	for _, w := range workload.All(0) {
		fmt.Fprintf(&help, "  %-13s %s\n", w.Name(), w.About())
	}
	help.WriteString(`
Exit status: 0 if pgretry's side lost nothing, 1 if it did or the demo could not be run, 2 for a
wrong command line, 130 if interrupted. That lib/pq's side fails is what is being shown.`)
	return help.String()
}

func (d *demo) run(command *cobra.Command) (err error) {
	ctx := command.Context()
	workloads, err := workload.Select(d.seed, d.workloads)
	if err != nil {
		return usageError{err}
	}
	progress := report.NewProgress(command.ErrOrStderr(), 2*len(workloads))
	defer func() { err = errors.Join(err, progress.Close()) }()

	box, closeBox, err := d.open(ctx, progress)
	if err != nil {
		return err
	}
	closed := false
	defer func() {
		if !closed {
			if left := closeBox(); left != nil {
				err = errors.Join(err, cleanupError{left})
			}
		}
	}()
	found := report.Demo{
		ServerVersion: box.ServerVersion(), DeadlockTimeout: box.DeadlockTimeout(),
		Workers: d.workers, Duration: d.duration, Seed: d.seed,
	}
	err = progress.Say("PostgreSQL %s, deadlock_timeout %v, %d workers, %v per workload and driver",
		found.ServerVersion, found.DeadlockTimeout, d.workers, d.duration)
	if err != nil {
		return err
	}
	if found.Results, err = d.runAll(ctx, box, workloads, progress); err != nil {
		return err
	}
	// What the workloads showed is worth showing without a tree, too.
	var captured error
	if found.Transaction, captured = spantree.Capture(ctx, box); ctx.Err() != nil {
		return context.Cause(ctx)
	}
	closed = true
	if err := errors.Join(closeBox(), progress.Close()); err != nil {
		return err
	}
	write := report.WriteText
	if d.json {
		write = report.WriteJSON
	}
	if err := write(command.OutOrStdout(), found); err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	return errors.Join(lost(found.Lost(runner.Retrying)), captured)
}

// open returns a sandbox on the user's server or on a throwaway one, and what ends both.
func (d *demo) open(ctx context.Context, progress *report.Progress) (_ *sandbox.Sandbox, end func() error, err error) {
	dsn := d.dsn
	if dsn == "" {
		dsn = os.Getenv(pgserver.EnvDSN)
	}
	settings := sandbox.Settings{DeadlockTimeout: d.deadlockTimeout, Insist: d.deadlockTimeoutGiven}
	if dsn != "" {
		box, err := sandbox.Open(ctx, dsn, settings)
		if errors.Is(err, sandbox.ErrDSN) {
			return nil, nil, usageError{fmt.Errorf("%s: %w", d.dsnSource(), err)}
		}
		if err != nil {
			return nil, nil, err
		}
		return box, func() error { return closeSandbox(ctx, box) }, nil
	}

	if err := progress.Say("starting a throwaway PostgreSQL server"); err != nil {
		return nil, nil, err
	}
	fetcher, err := newFetcher()
	if err != nil {
		return nil, nil, err
	}
	server, err := pgserver.Start(ctx, pgserver.WithFetch(func(ctx context.Context) (string, error) {
		if err := progress.Say("no PostgreSQL on this machine: fetching version %s", fetch.Version); err != nil {
			return "", err
		}
		return fetcher.Fetch(ctx)
	}))
	if err != nil {
		return nil, nil, errors.Join(err, fetcher.Close())
	}
	stop := func() error { return errors.Join(server.Stop(), fetcher.Close()) }
	box, err := sandbox.Open(ctx, server.DSN(), settings)
	if err != nil {
		return nil, nil, errors.Join(err, stop())
	}
	return box, func() error { return errors.Join(box.Abandon(), stop()) }, nil
}

// dsnSource says where the connection string comes from, without showing it.
func (d *demo) dsnSource() string {
	if d.dsn == "" {
		return "invalid environment variable " + pgserver.EnvDSN
	}
	return `invalid argument for "--dsn" flag`
}

// closeSandbox works after an interruption, too.
func closeSandbox(ctx context.Context, box *sandbox.Sandbox) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	return box.Close(ctx)
}

func newFetcher() (*fetch.Fetcher, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	fetcher := &fetch.Fetcher{Command: []string{self, unpackCommand}}
	// Without a home directory nothing is kept.
	if cache, err := os.UserCacheDir(); err == nil {
		fetcher.CacheDir = filepath.Join(cache, "pgretry")
	}
	return fetcher, nil
}

func (d *demo) runAll(ctx context.Context, box *sandbox.Sandbox, workloads []workload.Workload, progress *report.Progress) ([]runner.Result, error) {
	load := runner.Load{Workers: d.workers, Duration: d.duration}
	var results []runner.Result
	for _, w := range workloads {
		for _, side := range []runner.Side{runner.Plain, runner.Retrying} {
			if err := progress.Begin(w.Name(), side.Name); err != nil {
				return nil, err
			}
			result, err := runner.Run(ctx, box, side, w, load, progress.Observe)
			if err != nil {
				return nil, err
			}
			results = append(results, result)
			if err := progress.End(result); err != nil {
				return nil, err
			}
		}
	}
	return results, nil
}

// lost turns results in which pgretry let the application down into one error.
func lost(results []runner.Result) error {
	var errs []error
	for _, r := range results {
		switch {
		case r.Violation != nil:
			errs = append(errs, fmt.Errorf("pgretry violated an invariant: %w", r.Violation))
		case r.Errors > 0:
			errs = append(errs, fmt.Errorf("pgretry lost %d transactions of %s, one of them with: %w", r.Errors, r.Workload, r.First))
		default:
			errs = append(errs, fmt.Errorf("pgretry committed no transaction of %s", r.Workload))
		}
	}
	return errors.Join(errs...)
}
