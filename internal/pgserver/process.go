package pgserver

import (
	"errors"
	"fmt"
	"os"
)

// process is a process that is not our child. When it started tells it from others with its id, where the system can
// tell that.
type process struct {
	pid     int
	started string
}

// runs reports whether the process has not ended.
func (p process) runs() bool {
	started, exists := processStart(p.pid)
	return exists && started == p.started
}

// kill ends the process with SIGKILL. One that has ended is no error.
func (p process) kill() error {
	// Where the system can, this holds on to the process, so that a successor with its id is not hit.
	handle, err := os.FindProcess(p.pid)
	if err != nil {
		return fmt.Errorf("find process %d: %w", p.pid, err)
	}
	defer handle.Release() //nolint:errcheck // frees the handle, cannot fail
	if !p.runs() {
		return nil
	}
	if err := handle.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill process %d: %w", p.pid, err)
	}
	return nil
}
