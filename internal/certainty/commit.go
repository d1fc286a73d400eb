package certainty

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	_ "github.com/lib/pq" // the truth is read with it

	"github.com/pgretry/pgretry"
	"github.com/pgretry/pgretry/internal/pgserver"
)

// CommitConfig says what a run of [Commits] does. The zero value is the full run.
type CommitConfig struct {
	// Trials is how many transactions meet a fault, in all scenarios together. Zero
	// means 5000. Each scenario has a few at least, so that there may be more.
	Trials int
	// Only are the names of the scenarios to run. None means all.
	Only []string
	// Driver is the name of what is tried, for the report. The zero value means
	// "lib/pq".
	Driver string
	// Open opens a database with the driver that is tried. Nil means [pgretry.Open].
	// The DSN is a URL, with parameters whose names begin with pgretry_ unless Bare.
	Open func(dsn string, options ...pgretry.Option) (*sql.DB, error)
	// Bare says that Open opens a database without this module's driver. There are
	// no closures then.
	Bare bool
	// Outcome is pgretry_commit_outcome. The zero value means "resolve".
	Outcome string
	// Style is how the transactions are written. The zero value is by turns.
	Style CommitStyle
	// Workers is how many transactions there are at a time where the fault is one
	// connection's alone. Zero means 2.
	Workers int
	// Seed decides when and how faults strike, as far as the course of events does
	// not.
	Seed uint64
	// Server are options for the server that is started.
	Server []pgserver.Option
	// Logf is told what goes on. Nil means nobody is.
	Logf func(format string, args ...any)
}

// CommitStyle is how a transaction is written.
type CommitStyle uint8

// The ways to write a transaction.
const (
	// CommitByTurns is both of the others, by turns.
	CommitByTurns CommitStyle = iota
	// CommitPlain uses database/sql alone.
	CommitPlain
	// CommitClosure uses RunInTx.
	CommitClosure
)

func (c CommitConfig) withDefaults() CommitConfig {
	if c.Trials == 0 {
		c.Trials = 5000
	}
	if c.Driver == "" {
		c.Driver = "lib/pq"
	}
	if c.Open == nil {
		c.Open = pgretry.Open
	}
	if c.Bare {
		c.Outcome, c.Style = "", CommitPlain
	} else if c.Outcome == "" {
		c.Outcome = "resolve"
	}
	if c.Workers == 0 {
		c.Workers = 2
	}
	if c.Logf == nil {
		c.Logf = func(string, ...any) {}
	}
	return c
}

// commitSettings make what was reported committed survive the server's processes
// being killed, and keep what was not from reaching the disk by itself.
var commitSettings = map[string]string{
	"synchronous_commit":        "on",
	"full_page_writes":          "on",
	"wal_writer_delay":          "10s",
	"max_prepared_transactions": "64",
}

// CommitScenarios returns the names of all scenarios.
func CommitScenarios() []string {
	var names []string
	for _, s := range commitScenarios {
		names = append(names, s.name)
	}
	return names
}

// Commits lets transactions, each of which writes a marker that is its alone, meet a
// fault at COMMIT, and compares what the application is told with the marker when
// nothing can change any more. It starts and stops a server of its own.
//
// An error means that there is no finding. What was found to be wrong is in the report.
func Commits(ctx context.Context, config CommitConfig) (_ *CommitReport, err error) {
	config = config.withDefaults()
	for _, name := range config.Only {
		if !slices.Contains(CommitScenarios(), name) {
			return nil, fmt.Errorf("certainty: there is no scenario %q", name)
		}
	}
	server, err := pgserver.Start(ctx, append([]pgserver.Option{pgserver.WithSettings(commitSettings)}, config.Server...)...)
	if err != nil {
		return nil, fmt.Errorf("certainty: %w", err)
	}
	r := &commitRun{config: config, server: server}
	defer func() { err = errors.Join(err, r.close()) }()
	if err := r.prepare(ctx); err != nil {
		return nil, err
	}
	report := &CommitReport{Driver: config.Driver, Outcome: config.Outcome, Server: server.Version()}
	for i, s := range commitScenarios {
		switch {
		case config.Only != nil && !slices.Contains(config.Only, s.name):
			continue
		case s.own && server.External():
			report.NotRun = append(report.NotRun, s.name)
			continue
		}
		result := &CommitResult{Scenario: s.name}
		trials := max(s.least, config.Trials*s.share/1000)
		began := time.Now()
		r.prefix = fmt.Sprintf("certainty-%d-%d", i, config.Seed)
		if err := s.run(ctx, r, trials, result); err != nil {
			return nil, fmt.Errorf("certainty: %s: %w", s.name, err)
		}
		result.finish()
		report.Results = append(report.Results, result)
		config.Logf("%s: %d trials in %v, %d wrong", s.name, result.Trials, time.Since(began).Round(time.Millisecond), result.Wrong)
	}
	return report, nil
}

// commitRun is one run of Commits.
type commitRun struct {
	config CommitConfig
	server *pgserver.Server // the primary
	admin  atomic.Pointer[sql.DB]
	prefix string // of the names of a scenario's transactions
	serial atomic.Int64
}

// commitTables are what the transactions write into. No constraint hides a marker that
// is written twice. Rows of slow keep their COMMIT busy for so many seconds.
var commitTables = []string{
	`CREATE TABLE marker (id text)`,
	`CREATE TABLE companion (id text)`,
	`CREATE TABLE slow (id text, seconds float8)`,
	`CREATE TABLE others (xid bigint)`,
	`CREATE FUNCTION doze() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(NEW.seconds); RETURN NULL; END $$`,
	`CREATE CONSTRAINT TRIGGER doze AFTER INSERT ON slow DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE PROCEDURE doze()`,
}

func (r *commitRun) prepare(ctx context.Context) error {
	if err := r.serves(r.server); err != nil {
		return err
	}
	for _, text := range commitTables {
		if _, err := r.admin.Load().ExecContext(ctx, text); err != nil {
			return fmt.Errorf("certainty: make the tables: %w", err)
		}
	}
	return nil
}

// serves makes a server the one whose database is the truth.
func (r *commitRun) serves(server *pgserver.Server) error {
	// Our own commits must not wait for a standby that is kept from confirming.
	dsn, err := commitDSN(server.DSN(), map[string]string{"synchronous_commit": "local"})
	if err != nil {
		return err
	}
	admin, err := sql.Open("postgres", dsn)
	if err != nil {
		return fmt.Errorf("certainty: open the database: %w", err)
	}
	r.server = server
	if former := r.admin.Swap(admin); former != nil {
		return former.Close()
	}
	return nil
}

func (r *commitRun) close() error {
	var failures []error
	if admin := r.admin.Load(); admin != nil {
		failures = append(failures, admin.Close())
	}
	return errors.Join(append(failures, r.server.Stop())...)
}

const (
	// commitPoll is how often a state is looked at that nobody announces.
	commitPoll = 2 * time.Millisecond
	// commitPatience is how long such a state may take to come.
	commitPatience = 2 * time.Minute
)

// ask queries one row, as often as it takes: the server may be on its way back.
func (r *commitRun) ask(ctx context.Context, query string, args []any, to ...any) error {
	return commitAwait(ctx, func() (bool, error) {
		err := r.admin.Load().QueryRowContext(ctx, query, args...).Scan(to...)
		return err == nil, err
	})
}

// do executes a statement, once.
func (r *commitRun) do(ctx context.Context, query string, args ...any) error {
	if _, err := r.admin.Load().ExecContext(ctx, query, args...); err != nil {
		return fmt.Errorf("%s: %w", query, err)
	}
	return nil
}

// gone waits until no session has the name any more: until then, what it was told to
// do may still be done.
func (r *commitRun) gone(ctx context.Context, names ...string) error {
	for _, name := range names {
		err := commitAwait(ctx, func() (bool, error) {
			var sessions int
			err := r.ask(ctx, `SELECT count(*) FROM pg_stat_activity WHERE application_name = $1`, []any{name}, &sessions)
			return err == nil && sessions == 0, err
		})
		if err != nil {
			return fmt.Errorf("wait until the sessions of %s are gone: %w", name, err)
		}
	}
	return nil
}

// commitAwait waits until a state is reached.
func commitAwait(ctx context.Context, reached func() (bool, error)) error {
	for limit := time.Now().Add(commitPatience); ; {
		there, err := reached()
		if there {
			return nil
		}
		if time.Now().After(limit) {
			return errors.Join(fmt.Errorf("it took more than %v", commitPatience), err)
		}
		if err := commitPause(ctx, commitPoll); err != nil {
			return err
		}
	}
}

// commitPause returns after d, or with the cause of the context's end.
func commitPause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// commitDSN adds parameters to a DSN in the URL form.
func commitDSN(dsn string, parameters map[string]string) (string, error) {
	u, err := url.Parse(dsn)
	if err != nil {
		return "", errors.New("certainty: the server's connection string is no URL")
	}
	query := u.Query()
	for name, value := range parameters {
		if value != "" {
			query.Set(name, value)
		}
	}
	u.RawQuery = query.Encode()
	return u.String(), nil
}

// commitAddress returns host and port of a DSN in the URL form.
func commitAddress(dsn string) (string, error) {
	u, err := url.Parse(dsn)
	if err != nil {
		return "", errors.New("certainty: the server's connection string is no URL")
	}
	return u.Host, nil
}

// commitChance draws random numbers for several goroutines.
type commitChance struct {
	mu     sync.Mutex
	random *rand.Rand
}

func newCommitChance(seed, stream uint64) *commitChance {
	return &commitChance{random: rand.New(rand.NewPCG(seed, stream))}
}

// under returns a number from 0 to n-1.
func (c *commitChance) under(n int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.random.IntN(n)
}

// upTo returns a duration of at most d, short ones as often as long ones.
func (c *commitChance) upTo(d time.Duration) time.Duration {
	return time.Duration(c.under(int(d)) + 1)
}
