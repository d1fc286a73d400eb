package fastpath_test

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pgretry/pgretry/bench/internal/fastpath"
	"github.com/pgretry/pgretry/bench/internal/peer"
	"github.com/pgretry/pgretry/bench/internal/result"
	"github.com/pgretry/pgretry/bench/internal/target"
	"github.com/pgretry/pgretry/internal/pgserver/pgtest"
	"github.com/pgretry/pgretry/internal/workload"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

func start(t *testing.T) *target.Server {
	t.Helper()
	server := target.Of(pgtest.Server(t))
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
	return server
}

var effort = fastpath.Effort{Rounds: 3, Each: 2}

// check asserts that every system was measured in every round.
func check(t *testing.T, seen result.Comparison, err error, systems []peer.System) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	if len(seen.Timings) != len(systems) {
		t.Fatalf("got %d timings for %d systems", len(seen.Timings), len(systems))
	}
	for i, timing := range seen.Timings {
		if timing.System != systems[i].ID || len(timing.Micros) != effort.Rounds || slices.Min(timing.Micros) <= 0 || timing.Allocations <= 0 {
			t.Errorf("got %+v", timing)
		}
	}
}

func TestTheTransactionIsTimedOverEveryTransport(t *testing.T) {
	server := start(t)
	systems := peer.Named(peer.LibPQ, peer.PGX, peer.RunInTxSDK)
	for _, transport := range fastpath.Transports(server) {
		seen, err := fastpath.MeasureTransaction(t.Context(), server, transport, systems, effort)
		check(t, seen, err, systems)
		if len(seen.Violations) > 0 {
			t.Errorf("got %v", seen.Violations)
		}
		for _, timing := range seen.Timings {
			if least := 4 * transport.Delay; time.Duration(slices.Min(timing.Micros))*time.Microsecond < least {
				t.Errorf("%s over %s: got %v, want four round trips, %s, or more", timing.System, transport.Name, timing.Micros, least)
			}
		}
	}
}

// halfHearted says of every other transaction that it was committed, when it was rolled back.
func halfHearted() peer.System {
	system := peer.Named(peer.Pgretry)[0]
	var n atomic.Int64
	honest := system.Transact
	system.Transact = func(ctx context.Context, db *sql.DB, work peer.Work) error {
		if n.Add(1)%2 == 0 {
			return honest(ctx, db, work)
		}
		tx, err := db.BeginTx(ctx, work.Options)
		if err != nil {
			return err
		}
		return errors.Join(work.Body(ctx, tx), tx.Rollback())
	}
	return system
}

func TestASystemThatIsFastBecauseItDoesNothingIsFoundOut(t *testing.T) {
	server := start(t)
	systems := append(peer.Named(peer.LibPQ), halfHearted())
	seen, err := fastpath.MeasureTransaction(t.Context(), server, fastpath.Transport{Name: "tcp"}, systems, effort)
	check(t, seen, err, systems)
	if len(seen.Violations) != 1 || !strings.Contains(seen.Violations[peer.Pgretry], "the database holds 4 updates") {
		t.Errorf("got %v", seen.Violations)
	}
	w, err := workload.Select(1, []string{"crossing"})
	if err != nil {
		t.Fatal(err)
	}
	seen, err = fastpath.MeasureNoConflict(t.Context(), server, w[0], systems, effort)
	check(t, seen, err, systems)
	if len(seen.Violations) != 1 || !strings.Contains(seen.Violations[peer.Pgretry], "the count of hello is 4 instead of 8") {
		t.Errorf("got %v", seen.Violations)
	}
}

func TestTheRelayIsMeasuredByItself(t *testing.T) {
	server := start(t)
	seen, err := fastpath.MeasureRelay(t.Context(), server, time.Millisecond, effort)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, timing := range seen.Timings {
		names = append(names, timing.System)
	}
	if want := []string{"tcp", "relay", "relay, delayed"}; !slices.Equal(names, want) {
		t.Fatalf("got %v, want %v", names, want)
	}
	if slices.Min(seen.Timings[2].Micros) < 1000 {
		t.Errorf("got %v µs for a round trip that is delayed by a millisecond", seen.Timings[2].Micros)
	}
}
