package faultproxy

import (
	"bufio"
	"errors"
	"io"
	"time"
)

// bufferSize is that of reading and of writing, in bytes.
const bufferSize = 32 << 10

// pump carries the messages of one direction.
type pump struct {
	conn      *conn
	direction Direction
	source    stream
	frames    frames
	out       *bufio.Writer
}

func newPump(c *conn, direction Direction, source, sink stream) *pump {
	p := &pump{conn: c, direction: direction, source: source}
	p.out = bufio.NewWriterSize(gatedWriter{c, direction, sink}, bufferSize)
	p.frames = frames{
		source:  bufio.NewReaderSize(flushingReader{source, p.out}, bufferSize),
		untyped: direction == ToServer,
	}
	return p
}

// gatedWriter writes while the connection lets the direction pass.
type gatedWriter struct {
	conn      *conn
	direction Direction
	sink      io.Writer
}

func (w gatedWriter) Write(p []byte) (int, error) {
	if err := w.conn.pass(w.direction); err != nil {
		return 0, err
	}
	return w.sink.Write(p)
}

// flushingReader forwards what was written before it waits for more to read: messages that arrive together leave
// together, and none waits for a later one.
type flushingReader struct {
	source io.Reader
	out    *bufio.Writer
}

func (r flushingReader) Read(p []byte) (int, error) {
	if err := r.out.Flush(); err != nil {
		return 0, err
	}
	return r.source.Read(p)
}

// run carries messages until the source has no more or the connection is taken away, and hands on the end of the
// source.
func (p *pump) run() {
	err := p.relay()
	for err == nil {
		err = p.relay()
	}
	switch {
	case errors.Is(err, errTaken):
		return
	case errors.Is(err, errFraming):
		p.conn.turn(ended, nobody, false)
		return
	}
	// The writer keeps its error: this tells a source at its end from a sink that is gone.
	if err := p.out.Flush(); errors.Is(err, errTaken) {
		return
	} else if err != nil {
		// The sink's own pump still carries what it said last. Until that is done the source must not get stuck.
		_, _ = io.Copy(io.Discard, p.source) // however it ends, it is the end
	}
	p.conn.sourceEnded(p.direction)
}

// relay handles one message. Its error is the source's, the sink's, or errTaken.
func (p *pump) relay() error {
	f, err := p.frames.next()
	if err != nil {
		return err
	}
	out := p.out
	if f.refusal {
		out = bufio.NewWriterSize(gatedWriter{p.conn, p.direction, p.source}, 1)
	}
	action, err := p.conn.consult(Message{
		Conn: p.conn.number, Direction: p.direction, Type: f.typ, Nth: f.nth, Body: f.body,
	})
	if err != nil {
		return err
	}
	if !f.refusal {
		return p.obey(action, f, out)
	}
	// A turn has stopped what is written to the client, for the other pump. A single byte does not need the limit.
	if err := p.source.SetWriteDeadline(time.Time{}); err != nil {
		return err
	}
	if err := p.obey(action, f, out); err != nil {
		return err
	}
	return out.Flush()
}

// obey does what the action says. The connection has turned already.
func (p *pump) obey(action Action, f *frame, out *bufio.Writer) error {
	switch action.Kind {
	case Drop:
		return f.discard()

	case Cut, BlackHole:
		// Whether that succeeds or the peer is gone, the connection is over.
		_ = errors.Join(f.writeTo(out, action.first(f.size)), out.Flush())
		return errTaken

	case Stall:
		if err := errors.Join(f.writeTo(out, action.first(f.size)), out.Flush()); err != nil {
			return err
		}
		if err := p.conn.released(); err != nil {
			return err
		}
		return f.writeTo(out, f.size)

	case Delay:
		if err := out.Flush(); err != nil {
			return err
		}
		timer := time.NewTimer(action.Wait)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-p.conn.taken():
			return errTaken
		}
		return f.writeTo(out, f.size)

	case Split:
		for sent := 0; sent < f.size; sent += max(action.Bytes, 1) {
			if err := out.Flush(); err != nil {
				return err
			}
			if err := f.writeTo(out, max(action.Bytes, 1)); err != nil {
				return err
			}
		}
		return out.Flush()

	default:
		return f.writeTo(out, f.size)
	}
}
