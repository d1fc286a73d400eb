package report_test

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pgretry/pgretry/bench/internal/peer"
	"github.com/pgretry/pgretry/bench/internal/report"
	"github.com/pgretry/pgretry/bench/internal/result"
)

var update = flag.Bool("update", false, "write the expected files anew")

// sample is a run in which everything was measured, with every claim met that is not said to be
// broken below.
func sample() *result.Results {
	leased, _ := peer.Leased()
	timings := func(each ...result.Timing) []result.Timing { return each }
	timing := func(system string, allocations float64, micros ...float64) result.Timing {
		var means []float64
		for _, median := range micros {
			means = append(means, median+10)
		}
		return result.Timing{System: system, Micros: micros, Means: means, Allocations: allocations}
	}
	run := func(window time.Duration, commits, attempts int64, latency time.Duration) result.Run {
		return result.Run{
			Window: window, InWindow: commits, Committed: commits, Attempts: attempts,
			P50: latency, P99: 3 * latency, Max: 5 * latency, Longest: 5 * latency,
		}
	}
	cell := func(workload string, workers int, timeout time.Duration, contenders ...result.Contender) result.Cell {
		return result.Cell{
			Conditions: result.Conditions{Workload: workload, Workers: workers, DeadlockTimeout: timeout}, Contenders: contenders,
		}
	}
	contender := func(system string, rounds ...result.Run) result.Contender {
		return result.Contender{System: system, Rounds: rounds}
	}
	deadlocked := run(5*time.Second, 45, 120, 800*time.Millisecond)
	deadlocked.Failed, deadlocked.Failure = map[string]int64{"40P01": 30, "40001": 2}, "pq: deadlock detected"
	deadlocked.Unfinished = 3
	storm := result.Conditions{Workload: "transfer/write", Workers: 32, DeadlockTimeout: time.Second, Think: 100 * time.Millisecond}
	many := result.Conditions{Workload: "upserts", Workers: 32, DeadlockTimeout: 10 * time.Millisecond}
	return &result.Results{
		Environment: result.Environment{
			Date: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Command: "go run ./bench -short", GoVersion: "go1.26.0", Platform: "linux/amd64",
			CPUs: 2, Server: "15.18", Durable: "a throwaway server", Seed: 1, Elapsed: 95 * time.Second,
		},
		FastPath: []result.Comparison{
			{Name: "socket", Base: peer.LibPQ, Each: 10, Timings: timings(
				timing(peer.LibPQ, 88, 300, 310, 320), timing(peer.PGX, 62, 200, 215, 210), timing(peer.Pgretry, 70, 195, 200, 205),
				timing(peer.RunInTx, 74, 210, 201, 190), timing(peer.PgretrySDK, 140, 240, 245, 290),
			)},
			{Name: "tcp+1ms", Base: peer.LibPQ, Each: 10, Timings: timings(
				timing(peer.LibPQ, 88, 10_300, 10_400), timing(peer.PGX, 62, 6100, 6000), timing(peer.Pgretry, 70, 8000, 8100),
			)},
		},
		RelayCost: []result.Comparison{{Name: "one round trip", Base: "tcp", Each: 1, Timings: timings(timing("tcp", 0, 41), timing("relay", 0, 66))}},
		NoConflict: []result.Comparison{
			{Name: "crossing", Base: peer.LibPQ, Each: 10, Timings: timings(timing(peer.LibPQ, 0, 100, 100), timing(peer.Pgretry, 0, 101, 102), timing(peer.RunInTx, 0, 99, 110))},
			{Name: "share", Base: peer.LibPQ, Each: 10, Timings: timings(timing(peer.LibPQ, 0, 100, 100), timing(peer.Pgretry, 0, 90, 90), timing(peer.RunInTx, 0, 90, 90))},
		},
		Skewed: &result.Comparison{Name: "skewed", Base: peer.LibPQ, Each: 1, Timings: timings(timing(peer.LibPQ, 0, 9000), timing(peer.Pgretry, 0, 5000))},
		Scan:   &result.Comparison{Name: "scan", Base: peer.LibPQ, Each: 1, Timings: timings(timing(peer.LibPQ, 1e6, 72_000), timing(peer.Pgretry, 1e6, 75_000))},
		Contention: []result.Cell{
			cell("transfer/write", 8, time.Second,
				contender(peer.Loop, run(5*time.Second, 900, 1000, 5*time.Millisecond)),
				contender(peer.RunInTx, run(5*time.Second, 9000, 9100, 4*time.Millisecond)),
				contender(peer.OrderedLimit, run(5*time.Second, 12_000, 12_000, 3*time.Millisecond))),
			cell("transfer/write", 32, time.Second,
				contender(peer.LibPQ, deadlocked, deadlocked),
				contender(peer.Loop, run(5*time.Second, 50, 200, time.Second), run(5*time.Second, 40, 200, time.Second)),
				contender(peer.RunInTx, run(5*time.Second, 10_000, 11_000, 10*time.Millisecond), run(5*time.Second, 12_000, 13_000, 10*time.Millisecond)),
				contender(peer.OrderedLimit, run(5*time.Second, 25_000, 25_000, 5*time.Millisecond), run(5*time.Second, 24_000, 24_000, 5*time.Millisecond))),
			cell("skew", 8, 10*time.Millisecond,
				result.Contender{System: "crdb", Rounds: []result.Run{run(time.Second, 800, 7000, time.Millisecond)}, Violation: "skew: the number of entries in the rota is 790 instead of 800"},
				contender(peer.Loop, run(time.Second, 2400, 3300, time.Millisecond)),
				contender(peer.RunInTx, run(time.Second, 2600, 3200, 2*time.Millisecond)),
				contender(peer.OrderedLimit, run(time.Second, 3200, 3200, time.Millisecond))),
		},
		Patience: []result.Patience{{Conditions: storm, System: peer.RunInTx, Storm: run(time.Second, 100, 140, time.Millisecond), Run: run(time.Second, 45, 45, 300*time.Millisecond)}},
		Processes: []result.Processes{
			{Conditions: many, System: peer.RunInTx, Processes: 1, Rounds: []result.Run{run(time.Second, 500, 600, 5*time.Millisecond)}},
			{Conditions: many, System: peer.RunInTx, Processes: 4, Rounds: []result.Run{run(time.Second, 100, 500, 5*time.Millisecond)}},
			{Conditions: many, System: leased.ID, Processes: 4, Rounds: []result.Run{run(time.Second, 250, 500, 5*time.Millisecond)}},
		},
	}
}

func TestTablesAreAsExpected(t *testing.T) {
	var got bytes.Buffer
	plots := []report.Plot{{Section: "skew", Title: "skew by workers", File: "contention-skew.svg"}}
	if err := report.Markdown(&got, sample(), plots); err != nil {
		t.Fatal(err)
	}
	const golden = "testdata/results.md"
	if *update {
		if err := os.WriteFile(golden, got.Bytes(), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Errorf("the tables are not those of %s (-update writes them anew):\n%s", golden, got.Bytes())
	}
}

func TestSavedResultsMakeTheSameTables(t *testing.T) {
	tables := func(r *result.Results) string {
		var text strings.Builder
		if err := report.Markdown(&text, r, nil); err != nil {
			t.Fatal(err)
		}
		return text.String()
	}
	var saved bytes.Buffer
	if err := sample().Write(&saved); err != nil {
		t.Fatal(err)
	}
	again, err := result.Read(&saved)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := tables(again), tables(sample()); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestPlotsNameEverySystem(t *testing.T) {
	dir := t.TempDir()
	plots, err := report.Plots(dir, sample())
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][]string{
		"fastpath-socket.svg":           {"lib/pq", "pgx/stdlib", "pgretry, driver only", "pgretry.RunInTx", "pgretry + SDK", "0.648"},
		"fastpath-tcp-1ms.svg":          {"lib/pq", "pgx/stdlib", "pgretry, driver only"},
		"contention-transfer-write.svg": {"lib/pq", "hand-written loop", "pgretry.RunInTx", "limit: locks in order", "deadlock_timeout 1s"},
		"contention-skew.svg":           {"crdb.ExecuteTx", "hand-written loop", "deadlock_timeout 10ms"},
	}
	if len(plots) != len(want) {
		t.Errorf("got %v, want %d plots", plots, len(want))
	}
	for _, plot := range plots {
		content, err := os.ReadFile(filepath.Join(dir, plot.File))
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range want[plot.File] {
			if !bytes.Contains(content, []byte(text)) {
				t.Errorf("%s does not show %q", plot.File, text)
			}
		}
	}
}

func verdict(t *testing.T, r *result.Results, claim, system string) report.Verdict {
	t.Helper()
	for _, v := range report.Verdicts(r) {
		if v.System == system && strings.Contains(v.Claim, claim) {
			return v
		}
	}
	t.Fatalf("nothing is claimed of %q and %s", claim, system)
	return report.Verdict{}
}

func TestVerdictsFollowTheMeasurements(t *testing.T) {
	for _, test := range []struct {
		claim, system string
		worsen        func(*result.Results)
	}{
		{"Unix socket: time / lib/pq", peer.Pgretry, func(r *result.Results) { r.FastPath[0].Timings[2].Micros = []float64{210, 210, 230} }},
		{"Unix socket: time / pgx", peer.Pgretry, func(r *result.Results) { r.FastPath[0].Timings[1].Micros = []float64{190, 190, 190} }},
		{"SDK", peer.PgretrySDK, func(r *result.Results) { r.FastPath[0].Timings[4].Micros = []float64{260, 260, 260} }},
		{"skewed", peer.Pgretry, func(r *result.Results) { r.Skewed.Timings[1].Micros = []float64{9100} }},
		{"100,000 rows", peer.Pgretry, func(r *result.Results) { r.Scan.Timings[1].Micros = []float64{80_000} }},
		{"one worker", peer.Pgretry, func(r *result.Results) { r.NoConflict[1].Timings[1].Micros = []float64{104, 104} }},
		{"deadlock_timeout 1s): throughput / limit", peer.RunInTx, func(r *result.Results) {
			for i := range 2 {
				r.Contention[1].Contenders[2].Rounds[i].InWindow /= 2
			}
		}},
		{"throughput / best peer", peer.RunInTx, func(r *result.Results) {
			for i := range 2 {
				r.Contention[1].Contenders[1].Rounds[i].InWindow = 1000
			}
		}},
		{"deadlock_timeout 1s): transactions failed", peer.RunInTx, func(r *result.Results) {
			r.Contention[1].Contenders[2].Rounds[1].Failed = map[string]int64{"40P01": 1}
		}},
		{"deadlock_timeout 1s): transactions failed", peer.RunInTx, func(r *result.Results) { r.Contention[1].Contenders[2].Rounds[0].Unfinished = 1 }},
		{"attempts per commit", peer.RunInTx, func(r *result.Results) { r.Patience[0].Run.Attempts++ }},
		{"invariant", "all of pgretry", func(r *result.Results) { r.Contention[0].Contenders[1].Violation = "lost" }},
	} {
		r := sample()
		if v := verdict(t, r, test.claim, test.system); !v.Met {
			t.Errorf("not met before: %+v", v)
		}
		test.worsen(r)
		if v := verdict(t, r, test.claim, test.system); v.Met || v.Measured == "" {
			t.Errorf("met nevertheless: %+v", v)
		}
	}
}

func TestWhatWasNotMeasuredIsNotMet(t *testing.T) {
	for _, v := range report.Verdicts(&result.Results{}) {
		if v.Met || v.Measured != "" {
			t.Errorf("got %+v", v)
		}
	}
}

// Nothing is a bad divisor: who is compared with a peer that committed nothing is compared with one
// that committed a single transaction.
func TestAPeerWithoutCommitsIsNoInfinity(t *testing.T) {
	r := sample()
	for i := range 2 {
		r.Contention[1].Contenders[0].Rounds[i].InWindow = 0
		r.Contention[1].Contenders[1].Rounds[i].InWindow = 0
	}
	if v := verdict(t, r, "throughput / best peer", peer.RunInTx); !v.Met || !strings.HasPrefix(v.Measured, "11000 [10500, 11500] ×") {
		t.Errorf("got %+v", v)
	}
}

func TestOnlyOursAreOurs(t *testing.T) {
	for _, system := range peer.All() {
		if got := report.Ours(system.ID); got != system.Ours {
			t.Errorf("%s: got %t", system.ID, got)
		}
	}
	if leased, _ := peer.Leased(); !report.Ours(leased.ID) {
		t.Error("the leased one is not ours")
	}
}
