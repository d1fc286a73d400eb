//go:build unix

package pgserver

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
)

func TestServerAnswersOverTCPAndSocket(t *testing.T) {
	ownTemp(t)
	server := start(t)
	if !strings.HasPrefix(server.DSN(), "postgres://pgretry@127.0.0.1:") || !strings.HasSuffix(server.DSN(), "/postgres?sslmode=disable") {
		t.Errorf("DSN is %s", server.DSN())
	}
	tcp, socket := connect(t, server.DSN()), connect(t, server.SocketDSN())
	if got := query(t, tcp, "select inet_server_addr()"); got != "127.0.0.1" {
		t.Errorf("the server's address over DSN is %s", got)
	}
	if got := query(t, socket, "select inet_server_addr() is null"); got != "true" {
		t.Errorf("SocketDSN does not lead over a socket")
	}
	if a, b := query(t, tcp, "show data_directory"), query(t, socket, "show data_directory"); a != b || a != filepath.Join(server.Dir(), "data") {
		t.Errorf("data directories: %s over TCP, %s over the socket, the server says it is in %s", a, b, server.Dir())
	}
	if got := query(t, tcp, "show server_version"); strings.Fields(got)[0] != server.Version() {
		t.Errorf("the version is %q, and said to be %q", got, server.Version())
	}
	if got := query(t, tcp, "select current_user || ' ' || (select rolsuper from pg_roles where rolname = current_user)"); got != "pgretry true" {
		t.Errorf("connected as %s", got)
	}
	if pid := must(postmasterPID(filepath.Join(server.Dir(), "data")))(t); pid != server.PID() {
		t.Errorf("the postmaster is process %d, and said to be %d", pid, server.PID())
	}
	if !holdsServer(server.BinDir()) {
		t.Errorf("no server programs in %q", server.BinDir())
	}
	if server.External() {
		t.Error("a cluster of our own is called external")
	}
	for name, want := range map[string]string{
		"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "max_connections": "200",
		"deadlock_timeout": "1s", "server_encoding": "UTF8", "lc_messages": "C", "listen_addresses": "127.0.0.1",
	} {
		if got := query(t, tcp, "select current_setting($1)", name); got != want {
			t.Errorf("%s is %s, not %s", name, got, want)
		}
	}
}

func TestServerNeverRunsAsRoot(t *testing.T) {
	ownTemp(t)
	server := start(t)
	// The file is made by the postmaster itself.
	if uid := fileOwner(t, filepath.Join(server.Dir(), "data", "postmaster.pid")); uid == 0 {
		t.Error("the postmaster runs as root")
	}
}

func TestOrdinaryUserCanStartAServer(t *testing.T) {
	c := startChild(t, "serve", asOrdinaryUser(t, ownTemp(t)))
	if c.report.UID == 0 {
		t.Fatal("the child is root")
	}
	check(t, answers(c.report.DSN))
	if uid := fileOwner(t, filepath.Join(c.report.Dir, "data", "postmaster.pid")); uid != c.report.UID {
		t.Errorf("the postmaster runs as user %d, its starter as %d", uid, c.report.UID)
	}
	check(t, c.stdin.Close())
	check(t, c.Wait())
	if exists(c.report.Dir) || running(c.report.PID) {
		t.Error("the child left its server behind")
	}
}

// asOrdinaryUser returns a change to the command of a child that makes it run as nobody, if we are root.
func asOrdinaryUser(t *testing.T, base string) func(*exec.Cmd) {
	t.Helper()
	// The test binary itself is where only we can read it.
	program := filepath.Join(base, "pgserver.test")
	copyFile(t, must(os.Executable())(t), program)
	return func(cmd *exec.Cmd) {
		cmd.Path, cmd.Dir = program, base
		if os.Geteuid() == 0 {
			nobody := must(user.Lookup("nobody"))(t)
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{
				Uid: uint32(must(strconv.Atoi(nobody.Uid))(t)), Gid: uint32(must(strconv.Atoi(nobody.Gid))(t)),
			}}
		}
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	in := must(os.Open(from))(t)
	defer in.Close() //nolint:errcheck // of no interest here
	out := must(os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o755))(t)
	must(io.Copy(out, in))(t)
	check(t, out.Close())
}

func TestServersDoNotDisturbEachOther(t *testing.T) {
	ownTemp(t)
	a, b := start(t), start(t)
	execute(t, connect(t, a.DSN()), "create table only_in_a ()")
	if got := query(t, connect(t, b.DSN()), "select to_regclass('only_in_a') is null"); got != "true" {
		t.Error("two servers are the same one")
	}
	check(t, a.Stop())
	check(t, answers(b.DSN()))
}

func TestSettingsReachTheServerUnchanged(t *testing.T) {
	ownTemp(t)
	awkward := `it's a \back\slash`
	server := start(t,
		WithSettings(map[string]string{"deadlock_timeout": "5s", "cluster_name": awkward, "fsync": "on"}),
		WithSettings(map[string]string{"deadlock_timeout": "123ms", "app.value": "one\ntwo"}))
	db := connect(t, server.DSN())
	for name, want := range map[string]string{"deadlock_timeout": "123ms", "cluster_name": awkward, "fsync": "on", "app.value": "one\ntwo"} {
		if got := query(t, db, "select current_setting($1)", name); got != want {
			t.Errorf("%s is %q, not %q", name, got, want)
		}
	}
}

func TestSettingsThatCannotBeAreRefused(t *testing.T) {
	ownTemp(t)
	for _, settings := range []map[string]string{{"port": "5432"}, {"listen_addresses": "*"}, {"a b": "c"}, {"": "x"}} {
		if server, err := Start(t.Context(), WithSettings(settings)); err == nil {
			check(t, server.Stop())
			t.Errorf("%v was accepted", settings)
		}
	}
}

func TestServerThatExitsAtOnceIsReportedWithItsLog(t *testing.T) {
	ownTemp(t)
	server, err := Start(t.Context(), WithSettings(map[string]string{"no_such_setting": "1"}))
	if err == nil {
		check(t, server.Stop())
		t.Fatal("a server started with a setting that does not exist")
	}
	if want := `unrecognized configuration parameter "no_such_setting"`; !strings.Contains(err.Error(), want) {
		t.Errorf("the error does not say %s: %v", want, err)
	}
}

func TestPortTakenMeanwhileIsReplaced(t *testing.T) {
	ownTemp(t)
	taken := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	defer taken.Close() //nolint:errcheck // of no interest here
	asked := 0
	server := start(t, func(o *options) error {
		o.freePort = func() (int, error) {
			if asked++; asked <= 2 {
				return taken.Addr().(*net.TCPAddr).Port, nil
			}
			return freePort()
		}
		return nil
	})
	if asked != 3 {
		t.Errorf("asked for a port %d times", asked)
	}
	check(t, answers(server.DSN()))
}

func TestTemporaryDirectoryTooDeepForASocketIsAvoided(t *testing.T) {
	base := ownTemp(t)
	deep := filepath.Join(base, strings.Repeat("d", socketPathLimit))
	check(t, os.Mkdir(deep, 0o777))
	t.Setenv("TMPDIR", deep)
	check(t, answers(start(t).SocketDSN()))
}

func TestTemporaryDirectoryOutOfTheServersReachIsAvoided(t *testing.T) {
	base := ownTemp(t)
	private := filepath.Join(base, "private")
	check(t, os.MkdirAll(filepath.Join(private, "public"), 0o700))
	check(t, os.Chmod(filepath.Join(private, "public"), 0o777))
	t.Setenv("TMPDIR", filepath.Join(private, "public"))
	if got := must(clusterBase(&account{name: "somebody else"}))(t); !openToAll(got) {
		t.Errorf("the cluster of another user would be in %s", got)
	}
	if got := must(clusterBase(nil))(t); got != os.TempDir() {
		t.Errorf("our own cluster would be in %s", got)
	}
}

func TestEnvironmentHasNoSayInACluster(t *testing.T) {
	ownTemp(t)
	t.Setenv("PGDATA", "/nonexistent")
	t.Setenv("PGPORT", "1")
	t.Setenv("PGDATESTYLE", "nonsense") // the server reads it too
	t.Setenv("PGHOSTADDR", "192.0.2.1")
	t.Setenv("LC_ALL", "xx_XX.UTF-8")
	start(t)
}

func TestStopCanBeCalledByAllAtOnce(t *testing.T) {
	ownTemp(t)
	server := must(Start(t.Context()))(t)
	db := connect(t, server.DSN())
	execute(t, db, "create table t ()") // a session is open
	var stops sync.WaitGroup
	for range 8 {
		stops.Go(func() {
			if err := server.Stop(); err != nil {
				t.Error(err)
			}
			if exists(server.Dir()) || running(server.PID()) {
				t.Error("Stop returned before the server was gone")
			}
		})
	}
	stops.Wait()
	check(t, server.Stop())
}

func TestStopCleansUpAfterAPostmasterThatWasKilled(t *testing.T) {
	ownTemp(t)
	server := must(Start(t.Context()))(t)
	execute(t, connect(t, server.DSN()), "create table t ()")
	check(t, syscall.Kill(server.PID(), syscall.SIGKILL))
	check(t, server.Stop())
	if exists(server.Dir()) {
		t.Error("the directory is still there")
	}
}

func TestCancelledStartLeavesNothing(t *testing.T) {
	tests := map[string]func(base string, cancel func()) Option{
		"before it began": func(_ string, cancel func()) Option {
			cancel()
			return WithLogf(t.Logf)
		},
		"while the cluster is made": func(base string, cancel func()) Option {
			go func() {
				for {
					made, err := filepath.Glob(filepath.Join(base, dirPrefix+"*", "data", "base"))
					if err != nil || len(made) > 0 {
						cancel()
						return
					}
				}
			}()
			return WithLogf(t.Logf)
		},
		"while the server starts": func(_ string, cancel func()) Option {
			return func(o *options) error {
				o.freePort = func() (int, error) { cancel(); return freePort() }
				return nil
			}
		},
	}
	for name, arrange := range tests {
		t.Run(name, func(t *testing.T) {
			base := ownTemp(t) // checks what is left
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			server, err := Start(ctx, arrange(base, cancel))
			if err == nil {
				check(t, server.Stop())
				t.Fatal("Start did not notice")
			}
			if !errors.Is(err, context.Canceled) {
				t.Errorf("the error is not the context's: %v", err)
			}
		})
	}
}

func TestServerOutlivesTheContextOfItsStart(t *testing.T) {
	ownTemp(t)
	ctx, cancel := context.WithCancel(t.Context())
	server := must(Start(ctx))(t)
	cancel()
	check(t, answers(server.DSN()))
	check(t, server.Stop())
}
