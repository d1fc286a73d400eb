package pgserver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"regexp"
	"slices"
)

// Option changes what [Start] starts. An invalid one makes Start return an error.
type Option func(*options) error

type options struct {
	settings map[string]string // what the caller asked for, without throwaway
	fetch    func(ctx context.Context) (binDir string, err error)
	logf     func(format string, args ...any)

	// What tests replace.
	installed []string // patterns of directories to look for binaries in, after PATH
	freePort  func() (int, error)
	unguarded bool
}

func resolve(opts []Option) (*options, error) {
	o := &options{
		settings:  map[string]string{},
		logf:      func(string, ...any) {},
		installed: installedPatterns,
		freePort:  freePort,
	}
	for _, opt := range opts {
		if err := opt(o); err != nil {
			return nil, fmt.Errorf("start PostgreSQL: %w", err)
		}
	}
	return o, nil
}

// throwaway are the settings of every cluster, unless the caller asks for others.
var throwaway = map[string]string{
	"fsync":              "off",
	"synchronous_commit": "off",
	"full_page_writes":   "off",
	"max_connections":    "200",
	// Keeps everything the server allocates in its directory, so that removing that removes all, and makes do with
	// the small /dev/shm of a container.
	"dynamic_shared_memory_type": "mmap",
}

var (
	settingName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.]*$`)

	// The cluster could not be reached, or not be found again, if these were changed.
	ownSettings = []string{"data_directory", "listen_addresses", "port", "unix_socket_directories"}
)

// WithSettings sets server settings, as in postgresql.conf: values carry their unit ("100ms"). Given more than once,
// later values win. Without it the server has its defaults, except fsync, synchronous_commit and full_page_writes,
// which are off, and max_connections, which is 200.
//
// Where PGRETRY_DSN is used, settings become connection parameters of [Server.DSN]. One that a session cannot change
// must already have the value asked for, or Start returns an error.
func WithSettings(settings map[string]string) Option {
	settings = maps.Clone(settings)
	return func(o *options) error {
		for name := range settings {
			if !settingName.MatchString(name) {
				return fmt.Errorf("%q is not the name of a setting", name)
			}
			if slices.Contains(ownSettings, name) {
				return fmt.Errorf("the setting %s cannot be changed", name)
			}
		}
		maps.Copy(o.settings, settings)
		return nil
	}
}

// WithFetch names a function that fetches PostgreSQL when none is installed, and returns the directory that holds
// initdb and postgres. Under root that directory must be accessible to the user postgres (or nobody).
func WithFetch(fetch func(ctx context.Context) (binDir string, err error)) Option {
	return func(o *options) error {
		if fetch == nil {
			return errors.New("the fetch function is nil")
		}
		o.fetch = fetch
		return nil
	}
}

// WithLogf names a function that is told what happens beside the caller's work, in the manner of [testing.TB.Logf]:
// leftovers found, ports taken, what could not be cleaned up. It may be called by several goroutines at once.
// Default: nobody is told.
func WithLogf(logf func(format string, args ...any)) Option {
	return func(o *options) error {
		if logf == nil {
			return errors.New("the log function is nil")
		}
		o.logf = logf
		return nil
	}
}

// freePort returns a port that was free a moment ago: whoever uses it must be prepared to find it taken.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	if err := l.Close(); err != nil {
		return 0, fmt.Errorf("release port %d: %w", port, err)
	}
	return port, nil
}
