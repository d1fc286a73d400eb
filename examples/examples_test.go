package examples

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/pgretry/pgretry/internal/pgserver"
	"github.com/pgretry/pgretry/internal/pgserver/pgtest"
)

// Deadlocks are found after 10 ms here, so that tests need not wait for them.
func TestMain(m *testing.M) {
	os.Exit(pgtest.Main(m, pgserver.WithSettings(map[string]string{"deadlock_timeout": "10ms"})))
}

// want says of each program what it is to print.
var want = map[string]func(t *testing.T, out string){
	"quickstart": matches(`^200 transfers committed, \d+ of them in spite of deadlocks\n$`),
	"closure": func(t *testing.T, out string) {
		matches(`transaction pgretry\.decision=retried .*pgretry\.sqlstate=40001 .*pgretry\.name="go home"`)(t, out)
		if strings.Count(out, "goes home: true\n") != 1 || strings.Count(out, "goes home: false\n") != 1 {
			t.Errorf("not exactly one doctor goes home:\n%s", out)
		}
	},
	"gorm": matches(`^committed\ncommitted\nthe balance is 100\ndeadlocks nobody saw: [12], replays: [1-9]\d*\n$`),
	"ent":  matches(`^committed\ncommitted\nthe balances are \[100 100\]\ndeadlocks nobody saw: [12], replays: [1-9]\d*\n$`),
	"bun":  matches(`^committed\ncommitted\nthe balances are 100 and 100\ndeadlocks nobody saw: [12], replays: [1-9]\d*\n$`),
	"sqlx": showsTheSecondWhatTheFirstLeft,
	"sqlc": showsTheSecondWhatTheFirstLeft,
	"pgx": func(t *testing.T, out string) {
		matches(`(?s)committed, .*committed, .*a duplicate is a 23505 of account_pkey\n$`)(t, out)
		matches(`attempts: ([2-9]|\d\d)\n`)(t, out)
	},
	"ownname": matches(`^a wrong DSN: pgretry: DSN parameter pgretry_max_attempts is "many", allowed is a whole number of 1 or more\n` +
		`given up after 3 attempts: pq: could not obtain lock on row in relation "account" \(55P03\)\ncharged\n$`),
	"closuretest":   matches(`^collected: 50\n$`),
	"tracing":       showsADeadlock,
	"metrics":       showsMetrics,
	"slog":          logsADeadlock,
	"withoutreplay": matches(`^the device is off and is told to switch on\n0 of 1 transactions could be replayed; not: map\[context:1\]\n$`),
}

// All programs share a database, as those of somebody who tries them would.
func TestEveryProgramRunsWhenPasted(t *testing.T) {
	if got, tested := programs(t), slices.Sorted(maps.Keys(want)); !slices.Equal(got, tested) {
		t.Errorf("the programs are %q, tested are %q", got, tested)
	}
	dsn := pgtest.DSN(t)
	for _, name := range programs(t) {
		t.Run(name, func(t *testing.T) {
			binary := build(t, paste(t, name))
			// Twice, because the second run finds what the first one has left.
			for _, args := range [][]string{{dsn}, nil} {
				if name == "quickstart" {
					args = []string{dsn}
				}
				program := command(t, binary, args...)
				if len(args) == 0 {
					program.Env = append(program.Env, "DATABASE_URL="+dsn)
				}
				out, err := program.CombinedOutput()
				if err != nil {
					t.Fatalf("%v\n%s", err, out)
				}
				want[name](t, string(out))
			}
			if name == "metrics" {
				goesOnServing(t, binary, dsn)
			}
		})
	}
}

// command is a program to be run.
func command(t *testing.T, binary string, args ...string) *exec.Cmd {
	t.Helper()
	program := exec.CommandContext(t.Context(), binary, args...)
	// The race detector would make each wait a second before it ends.
	program.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0")
	return program
}

// goesOnServing wants that what the program prints can be fetched from it afterwards.
func goesOnServing(t *testing.T, binary, dsn string) {
	t.Helper()
	program := command(t, binary, "-listen", "127.0.0.1:0", dsn)
	program.Stderr = t.Output()
	output, err := program.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := program.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := program.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = program.Wait() // it was killed
	}()
	lines := bufio.NewScanner(output)
	var printed []string
	for lines.Scan() {
		url, last := strings.CutPrefix(lines.Text(), "serving ")
		if !last {
			printed = append(printed, lines.Text())
			continue
		}
		response, err := http.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		page, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		if err := response.Body.Close(); err != nil {
			t.Error(err)
		}
		for _, line := range printed {
			if !strings.Contains(string(page), line+"\n") {
				t.Errorf("the page has no line %q", line)
			}
		}
		return
	}
	t.Errorf("it ended, having printed %q", printed)
}

func matches(pattern string) func(t *testing.T, out string) {
	return func(t *testing.T, out string) {
		t.Helper()
		if !regexp.MustCompile(pattern).MatchString(out) {
			t.Errorf("it printed\n%s\nwant %s", out, pattern)
		}
	}
}

// showsTheSecondWhatTheFirstLeft wants that one of two transfers of 30 finds 100 in its
// account and the other one 130.
func showsTheSecondWhatTheFirstLeft(t *testing.T, out string) {
	t.Helper()
	lines := slices.Sorted(strings.Lines(out))
	matches(`^account 1 has (70 left\naccount 2 has 100|100 left\naccount 2 has 70) left\n$`)(t, strings.Join(lines, ""))
}

// showsMetrics wants the names and units that Prometheus knows.
func showsMetrics(t *testing.T, out string) {
	t.Helper()
	for line := range strings.Lines(out) {
		matches(`^pgretry_[a-z_]+\{.*db_system_name="postgresql".*\} [0-9.e-]+\n$`)(t, line)
	}
	for _, line := range []string{
		`pgretry_retries_total\{db_response_status_code="40P01",.*pgretry_class="retryable",pgretry_mode="closure"\} [1-9]\d*`,
		`pgretry_backoff_duration_seconds_count\{.*\} [1-9]\d*`,
		`pgretry_transaction_attempts_sum\{.*pgretry_outcome="committed"\} ([3-9]|\d\d+)`,
		`pgretry_transaction_attempts_count\{.*pgretry_outcome="committed"\} 2`,
		`pgretry_transaction_duration_seconds_count\{.*pgretry_outcome="committed"\} 2`,
	} {
		matches(`(?m)^`+line+`$`)(t, out)
	}
}

// logsADeadlock wants that of two transactions at least one is run again, and that both
// are committed.
func logsADeadlock(t *testing.T, out string) {
	t.Helper()
	type entry struct {
		Level, Msg string
		From, To   int
		Pgretry    struct{ Decision, Kind, SQLState, Name, Deadlock string }
	}
	again, committed := 0, make(map[[2]int]int)
	for line := range strings.Lines(out) {
		var e entry
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%v in %s", err, line)
		}
		switch p := e.Pgretry; {
		case e.Level != "INFO":
			t.Errorf("it logged %s", line)
		case e.Msg == "committed":
			committed[[2]int{e.From, e.To}]++
		case e.Msg == "a transaction is run again" && p.Decision == "retried" && p.Kind == "replay" &&
			p.SQLState == "40P01" && p.Name == "transfer" && strings.Contains(p.Deadlock, "blocked by"):
			again++
		default:
			t.Errorf("it logged %s", line)
		}
	}
	if again == 0 || !maps.Equal(committed, map[[2]int]int{{1, 2}: 1, {2, 1}: 1}) {
		t.Errorf("%d deadlocks, committed %v in\n%s", again, committed, out)
	}
}

// showsADeadlock wants the spans of two transactions, of which at least one needed
// a further attempt.
func showsADeadlock(t *testing.T, out string) {
	t.Helper()
	type span struct {
		Name        string
		SpanContext struct{ SpanID string }
		Parent      struct{ SpanID string }
		Attributes  []struct {
			Key   string
			Value struct{ Value any }
		}
		Events []struct{ Name string }
	}
	var attempts, committed, deadlocks int
	transactions := make(map[string]bool)
	parents := make(map[string]int)
	lines := bufio.NewScanner(strings.NewReader(out))
	for lines.Scan() {
		var s span
		if err := json.Unmarshal(lines.Bytes(), &s); err != nil {
			t.Fatalf("%v in %s", err, lines.Bytes())
		}
		switch s.Name {
		case "pgretry.transaction":
			transactions[s.SpanContext.SpanID] = true
		case "pgretry.attempt":
			attempts++
			parents[s.Parent.SpanID]++
			for _, e := range s.Events {
				if e.Name == "pgretry.deadlock" {
					deadlocks++
				}
			}
			for _, a := range s.Attributes {
				if a.Key == "pgretry.outcome" && a.Value.Value == "committed" {
					committed++
				}
			}
		default:
			t.Errorf("unexpected span %s", s.Name)
		}
	}
	if err := lines.Err(); err != nil {
		t.Error(err)
	}
	if len(transactions) != 2 || committed != 2 || deadlocks == 0 || attempts != committed+deadlocks {
		t.Errorf("%d transactions, %d attempts, %d of them committed, %d deadlocks in\n%s", len(transactions), attempts, committed, deadlocks, out)
	}
	for parent := range parents {
		if !transactions[parent] {
			t.Errorf("an attempt is not below a transaction in\n%s", out)
		}
	}
}

func TestTheQuickStartIsTheREADMEs(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile("quickstart/main.go")
	if err != nil {
		t.Fatal(err)
	}
	_, code, _ := strings.Cut(string(program), "package main")
	if !strings.Contains(string(readme), "```go\npackage main"+code+"```") {
		t.Error("the README's program is another")
	}
}

func TestProgramsAreShortEnoughToRead(t *testing.T) {
	programs, err := filepath.Glob("*/main.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, program := range programs {
		content, err := os.ReadFile(program)
		if err != nil {
			t.Fatal(err)
		}
		if lines := bytes.Count(content, []byte("\n")); lines >= 80 {
			t.Errorf("%s has %d lines, want less than 80", program, lines)
		}
	}
}
