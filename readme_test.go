package pgretry

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/pgretry/pgretry/internal/pgserver/pgtest"
)

// quickStart is the program in the README.
func quickStart(t *testing.T) string {
	t.Helper()
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, block := range regexp.MustCompile("(?s)```go\n(.*?)```").FindAllSubmatch(readme, -1) {
		if strings.HasPrefix(string(block[1]), "package main") {
			return string(block[1])
		}
	}
	t.Fatal("the README has no program")
	return ""
}

func TestTheQuickStartOfTheREADMEWorksWhenPasted(t *testing.T) {
	root, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "main.go"), []byte(quickStart(t)), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(name string, args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), name, args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s %v: %v\n%s", name, args, err, out)
		}
		return string(out)
	}
	run("go", "mod", "init", "quickstart")
	run("go", "mod", "edit", "-replace", "github.com/pgretry/pgretry="+root)
	run("go", "mod", "tidy")
	if out := run("go", "run", ".", pgtest.DSN(t)); !regexp.MustCompile(`^200 transfers committed, \d+ of them in spite of deadlocks\n$`).MatchString(out) {
		t.Errorf("it printed %q", out)
	}
}

// The README's tables must have every option, parameter, metric, reason and
// sentinel.
func TestTheREADMENamesEverythingThereIs(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	names := []string{DriverName, spanTransaction, spanAttempt, eventDeadlock, "Classify", "StatsOf", "ContextWithName", "ContextWithIdempotence"}
	for _, p := range dsnParameters {
		names = append(names, p.name)
	}
	for o := range outcomes {
		names = append(names, "`"+o.String()+"`")
	}
	names = append(names, optInStates...)
	for _, file := range []string{"options.go", "errors.go", "losterror.go", "telemetry.go"} {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, pattern := range []string{`(?m)^func (With\w+)`, `(?m)^\t(Err\w+) +=`, `(?m)^type ([A-Z]\w+Error) struct`, `(?:Counter|Histogram)\("([a-z.]+)"`} {
			for _, found := range regexp.MustCompile(pattern).FindAllSubmatch(source, -1) {
				names = append(names, string(found[1]))
			}
		}
	}
	if len(names) < 50 {
		t.Errorf("found no more than %d names to look for", len(names))
	}
	for _, name := range names {
		if !strings.Contains(string(readme), name) {
			t.Errorf("the README does not name %s", name)
		}
	}
}
