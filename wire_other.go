//go:build !unix

package pgretry

import "syscall"

// peeker cannot look into a socket here.
type peeker struct{ raw syscall.RawConn }

func (p *peeker) pulse() pulse { return pulseUnknown }
