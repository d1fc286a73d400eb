//go:build unix

package pgretry

import (
	"errors"
	"syscall"
)

// peeker looks into a socket's receive buffer and takes nothing out of it.
type peeker struct {
	raw  syscall.RawConn // nil if it is no socket of the system's
	look func(fd uintptr) bool
	byte [1]byte
	n    int
	err  error
}

// pulse returns at once, whatever the socket does.
func (p *peeker) pulse() pulse {
	if p.raw == nil {
		return pulseUnknown
	}
	if p.look == nil {
		p.look = func(fd uintptr) bool {
			for {
				p.n, _, p.err = syscall.Recvfrom(int(fd), p.byte[:], syscall.MSG_PEEK)
				if !errors.Is(p.err, syscall.EINTR) {
					return true // the socket does not block, and nobody waits for it to be readable
				}
			}
		}
	}
	if err := p.raw.Read(p.look); err != nil {
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
