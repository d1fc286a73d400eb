package pgserver

import (
	"context"
	"errors"
	"fmt"
)

var (
	// ErrStopped says that the server was stopped, before the call or while it ran.
	ErrStopped = errors.New("the server was stopped")
	// ErrExternal says that the server is not a cluster of our own: one that PGRETRY_DSN names is never restarted,
	// killed or promoted.
	ErrExternal = errors.New("the server that " + EnvDSN + " names is not ours to control")
)

// inTurn calls do when nobody else changes whether and how the cluster's server runs. The context of do ends when the
// server is told to stop, or after startLimit. What says in the error what was attempted.
func (s *Server) inTurn(ctx context.Context, what string, do func(context.Context, *cluster) error) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s: %w", what, err)
		}
	}()
	c := s.cluster
	if c == nil {
		return ErrExternal
	}
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	defer context.AfterFunc(c.life, cancel)()
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done():
	}
	if c.life.Err() != nil {
		return ErrStopped
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	err = do(ctx, c)
	if err != nil && c.life.Err() != nil {
		return fmt.Errorf("%w meanwhile: %w", ErrStopped, err)
	}
	return err
}
