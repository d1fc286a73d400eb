package pgretry

import (
	"context"
	"encoding/binary"
	"net"
	"reflect"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/lib/pq"
)

// wire is the socket under a lib/pq connection. It knows what lib/pq does not tell:
// whether anything left that can have changed something, and whether the server has
// hung up while nobody was looking.
type wire struct {
	net.Conn
	acted atomic.Uint64 // bytes sent, but for those that certainly changed nothing
	peek  peeker

	flows bool    // there is more to read than lib/pq asks for at a time
	block *[]byte // that was read ahead, nil if there is none
	ahead []byte  // what of it is still to be given to lib/pq
}

const (
	// readAhead is how much is read at a time where much comes. lib/pq reads 4 KiB, which
	// costs a system call each.
	readAhead = 32 << 10
	// flowing is the size of a read that tells, if it is full, that much comes.
	flowing = 2 << 10
)

var blocks = sync.Pool{New: func() any { block := make([]byte, readAhead); return &block }}

func (w *wire) Read(b []byte) (int, error) {
	if w.block == nil {
		if !w.flows || len(b) >= readAhead {
			n, err := w.Conn.Read(b)
			w.flows = n == len(b) && n >= flowing
			return n, err
		}
		block := blocks.Get().(*[]byte)
		n, err := w.Conn.Read(*block)
		if n == 0 {
			blocks.Put(block)
			return 0, err
		}
		w.block, w.ahead = block, (*block)[:n]
		w.flows = n >= flowing
		// Should there be an error too, the next read has it again.
	}
	n := copy(b, w.ahead)
	if w.ahead = w.ahead[n:]; len(w.ahead) == 0 {
		blocks.Put(w.block)
		w.block, w.ahead = nil, nil
	}
	return n, nil
}

// pulse looks whether the server has hung up, or has something to say.
func (w *wire) pulse() pulse {
	if w.block != nil {
		return pulseWaiting
	}
	if p := w.peek.pulse(); p != pulseClosed {
		return p
	}
	return pulseDead // lib/pq closes what it has lost
}

func newWire(inner net.Conn) *wire {
	w := &wire{Conn: inner}
	if p := newPeeker(inner); p != nil {
		w.peek.raw = p.raw
	}
	return w
}

// newPeeker returns a peeker at a socket, nil if the system has none behind it.
func newPeeker(conn net.Conn) *peeker {
	socket, ok := conn.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return nil
	}
	return &peeker{raw: raw}
}

func (w *wire) Write(b []byte) (int, error) {
	n, err := w.Conn.Write(b)
	if n > 0 && !changesNothing(b) {
		w.acted.Add(uint64(n))
	}
	return n, err
}

// changesNothing says whether what is sent is nothing but Parse, Describe, Close, Flush,
// Sync and Terminate: lib/pq prepares a statement with arguments first, waits for the answer, and
// only then has it executed. Under TLS there is no telling; ciphertext begins with
// another byte.
func changesNothing(b []byte) bool {
	for len(b) > 0 {
		if len(b) < 5 {
			return false
		}
		switch b[0] {
		case 'P', 'D', 'C', 'H', 'S', 'X':
		default:
			return false
		}
		length := uint64(binary.BigEndian.Uint32(b[1:5])) + 1
		if length < 5 || length > uint64(len(b)) {
			return false
		}
		b = b[length:]
	}
	return true
}

// during makes a call that lib/pq would not end when the context does: then, and after a
// grace, the socket stops it.
func (w *wire) during(ctx context.Context, grace time.Duration, call func() error) error {
	if w == nil || ctx.Done() == nil {
		return call()
	}
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		// If there is no socket any more, the answer does not come either.
		_ = w.SetDeadline(time.Now().Add(grace))
	})
	err := call()
	if stop() {
		return err
	}
	<-ended
	return either(err, w.SetDeadline(time.Time{}))
}

// pulse is what a look at a socket tells.
type pulse uint8

const (
	pulseUnknown pulse = iota // there is no way to look
	pulseQuiet                // as an idle connection should be
	pulseWaiting              // the server has sent something
	pulseDead                 // the server has hung up
	pulseClosed               // the inner driver has, and told why
)

// wireDialer dials as lib/pq does by default, and leaves the socket with whoever has
// asked for it through the context.
type wireDialer struct{ dialer net.Dialer }

var (
	_ pq.Dialer        = wireDialer{}
	_ pq.DialerContext = wireDialer{}
)

type wireKey struct{}

// Dial is what pq.Dialer demands; lib/pq calls DialContext.
func (d wireDialer) Dial(network, address string) (net.Conn, error) {
	return d.DialContext(context.Background(), network, address)
}

// DialTimeout is what pq.Dialer demands; lib/pq calls DialContext.
func (d wireDialer) DialTimeout(network, address string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return d.DialContext(ctx, network, address)
}

// DialContext dials. Cancel requests go over sockets of their own, for which nobody
// asks.
func (d wireDialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	inner, err := d.dialer.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	asked, ok := ctx.Value(wireKey{}).(*dialing)
	if !ok {
		return inner, nil
	}
	w := newWire(inner)
	asked.dialed(w)
	return w, nil
}

// dialing is a connection that is being made. lib/pq does not end it when the context
// does.
type dialing struct {
	mu    sync.Mutex
	wire  *wire // of several hosts the last one
	ended bool
}

func (d *dialing) dialed(w *wire) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.wire = w
	d.stopIfEnded()
}

// end stops what is under way.
func (d *dialing) end() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ended = true
	d.stopIfEnded()
}

func (d *dialing) stopIfEnded() {
	if d.ended && d.wire != nil {
		_ = d.wire.Close() // so that lib/pq cannot give it another deadline
	}
}

// dialsWithWire returns a copy of a lib/pq connector that dials with a wireDialer, or
// false if the connector has a dialer of the user's own.
func dialsWithWire(given *pq.Connector) (*pq.Connector, bool) {
	dialer := reflect.ValueOf(given).Elem().FieldByName("dialer")
	if dialer.Kind() != reflect.Interface || dialer.IsNil() || dialer.Elem().Type().String() != "pq.defaultDialer" {
		return nil, false
	}
	own := *given
	own.Dialer(wireDialer{})
	return &own, true
}
