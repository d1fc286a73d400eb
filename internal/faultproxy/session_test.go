package faultproxy_test

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lib/pq"

	"github.com/pgretry/pgretry/internal/faultproxy"
	"github.com/pgretry/pgretry/internal/pgserver/pgtest"
)

// session is a database behind a proxy, with one connection, and the same database without.
type session struct {
	proxy  *faultproxy.Proxy
	dsn    string // through the proxy
	db     *sql.DB
	direct *sql.DB
}

// newSession returns a session in a schema with an empty table item.
func newSession(t *testing.T, rule faultproxy.Rule) *session {
	t.Helper()
	dsn := pgtest.DSN(t)
	config, err := pq.NewConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	network, address := "tcp", fmt.Sprintf("%s:%d", config.Host, config.Port)
	if strings.HasPrefix(config.Host, "/") {
		network, address = "unix", fmt.Sprintf("%s/.s.PGSQL.%d", config.Host, config.Port)
	}
	s := &session{direct: open(t, dsn)}
	s.proxy = start(t, network, address, rule)
	if s.dsn, err = s.proxy.DSN(dsn); err != nil {
		t.Fatal(err)
	}
	s.db = open(t, s.dsn)
	s.db.SetMaxOpenConns(1)
	exec(t, s.direct, `CREATE TABLE item (n int, text text)`)
	return s
}

func start(t *testing.T, network, address string, rule faultproxy.Rule) *faultproxy.Proxy {
	t.Helper()
	proxy, err := faultproxy.Start(network, address, rule)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := proxy.Close(); err != nil {
			t.Error(err)
		}
	})
	return proxy
}

func open(t *testing.T, dsn string) *sql.DB {
	t.Helper()
	connector, err := pq.NewConnector(dsn)
	if err != nil {
		t.Fatal(err)
	}
	db := sql.OpenDB(connector)
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

type executor interface {
	Exec(query string, args ...any) (sql.Result, error)
}

func exec(t *testing.T, e executor, query string, args ...any) {
	t.Helper()
	if _, err := e.Exec(query, args...); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
}

type querier interface {
	QueryRow(query string, args ...any) *sql.Row
}

func query[T any](t *testing.T, q querier, text string, args ...any) T {
	t.Helper()
	var value T
	if err := q.QueryRow(text, args...).Scan(&value); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return value
}

// backend returns the server's process for the connection through the proxy.
func (s *session) backend(t *testing.T) int {
	t.Helper()
	return query[int](t, s.db, `SELECT pg_backend_pid()`)
}

// state returns what a backend is doing, "gone" if it is no more.
func (s *session) state(t *testing.T, backend int) string {
	t.Helper()
	return query[string](t, s.direct,
		`SELECT coalesce((SELECT state FROM pg_stat_activity WHERE pid = $1), 'gone')`, backend)
}

func (s *session) items(t *testing.T) int {
	t.Helper()
	return query[int](t, s.direct, `SELECT count(*) FROM item`)
}

// insert begins a transaction that has inserted an item.
func (s *session) insert(t *testing.T) *sql.Tx {
	t.Helper()
	tx, err := s.db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	exec(t, tx, `INSERT INTO item VALUES (1)`)
	return tx
}

const patience = 30 * time.Second

func eventually(t *testing.T, what string, reached func() bool) {
	t.Helper()
	limit := time.After(patience)
	poll := time.NewTicker(2 * time.Millisecond)
	defer poll.Stop()
	for !reached() {
		select {
		case <-poll.C:
		case <-limit:
			t.Fatalf("it never happened that %s", what)
		}
	}
}

func receive[T any](t *testing.T, what string, from <-chan T) T {
	t.Helper()
	select {
	case value := <-from:
		return value
	case <-time.After(patience):
		t.Fatalf("%s did not come", what)
		panic("unreachable")
	}
}

// async runs a call that may be held up.
func async(call func() error) <-chan error {
	result := make(chan error, 1)
	go func() { result <- call() }()
	return result
}

// trap is a rule that applies an action to the first message that matches.
type trap struct {
	match  func(faultproxy.Message) bool
	action faultproxy.Action
	sprung chan struct{}

	mu   sync.Mutex
	done bool
	seen []string // since
}

func newTrap(action faultproxy.Action, match func(faultproxy.Message) bool) *trap {
	return &trap{match: match, action: action, sprung: make(chan struct{})}
}

func (r *trap) rule(m faultproxy.Message) faultproxy.Action {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.done {
		r.seen = append(r.seen, fmt.Sprintf("%s %c", m.Direction, m.Type))
		return faultproxy.Action{}
	}
	if !r.match(m) {
		return faultproxy.Action{}
	}
	r.done = true
	close(r.sprung)
	return r.action
}

func (r *trap) since() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.seen
}

// commit matches the request COMMIT or, to the client, the end of its answer. The rule has to be set when COMMIT is
// next.
func commit(d faultproxy.Direction) func(faultproxy.Message) bool {
	return func(m faultproxy.Message) bool {
		if d == faultproxy.ToServer {
			return m.SQL() == "COMMIT"
		}
		return m.Direction == d && m.Type == 'Z'
	}
}

var directions = []faultproxy.Direction{faultproxy.ToServer, faultproxy.ToClient}

// positions calls the function for each place around COMMIT and its answer. committed is what the server makes of it,
// answered whether the client hears of it.
func positions(t *testing.T, kind faultproxy.Kind,
	test func(t *testing.T, s *session, trap *trap, committed, answered bool),
) {
	for _, direction := range directions {
		for _, after := range []bool{false, true} {
			name := fmt.Sprintf("before COMMIT %s", direction)
			if after {
				name = fmt.Sprintf("after COMMIT %s", direction)
			}
			t.Run(name, func(t *testing.T) {
				trap := newTrap(faultproxy.Action{Kind: kind, After: after}, commit(direction))
				test(t, newSession(t, nil), trap, direction == faultproxy.ToClient || after,
					direction == faultproxy.ToClient && after)
			})
		}
	}
}

func (s *session) checkCommit(t *testing.T, result <-chan error, answered bool) {
	t.Helper()
	if err := receive(t, "the result of COMMIT", result); (err == nil) != answered {
		t.Errorf("COMMIT returned %v, answered: %t", err, answered)
	}
}

func (s *session) checkItems(t *testing.T, committed bool) {
	t.Helper()
	if got := s.items(t) == 1; got != committed {
		t.Errorf("committed: %t, not %t", got, committed)
	}
}

func TestCutEndsBothSides(t *testing.T) {
	positions(t, faultproxy.Cut, func(t *testing.T, s *session, trap *trap, committed, answered bool) {
		backend, tx := s.backend(t), s.insert(t)
		s.proxy.SetRule(trap.rule)
		result := async(tx.Commit)
		s.checkCommit(t, result, answered)
		if n := s.proxy.Open(); n != 0 {
			t.Errorf("%d connections are open", n)
		}
		eventually(t, "the backend was gone", func() bool { return s.state(t, backend) == "gone" })
		s.checkItems(t, committed)
		if seen := trap.since(); len(seen) > 0 {
			t.Errorf("after the cut came %q", seen)
		}
		if s.backend(t) == backend {
			t.Error("the connection is still in use")
		}
	})
}

func TestBlackHoleLeavesTheBackendUntilRelease(t *testing.T) {
	positions(t, faultproxy.BlackHole, func(t *testing.T, s *session, trap *trap, committed, answered bool) {
		backend, tx := s.backend(t), s.insert(t)
		s.proxy.SetRule(trap.rule)
		result := async(tx.Commit)
		s.checkCommit(t, result, answered)
		state := "idle in transaction"
		if committed {
			state = "idle"
		}
		eventually(t, "the backend was "+state, func() bool { return s.state(t, backend) == state })
		if s.backend(t) == backend { // and the pool has noticed the end of its connection
			t.Error("the connection is still in use")
		}
		if got := s.state(t, backend); got != state {
			t.Errorf("the backend is %s", got)
		}
		if n := s.proxy.CutAll(false); n != 1 {
			t.Errorf("%d connections were cut, not only the new one", n)
		}
		if got := s.state(t, backend); got != state {
			t.Errorf("the backend is %s", got)
		}
		s.checkItems(t, committed)

		s.proxy.Release()
		eventually(t, "the backend was gone", func() bool { return s.state(t, backend) == "gone" })
		s.checkItems(t, committed)
	})
}

func TestStallHoldsEverythingUntilRelease(t *testing.T) {
	positions(t, faultproxy.Stall, func(t *testing.T, s *session, trap *trap, committed, answered bool) {
		backend, tx := s.backend(t), s.insert(t)
		s.proxy.SetRule(trap.rule)
		result := async(tx.Commit)
		receive(t, "COMMIT", trap.sprung)
		state := "idle in transaction"
		if committed {
			state = "idle"
		}
		eventually(t, "the backend was "+state, func() bool { return s.state(t, backend) == state })
		s.checkItems(t, committed)
		if answered {
			s.checkCommit(t, result, true)
			result = async(func() error {
				_, err := s.db.Exec(`INSERT INTO item VALUES (2)`)
				return err
			})
		}
		s.checkItems(t, committed)
		if seen := trap.since(); len(seen) > 0 {
			t.Errorf("in spite of the stall came %q", seen)
		}
		if n := s.proxy.Open(); n != 1 {
			t.Errorf("%d connections are open", n)
		}
		select {
		case err := <-result:
			t.Fatalf("the call returned %v during the stall", err)
		default:
		}

		s.proxy.Release()
		if err := receive(t, "the result", result); err != nil {
			t.Error(err)
		}
		if s.backend(t) != backend {
			t.Error("the connection was lost")
		}
	})
}

func TestDelayHoldsOneMessage(t *testing.T) {
	for _, direction := range directions {
		t.Run(direction.String(), func(t *testing.T) {
			s := newSession(t, nil)
			backend, tx := s.backend(t), s.insert(t)
			trap := newTrap(faultproxy.Action{Kind: faultproxy.Delay, Wait: 24 * time.Hour}, commit(direction))
			s.proxy.SetRule(trap.rule)
			result := async(tx.Commit)
			receive(t, "COMMIT", trap.sprung)
			if direction == faultproxy.ToServer {
				if got := s.state(t, backend); got != "idle in transaction" {
					t.Errorf("the backend is %s", got)
				}
			} else {
				eventually(t, "COMMIT was done", func() bool { return s.state(t, backend) == "idle" })
			}
			if n := s.proxy.CutAll(false); n != 1 {
				t.Errorf("%d connections were cut", n)
			}
			s.checkCommit(t, result, false)
			eventually(t, "the backend was gone", func() bool { return s.state(t, backend) == "gone" })
			s.checkItems(t, direction == faultproxy.ToClient)
		})
	}
}

func TestDropSwallowsARequest(t *testing.T) {
	s := newSession(t, nil)
	backend, tx := s.backend(t), s.insert(t)
	trap := newTrap(faultproxy.Action{Kind: faultproxy.Drop}, commit(faultproxy.ToServer))
	s.proxy.SetRule(trap.rule)
	result := async(tx.Commit)
	receive(t, "COMMIT", trap.sprung)
	if got := s.state(t, backend); got != "idle in transaction" {
		t.Errorf("the backend is %s", got)
	}
	if n := s.proxy.CutAll(false); n != 1 {
		t.Errorf("%d connections were cut", n)
	}
	s.checkCommit(t, result, false)
	eventually(t, "the backend was gone", func() bool { return s.state(t, backend) == "gone" })
	s.checkItems(t, false)
}

func TestDropSwallowsAnAnswer(t *testing.T) {
	s := newSession(t, func(m faultproxy.Message) faultproxy.Action {
		if m.Direction == faultproxy.ToClient && m.Type == 'N' && m.Nth == 2 {
			return faultproxy.Action{Kind: faultproxy.Drop}
		}
		return faultproxy.Action{}
	})
	connector, err := pq.NewConnector(s.dsn)
	if err != nil {
		t.Fatal(err)
	}
	var notices []string
	db := sql.OpenDB(pq.ConnectorWithNoticeHandler(connector, func(notice *pq.Error) {
		notices = append(notices, notice.Message)
	}))
	defer db.Close()
	exec(t, db, `DO $$ BEGIN RAISE NOTICE 'a'; RAISE NOTICE 'b'; RAISE NOTICE 'c'; END $$`)
	if got := strings.Join(notices, ""); got != "ac" {
		t.Errorf("the notices were %q", got)
	}
}

// everyday uses what a session has: prepared statements, large values both ways, errors, COPY both ways.
func everyday(t *testing.T, s *session, large int) {
	t.Helper()
	backend := s.backend(t)
	value := strings.Repeat("ä", large/2)
	exec(t, s.db, `INSERT INTO item VALUES ($1, $2)`, 1, value)
	if got := query[string](t, s.db, `SELECT text FROM item WHERE n = $1`, 1); got != value {
		t.Errorf("%d bytes came back of %d", len(got), len(value))
	}
	if _, err := s.db.Exec(`SELECT 1/0`); err == nil || !strings.Contains(err.Error(), "division by zero") {
		t.Errorf("the error was %v", err)
	}
	tx, err := s.db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	stmt, err := tx.Prepare(`COPY item (n, text) FROM STDIN`)
	if err != nil {
		t.Fatal(err)
	}
	for n := range 50 {
		exec(t, copyRow{stmt}, "", n+2, value[:min(100, len(value))])
	}
	exec(t, copyRow{stmt}, "")
	if err := stmt.Close(); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	rows, err := s.db.Query(`SELECT n FROM item ORDER BY n`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	sum := 0
	for rows.Next() {
		var n int
		if err := rows.Scan(&n); err != nil {
			t.Fatal(err)
		}
		sum += n
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	if sum != 51*52/2 {
		t.Errorf("the items' sum is %d", sum)
	}
	if s.backend(t) != backend {
		t.Error("the connection was lost")
	}
}

// copyRow gives a COPY statement the form of an executor.
type copyRow struct{ stmt *sql.Stmt }

func (r copyRow) Exec(_ string, args ...any) (sql.Result, error) { return r.stmt.Exec(args...) }

func TestSessionsWorkThroughTheProxy(t *testing.T) {
	always := func(action faultproxy.Action) faultproxy.Rule {
		return func(faultproxy.Message) faultproxy.Action { return action }
	}
	for _, test := range []struct {
		name  string
		rule  faultproxy.Rule
		large int
	}{
		{"without a rule", nil, 20_000},
		{"forwarded", always(faultproxy.Action{}), 5 << 20},
		{"in single bytes", always(faultproxy.Action{Kind: faultproxy.Split}), 20_000},
		{"in pieces", always(faultproxy.Action{Kind: faultproxy.Split, Bytes: 10_007}), 5 << 20},
		{"delayed", always(faultproxy.Action{Kind: faultproxy.Delay, Wait: time.Microsecond}), 5 << 20},
	} {
		t.Run(test.name, func(t *testing.T) {
			everyday(t, newSession(t, test.rule), test.large)
		})
	}
}

func TestLargeBodiesAreShownTruncated(t *testing.T) {
	longest := map[faultproxy.Direction]int{} // of one connection, for which the rule is called one at a time
	s := newSession(t, func(m faultproxy.Message) faultproxy.Action {
		longest[m.Direction] = max(longest[m.Direction], len(m.Body))
		return faultproxy.Action{}
	})
	everyday(t, s, 3<<20)
	if err := s.proxy.Close(); err != nil {
		t.Fatal(err)
	}
	for _, direction := range directions {
		if got := longest[direction]; got != 1<<20 {
			t.Errorf("the longest body %s had %d bytes", direction, got)
		}
	}
}

func TestCutInTheMiddleOfALargeAnswerEndsTheSession(t *testing.T) {
	s := newSession(t, nil)
	backend, tx := s.backend(t), s.insert(t)
	trap := newTrap(faultproxy.Action{Kind: faultproxy.Cut, Bytes: 2 << 20}, func(m faultproxy.Message) bool {
		return m.Type == 'D' && m.Direction == faultproxy.ToClient && len(m.Body) == 1<<20
	})
	s.proxy.SetRule(trap.rule)
	var text string
	if err := tx.QueryRow(`SELECT repeat('x', $1)`, 8<<20).Scan(&text); err == nil {
		t.Error("the answer came")
	}
	if err := tx.Rollback(); err == nil {
		t.Error("the connection is still in use")
	}
	eventually(t, "the backend was gone", func() bool { return s.state(t, backend) == "gone" })
}

func TestCancelRequestReachesTheServer(t *testing.T) {
	s := newSession(t, nil)
	backend := s.backend(t)
	ctx, cancel := context.WithCancel(t.Context())
	result := async(func() error {
		_, err := s.db.ExecContext(ctx, `SELECT pg_sleep(3600)`)
		return err
	})
	eventually(t, "the backend was active", func() bool { return s.state(t, backend) == "active" })
	cancel()
	if err := receive(t, "the end of the query", result); err == nil {
		t.Error("the query ended without an error")
	}
	eventually(t, "the query ended", func() bool { return s.state(t, backend) != "active" })
	if n := s.proxy.Accepted(); n < 2 {
		t.Errorf("%d connections were accepted", n)
	}
	if err := s.db.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the cancel request's connection ended", func() bool { return s.proxy.Open() == 0 })
}

func TestRequestForEncryptionIsRefused(t *testing.T) {
	s := newSession(t, nil)
	db := open(t, strings.Replace(s.dsn, "sslmode=disable", "sslmode=prefer", 1))
	var mu sync.Mutex
	requests := map[int]string{} // by connection; complete when the proxy is closed
	s.proxy.SetRule(func(m faultproxy.Message) faultproxy.Action {
		if m.Direction == faultproxy.ToServer {
			mu.Lock()
			defer mu.Unlock()
			requests[m.Conn] += fmt.Sprintf("%q", m.Type)
		}
		return faultproxy.Action{}
	})
	if got := query[int](t, db, `SELECT 1`); got != 1 {
		t.Errorf("the answer was %d", got)
	}
	if err := s.proxy.Close(); err != nil {
		t.Fatal(err)
	}
	// The driver asks for encryption, and comes back without having been refused the connection itself.
	if requests[1] != `'\x00'` || !strings.HasPrefix(requests[2], `'\x00''Q'`) {
		t.Errorf("the requests were %v", requests)
	}
}

func TestClientThatClosesTakesItsBackendAlong(t *testing.T) {
	s := newSession(t, nil)
	backend := s.backend(t)
	if err := s.db.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the backend was gone", func() bool { return s.state(t, backend) == "gone" })
	eventually(t, "no connection was open", func() bool { return s.proxy.Open() == 0 })
}

func TestBackendThatDiesTakesItsClientAlong(t *testing.T) {
	s := newSession(t, nil)
	tx := s.insert(t)
	exec(t, s.direct, `SELECT pg_terminate_backend($1)`, query[int](t, tx, `SELECT pg_backend_pid()`))
	eventually(t, "no connection was open", func() bool { return s.proxy.Open() == 0 })
	if err := tx.Commit(); err == nil {
		t.Error("the connection is still in use")
	}
	s.checkItems(t, false)
}

func TestRefuseAffectsNewConnectionsOnly(t *testing.T) {
	s := newSession(t, nil)
	backend := s.backend(t)
	s.proxy.Refuse(true)
	other := open(t, s.dsn)
	if err := other.Ping(); err == nil {
		t.Error("a new connection was possible")
	}
	if s.backend(t) != backend {
		t.Error("the connection that was there is gone")
	}
	s.proxy.Refuse(false)
	if err := other.Ping(); err != nil {
		t.Error(err)
	}
	if n := s.proxy.Open(); n != 2 {
		t.Errorf("%d connections are open", n)
	}
}

func TestCutAllEndsWhatIsUnderWay(t *testing.T) {
	for _, reset := range []bool{false, true} {
		t.Run(fmt.Sprintf("reset %t", reset), func(t *testing.T) {
			s := newSession(t, nil)
			other := open(t, s.dsn)
			backends := []int{s.backend(t), query[int](t, other, `SELECT pg_backend_pid()`)}
			if n := s.proxy.CutAll(reset); n != 2 {
				t.Errorf("%d connections were cut", n)
			}
			if n := s.proxy.CutAll(reset); n != 0 {
				t.Errorf("%d connections were cut again", n)
			}
			for _, backend := range backends {
				eventually(t, "the backend was gone", func() bool { return s.state(t, backend) == "gone" })
			}
			for i, db := range []*sql.DB{s.db, other} {
				if query[int](t, db, `SELECT pg_backend_pid()`) == backends[i] {
					t.Error("the connection is still in use")
				}
			}
		})
	}
}

func TestCloseEndsEverythingInWhateverState(t *testing.T) {
	s := newSession(t, nil)
	idle := s.backend(t)
	for _, kind := range []faultproxy.Kind{faultproxy.Stall, faultproxy.BlackHole, faultproxy.Delay} {
		db := open(t, s.dsn)
		backend := query[int](t, db, `SELECT pg_backend_pid()`)
		trap := newTrap(faultproxy.Action{Kind: kind, Wait: 24 * time.Hour}, func(m faultproxy.Message) bool {
			return m.SQL() == "SELECT 2"
		})
		s.proxy.SetRule(trap.rule)
		result := async(func() error {
			conn, err := db.Conn(context.Background())
			if err != nil {
				return err
			}
			defer conn.Close()
			_, err = conn.ExecContext(context.Background(), "SELECT 2")
			return err
		})
		receive(t, "the message", trap.sprung)
		defer func() {
			if err := receive(t, "the result", result); err == nil {
				t.Error("the call succeeded")
			}
			eventually(t, "the backend was gone", func() bool { return s.state(t, backend) == "gone" })
		}()
	}
	for range 2 {
		if err := s.proxy.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if n := s.proxy.Open(); n != 0 {
		t.Errorf("%d connections are open", n)
	}
	eventually(t, "the backend was gone", func() bool { return s.state(t, idle) == "gone" })
	if err := s.db.Ping(); err == nil {
		t.Error("the proxy still accepts connections")
	}
}

func TestServerIsReachedThroughItsSocket(t *testing.T) {
	s := newSession(t, nil)
	port := query[int](t, s.direct, `SELECT current_setting('port')::int`)
	dirs := query[string](t, s.direct, `SHOW unix_socket_directories`)
	dir, _, _ := strings.Cut(dirs, ",")
	proxy := start(t, "unix", fmt.Sprintf("%s/.s.PGSQL.%d", dir, port), nil)
	dsn, err := proxy.DSN(s.dsn)
	if err != nil {
		t.Fatal(err)
	}
	socket := *s
	socket.proxy, socket.db = proxy, open(t, dsn)
	socket.db.SetMaxOpenConns(1)
	everyday(t, &socket, 5<<20)
	if !query[bool](t, socket.db, `SELECT inet_client_addr() IS NULL`) {
		t.Error("the server was reached in another way")
	}
	backend := socket.backend(t)
	proxy.CutAll(false)
	eventually(t, "the backend was gone", func() bool { return s.state(t, backend) == "gone" })
}
