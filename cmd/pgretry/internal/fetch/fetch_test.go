package fetch_test

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/pgretry/pgretry/cmd/pgretry/internal/fetch"
)

// archive holds three shell scripts, bin/initdb, bin/postgres and bin/pg_ctl, that print their names:
// tar -cf - bin | xz.
//
//go:embed testdata/postgresql.txz
var archive []byte

// repositoryVariable makes the test binary be the child that unpacks from that repository.
const repositoryVariable = "PGRETRY_TEST_FETCH_FROM"

func TestMain(m *testing.M) {
	if repository := os.Getenv(repositoryVariable); repository != "" {
		if err := fetch.Unpack(repository, os.Args[1], os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// repository serves the archive as a Maven repository does: in a jar, beside its checksum.
type repository struct {
	*httptest.Server
	requests []string
}

func newRepository(t *testing.T, content []byte, checksum string) *repository {
	t.Helper()
	var jar bytes.Buffer
	w := zip.NewWriter(&jar)
	file, err := w.Create("postgres-any.txz")
	if err == nil {
		_, err = file.Write(content)
	}
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	if checksum == "" {
		checksum = fmt.Sprintf("%x", sha256.Sum256(jar.Bytes()))
	}
	r := &repository{}
	r.Server = httptest.NewServer(http.HandlerFunc(func(response http.ResponseWriter, request *http.Request) {
		r.requests = append(r.requests, request.URL.Path)
		body := jar.Bytes()
		if strings.HasSuffix(request.URL.Path, ".sha256") {
			body = []byte(checksum)
		}
		if _, err := response.Write(body); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(r.Close)
	return r
}

// newFetcher returns a fetcher from that repository, in a directory for temporary files of its own.
func newFetcher(t *testing.T, repository string) (f *fetch.Fetcher, temporary string) {
	t.Helper()
	temporary = t.TempDir()
	t.Setenv("TMPDIR", temporary)
	t.Setenv(repositoryVariable, repository)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return &fetch.Fetcher{Command: []string{self}, CacheDir: filepath.Join(t.TempDir(), "cache")}, temporary
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var names []string
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return names
}

func mustRun(t *testing.T, binDir string) {
	t.Helper()
	for _, program := range []string{"initdb", "postgres", "pg_ctl"} {
		output, err := exec.CommandContext(t.Context(), filepath.Join(binDir, program)).Output()
		if err != nil || strings.TrimSpace(string(output)) != program {
			t.Errorf("%s: %q, %v", program, output, err)
		}
	}
}

func TestFetchedBinariesCanBeRunUntilClose(t *testing.T) {
	r := newRepository(t, archive, "")
	f, temporary := newFetcher(t, r.URL)
	binDir, err := f.Fetch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	mustRun(t, binDir)
	if !strings.Contains(r.requests[0], "/"+fetch.Version+"/") {
		t.Errorf("it asked for %s, not for version %s", r.requests[0], fetch.Version)
	}
	if got := names(t, temporary); len(got) != 1 {
		t.Errorf("there are %v beside the binaries", got)
	}
	for dir := binDir; dir != temporary; dir = filepath.Dir(dir) {
		if info, err := os.Stat(dir); err != nil || info.Mode()&0o005 != 0o005 {
			t.Errorf("another user cannot reach %s: %v, %v", dir, info.Mode(), err)
		}
	}
	if again, err := f.Fetch(t.Context()); err != nil || again != binDir {
		t.Errorf("a second call gives %s, %v", again, err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if got := names(t, temporary); len(got) != 0 {
		t.Errorf("Close leaves %v", got)
	}
}

func TestAnArchiveIsDownloadedOnce(t *testing.T) {
	r := newRepository(t, archive, "")
	first, _ := newFetcher(t, r.URL)
	if _, err := first.Fetch(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if got := names(t, first.CacheDir); len(got) != 1 || !strings.Contains(got[0], fetch.Version) {
		t.Errorf("the cache holds %v", got)
	}
	r.Close()
	second, _ := newFetcher(t, r.URL)
	second.CacheDir = first.CacheDir
	binDir, err := second.Fetch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	mustRun(t, binDir)
	if err := second.Close(); err != nil {
		t.Error(err)
	}
	if got := names(t, first.CacheDir); len(got) != 1 {
		t.Errorf("the cache then holds %v", got)
	}
}

func TestAFailedFetchSaysWhyAndLeavesNothing(t *testing.T) {
	for _, test := range []struct {
		name     string
		content  []byte
		checksum string
		want     string
	}{
		{"wrong checksum", archive, strings.Repeat("0", 64), "checksums do not match"},
		{"not an archive", []byte("not an archive"), "", "extract"},
		{"truncated", archive[:len(archive)/2], "", "extract"},
	} {
		t.Run(test.name, func(t *testing.T) {
			f, temporary := newFetcher(t, newRepository(t, test.content, test.checksum).URL)
			_, err := f.Fetch(t.Context())
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), fetch.Version) {
				t.Errorf("got %v, want something with %q", err, test.want)
			}
			if got := slices.Concat(names(t, temporary), names(t, f.CacheDir)); len(got) != 0 {
				t.Errorf("it leaves %v", got)
			}
		})
	}
}

func TestAFetchIsInterruptedInTheMiddleOfItsDownload(t *testing.T) {
	asked, ended := make(chan struct{}), make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, request *http.Request) {
		close(asked)
		<-request.Context().Done() // the child's connection is closed when it is killed
		close(ended)
	}))
	t.Cleanup(server.Close)
	f, temporary := newFetcher(t, server.URL)
	interrupted := errors.New("interrupted")
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		<-asked
		cancel(interrupted)
	}()
	if _, err := f.Fetch(ctx); !errors.Is(err, interrupted) {
		t.Errorf("got %v, want %v", err, interrupted)
	}
	<-ended
	if got := slices.Concat(names(t, temporary), names(t, f.CacheDir)); len(got) != 0 {
		t.Errorf("it leaves %v", got)
	}
}
