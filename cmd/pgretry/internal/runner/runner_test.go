package runner

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/lib/pq"
	"go.uber.org/goleak"

	"github.com/pgretry/pgretry"
	"github.com/pgretry/pgretry/cmd/pgretry/internal/sandbox"
	"github.com/pgretry/pgretry/internal/pgserver/pgtest"
	"github.com/pgretry/pgretry/internal/workload"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

func newSandbox(t *testing.T) *sandbox.Sandbox {
	t.Helper()
	dsn := pgtest.DSN(t)
	t.Cleanup(func() { goleak.VerifyNone(t, goleak.IgnoreCurrent()) })
	box, err := sandbox.Open(t.Context(), dsn, sandbox.Settings{DeadlockTimeout: 10 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := box.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return box
}

// scripted is a workload whose transactions run a function.
type scripted struct {
	setup string
	body  workload.Body
	check error
	seen  *[]int64
}

func (scripted) Name() string                      { return "scripted" }
func (scripted) About() string                     { return "runs a function" }
func (scripted) TxOptions() *sql.TxOptions         { return nil }
func (s scripted) Transaction(int64) workload.Body { return s.body }
func (s scripted) Setup(ctx context.Context, db *sql.DB) error {
	_, err := db.ExecContext(ctx, s.setup)
	return err
}

func (s scripted) Check(_ context.Context, _ *sql.DB, committed []int64) error {
	if s.seen != nil {
		*s.seen = committed
	}
	return s.check
}

func unobserved(Progress) error { return nil }

func TestTransactionsUnderWayAreFinished(t *testing.T) {
	for _, side := range Sides() {
		t.Run(side.Name, func(t *testing.T) {
			box := newSandbox(t)
			const workers = 3
			var committed []int64
			w := scripted{seen: &committed, body: func(ctx context.Context, tx *sql.Tx) error {
				_, err := tx.ExecContext(ctx, `SELECT pg_sleep(0.2)`)
				return err
			}}
			result, err := Run(t.Context(), box, side, w, Load{Workers: workers, Duration: time.Millisecond}, unobserved)
			if err != nil {
				t.Fatal(err)
			}
			if result.Commits != workers || len(committed) != workers || result.Errors != 0 || result.Attempts != workers {
				t.Errorf("got %+v and %v, want %d commits", result, committed, workers)
			}
		})
	}
}

// deadlockOnce makes functions in which the server aborts the transaction as if by a deadlock: one the
// first time only, because a sequence keeps its value when the transaction is rolled back.
const deadlockOnce = `
	CREATE SEQUENCE calls;
	CREATE TABLE marks (mark bigint);
	CREATE FUNCTION deadlock_once() RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		IF nextval('calls') = 1 THEN
			RAISE 'deadlock' USING ERRCODE = '40P01';
		END IF;
	END $$;
	CREATE FUNCTION deadlock() RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		RAISE 'deadlock' USING ERRCODE = '40P01';
	END $$`

// markAndDeadlockOnce writes a row and then meets the deadlock.
func markAndDeadlockOnce(runs *int) workload.Body {
	return func(ctx context.Context, tx *sql.Tx) error {
		*runs++
		if _, err := tx.ExecContext(ctx, `INSERT INTO marks VALUES (1)`); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `SELECT deadlock_once()`)
		return err
	}
}

// runDeadlockOnce returns the result and how often the body ran. Each transaction that was committed
// left one row, and no other did.
func runDeadlockOnce(t *testing.T, side Side) (result Result, runs int) {
	t.Helper()
	box := newSandbox(t)
	w := scripted{setup: deadlockOnce, body: markAndDeadlockOnce(&runs)}
	result, err := Run(t.Context(), box, side, w, Load{Workers: 1, Duration: 50 * time.Millisecond}, unobserved)
	if err != nil {
		t.Fatal(err)
	}
	var marks int64
	if err := box.DB().QueryRowContext(t.Context(), `SELECT count(*) FROM marks`).Scan(&marks); err != nil {
		t.Fatal(err)
	}
	if marks != result.Commits {
		t.Errorf("%d rows are left by %d commits", marks, result.Commits)
	}
	return result, runs
}

func TestLibPQShowsTheApplicationADeadlock(t *testing.T) {
	result, runs := runDeadlockOnce(t, Plain)
	if result.Errors != 1 || result.Codes["40P01"] != 1 || int64(runs) != result.Commits+1 || result.Attempts != result.Commits+1 {
		t.Errorf("got %+v after %d runs, want one error", result, runs)
	}
	if c := result.Conflicts; c.Seen != 1 || c.Hidden != 0 || c.Unhidden != nil {
		t.Errorf("got %+v, want one conflict seen", c)
	}
	if server, ok := errors.AsType[*pq.Error](result.First); !ok || server.Message != "deadlock" {
		t.Errorf("the first error is %v", result.First)
	}
}

func TestTheDriverAloneHidesADeadlock(t *testing.T) {
	result, runs := runDeadlockOnce(t, DriverOnly)
	if result.Errors != 0 || result.Broken() != nil {
		t.Errorf("got %+v, want no error", result)
	}
	if int64(runs) != result.Commits {
		t.Errorf("the body ran %d times for %d commits: the driver does not run it", runs, result.Commits)
	}
	if c := result.Conflicts; c.Seen != 0 || c.Hidden != 1 || c.Replays != 1 || c.Partial != 0 || len(c.Retries) != 0 || len(c.Unhidden) != 0 {
		t.Errorf("got %+v, want one conflict hidden by one replay", c)
	}
	if result.Attempts != result.Commits+1 {
		t.Errorf("%d attempts for %d commits, want one more", result.Attempts, result.Commits)
	}
}

func TestRunInTxHidesADeadlock(t *testing.T) {
	result, runs := runDeadlockOnce(t, RunInTx)
	if result.Errors != 0 || result.Broken() != nil || int64(runs) != result.Commits+1 || result.Attempts != result.Commits+1 {
		t.Errorf("got %+v after %d runs, want one run more than commits and no error", result, runs)
	}
	if c := result.Conflicts; c.Seen != 0 || c.Hidden != 1 || c.Deadlocks() != 1 || c.SerializationFailures() != 0 || c.Replays != 0 || len(c.Unhidden) != 0 {
		t.Errorf("got %+v, want one deadlock survived", c)
	}
}

// A transaction whose replay shows something else cannot be hidden: the driver alone hands the
// error out, and nothing of the transaction stays.
func TestWhatTheDriverAloneCannotHideIsExplained(t *testing.T) {
	box := newSandbox(t)
	w := scripted{setup: deadlockOnce, body: func(ctx context.Context, tx *sql.Tx) error {
		var shown int64
		if err := tx.QueryRowContext(ctx, `SELECT nextval('calls') + 1`).Scan(&shown); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `INSERT INTO marks VALUES ($1)`, shown); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `SELECT deadlock()`)
		return err
	}}
	result, err := Run(t.Context(), box, DriverOnly, w, Load{Workers: 1, Duration: time.Millisecond}, unobserved)
	if err != nil {
		t.Fatal(err)
	}
	if c := result.Conflicts; c.Seen == 0 || c.Seen != result.Codes["40P01"] || c.Hidden != 0 || c.Unhidden[CauseDiverged] != c.Seen || len(c.Unhidden) != 1 {
		t.Errorf("got %+v in %+v, want every conflict seen and diverged", c, result)
	}
	var marks int64
	if err := box.DB().QueryRowContext(t.Context(), `SELECT count(*) FROM marks`).Scan(&marks); err != nil || marks != 0 {
		t.Errorf("%d rows are left of transactions that failed, %v", marks, err)
	}
}

func TestTheDriverAloneRunsTheVeryCodeOfLibPQ(t *testing.T) {
	if reflect.ValueOf(DriverOnly.transact).Pointer() != reflect.ValueOf(Plain.transact).Pointer() {
		t.Error("the sides have code of their own")
	}
}

// What these workloads are shown no other transaction changes, or a pin keeps.
func TestTheDriverAloneHidesRealDeadlocks(t *testing.T) {
	for _, name := range []string{"crossing", "upserts", "transfer/write", "ids"} {
		t.Run(name, func(t *testing.T) {
			box := newSandbox(t)
			selected, err := workload.Select(1, []string{name})
			if err != nil {
				t.Fatal(err)
			}
			result, err := Run(t.Context(), box, DriverOnly, selected[0], Load{Workers: 8, Duration: 500 * time.Millisecond}, unobserved)
			if err != nil {
				t.Fatal(err)
			}
			if err := result.Broken(); err != nil {
				t.Error(err)
			}
			if c := result.Conflicts; c.Hidden == 0 || c.Replays < c.Hidden || c.Unhidden[CauseUnexplained] != 0 {
				t.Errorf("got %+v", c)
			}
		})
	}
}

func TestConflictsAddUp(t *testing.T) {
	stats := pgretry.Stats{
		Hidden: 7, Replays: 9, PartialReplays: 2, Diverged: 3, Exhausted: 1,
		Refusals: map[pgretry.RefusalReason]int64{pgretry.RefusedAdvisoryLock: 2},
	}
	c := conflictsOf(10, stats)
	want := Conflicts{Seen: 10, Hidden: 7, Replays: 9, Partial: 2, Unhidden: map[Cause]int64{
		CauseDiverged: 3, CauseExhausted: 1, "advisory_lock": 2, CauseUnexplained: 4,
	}}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got %+v, want %+v", c, want)
	}
	closures := conflictsOf(0, pgretry.Stats{RetriesBySQLState: map[string]int64{"40P01": 5, "40001": 6, "": 1}})
	if closures.Hidden != 11 || closures.Deadlocks() != 5 || closures.SerializationFailures() != 6 || len(closures.Unhidden) != 0 {
		t.Errorf("got %+v", closures)
	}
	off := conflictsOf(3, pgretry.Stats{Unprotected: map[pgretry.RefusalReason]int64{pgretry.RefusedMode: 20, pgretry.RefusedJournalFull: 5}})
	if off.Unhidden["mode"] != 3 || len(off.Unhidden) != 1 {
		t.Errorf("got %+v where replay is switched off", off)
	}
	total := c.Plus(closures).Plus(Conflicts{})
	if total.Seen != 10 || total.Hidden != 18 || total.Retries["40001"] != 6 || total.Unhidden[CauseDiverged] != 3 {
		t.Errorf("got %+v", total)
	}
	if share, ok := total.HiddenShare(); !ok || share != 18.0/28 {
		t.Errorf("the share hidden is %v, %t", share, ok)
	}
	if _, ok := (Conflicts{}).HiddenShare(); ok {
		t.Error("without conflicts there is a share of them")
	}
}

func TestOnlyPgretryPromisesAndRunInTxPromisesMost(t *testing.T) {
	violation := &workload.InvariantError{Workload: "scripted", What: "sum", Want: 1}
	failed := errors.New("deadlock detected")
	for _, test := range []struct {
		name   string
		result Result
		broken map[string]string // by side; "" is kept
	}{
		{"all well", Result{Commits: 1}, map[string]string{}},
		{"errors", Result{Commits: 1, Errors: 2, First: failed}, map[string]string{
			"RunInTx": "pgretry (RunInTx) lost 2 transactions of scripted, one of them with: deadlock detected",
		}},
		{"nothing committed", Result{}, map[string]string{
			"driver only": "pgretry (driver only) committed no transaction of scripted",
			"RunInTx":     "pgretry (RunInTx) committed no transaction of scripted",
		}},
		{"violation", Result{Commits: 1, Violation: violation}, map[string]string{
			"driver only": "pgretry (driver only) violated an invariant: scripted: sum is 0 instead of 1",
			"RunInTx":     "pgretry (RunInTx) violated an invariant: scripted: sum is 0 instead of 1",
		}},
	} {
		for _, side := range Sides() {
			t.Run(test.name+", "+side.Name, func(t *testing.T) {
				result := test.result
				result.Workload, result.Side = "scripted", side.Name
				got := ""
				if err := result.Broken(); err != nil {
					got = err.Error()
				}
				if want := test.broken[side.Name]; got != want {
					t.Errorf("got %q, want %q", got, want)
				}
			})
		}
	}
}

func TestAnErrorThatIsNoConflictIsSeenOnEverySide(t *testing.T) {
	for _, side := range Sides() {
		t.Run(side.Name, func(t *testing.T) {
			box := newSandbox(t)
			w := scripted{body: func(ctx context.Context, tx *sql.Tx) error {
				_, err := tx.ExecContext(ctx, `SELECT 1 / 0`)
				return err
			}}
			result, err := Run(t.Context(), box, side, w, Load{Workers: 1, Duration: 10 * time.Millisecond}, unobserved)
			if err != nil {
				t.Fatal(err)
			}
			if result.Errors == 0 || result.Codes["22012"] != result.Errors || result.Commits != 0 || result.Conflicts.Seen != 0 {
				t.Errorf("got %+v, want division_by_zero each time", result)
			}
		})
	}
}

func TestAFailureThatIsNotTheServersAnswerEndsTheRun(t *testing.T) {
	for _, side := range Sides() {
		t.Run(side.Name, func(t *testing.T) {
			box := newSandbox(t)
			broken := errors.New("broken")
			w := scripted{body: func(context.Context, *sql.Tx) error { return broken }}
			_, err := Run(t.Context(), box, side, w, Load{Workers: 2, Duration: time.Hour}, unobserved)
			if !errors.Is(err, broken) {
				t.Errorf("got %v, want %v", err, broken)
			}
		})
	}
}

func TestACancelledRunReturnsTheCause(t *testing.T) {
	for _, side := range Sides() {
		t.Run(side.Name, func(t *testing.T) {
			box := newSandbox(t)
			interrupted := errors.New("interrupted")
			ctx, cancel := context.WithCancelCause(t.Context())
			w := scripted{body: func(ctx context.Context, tx *sql.Tx) error {
				cancel(interrupted)
				_, err := tx.ExecContext(ctx, `SELECT pg_sleep(3600)`)
				return err
			}}
			_, err := Run(ctx, box, side, w, Load{Workers: 2, Duration: time.Hour}, unobserved)
			if !errors.Is(err, interrupted) {
				t.Errorf("got %v, want %v", err, interrupted)
			}
		})
	}
}

func TestAViolatedInvariantIsAResultAndAFailedCheckAnError(t *testing.T) {
	box := newSandbox(t)
	nothing := func(context.Context, *sql.Tx) error { return nil }
	violation := &workload.InvariantError{Workload: "scripted", What: "sum", Want: 1}
	result, err := Run(t.Context(), box, RunInTx, scripted{body: nothing, check: violation}, Load{Workers: 1, Duration: time.Millisecond}, unobserved)
	if err != nil || !errors.Is(result.Violation, violation) || result.Broken() == nil {
		t.Errorf("got %+v and %v, want the violation in the result", result, err)
	}
	unreadable := errors.New("unreadable")
	_, err = Run(t.Context(), box, RunInTx, scripted{body: nothing, check: unreadable}, Load{Workers: 1, Duration: time.Millisecond}, unobserved)
	if !errors.Is(err, unreadable) {
		t.Errorf("got %v, want %v", err, unreadable)
	}
}

func TestProgressGoesUpToTheResult(t *testing.T) {
	box := newSandbox(t)
	nothing := func(context.Context, *sql.Tx) error { return nil }
	var seen []Progress
	result, err := Run(t.Context(), box, Plain, scripted{body: nothing}, Load{Workers: 2, Duration: 3 * progressInterval}, func(p Progress) error {
		seen = append(seen, p)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	last := seen[len(seen)-1]
	if len(seen) < 2 || last.Done != 1 || last.Commits != result.Commits {
		t.Errorf("saw %+v, the result is %+v", seen, result)
	}
	if !slices.IsSortedFunc(seen, func(a, b Progress) int { return int(a.Commits - b.Commits) }) {
		t.Errorf("commits went down: %+v", seen)
	}
}

func TestProgressThatCannotBeShownEndsTheRun(t *testing.T) {
	box := newSandbox(t)
	broken := errors.New("broken pipe")
	nothing := func(context.Context, *sql.Tx) error { return nil }
	_, err := Run(t.Context(), box, Plain, scripted{body: nothing}, Load{Workers: 1, Duration: time.Hour}, func(Progress) error { return broken })
	if !errors.Is(err, broken) {
		t.Errorf("got %v, want %v", err, broken)
	}
}

func TestPercentilesAreNearestRank(t *testing.T) {
	hundred := make([]time.Duration, 100)
	for i := range hundred {
		hundred[i] = time.Duration(i + 1)
	}
	for _, test := range []struct {
		sorted []time.Duration
		p      int
		want   time.Duration
	}{
		{nil, 50, 0},
		{hundred[:1], 50, 1},
		{hundred[:1], 99, 1},
		{hundred[:2], 50, 1},
		{hundred[:3], 50, 2},
		{hundred, 50, 50},
		{hundred, 99, 99},
		{hundred[:10], 99, 10},
	} {
		t.Run(fmt.Sprintf("p%d of %d", test.p, len(test.sorted)), func(t *testing.T) {
			if got := percentile(test.sorted, test.p); got != test.want {
				t.Errorf("got %d, want %d", got, test.want)
			}
		})
	}
}
