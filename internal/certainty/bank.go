package certainty

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pgretry/pgretry/internal/faultproxy"
	"github.com/pgretry/pgretry/internal/pgserver"
)

// BankSettings are what [Bank] needs of a server: what was reported committed has to
// survive the server's processes being killed, in whatever they are writing, though
// not the machine's end; and deadlocks should not take long.
func BankSettings() map[string]string {
	return map[string]string{
		"deadlock_timeout":   "20ms",
		"synchronous_commit": "on",
		"full_page_writes":   "on",
	}
}

// BankConfig says what a run of [Bank] does.
type BankConfig struct {
	// Seed decides the transfers and, as far as the course of events does not, the
	// faults.
	Seed uint64
	// Workers is how many transfer money at a time, each on a connection of its own.
	// Zero means 16.
	Workers int
	// Accounts is how many accounts there are. Fewer mean more deadlocks. Zero means
	// 24; the least is 2.
	Accounts int
	// Duration is how long there are faults. Zero means 8 seconds. The run itself is
	// longer, by what it takes to commit a transfer per worker afterwards.
	Duration time.Duration
	// Thorough makes the faults go on beyond Duration, if need be, until each kind that
	// is the server's has happened.
	Thorough bool
}

func (c BankConfig) withDefaults() BankConfig {
	if c.Workers == 0 {
		c.Workers = 16
	}
	if c.Accounts == 0 {
		c.Accounts = 24
	}
	if c.Duration == 0 {
		c.Duration = 8 * time.Second
	}
	return c
}

const (
	// bankRecovery is how long a worker may take to commit a transfer when there are no
	// faults any more.
	bankRecovery = 30 * time.Second
	// bankSettling is how long the sessions of an application that is gone may stay.
	bankSettling = 30 * time.Second
	// bankSlack is what a run may take beyond the time of its faults.
	bankSlack = 2 * time.Minute

	bankOpening = 1_000_000 // each account's balance at first
)

var errBankStuck = errors.New("certainty: the transfers did not come to an end")

// Bank lets workers transfer money between accounts while connections are cut,
// backends terminated and the server restarted and killed, and compares what they were
// told with what is in the database. It needs a server of its own, with
// [BankSettings]; what it makes there it removes.
//
// An error means that there is no finding. What was found to be wrong is in the report.
func Bank(ctx context.Context, server *pgserver.Server, side BankSide, config BankConfig) (_ *BankReport, err error) {
	config = config.withDefaults()
	if config.Accounts < 2 {
		return nil, fmt.Errorf("certainty: a bank with %d accounts, want 2 or more", config.Accounts)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, config.Duration+bankSlack, errBankStuck)
	defer cancel()
	b := &bank{config: config, side: side, settling: bankSettling}
	defer func() {
		if err != nil && ctx.Err() != nil {
			err = context.Cause(ctx) // the rest follows from it
		}
		err = errors.Join(err, b.close(ctx))
	}()
	if err := b.open(ctx, server); err != nil {
		return nil, err
	}
	report := &BankReport{Side: side.Name, Workers: config.Workers, Duration: config.Duration, Told: make(map[string]int)}
	if err := b.underFire(ctx, server, report); err != nil {
		return nil, err
	}
	if err := b.audit(ctx, report); err != nil {
		return nil, err
	}
	return report, nil
}

// bank is one run.
type bank struct {
	config   BankConfig
	side     BankSide
	settling time.Duration // how long what the application leaves may stay

	schema      *pgserver.Schema
	application string  // the name that the sessions of the side have at the server
	admin       *sql.DB // around the proxy, with lib/pq
	proxy       *faultproxy.Proxy
	db          *sql.DB // the side's, through the proxy

	calm    atomic.Bool // the faults are over
	workers [][]bankResult
}

// bankResult is a transfer and what its worker was told of it.
type bankResult struct {
	transfer bankTransfer
	claim    commitClaim
	calm     bool // it was begun after the last fault
	err      error
	took     time.Duration
}

func (b *bank) open(ctx context.Context, server *pgserver.Server) (err error) {
	if b.schema, err = server.NewSchema(ctx); err != nil {
		return fmt.Errorf("certainty: %w", err)
	}
	b.application = b.schema.Name
	if b.admin, err = sql.Open("postgres", b.schema.DSN); err != nil {
		return fmt.Errorf("certainty: open the database: %w", err)
	}
	// No constraint may hide a transfer that is booked twice.
	for _, text := range []string{
		`CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL)`,
		`CREATE TABLE ledger (transfer bigint, source int, target int, amount bigint)`,
		fmt.Sprintf(`INSERT INTO accounts SELECT i, %d FROM generate_series(1, %d) i`, bankOpening, b.config.Accounts),
	} {
		if _, err := b.admin.ExecContext(ctx, text); err != nil {
			return fmt.Errorf("certainty: open the accounts: %w", err)
		}
	}
	address, err := commitAddress(server.DSN())
	if err != nil {
		return err
	}
	if b.proxy, err = faultproxy.Start("tcp", address, nil); err != nil {
		return fmt.Errorf("certainty: %w", err)
	}
	dsn, err := b.proxy.DSN(b.schema.DSN)
	if err != nil {
		return fmt.Errorf("certainty: %w", err)
	}
	parameters := map[string]string{"application_name": b.application}
	maps.Copy(parameters, b.side.parameters)
	if dsn, err = commitDSN(dsn, parameters); err != nil {
		return err
	}
	if b.db, err = sql.Open(b.side.driver, dsn); err != nil {
		return fmt.Errorf("certainty: open the database as %s: %w", b.side.Name, err)
	}
	b.db.SetMaxOpenConns(b.config.Workers)
	b.db.SetMaxIdleConns(b.config.Workers)
	return nil
}

// close works after ctx has ended, too.
func (b *bank) close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), bankSettling)
	defer cancel()
	var failures []error
	if b.db != nil {
		failures = append(failures, b.db.Close())
	}
	if b.proxy != nil {
		failures = append(failures, b.proxy.Close())
	}
	if b.admin != nil {
		// It may be recovering from a crash.
		failures = append(failures, b.answers(ctx), b.admin.Close())
	}
	if b.schema != nil {
		failures = append(failures, b.schema.Drop(ctx))
	}
	if err := errors.Join(failures...); err != nil {
		return fmt.Errorf("certainty: close the bank: %w", err)
	}
	return nil
}

// underFire runs the workers and the faults, and returns when both are over.
func (b *bank) underFire(ctx context.Context, server *pgserver.Server, report *BankReport) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	b.workers = make([][]bankResult, b.config.Workers)
	var workers sync.WaitGroup
	for worker := range b.config.Workers {
		workers.Go(func() { b.work(ctx, worker) })
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		workers.Wait()
	}()
	chaos := newBankChaos(b, server)
	if err := chaos.run(ctx); err != nil {
		cancel(err)
	}
	b.calm.Store(true)
	peace := time.Now()
	b.releaseUntil(done)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	report.Faults, report.Recovery = chaos.counts(), time.Since(peace)
	for _, results := range b.workers {
		report.count(results)
	}
	return nil
}

// releaseUntil lets go what a rule has held that was asked in the very moment when the
// faults ended.
func (b *bank) releaseUntil(done <-chan struct{}) {
	poll := time.NewTicker(bankPoll)
	defer poll.Stop()
	for {
		b.proxy.Release()
		select {
		case <-poll.C:
		case <-done:
			return
		}
	}
}

// work transfers money until the faults are over and one more transfer is committed.
func (b *bank) work(ctx context.Context, worker int) {
	plans := newBankPlans(b.config, b.side, worker)
	var recovery time.Time // until when, once the faults are over
	for ctx.Err() == nil {
		calm := b.calm.Load()
		if calm && recovery.IsZero() {
			recovery = time.Now().Add(bankRecovery)
		}
		transfer := plans.next(calm)
		began := time.Now()
		err := b.side.transfer(ctx, b.db, transfer)
		b.workers[worker] = append(b.workers[worker], bankResult{transfer: transfer, claim: commitClaimed(err), calm: calm, err: err, took: time.Since(began)})
		if calm && (err == nil || time.Now().After(recovery)) {
			return
		}
		if err != nil {
			// A server that is away answers every attempt at once.
			_ = commitPause(ctx, plans.between(5*time.Millisecond, 50*time.Millisecond)) // the loop looks at ctx
		}
	}
}

// count adds what a worker was told.
func (r *BankReport) count(results []bankResult) {
	for _, result := range results {
		r.Transfers++
		r.Slowest = max(r.Slowest, result.took)
		if result.err != nil {
			r.Told[bankError(result.err)]++
		}
		switch result.claim {
		case commitAffirmed:
			r.Committed++
			if result.calm {
				r.CommittedAfterwards++
			}
		case commitDenied:
			r.Failed++
		case commitOpen:
			r.Unknown++
		}
	}
	if !slices.ContainsFunc(results, func(result bankResult) bool { return result.calm && result.claim == commitAffirmed }) {
		r.Stuck++
	}
}
