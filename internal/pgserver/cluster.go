package pgserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
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

	// turn is held, by sending to it, by what changes whether and how the server runs. Once it is stopped, for ever.
	turn chan struct{}
	// life ends when the server is told to stop, whoever's turn it is.
	life context.Context
	end  context.CancelFunc

	// gone is called when the server has ended for ever, unless it is nil.
	gone func()

	mu         sync.Mutex
	postmaster *postmaster // the latest one, nil before the first; guarded by mu
}

func newCluster(o *options, binDir string, account *account) *cluster {
	c := &cluster{options: o, binDir: binDir, account: account, turn: make(chan struct{}, 1)}
	c.life, c.end = context.WithCancel(context.Background())
	return c
}

func (c *cluster) dataDir() string   { return filepath.Join(c.dir, "data") }
func (c *cluster) socketDir() string { return filepath.Join(c.dir, socketDirName) }
func (c *cluster) logFile() string   { return filepath.Join(c.dir, "log") }

// latest returns the postmaster that runs or ran last, nil if there was none yet.
func (c *cluster) latest() *postmaster {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.postmaster
}

func startCluster(ctx context.Context, o *options) (*cluster, error) {
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
	c := newCluster(o, binDir, account)
	if err := c.start(ctx, c.initialize); err != nil {
		return nil, err
	}
	return c, nil
}

// start makes the cluster's directories, has fill make the data directory's content, and launches the server. If it
// fails, nothing is left.
func (c *cluster) start(ctx context.Context, fill func(context.Context) error) (err error) {
	base, err := clusterBase(c.account)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	sweep(ctx, base, c.logf)
	if c.dir, err = makeClusterDir(base); err != nil {
		return err
	}
	defer func() {
		if err == nil {
			return
		}
		if failure := c.destroy(); failure != nil {
			err = errors.Join(err, failure)
		}
	}()
	if !c.unguarded {
		if c.guard, err = startGuard(c.dir); err != nil {
			// The next start sweeps what the guard would have removed.
			c.logf("pgserver: %v", err)
		}
	}

	if err := c.makeDirs(); err != nil {
		return err
	}
	if err := fill(ctx); err != nil {
		return err
	}
	for attempt := 1; ; attempt++ {
		if c.port, err = c.freePort(); err != nil {
			return err
		}
		err = c.launch(ctx)
		if !errors.Is(err, errPortTaken) || attempt == portAttempts {
			return err
		}
		c.logf("pgserver: port %d was taken meanwhile, trying another", c.port)
	}
}

// makeDirs makes the directories that are the server's own, empty.
func (c *cluster) makeDirs() error {
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
	return nil
}

// initialize fills the data directory with an empty cluster.
func (c *cluster) initialize(ctx context.Context) error {
	if err := c.run(ctx, "initdb",
		"--pgdata="+c.dataDir(), "--username="+superuser, "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"); err != nil {
		return err
	}
	settings := maps.Clone(throwaway)
	maps.Copy(settings, c.settings)
	return c.configure(settings)
}

// run runs one of PostgreSQL's programs to its end. If the context ends first, the program is killed.
func (c *cluster) run(ctx context.Context, program string, args ...string) error {
	var output bytes.Buffer
	cmd := exec.CommandContext(ctx, filepath.Join(c.binDir, program), args...)
	c.prepare(cmd)
	cmd.Stdout, cmd.Stderr = &output, &output
	// Killing initdb alone lets the server it runs see the end of its input and finish in good order. If that were
	// killed as well it would leave shared memory behind. Wait waits for it too, as it holds the output's pipe.
	cmd.WaitDelay = stopLimit
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("run %s%s: %w", program, c.account, err)
	}
	c.watch("KILL", cmd.Process.Pid)
	err := cmd.Wait()
	c.unwatch()
	if ctx.Err() != nil {
		return fmt.Errorf("run %s: %w", program, ctx.Err())
	}
	if err != nil {
		return fmt.Errorf("run %s%s: %w, its output ends with:\n%s", program, c.account, err, lastLines(output.Bytes()))
	}
	return nil
}

// configure adds settings to postgresql.conf, where those at the end win.
func (c *cluster) configure(settings map[string]string) (err error) {
	settings = maps.Clone(settings)
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

// stop ends what is under way, and destroys the cluster.
func (c *cluster) stop() error {
	c.end()
	c.turn <- struct{}{} // and never given back: there is nothing left to do
	return c.destroy()
}

// destroy ends what runs and removes what there is, however far the start got.
func (c *cluster) destroy() error {
	c.end()
	var failures []error
	if p := c.latest(); p != nil {
		if err := p.quit(); err != nil {
			failures = append(failures, err)
		} else if p.killed() {
			c.reclaim()
		}
	}
	if c.gone != nil {
		c.gone()
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
	cmd.Env = append(cmd.Env, "LC_ALL=C") // messages that we understand
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
