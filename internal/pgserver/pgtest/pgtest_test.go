//go:build unix

package pgtest

import (
	"bufio"
	"bytes"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	_ "github.com/lib/pq"

	"github.com/pgretry/pgretry/internal/pgserver"
)

// ending is the environment variable that tells [TestInAProcessOfItsOwn] how to end.
const ending = "PGTEST_ENDING"

func TestMain(m *testing.M) {
	if os.Getenv(ending) == "" {
		// These tests say themselves which server they want.
		if err := os.Unsetenv(pgserver.EnvDSN); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(Main(m, pgserver.WithSettings(map[string]string{"deadlock_timeout": "50ms"})))
}

func TestEachTestHasASchemaOfItsOwn(t *testing.T) {
	var schemas []string
	for range 2 {
		t.Run("inner", func(t *testing.T) {
			db := connect(t, DSN(t))
			if _, err := db.Exec("create table same_name ()"); err != nil {
				t.Fatal(err)
			}
			schemas = append(schemas, query(t, db, "select current_schema()"))
		})
	}
	if schemas[0] == schemas[1] {
		t.Error("two tests had the same schema")
	}
	admin := connect(t, Server(t).DSN())
	for _, schema := range schemas {
		if got := query(t, admin, "select count(*) from pg_namespace where nspname = $1", schema); got != "0" {
			t.Errorf("schema %s outlived its test", schema)
		}
	}
}

func TestServerIsSharedAndHasTheOptionsOfMain(t *testing.T) {
	if one, two := Server(t), Server(t); one != two {
		t.Error("there are two servers")
	}
	db := connect(t, DSN(t))
	if got := query(t, db, "show deadlock_timeout"); got != "50ms" {
		t.Errorf("deadlock_timeout is %s", got)
	}
	if got := query(t, db, "show data_directory"); !strings.HasPrefix(got, Server(t).Dir()) {
		t.Errorf("DSN leads to the server in %s", got)
	}
}

func TestServerEndsWithTheTestsHoweverTheyEnd(t *testing.T) {
	tests := []struct {
		ending string
		signal syscall.Signal // sent when the server runs
		code   int            // -1: dies of the signal
		output string
		later  bool // it is the guard that cleans up, after the end
	}{
		{ending: "return", code: 0, output: "PASS"},
		{ending: "panic", code: 2, output: "panic: on purpose", later: true},
		{ending: "exit", code: 7, later: true},
		{ending: "wait", signal: syscall.SIGINT, code: -1},
		{ending: "wait", signal: syscall.SIGTERM, code: -1},
		{ending: "wait", signal: syscall.SIGKILL, code: -1, later: true},
	}
	for _, test := range tests {
		name := test.ending
		if test.signal != 0 {
			name = test.signal.String()
		}
		t.Run(name, func(t *testing.T) {
			cmd, stdout := ownProcess(t, test.ending)
			var dir, dsn string
			if _, err := fmt.Fscanf(stdout, "server in %s at %s\n", &dir, &dsn); err != nil {
				t.Fatalf("the process did not start a server: %v", err)
			}
			if test.signal != 0 {
				if err := cmd.Process.Signal(test.signal); err != nil {
					t.Fatal(err)
				}
			}
			var output bytes.Buffer
			if _, err := output.ReadFrom(stdout); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait() // the code tells it better
			if got := cmd.ProcessState.ExitCode(); got != test.code {
				t.Errorf("exit code %d, not %d, and it said:\n%s", got, test.code, output.String())
			}
			if status := cmd.ProcessState.Sys().(syscall.WaitStatus); test.code < 0 && status.Signal() != test.signal {
				t.Errorf("it ended with %v", status)
			}
			if !strings.Contains(output.String(), test.output) {
				t.Errorf("it did not say %q but:\n%s", test.output, output.String())
			}
			db := connect(t, dsn)
			gone := func() bool {
				_, err := os.Lstat(dir)
				return errors.Is(err, fs.ErrNotExist) && db.Ping() != nil
			}
			if !test.later && !gone() {
				t.Error("the server outlived the tests")
			}
			eventually(t, "the server was gone", gone)
		})
	}
}

func TestTestsFailWithoutAServer(t *testing.T) {
	t.Setenv(pgserver.EnvDSN, "postgres://127.0.0.1:1/?sslmode=disable")
	cmd, stdout := ownProcess(t, "return")
	var output bytes.Buffer
	if _, err := output.ReadFrom(stdout); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil || !strings.Contains(output.String(), "--- FAIL: TestInAProcessOfItsOwn") ||
		!strings.Contains(output.String(), "use the server named by PGRETRY_DSN") {
		t.Errorf("it ended with %v and said:\n%s", err, output.String())
	}
}

// ownProcess runs [TestInAProcessOfItsOwn] as such.
func ownProcess(t *testing.T, how string) (*exec.Cmd, *bufio.Reader) {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "-test.run=^TestInAProcessOfItsOwn$", "-test.v", "-test.timeout=1m")
	cmd.Env = append(os.Environ(), ending+"="+how)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill() // it may have ended
			_ = cmd.Wait()
		}
	})
	reader := bufio.NewReader(stdout)
	// "=== RUN" comes first.
	if _, err := reader.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	return cmd, reader
}

// TestInAProcessOfItsOwn is what the tests above run in another process. In this one it only shows that the server
// can be had.
func TestInAProcessOfItsOwn(t *testing.T) {
	server := Server(t)
	how := os.Getenv(ending)
	if how != "" {
		fmt.Printf("server in %s at %s\n", server.Dir(), server.DSN())
	}
	switch how {
	case "panic":
		panic("on purpose")
	case "exit":
		os.Exit(7)
	case "wait":
		select {}
	}
}

func connect(t *testing.T, dsn string) *sql.DB {
	t.Helper()
	db, err := sql.Open("postgres", dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

func query(t *testing.T, db *sql.DB, text string, args ...any) string {
	t.Helper()
	var value string
	if err := db.QueryRow(text, args...).Scan(&value); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return value
}

func eventually(t *testing.T, what string, reached func() bool) {
	t.Helper()
	limit := time.After(30 * time.Second)
	poll := time.NewTicker(10 * time.Millisecond)
	defer poll.Stop()
	for !reached() {
		select {
		case <-poll.C:
		case <-limit:
			t.Fatalf("it never happened that %s", what)
		}
	}
}
