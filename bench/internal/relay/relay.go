// Package relay is a TCP connection that takes a while: what a client sends arrives at the server
// later, so that every round trip is longer by that. The bytes of a message, and messages that
// follow each other, stay together, as on a real network.
package relay

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Relay listens on a free port of 127.0.0.1 and passes on what it receives.
type Relay struct {
	listener net.Listener
	server   string
	delay    time.Duration
	over     chan struct{} // closed by Close

	mu    sync.Mutex
	ended bool
	conns map[net.Conn]bool
	group sync.WaitGroup
}

// Start starts a relay to the server at a "host:port" that makes each round trip longer by delay.
func Start(server string, delay time.Duration) (*Relay, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	r := &Relay{listener: listener, server: server, delay: delay, over: make(chan struct{}), conns: map[net.Conn]bool{}}
	r.group.Go(r.accept)
	return r, nil
}

// Address returns the "host:port" that clients connect to.
func (r *Relay) Address() string { return r.listener.Addr().String() }

// Close ends every connection and waits until nothing of the relay is running. Later calls do
// nothing.
func (r *Relay) Close() error {
	r.mu.Lock()
	if r.ended {
		r.mu.Unlock()
		return nil
	}
	r.ended = true
	close(r.over)
	err := r.listener.Close()
	for conn := range r.conns {
		err = errors.Join(err, ended(conn.Close()))
	}
	r.mu.Unlock()
	r.group.Wait()
	return err
}

func ended(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (r *Relay) accept() {
	for {
		client, err := r.listener.Accept()
		if err != nil {
			return // closed
		}
		server, err := net.Dial("tcp", r.server)
		if err != nil {
			_ = client.Close() // the client is told as it would be of a server that is not there
			continue
		}
		if !r.hold(client, server) {
			return
		}
		r.group.Go(func() {
			r.late(server, client)
			r.release(client, server)
		})
		r.group.Go(func() {
			_, _ = io.Copy(client, server) // how it ended, the peers know
			r.release(client, server)
		})
	}
}

// hold remembers connections for Close. It closes them and returns false if Close was before.
func (r *Relay) hold(conns ...net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, conn := range conns {
		if r.ended {
			_ = conn.Close()
			continue
		}
		r.conns[conn] = true
	}
	return !r.ended
}

func (r *Relay) release(conns ...net.Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, conn := range conns {
		delete(r.conns, conn)
		_ = conn.Close()
	}
}

type chunk struct {
	bytes []byte
	due   time.Time
}

// late copies from client to server, each piece when its time has come.
func (r *Relay) late(server, client net.Conn) {
	if r.delay == 0 {
		_, _ = io.Copy(server, client)
		return
	}
	const inFlight = 64
	chunks := make(chan chunk, inFlight)
	free := make(chan []byte, inFlight)
	r.group.Go(func() {
		defer close(chunks)
		for {
			var buffer []byte
			select {
			case buffer = <-free:
			default:
				buffer = make([]byte, 32<<10)
			}
			n, err := client.Read(buffer)
			if n > 0 {
				chunks <- chunk{buffer[:n], time.Now().Add(r.delay)}
			}
			if err != nil {
				return
			}
		}
	})
	timer := time.NewTimer(r.delay)
	defer timer.Stop()
	broken := false
	for c := range chunks {
		if !broken {
			timer.Reset(time.Until(c.due))
			select {
			case <-timer.C:
				_, err := server.Write(c.bytes)
				broken = err != nil
			case <-r.over:
				broken = true
			}
		}
		select {
		case free <- c.bytes[:cap(c.bytes)]:
		default:
		}
	}
}
