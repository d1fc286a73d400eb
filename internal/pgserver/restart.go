package pgserver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

// ShutdownMode is how a server is told to shut down. The zero value is none.
type ShutdownMode uint8

const (
	// Fast rolls back the transactions under way, ends all sessions and writes a checkpoint. It waits for standbys to
	// have received everything.
	Fast ShutdownMode = iota + 1
	// Immediate ends all processes at once. The next start recovers from the log, as after a crash.
	Immediate
)

// Restart shuts the server down, if it runs, and starts it again on the same data, port and socket. It returns when
// the server accepts connections. After [Server.Kill] it is what brings the server back.
//
// If the context ends first, or anything else goes wrong, the server is down, and another Restart may bring it back.
// A start that is not done three minutes after the call is given up. While somebody else uses the port, Restart waits
// for its release.
//
// The error is [ErrStopped] after [Server.Stop] and [ErrExternal] for an external server.
func (s *Server) Restart(ctx context.Context, mode ShutdownMode) error {
	return s.inTurn(ctx, "restart PostgreSQL", func(ctx context.Context, c *cluster) error {
		if err := c.shutDown(ctx, mode); err != nil {
			return err
		}
		return c.relaunch(ctx)
	})
}

func (c *cluster) shutDown(ctx context.Context, mode ShutdownMode) error {
	p := c.latest()
	var err error
	switch mode {
	case Fast:
		err = p.cmd.Process.Signal(os.Interrupt)
	case Immediate:
		err = quit(p.cmd.Process)
	default:
		return fmt.Errorf("there is no shutdown mode %d", mode)
	}
	if err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("tell the postmaster to stop: %w", err)
	}
	select {
	case <-p.exited:
		return nil
	case <-ctx.Done():
		// It would end sometime. A server that may or may not run helps nobody.
		return errors.Join(fmt.Errorf("wait for the postmaster's end: %w", ctx.Err()), p.quit())
	}
}

// relaunch starts a server whose postmaster has ended. If it fails, no postmaster runs.
func (c *cluster) relaunch(ctx context.Context) error {
	poll := time.NewTicker(pollInterval)
	defer poll.Stop()
	for attempt := 1; ; attempt++ {
		err := c.launch(ctx)
		if err == nil {
			return nil
		}
		if !errors.Is(err, errPortTaken) && !errors.Is(err, errMemoryInUse) {
			return errors.Join(err, c.latest().quit())
		}
		if attempt == 1 {
			c.logf("pgserver: %v, waiting", err)
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			return fmt.Errorf("%w (last attempt: %w)", ctx.Err(), err)
		}
	}
}
