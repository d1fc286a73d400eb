package pgretry

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"database/sql"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/pgretry/pgretry/internal/faultproxy"
	"github.com/pgretry/pgretry/internal/pgserver"
	"github.com/pgretry/pgretry/internal/pgserver/pgtest"
)

// relayed is an arena in which our database is behind a proxy that breaks connections.
// The others are not.
type relayed struct {
	*arena
	proxy *faultproxy.Proxy
}

func enterRelayed(t *testing.T, options []Option, statements ...string) *relayed {
	t.Helper()
	return enterRelayedOn(t, pgtest.DSN(t), options, statements...)
}

func enterRelayedOn(t *testing.T, dsn string, options []Option, statements ...string) *relayed {
	t.Helper()
	address, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	proxy, err := faultproxy.Start("tcp", address.Host, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := proxy.Close(); err != nil {
			t.Error(err)
		}
	})
	ours, err := proxy.DSN(dsn)
	if err != nil {
		t.Fatal(err)
	}
	r := &relayed{arena: enterOn(t, dsn, nil, statements...), proxy: proxy}
	if err := r.db.Close(); err != nil {
		t.Fatal(err)
	}
	if r.db, err = tested.open(ours, options...); err != nil {
		t.Fatal(err)
	}
	return r
}

// asks says whether a message has a text with this in it. pgx writes its own in small
// letters.
func asks(m faultproxy.Message, text string) bool {
	return strings.Contains(strings.ToUpper(m.SQL()), strings.ToUpper(text))
}

// commits says whether a message is a COMMIT of the inner driver's.
func commits(m faultproxy.Message) bool { return strings.EqualFold(m.SQL(), "COMMIT") }

// breaks does something to the first message of that type, sent after a text with this
// in it; 'Q' and 'P' messages have the text themselves. 'S' is the Sync behind an Execute,
// at which the server commits, and so is 'Q' where the driver prepares that text.
func (r *relayed) breaks(text string, kind byte, action faultproxy.Action) (struck *atomic.Bool) {
	struck = new(atomic.Bool)
	var armed atomic.Int64 // the connection on which the text was seen
	var executes, prepares atomic.Bool
	r.proxy.SetRule(func(m faultproxy.Message) faultproxy.Action {
		if asks(m, text) {
			armed.Store(int64(m.Conn))
			prepares.Store(m.Type == 'P')
		}
		kind := kind
		if kind == 'Q' && prepares.Load() {
			kind = 'S'
		}
		if armed.Load() == int64(m.Conn) && m.Type == 'E' && m.Direction == faultproxy.ToServer {
			executes.Store(true)
		}
		if kind == 'S' && (m.Direction != faultproxy.ToServer || !executes.Load()) {
			return faultproxy.Action{}
		}
		if armed.Load() == int64(m.Conn) && m.Type == kind && struck.CompareAndSwap(false, true) {
			return action
		}
		return faultproxy.Action{}
	})
	return struck
}

func TestAWriteWhoseAnswerIsLostIsExecutedOnceByTheServer(t *testing.T) {
	for _, c := range []struct {
		name string
		kind byte
		run  func(ctx context.Context, db *sql.DB) error
	}{
		{"Exec", 'Q', func(ctx context.Context, db *sql.DB) error {
			_, err := db.ExecContext(ctx, `INSERT INTO trace VALUES ('x')`)
			return err
		}},
		{"Exec with arguments", 'S', func(ctx context.Context, db *sql.DB) error {
			_, err := db.ExecContext(ctx, `INSERT INTO trace VALUES ($1)`, "x")
			return err
		}},
		{"QueryRow", 'Q', func(ctx context.Context, db *sql.DB) error {
			var x string
			return db.QueryRowContext(ctx, `INSERT INTO trace VALUES ('x') RETURNING what`).Scan(&x)
		}},
		{"QueryRow with arguments", 'S', func(ctx context.Context, db *sql.DB) error {
			var x string
			return db.QueryRowContext(ctx, `INSERT INTO trace VALUES ($1) RETURNING what`, "x").Scan(&x)
		}},
		{"a prepared statement", 'S', func(ctx context.Context, db *sql.DB) error {
			return prepared(ctx, db, `INSERT INTO trace VALUES ($1)`, func(s *sql.Stmt) error {
				_, err := s.ExecContext(ctx, "x")
				return err
			})
		}},
		{"on a connection", 'Q', func(ctx context.Context, db *sql.DB) error {
			return onOneConn(ctx, db, `INSERT INTO trace VALUES ('x')`)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := enterRelayed(t, nil, traces)
			struck := r.breaks("INSERT", c.kind, faultproxy.Action{Kind: faultproxy.Cut, After: true})
			err := c.run(t.Context(), r.db)
			isLost(t, err, false)
			if !struck.Load() {
				t.Error("nothing was cut")
			}
			r.until(`SELECT count(*) = 1 FROM trace`)
			if _, err := r.db.ExecContext(t.Context(), `INSERT INTO trace VALUES ('y')`); err != nil {
				t.Error(err)
			}
			r.is("2", `SELECT count(*) FROM trace`)
		})
	}
}

func TestAWriteThatDidNotGetBeyondParseIsExecutedAgain(t *testing.T) {
	r := enterRelayed(t, nil, traces)
	struck := r.breaks("INSERT", 'P', faultproxy.Action{Kind: faultproxy.Cut, After: true})
	_, err := r.db.ExecContext(t.Context(), `INSERT INTO trace VALUES ($1)`, "x")
	if !struck.Load() {
		t.Error("nothing was cut")
	}
	if !tested.countsBytes {
		isLost(t, err, false) // nobody knows what has left
		r.is("0", `SELECT count(*) FROM trace`)
		return
	}
	if err != nil {
		t.Errorf("it gives %v", err)
	}
	r.is("1", `SELECT count(*) FROM trace`)
}

func TestACommitSentAsAStatementIsUnknownWithoutAnAnswer(t *testing.T) {
	r := enterRelayed(t, nil, traces)
	r.breaks("COMMIT", 'Q', faultproxy.Action{Kind: faultproxy.Cut, After: true})
	err := onOneConn(t.Context(), r.db, "BEGIN", `INSERT INTO trace VALUES ('x')`, "COMMIT")
	var unknown *CommitUnknownError
	if !errors.As(err, &unknown) {
		t.Errorf("it gives %v", err)
	}
	neverTells(t, err)
	r.breaks("INSERT", 'Q', faultproxy.Action{Kind: faultproxy.Cut, After: true})
	isLost(t, onOneConn(t.Context(), r.db, "BEGIN", `INSERT INTO trace VALUES ('x')`), true)
}

func TestRowsOfALoneStatementThatBreakOffAreReadOnOrReported(t *testing.T) {
	for _, c := range []struct {
		name, query string
		lost        bool
	}{
		{"a read", `SELECT n::text, repeat('x', 1000) FROM generate_series(1, 500) n ORDER BY n`, false},
		{"a write", `INSERT INTO trace SELECT repeat('x', 1000) FROM generate_series(1, 500) RETURNING what`, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := enterRelayed(t, nil, traces)
			var struck atomic.Bool
			r.proxy.SetRule(func(m faultproxy.Message) faultproxy.Action {
				if m.Direction == faultproxy.ToClient && m.Type == 'D' && m.Nth > 250 && struck.CompareAndSwap(false, true) {
					return faultproxy.Action{Kind: faultproxy.Cut}
				}
				return faultproxy.Action{}
			})
			rows, err := r.db.QueryContext(t.Context(), c.query)
			var saw []string
			if err == nil {
				saw, err = fetch(rows, -1)
			}
			if !c.lost {
				if err != nil || len(saw) != 500 || !struck.Load() {
					t.Errorf("%d rows, %v", len(saw), err)
				}
				return
			}
			isLost(t, err, false)
			if len(saw) == 0 {
				t.Error("no rows were read")
			}
		})
	}
}

// killed ends all sessions of that name, and returns when they are gone.
func (a *arena) killed(name string) int {
	a.Helper()
	var n int
	if err := a.plain.QueryRowContext(a.Context(), `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = $1`, name).Scan(&n); err != nil {
		a.Fatal(err)
	}
	a.until(`SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = $1)`, name)
	return n
}

// diesInThePool lets the server end all idle connections of the pool, and writes.
func (a *arena) diesInThePool(db *sql.DB, name string) {
	a.Helper()
	db.SetMaxIdleConns(4)
	var held []*sql.Conn
	for range 4 {
		c, err := db.Conn(a.Context())
		if err != nil {
			a.Fatal(err)
		}
		held = append(held, c)
	}
	for _, c := range held {
		if err := c.Close(); err != nil {
			a.Fatal(err)
		}
	}
	if n := a.killed(name); n != 4 {
		a.Fatalf("%d sessions were ended", n)
	}
	if _, err := db.ExecContext(a.Context(), `UPDATE account SET balance = balance + 1 WHERE id = 1`); err != nil {
		a.Errorf("the first write gives %v", err)
	}
	a.is("101", `SELECT balance FROM account WHERE id = 1`)
	s, err := StatsOf(db)
	if err != nil || s.ConnectionsLost["idle"] == 0 || len(s.ConnectionsLost) != 1 {
		a.Errorf("statistics are %+v, %v", s, err)
	}
}

func TestConnectionsThatDieInThePoolAreReplacedBeforeAWrite(t *testing.T) {
	server := pgtest.Server(t)
	t.Run("TCP", func(t *testing.T) {
		a := enter(t, nil, bank)
		db, err := tested.open(a.dsn + "&application_name=idle_tcp")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = db.Close() }() // some of its connections are dead
		a.diesInThePool(db, "idle_tcp")
	})
	t.Run("socket", func(t *testing.T) {
		a := enter(t, nil, bank)
		schema := a.read(`SELECT current_schema()`)
		db, err := tested.open(server.SocketDSN() + " application_name=idle_socket search_path=" + schema)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = db.Close() }() // the same
		a.diesInThePool(db, "idle_socket")
	})
	t.Run("with telemetry", func(t *testing.T) {
		a := enter(t, nil, bank)
		db, err := tested.open(a.dsn+"&application_name=idle_otelsql", newObservatory(t).options()...)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = db.Close() }() // the same
		a.diesInThePool(db, "idle_otelsql")
	})
}

// ownServer is a server that the test may restart.
func ownServer(t *testing.T, options ...pgserver.Option) *pgserver.Server {
	t.Helper()
	server, err := pgserver.Start(t.Context(), options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	return server
}

// encrypts makes a server accept TLS.
func encrypts(t *testing.T, server *pgserver.Server) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(server.Dir(), "data")
	info, err := os.Stat(data)
	if err != nil {
		t.Fatal(err)
	}
	owner := info.Sys().(*syscall.Stat_t)
	for name, block := range map[string]*pem.Block{
		"server.crt": {Type: "CERTIFICATE", Bytes: certificate},
		"server.key": {Type: "PRIVATE KEY", Bytes: private},
	} {
		path := filepath.Join(data, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(path, int(owner.Uid), int(owner.Gid)); err != nil {
			t.Fatal(err)
		}
	}
	db, err := tested.plainly(server.DSN())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }() // it was good for two statements
	for _, s := range []string{`ALTER SYSTEM SET ssl = on`, `SELECT pg_reload_conf()`} {
		if _, err := db.ExecContext(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
}

func TestConnectionsThatDieInThePoolAreReplacedUnderTLSToo(t *testing.T) {
	server := ownServer(t)
	encrypts(t, server)
	a := enterOn(t, server.DSN(), nil, bank)
	db, err := tested.open(strings.Replace(a.dsn, "sslmode=disable", "sslmode=require", 1) + "&application_name=idle_tls")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }() // some of its connections are dead
	// The postmaster reads its configuration when it gets to it.
	for deadline := time.Now().Add(30 * time.Second); db.PingContext(t.Context()) != nil; {
		if time.Now().After(deadline) {
			t.Fatal(db.PingContext(t.Context()))
		}
	}
	a.is("t", `SELECT bool_and(ssl)::text::char FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name = 'idle_tls'`)
	a.diesInThePool(db, "idle_tls")
}

func TestATransactionThatLosesItsConnectionIsInvisiblyReplayedByTheServer(t *testing.T) {
	const generate = `SELECT n::text, repeat('x', 1000) FROM generate_series(1, 300) n ORDER BY n`
	for _, c := range []struct {
		name, text string
		kind       byte
		nth        int // of the rows, if that is where
		run        func(s *script)
	}{
		{name: "Exec", text: "id = 2", kind: 'Q', run: func(s *script) { s.does(`UPDATE account SET balance = balance + 1 WHERE id = 2`) }},
		{name: "Exec with arguments", text: "id = $1", kind: 'E', run: func(s *script) { s.does(`UPDATE account SET balance = balance + 1 WHERE id = $1`, 2) }},
		{name: "QueryRow", text: "id = 3", kind: 'Q', run: func(s *script) { s.seesThat("100", `SELECT balance FROM account WHERE id = 3`) }},
		{name: "a savepoint", text: "SAVEPOINT", kind: 'Q', run: func(s *script) { s.does(`SAVEPOINT a`) }},
		{name: "in a savepoint", text: "id = 3", kind: 'Q', run: func(s *script) {
			s.does(`SAVEPOINT a`)
			s.does(`UPDATE account SET balance = balance + 0 WHERE id = 3`)
			s.does(`ROLLBACK TO SAVEPOINT a`)
		}},
		{name: "Prepare", text: "id = $1", kind: 'P', run: func(s *script) {
			p, err := s.Prepare(`SELECT balance FROM account WHERE id = $1`)
			if err != nil {
				s.Fatal(err)
			}
			var n int
			if err := errors.Join(p.QueryRow(3).Scan(&n), p.Close()); err != nil || n != 100 {
				s.Errorf("it shows %d, %v", n, err)
			}
		}},
		{name: "a prepared statement", text: "id = $1", kind: 'E', run: func(s *script) {
			p, err := s.Prepare(`SELECT balance FROM account WHERE id = $1`)
			if err != nil {
				s.Fatal(err)
			}
			var n int
			if err := errors.Join(p.QueryRow(3).Scan(&n), p.Close()); err != nil || n != 100 {
				s.Errorf("it shows %d, %v", n, err)
			}
		}},
		{name: "in the middle of rows", nth: 150, run: func(s *script) {
			rows, err := s.Query(generate)
			if err != nil {
				s.Fatal(err)
			}
			if saw, err := fetch(rows, -1); err != nil || len(saw) != 300 {
				s.Errorf("%d rows, %v", len(saw), err)
			}
		}},
		{name: "closing rows", nth: 150, run: func(s *script) {
			rows, err := s.Query(generate)
			if err != nil {
				s.Fatal(err)
			}
			if saw, err := fetch(rows, 10); err != nil || len(saw) != 10 {
				s.Errorf("%d rows, %v", len(saw), err)
			}
		}},
		{name: "COPY", text: "COPY", kind: 'c', run: func(s *script) {
			if err := s.copies(100); err != nil {
				s.Error(err)
			}
		}},
	} {
		for _, kind := range []faultproxy.Action{{Kind: faultproxy.Cut, After: true}, {Kind: faultproxy.Cut}, {Kind: faultproxy.BlackHole, After: true}} {
			t.Run(fmt.Sprintf("%s/%s after %t", c.name, kind.Kind, kind.After), func(t *testing.T) {
				r := enterRelayed(t, nil, bank, `CREATE TABLE copied (n int)`)
				tx := r.begin(sql.LevelDefault)
				tx.does(`UPDATE account SET balance = balance - 1 WHERE id = 1`)
				struck := new(atomic.Bool)
				if c.nth == 0 {
					struck = r.breaks(c.text, c.kind, kind)
				} else {
					r.proxy.SetRule(func(m faultproxy.Message) faultproxy.Action {
						if m.Direction == faultproxy.ToClient && m.Type == 'D' && m.Nth > c.nth && struck.CompareAndSwap(false, true) {
							return kind
						}
						return faultproxy.Action{}
					})
				}
				c.run(tx)
				tx.commits()
				if s := r.stats(); !struck.Load() || s.Hidden != 1 || s.Reconnects != 1 || s.PlainConflicts != 0 || s.Diverged != 0 {
					t.Errorf("struck %t, statistics are %+v", struck.Load(), s)
				}
				r.is("99", `SELECT balance FROM account WHERE id = 1`)
				if strings.HasPrefix(c.name, "Exec") {
					r.is("101", `SELECT balance FROM account WHERE id = 2`)
				}
				if c.name == "COPY" {
					r.is("100 4950", `SELECT concat(count(*), ' ', sum(n)) FROM copied`)
				}
			})
		}
	}
}

func TestAClosureGetsTheLocksOfItsLostSession(t *testing.T) {
	r := enterRelayed(t, nil, bank)
	r.breaks("id = 2", 'Q', faultproxy.Action{Kind: faultproxy.BlackHole})
	ran := 0
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err := RunInTx(ctx, r.db, nil, func(ctx context.Context, tx *sql.Tx) error {
		ran++
		for id := 1; id <= 2; id++ {
			if _, err := tx.ExecContext(ctx, fmt.Sprintf(`UPDATE account SET balance = balance + 1 WHERE id = %d`, id)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil || ran != 2 {
		t.Errorf("it gives %v after %d runs", err, ran)
	}
	r.is("202", `SELECT sum(balance) FROM account WHERE id <= 2`)
}

func TestWhatOthersChangedSinceIsNotOverwrittenAfterALoss(t *testing.T) {
	r := enterRelayed(t, nil, bank)
	tx := r.begin(sql.LevelDefault)
	tx.seesThat("100", `SELECT balance FROM account WHERE id = 1`)
	r.rivalDoes(`UPDATE account SET balance = 7 WHERE id = 1`)
	r.breaks("UPDATE", 'Q', faultproxy.Action{Kind: faultproxy.Cut})
	_, err := tx.Exec(`UPDATE account SET balance = 101 WHERE id = 1`)
	isLost(t, err, true)
	if err := tx.Commit(); !errors.Is(err, ErrDiverged) {
		t.Errorf("COMMIT gives %v", err)
	}
	r.is("7", `SELECT balance FROM account WHERE id = 1`)
}

func TestASessionWithStateOfItsOwnIsNotReplacedByTheServers(t *testing.T) {
	r := enterRelayed(t, nil, bank)
	r.db.SetMaxOpenConns(1)
	if _, err := r.db.ExecContext(t.Context(), `SET my.tenant = '7'`); err != nil {
		t.Fatal(err)
	}
	tx := r.begin(sql.LevelDefault)
	tx.seesThat("7", `SELECT current_setting('my.tenant')`)
	r.breaks("UPDATE", 'Q', faultproxy.Action{Kind: faultproxy.Cut})
	_, err := tx.Exec(`UPDATE account SET balance = 0 WHERE id = 1`)
	var lost *ConnectionLostError
	if !errors.As(err, &lost) || lost.Refusal != RefusedSessionState {
		t.Errorf("it gives %v", err)
	}
	isLost(t, tx.Commit(), true)
	r.is("100", `SELECT balance FROM account WHERE id = 1`)
}

func TestATransactionSurvivesTheRestartOfItsServer(t *testing.T) {
	server := ownServer(t)
	a := enterOn(t, server.DSN(), nil, bank)
	for _, c := range []struct {
		name    string
		restart func() (over func() error)
	}{
		{"fast, which is over", func() func() error {
			return func() error { return nil }
		}},
		{"killed, and coming back", func() func() error {
			if err := server.Kill(); err != nil {
				t.Fatal(err)
			}
			done := make(chan error, 1)
			go func() { done <- server.Restart(context.WithoutCancel(t.Context()), pgserver.Fast) }()
			return func() error { return <-done }
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := &arena{T: t, dsn: a.dsn, db: a.db, plain: a.plain}
			tx := a.begin(sql.LevelDefault)
			tx.seesThat("400", `SELECT sum(balance) FROM account`)
			tx.does(`UPDATE account SET balance = balance - 1 WHERE id = 1`)
			if strings.HasPrefix(c.name, "fast") {
				if err := server.Restart(t.Context(), pgserver.Fast); err != nil {
					t.Fatal(err)
				}
			}
			over := c.restart()
			tx.does(`UPDATE account SET balance = balance + 1 WHERE id = 2`)
			tx.commits()
			if err := over(); err != nil {
				t.Fatal(err)
			}
		})
	}
	if s := a.stats(); s.Hidden != 2 || s.Reconnects < 2 {
		t.Errorf("statistics are %+v", s)
	}
}

func TestALostTransactionLeavesNothingRunning(t *testing.T) {
	r := enterRelayed(t, nil, bank)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r.breaks("id = 2", 'Q', faultproxy.Action{Kind: faultproxy.Cut})
	err := inTx(ctx, r.db, func(_ context.Context, tx *sql.Tx) error {
		for _, text := range []string{`UPDATE account SET balance = 0 WHERE id = 1`, `UPDATE account SET balance = 0 WHERE id = 2`} {
			if _, err := tx.ExecContext(context.Background(), text); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil || r.stats().Reconnects != 1 {
		t.Fatalf("it gives %v, statistics %+v", err, r.stats())
	}
	// BEGIN's context goes on: lib/pq watches it until the transaction ends.
	stacks := make([]byte, 1<<20)
	running := func() bool {
		return strings.Contains(string(stacks[:runtime.Stack(stacks, true)]), "watchCancel")
	}
	for deadline := time.Now().Add(5 * time.Second); running(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal("lib/pq still watches the context of the transaction that was lost")
		}
	}
}
