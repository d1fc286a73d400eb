package histories

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// The language of the histories below. Keys are small, values are unique.

func committed(name string, level Level, ops ...Op) *Tx {
	return &Tx{Name: name, Level: level, Outcome: Committed, Ops: ops}
}

func failed(name string, level Level, ops ...Op) *Tx {
	return &Tx{Name: name, Level: level, Outcome: Failed, Ops: ops}
}

func unknown(ops ...Op) *Tx {
	return &Tx{Name: "T1", Level: ReadCommitted, Outcome: Unknown, Ops: ops}
}

func during(began, ended uint64, tx *Tx) *Tx {
	tx.Began, tx.Ended = began, ended
	return tx
}

func reads(key int32, values ...int32) Op { return Op{Kind: Read, Key: key, List: values} }

// locks, overwrites and inserts are about list 1 and id 1.
func locks(values ...int32) Op {
	return Op{Kind: Read, Key: 1, List: values, Locked: true}
}

func upserts(key, val int32) Op {
	return Op{Kind: Append, Key: key, Val: val, N: 1, Upserted: true}
}

func fetches(declared int, key int32, values ...int32) Op {
	return Op{Kind: Read, Key: key, List: values, Cursor: declared}
}

func counts(key int32, n int) Op { return Op{Kind: Length, Key: key, N: n} }

func finds(val, key int32) Op {
	return Op{Kind: Contains, Key: 1, High: 9, Val: val, Found: key}
}

func findsNo(val int32) Op { return Op{Kind: Contains, Key: 1, High: 9, Val: val, Found: -1} }

func appends(key, val int32) Op { return Op{Kind: Append, Key: key, Val: val, N: 1} }

func appendsNothing(key, val int32) Op { return Op{Kind: Append, Key: key, Val: val} }

func overwrites(list []int32, val int32) Op {
	return Op{Kind: Write, Key: 1, List: list, Val: val, N: 1}
}

func inserts(val int32) Op { return Op{Kind: InsertParent, Val: val, ID: 1} }

func countsChildren(n int) Op { return Op{Kind: CountChildren, ID: 1, N: n} }

func fails(op Op) Op {
	op.Err = "no"
	return op
}

func at(time uint64, op Op) Op {
	op.Began = time
	return op
}

var (
	save    = Op{Kind: Savepoint, Name: "s"}
	goBackS = Op{Kind: RollbackTo, Name: "s"}
	releas  = Op{Kind: Release, Name: "s"}
	opens   = Op{Kind: Declare, Key: 1, High: 9}
	refers  = Op{Kind: InsertChild, Val: 11, ID: 1}
)

type lists = map[int32][]int32

const (
	rc = ReadCommitted
	rr = RepeatableRead
	sr = Serializable
)

// none is what is found in a history without anomalies.
const none = ""

func TestEachAnomalyIsFoundAndNothingElse(t *testing.T) {
	// The textbook histories, at levels to be filled in.
	writeSkew := func(one, other Level) []*Tx {
		return []*Tx{
			committed("T1", one, reads(1), reads(2), appends(1, 10)),
			committed("T2", other, reads(1), reads(2), appends(2, 20)),
		}
	}
	fractured := func(reader *Tx) []*Tx {
		reader.Ops = []Op{reads(1), reads(2, 20)}
		return []*Tx{committed("T1", rc, appends(1, 10), appends(2, 20)), reader}
	}
	readOnlyAnomaly := func(reader Level) []*Tx { // Fekete, O'Neil and O'Neil 2004
		return []*Tx{
			committed("T1", sr, reads(1), appends(1, 10)),
			committed("T2", sr, reads(1), reads(2), appends(2, 20)),
			committed("T3", reader, reads(1, 10), reads(2)),
		}
	}
	tests := []struct {
		name  string
		txs   []*Tx
		final State
		want  string
	}{
		{"nothing", nil, State{}, none},
		{
			"one after the other",
			[]*Tx{
				committed("T1", sr, reads(1), appends(1, 10), reads(1, 10)),
				committed("T2", rr, reads(1, 10), appends(1, 11), appends(2, 20)),
				committed("T3", rc, reads(1, 10, 11), reads(2, 20)),
			},
			State{Lists: lists{1: {10, 11}, 2: {20}}},
			none,
		},

		// Durability, at most once.
		{"lost write", []*Tx{committed("T1", rc, appends(1, 10))}, State{}, LostAppend},
		{"doubled write", []*Tx{committed("T1", rc, appends(1, 10))}, State{Lists: lists{1: {10, 10}}}, DoubledAppend},
		{"write in another list", []*Tx{committed("T1", rc, appends(1, 10))}, State{Lists: lists{2: {10}}}, Garbage},
		{"value that nobody wrote", nil, State{Lists: lists{1: {10}}}, Garbage},
		{"write of a failed transaction", []*Tx{failed("T1", rc, appends(1, 10))}, State{Lists: lists{1: {10}}}, Undead},
		{"failed transaction without a trace", []*Tx{failed("T1", rc, appends(1, 10))}, State{}, none},
		{"write of a failed statement", []*Tx{committed("T1", rc, save, fails(appends(1, 10)), goBackS)}, State{Lists: lists{1: {10}}}, Undead},
		{"write without a row", []*Tx{committed("T1", rc, appendsNothing(1, 10))}, State{}, none},
		{"write without a row that is there", []*Tx{committed("T1", rc, appendsNothing(1, 10))}, State{Lists: lists{1: {10}}}, Undead},
		{"own writes in another order", []*Tx{committed("T1", rc, appends(1, 10), appends(1, 11))}, State{Lists: lists{1: {11, 10}}}, Order},
		{"unknown and there", []*Tx{unknown(appends(1, 10), appends(2, 20))}, State{Lists: lists{1: {10}, 2: {20}}}, none},
		{"unknown and not there", []*Tx{unknown(appends(1, 10), appends(2, 20))}, State{}, none},
		{"unknown and half there", []*Tx{unknown(appends(1, 10), appends(2, 20))}, State{Lists: lists{1: {10}}}, Torn},
		{"unknown, not there, but read", []*Tx{unknown(appends(1, 10)), committed("T2", rc, reads(1, 10))}, State{}, G1a},
		{"commit after a failure", []*Tx{committed("T1", rc, fails(reads(1)))}, State{}, FailedCommit},
		{"commit after a failure that was undone", []*Tx{committed("T1", rc, save, fails(reads(1)), goBackS)}, State{}, none},
		{"work after a failure", []*Tx{failed("T1", rc, fails(reads(1)), reads(2))}, State{}, FailedCommit},

		// Inside a transaction.
		{"own write unseen", []*Tx{committed("T1", rc, appends(1, 10), reads(1))}, State{Lists: lists{1: {10}}}, Internal},
		{"own write unseen in a count", []*Tx{committed("T1", rc, appends(1, 10), counts(1, 0))}, State{Lists: lists{1: {10}}}, Internal},
		{"own write not found", []*Tx{committed("T1", rc, appends(1, 10), findsNo(10))}, State{Lists: lists{1: {10}}}, Internal},
		{"own write found", []*Tx{committed("T1", rc, appends(1, 10), finds(10, 1))}, State{Lists: lists{1: {10}}}, none},
		{"own writes seen in another order", []*Tx{committed("T1", rc, appends(1, 10), appends(1, 11), reads(1, 11, 10))}, State{Lists: lists{1: {10, 11}}}, Internal},
		{"rolled-back segment in the end", []*Tx{committed("T1", rc, save, appends(1, 10), goBackS)}, State{Lists: lists{1: {10}}}, RolledBack},
		{"rolled-back segment seen", []*Tx{committed("T1", rc, save, appends(1, 10), goBackS, reads(1, 10))}, State{}, Internal},
		{"rolled-back segment found", []*Tx{committed("T1", rc, save, appends(1, 10), goBackS, finds(10, 1))}, State{}, Internal},
		{"rolled-back segment seen by another", []*Tx{committed("T1", rc, save, appends(1, 10), goBackS), committed("T2", rc, reads(1, 10))}, State{}, G1a},
		{
			"savepoints as they should be",
			[]*Tx{committed("T1", rc, appends(1, 10), save, appends(1, 11), save, appends(1, 12), goBackS, reads(1, 10, 11), appends(1, 13),
				releas, reads(1, 10, 11, 13), goBackS, reads(1, 10), appends(1, 14), releas, reads(1, 10, 14))},
			State{Lists: lists{1: {10, 14}}},
			none,
		},
		{"released savepoint rolled back with the outer one", []*Tx{committed("T1", rc, save, save, appends(1, 10), releas, goBackS)}, State{Lists: lists{1: {10}}}, RolledBack},
		{"savepoint that is not there", []*Tx{committed("T1", rc, goBackS)}, State{}, WrongRecording},
		{"cursor as of its DECLARE", []*Tx{committed("T1", rc, appends(1, 10), opens, appends(1, 11), fetches(2, 1, 10), reads(1, 10, 11))}, State{Lists: lists{1: {10, 11}}}, none},
		{"cursor that sees later writes", []*Tx{committed("T1", rc, appends(1, 10), opens, appends(1, 11), fetches(2, 1, 10, 11))}, State{Lists: lists{1: {10, 11}}}, Internal},
		{"setting forgotten", []*Tx{committed("T1", rc, Op{Kind: SetMark, Val: 5}, Op{Kind: ShowMark})}, State{}, Internal},
		{"setting rolled back", []*Tx{committed("T1", rc, Op{Kind: SetMark, Val: 5}, save, Op{Kind: SetMark, Val: 6}, goBackS, Op{Kind: ShowMark, Val: 5})}, State{}, none},
		{"setting of somebody else", []*Tx{committed("T1", rc, Op{Kind: ShowMark, Val: 5})}, State{}, Internal},

		// Reads of what is not committed.
		{"dirty write", []*Tx{committed("T1", rc, appends(1, 10), appends(2, 20)), committed("T2", rc, appends(1, 11), appends(2, 21))}, State{Lists: lists{1: {10, 11}, 2: {21, 20}}}, G0},
		{"aborted read", []*Tx{failed("T1", rc, appends(1, 10)), committed("T2", rc, reads(1, 10))}, State{}, G1a},
		{"aborted read by one that failed", []*Tx{failed("T1", rc, appends(1, 10)), failed("T2", rc, reads(1, 10))}, State{}, G1a},
		{"aborted value found", []*Tx{failed("T1", rc, appends(1, 10)), committed("T2", rc, finds(10, 1))}, State{}, G1a},
		{"intermediate read", []*Tx{committed("T1", rc, appends(1, 10), appends(1, 11)), committed("T2", rc, reads(1, 10))}, State{Lists: lists{1: {10, 11}}}, G1b},
		{"intermediate count", []*Tx{committed("T1", rc, appends(1, 10), appends(1, 11)), committed("T2", rc, counts(1, 1))}, State{Lists: lists{1: {10, 11}}}, G1b},
		{"circular information flow", []*Tx{committed("T1", rc, appends(1, 10), reads(2, 20)), committed("T2", rc, appends(2, 20), reads(1, 10))}, State{Lists: lists{1: {10}, 2: {20}}}, G1c},
		{"circular by a search", []*Tx{committed("T1", rc, appends(1, 10), finds(20, 2)), committed("T2", rc, appends(2, 20), finds(10, 1))}, State{Lists: lists{1: {10}, 2: {20}}}, G1c},
		{"versions in another order", []*Tx{committed("T1", rc, appends(1, 10)), committed("T2", rc, appends(1, 11)), committed("T3", rc, reads(1, 11))}, State{Lists: lists{1: {10, 11}}}, Order},
		{"more than there ever was", []*Tx{committed("T1", rc, appends(1, 10)), committed("T2", rc, counts(1, 2))}, State{Lists: lists{1: {10}}}, Order},
		{"committed value read, then gone", []*Tx{committed("T1", rc, appends(1, 10)), committed("T2", rc, reads(1, 10))}, State{}, LostAppend},
		{"read of what nobody wrote", []*Tx{committed("T2", rc, reads(1, 10))}, State{}, Garbage},

		// Snapshots.
		{"fractured read", fractured(committed("T2", rr)), State{Lists: lists{1: {10}, 2: {20}}}, GSingle},
		{"fractured read by one that failed", fractured(failed("T2", sr)), State{Lists: lists{1: {10}, 2: {20}}}, GSingle},
		{"fractured read, READ COMMITTED", fractured(committed("T2", rc)), State{Lists: lists{1: {10}, 2: {20}}}, none},
		{"fractured read by counting", []*Tx{committed("T1", rc, appends(1, 10), appends(2, 20)), committed("T2", rr, counts(1, 0), counts(2, 1))}, State{Lists: lists{1: {10}, 2: {20}}}, GSingle},
		{"fractured read by searching", []*Tx{committed("T1", rc, appends(1, 10), appends(2, 20)), committed("T2", rr, findsNo(10), finds(20, 2))}, State{Lists: lists{1: {10}, 2: {20}}}, GSingle},
		{
			"fractured read through a third",
			[]*Tx{committed("T1", rc, appends(1, 10)), committed("T2", rc, reads(1, 10), appends(2, 20)), committed("T3", rr, reads(1), reads(2, 20))},
			State{Lists: lists{1: {10}, 2: {20}}},
			GSingle,
		},
		{
			"long fork",
			[]*Tx{committed("T1", rc, appends(1, 10)), committed("T2", rc, appends(2, 20)), committed("T3", rr, reads(1, 10), reads(2)), committed("T4", rr, reads(1), reads(2, 20))},
			State{Lists: lists{1: {10}, 2: {20}}},
			GNonadjacent,
		},
		{"unrepeatable read", []*Tx{committed("T1", rc, appends(1, 10)), committed("T2", rr, reads(1), reads(1, 10))}, State{Lists: lists{1: {10}}}, Unrepeatable},
		{"unrepeatable read, READ COMMITTED", []*Tx{committed("T1", rc, appends(1, 10)), committed("T2", rc, reads(1), reads(1, 10))}, State{Lists: lists{1: {10}}}, none},

		// Lost updates.
		{"lost update", []*Tx{committed("T1", rr, reads(1), appends(1, 10)), committed("T2", rr, appends(1, 11))}, State{Lists: lists{1: {11, 10}}}, LostUpdate},
		{"lost update, READ COMMITTED without a lock", []*Tx{committed("T1", rc, reads(1), appends(1, 10)), committed("T2", rr, appends(1, 11))}, State{Lists: lists{1: {11, 10}}}, none},
		{"lost update with a lock", []*Tx{committed("T1", rc, locks(), appends(1, 10)), committed("T2", rc, appends(1, 11))}, State{Lists: lists{1: {11, 10}}}, LostUpdate},
		{"lock that a rollback has given up", []*Tx{committed("T1", rc, save, locks(), goBackS, appends(1, 10)), committed("T2", rc, appends(1, 11))}, State{Lists: lists{1: {11, 10}}}, none},
		{"lock older than a rollback", []*Tx{committed("T1", rc, locks(), save, appends(1, 12), goBackS, appends(1, 10)), committed("T2", rc, appends(1, 11))}, State{Lists: lists{1: {11, 10}}}, LostUpdate},
		{"write between a write and RETURNING", []*Tx{committed("T1", rc, appends(1, 10), reads(1, 10)), committed("T2", rc, appends(1, 11))}, State{Lists: lists{1: {11, 10}}}, LostUpdate},
		{"write seen in spite of a lock", []*Tx{committed("T1", rc, locks(), reads(1, 11)), committed("T2", rc, appends(1, 11))}, State{Lists: lists{1: {11}}}, LockBroken},
		{"overwrite of a list that had changed", []*Tx{committed("T1", rc, overwrites(nil, 10)), committed("T2", rc, appends(1, 11))}, State{Lists: lists{1: {11, 10}}}, LostUpdate},
		{"overwrite that lost another's write", []*Tx{committed("T1", rc, overwrites(nil, 10)), committed("T2", rc, appends(1, 11))}, State{Lists: lists{1: {10}}}, LostAppend},
		{"overwrite", []*Tx{committed("T1", rc, locks(), overwrites(nil, 10)), committed("T2", rc, locks(10), overwrites([]int32{10}, 11))}, State{Lists: lists{1: {10, 11}}}, none},

		// Serializability, and levels that do not promise it.
		{"write skew", writeSkew(sr, sr), State{Lists: lists{1: {10}, 2: {20}}}, G2},
		{"write skew, REPEATABLE READ", writeSkew(rr, rr), State{Lists: lists{1: {10}, 2: {20}}}, none},
		{"write skew, one SERIALIZABLE", writeSkew(sr, rr), State{Lists: lists{1: {10}, 2: {20}}}, none},
		{"write skew by a search", []*Tx{committed("T1", sr, findsNo(20), appends(1, 10)), committed("T2", sr, findsNo(10), appends(2, 20))}, State{Lists: lists{1: {10}, 2: {20}}}, G2},
		{"write skew of keys without rows", []*Tx{committed("T1", sr, appendsNothing(2, 9), appends(1, 10)), committed("T2", sr, counts(1, 0), appends(2, 20))}, State{Lists: lists{1: {10}, 2: {20}}}, G2},
		{"write skew with one that failed", []*Tx{writeSkew(sr, sr)[0], failed("T2", sr, reads(1), reads(2), appends(2, 20))}, State{Lists: lists{1: {10}}}, none},
		{
			"write skew of an upsert that was rolled back, which PostgreSQL lets pass",
			[]*Tx{
				committed("T1", sr, appends(1, 10), save, upserts(2, 21), reads(2, 21), goBackS),
				committed("T2", sr, reads(1), appends(2, 20)),
			},
			State{Lists: lists{1: {10}, 2: {20}}},
			none,
		},
		{
			"write skew of an update that was rolled back",
			[]*Tx{
				committed("T1", sr, appends(1, 10), save, appends(2, 21), reads(2, 21), goBackS),
				committed("T2", sr, reads(1), appends(2, 20)),
			},
			State{Lists: lists{1: {10}, 2: {20}}},
			G2,
		},
		{"read-only anomaly", readOnlyAnomaly(sr), State{Lists: lists{1: {10}, 2: {20}}}, G2},
		{"read-only anomaly, REPEATABLE READ", readOnlyAnomaly(rr), State{Lists: lists{1: {10}, 2: {20}}}, none},
		{
			"cycle of SERIALIZABLE through READ COMMITTED",
			[]*Tx{
				committed("T1", sr, reads(2), reads(4, 40)),
				committed("T2", sr, appends(2, 20), reads(3)),
				committed("T3", sr, appends(3, 30)),
				committed("T4", rc, reads(3, 30), appends(4, 40)),
			},
			State{Lists: lists{2: {20}, 3: {30}, 4: {40}}},
			G2,
		},

		// Time.
		{"stale read", []*Tx{during(1, 5, committed("T1", rc, appends(1, 10))), during(6, 9, committed("T2", rr, reads(1)))}, State{Lists: lists{1: {10}}}, Stale},
		{"stale read, READ COMMITTED", []*Tx{during(1, 5, committed("T1", rc, appends(1, 10))), during(2, 9, committed("T2", rc, at(6, reads(1))))}, State{Lists: lists{1: {10}}}, Stale},
		{"stale search", []*Tx{during(1, 5, committed("T1", rc, appends(1, 10))), during(6, 9, committed("T2", rc, at(7, findsNo(10))))}, State{Lists: lists{1: {10}}}, Stale},
		{"read of an older snapshot", []*Tx{during(1, 5, committed("T1", rc, appends(1, 10))), during(2, 9, committed("T2", rr, at(6, reads(1))))}, State{Lists: lists{1: {10}}}, none},

		// Generated ids.
		{"parent and children", []*Tx{committed("T1", rc, inserts(10), refers, countsChildren(1))}, State{Parents: []Row{{1, 10}}, Children: []Row{{1, 11}}}, none},
		{"another id than shown", []*Tx{committed("T1", rc, inserts(10))}, State{Parents: []Row{{2, 10}}}, WrongIDs},
		{"id that does not exist", []*Tx{committed("T1", rc, inserts(10))}, State{}, LostAppend},
		{"parent twice", []*Tx{committed("T1", rc, inserts(10))}, State{Parents: []Row{{1, 10}, {2, 10}}}, DoubledAppend},
		{"id twice", []*Tx{committed("T1", rc, inserts(10)), committed("T2", rc, inserts(11))}, State{Parents: []Row{{1, 10}, {1, 11}}}, WrongIDs},
		{"parent of a failed transaction", []*Tx{failed("T1", rc, inserts(10))}, State{Parents: []Row{{1, 10}}}, Undead},
		{"parent rolled back", []*Tx{committed("T1", rc, save, inserts(10), goBackS)}, State{Parents: []Row{{1, 10}}}, RolledBack},
		{"child of another", []*Tx{committed("T1", rc, inserts(10), refers)}, State{Parents: []Row{{1, 10}}, Children: []Row{{2, 11}}}, WrongIDs},
		{"child lost", []*Tx{committed("T1", rc, inserts(10), refers)}, State{Parents: []Row{{1, 10}}}, LostAppend},
		{"child not counted", []*Tx{committed("T1", rc, inserts(10), refers, countsChildren(0))}, State{Parents: []Row{{1, 10}}, Children: []Row{{1, 11}}}, Internal},
		{"child rolled back and counted", []*Tx{committed("T1", rc, inserts(10), save, refers, goBackS, countsChildren(1))}, State{Parents: []Row{{1, 10}}}, Internal},
		{"value that nobody inserted", nil, State{Children: []Row{{1, 11}}}, Garbage},

		{"value used twice", []*Tx{committed("T1", rc, appends(1, 10)), committed("T2", rc, appends(2, 10))}, State{Lists: lists{1: {10}}}, WrongRecording},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			anomalies := Check(&History{Txs: test.txs, Final: test.final})
			var names []string
			for _, a := range anomalies {
				names = append(names, a.Name)
			}
			switch {
			case test.want == none && len(names) > 0:
				t.Errorf("found %q\n%s", names, Report(anomalies))
			case test.want != none && !slices.Contains(names, test.want):
				t.Errorf("found %q instead of %q\n%s", names, test.want, Report(anomalies))
			}
		})
	}
}

func TestReportShowsTheCycleAndItsTransactions(t *testing.T) {
	report := Report(Check(&History{
		Txs: []*Tx{
			committed("T1", sr, reads(1), reads(2), appends(1, 10)),
			committed("T2", sr, reads(1), reads(2), appends(2, 20)),
			committed("T3", sr, reads(3)),
		},
		Final: State{Lists: lists{1: {10}, 2: {20}}},
	}))
	for _, part := range []string{"G2", "T1 —rw", "T2 —rw", "read 2 → []", "append to 2 value 20 → 1 rows", "SERIALIZABLE, committed"} {
		if !strings.Contains(report, part) {
			t.Errorf("%q is missing in\n%s", part, report)
		}
	}
	if strings.Contains(report, "T3") {
		t.Errorf("T3 has nothing to do with it:\n%s", report)
	}
}

func TestShortestOfSeveralCyclesIsReported(t *testing.T) {
	// T1 → T2 → T3 → T1 and T2 ⇄ T3.
	anomalies := Check(&History{
		Txs: []*Tx{
			committed("T1", rc, appends(1, 10), reads(3, 30)),
			committed("T2", rc, reads(1, 10), appends(2, 20), reads(4, 40)),
			committed("T3", rc, reads(2, 20), appends(3, 30), appends(4, 40)),
		},
		Final: State{Lists: lists{1: {10}, 2: {20}, 3: {30}, 4: {40}}},
	})
	if len(anomalies) != 1 || len(anomalies[0].Txs) != 2 {
		t.Error(Report(anomalies))
	}
}

func TestPlansAreAFunctionOfTheSeed(t *testing.T) {
	render := func(seed uint64) string {
		var text strings.Builder
		for worker := range 3 {
			for number := range 50 {
				fmt.Fprintf(&text, "%+v\n", newPlan(Config{Seed: seed}.withDefaults(), worker, number))
			}
		}
		return text.String()
	}
	if first, again := render(1), render(1); first != again {
		t.Error("the same seed gave other plans")
	}
	if render(1) == render(2) {
		t.Error("another seed gave the same plans")
	}
}

func TestValuesAreUniqueOverAllPlans(t *testing.T) {
	seen := make(map[int32]bool)
	for worker := range 8 {
		for number := range 2000 {
			for _, s := range newPlan(Config{}.withDefaults(), worker, number).steps {
				if s.val != 0 && seen[s.val] {
					t.Fatalf("value %d comes twice", s.val)
				}
				seen[s.val] = true
			}
		}
	}
}
