package pgserver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// ErrNotFound says that there is no PostgreSQL server to use. The error's message says in one sentence where one was
// looked for and what to do.
var ErrNotFound = errors.New("no PostgreSQL server found")

// installedPatterns are the places where packages put the server's programs outside PATH.
var installedPatterns = []string{
	"/usr/lib/postgresql/*/bin",          // Debian, Ubuntu
	"/usr/pgsql-*/bin",                   // RPM
	"/opt/homebrew/opt/postgresql@*/bin", // Homebrew on ARM
	"/usr/local/opt/postgresql@*/bin",    // Homebrew on Intel
}

// findBinaries returns a directory with initdb and postgres.
func (o *options) findBinaries(ctx context.Context) (string, error) {
	// PATH is the user's own choice, so its order counts, not the version.
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		if filepath.IsAbs(dir) && holdsServer(dir) {
			return dir, nil
		}
	}
	var dirs []string
	for _, pattern := range o.installed {
		matches, err := filepath.Glob(pattern)
		if err != nil {
			return "", fmt.Errorf("look for PostgreSQL in %s: %w", pattern, err)
		}
		dirs = append(dirs, matches...)
	}
	slices.SortStableFunc(dirs, func(a, b string) int {
		return slices.Compare(versionIn(b), versionIn(a))
	})
	if i := slices.IndexFunc(dirs, holdsServer); i >= 0 {
		return dirs[i], nil
	}

	looked := fmt.Sprintf("looked for %s, and for initdb and postgres in PATH, %s", EnvDSN, strings.Join(o.installed, ", "))
	advice := fmt.Sprintf("install one (Debian: apt-get install postgresql) or set %s", EnvDSN)
	if o.fetch == nil {
		return "", fmt.Errorf("%w: %s; %s", ErrNotFound, looked, advice)
	}
	dir, err := o.fetch(ctx)
	if err != nil {
		return "", fmt.Errorf("%w: %s, and could not fetch one (%w); %s", ErrNotFound, looked, err, advice)
	}
	if !holdsServer(dir) {
		return "", fmt.Errorf("%w: %s, and what was fetched to %q has no initdb and postgres; %s", ErrNotFound, looked, dir, advice)
	}
	return dir, nil
}

// holdsServer reports whether dir has the two programs that make a cluster. Client packages have neither, and some
// distributions put only one of them in PATH.
func holdsServer(dir string) bool {
	for _, program := range []string{"initdb", "postgres"} {
		info, err := os.Stat(filepath.Join(dir, program))
		if err != nil || !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
			return false
		}
	}
	return true
}

var digits = regexp.MustCompile(`\d+`)

// versionIn returns the numbers in the last part but one of a path: 9, 6 for /usr/pgsql-9.6/bin.
func versionIn(binDir string) []int {
	var version []int
	for _, d := range digits.FindAllString(filepath.Base(filepath.Dir(binDir)), -1) {
		n, err := strconv.Atoi(d)
		if err != nil {
			n = 0 // longer than any version
		}
		version = append(version, n)
	}
	return version
}
