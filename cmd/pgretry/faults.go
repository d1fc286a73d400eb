package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/pgretry/pgretry"
	"github.com/pgretry/pgretry/cmd/pgretry/internal/report"
	"github.com/pgretry/pgretry/cmd/pgretry/internal/runner"
	"github.com/pgretry/pgretry/internal/certainty"
	"github.com/pgretry/pgretry/internal/pgserver"
)

// What the demo of faults does where the command line says nothing.
const (
	faultWorkers  = 16
	faultDuration = 6 * time.Second
	loneWrites    = 240
	commitTrials  = 160
)

// commitFaults are the scenarios on show. lib/pq meets those before the first that takes the
// server away.
var commitFaults = []string{
	"a cut before the server got it",
	"a cut after the server got it",
	"a cut after the server answered",
	"a black hole after the server got it",
}

// serverDeath is a scenario for pgretry alone.
const serverDeath = "the server killed with -9, others taking ids"

// refuseWithFaults are flags that mean nothing there.
var refuseWithFaults = []string{"workload", "dsn", "deadlock-timeout"}

// runFaults is "pgretry demo --faults".
func (d *demo) runFaults(command *cobra.Command) (err error) {
	ctx := command.Context()
	for _, name := range refuseWithFaults {
		if command.Flags().Changed(name) {
			return usageError{fmt.Errorf("--%s cannot be used with --faults", name)}
		}
	}
	if os.Getenv(pgserver.EnvDSN) != "" {
		return usageError{fmt.Errorf("--faults kills the server it uses: unset %s, so that it starts its own", pgserver.EnvDSN)}
	}
	workers, duration := faultWorkers, faultDuration
	if command.Flags().Changed("workers") {
		workers = d.workers
	}
	if command.Flags().Changed("duration") {
		duration = d.duration
	}
	progress := report.NewProgress(command.ErrOrStderr(), 0)
	fetching, closeFetcher, err := fetchOption(progress)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeFetcher()) }()

	found := report.Faults{Seed: d.seed}
	step, steps := 0, 4+len(certainty.BankSides())
	begin := func(what, with string) error {
		step++
		return progress.Say("[%d/%d] %s %s", step, steps, what, with)
	}
	for _, part := range []func() error{
		func() error { return d.loneWrites(ctx, fetching, &found, begin) },
		func() error { return d.commits(ctx, fetching, &found, begin) },
		func() error { return d.banks(ctx, fetching, &found, workers, duration, begin) },
	} {
		if err := part(); err != nil {
			return err
		}
	}
	write := report.WriteFaultsText
	if d.json {
		write = report.WriteFaultsJSON
	}
	if err := write(command.OutOrStdout(), found); err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	return found.Broken()
}

// openPlain opens a database with lib/pq alone.
func openPlain(dsn string, _ ...pgretry.Option) (*sql.DB, error) { return sql.Open("postgres", dsn) }

func (d *demo) loneWrites(ctx context.Context, fetching pgserver.Option, found *report.Faults, begin func(what, with string) error) (err error) {
	server, err := pgserver.Start(ctx, fetching)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Stop()) }()
	found.ServerVersion = server.Version()
	config := certainty.LoneConfig{DSN: server.DSN(), Trials: loneWrites, Seed: d.seed}

	const what = "writes outside a transaction, cut off:"
	without := config
	without.Driver, without.Open, without.Bare = runner.Plain.Name, openPlain, true
	if err := begin(what, without.Driver); err != nil {
		return err
	}
	if found.LoneWithout, err = certainty.LoneWrites(ctx, without); err != nil {
		return err
	}
	config.Driver = "pgretry"
	if err := begin(what, config.Driver); err != nil {
		return err
	}
	found.Lone, err = certainty.LoneWrites(ctx, config)
	return err
}

func (d *demo) commits(ctx context.Context, fetching pgserver.Option, found *report.Faults, begin func(what, with string) error) (err error) {
	config := certainty.CommitConfig{Trials: commitTrials, Only: commitFaults, Seed: d.seed, Server: []pgserver.Option{fetching}}

	const what = "COMMITs without an answer:"
	without := config
	without.Driver, without.Open, without.Bare = runner.Plain.Name, openPlain, true
	if err := begin(what, without.Driver); err != nil {
		return err
	}
	if found.CommitsWithout, err = certainty.Commits(ctx, without); err != nil {
		return err
	}
	config.Driver = "pgretry"
	config.Only = append(config.Only[:len(config.Only):len(config.Only)], serverDeath)
	if err := begin(what, config.Driver); err != nil {
		return err
	}
	found.Commits, err = certainty.Commits(ctx, config)
	return err
}

func (d *demo) banks(ctx context.Context, fetching pgserver.Option, found *report.Faults, workers int, duration time.Duration, begin func(what, with string) error) (err error) {
	server, err := pgserver.Start(ctx, fetching, pgserver.WithSettings(certainty.BankSettings()))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Stop()) }()
	for _, side := range certainty.BankSides() {
		if err := begin("a bank under fire:", side.Name); err != nil {
			return err
		}
		bank, err := certainty.Bank(ctx, server, side, certainty.BankConfig{Seed: d.seed, Workers: workers, Duration: duration})
		if err != nil {
			return err
		}
		if side.PGRetry() {
			found.Banks = append(found.Banks, bank)
		} else {
			found.BankWithout = bank
		}
	}
	return nil
}
