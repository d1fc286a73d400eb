package pgserver

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

const (
	// dirPrefix begins the names of our directories, and of nobody else's.
	dirPrefix     = "pgretry-pg-"
	socketDirName = "s"

	// socketPathLimit is how long the path of a Unix socket may be where the limit is lowest (macOS; Linux has 107).
	socketPathLimit = 103
	longestSocket   = "/" + dirPrefix + "1234567890/" + socketDirName + "/.s.PGSQL.65535"

	fallbackBase = "/tmp"
)

// clusterBase returns the directory in which clusters are made: the system's for temporary files, unless that is
// too deep for a socket or out of the server's reach.
func clusterBase(a *account) (string, error) {
	base, err := filepath.EvalSymlinks(os.TempDir())
	if err == nil {
		base, err = filepath.Abs(base)
	}
	if err != nil {
		return "", fmt.Errorf("find the directory for temporary files: %w", err)
	}
	if len(base)+len(longestSocket) <= socketPathLimit && (a == nil || openToAll(base)) {
		return base, nil
	}
	if base, err = filepath.EvalSymlinks(fallbackBase); err != nil {
		return "", fmt.Errorf("find a directory for temporary files with a short name: %w", err)
	}
	return base, nil
}

// openToAll reports whether everybody may pass through dir and its parents.
func openToAll(dir string) bool {
	for {
		info, err := os.Stat(dir)
		if err != nil || info.Mode()&0o001 == 0 {
			return false
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return true
		}
		dir = parent
	}
}

// makeClusterDir makes a directory for a cluster in base, with a record of who owns it.
func makeClusterDir(base string) (string, error) {
	dir, err := os.MkdirTemp(base, dirPrefix+"*")
	if err != nil {
		return "", fmt.Errorf("make a directory for the cluster: %w", err)
	}
	if err := claim(dir); err != nil {
		return "", errors.Join(err, os.RemoveAll(dir))
	}
	return dir, nil
}

func isClusterDir(name string) bool { return strings.HasPrefix(name, dirPrefix) }
