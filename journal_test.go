package pgretry

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lib/pq"

	"github.com/pgretry/pgretry/internal/drivertest"
)

// visitingCard is what pgx takes for a document or a composite type.
type visitingCard struct {
	Tags   []string
	Note   *string
	Amount amounts
	Number *big.Int
	none   []int
}

type amounts struct{ Each []uint }

// These say themselves how they are written, and may do so in another way each time.
type (
	lazyID struct{ id *string }
	status struct{ name string }
	locked struct {
		Mu    sync.Mutex
		Value string
	}
	labels  map[string]string
	secret  struct{ values map[string]int }
	pointed struct {
		Text   string
		Parent *pointed
		Left   []*pointed
	}
)

func (l *lazyID) MarshalJSON() ([]byte, error) { return []byte(*l.id), nil }
func (s *status) MarshalJSON() ([]byte, error) { return []byte(s.name), nil }
func (l labels) MarshalJSON() ([]byte, error)  { return []byte(l["a"]), nil }

// written tells a value with all that it refers to.
func written(v reflect.Value) string {
	switch v.Kind() {
	case reflect.Invalid:
		return "nil"
	case reflect.Pointer, reflect.Interface:
		if v.IsNil() {
			return fmt.Sprintf("%s(nil)", v.Type())
		}
		return fmt.Sprintf("%s(%s)", v.Type(), written(v.Elem()))
	case reflect.Slice, reflect.Array:
		parts := make([]string, v.Len())
		for i := range parts {
			parts[i] = written(v.Index(i))
		}
		return fmt.Sprintf("%s%q", v.Type(), parts)
	case reflect.Map:
		var parts []string
		for i := v.MapRange(); i.Next(); {
			parts = append(parts, written(i.Key())+written(i.Value()))
		}
		slices.Sort(parts)
		return fmt.Sprintf("%s%q", v.Type(), parts)
	case reflect.Struct:
		var parts []string
		for i := range v.NumField() {
			parts = append(parts, written(v.Field(i)))
		}
		return fmt.Sprintf("%s%q", v.Type(), parts)
	}
	return fmt.Sprintf("%s %v", v.Type(), v)
}

// shade is a named type, as applications and generated code have.
type shade []byte

func TestArgumentsAreReplayedAsTheyWereWhenTheStatementWasExecuted(t *testing.T) {
	bytes, named, list, numbers := []byte("abc"), shade("abc"), []string{"a", "b"}, []int64{1, 2}
	blobs, nested := [][]byte{{1}, {2}}, [][]int32{{1, 2}, {3}}
	array := []int64{1, 2}
	pointee, note, number := 7, "note", big.NewInt(7)
	document := map[string]any{"list": []any{1, "a", nil}, "empty": map[string]any(nil)}
	card := visitingCard{Tags: []string{"a", "b"}, Note: &note, Amount: amounts{Each: []uint{1, 2}}, Number: big.NewInt(5), none: nil}
	for _, c := range []struct {
		name   string
		arg    any
		change func() // what the application does afterwards
	}{
		{"NULL", nil, func() {}},
		{"a number", 7, func() {}},
		{"a time", time.Unix(7, 8).UTC(), func() {}},
		{"bytes", bytes, func() { bytes[0] = 'z' }},
		{"nil bytes", []byte(nil), func() {}},
		{"a named type", named, func() { named[1] = 'z' }},
		{"strings", list, func() { list[0] = "z" }},
		{"numbers", numbers, func() { numbers[1] = 9 }},
		{"a slice of bytes", blobs, func() { blobs[1][0] = 9 }},
		{"a slice of slices", nested, func() { nested[0][1], nested[1] = 9, nil }},
		{"an array", [2]int{1, 2}, func() {}},
		{"what pq.Array makes", pq.Array(array), func() { array[0] = 9 }},
		{"a pointer", &pointee, func() { pointee = 9 }},
		{"a nil pointer", (*int)(nil), func() {}},
		{"pointers", []*int{&pointee, nil}, func() { pointee = 8 }},
		{"an array of pointers", [1]*int{&pointee}, func() { pointee = 10 }},
		{"a map", document, func() { document["list"].([]any)[0], document["more"] = 9, 9 }},
		{"a structure", card, func() { card.Tags[0], *card.Note, card.Amount.Each[0] = "z", "z", 9; card.Number.SetInt64(6) }},
		{"a big number", number, func() { number.SetInt64(9) }},
		{"an address", netip.MustParseAddr("fe80::1%eth0"), func() {}},
	} {
		for _, prepared := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/prepared %t", c.name, prepared), func(t *testing.T) {
				f := newFixtureOver(t, liberal())
				var given []string
				begins := 0
				f.On(drivertest.AnyCall).Do(func(inv *drivertest.Invocation) error {
					switch {
					case inv.Call == drivertest.Begin:
						begins++
					case inv.Call&drivertest.AnyExec != 0 && len(inv.Args) > 0:
						given = append(given, written(reflect.ValueOf(inv.Args)))
					case inv.Query == "UPDATE last" && begins < 3:
						return serverErr("40001")
					}
					return nil
				})
				err := inTx(t.Context(), f.db, func(ctx context.Context, tx *sql.Tx) error {
					exec := tx.ExecContext
					if prepared {
						s, err := tx.PrepareContext(ctx, "UPDATE t SET a = $1, b = $2")
						if err != nil {
							return err
						}
						exec = func(ctx context.Context, _ string, args ...any) (sql.Result, error) {
							return s.ExecContext(ctx, args...)
						}
					}
					if _, err := exec(ctx, "UPDATE t SET a = $1, b = $2", c.arg, "after"); err != nil {
						return err
					}
					c.change()
					return steps(ctx, tx, "UPDATE last")
				})
				if err != nil || len(given) != 3 || given[1] != given[0] || given[2] != given[0] {
					t.Errorf("the application gets %v, the server is given\n%s", err, strings.Join(given, "\n"))
				}
			})
		}
	}
}

func TestArgumentsThatMayChangeUnseenAreNotReplayed(t *testing.T) {
	number := 7
	type itself struct{ Next *itself }
	var loop itself
	loop.Next = &loop
	id := "id"
	tree := &pointed{Text: "root"}
	tree.Left = []*pointed{{Text: "leaf", Parent: tree}}
	bush := &pointed{} // each level refers to the one below twice: beyond all bounds, unless they are kept
	for range 60 {
		bush = &pointed{Left: []*pointed{bush, bush}}
	}
	for _, arg := range []any{
		func() {}, make(chan int),
		[]any{make(chan int)},
		struct{ p *int }{&number},
		&struct{ m map[string]int }{map[string]int{}},
		map[any]int{1: 1},
		loop, tree, bush,
		&lazyID{&id},
		[]*lazyID{{&id}},
		&status{"active"},
		[]any{&status{"active"}},
		&locked{Value: "a"},
		labels{"a": "b"},
		secret{map[string]int{}},
		struct{ value *big.Int }{big.NewInt(1)},
	} {
		f := newFixtureOver(t, liberal())
		f.strikes(strike{last, 0, serverErr("40001")})
		err := inTx(t.Context(), f.db, func(ctx context.Context, tx *sql.Tx) error {
			if _, err := tx.ExecContext(ctx, "UPDATE t SET a = $1", arg); err != nil {
				t.Errorf("%T: %v", arg, err)
			}
			return steps(ctx, tx, "UPDATE last")
		})
		if sqlState(err) != "40001" || f.stats().Unprotected[RefusedArgument] != 1 || len(f.attempts()) != 1 {
			t.Errorf("%T: the application gets %v, stats are %+v", arg, err, f.stats())
		}
	}
}

func TestTheJournalHoldsAsManyStatementsAsItIsAllowed(t *testing.T) {
	for _, c := range []struct {
		statements int
		protected  bool
	}{{4, true}, {5, false}} {
		f := newFixture(t, WithJournalLimit(1<<20, 4))
		f.strikes(strike{commit, 1, serverErr("40001")})
		f.likePostgres()
		err := inTx(t.Context(), f.db, func(ctx context.Context, tx *sql.Tx) error {
			for i := range c.statements {
				if _, err := tx.ExecContext(ctx, "UPDATE t SET a = $1", i); err != nil {
					return err
				}
			}
			return nil
		})
		s := f.stats()
		if (err == nil) != c.protected || (s.Protected == 1) != c.protected || (s.Unprotected[RefusedJournalFull] == 1) == c.protected {
			t.Errorf("after %d statements the application gets %v, stats are %+v", c.statements, err, s)
		}
	}
}

func TestTheJournalHoldsAsManyBytesAsItIsAllowed(t *testing.T) {
	run := func(limit int, conflict bool) (Stats, error) {
		f := newFixture(t, WithJournalLimit(limit, 100)).likePostgres()
		if conflict {
			f.strikes(strike{last, 1, serverErr("40001")})
		}
		err := inTx(t.Context(), f.db, func(ctx context.Context, tx *sql.Tx) error {
			if _, err := tx.ExecContext(ctx, "UPDATE t SET a = $1, b = $2", strings.Repeat("a", 1000), make([]byte, 2000)); err != nil {
				return err
			}
			return steps(ctx, tx, "UPDATE last")
		})
		return f.stats(), err
	}
	unlimited, err := run(1<<20, false)
	if err != nil || unlimited.JournalPeak < 3000 || unlimited.JournalPeak > 5000 {
		t.Fatalf("the application gets %v, the journal had %d bytes", err, unlimited.JournalPeak)
	}
	size := int(unlimited.JournalPeak)
	// A statement that is executed again takes no more room.
	if s, err := run(size, true); err != nil || s.Protected != 1 || s.JournalPeak != int64(size) {
		t.Errorf("with room for all the application gets %v, stats are %+v", err, s)
	}
	s, err := run(size-1, true)
	server, ok := errors.AsType[*drivertest.Error](err)
	if !ok || !strings.Contains(server.Hint, "[journal_full]") || s.Unprotected[RefusedJournalFull] != 1 {
		t.Errorf("with a byte too little the application gets %+v, stats are %+v", err, s)
	}
	if s, err := run(size-1, false); err != nil || s.Unprotected[RefusedJournalFull] != 1 || s.Committed != 1 || s.JournalPeak >= int64(size) {
		t.Errorf("without a conflict the application gets %v, stats are %+v", err, s)
	}
}

// journalOf returns the journals of a connection: of its transaction, and of its last
// statement outside one.
func journalOf(t *testing.T, c *sql.Conn) (ofTx, ofStatement *journal) {
	t.Helper()
	err := c.Raw(func(driverConn any) error {
		inner := driverConn.(interface{ itself() *conn }).itself()
		ofTx, ofStatement = &inner.journal, &inner.lone
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return ofTx, ofStatement
}

func TestAnIdleConnectionKeepsNothingOfItsTransactions(t *testing.T) {
	f := newFixture(t)
	f.strikes(strike{last, 1, serverErr("40001")})
	c, err := f.db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	tx, err := c.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2000 {
		if _, err := tx.ExecContext(t.Context(), "UPDATE t SET a = $1, b = $2", make([]byte, 100), fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(steps(t.Context(), tx, "UPDATE last"), tx.Commit()); err != nil {
		t.Fatal(err)
	}
	j, _ := journalOf(t, c)
	kept := slices.ContainsFunc(j.entries[:cap(j.entries)], func(e entry) bool { return e.text != "" }) ||
		slices.ContainsFunc(j.args[:cap(j.args)], func(a driver.NamedValue) bool { return a.Value != nil })
	if kept || j.size != 0 || cap(j.entries) > keptEntries || cap(j.args) > keptArgs || cap(j.arena) > keptArena {
		t.Errorf("kept %t: %d bytes, room for %d entries, %d arguments, %d bytes", kept, j.size, cap(j.entries), cap(j.args), cap(j.arena))
	}
}

func TestAMillionRowsTakeNoRoom(t *testing.T) {
	const million = 1_000_000
	peak := map[int]int64{}
	for _, n := range []int{1, million} {
		d := drivertest.New(drivertest.WithFeatures(drivertest.LibPQ), drivertest.WithoutLog())
		f := newFixtureOver(t, d)
		row := []driver.Value{int64(7), "seven"}
		f.Rows("many", drivertest.ResultSet{Columns: drivertest.Columns("a", "b"), Rows: slices.Repeat([][]driver.Value{row}, n)})
		f.Fail(drivertest.Exec, serverErr("40001")).Times(1)
		tx, err := f.db.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		rows, err := tx.QueryContext(t.Context(), "SELECT many")
		if err != nil {
			t.Fatal(err)
		}
		read := 0
		for rows.Next() {
			read++
		}
		if err := errors.Join(rows.Err(), rows.Close(), steps(t.Context(), tx, "UPDATE")); err != nil || read != n {
			t.Fatalf("%d rows were read, then %v", read, err)
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 1<<20 {
			t.Errorf("after %d rows the heap holds %d bytes more", n, grown)
		}
		if err := tx.Commit(); err != nil {
			t.Error(err)
		}
		s := f.stats()
		if s.Hidden != 1 || s.Protected != 1 {
			t.Errorf("stats are %+v", s)
		}
		peak[n] = s.JournalPeak
	}
	if peak[1] != peak[million] || peak[1] == 0 {
		t.Errorf("the journals had %v bytes", peak)
	}
}

// lib/pq and pgx send []byte(nil) as NULL: what is committed would differ from what
// the application wrote, and no digest would see it.
func TestEmptyBytesAreNotReplayedAsNULL(t *testing.T) {
	f := newFixture(t)
	f.strikes(strike{last, 1, serverErr("40001")})
	err := inTx(t.Context(), f.db, func(ctx context.Context, tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, "UPDATE first SET a = $1", []byte{}); err != nil {
			return err
		}
		return steps(ctx, tx, "UPDATE last")
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range f.Entries() {
		if e.Call == drivertest.Exec && len(e.Args) > 0 && e.Args[0].Value.([]byte) == nil {
			t.Errorf("%s: the argument was empty and now is nil", e)
		}
	}
}

func TestCopiesOfArgumentsDoNotPileUpBeyondTheLimit(t *testing.T) {
	const limit = 64 << 10
	f := newFixture(t, WithJournalLimit(limit, 100), WithPolicy(Policy{MaxElapsed: time.Hour}))
	f.db.SetMaxOpenConns(1)
	f.Fail(drivertest.Exec, serverErr("40001")).Times(40)
	c, err := f.db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	tx, err := c.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.ExecContext(t.Context(), "UPDATE $1", make([]byte, limit/2)); err != nil {
		t.Error(err)
	}
	_ = c.Raw(func(driverConn any) error {
		if got := cap(driverConn.(interface{ itself() *conn }).itself().journal.arena); got > 2*limit {
			t.Errorf("the journal holds %d bytes of arguments, the limit is %d", got, limit)
		}
		return nil
	})
	if err := tx.Commit(); err != nil {
		t.Error(err)
	}
}
