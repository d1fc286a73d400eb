package faultproxy

import "time"

// Kind is what happens to a message, or with it to the connection.
type Kind uint8

const (
	// Forward passes the message on. It is the zero value.
	Forward Kind = iota
	// Drop swallows the message. A request for encryption that is dropped is not answered.
	Drop
	// Cut closes both sides.
	Cut
	// BlackHole closes the client's side and keeps the server's open, with nothing more forwarded in either direction
	// until [Proxy.Release] or [Proxy.Close]: the server does not learn that the client is gone.
	BlackHole
	// Stall keeps both sides open and forwards nothing more in either direction until [Proxy.Release], not even that a
	// peer closed its side. Nothing is lost.
	Stall
	// Delay forwards the message after [Action.Wait]. Later ones in its direction wait behind it.
	Delay
	// Split forwards the message in pieces of [Action.Bytes] bytes, each written on its own.
	Split
)

// String returns the kind in words.
func (k Kind) String() string {
	switch k {
	case Forward:
		return "forward"
	case Drop:
		return "drop"
	case Cut:
		return "cut"
	case BlackHole:
		return "black hole"
	case Stall:
		return "stall"
	case Delay:
		return "delay"
	case Split:
		return "split"
	default:
		return "unknown kind"
	}
}

// Action says what to do with a message. The zero value forwards it. Fields that the Kind does not use are ignored.
type Action struct {
	Kind Kind

	// After makes Cut, BlackHole and Stall forward the message first, completely. To the server, it has been written to
	// the server's socket when the connection is cut.
	After bool

	// Bytes is, for Cut, BlackHole and Stall without After, how many bytes of the message are forwarded first, type and
	// length included; after a Stall the others follow. For Split it is the size of a piece, at least 1.
	Bytes int

	// Reset makes Cut and BlackHole end the client's side with a reset (RST) instead of an orderly end (FIN). It may
	// cost the client what was sent to it just before.
	Reset bool

	// Wait is how long Delay waits.
	Wait time.Duration
}

// first returns how many bytes of a message of that size the action forwards before it takes effect.
func (a Action) first(size int) int {
	if a.After {
		return size
	}
	return min(max(a.Bytes, 0), size)
}

// Rule decides about messages. It is called for every message, one at a time per connection but concurrently for
// different connections, and not for messages of a connection that was cut. It may call any method of the proxy except
// Close, which waits for it to return.
type Rule func(Message) Action
