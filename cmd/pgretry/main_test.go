package main

import (
	"bufio"
	"bytes"
	"database/sql"
	"encoding/json"
	"errors"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/pgretry/pgretry/internal/pgserver/pgtest"
)

// commandVariable makes the test binary be the command itself.
const commandVariable = "PGRETRY_TEST_BE_THE_COMMAND"

func TestMain(m *testing.M) {
	if os.Getenv(commandVariable) != "" {
		main()
	}
	os.Exit(pgtest.Main(m))
}

func TestUsage(t *testing.T) {
	const see = " (see \"pgretry demo --help\")\n"
	for _, test := range []struct {
		name   string
		args   []string
		code   int
		stdout string // a part of it
		stderr string // all of it
	}{
		{"nothing asked", nil, 0, "  demo              Run transactions that conflict", ""},
		{"help", []string{"demo", "--help"}, 0, "transfer/ser    money between hot accounts: read, then write, SERIALIZABLE", ""},
		{"version", []string{"version"}, 0, "pgretry ", ""},
		{"unknown command", []string{"demonstrate"}, 2, "", `pgretry: there is no command "demonstrate": choose demo or version` + see},
		{"argument", []string{"demo", "crossing"}, 2, "", `pgretry: pgretry demo takes flags only, not the argument "crossing"` + see},
		{"unknown flag", []string{"demo", "--worker", "8"}, 2, "", `pgretry: unknown flag: --worker` + see},
		{
			"workload",
			[]string{"demo", "--workload", "crossing,skews"},
			2, "",
			`pgretry: invalid argument "crossing,skews" for "--workload" flag: no workload is called "skews": choose from crossing, upserts, cache, counter, share, skew, transfer, ids` + see,
		},
		{
			"empty workload",
			[]string{"demo", "--workload", "crossing,"},
			2, "",
			`pgretry: invalid argument "crossing," for "--workload" flag: want names separated by commas, from crossing, upserts, cache, counter, share, skew, transfer, ids` + see,
		},
		{"no number of workers", []string{"demo", "--workers", "many"}, 2, "", `pgretry: invalid argument "many" for "--workers" flag: want a whole number from 2 to 64` + see},
		{"too few workers", []string{"demo", "--workers", "1"}, 2, "", `pgretry: invalid argument "1" for "--workers" flag: want a whole number from 2 to 64` + see},
		{"too many workers", []string{"demo", "--workers=65"}, 2, "", `pgretry: invalid argument "65" for "--workers" flag: want a whole number from 2 to 64` + see},
		{
			"duration without a unit",
			[]string{"demo", "--duration", "3"},
			2, "",
			`pgretry: invalid argument "3" for "--duration" flag: want a duration from 10ms to 1h0m0s in whole milliseconds, such as 500ms or 3s` + see,
		},
		{
			"negative duration",
			[]string{"demo", "--duration", "-3s"},
			2, "",
			`pgretry: invalid argument "-3s" for "--duration" flag: want a duration from 10ms to 1h0m0s in whole milliseconds, such as 500ms or 3s` + see,
		},
		{
			"deadlock timeout",
			[]string{"demo", "--deadlock-timeout", "1.5ms"},
			2, "",
			`pgretry: invalid argument "1.5ms" for "--deadlock-timeout" flag: want a duration from 1ms to 1m0s in whole milliseconds, such as 500ms or 3s` + see,
		},
		{
			"seed",
			[]string{"demo", "--seed", "-1"},
			2, "",
			`pgretry: invalid argument "-1" for "--seed" flag: want a whole number from 0 to 18446744073709551615` + see,
		},
		{
			"empty connection string",
			[]string{"demo", "--dsn", ""},
			2, "",
			`pgretry: invalid argument "" for "--dsn" flag: not a connection string that lib/pq understands: want a URL such as postgres://user@host/database, or host=… user=… dbname=…` + see,
		},
		{
			"a connection string for what kills servers",
			[]string{"demo", "--faults", "--dsn", "postgres://me@localhost/test"},
			2, "",
			`pgretry: --dsn cannot be used with --faults` + see,
		},
		{
			"workloads with faults",
			[]string{"demo", "--workload", "crossing", "--faults"},
			2, "",
			`pgretry: --workload cannot be used with --faults` + see,
		},
		{
			"connection string, which is not shown",
			[]string{"demo", "--dsn", "postgres://me:secret@host:port"},
			2, "",
			`pgretry: invalid argument for "--dsn" flag: not a connection string that lib/pq understands: want a URL such as postgres://user@host/database, or host=… user=… dbname=…` + see,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			if code := run(t.Context(), test.args, &stdout, &stderr); code != test.code {
				t.Errorf("exit status %d, want %d", code, test.code)
			}
			if !strings.Contains(stdout.String(), test.stdout) || (test.stdout == "" && stdout.Len() > 0) {
				t.Errorf("stdout is %q, want %q in it", stdout.String(), test.stdout)
			}
			if got := stderr.String(); got != test.stderr {
				t.Errorf("stderr is\n%s\nwant\n%s", got, test.stderr)
			}
		})
	}
}

func TestAServerThatIsNotThereIsAFailure(t *testing.T) {
	var stdout, stderr bytes.Buffer
	code := run(t.Context(), []string{"demo", "--dsn", "postgres://me:secret@127.0.0.1:1/db?sslmode=disable"}, &stdout, &stderr)
	if code != exitFailure || !strings.Contains(stderr.String(), "127.0.0.1:1") || strings.Contains(stderr.String(), "secret") {
		t.Errorf("exit status %d, stderr %q", code, stderr.String())
	}
}

// outcome is what a program that reads the JSON relies on.
type outcome struct {
	Results []struct {
		Workload, Side   string
		Commits, Errors  int64
		ErrorsBySQLState map[string]int64 `json:"errors_by_sqlstate"`
		Seen             int64            `json:"conflicts_seen"`
		Hidden           int64            `json:"conflicts_hidden"`
		HiddenShare      *float64         `json:"hidden_share"`
		NotHidden        map[string]int64 `json:"not_hidden_because"`
		Replays          int64
		PartialReplays   int64            `json:"partial_replays"`
		Retries          map[string]int64 `json:"retries_by_sqlstate"`
		InvariantHeld    bool             `json:"invariant_held"`
	}
	Closure span `json:"closure_transaction"`
	Replay  span `json:"replayed_transaction"`
}

type span struct {
	Name     string
	Children []struct {
		Name       string
		Attributes map[string]any
	}
}

func (s span) attempts() (n int) {
	for _, child := range s.Children {
		if child.Name == "pgretry.attempt" {
			n++
		}
	}
	return n
}

// demonstrate runs the demo for a moment and returns what it found.
func demonstrate(t *testing.T, args ...string) outcome {
	t.Helper()
	dsn := pgtest.DSN(t)
	t.Cleanup(func() { goleak.VerifyNone(t, goleak.IgnoreCurrent()) })
	var stdout, stderr bytes.Buffer
	args = append([]string{"demo", "--dsn", dsn, "--duration", "300ms", "--json"}, args...)
	if code := run(t.Context(), args, &stdout, &stderr); code != 0 {
		t.Errorf("exit status %d: %s", code, stderr.String())
	}
	var got outcome
	if err := json.Unmarshal(stdout.Bytes(), &got); err != nil {
		t.Fatalf("%v in %s", err, stdout.String())
	}
	return got
}

func TestTheDemoFailsWithLibPQAndLosesNothingWithRunInTx(t *testing.T) {
	got := demonstrate(t)
	conflicts := map[string][]string{
		"crossing": {"40P01"}, "upserts": {"40P01"}, "cache": {"40P01"}, "counter": {"40P01"}, "share": {"40P01"},
		"skew": {"40001"}, "transfer/write": {"40P01"}, "transfer/rc": {"40P01"}, "transfer/rr": {"40001", "40P01"},
		"transfer/ser": {"40001", "40P01"}, "ids": {"40P01"},
	}
	if len(got.Results) != 3*len(conflicts) {
		t.Errorf("%d results, want three for each of %d workloads", len(got.Results), len(conflicts))
	}
	for _, r := range got.Results {
		expected := conflicts[r.Workload]
		if !r.InvariantHeld || r.Commits == 0 || len(expected) == 0 {
			t.Errorf("%s with %s: got %+v", r.Workload, r.Side, r)
			continue
		}
		for code := range r.ErrorsBySQLState {
			if !slices.Contains(expected, code) {
				t.Errorf("%s with %s: %s is not the conflict it is about", r.Workload, r.Side, code)
			}
		}
		if r.Seen != r.Errors {
			t.Errorf("%s with %s: %d errors but %d conflicts seen", r.Workload, r.Side, r.Errors, r.Seen)
		}
		switch r.Side {
		case "lib/pq":
			if r.ErrorsBySQLState[expected[0]] == 0 || r.Hidden != 0 || len(r.Retries)+len(r.NotHidden) != 0 {
				t.Errorf("%s with lib/pq: got %+v, want errors with %s", r.Workload, r, expected[0])
			}
		case "driver only":
			if len(r.Retries) != 0 {
				t.Errorf("%s with the driver only: a closure was run again: %+v", r.Workload, r)
			}
		case "RunInTx":
			if r.Errors != 0 || r.Retries[expected[0]] == 0 || r.HiddenShare == nil || *r.HiddenShare != 1 || r.Replays != 0 {
				t.Errorf("%s with RunInTx: got %+v, want no errors and conflicts survived", r.Workload, r)
			}
		default:
			t.Errorf("a result of %q", r.Side)
		}
	}
	if n := got.Closure.attempts(); got.Closure.Name != "pgretry.transaction" || n < 2 {
		t.Errorf("the closure on show has %d attempts", n)
	}
}

func TestTheDriverAloneHidesConflictsAndExplainsTheOthers(t *testing.T) {
	got := demonstrate(t, "--workload", "crossing,upserts,cache,share,skew,transfer/write,ids")
	// These show the application nothing that another transaction changes, or numbers that a pin keeps.
	hides := []string{"crossing", "upserts", "cache", "transfer/write", "ids"}
	for _, r := range got.Results {
		if r.Side != "driver only" {
			continue
		}
		if slices.Contains(hides, r.Workload) && (r.Hidden == 0 || r.Replays == 0) {
			t.Errorf("%s: nothing was hidden: %+v", r.Workload, r)
		}
		if r.Workload == "ids" && r.PartialReplays == 0 {
			t.Errorf("ids: no pin was used: %+v", r)
		}
		var explained int64
		for _, n := range r.NotHidden {
			explained += n
		}
		if explained != r.Seen || r.NotHidden["unexplained"] != 0 {
			t.Errorf("%s: %d conflicts were seen and the driver explains %v", r.Workload, r.Seen, r.NotHidden)
		}
	}
	if n := got.Replay.attempts(); n != 2 {
		t.Errorf("the replay on show has %d attempts, want 2", n)
	}
}

func TestTheDemoFailsIfRunInTxLosesATransaction(t *testing.T) {
	dsn, err := url.Parse(pgtest.DSN(t))
	if err != nil {
		t.Fatal(err)
	}
	query := dsn.Query()
	query.Set("pgretry_max_attempts", "2") // enough for some transactions, not for all
	dsn.RawQuery = query.Encode()
	var stdout, stderr bytes.Buffer
	code := run(t.Context(), []string{"demo", "--dsn", dsn.String(), "--duration", "300ms", "--workload", "crossing"}, &stdout, &stderr)
	if code != exitFailure {
		t.Errorf("exit status %d, want %d", code, exitFailure)
	}
	if !strings.Contains(stderr.String(), "pgretry: pgretry (RunInTx) lost ") || !strings.Contains(stderr.String(), "of crossing") {
		t.Errorf("stderr is %s", stderr.String())
	}
	if !strings.Contains(stdout.String(), " crossing  lib/pq ") {
		t.Errorf("the table is missing: %s", stdout.String())
	}
}

func TestErrorsThatTheDriverAloneShowsAreNoFailureOfTheDemo(t *testing.T) {
	dsn, err := url.Parse(pgtest.DSN(t))
	if err != nil {
		t.Fatal(err)
	}
	query := dsn.Query()
	query.Set("pgretry_mode", "closure")
	dsn.RawQuery = query.Encode()
	var stdout, stderr bytes.Buffer
	code := run(t.Context(), []string{"demo", "--dsn", dsn.String(), "--duration", "300ms", "--workload", "crossing"}, &stdout, &stderr)
	if code != 0 {
		t.Errorf("exit status %d: %s", code, stderr.String())
	}
	for _, want := range []string{"replay is switched off\n", "(0.0 %)", "Another without a closure"} {
		if !strings.Contains(stdout.String(), want) {
			t.Errorf("stdout lacks %q:\n%s", want, stdout.String())
		}
	}
}

func TestTheTableComesToStdoutAndProgressToStderr(t *testing.T) {
	var stdout, stderr bytes.Buffer
	code := run(t.Context(), []string{"demo", "--dsn", pgtest.DSN(t), "--duration", "100ms", "--workload", "share", "--workers", "4", "--seed", "9"}, &stdout, &stderr)
	if code != 0 {
		t.Errorf("exit status %d", code)
	}
	for _, want := range []string{
		" share     lib/pq ", "           driver only ", "           RunInTx ", "4 workers, 100ms per workload and side, seed 9.",
		"── pgretry.transaction ", "pgretry.attempt 2 ", "db.response.status_code=40P01", "── POST /greeting ",
	} {
		if !strings.Contains(stdout.String(), want) {
			t.Errorf("stdout lacks %q:\n%s", want, stdout.String())
		}
	}
	for _, want := range []string{", deadlock_timeout 10ms, 4 workers", "[1/3] share          lib/pq ", "[2/3] share          driver only ", "[3/3] share          RunInTx "} {
		if !strings.Contains(stderr.String(), want) {
			t.Errorf("stderr lacks %q:\n%s", want, stderr.String())
		}
	}
}

// command is the command in a process of its own, with a directory for temporary files of its own.
type command struct {
	*exec.Cmd
	temporary string
	stderr    io.Closer
	lines     *bufio.Scanner
	all       bytes.Buffer
}

func start(t *testing.T, args ...string) *command {
	t.Helper()
	// Not t.TempDir, which the user that the server runs as under root could not enter.
	temporary, err := os.MkdirTemp("", "pgretry-test-") //nolint:usetesting // sockets need a short path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(temporary); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(temporary, 0o777|os.ModeSticky); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := &command{Cmd: exec.CommandContext(t.Context(), self, args...), temporary: temporary}
	c.Env = append(os.Environ(), commandVariable+"=1", "TMPDIR="+temporary, "PGRETRY_DSN=")
	stderr, err := c.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	c.stderr, c.lines = stderr, bufio.NewScanner(stderr)
	return c
}

// waitFor reads what the command says until a line contains text.
func (c *command) waitFor(t *testing.T, text string) {
	t.Helper()
	for c.lines.Scan() {
		c.all.WriteString(c.lines.Text() + "\n")
		if strings.Contains(c.lines.Text(), text) {
			return
		}
	}
	t.Fatalf("it ended without saying %q: %s", text, c.all.String())
}

// processes returns the command lines of all processes that mention the command's directory.
func (c *command) processes(t *testing.T) []string {
	t.Helper()
	output, err := exec.CommandContext(t.Context(), "ps", "-A", "-ww", "-o", "args=").Output()
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for line := range strings.Lines(string(output)) {
		if strings.Contains(line, filepath.Base(c.temporary)) {
			found = append(found, strings.TrimSpace(line))
		}
	}
	return found
}

// mustEndInterrupted waits for the command's end and looks for what it left.
func (c *command) mustEndInterrupted(t *testing.T) {
	t.Helper()
	last := ""
	for c.lines.Scan() {
		last = c.lines.Text()
	}
	if last != "pgretry: interrupted" {
		t.Errorf("its last words are %q", last)
	}
	err := c.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != exitInterrupted {
		t.Errorf("it ended with %v, want exit status %d", err, exitInterrupted)
	}
	c.mustHaveLeftNothing(t)
}

func (c *command) mustHaveLeftNothing(t *testing.T) {
	t.Helper()
	if left := c.processes(t); len(left) > 0 {
		t.Errorf("these processes are left: %q", left)
	}
	entries, err := os.ReadDir(c.temporary)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) > 0 {
		t.Errorf("these files are left: %v", entries)
	}
}

func TestAnInterruptionLeavesNothingBehind(t *testing.T) {
	for _, test := range []struct {
		name   string
		signal os.Signal
		moment func(*testing.T, *command)
	}{
		{"at the very start", os.Interrupt, func(t *testing.T, c *command) { c.waitFor(t, "starting a throwaway PostgreSQL server") }},
		{"in the middle of initdb", os.Interrupt, func(t *testing.T, c *command) {
			c.waitFor(t, "starting a throwaway PostgreSQL server")
			for !slices.ContainsFunc(c.processes(t), func(p string) bool { return strings.Contains(p, "initdb") }) {
				if t.Context().Err() != nil {
					t.Fatal("no initdb was seen")
				}
			}
		}},
		{"in the middle of a workload", os.Interrupt, func(t *testing.T, c *command) { c.waitFor(t, "[1/3] crossing") }},
		{"in the middle of a workload, terminated", syscall.SIGTERM, func(t *testing.T, c *command) { c.waitFor(t, "[1/3] crossing") }},
		{"twice", os.Interrupt, func(t *testing.T, c *command) {
			c.waitFor(t, "[1/3] crossing")
			if err := c.Process.Signal(os.Interrupt); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c := start(t, "demo", "--workload", "crossing", "--duration", "2s")
			test.moment(t, c)
			if err := c.Process.Signal(test.signal); err != nil {
				t.Fatal(err)
			}
			c.mustEndInterrupted(t)
		})
	}
}

func TestAnInterruptionDropsTheSchemaOnTheUsersServer(t *testing.T) {
	server := pgtest.Server(t)
	c := start(t, "demo", "--dsn", server.DSN(), "--workload", "transfer", "--duration", "1h")
	c.waitFor(t, "deadlock_timeout 10ms, 8 workers")
	if err := c.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	c.mustEndInterrupted(t)
	mustHaveNoSandbox(t, server.DSN())
}

func TestAnInterruptionThatCannotDropTheSchemaSaysSo(t *testing.T) {
	db, err := sql.Open("postgres", pgtest.DSN(t))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	c := start(t, "demo", "--dsn", pgtest.Server(t).DSN(), "--workload", "crossing", "--duration", "1h")
	c.waitFor(t, "deadlock_timeout 10ms, 8 workers")
	// A demo under way has a schema with a table: lock that against DROP.
	schema := ""
	for schema == "" {
		err := db.QueryRowContext(t.Context(), `
			SELECT nspname FROM pg_namespace JOIN pg_class ON relnamespace = pg_namespace.oid
			WHERE nspname LIKE 'pgretry\_demo\_%' AND relname = 'words'`).Scan(&schema)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			t.Fatal(err)
		}
	}
	blocker, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := blocker.ExecContext(t.Context(), `LOCK TABLE `+schema+`.words IN ACCESS SHARE MODE`); err != nil {
		t.Fatal(err)
	}
	if err := c.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	c.waitFor(t, "pgretry: drop the schema "+schema+": ")
	c.mustEndInterrupted(t)
	if err := blocker.Rollback(); err != nil {
		t.Fatal(err)
	}
	if _, err := db.ExecContext(t.Context(), `DROP SCHEMA `+schema+` CASCADE`); err != nil {
		t.Fatal(err)
	}
}

func TestAThrowawayServerIsGoneAfterTheDemo(t *testing.T) {
	c := start(t, "demo", "--workload", "counter", "--duration", "50ms")
	c.waitFor(t, "[3/3] counter")
	if c.lines.Scan() {
		t.Errorf("it goes on with %q", c.lines.Text())
	}
	if err := c.Wait(); err != nil {
		t.Error(err)
	}
	c.mustHaveLeftNothing(t)
}

func TestAReaderThatGoesAwayLeavesNoServer(t *testing.T) {
	c := start(t, "demo", "--workload", "share", "--duration", "100ms")
	c.waitFor(t, "[1/3] share")
	if err := c.stderr.Close(); err != nil {
		t.Fatal(err)
	}
	err := c.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != exitFailure {
		t.Errorf("it ended with %v, want exit status %d", err, exitFailure)
	}
	c.mustHaveLeftNothing(t)
}

func mustHaveNoSandbox(t *testing.T, dsn string) {
	t.Helper()
	db, err := sql.Open("postgres", dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var left int
	err = db.QueryRowContext(t.Context(), `SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'pgretry\_demo\_%'`).Scan(&left)
	if err != nil || left > 0 {
		t.Errorf("%d schemas are left, %v", left, err)
	}
}
