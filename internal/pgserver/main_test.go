//go:build unix

package pgserver

import (
	"bufio"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	_ "github.com/lib/pq"
)

// childMode is the environment variable that makes the test binary a child of a test instead: a process of its own
// that can be killed, or be somebody else.
const childMode = "PGSERVER_TEST_CHILD"

func TestMain(m *testing.M) {
	// These tests say themselves which server they want.
	if err := os.Unsetenv(EnvDSN); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if mode := os.Getenv(childMode); mode != "" {
		if err := runChild(mode); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	code := m.Run()
	if err := stopHost(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// A server for the tests that need just any.
var (
	startHost = sync.OnceValues(func() (*Server, error) {
		return Start(context.Background(), WithSettings(map[string]string{"max_prepared_transactions": "3"}))
	})
	stopHost = func() error { return nil }
)

// host returns the server of the tests that need just any, and do not call ownTemp.
func host(t *testing.T) *Server {
	t.Helper()
	server := must(startHost())(t)
	stopHost = server.Stop
	return server
}

// report is what a child says about its server.
type report struct {
	Dir     string
	PID     int
	DSN     string
	UID     int // the child's
	Version string
}

func runChild(mode string) error {
	ctx := context.Background()
	switch mode {
	case "serve", "serve unguarded", "serve restarted", "serve restarted unguarded", "serve killed":
		// Until standard input closes.
		server, err := Start(ctx, func(o *options) error { o.unguarded = strings.HasSuffix(mode, "unguarded"); return nil })
		if err != nil {
			return err
		}
		if strings.HasPrefix(mode, "serve restarted") {
			if err := server.Restart(ctx, Fast); err != nil {
				return err
			}
		}
		if strings.HasPrefix(mode, "serve restarted") || mode == "serve killed" {
			if err := server.Kill(); err != nil {
				return err
			}
		}
		if strings.HasPrefix(mode, "serve restarted") {
			if err := server.Restart(ctx, Fast); err != nil {
				return err
			}
		}
		err = json.NewEncoder(os.Stdout).Encode(report{server.Dir(), server.PID(), server.DSN(), os.Geteuid(), server.Version()})
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
			return err
		}
		return server.Stop()
	case "faults":
		return undergoFaults(ctx)
	case "cycle":
		for range 2 {
			server, err := Start(ctx)
			if err != nil {
				return err
			}
			if err := answers(server.DSN()); err != nil {
				return err
			}
			if err := server.Stop(); err != nil {
				return err
			}
		}
		return nil
	}
	return fmt.Errorf("no such mode: %s", mode)
}

// undergoFaults has a server of its own suffer all that one can.
func undergoFaults(ctx context.Context) (err error) {
	if os.Geteuid() == 0 {
		return errors.New("started as root")
	}
	server, err := Start(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Stop()) }()
	standby, err := server.NewStandby(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, standby.Stop()) }()
	processes, err := children(server.PID())
	if err != nil {
		return err
	}
	for _, step := range []func() error{
		func() error { return server.KillBackend(processes[0].pid) },
		server.Kill,
		func() error { return server.Restart(ctx, Fast) },
		func() error { return server.Restart(ctx, Immediate) },
		func() error { return answers(server.DSN()) },
		func() error { return standby.Promote(ctx) },
		standby.Kill,
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

type child struct {
	*exec.Cmd
	report report
	stdin  io.WriteCloser
}

// startChild starts a child that serves, and waits until it does. Change changes the command first.
func startChild(t *testing.T, mode string, change func(*exec.Cmd)) *child {
	t.Helper()
	cmd := exec.Command(must(os.Executable())(t))
	cmd.Env = append(os.Environ(), childMode+"="+mode)
	cmd.Stderr = os.Stderr
	if change != nil {
		change(cmd)
	}
	c := &child{Cmd: cmd}
	c.stdin = must(cmd.StdinPipe())(t)
	stdout := must(cmd.StdoutPipe())(t)
	check(t, cmd.Start())
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			check(t, cmd.Process.Kill())
			_ = cmd.Wait() // says that it was killed
		}
	})
	line, err := bufio.NewReader(stdout).ReadBytes('\n')
	if err != nil {
		t.Fatalf("the child did not start a server: %v", err)
	}
	check(t, json.Unmarshal(line, &c.report))
	return c
}

// murder kills the child in the way it can do nothing about.
func (c *child) murder(t *testing.T) {
	t.Helper()
	check(t, c.Process.Kill())
	if err := c.Wait(); err == nil {
		t.Fatal("the child ended by itself")
	}
}

// ownTemp gives the test a directory for temporary files that no other test sees, and checks at the test's end that
// nothing is left in it, nor any process that works on it.
func ownTemp(t *testing.T) string {
	t.Helper()
	// Not t.TempDir: only we may pass through that, and its name is long, as os.TempDir's is on macOS.
	parent := os.TempDir()
	if len(parent) > len("/var/tmp") {
		parent = fallbackBase
	}
	base := must(os.MkdirTemp(parent, "pgs"))(t) //nolint:usetesting // sockets need a short path
	base = must(filepath.EvalSymlinks(base))(t)
	check(t, os.Chmod(base, 0o777))
	t.Setenv("TMPDIR", base)
	t.Cleanup(func() {
		for _, name := range clusterDirs(t, base) {
			t.Errorf("%s was left behind", name)
		}
		if lines := processesMentioning(t, base); len(lines) > 0 {
			t.Errorf("processes were left behind:\n%s", strings.Join(lines, "\n"))
		}
		check(t, os.RemoveAll(base))
	})
	return base
}

func clusterDirs(t *testing.T, base string) []string {
	t.Helper()
	return must(filepath.Glob(filepath.Join(base, dirPrefix+"*")))(t)
}

func processesMentioning(t *testing.T, s string) []string {
	t.Helper()
	var lines []string
	for line := range strings.Lines(string(must(exec.Command("ps", "axww", "-o", "pid=,stat=,command=").Output())(t))) {
		if strings.Contains(line, s) {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

// start starts a server that is stopped when the test ends.
func start(t *testing.T, opts ...Option) *Server {
	t.Helper()
	server := must(Start(t.Context(), append(opts, WithLogf(t.Logf))...))(t)
	t.Cleanup(func() { check(t, server.Stop()) })
	return server
}

func connect(t *testing.T, dsn string) *sql.DB {
	t.Helper()
	db := must(sql.Open("postgres", dsn))(t)
	t.Cleanup(func() { check(t, db.Close()) })
	return db
}

// query returns the one value that a query gives, as text.
func query(t *testing.T, db *sql.DB, text string, args ...any) string {
	t.Helper()
	var value string
	if err := db.QueryRow(text, args...).Scan(&value); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return value
}

func execute(t *testing.T, db interface {
	Exec(string, ...any) (sql.Result, error)
}, text string,
) {
	t.Helper()
	if _, err := db.Exec(text); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
}

// answers reports an error unless a server answers at dsn.
func answers(dsn string) error {
	db, err := sql.Open("postgres", dsn)
	if err != nil {
		return err
	}
	defer db.Close()
	var one int
	return db.QueryRow("select 1").Scan(&one)
}

// eventually waits until the state is reached. The limit is generous, as it is only met by a failure.
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

func running(pid int) bool {
	_, exists := processStart(pid)
	return exists
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// fileOwner returns the user id of the file's owner.
func fileOwner(t *testing.T, path string) int {
	t.Helper()
	info := must(os.Stat(path))(t)
	return int(info.Sys().(*syscall.Stat_t).Uid)
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func must[T any](value T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		check(t, err)
		return value
	}
}
