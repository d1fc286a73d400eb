package pgserver

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// ownerFile is the record, in a cluster's directory, of the process that made it.
const ownerFile = "owner"

// unclaimedLimit is the age from which a directory without a readable record is taken for a leftover. A live one has
// its record within moments.
const unclaimedLimit = 10 * time.Minute

// owner identifies a process beyond its end. What a system cannot tell is empty.
type owner struct {
	PID int `json:"pid"`
	// Started tells processes with the same id apart.
	Started string `json:"started,omitempty"`
	// Boot is the system's run in which the process id has its meaning.
	Boot string `json:"boot,omitempty"`
	// Namespace is the container (if any) in which the process id has its meaning.
	Namespace string `json:"namespace,omitempty"`
}

// alive reports whether the process may still run.
func (o owner) alive() bool {
	here := bounds()
	if o.Boot != here.Boot {
		return false
	}
	if o.Namespace != here.Namespace {
		return true // not ours to judge: seen from here, processes of other containers do not exist
	}
	started, exists := processStart(o.PID)
	return exists && started == o.Started
}

// claim records this process as the owner of dir, all of it or nothing.
func claim(dir string) error {
	self := bounds()
	self.PID = os.Getpid()
	self.Started, _ = processStart(self.PID)
	record, err := json.Marshal(self)
	if err != nil {
		return fmt.Errorf("record the cluster's owner: %w", err)
	}
	temporary := filepath.Join(dir, ownerFile+".new")
	if err := os.WriteFile(temporary, append(record, '\n'), 0o600); err != nil {
		return fmt.Errorf("record the cluster's owner: %w", err)
	}
	if err := os.Rename(temporary, filepath.Join(dir, ownerFile)); err != nil {
		return fmt.Errorf("record the cluster's owner: %w", err)
	}
	return nil
}

// sweep removes the clusters in base whose owner is gone, with their postmasters. Only this user's are looked at:
// a record in somebody else's directory says what they like. Failures are told, but are no reason not to start.
func sweep(ctx context.Context, base string, logf func(string, ...any)) {
	entries, err := os.ReadDir(base)
	if err != nil {
		logf("pgserver: look for leftovers: %v", err)
		return
	}
	for _, entry := range entries {
		if ctx.Err() != nil {
			return
		}
		dir := filepath.Join(base, entry.Name())
		if !isClusterDir(entry.Name()) || !abandoned(dir) {
			continue
		}
		logf("pgserver: removing %s, left by a process that is gone", dir)
		if err := removeLeftover(ctx, dir); err != nil {
			logf("pgserver: remove leftover: %v", err)
		}
	}
}

// abandoned reports whether dir is a cluster of this user that nobody uses.
func abandoned(dir string) bool {
	info, err := os.Lstat(dir)
	if err != nil || !info.IsDir() || !ownFile(info) {
		return false
	}
	record, err := os.ReadFile(filepath.Join(dir, ownerFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false
	}
	var o owner
	if json.Unmarshal(record, &o) != nil || o.PID <= 0 {
		return time.Since(info.ModTime()) > unclaimedLimit
	}
	return !o.alive()
}

func removeLeftover(ctx context.Context, dir string) error {
	dataDir := filepath.Join(dir, "data")
	pid, err := postmasterPID(dataDir)
	if err != nil {
		return err
	}
	if pid > 0 {
		if err := endPostmaster(ctx, pid, dataDir); err != nil {
			return err
		}
	}
	return removeDir(dir)
}

// postmasterPID reads the process id in the lock file of dataDir. It is 0 if there is no file, or if the file is that
// of another directory.
func postmasterPID(dataDir string) (_ int, err error) {
	file, err := os.Open(filepath.Join(dataDir, "postmaster.pid"))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("look for a running server: %w", err)
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	lines := bufio.NewScanner(file)
	lines.Scan()
	pid, err := strconv.Atoi(strings.TrimSpace(lines.Text()))
	lines.Scan()
	if err != nil || pid <= 1 || lines.Text() != dataDir {
		return 0, nil
	}
	return pid, nil
}

// endPostmaster ends the process pid if it is the postmaster of dataDir: ids are reused, and the lock file stays
// behind when a server is killed.
func endPostmaster(ctx context.Context, pid int, dataDir string) error {
	// Where the system can, this holds on to the process, so that a successor with its id is not hit.
	process, err := os.FindProcess(pid)
	if err != nil {
		return fmt.Errorf("find the postmaster: %w", err)
	}
	defer process.Release() //nolint:errcheck // frees the handle, cannot fail
	if !isPostmaster(pid, dataDir) {
		return nil
	}
	if err := quit(process); err != nil {
		return err
	}
	poll := time.NewTicker(pollInterval)
	defer poll.Stop()
	limit := time.NewTimer(stopLimit)
	defer limit.Stop()
	for isPostmaster(pid, dataDir) {
		select {
		case <-poll.C:
		case <-ctx.Done():
			return fmt.Errorf("wait for the postmaster's end: %w", ctx.Err())
		case <-limit.C:
			if err := process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
				return fmt.Errorf("kill the postmaster: %w", err)
			}
		}
	}
	return nil
}
