package lockgraph_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/pgretry/pgretry/internal/lockgraph"
)

var modeNames = []string{
	"AccessShareLock", "RowShareLock", "RowExclusiveLock", "ShareUpdateExclusiveLock", "ShareLock",
	"ShareRowExclusiveLock", "ExclusiveLock", "AccessExclusiveLock",
}

// conflicts is table 13.2 of PostgreSQL's manual, in the order of modeNames.
var conflicts = []string{
	".......X",
	"......XX",
	"....XXXX",
	"...XXXXX",
	"..XX.XXX",
	"..XXXXXX",
	".XXXXXXX",
	"XXXXXXXX",
}

func table(n int) lockgraph.Object {
	return lockgraph.Object{Type: "relation", Database: "5", Relation: fmt.Sprint(n)}
}

func xid(n int) lockgraph.Object {
	return lockgraph.Object{Type: "transactionid", TransactionID: fmt.Sprint(n)}
}

func of(pid int) lockgraph.Session {
	return lockgraph.Session{PID: pid, Started: fmt.Sprint("1700000000.", pid)}
}

func holds(pid int, mode string, object lockgraph.Object) lockgraph.Row {
	return lockgraph.Row{Process: pid, Session: of(pid), Mode: mode, Granted: true, Object: object}
}

func wants(pid int, mode string, object lockgraph.Object) lockgraph.Row {
	row := holds(pid, mode, object)
	row.Granted = false
	return row
}

// by makes a row that of a parallel worker.
func by(worker int, row lockgraph.Row) lockgraph.Row {
	row.Process = worker
	return row
}

// unreadable makes a row what a role without privileges sees.
func unreadable(row lockgraph.Row) lockgraph.Row {
	row.Session.Started = ""
	return row
}

func build(t testing.TB, rows ...lockgraph.Row) *lockgraph.Graph {
	t.Helper()
	graph, err := lockgraph.Build(rows)
	if err != nil {
		t.Fatal(err)
	}
	return graph
}

func TestModesConflictAsInTheManual(t *testing.T) {
	for i, wanted := range modeNames {
		for j, held := range modeNames {
			waits := build(t, wants(1, wanted, table(1)), holds(2, held, table(1))).Waits()
			if len(waits) != 1 {
				t.Fatalf("waits: %v", waits)
			}
			if got := len(waits[0].Blockers) == 1; got != (conflicts[i][j] == 'X') {
				t.Errorf("%s waits for %s: %v", wanted, held, got)
			}
		}
	}
}

const (
	ex = "ExclusiveLock"
	sh = "ShareLock"
)

func TestWhatIsACycle(t *testing.T) {
	prepared := holds(0, ex, xid(1))
	prepared.Session = lockgraph.Session{}
	for _, test := range []struct {
		name  string
		rows  []lockgraph.Row
		cycle string // the pids that wait
	}{
		{"nothing", nil, ""},
		{"one that waits for its own lock", []lockgraph.Row{holds(1, sh, table(1)), wants(1, ex, table(1))}, ""},
		{"two", []lockgraph.Row{holds(1, ex, xid(1)), wants(1, sh, xid(2)), holds(2, ex, xid(2)), wants(2, sh, xid(1))}, "1 2"},
		{"a holder that does not wait", []lockgraph.Row{holds(1, ex, xid(1)), holds(2, ex, xid(2)), wants(2, sh, xid(1))}, ""},
		{"waiters alone", []lockgraph.Row{wants(1, ex, table(1)), wants(2, ex, table(1))}, ""},
		{"a mark of a serializable transaction", []lockgraph.Row{
			holds(1, "SIReadLock", table(1)), wants(1, sh, xid(2)), holds(2, ex, xid(2)), wants(2, ex, table(1)),
		}, ""},
		{"a prepared transaction", []lockgraph.Row{prepared, wants(1, sh, xid(1)), holds(1, ex, xid(2)), wants(2, sh, xid(2))}, ""},
		{"a worker that waits and its leader that holds", []lockgraph.Row{
			holds(1, ex, table(1)), by(9, wants(1, sh, table(2))), holds(2, ex, table(2)), wants(2, sh, table(1)),
		}, "9 2"},
		{"a worker and its leader", []lockgraph.Row{
			holds(1, ex, table(1)), by(9, wants(1, sh, table(1))), by(9, holds(1, ex, table(2))), wants(1, sh, table(2)),
		}, ""},
		{"the second of two workers that wait", []lockgraph.Row{
			by(8, wants(1, sh, table(3))), holds(3, ex, table(3)), holds(1, ex, table(1)), by(9, wants(1, sh, table(2))),
			holds(2, ex, table(2)), wants(2, sh, table(1)),
		}, "9 2"},
		{"two that may be a worker and its leader", []lockgraph.Row{
			unreadable(holds(1, ex, table(1))), unreadable(wants(1, sh, table(2))),
			unreadable(holds(2, ex, table(2))), unreadable(wants(2, sh, table(1))),
		}, ""},
		{"two strangers that cannot be a worker and its leader", []lockgraph.Row{
			unreadable(holds(1, ex, xid(1))), unreadable(wants(1, sh, xid(2))),
			unreadable(holds(2, ex, xid(2))), unreadable(wants(2, sh, xid(1))),
		}, "1 2"},
		{"one of ours and a stranger", []lockgraph.Row{
			unreadable(holds(1, ex, table(1))), unreadable(wants(1, sh, table(2))), holds(2, ex, table(2)), wants(2, sh, table(1)),
		}, "1 2"},
	} {
		t.Run(test.name, func(t *testing.T) {
			graph := build(t, test.rows...)
			var got []string
			for _, cycle := range graph.Cycles() {
				for _, edge := range cycle {
					got = append(got, fmt.Sprint(edge.Process))
				}
			}
			if strings.Join(got, " ") != test.cycle {
				t.Errorf("cycles: %v", graph.Cycles())
			}
			for _, pid := range []int{0, 1, 9} {
				if in := strings.Contains(test.cycle, fmt.Sprint(pid)) || pid == 1 && strings.Contains(test.cycle, "9"); (graph.Through(pid) != nil) != in {
					t.Errorf("through %d: %v", pid, graph.Through(pid))
				}
			}
		})
	}
}

func TestObjectsAreTheSameOnlyIfAllOfThemIs(t *testing.T) {
	base := []string{"1", "1", "5", ex, "true", "advisory", "d", "r", "p", "t", "v", "x", "c", "o", "s"}
	for column := 5; column < lockgraph.Columns; column++ {
		other := slices.Clone(base)
		other[0], other[1], other[4] = "2", "2", "false"
		other[column] += "2"
		same := slices.Clone(other)
		same[0], same[1], same[4] = "3", "3", "true"
		var rows []lockgraph.Row
		for _, values := range [][]string{base, other, same} {
			row, err := lockgraph.ParseRow(values)
			if err != nil {
				t.Fatal(err)
			}
			rows = append(rows, row)
		}
		waits := build(t, rows...).Waits()
		if len(waits) != 1 || len(waits[0].Blockers) != 1 || waits[0].Blockers[0] != (lockgraph.Session{PID: 3, Started: "5"}) {
			t.Errorf("column %d: %v", column, waits)
		}
	}
}

func TestObjectsAreNamedAsTheServerDoes(t *testing.T) {
	all := lockgraph.Object{Database: "5", Relation: "16", Page: "0", Tuple: "2", VirtualXID: "3/52", TransactionID: "729", ClassID: "12", ObjID: "7", ObjSubID: "1"}
	for kind, want := range map[string]string{
		"relation":         "relation 16 of database 5",
		"extend":           "extension of relation 16 of database 5",
		"frozenid":         "pg_database.datfrozenxid of database 5",
		"page":             "page 0 of relation 16 of database 5",
		"tuple":            "tuple (0,2) of relation 16 of database 5",
		"transactionid":    "transaction 729",
		"virtualxid":       "virtual transaction 3/52",
		"spectoken":        "speculative token 7 of transaction 729",
		"object":           "object 7 of class 12 of database 5",
		"userlock":         "user lock [5,12,7]",
		"advisory":         "advisory lock [5,12,7,1]",
		"applytransaction": "remote transaction 729 of subscription 7 of database 5",
		"future":           "unrecognized locktag type future",
	} {
		all.Type = kind
		if got := all.String(); got != want {
			t.Errorf("%s: %q", kind, got)
		}
	}
}

func TestStrangersWaitForPreparedTransactions(t *testing.T) {
	prepared := lockgraph.Row{Mode: ex, Granted: true, Object: table(1)}
	waits := build(t, prepared, unreadable(wants(1, sh, table(1)))).Waits()
	if len(waits) != 1 || len(waits[0].Blockers) != 1 || waits[0].Blockers[0].PID != 0 {
		t.Errorf("waits: %v", waits)
	}
}

func TestACycleBeginsWithTheVictim(t *testing.T) {
	cycle := build(t, holds(1, ex, xid(71)), wants(1, sh, xid(72)), holds(2, ex, xid(72)), by(9, wants(2, sh, xid(71)))).Cycles()[0]
	const one, two = "Process 1 waits for ShareLock on transaction 72; blocked by process 9.", "Process 9 waits for ShareLock on transaction 71; blocked by process 1."
	for pid, want := range map[int]string{1: one + "\n" + two, 2: two + "\n" + one, 9: two + "\n" + one, 7: one + "\n" + two} {
		if got := cycle.From(pid).Detail(); got != want {
			t.Errorf("from %d:\n%s", pid, got)
		}
	}
}

func TestRowsThatCannotBeReadAreErrors(t *testing.T) {
	good := []string{"1", "1", "5", ex, "true", "relation", "", "", "", "", "", "", "", "", ""}
	for column, value := range map[int]string{0: "x", 1: "", 4: "maybe"} {
		bad := slices.Clone(good)
		bad[column] = value
		if row, err := lockgraph.ParseRow(bad); err == nil {
			t.Errorf("%q: %v", bad, row)
		}
	}
	if _, err := lockgraph.ParseRow(good[1:]); err == nil {
		t.Error("a column is missing and nobody says so")
	}
	if _, err := lockgraph.Build([]lockgraph.Row{holds(1, "NewLock", table(1))}); err == nil {
		t.Error("nobody knows this mode and nobody says so")
	}
	if _, err := lockgraph.Build([]lockgraph.Row{{Mode: ex, Object: table(1)}}); err == nil {
		t.Error("nobody waits and nobody says so")
	}
}

// edges is the graph of rows without workers, made in the simplest way.
func edges(rows []lockgraph.Row) map[[2]int]bool {
	found := make(map[[2]int]bool)
	for _, w := range rows {
		for _, h := range rows {
			i, j := slices.Index(modeNames, w.Mode), slices.Index(modeNames, h.Mode)
			if !w.Granted && h.Granted && w.Object == h.Object && w.Process != h.Process && conflicts[i][j] == 'X' {
				found[[2]int{w.Process, h.Process}] = true
			}
		}
	}
	return found
}

// distance is the length of the shortest way from one session to another, 0 if there is none.
func distance(edges map[[2]int]bool, from, to, sessions int) int {
	at := map[int]bool{from: true}
	for length := 1; length <= sessions; length++ {
		next := make(map[int]bool)
		for edge := range edges {
			if at[edge[0]] {
				next[edge[1]] = true
			}
		}
		if next[to] {
			return length
		}
		at = next
	}
	return 0
}

func TestRandomGraphsHaveTheCyclesThatTheyHave(t *testing.T) {
	cyclic := 0
	for seed := range uint64(3000) {
		random := rand.New(rand.NewPCG(seed, 1))
		sessions := 2 + random.IntN(7)
		var rows []lockgraph.Row
		for pid := 1; pid <= sessions; pid++ {
			for range random.IntN(4) {
				rows = append(rows, holds(pid, modeNames[random.IntN(8)], table(random.IntN(4))))
			}
			if random.IntN(5) > 0 {
				rows = append(rows, wants(pid, modeNames[random.IntN(8)], table(random.IntN(4))))
			}
		}
		random.Shuffle(len(rows), func(i, j int) { rows[i], rows[j] = rows[j], rows[i] })
		graph, real := build(t, rows...), edges(rows)
		check := func(cycle lockgraph.Cycle) {
			for i, edge := range cycle {
				if !real[[2]int{edge.Waiter.PID, edge.Blocker.PID}] || cycle[(i+1)%len(cycle)].Waiter != edge.Blocker {
					t.Fatalf("seed %d: %v is none", seed, cycle)
				}
			}
		}
		for pid := 1; pid <= sessions; pid++ {
			cycle := graph.Through(pid)
			if check(cycle); len(cycle) != distance(real, pid, pid, sessions) {
				t.Fatalf("seed %d: through %d: %v", seed, pid, cycle)
			}
			if cycle != nil && cycle[0].Waiter.PID != pid {
				t.Fatalf("seed %d: through %d: %v", seed, pid, cycle)
			}
		}
		told := make(map[[2]int]bool)
		for _, w := range graph.Waits() {
			for _, blocker := range w.Blockers {
				told[[2]int{w.Process, blocker.PID}] = true
			}
		}
		if fmt.Sprint(told) != fmt.Sprint(real) {
			t.Fatalf("seed %d: waits %v, not %v", seed, told, real)
		}
		seen := make(map[int]bool)
		for _, cycle := range graph.Cycles() {
			cyclic++
			check(cycle)
			for _, edge := range cycle {
				if seen[edge.Waiter.PID] {
					t.Fatalf("seed %d: %d is in two cycles", seed, edge.Waiter.PID)
				}
				seen[edge.Waiter.PID] = true
			}
		}
		for edge := range real {
			if seen[edge[0]] || seen[edge[1]] {
				delete(real, edge)
			}
		}
		for pid := 1; pid <= sessions; pid++ {
			if distance(real, pid, pid, sessions) > 0 {
				t.Fatalf("seed %d: a cycle through %d was overlooked", seed, pid)
			}
		}
	}
	if cyclic < 500 {
		t.Errorf("%d cycles: this tests little", cyclic)
	}
}

func BenchmarkBuildAndCyclesOf200Waiters(b *testing.B) {
	var rows []lockgraph.Row
	row := func(n int) lockgraph.Object {
		return lockgraph.Object{Type: "tuple", Database: "5", Relation: "16384", Page: "0", Tuple: fmt.Sprint(n)}
	}
	for pid := 1; pid <= 200; pid++ { // heaps of 32: holder, first waiter, and those who wait for that one
		heap := pid / 32
		rows = append(rows, holds(pid, ex, xid(pid)))
		switch pid % 32 {
		case 0:
			rows = append(rows, wants(pid, ex, row((heap+1)%7)))
		case 1:
			rows = append(rows, holds(pid, ex, row(heap)), wants(pid, sh, xid(max(1, heap*32))))
		default:
			rows = append(rows, wants(pid, ex, row(heap)))
		}
	}
	b.Run("rows", func(b *testing.B) {
		for b.Loop() {
			build(b, rows...).Cycles()
		}
	})
	rows = rows[:0]
	for pid := 1; pid <= 200; pid++ { // 32 share an object, and all want more
		rows = append(rows, holds(pid, sh, table(pid/32)), wants(pid, ex, table(pid/32)))
	}
	b.Run("shared", func(b *testing.B) {
		for b.Loop() {
			build(b, rows...).Cycles()
		}
	})
}

// BenchmarkQueryWith32Waiters tells what a look costs on a server where 32 sessions wait for one row.
func BenchmarkQueryWith32Waiters(b *testing.B) {
	s := newScene(b)
	s.do("holder", "UPDATE t SET v=1 WHERE id=1")
	for i := range 32 {
		s.wait(fmt.Sprint(i), "UPDATE t SET v=1 WHERE id=1")
	}
	for b.Loop() {
		if rows := read(b, s.db); len(rows) < 33 {
			b.Fatalf("%d rows", len(rows))
		}
	}
}
