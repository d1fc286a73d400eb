package compat

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/lib/pq"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/trace"

	"github.com/pgretry/pgretry"
	"github.com/pgretry/pgretry/internal/faultproxy"
	"github.com/pgretry/pgretry/internal/pgserver/pgtest"
)

// settles is how long the server may take to notice what happened to it.
const settles = 20 * time.Second

// line is a schema with two ways to it: through a proxy, which the databases under test
// take, and a plain one.
type line struct {
	proxy  *faultproxy.Proxy
	dsn    string // through the proxy
	direct string
	plain  *sql.DB
}

// newLine makes a schema with an empty table of marks and two accounts. Nothing waits
// for a lock for longer than it takes to fail the test.
func newLine(t *testing.T) *line {
	t.Helper()
	l := &line{direct: pgtest.DSN(t)}
	l.plain = closedAtLast(t, openPq(t, l.direct))
	execAll(t, l.plain, `CREATE TABLE mark (id int)`, accounts, `INSERT INTO account VALUES (1, 100), (2, 100)`)
	return l.another(t)
}

// another is a line to the same schema with a proxy of its own.
func (l *line) another(t *testing.T) *line {
	t.Helper()
	l = &line{direct: l.direct, plain: l.plain}
	server, err := url.Parse(l.direct)
	if err != nil {
		t.Fatal(err)
	}
	if l.proxy, err = faultproxy.Start("tcp", server.Host, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.proxy.Close(); err != nil {
			t.Error(err)
		}
	})
	through, err := l.proxy.DSN(l.direct)
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(through)
	if err != nil {
		t.Fatal(err)
	}
	parameters := u.Query()
	parameters.Set("lock_timeout", "10000")
	u.RawQuery = parameters.Encode()
	l.dsn = u.String()
	return l
}

func openPq(t *testing.T, dsn string) *sql.DB {
	t.Helper()
	db, err := sql.Open("postgres", dsn)
	if err != nil {
		t.Fatal(err)
	}
	return db
}

// lanes is how many transactions are struck side by side: most of the time they wait
// before they try again.
const lanes = 4

// inLanes runs the function in each lane, with a line of its own to the same schema.
func inLanes(t *testing.T, first *line, run func(lane int, l *line)) {
	t.Helper()
	var under sync.WaitGroup
	for lane := range lanes {
		l := first.another(t)
		under.Go(func() { run(lane, l) })
	}
	under.Wait()
}

// strike does the action to the first message that matches from now on, and returns
// whether there has been one.
func (l *line) strike(action faultproxy.Action, matches func(faultproxy.Message) bool) (struck func() bool) {
	var done atomic.Bool
	l.proxy.SetRule(func(m faultproxy.Message) faultproxy.Action {
		if matches(m) && done.CompareAndSwap(false, true) {
			return action
		}
		return faultproxy.Action{}
	})
	return done.Load
}

// strikeNth does the action to the nth message from now on, in either direction.
func (l *line) strikeNth(action faultproxy.Action, n int64) (struck func() bool) {
	var seen atomic.Int64
	return l.strike(action, func(faultproxy.Message) bool { return seen.Add(1) == n })
}

// forgets waits until a process of the server has ended, with all that had been sent to
// it. What a black hole left is released.
func (l *line) forgets(t *testing.T, pid int) {
	t.Helper()
	l.proxy.SetRule(nil)
	l.proxy.Release()
	l.proxy.CutAll(false)
	l.eventually(t, fmt.Sprintf(`SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = %d)`, pid))
}

// eventually waits until a query says true.
func (l *line) eventually(t *testing.T, query string) {
	t.Helper()
	limit := time.After(settles)
	poll := time.NewTicker(time.Millisecond)
	defer poll.Stop()
	for {
		var is bool
		if err := l.plain.QueryRow(query).Scan(&is); err != nil {
			t.Fatal(err)
		}
		if is {
			return
		}
		select {
		case <-poll.C:
		case <-limit:
			t.Fatalf("never: %s", query)
		}
	}
}

func (l *line) count(t *testing.T, id int) (count int) {
	t.Helper()
	if err := l.plain.QueryRow(`SELECT count(*) FROM mark WHERE id = $1`, id).Scan(&count); err != nil {
		t.Fatal(err)
	}
	return count
}

func pidOf(t *testing.T, db *sql.DB) (pid int) {
	t.Helper()
	if err := db.QueryRow(`SELECT pg_backend_pid()`).Scan(&pid); err != nil {
		t.Fatal(err)
	}
	return pid
}

func statsOf(t *testing.T, db *sql.DB) pgretry.Stats {
	t.Helper()
	stats, err := pgretry.StatsOf(db)
	if err != nil {
		t.Fatal(err)
	}
	return stats
}

// An inside is a way of having pgx or lib/pq inside.
type inside func(t *testing.T, dsn string, options ...pgretry.Option) *sql.DB

func wrap(t *testing.T, inner driver.Connector, options ...pgretry.Option) *sql.DB {
	t.Helper()
	connector, err := pgretry.NewConnector(inner, options...)
	if err != nil {
		t.Fatal(err)
	}
	return cutAtLast(t, sql.OpenDB(connector))
}

// cutAtLast closes a database when the test ends. Connections that were cut cannot say
// good-bye, which is no error here.
func cutAtLast(t *testing.T, db *sql.DB) *sql.DB {
	t.Helper()
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func insidePgx(t *testing.T, dsn string, options ...pgretry.Option) *sql.DB {
	t.Helper()
	return cutAtLast(t, openPgx(t, dsn, options...))
}

// insidePgxMode has pgx speak another way than with its cache of prepared statements.
func insidePgxMode(mode pgx.QueryExecMode) inside {
	return func(t *testing.T, dsn string, options ...pgretry.Option) *sql.DB {
		t.Helper()
		config := pgxConfig(t, dsn)
		config.DefaultQueryExecMode = mode
		return wrap(t, stdlib.GetConnector(config), options...)
	}
}

func insidePoolOf(size int32) inside {
	return func(t *testing.T, dsn string, options ...pgretry.Option) *sql.DB {
		t.Helper()
		db := wrap(t, stdlib.GetPoolConnector(newPool(t, dsn, size)), options...)
		db.SetMaxIdleConns(0) // as stdlib.OpenDBFromPool does
		return db
	}
}

func newPool(t *testing.T, dsn string, size int32) *pgxpool.Pool {
	t.Helper()
	config, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	config.MaxConns = size
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

func insidePq(t *testing.T, dsn string, options ...pgretry.Option) *sql.DB {
	t.Helper()
	db, err := pgretry.Open(dsn, options...)
	if err != nil {
		t.Fatal(err)
	}
	return cutAtLast(t, db)
}

func insidePqConnector(t *testing.T, dsn string, options ...pgretry.Option) *sql.DB {
	t.Helper()
	inner, err := pq.NewConnector(dsn)
	if err != nil {
		t.Fatal(err)
	}
	return wrap(t, inner, options...)
}

// spans puts otelsql into the path.
func (i inside) spans(t *testing.T, dsn string, options ...pgretry.Option) *sql.DB {
	t.Helper()
	return i(t, dsn, append(options, pgretry.WithStatementSpans(),
		pgretry.WithTracerProvider(trace.NewTracerProvider()), pgretry.WithMeterProvider(metric.NewMeterProvider()))...)
}

var insides = map[string]inside{
	"pgx":                   insidePgx,
	"pgx with otelsql":      inside(insidePgx).spans,
	"pgx in texts":          insidePgxMode(pgx.QueryExecModeSimpleProtocol),
	"pgxpool":               insidePoolOf(4),
	"lib/pq with otelsql":   inside(insidePq).spans,
	"a connector of lib/pq": insidePqConnector,
}

// everywhere runs a test with every inside.
func everywhere(t *testing.T, test func(t *testing.T, l *line, open inside)) {
	t.Helper()
	for name, open := range insides {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, newLine(t), open)
		})
	}
}

var blows = []faultproxy.Action{
	{Kind: faultproxy.Cut},
	{Kind: faultproxy.Cut, After: true},
	{Kind: faultproxy.Cut, Reset: true},
	{Kind: faultproxy.Cut, After: true, Reset: true},
	{Kind: faultproxy.BlackHole},
	{Kind: faultproxy.BlackHole, After: true},
}

// wantLost checks the error of a lone write.
func wantLost(t *testing.T, err error) {
	t.Helper()
	var lost *pgretry.ConnectionLostError
	if !errors.As(err, &lost) || lost.RolledBack || lost.Cause == nil || errors.Is(err, driver.ErrBadConn) ||
		errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the error is %#v", err)
	}
}

// A write is struck before and after the first, the second, the third message of what
// it sends and of what it is answered, until it is over before the blow falls.
func TestALoneWriteIsNeverExecutedTwice(t *testing.T) {
	writes := map[string]func(t *testing.T, ctx context.Context, db *sql.DB, id int) error{
		"text": func(_ *testing.T, ctx context.Context, db *sql.DB, id int) error {
			_, err := db.ExecContext(ctx, fmt.Sprintf(`INSERT INTO mark VALUES (%d)`, id))
			return err
		},
		"arguments": func(_ *testing.T, ctx context.Context, db *sql.DB, id int) error {
			_, err := db.ExecContext(ctx, `INSERT INTO mark VALUES ($1)`, id)
			return err
		},
		"returning": func(_ *testing.T, ctx context.Context, db *sql.DB, id int) error {
			var got int
			return db.QueryRowContext(ctx, `INSERT INTO mark VALUES ($1) RETURNING id`, id).Scan(&got)
		},
	}
	everywhere(t, func(t *testing.T, l *line, open inside) {
		id := 0
		for name, write := range writes {
			seen := map[string]bool{}
			for i, over := 0, false; !over; i++ {
				n := i/2 + 1 // struck before and after
				db := open(t, l.dsn)
				db.SetMaxOpenConns(1)
				pid := pidOf(t, db)
				id++
				struck := l.strikeNth(blows[i%len(blows)], int64(n))
				err := write(t, t.Context(), db, id)
				over = !struck()
				l.forgets(t, pid)
				there := l.count(t, id)
				switch {
				case err == nil && there != 1, there > 1:
					t.Errorf("%s, message %d: it gives %v, and is there %d times", name, n, err, there)
				case err != nil:
					wantLost(t, err)
					seen[fmt.Sprint(there)] = true
				}
			}
			if !seen["0"] || !seen["1"] {
				t.Errorf("%s: the writes that failed are there %v times: the blows did not fall before and after", name, seen)
			}
		}
	})
}

func TestALoneReadIsFetchedOverANewConnection(t *testing.T) {
	everywhere(t, func(t *testing.T, l *line, open inside) {
		db := open(t, l.dsn)
		for n, over := int64(1), false; !over; n++ {
			pidOf(t, db)
			struck := l.strikeNth(blows[n%int64(len(blows))], n)
			var sum int
			if err := db.QueryRow(`SELECT sum(balance) FROM account WHERE id < $1`, 3).Scan(&sum); err != nil || sum != 200 {
				t.Errorf("message %d: the sum is %d, %v", n, sum, err)
			}
			over = !struck()
		}
	})
}

// fill opens several connections and lays them into the pool.
func fill(t *testing.T, db *sql.DB, size int) {
	t.Helper()
	db.SetMaxIdleConns(size)
	var held []*sql.Conn
	for range size {
		conn, err := db.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, conn)
	}
	for _, conn := range held {
		if err := conn.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestWritesGetPastAPoolThatDied(t *testing.T) {
	pinging := func(t *testing.T, dsn string, options ...pgretry.Option) *sql.DB {
		t.Helper()
		always := stdlib.OptionShouldPing(func(context.Context, stdlib.ShouldPingParams) bool { return true })
		return wrap(t, stdlib.GetConnector(pgxConfig(t, dsn), always), options...)
	}
	for name, open := range map[string]inside{
		"a connector of lib/pq":              insidePqConnector,
		"a connector of lib/pq with otelsql": inside(insidePqConnector).spans,
		"pgx asking always":                  pinging,
	} {
		t.Run(name, func(t *testing.T) {
			l := newLine(t)
			const size = 6
			for i, reset := range []bool{false, true} {
				db := open(t, l.dsn)
				fill(t, db, size)
				if cut := l.proxy.CutAll(reset); cut < size {
					t.Fatalf("%d connections were cut", cut)
				}
				for range size {
					if _, err := db.Exec(`INSERT INTO mark VALUES ($1)`, i); err != nil {
						t.Errorf("a write gives %v", err)
					}
				}
				if there := l.count(t, i); there != size {
					t.Errorf("of %d writes %d are there", size, there)
				}
				if lost := statsOf(t, db).ConnectionsLost; lost["statement"] != 0 {
					t.Errorf("connections lost: %v", lost)
				}
			}
		})
	}
}

// pgx does not look at its socket within the first second: a transaction survives that.
func TestTransactionsGetPastAPoolThatDied(t *testing.T) {
	everywhere(t, func(t *testing.T, l *line, open inside) {
		db := open(t, l.dsn)
		for round, reset := range []bool{false, true} {
			fill(t, db, 4)
			if l.proxy.CutAll(reset) == 0 {
				t.Error("nothing was cut")
			}
			for i := range 6 {
				if err := beginMoveCommit(t.Context(), db, 1, 2, func() {}); err != nil {
					t.Errorf("transaction %d gives %v", i, err)
				}
			}
			wantBalance(t, l.plain, 1, 100-6*(round+1))
			wantBalance(t, l.plain, 2, 100+6*(round+1))
		}
	})
}

// A connector's own Dialer is used, and stays the only one.
type countingDialer struct {
	net.Dialer
	dials *atomic.Int64
}

func (d countingDialer) Dial(network, address string) (net.Conn, error) {
	return d.DialContext(context.Background(), network, address)
}

func (d countingDialer) DialTimeout(network, address string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return d.DialContext(ctx, network, address)
}

func (d countingDialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	d.dials.Add(1)
	return d.Dialer.DialContext(ctx, network, address)
}

func TestAConnectorOfLibPQKeepsItsDialer(t *testing.T) {
	l := newLine(t)
	inner, err := pq.NewConnector(l.dsn)
	if err != nil {
		t.Fatal(err)
	}
	var dials atomic.Int64
	inner.Dialer(countingDialer{dials: &dials})
	db := wrap(t, inner)
	db.SetMaxOpenConns(1)
	pid := pidOf(t, db)
	struck := l.strike(faultproxy.Action{Kind: faultproxy.Cut}, func(m faultproxy.Message) bool {
		return m.SQL() == `INSERT INTO mark VALUES (1)`
	})
	_, err = db.Exec(`INSERT INTO mark VALUES (1)`)
	wantLost(t, err)
	l.forgets(t, pid)
	if !struck() || l.count(t, 1) != 0 {
		t.Errorf("the write is there %d times", l.count(t, 1))
	}
	struck = l.strike(faultproxy.Action{Kind: faultproxy.Cut}, func(m faultproxy.Message) bool { return m.SQL() == giveOne })
	if err := beginMoveCommit(t.Context(), db, 1, 2, func() {}); err != nil || !struck() {
		t.Errorf("the transaction gives %v", err)
	}
	wantBalance(t, l.plain, 1, 99)
	wantBalance(t, l.plain, 2, 101)
	if dials.Load() != int64(l.proxy.Accepted()) || dials.Load() < 3 {
		t.Errorf("the dialer was used %d times, and there were %d connections", dials.Load(), l.proxy.Accepted())
	}
}

// moveOften is a transaction with everything that a new session lacks: a statement
// prepared before it, one prepared in it, texts with and without arguments, rows half
// read.
func moveOften(t *testing.T, ctx context.Context, db *sql.DB, take *sql.Stmt, id int) error {
	t.Helper()
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if _, err := tx.StmtContext(ctx, take).ExecContext(ctx, 1); err != nil {
		return err
	}
	give, err := tx.PrepareContext(ctx, giveOne)
	if err != nil {
		return err
	}
	if _, err := give.ExecContext(ctx, 2); err != nil {
		return err
	}
	rows, err := tx.QueryContext(ctx, `SELECT n FROM generate_series(1, $1) n`, 3)
	if err != nil {
		return err
	}
	for n := 1; rows.Next(); n++ {
		var got int
		if err := rows.Scan(&got); err != nil {
			return errors.Join(err, rows.Close())
		}
		if got != n {
			t.Errorf("row %d is %d", n, got)
		}
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, `INSERT INTO mark VALUES ($1)`, id); err != nil {
		return err
	}
	if err := give.Close(); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, `UPDATE account SET balance = balance`); err != nil {
		return err
	}
	return tx.Commit()
}

// The connection is struck at the first, the second, the third message of the
// transaction, up to and with COMMIT and its answer.
func TestATransactionSurvivesALostConnectionWhereverItIs(t *testing.T) {
	everywhere(t, func(t *testing.T, first *line, open inside) {
		var moved, lost, resolved atomic.Int64
		inLanes(t, first, func(lane int, l *line) {
			for n, over := lane, false; !over; n += lanes {
				db := open(t, l.dsn, pgretry.WithCommitOutcome(pgretry.CommitResolve))
				take, err := db.PrepareContext(t.Context(), takeOne)
				if err != nil {
					t.Error(err)
					return
				}
				struck := l.strikeNth(blows[n%len(blows)], int64(n+1))
				if err := moveOften(t, t.Context(), db, take, n); err != nil {
					t.Errorf("message %d: the transaction gives %v", n+1, err)
				}
				over = !struck()
				stats := statsOf(t, db)
				moved.Add(1)
				lost.Add(stats.ConnectionsLost["transaction"])
				resolved.Add(stats.ResolvedCommits["committed"] + stats.ResolvedCommits["aborted"])
				l.proxy.SetRule(nil)
				l.proxy.Release()
				if there := l.count(t, n); there != 1 {
					t.Errorf("message %d: the mark is there %d times", n+1, there)
				}
			}
		})
		wantBalance(t, first.plain, 1, 100-int(moved.Load()))
		wantBalance(t, first.plain, 2, 100+int(moved.Load()))
		if lost.Load() < 5 || resolved.Load() == 0 {
			t.Errorf("%d transactions were lost and %d COMMITs resolved: the blows did not fall where they should", lost.Load(), resolved.Load())
		}
	})
}

// A process that waits for a client that is gone holds its locks until somebody ends it.
func TestALostSessionsLocksAreFreedBeforeTheReplay(t *testing.T) {
	everywhere(t, func(t *testing.T, l *line, open inside) {
		db := open(t, l.dsn)
		db.SetMaxOpenConns(1)
		pid := pidOf(t, db)
		tx, err := db.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback()
		if _, err := tx.Exec(takeOne, 1); err != nil {
			t.Fatal(err)
		}
		struck := l.strike(faultproxy.Action{Kind: faultproxy.BlackHole}, func(m faultproxy.Message) bool { return m.Direction == faultproxy.ToServer })
		_, err = tx.Exec(giveOne, 2)
		var there bool
		if scanErr := l.plain.QueryRow(`SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)`, pid).Scan(&there); scanErr != nil || there || err != nil || !struck() {
			t.Fatalf("UPDATE gives %v, and the process that held the lock lives: %t, %v", err, there, scanErr)
		}
		if err := tx.Commit(); err != nil {
			t.Error(err)
		}
		wantBalance(t, l.plain, 1, 99)
		wantBalance(t, l.plain, 2, 101)
		wantHidden(t, db, "")
	})
}
