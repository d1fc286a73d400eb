package faultproxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
)

// Proxy listens for clients and connects each to the server. Its methods are safe for concurrent use.
type Proxy struct {
	network, address string
	listener         *net.TCPListener
	rule             atomic.Pointer[Rule]
	close            func() error

	ctx     context.Context // done when the proxy closes
	cancel  context.CancelFunc
	running sync.WaitGroup

	mu        sync.Mutex
	closed    bool
	refusing  bool
	accepted  int
	acceptErr error
	conns     map[*conn]struct{}
}

// Start starts a proxy to the server at the address, a "host:port" for the networks "tcp", "tcp4" and "tcp6", a path
// for "unix". It listens on a free TCP port of 127.0.0.1. A nil rule forwards everything. The server need not be there
// yet: a client that comes while it cannot be reached meets a connection that ends at once.
func Start(network, address string, rule Rule) (*Proxy, error) {
	switch network {
	case "tcp", "tcp4", "tcp6", "unix":
	default:
		return nil, fmt.Errorf("start a proxy to %s: network %q has no streams", address, network)
	}
	listener, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, fmt.Errorf("start a proxy to %s: %w", address, err)
	}
	p := &Proxy{network: network, address: address, listener: listener, conns: make(map[*conn]struct{})}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.close = sync.OnceValue(p.shutDown)
	p.SetRule(rule)
	p.running.Go(p.accept)
	return p, nil
}

// Addr returns the "host:port" that clients connect to.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// SetRule sets the rule for messages from now on. A nil rule forwards everything.
func (p *Proxy) SetRule(rule Rule) { p.rule.Store(&rule) }

// CutAll cuts every connection that is under way, stalled ones included, and returns how many. When it returns, nothing
// more is forwarded and the clients' sides have ended, in a reset if asked for. What a black hole left open at the
// server is not touched.
func (p *Proxy) CutAll(reset bool) int {
	return p.count(func(c *conn) bool { return c.cut(reset) })
}

// Refuse makes the proxy close new connections as soon as it has accepted them, or stop doing so.
func (p *Proxy) Refuse(refuse bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refusing = refuse
}

// Release lets stalled connections go on, and closes what black holes left open at the server.
func (p *Proxy) Release() {
	p.count(func(c *conn) bool { c.release(); return true })
}

// Open returns how many connections are under way: accepted, perhaps stalled, and neither cut, nor fallen into a black
// hole, nor closed by the server. One that the client closed counts until the server has closed it too.
func (p *Proxy) Open() int { return p.count((*conn).open) }

// Accepted returns how many connections have been accepted so far, refused ones and cancel requests included.
func (p *Proxy) Accepted() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.accepted
}

// Close cuts every connection, black holes included, and waits until nothing of the proxy is running. Peers that do not
// close their side in turn make it wait for half a second, a rule that does not return for as long as that takes. It
// returns what made the proxy stop accepting connections, if that was not Close itself. Later calls return the same.
func (p *Proxy) Close() error { return p.close() }

func (p *Proxy) shutDown() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.cancel()
	err := p.listener.Close()
	p.count(func(c *conn) bool { c.abandon(); return true })
	p.running.Wait()
	if err := errors.Join(p.acceptErr, err); err != nil {
		return fmt.Errorf("close the proxy: %w", err)
	}
	return nil
}

// count returns for how many connections the function is true.
func (p *Proxy) count(do func(*conn) bool) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for c := range p.conns {
		if do(c) {
			n++
		}
	}
	return n
}

// accept accepts connections until the listener is closed.
func (p *Proxy) accept() {
	for {
		client, err := p.listener.AcceptTCP()
		p.mu.Lock()
		switch {
		case p.closed:
			p.mu.Unlock()
			if err == nil {
				_ = client.Close() // nobody has used it
			}
			return
		case err != nil:
			p.acceptErr = err
			p.mu.Unlock()
			return
		}
		p.accepted++
		c := newConn(p, p.accepted, client)
		if p.refusing {
			c.cut(false)
		}
		p.conns[c] = struct{}{}
		p.mu.Unlock()
		p.running.Go(func() { p.serve(c) })
	}
}

func (p *Proxy) serve(c *conn) {
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.conns, c)
	}()
	c.run()
}

// dial connects to the server.
func (p *Proxy) dial(ctx context.Context) (stream, error) {
	var dialer net.Dialer
	server, err := dialer.DialContext(ctx, p.network, p.address)
	if err != nil {
		return nil, err
	}
	return server.(stream), nil
}
