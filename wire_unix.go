//go:build unix

package pgretry

import (
	"errors"
	"syscall"
)

// peeker looks into a socket's receive buffer and takes nothing out of it.
type peeker struct {
	raw  syscall.RawConn // nil if it is no socket of the system's
	look func(fd uintptr)
	byte [1]byte
	n    int
	err  error
}

// pulse returns at once, whatever the socket does, and whoever else reads from it: after a
// write that took long pgx leaves a goroutine behind that waits for the next bytes, which
// may come with the next query's answer only.
func (p *peeker) pulse() pulse {
	if p.raw == nil {
		return pulseUnknown
	}
	if p.look == nil {
		p.look = func(fd uintptr) {
			for {
				p.n, _, p.err = syscall.Recvfrom(int(fd), p.byte[:], syscall.MSG_PEEK)
				if !errors.Is(p.err, syscall.EINTR) {
					return // the socket does not block
				}
			}
		}
	}
	if err := p.raw.Control(p.look); err != nil {
		return pulseClosed
	}
	switch {
	case errors.Is(p.err, syscall.EAGAIN):
		return pulseQuiet
	case p.err != nil || p.n == 0:
		return pulseDead
	}
	return pulseWaiting
}
