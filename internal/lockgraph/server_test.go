package lockgraph_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lib/pq"

	"github.com/pgretry/pgretry"
	"github.com/pgretry/pgretry/internal/lockgraph"
	"github.com/pgretry/pgretry/internal/pgserver/pgtest"
)

// never is a deadlock_timeout that no test reaches, soon one that lets us look first.
const (
	never = "1h"
	soon  = "2s"
)

// scene is some sessions of one schema, in transactions, and one that looks on.
type scene struct {
	t        testing.TB
	db       *sql.DB
	sessions map[string]*actor
}

type actor struct {
	*sql.Conn
	pid     int
	waiting chan error // the result of the statement under way
}

func openDB(t testing.TB, dsn string) *sql.DB {
	t.Helper()
	db, err := sql.Open("postgres", dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

func newScene(t testing.TB, setup ...string) *scene {
	t.Helper()
	s := &scene{t: t, db: openDB(t, pgtest.DSN(t)), sessions: make(map[string]*actor)}
	for _, statement := range append([]string{
		"CREATE TABLE t (id integer PRIMARY KEY, v integer)",
		"INSERT INTO t SELECT i, 0 FROM generate_series(1, 9) AS i",
		"CREATE TABLE t1 (v integer)", "CREATE TABLE t2 (v integer)",
	}, setup...) {
		if _, err := s.db.Exec(statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
	return s
}

// session returns a session in a transaction, a new one at first.
func (s *scene) session(name string) *actor {
	s.t.Helper()
	if a := s.sessions[name]; a != nil {
		return a
	}
	return s.join(name, s.db)
}

func (s *scene) join(name string, db *sql.DB) *actor {
	s.t.Helper()
	conn, err := db.Conn(context.Background())
	if err != nil {
		s.t.Fatal(err)
	}
	a := &actor{Conn: conn}
	if err := conn.QueryRowContext(context.Background(), "SELECT pg_backend_pid()").Scan(&a.pid); err != nil {
		s.t.Fatal(err)
	}
	s.sessions[name] = a
	s.t.Cleanup(func() {
		if a.waiting != nil {
			if _, err := s.db.Exec("SELECT pg_cancel_backend($1)", a.pid); err != nil {
				s.t.Error(err)
			}
			<-a.waiting //nolint:errcheck // what became of it does not matter
		}
		_, _ = a.ExecContext(context.Background(), "ROLLBACK") // whatever state it is in
		_ = a.Close()
	})
	if db == s.db {
		s.do(name, "SET deadlock_timeout = '"+never+"'")
	}
	s.do(name, "BEGIN")
	return a
}

func (s *scene) do(name, statement string) {
	s.t.Helper()
	if _, err := s.session(name).ExecContext(context.Background(), statement); err != nil {
		s.t.Fatalf("%s: %s: %v", name, statement, err)
	}
}

// wait begins a statement and returns when it waits for a lock.
func (s *scene) wait(name, statement string) {
	s.t.Helper()
	a := s.session(name)
	a.waiting = make(chan error, 1)
	go func() {
		_, err := a.ExecContext(context.Background(), statement)
		a.waiting <- err
	}()
	s.until(name+" waits: "+statement, func(g *lockgraph.Graph) bool {
		return slices.ContainsFunc(g.Waits(), func(w lockgraph.Wait) bool { return w.Waiter.PID == a.pid })
	})
}

// result returns what became of a statement that waited.
func (s *scene) result(name string) error {
	s.t.Helper()
	a := s.session(name)
	select {
	case err := <-a.waiting:
		a.waiting = nil
		return err
	case <-time.After(time.Minute):
		s.t.Fatalf("%s waits on", name)
		return nil
	}
}

func look(t testing.TB, db *sql.DB) *lockgraph.Graph {
	t.Helper()
	graph, err := lockgraph.Build(read(t, db))
	if err != nil {
		t.Fatal(err)
	}
	return graph
}

func read(t testing.TB, db *sql.DB) []lockgraph.Row {
	t.Helper()
	rows, err := db.Query(lockgraph.Query)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	values := make([]string, lockgraph.Columns)
	targets := make([]any, len(values))
	for i := range values {
		targets[i] = &values[i]
	}
	var read []lockgraph.Row
	for rows.Next() {
		if err := rows.Scan(targets...); err != nil {
			t.Fatal(err)
		}
		row, err := lockgraph.ParseRow(values)
		if err != nil {
			t.Fatal(err)
		}
		read = append(read, row)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return read
}

func (s *scene) until(what string, reached func(*lockgraph.Graph) bool) *lockgraph.Graph {
	s.t.Helper()
	limit := time.After(time.Minute)
	poll := time.NewTicker(2 * time.Millisecond)
	defer poll.Stop()
	for {
		if graph := look(s.t, s.db); reached(graph) {
			return graph
		}
		select {
		case <-poll.C:
		case <-limit:
			s.t.Fatalf("it never happened that %s", what)
		}
	}
}

// cycles are those of this scene's sessions: other tests run beside it.
func (s *scene) cycles(graph *lockgraph.Graph) (ours []lockgraph.Cycle) {
	for _, cycle := range graph.Cycles() {
		if slices.ContainsFunc(cycle, func(e lockgraph.Edge) bool { return s.ours(e.Waiter.PID) }) {
			ours = append(ours, cycle)
		}
	}
	return ours
}

func (s *scene) ours(pid int) bool {
	for _, a := range s.sessions {
		if a.pid == pid {
			return true
		}
	}
	return false
}

type action struct{ session, statement string } // "-x": x is made to wait

func TestDeadlocksAreFoundAsTheServerFindsThem(t *testing.T) {
	const parallel = "SET parallel_setup_cost=0; SET parallel_tuple_cost=0; SET min_parallel_table_scan_size=0; " +
		"SET max_parallel_workers_per_gather=2; SET parallel_leader_participation=off"
	for _, test := range []struct {
		name    string
		setup   []string
		actions []action
		length  int
		object  string // that the cycle leads over
	}{
		{"two sessions, two rows", nil, []action{
			{"a", "UPDATE t SET v=1 WHERE id=1"},
			{"b", "UPDATE t SET v=1 WHERE id=2"},
			{"-a", "UPDATE t SET v=1 WHERE id=2"},
			{"-b", "UPDATE t SET v=1 WHERE id=1"},
		}, 2, "transactionid"},
		{"three sessions", nil, []action{
			{"a", "UPDATE t SET v=1 WHERE id=1"},
			{"b", "UPDATE t SET v=1 WHERE id=2"},
			{"c", "UPDATE t SET v=1 WHERE id=3"},
			{"-a", "UPDATE t SET v=1 WHERE id=2"},
			{"-b", "UPDATE t SET v=1 WHERE id=3"},
			{"-c", "UPDATE t SET v=1 WHERE id=1"},
		}, 3, "transactionid"},
		{"a queue for a row", nil, []action{
			{"a", "UPDATE t SET v=1 WHERE id=1"},
			{"b", "UPDATE t SET v=1 WHERE id=2"},
			{"-c", "UPDATE t SET v=1 WHERE id=1"},
			{"-d", "UPDATE t SET v=1 WHERE id=1"},
			{"-e", "UPDATE t SET v=1 WHERE id=1"},
			{"-f", "UPDATE t SET v=1 WHERE id=2"},
			{"-g", "UPDATE t SET v=1 WHERE id=2"},
			{"-b", "UPDATE t SET v=1 WHERE id=1"},
			{"-a", "UPDATE t SET v=1 WHERE id=2"},
		}, 4, "tuple"},
		{"share locks that become exclusive", nil, []action{
			{"a", "SELECT FROM t WHERE id=1 FOR SHARE"},
			{"b", "SELECT FROM t WHERE id=1 FOR SHARE"},
			{"-a", "UPDATE t SET v=1 WHERE id=1"},
			{"-b", "UPDATE t SET v=1 WHERE id=1"},
		}, 2, "transactionid"},
		{"upserts", nil, []action{
			{"a", "INSERT INTO t VALUES (11, 0) ON CONFLICT (id) DO UPDATE SET v=1"},
			{"b", "INSERT INTO t VALUES (12, 0) ON CONFLICT (id) DO UPDATE SET v=1"},
			{"-a", "INSERT INTO t VALUES (12, 0) ON CONFLICT (id) DO UPDATE SET v=1"},
			{"-b", "INSERT INTO t VALUES (11, 0) ON CONFLICT (id) DO UPDATE SET v=1"},
		}, 2, "transactionid"},
		{"a speculative insertion", []string{
			"CREATE FUNCTION slow(i integer) RETURNS integer LANGUAGE plpgsql IMMUTABLE AS " +
				"$$ BEGIN PERFORM pg_advisory_xact_lock_shared(3, 1); RETURN i; END $$",
			"CREATE INDEX ON t (slow(id))",
		}, []action{
			{"b", "SELECT pg_advisory_xact_lock(3, 1)"},
			{"-a", "INSERT INTO t VALUES (11, 0) ON CONFLICT (id) DO UPDATE SET v=1"},
			{"-b", "INSERT INTO t VALUES (11, 0) ON CONFLICT (id) DO UPDATE SET v=1"},
		}, 2, "spectoken"},
		{"tables", nil, []action{
			{"a", "LOCK TABLE t1 IN SHARE MODE"},
			{"b", "LOCK TABLE t2 IN SHARE MODE"},
			{"-a", "INSERT INTO t2 VALUES (1)"},
			{"-b", "INSERT INTO t1 VALUES (1)"},
		}, 2, "relation"},
		{"weak locks on tables, which took the fast path", nil, []action{
			{"a", "SELECT FROM t1"},
			{"b", "SELECT FROM t2"},
			{"-a", "LOCK TABLE t2"},
			{"-b", "LOCK TABLE t1"},
		}, 2, "relation"},
		{"advisory locks", nil, []action{
			{"a", "SELECT pg_advisory_xact_lock_shared(4611686018427387905)"},
			{"b", "SELECT pg_advisory_xact_lock(1, -2)"},
			{"-a", "SELECT pg_advisory_xact_lock_shared(1, -2)"},
			{"-b", "SELECT pg_advisory_xact_lock(4611686018427387905)"},
		}, 2, "advisory"},
		{"a virtual transaction", []string{"CREATE INDEX i ON t1 (v)"}, []action{
			{"b", "SELECT pg_advisory_lock(3, 3)"},
			{"a", "SELECT FROM t1"},
			{"b", "COMMIT"},
			{"-b", "DROP INDEX CONCURRENTLY i"},
			{"-a", "SELECT pg_advisory_xact_lock(3, 3)"},
		}, 2, "virtualxid"},
		{"a parallel worker", []string{
			"CREATE FUNCTION peek(i integer) RETURNS bigint LANGUAGE plpgsql PARALLEL SAFE AS " +
				"$$ BEGIN RETURN (SELECT count(*) FROM t2); END $$",
			"ALTER TABLE t SET (parallel_workers = 2)", // of which one finds rows
		}, []action{
			{"a", parallel},
			{"a", "LOCK TABLE t1"},
			{"a", "LOCK TABLE t"},
			{"b", "LOCK TABLE t2"},
			{"-a", "SELECT peek(v) FROM t"},
			{"-c", "SELECT FROM t"},
			{"-b", "SELECT FROM t1"},
		}, 2, "relation"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := newScene(t, test.setup...)
			last := ""
			for i, action := range test.actions {
				name, waits := strings.CutPrefix(action.session, "-")
				if i == len(test.actions)-1 {
					last = name
					s.do(name, "SET deadlock_timeout = '"+soon+"'")
				}
				if !waits {
					s.do(name, action.statement)
					continue
				}
				if graph := look(t, s.db); len(s.cycles(graph)) != 0 {
					t.Fatalf("a cycle before there was one: %v", s.cycles(graph))
				}
				s.wait(name, action.statement)
			}
			graph := look(t, s.db)
			cycles := s.cycles(graph)
			if len(cycles) != 1 || len(cycles[0]) != test.length {
				t.Fatalf("cycles: %v", cycles)
			}
			if !slices.ContainsFunc(cycles[0], func(e lockgraph.Edge) bool { return e.Object.Type == test.object }) {
				t.Errorf("it does not lead over a %s: %v", test.object, cycles[0])
			}
			began := make(map[int]string)
			for _, row := range read(t, s.db) {
				if known, ok := began[row.Session.PID]; ok && known != row.Session.Started {
					t.Errorf("session %d began at %q and at %q", row.Session.PID, known, row.Session.Started)
				}
				began[row.Session.PID] = row.Session.Started
			}
			workers := 0
			for _, edge := range cycles[0] {
				var started string
				if err := s.db.QueryRow("SELECT extract(epoch FROM backend_start)::text FROM pg_stat_get_activity($1)",
					edge.Waiter.PID).Scan(&started); err != nil || edge.Waiter.Started != started || !s.ours(edge.Waiter.PID) {
					t.Errorf("session %v began at %q: %v", edge.Waiter, started, err)
				}
				if edge.Process != edge.Waiter.PID {
					workers++
				}
			}
			if (workers == 1) != (test.name == "a parallel worker") {
				t.Errorf("%d workers wait: %v", workers, cycles[0])
			}
			ours := graph.Through(s.session(last).pid).Detail()
			if got := cycles[0].From(s.session(last).pid).Detail(); got != ours {
				t.Errorf("one cycle is\n%s\nand the other\n%s", got, ours)
			}
			server, ok := errors.AsType[*pq.Error](s.result(last))
			if !ok || server.Code != "40P01" {
				t.Fatalf("the server sees no deadlock: %v", server)
			}
			report, _ := pgretry.ParseDeadlock(server)
			read, _ := pgretry.ParseDeadlock(&pq.Error{Code: "40P01", Detail: ours})
			if report.String() == "" || report.String() != read.String() {
				t.Errorf("the server says\n%s\nnot\n%s", server.Detail, ours)
			}
		})
	}
}

// blockers is what pg_blocking_pids says.
func (s *scene) blockers(name string) []int64 {
	s.t.Helper()
	var pids pq.Int64Array
	if err := s.db.QueryRow("SELECT pg_blocking_pids($1)", s.session(name).pid).Scan(&pids); err != nil {
		s.t.Fatal(err)
	}
	return pids
}

func TestACircleThroughAQueueIsNoDeadlock(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.do("holder", "SELECT FROM t1")
	s.do("late", "LOCK TABLE t2")
	s.do("holder", "SAVEPOINT s")
	s.wait("first", "LOCK TABLE t1")
	s.wait("late", "SELECT FROM t1") // behind first, whom nothing but its place in the queue makes a blocker
	s.wait("holder", "SELECT FROM t2")

	for waiter, blocker := range map[string]string{"first": "holder", "late": "first", "holder": "late"} {
		if got := s.blockers(waiter); !slices.Equal(got, []int64{int64(s.session(blocker).pid)}) {
			t.Fatalf("%s is blocked by %v: this is not the circle to be tested", waiter, got)
		}
	}
	graph := look(t, s.db)
	if cycles := s.cycles(graph); len(cycles) != 0 {
		t.Errorf("cycles: %v", cycles)
	}
	for name, a := range s.sessions {
		if cycle := graph.Through(a.pid); cycle != nil {
			t.Errorf("through %s: %v", name, cycle)
		}
	}
	for _, w := range graph.Waits() {
		if w.Process == s.session("late").pid && len(w.Blockers) != 0 {
			t.Errorf("the one in the queue is blocked by %v", w.Blockers)
		}
	}

	// The server lets one pass and nobody loses.
	if _, err := s.db.Exec("SELECT pg_cancel_backend($1)", s.session("holder").pid); err != nil {
		t.Fatal(err)
	}
	if err := s.result("holder"); err == nil {
		t.Fatal("it was not canceled")
	}
	s.do("holder", "ROLLBACK TO s")
	s.do("holder", "SET deadlock_timeout = '10ms'")
	holder := s.session("holder")
	holder.waiting = make(chan error, 1)
	go func() {
		_, err := holder.ExecContext(context.Background(), "SELECT FROM t2")
		holder.waiting <- err
	}()
	for _, name := range []string{"late", "holder", "first"} {
		if err := s.result(name); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		s.do(name, "COMMIT")
	}
}

func TestSessionsThatLockInOrderAreInNoCycle(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	for i := 1; i <= 5; i++ {
		s.do(fmt.Sprint(i), fmt.Sprintf("UPDATE t SET v=1 WHERE id=%d", i))
	}
	for i := 1; i < 5; i++ {
		s.wait(fmt.Sprint(i), fmt.Sprintf("UPDATE t SET v=1 WHERE id=%d", i+1))
	}
	for i := range 4 {
		s.wait(fmt.Sprint("behind", i), "UPDATE t SET v=1 WHERE id=1")
	}
	graph := look(t, s.db)
	if cycles := s.cycles(graph); len(cycles) != 0 {
		t.Errorf("cycles: %v", cycles)
	}
	waiting := 0
	for _, w := range graph.Waits() {
		if !s.ours(w.Process) {
			continue
		}
		waiting++
		if len(w.Blockers) != 1 || !s.ours(w.Blockers[0].PID) {
			t.Errorf("%d is blocked by %v", w.Process, w.Blockers)
		}
	}
	if waiting != 8 {
		t.Errorf("%d wait", waiting)
	}
}

func TestOrdinaryRolesSeeTheirOwnSessions(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	var role string
	if err := s.db.QueryRow("SELECT current_schema() || '_role'").Scan(&role); err != nil {
		t.Fatal(err)
	}
	for _, statement := range []string{
		"CREATE ROLE " + role + " LOGIN PASSWORD 'ordinary'",
		"GRANT USAGE ON SCHEMA " + strings.TrimSuffix(role, "_role") + " TO " + role,
		"GRANT ALL ON t TO " + role,
		// Ordinary roles must not set it for themselves before PostgreSQL 15's GRANT SET.
		"ALTER ROLE " + role + " SET deadlock_timeout = '" + never + "'",
	} {
		if _, err := s.db.Exec(statement); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if _, err := s.db.Exec("DROP OWNED BY " + role); err != nil {
			t.Error(err)
		}
		if _, err := s.db.Exec("DROP ROLE " + role); err != nil {
			t.Error(err)
		}
	})
	var schema string
	if err := s.db.QueryRow("SELECT current_schema()").Scan(&schema); err != nil {
		t.Fatal(err)
	}
	dsn, err := url.Parse(pgtest.Server(t).DSN())
	if err != nil {
		t.Fatal(err)
	}
	dsn.User = url.UserPassword(role, "ordinary")
	query := dsn.Query()
	query.Set("search_path", schema)
	dsn.RawQuery = query.Encode()
	db := openDB(t, dsn.String())

	started := make(map[int]string)
	for _, name := range []string{"a", "b"} {
		a := s.join(name, db)
		var own string
		if err := a.QueryRowContext(context.Background(), "SELECT extract(epoch FROM backend_start)::text "+
			"FROM pg_stat_get_activity(pg_backend_pid())").Scan(&own); err != nil {
			t.Fatal(err)
		}
		started[a.pid] = own
	}
	s.do("a", "UPDATE t SET v=1 WHERE id=1")
	s.do("b", "UPDATE t SET v=1 WHERE id=2")
	s.do("super", "UPDATE t SET v=1 WHERE id=3")
	s.wait("super", "UPDATE t SET v=1 WHERE id=1")
	s.wait("a", "UPDATE t SET v=1 WHERE id=2")
	s.wait("b", "UPDATE t SET v=1 WHERE id=1")

	graph := look(t, db)
	cycles := s.cycles(graph)
	if len(cycles) != 1 || len(cycles[0]) != 3 { // b waits for the row's first waiter
		t.Fatalf("cycles: %v", cycles)
	}
	for _, edge := range cycles[0] {
		if want := started[edge.Waiter.PID]; edge.Waiter.Started != want {
			t.Errorf("session %d began at %q, not %q", edge.Waiter.PID, edge.Waiter.Started, want)
		}
	}
}
