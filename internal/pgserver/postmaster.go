package pgserver

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/lib/pq"
)

var (
	// errPortTaken says that somebody else took the port between its choice and its use.
	errPortTaken = errors.New("the port is taken")
	// errMemoryInUse says that processes of the previous postmaster still run.
	errMemoryInUse = errors.New("the previous server's processes have not ended")
)

// reasons are the causes of a launch's failure that are worth another attempt, by what the log says of them.
var reasons = []struct {
	message string
	err     error
}{
	{"Address already in use", errPortTaken},
	{memoryInUse, errMemoryInUse},
}

const memoryInUse = "pre-existing shared memory block"

// postmaster is a server's main process, from its start on.
type postmaster struct {
	cmd      *exec.Cmd
	logStart int64 // where its part of the log begins
	exited   chan struct{}
	err      error // how it ended, once exited is closed
}

// launch starts a postmaster on c.port and waits until it answers. If it fails, the postmaster may still run.
func (c *cluster) launch(ctx context.Context) error {
	log, err := os.OpenFile(c.logFile(), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		return fmt.Errorf("open the server's log: %w", err)
	}
	defer log.Close() //nolint:errcheck // the server has its own descriptor of it
	logStart, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return fmt.Errorf("open the server's log: %w", err)
	}

	cmd := exec.Command(filepath.Join(c.binDir, "postgres"), "-D", c.dataDir(), "-p", strconv.Itoa(c.port))
	c.prepare(cmd)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("run postgres%s: %w", c.account, err)
	}
	p := &postmaster{cmd: cmd, logStart: logStart, exited: make(chan struct{})}
	c.mu.Lock()
	c.postmaster = p
	c.mu.Unlock()
	c.watch("QUIT", cmd.Process.Pid)
	go c.reap(p)

	db, err := c.connect()
	if err != nil {
		return err
	}
	err = c.await(ctx, p, "the server accepts connections", func() (err error) {
		c.version, err = serverVersion(ctx, db)
		return err
	})
	return errors.Join(err, db.Close())
}

// connect returns a database that leads to the server over its socket. In our own directory nobody else can answer,
// as they can on the port. The server opens the socket last: when it answers there, it has the port.
func (c *cluster) connect() (*sql.DB, error) {
	connector, err := pq.NewConnectorConfig(pq.Config{
		Host: c.socketDir(), Port: uint16(c.port), User: superuser, Database: database,
		SSLMode: pq.SSLModeDisable, ClientEncoding: "UTF8", Datestyle: "ISO, MDY", ConnectTimeout: 5 * time.Second,
	})
	if err != nil {
		return nil, fmt.Errorf("connect to the server: %w", err)
	}
	return sql.OpenDB(connector), nil
}

// await waits until attempt succeeds, p exits or the context ends.
func (c *cluster) await(ctx context.Context, p *postmaster, what string, attempt func() error) error {
	poll := time.NewTicker(pollInterval)
	defer poll.Stop()
	for {
		err := attempt()
		if err == nil {
			return nil
		}
		select {
		case <-poll.C:
		case <-p.exited:
			return c.exitedEarly(p)
		case <-ctx.Done():
			return fmt.Errorf("wait until %s: %w (last attempt: %w)", what, ctx.Err(), err)
		}
	}
}

// reap waits for the postmaster's end, so that its process id stays its own until the guard knows.
func (c *cluster) reap(p *postmaster) {
	p.err = p.cmd.Wait()
	c.unwatch()
	close(p.exited)
}

// exitedEarly returns why p exited without being told to.
func (c *cluster) exitedEarly(p *postmaster) error {
	log, err := os.ReadFile(c.logFile())
	if err != nil {
		return fmt.Errorf("the server exited (%w), and its log: %w", p.err, err)
	}
	log = log[min(p.logStart, int64(len(log))):]
	for _, reason := range reasons {
		if bytes.Contains(log, []byte(reason.message)) {
			return fmt.Errorf("start on port %d: %w", c.port, reason.err)
		}
	}
	return fmt.Errorf("the server exited (%w), its log ends with:\n%s", p.err, lastLines(log))
}

// quit ends the postmaster and, through it, its processes. What they had to write no longer matters.
func (p *postmaster) quit() error {
	if err := quit(p.cmd.Process); err != nil {
		return err
	}
	limit := time.NewTimer(stopLimit)
	defer limit.Stop()
	select {
	case <-p.exited:
		return nil
	case <-limit.C:
	}
	return p.murder()
}

// killed reports whether a signal that it could not handle ended the postmaster. It must have exited.
func (p *postmaster) killed() bool { return p.cmd.ProcessState.ExitCode() < 0 }

// reclaim removes the shared memory of a postmaster that was killed: the system keeps it, and has room for a few
// thousand such pieces only. A server removes what its predecessor left when it starts. A single one that finds itself
// a standby does so, and then refuses to go on, before it would recover anything.
func (c *cluster) reclaim() {
	if err := c.makeStandby(); err != nil {
		c.logf("pgserver: reclaim shared memory: %v", err)
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), stopLimit)
	defer cancel()
	poll := time.NewTicker(pollInterval)
	defer poll.Stop()
	for {
		var output bytes.Buffer
		cmd := exec.Command(filepath.Join(c.binDir, "postgres"), "--single", "-D", c.dataDir(), database)
		c.prepare(cmd)
		cmd.Stdout, cmd.Stderr = &output, &output
		// Its exit is never a success.
		err := cmd.Run()
		if bytes.Contains(output.Bytes(), []byte("standby mode is not supported by single-user servers")) {
			return
		}
		if !bytes.Contains(output.Bytes(), []byte(memoryInUse)) {
			c.logf("pgserver: reclaim shared memory: %v, and the output ends with:\n%s", err, lastLines(output.Bytes()))
			return
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			c.logf("pgserver: reclaim shared memory: %v", errMemoryInUse)
			return
		}
	}
}
