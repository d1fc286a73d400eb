package certainty

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/pgretry/pgretry"
	"github.com/pgretry/pgretry/internal/faultproxy"
)

// LoneConfig says what a run of [LoneWrites] does.
type LoneConfig struct {
	// DSN is the server's, in the URL form, and leads to a schema that is empty. The
	// tables made there stay.
	DSN string
	// Trials is how many statements are cut. Zero means 1000. The places to cut are
	// taken in a random order, each as often as any other.
	Trials int
	// Driver is the name of what is tried, for the report. The zero value means
	// "pgretry".
	Driver string
	// Open opens a database with what is tried. Nil means [pgretry.Open].
	Open func(dsn string, options ...pgretry.Option) (*sql.DB, error)
	// Bare says that Open opens a database without this module's driver. Its errors
	// are taken for what they are: those about the connection claim nothing.
	Bare bool
	// Workers is how many statements there are at a time. Zero means 2.
	Workers int
	// Seed decides the order.
	Seed uint64
}

func (c LoneConfig) withDefaults() LoneConfig {
	if c.Trials == 0 {
		c.Trials = 1000
	}
	if c.Driver == "" {
		c.Driver = "pgretry"
	}
	if c.Open == nil {
		c.Open = pgretry.Open
	}
	if c.Workers == 0 {
		c.Workers = 2
	}
	return c
}

// LoneWrites executes writes outside transactions while their connection is cut, at
// every message of the exchange with the server, and compares what the application is
// told with how often the write took effect.
//
// An error means that there is no finding. What was found to be wrong is in the report.
func LoneWrites(ctx context.Context, config LoneConfig) (_ *LoneReport, err error) {
	config = config.withDefaults()
	r := &loneRun{config: config}
	if err := r.prepare(ctx); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	cuts, err := r.cuts(ctx)
	if err != nil {
		return nil, err
	}
	report := &LoneReport{Driver: config.Driver, Places: len(cuts)}

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	work := make(chan int, config.Trials)
	for i := range config.Trials {
		work <- i
	}
	close(work)
	var mu sync.Mutex
	var all sync.WaitGroup
	for _, proxy := range r.proxies {
		all.Go(func() {
			for i := range work {
				cut := cuts[i%len(cuts)]
				told, applied, err := r.try(ctx, proxy, &loneTrial{cut: cut, row: r.row()})
				if err != nil {
					cancel(fmt.Errorf("certainty: %v: %w", cut, err))
					return
				}
				mu.Lock()
				report.add(cut, told, applied, config.Bare)
				mu.Unlock()
			}
		})
	}
	all.Wait()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return report, nil
}

// loneRun is one run of LoneWrites.
type loneRun struct {
	config  LoneConfig
	admin   *sql.DB
	proxies []*faultproxy.Proxy

	mu   sync.Mutex
	rows int
}

// loneTables are what is written into. The values of t say how often, by sevens; no
// constraint hides a row that is inserted twice.
var loneTables = []string{
	`CREATE TABLE IF NOT EXISTS t (id int PRIMARY KEY, v int NOT NULL)`,
	`CREATE TABLE IF NOT EXISTS inserted (number bigserial, id int)`,
}

func (r *loneRun) prepare(ctx context.Context) (err error) {
	if r.admin, err = sql.Open("postgres", r.config.DSN); err != nil {
		return fmt.Errorf("certainty: open the database: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.close())
		}
	}()
	for _, text := range loneTables {
		if _, err := r.admin.ExecContext(ctx, text); err != nil {
			return fmt.Errorf("certainty: make the tables: %w", err)
		}
	}
	// Runs with other drivers may have gone before.
	if err := r.admin.QueryRowContext(ctx, `SELECT coalesce(max(id), 0) FROM t`).Scan(&r.rows); err != nil {
		return fmt.Errorf("certainty: look into the tables: %w", err)
	}
	address, err := commitAddress(r.config.DSN)
	if err != nil {
		return err
	}
	for range r.config.Workers {
		proxy, err := faultproxy.Start("tcp", address, nil)
		if err != nil {
			return fmt.Errorf("certainty: %w", err)
		}
		r.proxies = append(r.proxies, proxy)
	}
	return nil
}

func (r *loneRun) close() error {
	var failures []error
	for _, p := range r.proxies {
		failures = append(failures, p.Close())
	}
	return errors.Join(append(failures, r.admin.Close())...)
}

// row returns the id of a row that is nobody else's.
func (r *loneRun) row() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rows++
	return r.rows
}

// loneTrial is one write.
type loneTrial struct {
	cut loneCut
	row int

	mu    sync.Mutex
	armed bool
	seen  map[loneConnMessage]int
	done  map[int]bool  // connections that were cut
	all   []loneMessage // in the order they came, on the first connection
	first int           // that connection
}

type loneConnMessage struct {
	conn    int
	message loneMessage
}

// arm begins the exchange.
func (t *loneTrial) arm() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.armed, t.seen, t.done = true, make(map[loneConnMessage]int), make(map[int]bool)
}

func (t *loneTrial) rule(m faultproxy.Message) faultproxy.Action {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.armed {
		return faultproxy.Action{}
	}
	message := loneMessage{direction: m.Direction, typ: m.Type}
	key := loneConnMessage{m.Conn, message}
	t.seen[key]++
	message.nth = t.seen[key]
	if t.first == 0 {
		t.first = m.Conn
	}
	if m.Conn == t.first {
		t.all = append(t.all, message)
	}
	if message != t.cut.at || len(t.done) > 0 && !t.cut.always || t.done[m.Conn] {
		return faultproxy.Action{}
	}
	t.done[m.Conn] = true
	action := faultproxy.Action{Kind: faultproxy.Cut, Reset: t.cut.reset}
	switch t.cut.where {
	case loneAfter:
		action.After = true
	case loneWithin:
		action.Bytes = max(1, (len(m.Body)+5)/2)
	}
	return action
}

// loneName is that of a trial's sessions.
func (t *loneTrial) name() string { return fmt.Sprintf("certainty-lone-%d", t.row) }

// try executes the write and finds out how often it took effect.
func (r *loneRun) try(ctx context.Context, proxy *faultproxy.Proxy, t *loneTrial) (told error, applied int, err error) {
	if _, err := r.admin.ExecContext(ctx, `INSERT INTO t VALUES ($1, 0)`, t.row); err != nil {
		return nil, 0, err
	}
	dsn, err := proxy.DSN(r.config.DSN)
	if err != nil {
		return nil, 0, err
	}
	if dsn, err = commitDSN(dsn, map[string]string{"application_name": t.name()}); err != nil {
		return nil, 0, err
	}
	db, err := r.config.Open(dsn)
	if err != nil {
		return nil, 0, fmt.Errorf("open the database: %w", err)
	}
	proxy.SetRule(t.rule)
	application, cancel := context.WithTimeout(ctx, commitLimit)
	told, err = r.write(application, proxy, db, t)
	cancel()
	_ = db.Close() // broken connections say so
	if err != nil {
		return nil, 0, err
	}
	proxy.SetRule(nil)
	proxy.Release()

	// The server may still be executing what it was sent.
	err = commitAwait(ctx, func() (bool, error) {
		var sessions int
		err := r.admin.QueryRowContext(ctx, `SELECT count(*) FROM pg_stat_activity WHERE application_name = $1`, t.name()).Scan(&sessions)
		return err == nil && sessions == 0, err
	})
	if err != nil {
		return nil, 0, fmt.Errorf("wait until the sessions are gone: %w", err)
	}
	err = r.admin.QueryRowContext(ctx, `SELECT v / 7 + (SELECT count(*) FROM inserted WHERE inserted.id = t.id) FROM t WHERE id = $1`, t.row).Scan(&applied)
	return told, applied, err
}

// write executes the write. Its second error is that of what comes before.
func (r *loneRun) write(ctx context.Context, proxy *faultproxy.Proxy, db *sql.DB, t *loneTrial) (told, err error) {
	if !t.cut.idle {
		t.arm()
		write, told := t.cut.statement.prepare(ctx, db, t.row)
		if told != nil {
			return told, nil
		}
		return write(), nil
	}
	if err := db.PingContext(ctx); err != nil {
		return nil, fmt.Errorf("open a connection: %w", err)
	}
	write, err := t.cut.statement.prepare(ctx, db, t.row)
	if err != nil {
		return nil, fmt.Errorf("prepare: %w", err)
	}
	if t.cut.asleep {
		proxy.CutAll(t.cut.reset)
		return write(), nil
	}
	t.arm()
	return write(), nil
}

// lonePause keeps the exchange of a recording from being cut short.
const lonePause = 5 * time.Second

// cuts finds out which messages an undisturbed write exchanges, and returns all ways to
// cut it, in random order.
func (r *loneRun) cuts(ctx context.Context) ([]loneCut, error) {
	var cuts []loneCut
	for _, statement := range loneStatements {
		for _, idle := range []bool{false, true} {
			ctx, cancel := context.WithTimeout(ctx, lonePause)
			t := &loneTrial{cut: loneCut{statement: statement, idle: idle}, row: r.row()}
			told, applied, err := r.try(ctx, r.proxies[0], t)
			cancel()
			if err == nil && (told != nil || applied != 1) {
				err = fmt.Errorf("undisturbed, it took effect %d times: %w", applied, told)
			}
			if err != nil {
				return nil, fmt.Errorf("certainty: %s: %w", statement.name, err)
			}
			cuts = append(cuts, waysToCut(statement, idle, t.all)...)
		}
	}
	chance := newCommitChance(r.config.Seed, 0)
	chance.random.Shuffle(len(cuts), func(i, j int) { cuts[i], cuts[j] = cuts[j], cuts[i] })
	return cuts, nil
}
