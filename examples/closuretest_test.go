package examples

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/pgretry/pgretry/internal/pgserver/pgtest"
)

// The test beside the program fails when a line is taken out of the closure.
func TestTheClosuresTestTellsGoodFromBad(t *testing.T) {
	module := paste(t, "closuretest")
	run := func() (string, error) {
		test := exec.CommandContext(t.Context(), "go", "test", ".")
		test.Dir = module
		test.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=", "DATABASE_URL="+pgtest.DSN(t))
		out, err := test.CombinedOutput()
		return string(out), err
	}
	if out, err := run(); err != nil {
		t.Fatalf("as it is: %v\n%s", err, out)
	}

	program := filepath.Join(module, "main.go")
	good, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	bad := bytes.Replace(good, []byte("*collected = 0 //"), []byte("//"), 1)
	if bytes.Equal(good, bad) {
		t.Fatal("there is nothing to take out of the program")
	}
	if err := os.WriteFile(program, bad, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := run()
	if err == nil {
		t.Errorf("a closure that adds to what an attempt before has left passes:\n%s", out)
	}
	for _, want := range []string{
		`--- FAIL: TestCollectCanBeRunAgain`,
		`main_test\.go:\d+: pgretrytest: aborted at COMMIT, with 40\w+:`,
		`\$1=100\s+undisturbed\s+.* \$1=50\n`,
		`- id="1" balance="50"\n\s+\+ id="1" balance="100"\n`,
		`result 1 \(int\) is 100, undisturbed 50`,
	} {
		if !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("without the reset the test says\n%s\nwant %s", out, want)
		}
	}
}
