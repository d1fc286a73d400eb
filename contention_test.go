package pgretry

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/pgretry/pgretry/internal/drivertest"
	"github.com/pgretry/pgretry/internal/gate"
)

// locksFirst is the statement by which the scripted transactions of one kind are known.
const locksFirst = "UPDATE first SET n = 1"

// twoStatements is a transaction that locks something in its first statement.
func twoStatements(ctx context.Context, tx *sql.Tx) error {
	if _, err := tx.ExecContext(ctx, locksFirst); err != nil {
		return err
	}
	_, err := tx.ExecContext(ctx, "UPDATE last SET n = 1")
	return err
}

// transacts begins a transaction without a closure, executes the body and commits.
func transacts(ctx context.Context, db *sql.DB, body func(context.Context, *sql.Tx) error) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if err := body(ctx, tx); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	return tx.Commit()
}

// deadlocks lets one transaction deadlock, once.
func (f *fixture) deadlocks(ctx context.Context) {
	f.t.Helper()
	rule := f.Fail(drivertest.AnyExec, serverErr("40P01")).Matching("last").Times(1)
	if err := transacts(ctx, f.db, twoStatements); err != nil {
		f.t.Fatal(err)
	}
	if rule.Fired() != 1 {
		f.t.Fatalf("the deadlock came %d times", rule.Fired())
	}
}

func (f *fixture) kinds() []KindStats {
	f.t.Helper()
	s, err := StatsOf(f.db)
	if err != nil {
		f.t.Fatal(err)
	}
	return s.Kinds
}

func TestTheFirstDeadlockMakesAKindOfTransactions(t *testing.T) {
	for _, c := range []struct {
		name              string
		ctx               func(context.Context) context.Context
		kind, fingerprint bool
	}{
		{name: "by its first statement that locks", ctx: func(ctx context.Context) context.Context { return ctx }, fingerprint: true},
		{name: "by its name", ctx: func(ctx context.Context) context.Context { return ContextWithName(ctx, "transfer") }, kind: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFixture(t)
			f.deadlocks(c.ctx(t.Context()))
			kinds := f.kinds()
			if len(kinds) != 1 || kinds[0].Deadlocks != 1 || (kinds[0].Name == "transfer") != c.kind || (kinds[0].Fingerprint != "") != c.fingerprint {
				t.Errorf("the kinds are %+v", kinds)
			}
			if kinds[0].Running != 0 || kinds[0].Waiting != 0 {
				t.Errorf("somebody is still inside: %+v", kinds)
			}
		})
	}
}

func TestAClosureThatDeadlocksMakesAKind(t *testing.T) {
	f := newFixture(t)
	f.Fail(drivertest.AnyExec, serverErr("40P01")).Matching("last").Times(2)
	if err := RunInTx(t.Context(), f.db, nil, twoStatements); err != nil {
		t.Fatal(err)
	}
	if kinds := f.kinds(); len(kinds) != 1 || kinds[0].Deadlocks != 2 || kinds[0].Running != 0 {
		t.Errorf("the kinds are %+v", kinds)
	}
}

func TestALoneStatementThatDeadlocksMakesAKind(t *testing.T) {
	f := newFixture(t)
	f.Rows("pg_catalog.pg_foreign_table", set())
	f.Fail(drivertest.AnyExec, serverErr("40P01")).Matching("first").Times(2)
	if _, err := f.db.Exec(locksFirst); err != nil {
		t.Fatal(err)
	}
	if kinds := f.kinds(); len(kinds) != 1 || kinds[0].Deadlocks != 2 || kinds[0].Running != 0 || kinds[0].Fingerprint == "" {
		t.Errorf("the kinds are %+v", kinds)
	}
}

func TestADeadlockOfWhoIsInsideIsToldToTheGate(t *testing.T) {
	for name, again := range map[string]func(*fixture) error{
		"a transaction": func(f *fixture) error { return transacts(f.t.Context(), f.db, twoStatements) },
		"a closure":     func(f *fixture) error { return RunInTx(f.t.Context(), f.db, nil, twoStatements) },
		"a lone statement": func(f *fixture) error {
			_, err := f.db.ExecContext(f.t.Context(), locksFirst)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.now = time.Now()
			f.Rows("pg_catalog.pg_foreign_table", set())
			f.deadlocks(t.Context())
			if limit := f.kinds()[0].Limit; limit != 0 {
				t.Fatalf("the limit is %d", limit)
			}
			f.onWait = func() {
				if limit := f.kinds()[0].Limit; limit != 1 {
					t.Errorf("the limit is %d", limit)
				}
			}
			waits := len(f.waits)
			text := "last"
			if name == "a lone statement" {
				text = "first"
			}
			f.Fail(drivertest.AnyExec, serverErr("40P01")).Matching(text).Times(1)
			if err := again(f); err != nil {
				t.Fatal(err)
			}
			if len(f.waits) == waits {
				t.Error("there was no deadlock")
			}
		})
	}
}

func TestOtherConflictsMakeNoKind(t *testing.T) {
	for _, code := range []string{"40001", "55P03"} {
		f := newFixture(t, WithAlsoRetry("55P03"))
		f.Fail(drivertest.AnyExec, serverErr(code)).Matching("last").Times(1)
		if err := transacts(t.Context(), f.db, twoStatements); err != nil {
			t.Fatal(err)
		}
		if kinds := f.kinds(); len(kinds) != 0 {
			t.Errorf("after %s the kinds are %+v", code, kinds)
		}
	}
}

func TestNothingIsRememberedWhereItIsOff(t *testing.T) {
	for name, options := range map[string][]Option{
		"off":      {WithContention(ContentionOff)},
		"mode off": {WithMode(ModeOff)},
		"closures": {WithMode(ModeClosure)},
	} {
		f := newFixture(t, options...)
		f.Fail(drivertest.AnyExec, serverErr("40P01")).Matching("last").Times(1)
		if err := transacts(t.Context(), f.db, twoStatements); sqlState(err) != "40P01" && name != "off" || name == "off" && err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if kinds := f.kinds(); len(kinds) != 0 || f.connector.memory.isHot() {
			t.Errorf("%s: the kinds are %+v", name, kinds)
		}
	}
}

func TestAClosureIsRememberedInModeClosure(t *testing.T) {
	f := newFixture(t, WithMode(ModeClosure))
	f.Fail(drivertest.AnyExec, serverErr("40P01")).Matching("last").Times(1)
	if err := RunInTx(t.Context(), f.db, nil, twoStatements); err != nil {
		t.Fatal(err)
	}
	if kinds := f.kinds(); len(kinds) != 1 || kinds[0].Deadlocks != 1 {
		t.Errorf("the kinds are %+v", kinds)
	}
}

func TestAKindIsForgottenAfterFiveMinutes(t *testing.T) {
	f := newFixture(t)
	f.deadlocks(t.Context())
	f.now = f.now.Add(kindMemory - time.Second)
	if err := transacts(t.Context(), f.db, twoStatements); err != nil {
		t.Fatal(err)
	}
	if len(f.kinds()) != 1 {
		t.Error("the kind is forgotten too early")
	}
	f.now = f.now.Add(time.Second)
	if err := transacts(t.Context(), f.db, twoStatements); err != nil {
		t.Fatal(err)
	}
	if kinds := f.kinds(); len(kinds) != 0 || f.connector.memory.isHot() {
		t.Errorf("the kinds are %+v", kinds)
	}
}

// What deadlocked last night is not what runs today.
func TestAKindThatNeverComesAgainIsForgottenAsWell(t *testing.T) {
	f := newFixture(t)
	f.deadlocks(t.Context())
	f.now = f.now.Add(kindMemory + time.Second)
	if err := transacts(t.Context(), f.db, func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "UPDATE something_else SET n = 1")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if kinds := f.kinds(); len(kinds) != 0 || f.connector.memory.isHot() {
		t.Errorf("the kinds are %+v", kinds)
	}
}

func TestKindsAreBoundedAndTheCalmestGoesFirst(t *testing.T) {
	f := newFixture(t)
	memory := &f.connector.memory
	for i := range maxKinds {
		f.now = f.now.Add(time.Millisecond)
		memory.learn(kindKey{name: fmt.Sprint(i)})
	}
	f.now = f.now.Add(time.Millisecond)
	memory.learn(kindKey{name: "0"}) // again: it is not the calmest any more
	memory.learn(kindKey{name: "one more"})
	if n := len(f.kinds()); n != maxKinds {
		t.Errorf("%d kinds are remembered", n)
	}
	for name, want := range map[string]bool{"0": true, "1": false, "2": true, "one more": true} {
		if got := memory.find(kindKey{name: name}) != nil; got != want {
			t.Errorf("kind %s is remembered: %t", name, got)
		}
	}
}

func TestFingerprintsAreBounded(t *testing.T) {
	f := newFixture(t)
	memory := &f.connector.memory
	for i := range 3 * maxFingerprints {
		memory.keyOf("", fmt.Sprintf("UPDATE t SET n = %d", i))
	}
	memory.keyOf("", "UPDATE t SET s = '"+strings.Repeat("x", analysedTextBytes)+"'")
	for text := range memory.fingerprints {
		if len(text) > analysedTextBytes {
			t.Error("a long text is kept")
		}
	}
	if n := len(memory.fingerprints); n > maxFingerprints {
		t.Errorf("%d fingerprints are kept", n)
	}
	if memory.keyOf("", "UPDATE t SET n = 1") != memory.keyOf("", "UPDATE t SET n = 2") {
		t.Error("texts that differ in a number are of two kinds")
	}
	if got := memory.keyOf("transfer", "UPDATE t SET n = 1"); got != (kindKey{name: "transfer"}) {
		t.Errorf("the key is %+v", got)
	}
}

// inside returns how many run in the kind's gate.
func (f *fixture) limitOf(name string) *gate.Gate {
	f.t.Helper()
	k := f.connector.memory.find(kindKey{name: name})
	if k == nil {
		f.t.Fatalf("there is no kind %s", name)
	}
	return k.gate.Load()
}

// meetsIn makes two kinds the sides of a deadlock.
func (f *fixture) meetsIn(victim, other string) {
	f.t.Helper()
	memory := &f.connector.memory
	k := memory.learn(kindKey{name: victim})
	k.deadlocks.Add(1)
	c := &conn{connector: f.connector}
	c.kind.Store(memory.learn(kindKey{name: other}))
	memory.merge(k, []*conn{c})
}

func TestKindsThatDeadlockWithEachOtherShareALimit(t *testing.T) {
	f := newFixture(t)
	f.meetsIn("a", "b")
	if f.limitOf("a") != f.limitOf("b") {
		t.Error("they have a limit each")
	}
}

// Each of them deadlocks with the next one.
func TestAnyNumberOfKindsShareALimit(t *testing.T) {
	f := newFixture(t)
	pairs := [][2]string{{"a", "b"}, {"c", "b"}, {"d", "e"}, {"e", "c"}, {"a", "e"}, {"b", "d"}}
	for _, pair := range pairs {
		f.meetsIn(pair[0], pair[1])
	}
	shared := f.limitOf("a")
	for _, name := range []string{"b", "c", "d", "e"} {
		if f.limitOf(name) != shared {
			t.Errorf("%s has a limit of its own", name)
		}
	}
	if shared.Limit() != 0 {
		t.Fatalf("the limit is %d", shared.Limit())
	}
	shared.Enlist().Leave(gate.Deadlocked)
	if shared.Limit() == 0 {
		t.Error("nothing is limited any more")
	}
}

func TestTheLimitIsKeptWhereThereIsOneAlready(t *testing.T) {
	f := newFixture(t)
	for range 3 {
		f.connector.memory.learn(kindKey{name: "old"}).deadlocks.Add(1)
	}
	f.limitOf("old").Enlist().Leave(gate.Deadlocked)
	f.meetsIn("new", "old")
	if f.limitOf("new") != f.limitOf("old") || f.limitOf("new").Limit() == 0 {
		t.Errorf("the limit is %d", f.limitOf("new").Limit())
	}
}

// The connection has seen a kind before; the transaction that deadlocks is not of it.
func TestWhatAConnectionDidBeforeIsNoSideOfADeadlock(t *testing.T) {
	f := newFixture(t)
	f.db.SetMaxOpenConns(1)
	f.deadlocks(t.Context())
	if err := transacts(t.Context(), f.db, twoStatements); err != nil {
		t.Fatal(err)
	}
	tx, err := f.db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	if _, err := tx.Exec("UPDATE something_else SET n = 1"); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(withConn(t, f.db, func(c *conn) {
		if k := c.kind.Load(); k != nil {
			t.Errorf("the connection is taken for one of kind %+v", k.key)
		}
	})); err != nil {
		t.Fatal(err)
	}
}

// withConn lends a connection of ours.
func withConn(t *testing.T, db *sql.DB, use func(*conn)) error {
	t.Helper()
	c, err := db.Conn(t.Context())
	if err != nil {
		return err
	}
	return errors.Join(c.Raw(func(driverConn any) error {
		use(driverConn.(interface{ itself() *conn }).itself())
		return nil
	}), c.Close())
}

func TestTheNamesOfContentionReadBack(t *testing.T) {
	for _, c := range []struct {
		parts Contention
		name  string
	}{
		{ContentionOff, "off"},
		{ContentionLimit, "limit"},
		{ContentionDetector, "detector"},
		{ContentionProbes, "probes"},
		{ContentionProbeTransactions, "transaction_probes"},
		{ContentionShared, "shared"},
		{ContentionDefault, "limit,detector,probes"},
		{ContentionLimit | ContentionProbeTransactions, "limit,transaction_probes"},
	} {
		if got := c.parts.String(); got != c.name {
			t.Errorf("%d is called %s, want %s", uint8(c.parts), got, c.name)
		}
		parts, err := parseContention(c.name)
		if err != nil || parts != c.parts {
			t.Errorf("%s reads as %d, %v", c.name, uint8(parts), err)
		}
	}
	if parts, err := parseContention("default"); err != nil || parts != ContentionDefault {
		t.Errorf("default reads as %v, %v", parts, err)
	}
	for _, wrong := range []string{"", "on", "limit,all", ","} {
		if _, err := parseContention(wrong); err == nil {
			t.Errorf("%q is accepted", wrong)
		}
	}
	if got := Contention(1 << 7).String(); got != "Contention(128)" {
		t.Errorf("it is called %s", got)
	}
	if _, err := NewConnector(drivertest.New().Connector(), WithContention(1<<7)); err == nil || !strings.Contains(err.Error(), "contention is 128") {
		t.Errorf("NewConnector gives %v", err)
	}
}

func TestTheDSNSaysWhatIsDoneAboutContention(t *testing.T) {
	for value, want := range map[string]Contention{"off": ContentionOff, "limit,probes": ContentionLimit | ContentionProbes} {
		db, err := Open("host=127.0.0.1 pgretry_contention="+value, WithContention(ContentionDefault))
		if err != nil {
			t.Fatal(err)
		}
		if got := connectorOf(db).config.contention; got != want {
			t.Errorf("%s gives %v", value, got)
		}
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := Open("host=127.0.0.1 pgretry_contention=all"); err == nil || !strings.Contains(err.Error(), "transaction_probes") {
		t.Errorf("Open gives %v, want what is allowed", err)
	}
}

// idle is a database over a driver that costs nothing.
func idle(t *testing.T, options ...Option) (*sql.DB, *Connector) {
	t.Helper()
	d := drivertest.New(drivertest.WithFeatures(drivertest.LibPQ), drivertest.WithoutLog())
	connector, err := NewConnector(d.Connector(), options...)
	if err != nil {
		t.Fatal(err)
	}
	db := sql.OpenDB(connector)
	db.SetMaxOpenConns(1)
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db, connector
}

// allocations returns how many a transaction makes, as exactly as it can be told beside what
// the rest of the process does.
func allocations(t *testing.T, db *sql.DB) float64 {
	t.Helper()
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	const transactions = 1000 // the count runs behind by some dozens at times
	fewest := math.Inf(1)
	for range 10 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range transactions {
			if err := transacts(context.Background(), db, twoStatements); err != nil {
				t.Fatal(err)
			}
		}
		runtime.ReadMemStats(&after)
		fewest = min(fewest, float64(after.Mallocs-before.Mallocs)/transactions)
	}
	return fewest
}

func TestWhereNothingConflictsNothingIsPaid(t *testing.T) {
	off, _ := idle(t, WithContention(ContentionOff))
	on, connector := idle(t)
	without, with := allocations(t, off), allocations(t, on)
	if with > without+0.5 {
		t.Errorf("a transaction makes %v allocations, %v without", with, without)
	}
	if connector.memory.isHot() || connector.memory.detector.awake.Load() || connector.memory.detector.side != nil {
		t.Error("something is remembered")
	}

	connector.memory.learn(kindKey{name: "somebody else"})
	if hot := allocations(t, on); hot > without+0.5 {
		t.Errorf("beside a kind that deadlocks a transaction of another makes %v allocations, %v without", hot, without)
	}
}
