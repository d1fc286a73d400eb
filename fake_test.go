package pgretry

import (
	"net"
	"os"
	"syscall"
)

// errConnRefused is what dialing a port gives on which nobody listens.
var errConnRefused = &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
