//go:build unix && !linux

package pgserver

import (
	"errors"
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

// isPostmaster reports whether the process is the postmaster of dataDir.
func isPostmaster(pid int, dataDir string) bool {
	command, err := exec.Command("ps", "-ww", "-o", "command=", "-p", strconv.Itoa(pid)).Output()
	return err == nil && strings.Contains(string(command), "postgres -D "+dataDir+" ")
}
