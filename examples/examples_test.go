package examples

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/pgretry/pgretry/internal/pgserver"
	"github.com/pgretry/pgretry/internal/pgserver/pgtest"
)

func TestMain(m *testing.M) {
	os.Exit(pgtest.Main(m, pgserver.WithSettings(map[string]string{"deadlock_timeout": "10ms"})))
}

func TestEveryExampleRuns(t *testing.T) {
	want := map[string]string{
		"quickstart": `^200 transfers committed, \d+ deadlocks survived\n$`,
		"gorm":       `100 transfers committed, the balance is 100\n$`,
		"pgx":        `(?s)decision=retried .*decision=retried .*committed after 3 attempts\n$`,
		"tracing":    `(?s)"Value": "40001".*"Name": "pgretry.attempt".*"Name": "pgretry.transaction"`,
	}
	programs, err := filepath.Glob("*/main.go")
	if err != nil {
		t.Fatal(err)
	}
	if len(programs) != len(want) {
		t.Errorf("there are %d programs, %d are tested", len(programs), len(want))
	}
	for _, program := range programs {
		name := filepath.Dir(program)
		t.Run(name, func(t *testing.T) {
			out, err := exec.CommandContext(t.Context(), "go", "run", "./"+name, pgtest.DSN(t)).CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if !regexp.MustCompile(want[name]).Match(out) {
				t.Errorf("it printed\n%s\nwant %s", out, want[name])
			}
		})
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
