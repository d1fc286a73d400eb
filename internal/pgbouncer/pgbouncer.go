// Package pgbouncer runs a throwaway PgBouncer in front of a server, for tests.
package pgbouncer

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"time"

	_ "github.com/lib/pq" // asks whether it is ready
)

// ErrNotFound says that PgBouncer is not installed.
var ErrNotFound = errors.New("no pgbouncer in PATH or /usr/sbin: install Debian's package pgbouncer, or your system's")

// Bouncer is a running PgBouncer, until Stop.
type Bouncer struct {
	dsn     string
	dir     string
	command *exec.Cmd
	ended   chan error
}

// Start runs PgBouncer in front of the server that a DSN in URL form leads to. mode is
// its pool_mode, such as "transaction". It has size server connections per database and
// user.
func Start(ctx context.Context, dsn, mode string, size int) (*Bouncer, error) {
	binary, err := find()
	if err != nil {
		return nil, err
	}
	server, err := url.Parse(dsn)
	if err != nil {
		return nil, errors.New("pgbouncer: the server's DSN is no URL")
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "pgbouncer-")
	if err != nil {
		return nil, fmt.Errorf("make a directory for pgbouncer: %w", err)
	}
	b := &Bouncer{dir: dir, ended: make(chan error, 1)}
	config := filepath.Join(dir, "pgbouncer.ini")
	text := fmt.Sprintf(`[databases]
* = host=%s port=%s user=%s
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = any
pool_mode = %s
default_pool_size = %d
ignore_startup_parameters = extra_float_digits,search_path,options
logfile = %s
`, server.Hostname(), server.Port(), server.User.Username(), port, mode, size, filepath.Join(dir, "log"))
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil { //nolint:gosec // another user reads it
		return nil, errors.Join(fmt.Errorf("configure pgbouncer: %w", err), os.RemoveAll(dir))
	}
	b.command = exec.Command(binary, config) //nolint:gosec // what was found
	b.command.Stdout, b.command.Stderr = io.Discard, io.Discard
	if os.Geteuid() == 0 { // which it refuses to run as
		name, err := open(dir)
		if err != nil {
			return nil, errors.Join(err, os.RemoveAll(dir))
		}
		b.command.Args = append(b.command.Args, "-u", name)
	}
	if err := b.command.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start pgbouncer: %w", err), os.RemoveAll(dir))
	}
	go func() { b.ended <- b.command.Wait() }()
	server.Host = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	b.dsn = server.String()
	if err := b.ready(ctx); err != nil {
		return nil, errors.Join(err, b.Stop())
	}
	return b, nil
}

// DSN returns the server's DSN with PgBouncer's address.
func (b *Bouncer) DSN() string { return b.dsn }

// Stop ends PgBouncer and removes what belongs to it.
func (b *Bouncer) Stop() error {
	if err := b.command.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop pgbouncer: %w", err)
	}
	<-b.ended //nolint:errcheck // it was killed
	return os.RemoveAll(b.dir)
}

func (b *Bouncer) ready(ctx context.Context) error {
	db, err := sql.Open("postgres", b.dsn)
	if err != nil {
		return err
	}
	defer db.Close()
	pause := time.NewTicker(10 * time.Millisecond)
	defer pause.Stop()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		err := db.PingContext(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("pgbouncer does not answer: %w", err)
		case ended := <-b.ended:
			b.ended <- ended
			log, _ := os.ReadFile(filepath.Join(b.dir, "log")) // for the error's text only
			return fmt.Errorf("pgbouncer ended: %w\n%s", ended, log)
		case <-pause.C:
		}
	}
}

func find() (string, error) {
	if path, err := exec.LookPath("pgbouncer"); err == nil {
		return path, nil
	}
	const debian = "/usr/sbin/pgbouncer" // which is not in everybody's PATH
	if _, err := os.Stat(debian); err == nil {
		return debian, nil
	}
	return "", ErrNotFound
}

// open lets a user other than root use the directory, and returns its name.
func open(dir string) (name string, err error) {
	for _, name := range []string{"postgres", "nobody"} {
		account, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err := strconv.Atoi(account.Uid)
		if err != nil {
			return "", fmt.Errorf("look up user %s: %w", name, err)
		}
		return name, os.Chown(dir, uid, -1)
	}
	return "", errors.New("pgbouncer refuses to run as root, and there is neither a user postgres nor a user nobody")
}

func freePort() (int, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	port := listener.Addr().(*net.TCPAddr).Port
	return port, listener.Close()
}
