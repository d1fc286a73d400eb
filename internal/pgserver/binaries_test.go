//go:build unix

package pgserver

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// nowhere makes a server impossible to find.
func nowhere(t *testing.T) Option {
	t.Helper()
	t.Setenv("PATH", "")
	return func(o *options) error {
		o.installed = []string{"/nonexistent/postgresql/*/bin", "/nonexistent/pgsql-*/bin"}
		return nil
	}
}

func TestNoServerIsSaidInOneSentence(t *testing.T) {
	ownTemp(t)
	_, err := Start(t.Context(), nowhere(t))
	if !errors.Is(err, ErrNotFound) {
		t.Fatalf("the error is not ErrNotFound: %v", err)
	}
	want := "start PostgreSQL: no PostgreSQL server found: looked for PGRETRY_DSN, and for initdb and postgres in PATH, " +
		"/nonexistent/postgresql/*/bin, /nonexistent/pgsql-*/bin; install one (Debian: apt-get install postgresql) or set PGRETRY_DSN"
	if err.Error() != want {
		t.Errorf("the error is\n%s\nnot\n%s", err, want)
	}
}

func TestFetchIsTheLastResort(t *testing.T) {
	ownTemp(t)
	o := must(resolve(nil))(t)
	installed := must(o.findBinaries(t.Context()))(t)
	fetched := 0
	fetch := WithFetch(func(context.Context) (string, error) { fetched++; return installed, nil })
	check(t, start(t, fetch).Stop())
	if fetched != 0 {
		t.Error("fetched although a server is installed")
	}
	server := start(t, nowhere(t), fetch)
	if fetched != 1 || server.BinDir() != installed {
		t.Errorf("fetched %d times, and ran what is in %s", fetched, server.BinDir())
	}
	check(t, answers(server.DSN()))
}

func TestFetchThatFailsIsPartOfTheSentence(t *testing.T) {
	ownTemp(t)
	offline := errors.New("offline")
	_, err := Start(t.Context(), nowhere(t), WithFetch(func(context.Context) (string, error) { return "", offline }))
	if !errors.Is(err, offline) || !errors.Is(err, ErrNotFound) {
		t.Errorf("the error is %v", err)
	}
	_, err = Start(t.Context(), nowhere(t), WithFetch(func(context.Context) (string, error) { return t.TempDir(), nil }))
	if !errors.Is(err, ErrNotFound) {
		t.Errorf("the error for an empty directory is %v", err)
	}
}

func TestNewestInstalledVersionIsChosenUnlessPathHasOne(t *testing.T) {
	root := t.TempDir()
	install := func(dir string, programs ...string) string {
		dir = filepath.Join(root, dir)
		check(t, os.MkdirAll(dir, 0o755))
		for _, program := range programs {
			check(t, os.WriteFile(filepath.Join(dir, program), nil, 0o755))
		}
		return dir
	}
	install("debian/9.6/bin", "initdb", "postgres")
	seventeen := install("pgsql-17/bin", "initdb", "postgres")
	install("debian/10/bin", "initdb", "postgres")
	install("debian/18/bin", "psql", "initdb") // not a server
	client := install("client", "psql")
	onPath := install("chosen", "initdb", "postgres")

	t.Setenv("PATH", client)
	o := &options{installed: []string{filepath.Join(root, "debian/*/bin"), filepath.Join(root, "pgsql-*/bin")}}
	if got := must(o.findBinaries(t.Context()))(t); got != seventeen {
		t.Errorf("chose %s", got)
	}
	t.Setenv("PATH", client+string(os.PathListSeparator)+onPath)
	if got := must(o.findBinaries(t.Context()))(t); got != onPath {
		t.Errorf("chose %s although PATH has another", got)
	}
}
