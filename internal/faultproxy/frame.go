package faultproxy

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
)

const (
	// maxBody is how much of a message's body is held in memory and shown to the rule.
	maxBody = 1 << 20
	// maxUntyped is the greatest length of an untyped message, the server's own limit.
	maxUntyped = 10000

	lengthSize = 4 // counts itself

	codeSSLRequest    = 80877103
	codeGSSENCRequest = 80877104
)

var errFraming = errors.New("not a message of the protocol")

// frames reads messages of one direction.
type frames struct {
	source  *bufio.Reader
	untyped bool // the next message has no type byte
	counts  [256]int
	buffer  []byte // of the current frame
	current frame
}

// frame is the message that was read last. It is used up by forwarding.
type frame struct {
	typ  byte
	nth  int
	body []byte
	size int // of the whole message, type and length included

	refusal bool // what there is to forward is an answer, to the one who sent the message

	frames *frames
	held   []byte // read, not forwarded
	rest   int    // not even read
}

// next reads a message. The frame before it must have been forwarded or discarded.
func (f *frames) next() (*frame, error) {
	head := lengthSize
	if !f.untyped {
		head++
	}
	start, err := f.source.Peek(head)
	if err != nil {
		return nil, err
	}
	typ := byte(typeNone)
	if !f.untyped {
		typ = start[0]
	}
	length := binary.BigEndian.Uint32(start[head-lengthSize:])
	if length < lengthSize || length > math.MaxInt32 || f.untyped && (length < 2*lengthSize || length > maxUntyped) {
		return nil, fmt.Errorf("type %q, length %d: %w", typ, length, errFraming)
	}

	size := head - lengthSize + int(length)
	held := min(size, head+maxBody)
	if cap(f.buffer) < held {
		f.buffer = make([]byte, max(held, min(2*cap(f.buffer), head+maxBody)))
	}
	message := f.buffer[:held]
	if _, err := io.ReadFull(f.source, message); err != nil {
		return nil, err
	}
	f.counts[typ]++
	f.current = frame{
		typ: typ, nth: f.counts[typ], body: message[head:], size: size,
		frames: f, held: message, rest: size - held,
	}
	next := &f.current
	if f.untyped {
		switch binary.BigEndian.Uint32(next.body) {
		case codeSSLRequest, codeGSSENCRequest:
			// Another untyped message follows.
			next.refusal, next.held, next.size = true, []byte{'N'}, 1
		default:
			f.untyped = false
		}
	}
	return next, nil
}

// piece returns up to n of the bytes that have not been forwarded, valid until the next call, and none at the end.
func (f *frame) piece(n int) ([]byte, error) {
	if len(f.held) == 0 && f.rest > 0 {
		buffer := f.frames.buffer
		f.held = buffer[:min(len(buffer), f.rest)]
		if _, err := io.ReadFull(f.frames.source, f.held); err != nil {
			return nil, err
		}
		f.rest -= len(f.held)
	}
	piece := f.held[:min(n, len(f.held))]
	f.held = f.held[len(piece):]
	return piece, nil
}

// writeTo forwards up to n of the bytes that have not been forwarded.
func (f *frame) writeTo(w io.Writer, n int) error {
	for n > 0 {
		piece, err := f.piece(n)
		if err != nil {
			return err
		}
		if len(piece) == 0 {
			return nil
		}
		if _, err := w.Write(piece); err != nil {
			return err
		}
		n -= len(piece)
	}
	return nil
}

// discard skips what has not been forwarded.
func (f *frame) discard() error {
	f.held = nil
	n, err := f.frames.source.Discard(f.rest)
	f.rest -= n
	return err
}
