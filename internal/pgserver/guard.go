package pgserver

import (
	"errors"
	"fmt"
	"io"
	"os/exec"
	"sync"
)

// guardScript waits until the pipe from its parent closes, whatever ends the parent, and cleans up then: nothing
// that is part of the parent can do that after a panic in another goroutine or a kill. Each line of its input is the
// id of the process to end, empty if there is none; "done" says that there is nothing to clean up.
const guardScript = `
PATH=/usr/bin:/bin
pid=
while read -r line; do
	case $line in
	done) exit 0 ;;
	*) pid=$line ;;
	esac
done
if [ -n "$pid" ]; then
	kill -QUIT "$pid"
	tries=0
	while kill -0 "$pid" && [ $tries -lt 80 ]; do
		sleep 0.1 || sleep 1
		tries=$((tries + 1))
	done
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

// watch names the process that has to end with us; 0 is none.
func (g *guard) watch(pid int) error {
	line := "\n"
	if pid > 0 {
		line = fmt.Sprintf("%d\n", pid)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, err := io.WriteString(g.stdin, line); err != nil {
		return fmt.Errorf("tell the guard about process %d: %w", pid, err)
	}
	return nil
}

// release ends the guard when there is nothing left to clean up.
func (g *guard) release() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, err := io.WriteString(g.stdin, "done\n")
	if err := errors.Join(err, g.stdin.Close(), g.cmd.Wait()); err != nil {
		return fmt.Errorf("release the guard: %w", err)
	}
	return nil
}
