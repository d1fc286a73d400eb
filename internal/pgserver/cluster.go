package pgserver

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lib/pq"
)

const (
	superuser = "pgretry"
	database  = "postgres"

	// startLimit is when a server that runs but does not answer is given up.
	startLimit = 3 * time.Minute
	// stopLimit is when a server that was told to stop is killed. It gives its own processes five seconds.
	stopLimit = 8 * time.Second
	// pollInterval is how often a state that nobody announces is looked at.
	pollInterval = 10 * time.Millisecond

	portAttempts = 10
)

// cluster is a data directory of ours and the postmaster that runs on it.
type cluster struct {
	*options

	dir     string
	binDir  string
	account *account // nil: the server runs as we do
	guard   *guard

	port    int
	version string

	cmd     *exec.Cmd // the postmaster, once it was launched
	exited  chan struct{}
	waitErr error // how the postmaster ended, once exited is closed
}

func (c *cluster) dataDir() string   { return filepath.Join(c.dir, "data") }
func (c *cluster) socketDir() string { return filepath.Join(c.dir, socketDirName) }
func (c *cluster) logFile() string   { return filepath.Join(c.dir, "log") }

func startCluster(ctx context.Context, o *options) (_ *cluster, err error) {
	if err := clustersSupported(); err != nil {
		return nil, err
	}
	binDir, err := o.findBinaries(ctx)
	if err != nil {
		return nil, err
	}
	account, err := serverAccount()
	if err != nil {
		return nil, err
	}
	base, err := clusterBase(account)
	if err != nil {
		return nil, err
	}

	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	sweep(ctx, base, o.logf)
	c := &cluster{options: o, binDir: binDir, account: account}
	if c.dir, err = makeClusterDir(base); err != nil {
		return nil, err
	}
	defer func() {
		if err == nil {
			return
		}
		if failure := c.destroy(); failure != nil {
			err = errors.Join(err, failure)
		}
	}()
	if !o.unguarded {
		if c.guard, err = startGuard(c.dir); err != nil {
			// The next start sweeps what the guard would have removed.
			o.logf("pgserver: %v", err)
		}
	}

	if err := c.initialize(ctx); err != nil {
		return nil, err
	}
	for attempt := 1; ; attempt++ {
		if c.port, err = o.freePort(); err != nil {
			return nil, err
		}
		err = c.launch(ctx)
		if !errors.Is(err, errPortTaken) || attempt == portAttempts {
			break
		}
		o.logf("pgserver: port %d was taken meanwhile, trying another", c.port)
	}
	if err != nil {
		return nil, err
	}
	return c, nil
}

// initialize makes the data directory.
func (c *cluster) initialize(ctx context.Context) error {
	if c.account != nil {
		// The server may pass through our directory to its own, and no more.
		if err := os.Chmod(c.dir, 0o711); err != nil {
			return fmt.Errorf("make the cluster's directories: %w", err)
		}
	}
	for _, dir := range []string{c.dataDir(), c.socketDir()} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return fmt.Errorf("make the cluster's directories: %w", err)
		}
		if err := c.account.give(dir); err != nil {
			return fmt.Errorf("give the cluster's directories to user %s: %w", c.account.name, err)
		}
	}

	var output bytes.Buffer
	cmd := exec.CommandContext(ctx, filepath.Join(c.binDir, "initdb"),
		"--pgdata="+c.dataDir(), "--username="+superuser, "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync")
	c.prepare(cmd)
	cmd.Stdout, cmd.Stderr = &output, &output
	// Killing initdb alone lets the server it runs see the end of its input and finish in good order. If that were
	// killed as well it would leave shared memory behind. Wait waits for it too, as it holds the output's pipe.
	cmd.WaitDelay = stopLimit
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("run initdb%s: %w", c.account, err)
	}
	c.watch("KILL", cmd.Process.Pid)
	err := cmd.Wait()
	c.unwatch()
	if ctx.Err() != nil {
		return fmt.Errorf("run initdb: %w", ctx.Err())
	}
	if err != nil {
		return fmt.Errorf("run initdb%s: %w, its output ends with:\n%s", c.account, err, lastLines(output.Bytes()))
	}
	return c.configure()
}

// configure adds the settings to postgresql.conf, where those at the end win.
func (c *cluster) configure() (err error) {
	settings := maps.Clone(throwaway)
	maps.Copy(settings, c.settings)
	settings["listen_addresses"] = "127.0.0.1"
	settings["unix_socket_directories"] = c.socketDir()

	file, err := os.OpenFile(filepath.Join(c.dataDir(), "postgresql.conf"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return fmt.Errorf("write the settings: %w", err)
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	quote := strings.NewReplacer(`\`, `\\`, `'`, `''`, "\n", `\n`)
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		if _, err := fmt.Fprintf(file, "%s = '%s'\n", name, quote.Replace(settings[name])); err != nil {
			return fmt.Errorf("write the settings: %w", err)
		}
	}
	return nil
}

// errPortTaken says that somebody else took the port between its choice and its use.
var errPortTaken = errors.New("the port is taken")

// launch starts the postmaster on c.port and waits until it answers. If it fails, the postmaster may still run.
func (c *cluster) launch(ctx context.Context) error {
	log, err := os.Create(c.logFile())
	if err != nil {
		return fmt.Errorf("make the server's log: %w", err)
	}
	defer log.Close() //nolint:errcheck // the server has its own descriptor of it

	cmd := exec.Command(filepath.Join(c.binDir, "postgres"), "-D", c.dataDir(), "-p", strconv.Itoa(c.port))
	c.prepare(cmd)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("run postgres%s: %w", c.account, err)
	}
	c.cmd, c.exited = cmd, make(chan struct{})
	c.watch("QUIT", cmd.Process.Pid)
	go c.reap()

	// Over the socket in our own directory nobody else can answer, as they can on the port. The server opens the
	// socket last: when it answers there, it has the port.
	connector, err := pq.NewConnectorConfig(pq.Config{
		Host: c.socketDir(), Port: uint16(c.port), User: superuser, Database: database,
		SSLMode: pq.SSLModeDisable, ClientEncoding: "UTF8", Datestyle: "ISO, MDY", ConnectTimeout: 5 * time.Second,
	})
	if err != nil {
		return fmt.Errorf("connect to the server: %w", err)
	}
	db := sql.OpenDB(connector)
	poll := time.NewTicker(pollInterval)
	defer poll.Stop()
	for {
		c.version, err = serverVersion(ctx, db)
		if err == nil {
			return db.Close()
		}
		select {
		case <-poll.C:
		case <-c.exited:
			return errors.Join(c.exitedEarly(), db.Close())
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("wait until the server accepts connections: %w (last attempt: %w)", ctx.Err(), err), db.Close())
		}
	}
}

// reap waits for the postmaster's end, so that its process id stays its own until the guard knows.
func (c *cluster) reap() {
	c.waitErr = c.cmd.Wait()
	c.unwatch()
	close(c.exited)
}

func (c *cluster) exitedEarly() error {
	log, err := os.ReadFile(c.logFile())
	if err != nil {
		return fmt.Errorf("the server exited at once (%w), and its log: %w", c.waitErr, err)
	}
	if bytes.Contains(log, []byte("Address already in use")) {
		return fmt.Errorf("port %d: %w", c.port, errPortTaken)
	}
	return fmt.Errorf("the server exited at once (%w), its log ends with:\n%s", c.waitErr, lastLines(log))
}

// destroy ends what runs and removes what there is, however far the start got.
func (c *cluster) destroy() error {
	var failures []error
	if c.cmd != nil {
		failures = append(failures, c.kill())
	}
	failures = append(failures, removeDir(c.dir))
	if c.guard != nil {
		if err := c.guard.release(); err != nil {
			c.logf("pgserver: %v", err)
		}
	}
	if err := errors.Join(failures...); err != nil {
		return fmt.Errorf("stop PostgreSQL: %w", err)
	}
	return nil
}

// kill ends the postmaster and, through it, its processes. What they had to write no longer matters.
func (c *cluster) kill() error {
	if err := quit(c.cmd.Process); err != nil {
		return err
	}
	limit := time.NewTimer(stopLimit)
	defer limit.Stop()
	select {
	case <-c.exited:
		return nil
	case <-limit.C:
	}
	if err := c.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill the postmaster: %w", err)
	}
	<-c.exited
	return nil
}

// prepare makes cmd a server process: in its own process group, as Ctrl-C in a terminal is meant for us alone, as
// the right user, and in a directory and an environment that have no say in what it does.
func (c *cluster) prepare(cmd *exec.Cmd) {
	detach(cmd)
	c.account.assume(cmd)
	cmd.Dir = c.dir
	for _, variable := range os.Environ() {
		name, _, _ := strings.Cut(variable, "=")
		if strings.HasPrefix(name, "PG") || strings.HasPrefix(name, "LC_") || name == "LANG" || name == "LANGUAGE" {
			continue
		}
		cmd.Env = append(cmd.Env, variable)
	}
	cmd.Env = append(cmd.Env, "LC_ALL=C") // messages that exitedEarly understands
}

// watch tells the guard which process has to end with us.
func (c *cluster) watch(signal string, pid int) {
	if c.guard == nil {
		return
	}
	if err := c.guard.watch(signal, pid); err != nil {
		c.logf("pgserver: %v", err)
	}
}

// unwatch tells the guard that the process has ended.
func (c *cluster) unwatch() {
	if c.guard == nil {
		return
	}
	if err := c.guard.unwatch(); err != nil {
		c.logf("pgserver: %v", err)
	}
}

// lastLines returns the end of a log, short enough for an error.
func lastLines(log []byte) string {
	lines := strings.Split(strings.TrimSpace(string(log)), "\n")
	return strings.Join(lines[max(0, len(lines)-12):], "\n")
}

// removeDir removes a directory in which processes that are about to end may still make files.
func removeDir(dir string) error {
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(pollInterval) {
		err := os.RemoveAll(dir)
		if err == nil || errors.Is(err, fs.ErrPermission) || time.Now().After(deadline) {
			return err
		}
	}
}
