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

	"github.com/pgretry/pgretry"
	"github.com/pgretry/pgretry/cmd/pgretry/internal/fetch"
	"github.com/pgretry/pgretry/cmd/pgretry/internal/report"
	"github.com/pgretry/pgretry/cmd/pgretry/internal/runner"
	"github.com/pgretry/pgretry/cmd/pgretry/internal/sandbox"
	"github.com/pgretry/pgretry/cmd/pgretry/internal/spantree"
	"github.com/pgretry/pgretry/internal/pgserver"
	"github.com/pgretry/pgretry/internal/workload"
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
	faults          bool
	seed            uint64
	deadlockTimeout time.Duration
	// deadlockTimeoutGiven is whether the user asked for that deadlock_timeout.
	deadlockTimeoutGiven bool
}

func newDemoCommand() *cobra.Command {
	d := &demo{workers: 8, duration: 2 * time.Second, seed: 1, deadlockTimeout: 10 * time.Millisecond}
	command := &cobra.Command{
		Use:   "demo",
		Short: "Run transactions that conflict, with lib/pq and with pgretry in two ways, and compare",
		Long:  demoHelp(),
		Example: `  pgretry demo
  pgretry demo --workload crossing,upserts --workers 16 --duration 10s
  pgretry demo --dsn postgres://me@localhost/test --json > result.json
  pgretry demo --faults`,
		Args: noArguments,
		RunE: func(command *cobra.Command, _ []string) error {
			if command.Flags().Changed("dsn") && strings.TrimSpace(d.dsn) == "" {
				return usageError{fmt.Errorf(`invalid argument "" for "--dsn" flag: %w`, sandbox.ErrDSN)}
			}
			if d.faults {
				return d.runFaults(command)
			}
			d.deadlockTimeoutGiven = command.Flags().Changed("deadlock-timeout")
			return d.run(command)
		},
	}
	flags := command.Flags()
	flags.SortFlags = false
	flags.Var(workloadsValue{&d.workloads}, "workload", "run only these `names`, separated by commas or in several flags")
	flags.Var(countValue{&d.workers, 2, maxWorkers}, "workers", fmt.Sprintf("goroutines, each with its own connection, 2 to %d", maxWorkers))
	flags.Var(durationValue{&d.duration, 10 * time.Millisecond, time.Hour}, "duration", "time per workload and side; transactions under way are then finished")
	flags.StringVar(&d.dsn, "dsn", "", "use the server at this connection `string`, in a schema that is dropped afterwards")
	flags.Var(durationValue{&d.deadlockTimeout, time.Millisecond, time.Minute}, "deadlock-timeout", "PostgreSQL's deadlock_timeout for the demo's sessions; its own default is 1s")
	flags.Var(seedValue{&d.seed}, "seed", "decides which rows each transaction touches")
	flags.BoolVar(&d.faults, "faults", false, "break connections and the server instead, and compare what was told with what is there")
	flags.BoolVar(&d.json, "json", false, "write the result to stdout as JSON")
	return command
}

func demoHelp() string {
	var help strings.Builder
	help.WriteString(`Run transactions that deadlock or fail to serialize, each workload on three sides:

  lib/pq       every transaction is tried once; one that fails is given up
  driver only  the very same code, the database being opened with
               sql.Open("` + pgretry.DriverName + `", dsn): the driver replays by itself what it can
               prove to show the application nothing new, and hands out the error of the rest
  RunInTx      the same transaction as a closure, which may run again

At the end a table says what the application saw of it, a list why the driver alone could not hide
some conflicts, and two trees show the OpenTelemetry spans of a transaction each that took several
attempts. It takes about a minute and a half: every workload runs for 2s on each side.

Without --dsn, or the variable ` + pgserver.EnvDSN + ` that means the same, it starts a throwaway
PostgreSQL server on 127.0.0.1 and removes it afterwards. The server's binaries are looked for on
this machine and otherwise downloaded; the variable ` + repositoryVariable + ` names another
Maven repository to take them from.

Workloads:
`)
	for _, w := range workload.All(0) {
		fmt.Fprintf(&help, "  %-14s  %s\n", w.Name(), w.About())
	}
	fmt.Fprintf(&help, `
With --faults it shows lost connections instead, with lib/pq and with pgretry: writes outside
transactions whose connection is cut; COMMITs whose answer does not come; and a bank that transfers
money while connections are cut, backends terminated and the server restarted and killed. Three
tables compare what the application was told with what is in the database. It takes about 45 seconds,
of which --duration is the bank's on each side (%v, with %d workers), and always uses throwaway
servers.
`, faultDuration, faultWorkers)
	help.WriteString(`
Exit status: 0 if pgretry kept its promise, 1 if it did not or the demo could not be run, 2 for a
wrong command line, 130 if interrupted. It is promised that RunInTx loses no transaction, that no
invariant is violated on either of pgretry's sides, and that both get something done; with --faults,
that pgretry applies nothing twice and that what it tells is true. Errors of the other sides are what
is being shown.`)
	return help.String()
}

func (d *demo) run(command *cobra.Command) (err error) {
	ctx := command.Context()
	workloads, err := workload.Select(d.seed, d.workloads)
	if err != nil {
		return usageError{err}
	}
	progress := report.NewProgress(command.ErrOrStderr(), len(runner.Sides())*len(workloads))
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
	err = progress.Say("PostgreSQL %s, deadlock_timeout %v, %d workers, %v per workload and side",
		found.ServerVersion, found.DeadlockTimeout, d.workers, d.duration)
	if err != nil {
		return err
	}
	if found.Results, err = d.runAll(ctx, box, workloads, progress); err != nil {
		return err
	}
	// What the workloads showed is worth showing without trees, too.
	var captured [2]error
	found.Closure, captured[0] = spantree.Capture(ctx, box)
	found.Replay, captured[1] = spantree.CaptureReplay(ctx, box)
	if ctx.Err() != nil {
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
	return errors.Join(found.Broken(), captured[0], captured[1])
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

	server, stop, err := startServer(ctx, progress)
	if err != nil {
		return nil, nil, err
	}
	box, err := sandbox.Open(ctx, server.DSN(), settings)
	if err != nil {
		return nil, nil, errors.Join(err, stop())
	}
	return box, func() error { return errors.Join(box.Abandon(), stop()) }, nil
}

// startServer starts a throwaway server and returns what ends it.
func startServer(ctx context.Context, progress *report.Progress) (_ *pgserver.Server, stop func() error, err error) {
	fetching, closeFetcher, err := fetchOption(progress)
	if err != nil {
		return nil, nil, err
	}
	if err := progress.Say("starting a throwaway PostgreSQL server"); err != nil {
		return nil, nil, errors.Join(err, closeFetcher())
	}
	server, err := pgserver.Start(ctx, fetching)
	if err != nil {
		return nil, nil, errors.Join(err, closeFetcher())
	}
	return server, func() error { return errors.Join(server.Stop(), closeFetcher()) }, nil
}

// fetchOption fetches PostgreSQL for servers where it is not installed.
func fetchOption(progress *report.Progress) (_ pgserver.Option, end func() error, err error) {
	fetcher, err := newFetcher()
	if err != nil {
		return nil, nil, err
	}
	return pgserver.WithFetch(func(ctx context.Context) (string, error) {
		if err := progress.Say("no PostgreSQL on this machine: fetching version %s", fetch.Version); err != nil {
			return "", err
		}
		return fetcher.Fetch(ctx)
	}), fetcher.Close, nil
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
		for _, side := range runner.Sides() {
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
