package examples

import (
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"testing"
)

// modulePath is the module's that is replaced until it is published.
const modulePath = "github.com/pgretry/pgretry"

// programs are the folders that have one.
func programs(t *testing.T) []string {
	t.Helper()
	mains, err := filepath.Glob("*/main.go")
	if err != nil {
		t.Fatal(err)
	}
	names := make([]string, len(mains))
	for i, main := range mains {
		names[i] = filepath.Dir(main)
	}
	return names
}

// paste does with a folder what a reader would do: it makes an empty module, replaces
// ours in it as the README says, copies the folder into it and lets "go mod tidy" find
// the rest, in the versions that were tested. It returns the new folder.
func paste(t *testing.T, name string) string {
	t.Helper()
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), name)
	if err := os.CopyFS(dir, os.DirFS(name)); err != nil {
		t.Fatal(err)
	}
	// A folder that is a module of its own keeps that to itself, but for its name.
	module, versions := name, "."
	if _, err := os.Stat(filepath.Join(name, "go.mod")); err == nil {
		module, versions = modFile(t, name).Module.Path, name
		for _, file := range []string{"go.mod", "go.sum"} {
			if err := os.Remove(filepath.Join(dir, file)); err != nil {
				t.Fatal(err)
			}
		}
	}
	goCommand(t, dir, "mod", "init", module)
	edit := []string{"mod", "edit", "-replace", modulePath + "=" + root}
	for _, r := range modFile(t, versions).Require {
		edit = append(edit, "-require", r.Path+"@"+r.Version)
	}
	goCommand(t, dir, edit...)
	goCommand(t, dir, "mod", "tidy")
	return dir
}

// build returns the program of a folder, with the race detector if the tests have it.
func build(t *testing.T, dir string) string {
	t.Helper()
	binary := filepath.Join(dir, "program")
	args := []string{"build", "-o", binary}
	if info, ok := debug.ReadBuildInfo(); ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
		args = append(args, "-race")
	}
	goCommand(t, dir, append(args, ".")...)
	return binary
}

// moduleFile is what "go mod edit -json" says of a go.mod file.
type moduleFile struct {
	Module  struct{ Path string }
	Require []struct{ Path, Version string }
}

func modFile(t *testing.T, dir string) (file moduleFile) {
	t.Helper()
	if err := json.Unmarshal(goCommand(t, dir, "mod", "edit", "-json"), &file); err != nil {
		t.Fatal(err)
	}
	return file
}

// goCommand runs the go command in a folder, as if there were nothing above it, and
// returns what it prints.
func goCommand(t *testing.T, dir string, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("go %v: %v\n%s", args, err, out)
	}
	return out
}

// files returns the Go files below a folder with what is in them.
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	found := make(map[string]string)
	err := fs.WalkDir(os.DirFS(dir), ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || filepath.Ext(path) != ".go" {
			return err
		}
		content, err := os.ReadFile(filepath.Join(dir, path))
		found[path] = string(content)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}
