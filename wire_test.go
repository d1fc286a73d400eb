package pgretry

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/lib/pq"
)

// farEnd is the server's end of a socket.
type farEnd struct {
	t        *testing.T
	listener net.Listener
	far      net.Conn
	near     *wire
	recorder *deadlineRecorder
}

func listenAlone(t *testing.T) *farEnd {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	e := &farEnd{t: t, listener: listener}
	t.Cleanup(func() {
		_ = listener.Close()
		if e.far != nil {
			_ = e.far.Close()
			_ = e.near.Close()
		}
	})
	return e
}

// dial makes the socket and returns the near end of it.
func (e *farEnd) dial(t *testing.T) *wire {
	t.Helper()
	near, err := net.Dial("tcp", e.listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if e.far, err = e.listener.Accept(); err != nil {
		t.Fatal(err)
	}
	e.near = newWire(near)
	return e.near
}

// sees returns when the near end sees what the far end did.
func (e *farEnd) sees(want pulse) {
	e.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); e.near.pulse() != want; {
		if time.Now().After(deadline) {
			e.t.Fatalf("the pulse is %d, want %d", e.near.pulse(), want)
		}
	}
}

func (e *farEnd) close() {
	e.t.Helper()
	if err := e.far.Close(); err != nil {
		e.t.Error(err)
	}
	e.sees(pulseDead)
}

func (e *farEnd) reset() {
	e.t.Helper()
	if err := e.far.(*net.TCPConn).SetLinger(0); err != nil {
		e.t.Error(err)
	}
	e.close()
}

func (e *farEnd) says(what string) {
	e.t.Helper()
	if _, err := e.far.Write([]byte(what)); err != nil {
		e.t.Error(err)
	}
	e.sees(pulseWaiting)
}

// deadlineRecorder notes the deadlines of a socket.
type deadlineRecorder struct {
	net.Conn
	mu  sync.Mutex
	all []time.Time
}

func (r *deadlineRecorder) SetDeadline(at time.Time) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, at)
	return r.Conn.SetDeadline(at)
}

// deadlines begins to note them.
func (e *farEnd) deadlines() func() []time.Time {
	e.recorder = &deadlineRecorder{Conn: e.near.Conn}
	e.near.Conn = e.recorder
	return func() []time.Time {
		e.recorder.mu.Lock()
		defer e.recorder.mu.Unlock()
		return e.recorder.all
	}
}

func TestAGlanceAtASocketTakesNothingOutOfIt(t *testing.T) {
	e := listenAlone(t)
	w := e.dial(t)
	if p := w.pulse(); p != pulseQuiet {
		t.Errorf("the pulse is %d before anything happened", p)
	}
	e.says("N")
	e.sees(pulseWaiting)
	got := make([]byte, 1)
	if _, err := io.ReadFull(w, got); err != nil || got[0] != 'N' {
		t.Errorf("read %q, %v", got, err)
	}
	e.sees(pulseQuiet)
	e.close()
}

func TestAGlanceAtASocketWaitsForNobodyWhoReadsFromIt(t *testing.T) {
	e := listenAlone(t)
	w := e.dial(t)
	reading, done := make(chan struct{}), make(chan error, 1)
	started := sync.OnceFunc(func() { close(reading) })
	go func() {
		heard := false
		done <- w.peek.raw.Read(func(uintptr) bool {
			defer func() { heard = true }()
			started()
			return heard // the first time there is nothing to read
		})
	}()
	<-reading
	glanced := make(chan pulse, 1)
	go func() { glanced <- w.pulse() }()
	select {
	case p := <-glanced:
		if p != pulseQuiet {
			t.Errorf("the pulse is %d", p)
		}
	case <-time.After(30 * time.Second):
		t.Error("the glance waits")
	}
	e.says("N")
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestASocketThatIsNoneHasNoPulse(t *testing.T) {
	near, far := net.Pipe()
	defer func() { _ = errors.Join(near.Close(), far.Close()) }()
	if p := newWire(near).pulse(); p != pulseUnknown {
		t.Errorf("the pulse is %d", p)
	}
	if p := (&tap{}).pulse(); p != pulseUnknown {
		t.Errorf("without a wire the pulse is %d", p)
	}
}

func TestAWireCountsWhatMayHaveChangedSomething(t *testing.T) {
	const (
		parse    = "P\x00\x00\x00\x08a\x00\x00\x00"
		describe = "D\x00\x00\x00\x06Sa"
		closes   = "C\x00\x00\x00\x06Sa"
		flush    = "H\x00\x00\x00\x04"
		sync     = "S\x00\x00\x00\x04"
		bind     = "B\x00\x00\x00\x04"
		query    = "Q\x00\x00\x00\x06a\x00"
		tls      = "\x17\x03\x03\x00\x10"
	)
	for _, c := range []struct {
		what string
		acts bool
	}{
		{"", false},
		{parse, false},
		{describe, false},
		{closes, false},
		{flush, false},
		{sync, false},
		{parse + describe + sync, false},
		{query, true},
		{bind, true},
		{parse + bind + sync, true},
		{parse + sync + query, true},
		{"P", true},
		{"P\x00\x00\x00", true},
		{parse[:8], true},
		{parse + "S\x00\x00", true},
		{"P\x00\x00\x00\x03", true},
		{"P\xff\xff\xff\xff", true},
		{"S\x00\x00\x00\x00", true},
		{tls, true},
		{"\x00\x00\x00\x08\x04\xd2\x16\x2f", true},
	} {
		if got := !changesNothing([]byte(c.what)); got != c.acts {
			t.Errorf("%q may have changed something: %t", c.what, got)
		}
		e := listenAlone(t)
		w := e.dial(t)
		if _, err := w.Write([]byte(c.what)); err != nil {
			t.Fatal(err)
		}
		if got := w.acted.Load() != 0; got != c.acts {
			t.Errorf("%q counts: %t", c.what, got)
		}
	}
}

func TestAWireCountsWhatLeftOfAWriteThatFailed(t *testing.T) {
	w := newWire(shortWriter{})
	if n, err := w.Write([]byte("Q\x00\x00\x00\x06a\x00")); n != 3 || err == nil || w.acted.Load() != 3 {
		t.Errorf("%d bytes are written, %d count, %v", n, w.acted.Load(), err)
	}
}

// shortWriter is a connection that breaks after three bytes.
type shortWriter struct{ net.Conn }

func (shortWriter) Write(b []byte) (int, error) { return min(3, len(b)), io.ErrClosedPipe }

func TestWhatWasNotSentIsKnownOnlyOfDriversThatTell(t *testing.T) {
	for _, c := range []struct {
		name string
		tap  tap
		want bool
	}{
		{"lib/pq with a dialer of its own, that works", tap{libPQ: true, validator: valid(true)}, false},
		{"lib/pq with a dialer of its own, given up before", tap{libPQ: true, validator: valid(false)}, true},
		{"pgx", tap{pgx: true, validator: valid(false)}, false},
		{"another driver", tap{validator: valid(false)}, false},
	} {
		if got := c.tap.unsent(c.tap.mark()); got != c.want {
			t.Errorf("%s: unsent is %t", c.name, got)
		}
	}
}

type valid bool

func (v valid) IsValid() bool { return bool(v) }

// ownDialer is a dialer of the user's.
type ownDialer struct{ used *bool }

func (d ownDialer) Dial(string, string) (net.Conn, error) {
	*d.used = true
	return nil, errConnRefused
}

func (d ownDialer) DialTimeout(network, address string, _ time.Duration) (net.Conn, error) {
	return d.Dial(network, address)
}

func TestAConnectorsOwnDialerStays(t *testing.T) {
	given, err := pq.NewConnector("host=127.0.0.1 port=1 sslmode=disable user=u")
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := dialsWithWire(given); !ok {
		t.Error("lib/pq's own dialer was not known")
	}
	used := false
	given.Dialer(ownDialer{&used})
	connector, err := NewConnector(given)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := connector.Connect(t.Context()); err == nil || !used {
		t.Errorf("Connect gives %v, the dialer was used: %t", err, used)
	}
}

func TestAGivenConnectorIsNotChanged(t *testing.T) {
	given, err := pq.NewConnector("host=127.0.0.1 port=1 sslmode=disable user=u")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewConnector(given); err != nil {
		t.Fatal(err)
	}
	if _, ok := dialsWithWire(given); !ok {
		t.Error("it dials in another way than before")
	}
}

func TestTheDialerLeavesTheSocketWithWhoeverAsked(t *testing.T) {
	e := listenAlone(t)
	address := e.listener.Addr().String()
	var asked dialing
	c, err := wireDialer{}.DialContext(context.WithValue(t.Context(), wireKey{}, &asked), "tcp", address)
	if err != nil || asked.wire == nil || c != net.Conn(asked.wire) {
		t.Errorf("dialled %v and left %v, %v", c, asked.wire, err)
	}
	// Cancel requests go over sockets of their own.
	for _, dial := range []func() (net.Conn, error){
		func() (net.Conn, error) { return wireDialer{}.Dial("tcp", address) },
		func() (net.Conn, error) { return wireDialer{}.DialTimeout("tcp", address, time.Minute) },
	} {
		other, err := dial()
		if err != nil {
			t.Fatal(err)
		}
		if _, is := other.(*wire); is {
			t.Error("nobody asked for it")
		}
		if err := other.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if _, err := (wireDialer{}).DialTimeout("tcp", address, -time.Second); err == nil {
		t.Error("the timeout has no effect")
	}
}

// countingConn counts what is read from it at a time.
type countingConn struct {
	net.Conn
	reads int
}

func (c *countingConn) Read(b []byte) (int, error) {
	c.reads++
	return c.Conn.Read(b)
}

func TestWhatComesInPlentyIsReadInLargePieces(t *testing.T) {
	near, far := net.Pipe()
	counting := &countingConn{Conn: near}
	w := newWire(counting)
	sent := make([]byte, 1<<20+123)
	for i := range sent {
		sent[i] = byte(rand.Uint32())
	}
	done := make(chan error)
	go func() {
		_, err := far.Write(sent)
		done <- errors.Join(err, far.Close())
	}()
	got, err := io.ReadAll(bufio.NewReader(w)) // 4 KiB at a time, as lib/pq reads
	if err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, sent) {
		t.Errorf("%d bytes came, and not those that were sent", len(got))
	}
	if most := len(sent)/readAhead + 10; counting.reads > most {
		t.Errorf("%d reads, want %d at most", counting.reads, most)
	}
	if w.block != nil {
		t.Error("the memory for it is kept")
	}
}

func TestWhatWasReadAheadIsWaiting(t *testing.T) {
	near, far := net.Pipe()
	w := newWire(near)
	go func() { _, _ = far.Write(make([]byte, 3*flowing)) }()
	b := make([]byte, flowing)
	for range 2 {
		if _, err := io.ReadFull(w, b); err != nil {
			t.Fatal(err)
		}
	}
	if got := w.pulse(); got != pulseWaiting {
		t.Errorf("the pulse is %d, want that something waits", got)
	}
	if _, err := io.ReadFull(w, b); err != nil {
		t.Fatal(err)
	}
	if w.block != nil || w.pulse() == pulseWaiting {
		t.Error("something waits still")
	}
	if err := errors.Join(near.Close(), far.Close()); err != nil {
		t.Error(err)
	}
}
