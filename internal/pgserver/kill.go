package pgserver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

// lingerLimit is when processes that outlive their postmaster are killed too. They look for it when they wait for
// something, and one that computes does not wait.
const lingerLimit = time.Second

// Kill ends the postmaster with SIGKILL. The server's other processes notice that and exit; those that have not after
// a second are killed as well. It returns when all are gone: nothing listens then, and the server is down until
// [Server.Restart]. Killing a server that is down is no error.
//
// A session in the middle of a COMMIT may complete it, and even say so, before it exits. What was committed with the
// setting synchronous_commit is there after Restart, even with fsync off; by default it is off, and the last moments'
// transactions are lost. See [WithSettings].
//
// The error is [ErrStopped] after [Server.Stop] and [ErrExternal] for an external server.
func (s *Server) Kill() error {
	return s.inTurn(context.Background(), "kill PostgreSQL", func(ctx context.Context, c *cluster) error {
		return c.kill(ctx, c.latest())
	})
}

func (c *cluster) kill(ctx context.Context, p *postmaster) error {
	poll := time.NewTicker(pollInterval)
	defer poll.Stop()
	next := func(what string) error {
		select {
		case <-poll.C:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("wait until %s: %w", what, ctx.Err())
		}
	}
	pid := p.cmd.Process.Pid
	select {
	case <-p.exited:
		return nil
	default:
	}

	// While it is suspended its processes cannot become more, but it would not understand the guard's QUIT either.
	c.watch("KILL", pid)
	defer c.unwatch() // it may have ended by itself, just before
	if err := suspend(p.cmd.Process); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return errors.Join(fmt.Errorf("suspend the postmaster: %w", err), p.murder())
	}
	for !suspended(pid) {
		if err := next("the postmaster is suspended"); err != nil {
			return errors.Join(err, p.murder())
		}
	}
	processes, err := children(pid)
	if err != nil {
		return errors.Join(fmt.Errorf("find the server's processes: %w", err), p.murder())
	}
	if err := p.murder(); err != nil {
		return err
	}
	deadline := time.Now().Add(lingerLimit)
	for _, process := range processes {
		for process.runs() {
			if time.Now().After(deadline) {
				if err := process.kill(); err != nil {
					return err
				}
			}
			if err := next("the server's processes are gone"); err != nil {
				return err
			}
		}
	}
	return nil
}

// murder ends the postmaster without its knowledge.
func (p *postmaster) murder() error {
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill the postmaster: %w", err)
	}
	<-p.exited
	return nil
}

// KillBackend ends one of the server's processes, such as that of a session (pg_backend_pid) or the checkpointer, with
// SIGKILL, and returns when it is gone. The server ends all other sessions then and recovers as after a crash, by
// itself, unless the setting restart_after_crash is off. For a moment it may still accept connections, which it breaks.
//
// A process that is killed while it writes may leave half a page behind. Tests of what survives should therefore turn
// the settings synchronous_commit and full_page_writes on, which are off by default. See [WithSettings].
//
// A process that is not the server's, or the postmaster itself, is an error. The error is [ErrExternal] for an external
// server.
func (s *Server) KillBackend(pid int) error {
	if s.cluster == nil {
		return fmt.Errorf("kill process %d: %w", pid, ErrExternal)
	}
	if err := s.cluster.latest().killChild(pid); err != nil {
		return fmt.Errorf("kill process %d: %w", pid, err)
	}
	return nil
}

func (p *postmaster) killChild(pid int) error {
	processes, err := children(p.cmd.Process.Pid)
	if err != nil {
		return fmt.Errorf("find the server's processes: %w", err)
	}
	select {
	case <-p.exited:
		return errors.New("the server is down") // and its process id may be another's
	default:
	}
	for _, process := range processes {
		if process.pid != pid {
			continue
		}
		if err := process.kill(); err != nil {
			return err
		}
		poll := time.NewTicker(pollInterval)
		defer poll.Stop()
		limit := time.NewTimer(stopLimit)
		defer limit.Stop()
		for process.runs() {
			select {
			case <-poll.C:
			case <-limit.C:
				return errors.New("it survives SIGKILL")
			}
		}
		return nil
	}
	return errors.New("it is no process of the server")
}
