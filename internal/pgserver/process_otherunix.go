//go:build unix && !linux

package pgserver

import (
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

// bounds returns an owner that says only where process ids have their present meaning, which is not known here.
func bounds() owner { return owner{} }

// processStart reports whether the process exists. When it started is not known here.
func processStart(pid int) (started string, exists bool) {
	err := syscall.Kill(pid, 0)
	return "", err == nil || errors.Is(err, syscall.EPERM)
}

// children returns the child processes of a process.
func children(parent int) ([]process, error) {
	list, err := exec.Command("ps", "-A", "-o", "pid=,ppid=").Output()
	if err != nil {
		return nil, fmt.Errorf("run ps: %w", err)
	}
	var found []process
	for line := range strings.Lines(string(list)) {
		var pid, ppid int
		if _, err := fmt.Sscan(line, &pid, &ppid); err != nil {
			return nil, fmt.Errorf("understand ps: %w", err)
		}
		if ppid == parent {
			found = append(found, process{pid: pid})
		}
	}
	return found, nil
}

// suspended reports whether the process does not run at present, or no longer exists.
func suspended(pid int) bool {
	state, err := exec.Command("ps", "-o", "stat=", "-p", strconv.Itoa(pid)).Output()
	return err != nil || strings.HasPrefix(strings.TrimSpace(string(state)), "T")
}

// isPostmaster reports whether the process is the postmaster of dataDir.
func isPostmaster(pid int, dataDir string) bool {
	command, err := exec.Command("ps", "-ww", "-o", "command=", "-p", strconv.Itoa(pid)).Output()
	return err == nil && strings.Contains(string(command), "postgres -D "+dataDir+" ")
}
