package pgretry

import (
	"context"
	"database/sql/driver"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/pgretry/pgretry/internal/drivertest"
)

func TestAnOriginHasThreePartsOrNone(t *testing.T) {
	for _, c := range []struct {
		answer string
		want   origin
	}{
		{"7/1/2/3 41 5.25", origin{history: "7/1/2/3", pid: "41", started: "5.25"}},
		{"", origin{}},
		{"7/1/2/3 41", origin{}},
		{"something", origin{}},
		{"7/1/2/3 41 5.25 more", origin{}},
	} {
		if got := parseOrigin(c.answer); got != c.want {
			t.Errorf("%q is %+v, want %+v", c.answer, got, c.want)
		}
	}
}

func TestASessionIsAskedForItsOriginOnlyWhereThatIsOfUse(t *testing.T) {
	for _, c := range []struct {
		name    string
		options []Option
		want    int
	}{
		{name: "resolve", options: []Option{WithCommitOutcome(CommitResolve)}, want: 1},
		{name: "resolve, for closures", options: []Option{WithCommitOutcome(CommitResolve), WithMode(ModeClosure)}, want: 1},
		{name: "resolve, but off", options: []Option{WithCommitOutcome(CommitResolve), WithMode(ModeOff)}},
		{name: "report", options: []Option{WithCommitOutcome(CommitReport)}},
		{name: "auto, of a driver that is not known"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFixture(t, c.options...)
			r := f.keeps(nil)
			if err := inTx(t.Context(), f.db, writes); err != nil || r.count(asksOrigin) != c.want {
				t.Errorf("it gives %v, asked were %v", err, r.asked)
			}
		})
	}
}

// orphanage is a scripted server that keeps records, with lost transactions.
func orphanage(t *testing.T, changes map[question][]string, direct bool) (*fixture, *records) {
	t.Helper()
	f := newFixture(t, WithCommitOutcome(CommitResolve))
	r := f.keeps(changes)
	f.db.SetMaxOpenConns(1)
	if direct {
		f.isDirect()
	}
	f.Fail(drivertest.AnyExec, driver.ErrBadConn).Matching("UPDATE account").Times(1).Drops()
	return f, r
}

func TestTheProcessOfALostSessionIsEndedBeforeTheTransactionBeginsAgain(t *testing.T) {
	for name, run := range map[string]func(*fixture) error{
		"a replay": func(f *fixture) error { return inTx(f.t.Context(), f.db, writes) },
		"RunInTx":  func(f *fixture) error { return RunInTx(f.t.Context(), f.db, nil, writes) },
		"Retry": func(f *fixture) error {
			return Retry(f.t.Context(), func(ctx context.Context) error { return inTx(ctx, f.db, writes) })
		},
	} {
		t.Run(name, func(t *testing.T) {
			f, r := orphanage(t, map[question][]string{asksEnd: {"1"}, asksLeft: {"1", "1", "0"}}, true)
			if err := run(f); err != nil {
				t.Fatal(err)
			}
			if end := r.last(asksEnd); r.count(asksEnd) != 1 || !strings.Contains(end, "pid = 1001 AND extract(epoch FROM backend_start)::text = '200.5'") {
				t.Errorf("%d times: %s", r.count(asksEnd), end)
			}
			if r.count(asksLeft) != 3 {
				t.Errorf("its end was waited for %d times", r.count(asksLeft))
			}
			second := 0
			for _, e := range f.Entries() {
				switch {
				case e.Call == drivertest.Begin:
					second++
				case second == 2 && strings.Contains(e.Query, "pg_terminate_backend(pid))"):
					t.Error("the transaction has begun by then")
				}
			}
		})
	}
}

func TestAProcessBehindAPoolerIsLeftAlone(t *testing.T) {
	f, r := orphanage(t, nil, false)
	if err := inTx(t.Context(), f.db, writes); err != nil || r.count(asksEnd) != 0 {
		t.Errorf("it gives %v, asked were %v", err, r.asked)
	}
}

func TestEndingTheProcessOfALostSessionIsNoCondition(t *testing.T) {
	for _, c := range []struct {
		name string
		q    question
		err  error
		left []string
	}{
		{name: "forbidden", q: asksEnd, err: serverErr("42501")},
		{name: "it does not end", left: []string{"1"}},
		{name: "asking again fails", q: asksLeft, err: serverErr("42501")},
	} {
		t.Run(c.name, func(t *testing.T) {
			changes := map[question][]string{asksEnd: {"1"}}
			if c.left != nil {
				changes[asksLeft] = c.left
			}
			f, r := orphanage(t, changes, true)
			if c.err != nil {
				r.errs[c.q] = c.err
			}
			if err := inTx(t.Context(), f.db, writes); err != nil || f.begins() != 2 {
				t.Errorf("it gives %v after %d transactions", err, f.begins())
			}
			var waited time.Duration
			for _, d := range f.waits[1:] {
				waited += d
			}
			if bound := orphanTimeout + orphanPause; waited > bound {
				t.Errorf("it was waited for %s", waited)
			}
		})
	}
}

func TestNoMoreOrphansAreRememberedThanCanBeEnded(t *testing.T) {
	f := newFixture(t)
	for i := range 2 * maxOrphans {
		f.connector.orphaned(orphan{origin: origin{pid: fmt.Sprint(i), started: "1", direct: true}})
	}
	if n := len(f.connector.orphans); n != maxOrphans {
		t.Errorf("%d are remembered", n)
	}
}

func TestAnOrphanIsEndedOnce(t *testing.T) {
	f, r := orphanage(t, nil, true)
	for range 3 {
		if err := inTx(t.Context(), f.db, writes); err != nil {
			t.Fatal(err)
		}
	}
	if r.count(asksEnd) != 1 {
		t.Errorf("asked were %v", r.asked)
	}
}
