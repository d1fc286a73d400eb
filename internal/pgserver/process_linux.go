package pgserver

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// bounds returns an owner that says only where process ids have their present meaning.
func bounds() owner {
	var o owner
	if boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id"); err == nil {
		o.Boot = strings.TrimSpace(string(boot))
	}
	if namespace, err := os.Readlink("/proc/self/ns/pid"); err == nil {
		o.Namespace = namespace
	}
	return o
}

// Fields of a process's state, counted from the one after its name. See proc_pid_stat(5).
const (
	fieldState  = 0
	fieldParent = 1
	fieldStart  = 19
)

// processFields returns the state of a process that has not ended.
func processFields(pid int) (fields []string, exists bool) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, false
	}
	// The second field, the program's name in parentheses, may hold anything.
	_, after, found := cutLast(string(stat), ")")
	fields = strings.Fields(after)
	if !found || len(fields) <= fieldStart {
		return nil, false
	}
	switch fields[fieldState] {
	case "Z", "X":
		return nil, false // ended, and only its parent has not asked yet
	}
	return fields, true
}

// processStart returns when the process started, in clock ticks since the system did, and whether it still runs.
func processStart(pid int) (started string, exists bool) {
	fields, exists := processFields(pid)
	if !exists {
		return "", false
	}
	return fields[fieldStart], true
}

// children returns the child processes of a process.
func children(parent int) ([]process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var found []process
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue // not a process
		}
		if fields, exists := processFields(pid); exists && fields[fieldParent] == strconv.Itoa(parent) {
			found = append(found, process{pid: pid, started: fields[fieldStart]})
		}
	}
	return found, nil
}

// suspended reports whether the process does not run at present, or no longer exists.
func suspended(pid int) bool {
	fields, exists := processFields(pid)
	return !exists || fields[fieldState] == "T"
}

func cutLast(s, separator string) (before, after string, found bool) {
	if i := strings.LastIndex(s, separator); i >= 0 {
		return s[:i], s[i+len(separator):], true
	}
	return s, "", false
}

// isPostmaster reports whether the process is the postmaster of dataDir.
func isPostmaster(pid int, dataDir string) bool {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return false
	}
	args := strings.Split(string(bytes.TrimRight(line, "\x00")), "\x00")
	i := slices.Index(args, "-D")
	if filepath.Base(args[0]) != "postgres" || i < 0 || i+1 >= len(args) || args[i+1] != dataDir {
		return false
	}
	// A postmaster works in its data directory. Only its own user and root can see that.
	cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
	return err != nil || cwd == dataDir
}
