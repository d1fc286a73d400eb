package faultproxy

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// linger is how long a client may take to read what is on its way after the connection was cut, and a server when the
// proxy closes.
const linger = 500 * time.Millisecond

// errTaken ends the pumps of a connection that was cut or fell into a black hole.
var errTaken = errors.New("the connection was taken away")

// stream is what TCP and Unix sockets have in common.
type stream interface {
	net.Conn
	CloseWrite() error
}

// phase is where a connection stands. [conn.turn] and [conn.release] change it.
type phase uint8

const (
	flowing   phase = iota
	stalled         // nothing passes until a release
	swallowed       // by a black hole: nothing passes any more, the server's side stays open until a release
	ended           // nothing passes any more
)

// nobody is the actor of phases that no message brought about.
const nobody Direction = 0

// conn is a client's connection and the one to the server that belongs to it.
type conn struct {
	proxy  *Proxy
	number int
	client stream

	ctx    context.Context // done when nothing passes any more
	cancel context.CancelFunc

	rules sync.Mutex // held while the rule is asked, up to the turn it asks for

	mu       sync.Mutex
	server   stream // nil until connected
	phase    phase
	actor    Direction // that of the message that brought the phase about: the only one that may still write
	reset    bool      // how to end the client's side
	resume   chan struct{}
	drained  bool // the pumps are done
	finished bool // the client has been told of the end
}

func newConn(p *Proxy, number int, client stream) *conn {
	c := &conn{proxy: p, number: number, client: client}
	c.ctx, c.cancel = context.WithCancel(p.ctx)
	return c
}

// run carries messages until both sides are closed.
func (c *conn) run() {
	defer c.cancel()
	server, err := c.proxy.dial(c.ctx)
	if err != nil {
		// The client sees what it would see of a server that takes no more connections.
		c.turn(ended, nobody, false)
		c.endClient()
		return
	}
	c.mu.Lock()
	c.server = server
	c.mu.Unlock()

	toServer := newPump(c, ToServer, c.client, server)
	toClient := newPump(c, ToClient, server, c.client)
	var sides sync.WaitGroup
	if c.pass(nobody) == nil {
		sides.Go(toServer.run)
		sides.Go(toClient.run)
		sides.Wait()
	}

	c.mu.Lock()
	c.drained = true
	c.mu.Unlock()
	sides.Go(c.endClient)
	c.endServer()
	sides.Wait()
}

// consult asks the rule about a message, and turns the connection before the message is forwarded, so that its answer
// cannot overtake the turn.
func (c *conn) consult(m Message) (Action, error) {
	c.rules.Lock()
	defer c.rules.Unlock()
	if err := c.pass(m.Direction); err != nil {
		return Action{}, err
	}
	rule := c.proxy.rule.Load()
	if *rule == nil {
		return Action{}, nil
	}
	action := (*rule)(m)
	turned := true
	switch action.Kind {
	case Cut:
		turned = c.turn(ended, m.Direction, action.Reset)
	case BlackHole:
		turned = c.turn(swallowed, m.Direction, action.Reset)
	case Stall:
		turned = c.turn(stalled, m.Direction, false)
	}
	if !turned {
		return Action{}, errTaken
	}
	return action, nil
}

// pass waits while the connection is stalled by another direction, and fails once it was taken away by another.
func (c *conn) pass(d Direction) error {
	for {
		c.mu.Lock()
		phase, actor, resume := c.phase, c.actor, c.resume
		c.mu.Unlock()
		switch {
		case phase == flowing || actor == d && d != nobody:
			return nil
		case phase != stalled:
			return errTaken
		}
		select {
		case <-resume:
		case <-c.ctx.Done():
			return errTaken
		}
	}
}

// released waits for the end of a stall, for the direction that brought it about.
func (c *conn) released() error {
	c.mu.Lock()
	resume := c.resume
	c.mu.Unlock()
	select {
	case <-resume:
		return nil
	case <-c.ctx.Done():
		return errTaken
	}
}

// taken is closed when nothing passes any more.
func (c *conn) taken() <-chan struct{} { return c.ctx.Done() }

// turn brings a phase about, unless the connection was taken away before, which it reports. The pump of the actor goes
// on, the others stop.
func (c *conn) turn(to phase, actor Direction, reset bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.phase == swallowed || c.phase == ended {
		return false
	}
	c.phase, c.actor, c.reset = to, actor, reset
	if to != ended {
		c.resume = make(chan struct{})
	}
	if to != stalled {
		c.cancel()
		c.expireLocked(actor, time.Unix(1, 0))
	}
	return true
}

// expireLocked limits what the pumps do at the sockets, except that of one direction.
func (c *conn) expireLocked(except Direction, at time.Time) {
	if c.server == nil || c.drained {
		return
	}
	// Sockets that are closed do not hold anybody up.
	if except != ToServer {
		_ = errors.Join(c.client.SetReadDeadline(at), c.server.SetWriteDeadline(at))
	}
	if except != ToClient {
		_ = errors.Join(c.server.SetReadDeadline(at), c.client.SetWriteDeadline(at))
	}
}

// release ends a stall or what a black hole left.
func (c *conn) release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch c.phase {
	case stalled:
		c.phase, c.actor = flowing, nobody
		close(c.resume)
	case swallowed:
		c.phase = ended
		close(c.resume)
	}
}

// cut ends the connection at once, unless it was taken away before, which it reports. The client is told before cut
// returns.
func (c *conn) cut(reset bool) bool {
	if !c.turn(ended, nobody, reset) {
		return false
	}
	c.tellClient()
	return true
}

// abandon sees to it that the connection ends soon, whatever it is at.
func (c *conn) abandon() {
	if c.cut(false) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.expireLocked(nobody, time.Now().Add(linger))
}

// open reports whether messages pass, now or after a release.
func (c *conn) open() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.phase == flowing || c.phase == stalled
}

// sourceEnded hands on that a peer sends no more.
func (c *conn) sourceEnded(d Direction) {
	if c.pass(d) != nil {
		return
	}
	if d == ToClient {
		// A server that closes has nothing more to hear. A client may still be listening.
		c.turn(ended, nobody, false)
		return
	}
	_ = c.server.CloseWrite() // it fails where the server is gone
}

// tellClient ends what is sent to the client.
func (c *conn) tellClient() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.finished {
		return
	}
	c.finished = true
	// All of it fails where the client is gone.
	tcp, ok := c.client.(*net.TCPConn)
	if c.reset && ok {
		_ = errors.Join(tcp.SetLinger(0), tcp.Close())
		return
	}
	_ = c.client.CloseWrite()
}

// endClient ends the client's side. What the client still sends is read for a while: left unread, it would turn the
// end into a reset.
func (c *conn) endClient() {
	c.tellClient()
	_ = c.client.SetReadDeadline(time.Now().Add(linger))
	_, _ = io.Copy(io.Discard, c.client)
	_ = c.client.Close()
}

// endServer ends the server's side, when a black hole lets it go. It waits for the server to close, and reads what it
// says until then: left unread, it would turn the end into a reset.
func (c *conn) endServer() {
	c.mu.Lock()
	hole, resume := c.phase == swallowed, c.resume
	c.mu.Unlock()
	if hole {
		select {
		case <-resume:
		case <-c.proxy.ctx.Done():
		}
	}
	_ = c.server.SetReadDeadline(time.Time{})
	_ = c.server.CloseWrite()
	limited := make(chan struct{})
	stop := context.AfterFunc(c.proxy.ctx, func() {
		defer close(limited)
		_ = c.server.SetReadDeadline(time.Now().Add(linger))
	})
	_, _ = io.Copy(io.Discard, c.server)
	if !stop() {
		<-limited
	}
	_ = c.server.Close()
}
