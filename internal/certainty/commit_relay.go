package certainty

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

// commitRelay is the address under which the primary is reached, whichever server that
// is.
type commitRelay struct {
	listener net.Listener
	all      sync.WaitGroup

	mu     sync.Mutex
	target string // "" while nobody is let in
	conns  map[net.Conn]bool
	closed bool
}

func startCommitRelay(target string) (*commitRelay, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("start a relay: %w", err)
	}
	r := &commitRelay{listener: listener, target: target, conns: make(map[net.Conn]bool)}
	r.all.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return // it was closed
			}
			r.all.Go(func() { r.serve(client) })
		}
	})
	return r, nil
}

func (r *commitRelay) address() string { return r.listener.Addr().String() }

// turnTo leads new connections to another server, or to none.
func (r *commitRelay) turnTo(target string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.target = target
}

// close ends all connections.
func (r *commitRelay) close() error {
	r.mu.Lock()
	r.closed = true
	for conn := range r.conns {
		_ = conn.Close() // its own goroutine closes it as well
	}
	r.mu.Unlock()
	err := r.listener.Close()
	r.all.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// enter keeps a connection to be closed by close, and returns the target.
func (r *commitRelay) enter(conn net.Conn) (target string, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || r.target == "" {
		return "", false
	}
	r.conns[conn] = true
	return r.target, true
}

func (r *commitRelay) leave(conn net.Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.conns, conn)
	_ = conn.Close() // there is nobody to tell
}

func (r *commitRelay) serve(client net.Conn) {
	defer r.leave(client)
	target, ok := r.enter(client)
	if !ok {
		return
	}
	server, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	defer r.leave(server)
	if _, ok := r.enter(server); !ok {
		return
	}
	var both sync.WaitGroup
	for _, way := range [][2]net.Conn{{client, server}, {server, client}} {
		both.Go(func() {
			// What was said before the end arrives, and then the end.
			_, _ = io.Copy(way[1], way[0])
			_ = way[1].(*net.TCPConn).CloseWrite()
		})
	}
	both.Wait()
}
