package runner

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/lib/pq"
	"go.uber.org/goleak"

	"github.com/pgretry/pgretry/cmd/pgretry/internal/sandbox"
	"github.com/pgretry/pgretry/cmd/pgretry/internal/workload"
	"github.com/pgretry/pgretry/internal/pgserver/pgtest"
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
	body  workload.Body
	check error
	seen  *[]int64
}

func (scripted) Name() string                         { return "scripted" }
func (scripted) About() string                        { return "runs a function" }
func (scripted) TxOptions() *sql.TxOptions            { return nil }
func (scripted) Setup(context.Context, *sql.DB) error { return nil }
func (s scripted) Transaction(int64) workload.Body    { return s.body }
func (s scripted) Check(_ context.Context, _ *sql.DB, committed []int64) error {
	if s.seen != nil {
		*s.seen = committed
	}
	return s.check
}

func unobserved(Progress) error { return nil }

var sides = []Side{Plain, Retrying}

func TestTransactionsUnderWayAreFinished(t *testing.T) {
	for _, side := range sides {
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

func TestOnlyThePlainSideSeesErrorsOfTheServer(t *testing.T) {
	for _, side := range sides {
		t.Run(side.Name, func(t *testing.T) {
			box := newSandbox(t)
			first := true
			w := scripted{body: func(ctx context.Context, tx *sql.Tx) error {
				if !first {
					return nil
				}
				first = false
				_, err := tx.ExecContext(ctx, `DO $$ BEGIN RAISE 'deadlock' USING ERRCODE = '40P01'; END $$`)
				return err
			}}
			result, err := Run(t.Context(), box, side, w, Load{Workers: 1, Duration: 50 * time.Millisecond}, unobserved)
			if err != nil {
				t.Fatal(err)
			}
			if side.Name == Plain.Name {
				if result.Errors != 1 || result.Codes["40P01"] != 1 || !result.Lost() || result.Deadlocks != 0 {
					t.Errorf("got %+v, want one error", result)
				}
				if server, ok := errors.AsType[*pq.Error](result.First); !ok || server.Message != "deadlock" {
					t.Errorf("the first error is %v", result.First)
				}
				return
			}
			if result.Errors != 0 || len(result.Codes) != 0 || result.Lost() || result.Deadlocks != 1 || result.SerializationFailures != 0 {
				t.Errorf("got %+v, want one deadlock survived", result)
			}
			if result.Attempts != result.Commits+1 {
				t.Errorf("%d attempts for %d commits, want one more", result.Attempts, result.Commits)
			}
		})
	}
}

func TestAnErrorThatIsNoConflictIsSeenOnBothSides(t *testing.T) {
	for _, side := range sides {
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
			if result.Errors == 0 || result.Codes["22012"] != result.Errors || result.Commits != 0 || !result.Lost() {
				t.Errorf("got %+v, want division_by_zero each time", result)
			}
		})
	}
}

func TestAFailureThatIsNotTheServersAnswerEndsTheRun(t *testing.T) {
	for _, side := range sides {
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
	for _, side := range sides {
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
	result, err := Run(t.Context(), box, Retrying, scripted{body: nothing, check: violation}, Load{Workers: 1, Duration: time.Millisecond}, unobserved)
	if err != nil || !errors.Is(result.Violation, violation) || !result.Lost() {
		t.Errorf("got %+v and %v, want the violation in the result", result, err)
	}
	unreadable := errors.New("unreadable")
	_, err = Run(t.Context(), box, Retrying, scripted{body: nothing, check: unreadable}, Load{Workers: 1, Duration: time.Millisecond}, unobserved)
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
