// Package fetch gets PostgreSQL's binaries from the network for machines that have none, by way of
// github.com/fergusstrange/embedded-postgres.
//
// That library starts a server in one go and cannot be interrupted; only its download and its
// unpacking are wanted here. So they run in a process of their own, which can be killed at any
// moment, and the server itself is started by whoever asked for the binaries.
package fetch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	embeddedpostgres "github.com/fergusstrange/embedded-postgres"
)

// Version is the version of PostgreSQL that is fetched: the newest that embedded-postgres knows.
const Version = string(embeddedpostgres.V18)

// killDelay is how long the child's pipes may stay open after it was killed.
const killDelay = 500 * time.Millisecond

// Fetcher fetches once and removes at Close what it unpacked. The archive itself stays in the
// user's cache directory.
type Fetcher struct {
	// Command is the program, with arguments, that calls Unpack with the two directories which
	// Fetch appends to it.
	Command []string
	// CacheDir is where archives are kept. Empty means none is kept.
	CacheDir string

	mu  sync.Mutex
	dir string
}

// Fetch returns a directory that contains initdb and postgres. It downloads the archive unless the
// cache has it.
func (f *Fetcher) Fetch(ctx context.Context) (binDir string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dir != "" {
		return filepath.Join(f.dir, programs), nil
	}
	dir, err := os.MkdirTemp("", "pgretry-binaries-")
	if err != nil {
		return "", fmt.Errorf("fetch PostgreSQL %s: %w", Version, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("fetch PostgreSQL %s: %w", Version, err), os.RemoveAll(dir))
		}
	}()
	// The server runs as somebody else if this is root.
	if err := os.Chmod(dir, 0o755); err != nil {
		return "", err
	}
	archives := filepath.Join(dir, "archives")
	if err := os.Mkdir(archives, 0o755); err != nil {
		return "", err
	}
	if err := f.fromCache(archives); err != nil {
		return "", err
	}
	if err := f.unpack(ctx, archives, dir); err != nil {
		return "", err
	}
	if err := f.intoCache(archives); err != nil {
		return "", err
	}
	if err := os.RemoveAll(archives); err != nil {
		return "", err
	}
	f.dir = dir
	return filepath.Join(dir, programs), nil
}

// Close removes the binaries. The server must have been stopped before.
func (f *Fetcher) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dir == "" {
		return nil
	}
	err := os.RemoveAll(f.dir)
	f.dir = ""
	if err != nil {
		return fmt.Errorf("remove the fetched binaries: %w", err)
	}
	return nil
}

func (f *Fetcher) unpack(ctx context.Context, archives, dir string) error {
	child := exec.CommandContext(ctx, f.Command[0], append(f.Command[1:len(f.Command):len(f.Command)], archives, dir)...)
	child.WaitDelay = killDelay
	// embedded-postgres leaves a log file behind in the directory for temporary files.
	child.Env = append(os.Environ(), "TMPDIR="+archives)
	if output, err := child.CombinedOutput(); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if said := strings.TrimSpace(string(output)); said != "" {
			return errors.New(said)
		}
		return err
	}
	return nil
}

// fromCache puts a cached archive where embedded-postgres looks for it.
func (f *Fetcher) fromCache(archives string) error {
	if f.CacheDir == "" {
		return nil
	}
	cached, err := filepath.Glob(filepath.Join(f.CacheDir, archivePattern))
	if err != nil {
		return err
	}
	for _, archive := range cached {
		if err := os.Symlink(archive, filepath.Join(archives, filepath.Base(archive))); err != nil {
			return err
		}
	}
	return nil
}

// intoCache keeps a downloaded archive. It is renamed into its place, so that no other run sees a
// half of it.
func (f *Fetcher) intoCache(archives string) error {
	if f.CacheDir == "" {
		return nil
	}
	downloaded, err := filepath.Glob(filepath.Join(archives, archivePattern))
	if err != nil {
		return err
	}
	for _, archive := range downloaded {
		if info, err := os.Lstat(archive); err != nil || !info.Mode().IsRegular() {
			if err != nil {
				return err
			}
			continue // it came from the cache
		}
		if err := os.MkdirAll(f.CacheDir, 0o755); err != nil {
			return err
		}
		content, err := os.ReadFile(archive)
		if err != nil {
			return err
		}
		partial, err := os.CreateTemp(f.CacheDir, "partial-")
		if err != nil {
			return err
		}
		_, err = partial.Write(content)
		err = errors.Join(err, partial.Close())
		if err == nil {
			err = os.Rename(partial.Name(), filepath.Join(f.CacheDir, filepath.Base(archive)))
		}
		if err != nil {
			return errors.Join(err, os.Remove(partial.Name()))
		}
	}
	return nil
}
