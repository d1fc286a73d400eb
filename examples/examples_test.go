package examples

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/debug"
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

// pasted copies the programs into a module that has nothing else and builds them
// there. It returns the folder of the binaries. The go.mod file stands for what
// "go mod tidy" would find.
func pasted(t *testing.T, programs []string) string {
	t.Helper()
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name string, content []byte) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range append([]string{"go.mod", "go.sum"}, programs...) {
		content, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if name == "go.mod" {
			content = bytes.Replace(content, []byte("module github.com/pgretry/pgretry/examples"), []byte("module pasted"), 1)
			content = bytes.Replace(content, []byte("=> ../"), fmt.Appendf(nil, "=> %q", root), 1)
		}
		write(name, content)
	}

	args := []string{"build", "-o", filepath.Join(dir, "bin") + string(filepath.Separator)}
	if info, ok := debug.ReadBuildInfo(); ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
		args = append(args, "-race")
	}
	build := exec.CommandContext(t.Context(), "go", append(args, "./...")...)
	build.Dir = dir
	build.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return filepath.Join(dir, "bin")
}

func TestEveryProgramRunsWhenPasted(t *testing.T) {
	want := map[string]func(t *testing.T, out string){
		"quickstart": matches(`^200 transfers committed, \d+ of them in spite of deadlocks\n$`),
		"closure": func(t *testing.T, out string) {
			matches(`transaction pgretry\.decision=retried .*pgretry\.sqlstate=40001 .*pgretry\.name="go home"`)(t, out)
			if strings.Count(out, "goes home: true\n") != 1 || strings.Count(out, "goes home: false\n") != 1 {
				t.Errorf("not exactly one doctor goes home:\n%s", out)
			}
		},
		"gorm": func(t *testing.T, out string) {
			matches(`^committed\ncommitted\nthe balance is 100\ndeadlocks nobody saw: [12], replays: [1-9]\d*\n$`)(t, out)
		},
		"sqlx": matches(`^account 1 has 70 left\n$`),
		"pgx": func(t *testing.T, out string) {
			matches(`(?s)committed, .*committed, .*a duplicate is a 23505 of account_pkey\n$`)(t, out)
			matches(`attempts: ([2-9]|\d\d)\n`)(t, out)
		},
		"testing":       matches(`^collected: 50\n$`),
		"tracing":       showsADeadlock,
		"withoutreplay": matches(`^the device is off and is told to switch on\n0 of 1 transactions could be replayed; not: map\[context:1\]\n$`),
	}
	programs, err := filepath.Glob("*/main.go")
	if err != nil {
		t.Fatal(err)
	}
	if len(programs) != len(want) {
		t.Errorf("the programs are %q, tested are %d", programs, len(want))
	}
	bin := pasted(t, programs)
	for name, check := range want {
		t.Run(name, func(t *testing.T) {
			dsn := pgtest.DSN(t)
			// Twice, because the second run finds what the first one has left.
			for _, args := range [][]string{{dsn}, nil} {
				if name == "quickstart" {
					args = []string{dsn}
				}
				program := exec.CommandContext(t.Context(), filepath.Join(bin, name), args...)
				// The race detector would make each wait a second before it ends.
				program.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0")
				if len(args) == 0 {
					program.Env = append(program.Env, "DATABASE_URL="+dsn)
				}
				out, err := program.CombinedOutput()
				if err != nil {
					t.Fatalf("%v\n%s", err, out)
				}
				check(t, string(out))
			}
		})
	}
}

func matches(pattern string) func(t *testing.T, out string) {
	return func(t *testing.T, out string) {
		t.Helper()
		if !regexp.MustCompile(pattern).MatchString(out) {
			t.Errorf("it printed\n%s\nwant %s", out, pattern)
		}
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
	programs, err := filepath.Glob("*/*.go")
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
