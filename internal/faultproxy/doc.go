// Package faultproxy stands between a PostgreSQL client and its server and breaks their connection where a test says.
//
// The proxy knows where the protocol's messages begin and end. It shows each one, in both directions, to a [Rule], and
// does what the rule answers: forward it, swallow it, cut the connection before or after it, leave the server with a
// peer that is silent for good, hold everything until told to go on, delay it, tear it to pieces.
//
//	proxy, err := faultproxy.Start("tcp", "127.0.0.1:5432", func(m faultproxy.Message) faultproxy.Action {
//		if m.SQL() == "COMMIT" {
//			return faultproxy.Action{Kind: faultproxy.Cut, After: true} // it is sent, its answer is lost
//		}
//		return faultproxy.Action{}
//	})
//
// Once an action ends or stalls a connection, nothing that the other direction has not yet written gets through: the
// answer to a message that was cut off after being forwarded never reaches the client, however fast the server is.
//
// # How connections end
//
// What a cut forwarded can be read by its receiver before it meets the end of the connection. The server's side is shut
// down for writing and then read until the server closes it, so that no reset destroys what is on its way and the
// server notices nothing before it would read again. So is the client's, for half a second at most, unless the action
// asks for a reset, which may overtake what was forwarded.
//
// When a peer closes its side, the other side learns of it behind everything that was in flight. A client that is
// killed, resets, or closes looks the same to the server: the end of the connection.
//
// # Limits
//
// The messages have to be plaintext: requests for TLS or GSSAPI encryption are answered by the proxy itself, with a
// refusal. Bytes that cannot be the protocol's, and so TLS without a request for it, cut the connection.
package faultproxy
