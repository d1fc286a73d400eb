package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pgretry/pgretry/bench/internal/contention"
	"github.com/pgretry/pgretry/bench/internal/peer"
	"github.com/pgretry/pgretry/bench/internal/processes"
	"github.com/pgretry/pgretry/bench/internal/result"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == processes.Argument {
		os.Exit(processes.Main())
	}
	goleak.VerifyTestMain(m)
}

func TestAShortRunGoesThroughAndCanBeRenderedAgain(t *testing.T) {
	dir := t.TempDir()
	var out, log bytes.Buffer
	code := run(t.Context(), []string{
		"-short", "-only", "fastpath,contention,processes", "-workloads", "upserts", "-workers", "2", "-deadlock-timeouts", "10ms", "-think", "0",
		"-rounds", "1", "-seconds", "0.05", "-out", dir,
	}, &out, &log)
	if code != 0 {
		t.Fatalf("exit code %d\n%s", code, log.String())
	}
	for _, section := range []string{
		"## Claims", "### Over tcp+1ms", "## Without conflicts", "### upserts", "## Several processes",
	} {
		if !strings.Contains(out.String(), "\n"+section+"\n") {
			t.Errorf("%q is missing", section)
		}
	}
	for _, system := range peer.All() {
		if system.ID != peer.OneWorker && !strings.Contains(out.String(), "| "+system.Label+" |") {
			t.Errorf("%s is missing", system.Label)
		}
	}
	saved := read(t, filepath.Join(dir, "results.md"))
	if saved != out.String() {
		t.Error("what was printed is not what was saved")
	}
	for _, plot := range []string{"contention-upserts.svg", "fastpath-tcp.svg", "fastpath-tcp-1ms.svg"} {
		if !strings.Contains(saved, plot) || !strings.Contains(read(t, filepath.Join(dir, plot)), "</svg>") {
			t.Errorf("%s is missing", plot)
		}
	}

	again := t.TempDir()
	if code := run(t.Context(), []string{"-render", filepath.Join(dir, "results.json"), "-out", again}, io.Discard, &log); code != 0 {
		t.Fatalf("exit code %d\n%s", code, log.String())
	}
	for _, file := range []string{"results.md", "results.json", "contention-upserts.svg"} {
		if read(t, filepath.Join(dir, file)) != read(t, filepath.Join(again, file)) {
			t.Errorf("%s has changed", file)
		}
	}

	later := []string{"-short", "-only", "scan", "-systems", "libpq,pgretry", "-rounds", "1", "-again", "-out", again}
	if code := run(t.Context(), later, io.Discard, &log); code != 0 {
		t.Fatalf("exit code %d\n%s", code, log.String())
	}
	renewed := read(t, filepath.Join(again, "results.md"))
	for text, want := range map[string]bool{
		"Measured again: `go run ./bench " + strings.Join(later, " "): true,
		"\n### Over tcp+1ms\n": true, "\n## Several processes\n": true, "\n### upserts\n": true, "\n## A large result\n": true,
	} {
		if strings.Contains(renewed, text) != want {
			t.Errorf("%q is there: %t", text, !want)
		}
	}
	interrupted, cancel := context.WithCancel(t.Context())
	cancel()
	if code := run(interrupted, later, io.Discard, io.Discard); code != 1 {
		t.Errorf("exit code %d", code)
	}
	if read(t, filepath.Join(again, "results.md")) != renewed {
		t.Error("what was not measured to its end has changed the results")
	}
}

func TestQueriesAreMeasured(t *testing.T) {
	var out, log bytes.Buffer
	if code := run(t.Context(), []string{"-short", "-only", "scan", "-systems", "libpq,pgretry", "-rounds", "1"}, &out, &log); code != 0 {
		t.Fatalf("exit code %d\n%s", code, log.String())
	}
	for _, text := range []string{"## A skewed query", "## A large result", "| " + peer.Label(peer.Pgretry) + " |"} {
		if !strings.Contains(out.String(), text) {
			t.Errorf("%q is missing", text)
		}
	}
	if strings.Contains(out.String(), "| pgx/stdlib |") {
		t.Error("a system was measured that was not chosen")
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// rendered writes results into a file, in which a system has broken an invariant.
func rendered(t *testing.T, broken string) (code int, out string) {
	t.Helper()
	results := result.Results{Contention: []result.Cell{{
		Conditions: result.Conditions{Workload: "share", Workers: 2, DeadlockTimeout: time.Second},
		Contenders: []result.Contender{{System: broken, Violation: "share: the value of row 1 is 1 instead of 2"}},
	}}}
	file := filepath.Join(t.TempDir(), "results.json")
	var saved, tables bytes.Buffer
	if err := results.Write(&saved); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, saved.Bytes(), 0o666); err != nil {
		t.Fatal(err)
	}
	code = run(t.Context(), []string{"-render", file}, &tables, io.Discard)
	return code, tables.String()
}

func TestABrokenInvariantOfOursIsAFailureAndOneOfOthersIsNot(t *testing.T) {
	for system, want := range map[string]int{peer.RunInTx: 1, peer.Pgretry: 1, peer.PgretryPGX: 1, "crdb": 0, peer.LibPQ: 0} {
		code, out := rendered(t, system)
		if code != want {
			t.Errorf("%s: exit code %d, want %d", system, code, want)
		}
		if line := "BROKEN: " + peer.Label(system) + ", share, 2 workers, deadlock_timeout 1s: share: the value of row 1"; !strings.Contains(out, line) {
			t.Errorf("%s: %q is missing in\n%s", system, line, out)
		}
	}
}

func TestAnInterruptionShowsWhatThereIs(t *testing.T) {
	ctx, interrupt := context.WithCancel(t.Context())
	var out bytes.Buffer
	log := writer(func(text string) {
		if strings.Contains(text, "contention 2/2") {
			interrupt()
		}
	})
	code := run(ctx, []string{"-only", "contention", "-workloads", "share", "-workers", "1,2", "-deadlock-timeouts", "10ms", "-think", "0", "-rounds", "1", "-seconds", "0.02"}, &out, log)
	if code != 1 || !strings.Contains(out.String(), "### share") {
		t.Errorf("exit code %d, want 1, and the first cell in\n%s", code, out.String())
	}
}

type writer func(string)

func (w writer) Write(text []byte) (int, error) {
	w(string(text))
	return len(text), nil
}

func TestWrongArgumentsAreExplained(t *testing.T) {
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"-only", "fast"}, `no part is called "fast": choose from fastpath, contention, scan, processes`},
		{[]string{"-workloads", "transfers"}, `no workload is called "transfers"`},
		{[]string{"-systems", "mysql"}, `no system is called "mysql": choose from libpq, `},
		{[]string{"-workers", "2,0"}, `-workers: "0": allowed are 1 to 150`},
		{[]string{"-deadlock-timeouts", "10"}, `-deadlock-timeouts: "10": `},
		{[]string{"-think", ""}, `-think: the list is empty`},
		{[]string{"-rounds", "-1"}, `cannot be negative`},
		{[]string{"short"}, `unexpected argument "short"`},
		{[]string{"-again"}, `-again needs -out`},
		{[]string{"-again", "-out", "x", "-workers", "2"}, `and whole parts`},
	} {
		var log bytes.Buffer
		if code := run(t.Context(), test.args, io.Discard, &log); code != 2 || !strings.Contains(log.String(), test.want) {
			t.Errorf("%v: exit code %d, %q, want %q", test.args, code, log.String(), test.want)
		}
	}
}

func TestThePasswordIsNotShown(t *testing.T) {
	for _, args := range [][]string{{"-dsn", "postgres://me:secret@h/d", "-short"}, {"--dsn=postgres://me:secret@h/d"}} {
		s := &session{settings: &settings{args: args}}
		if shown := strings.Join(s.shown(), " "); strings.Contains(shown, "secret") || !strings.Contains(shown, "dsn") {
			t.Errorf("%v: got %s", args, shown)
		}
		if !strings.Contains(strings.Join(args, " "), "secret") {
			t.Error("the arguments themselves were changed")
		}
	}
}

func TestAFullRunCoversEveryCellAndEveryClaim(t *testing.T) {
	s, err := parse(nil, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	const grid = 11 * 3 * 2 * 2
	plans := s.cells()
	if extra := 2; len(plans) != grid+extra { // upserts with 16 workers
		t.Errorf("%d cells, want %d", len(plans), grid+extra)
	}
	seen := map[result.Conditions]bool{}
	var sum time.Duration
	for _, plan := range plans {
		if seen[plan.Conditions] {
			t.Errorf("%s comes twice", plan.Conditions)
		}
		seen[plan.Conditions] = true
		sum += plan.Estimate()
	}
	if most := 45 * time.Minute; sum > most {
		t.Errorf("contention takes %s, want %s at most", sum, most)
	}
	for _, claim := range claimed() {
		if !seen[claim] {
			t.Errorf("%s is missing", claim)
		}
		plan := plans[slices.IndexFunc(plans, func(p contention.Plan) bool { return p.Conditions == claim })]
		if plan.Rounds < 3 || plan.OurPatience < 30*time.Second {
			t.Errorf("%s: got %d rounds and a patience of %s", claim, plan.Rounds, plan.OurPatience)
		}
	}
	t.Logf("%d cells, about %s", len(plans), sum)
}

func TestAShortRunIsShort(t *testing.T) {
	s, err := parse([]string{"-short"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	var sum time.Duration
	workloads := map[string]bool{}
	for _, plan := range s.cells() {
		sum += plan.Estimate()
		workloads[plan.Workload] = true
	}
	if most := time.Minute; sum > most || len(workloads) != 11 {
		t.Errorf("contention takes %s and has %d workloads, want %s at most and 11", sum, len(workloads), most)
	}
	t.Logf("about %s", sum)
}
