package pgserver

import (
	"errors"
	"fmt"
	"io"
	"os/exec"
	"sync"
)

// guardScript waits until the pipe from its parent closes, whatever ends the parent, and cleans up then: nothing
// that is part of the parent can do that after a panic in another goroutine or a kill. Each line of its input is a
// signal and the id of the process to end with it, "none" if there is no process, or "done" if there is nothing to
// clean up.
const guardScript = `
PATH=/usr/bin:/bin
signal=none pid=
while read -r s p; do
	[ "$s" = done ] && exit 0
	signal=$s pid=$p
done
if [ "$signal" != none ]; then
	kill -s "$signal" "$pid"
	tries=0
	while kill -0 "$pid" && [ $tries -lt 80 ]; do
		sleep 0.1 || sleep 1
		tries=$((tries + 1))
	done
	# The children of a killed initdb end by themselves.
	[ "$signal" = KILL ] && sleep 1
fi
rm -rf "$1" || { sleep 1; rm -rf "$1"; }
`

// guard is the shell that cleans up after us if we cannot.
type guard struct {
	cmd *exec.Cmd

	mu    sync.Mutex // two processes may end at once
	stdin io.WriteCloser
}

func startGuard(dir string) (*guard, error) {
	cmd := exec.Command("/bin/sh", "-c", guardScript, "pgserver-guard", dir)
	detach(cmd)
	cmd.Dir = "/"
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start the guard of %s: %w", dir, err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the guard of %s: %w", dir, err)
	}
	return &guard{cmd: cmd, stdin: stdin}, nil
}

// watch names the process that has to end with us, and the signal (QUIT, KILL) that does it.
func (g *guard) watch(signal string, pid int) error {
	return g.tell(fmt.Sprintf("%s %d", signal, pid))
}

// unwatch says that the process has ended: its id may soon be another's.
func (g *guard) unwatch() error { return g.tell("none") }

func (g *guard) tell(line string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, err := io.WriteString(g.stdin, line+"\n"); err != nil {
		return fmt.Errorf("tell the guard %q: %w", line, err)
	}
	return nil
}

// release ends the guard when there is nothing left to clean up.
func (g *guard) release() error {
	if err := errors.Join(g.tell("done"), g.stdin.Close(), g.cmd.Wait()); err != nil {
		return fmt.Errorf("release the guard: %w", err)
	}
	return nil
}
