package faultproxy

import "bytes"

// Direction says where a message goes. The zero value is none.
type Direction uint8

const (
	// ToServer is the direction of requests.
	ToServer Direction = iota + 1
	// ToClient is the direction of answers.
	ToClient
)

// String returns the direction in words.
func (d Direction) String() string {
	switch d {
	case ToServer:
		return "to server"
	case ToClient:
		return "to client"
	default:
		return "nowhere"
	}
}

// The protocol's type bytes that the package itself has to know.
const (
	typeNone  = 0
	typeQuery = 'Q'
	typeParse = 'P'
)

// Message is one protocol message on its way through the proxy.
type Message struct {
	Conn      int       // number of the connection, from 1 in order of acceptance
	Direction Direction // where it goes
	Type      byte      // the protocol's type byte; 0 for the startup packet, SSLRequest, GSSENCRequest, CancelRequest
	Nth       int       // of this Type in this Direction on this connection, from 1

	// Body is the payload without type and length. It is valid during the call only. Of a message of more than
	// 1 MiB it is the beginning: the rest is forwarded without being held in memory, and Body is 1 MiB long.
	Body []byte
}

// SQL returns the text of a Query ('Q') or Parse ('P') sent to the server, and "" for any other message. Like Body, it
// ends after 1 MiB.
func (m Message) SQL() string {
	if m.Direction != ToServer {
		return ""
	}
	text := m.Body
	switch m.Type {
	case typeQuery:
	case typeParse:
		_, text, _ = bytes.Cut(text, []byte{0}) // the statement's name
	default:
		return ""
	}
	text, _, _ = bytes.Cut(text, []byte{0})
	return string(text)
}
