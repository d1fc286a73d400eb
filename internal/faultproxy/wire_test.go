package faultproxy_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pgretry/pgretry/internal/faultproxy"
)

// wire is a proxied connection with bare sockets at both ends, past the startup packet.
type wire struct {
	proxy          *faultproxy.Proxy
	client, server *net.TCPConn
}

func newWire(t *testing.T, rule faultproxy.Rule) *wire {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	w := &wire{proxy: start(t, "tcp", listener.Addr().String(), nil)}
	client, err := net.Dial("tcp", w.proxy.Addr())
	if err != nil {
		t.Fatal(err)
	}
	server, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	w.client, w.server = client.(*net.TCPConn), server.(*net.TCPConn)
	for _, end := range []net.Conn{client, server} {
		t.Cleanup(func() { _ = end.Close() }) // tests close some themselves
		if err := end.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
	}
	startup := untyped(196608, "user\x00x\x00\x00")
	write(t, client, startup)
	expect(t, server, startup)
	w.proxy.SetRule(rule)
	return w
}

// end returns where messages of the direction are written and where they arrive.
func (w *wire) ends(d faultproxy.Direction) (from, to *net.TCPConn) {
	if d == faultproxy.ToServer {
		return w.client, w.server
	}
	return w.server, w.client
}

func typed(typ byte, body string) string {
	return string(binary.BigEndian.AppendUint32([]byte{typ}, uint32(4+len(body)))) + body
}

func untyped(code uint32, body string) string {
	message := binary.BigEndian.AppendUint32(nil, uint32(8+len(body)))
	return string(binary.BigEndian.AppendUint32(message, code)) + body
}

func write(t *testing.T, to io.Writer, message string) {
	t.Helper()
	if _, err := io.WriteString(to, message); err != nil {
		t.Fatal(err)
	}
}

func expect(t *testing.T, from io.Reader, message string) {
	t.Helper()
	got := make([]byte, len(message))
	if n, err := io.ReadFull(from, got); err != nil || string(got) != message {
		t.Fatalf("%.50q came, then %v, instead of %.50q", got[:n], err, message)
	}
}

// expectLast expects the message and an orderly end.
func expectLast(t *testing.T, from io.Reader, message string) {
	t.Helper()
	got, err := io.ReadAll(from)
	if err != nil || string(got) != message {
		t.Fatalf("%d bytes came, %.50q, then %v, instead of %d, %.50q", len(got), got, err, len(message), message)
	}
}

func on(typ byte, action faultproxy.Action) faultproxy.Rule {
	return func(m faultproxy.Message) faultproxy.Action {
		if m.Type == typ {
			return action
		}
		return faultproxy.Action{}
	}
}

func TestCutIsReadBehindWhatWasForwarded(t *testing.T) {
	earlier, message := typed('a', "earlier"), typed('b', strings.Repeat("message", 100))
	for _, direction := range directions {
		for name, test := range map[string]struct {
			action faultproxy.Action
			bytes  int
		}{
			"before":       {faultproxy.Action{}, 0},
			"in the type":  {faultproxy.Action{Bytes: 1}, 1},
			"in the body":  {faultproxy.Action{Bytes: 10}, 10},
			"beyond":       {faultproxy.Action{Bytes: 1 << 30}, len(message)},
			"after":        {faultproxy.Action{After: true}, len(message)},
			"negative":     {faultproxy.Action{Bytes: -1}, 0},
			"after, bytes": {faultproxy.Action{After: true, Bytes: 1}, len(message)},
		} {
			t.Run(direction.String()+" "+name, func(t *testing.T) {
				test.action.Kind = faultproxy.Cut
				w := newWire(t, on('b', test.action))
				from, to := w.ends(direction)
				// What follows is left unread by whoever does not read before closing, which makes a reset of the end.
				write(t, from, earlier+message+typed('c', "later"))
				expectLast(t, to, earlier+message[:test.bytes])
				expectLast(t, from, "")
			})
		}
	}
}

func TestCutReachesAServerThatHasMoreToSay(t *testing.T) {
	w := newWire(t, on('Q', faultproxy.Action{Kind: faultproxy.Cut, After: true}))
	flood := strings.Repeat(typed('D', strings.Repeat("x", 1000)), 20_000)
	flooded := async(func() error {
		_, err := io.WriteString(w.server, flood)
		return err
	})
	message := typed('Q', "COMMIT\x00")
	write(t, w.client, message)
	expectLast(t, w.server, message)
	if err := receive(t, "the end of the flood", flooded); err != nil {
		t.Error(err)
	}
}

func TestCutIsReadByAClientThatHasMoreToSay(t *testing.T) {
	w := newWire(t, on('b', faultproxy.Action{Kind: faultproxy.Cut, After: true}))
	message := typed('b', strings.Repeat("0123456789", 1<<19))
	sent := async(func() error {
		_, err := io.WriteString(w.server, message)
		return err
	})
	expect(t, w.client, message[:5])
	flooded := async(func() error {
		_, err := io.WriteString(w.client, strings.Repeat(typed('d', strings.Repeat("x", 1000)), 1000))
		return err
	})
	expectLast(t, w.client, message[5:])
	for _, result := range []<-chan error{sent, flooded} {
		if err := receive(t, "the end of writing", result); err != nil {
			t.Error(err)
		}
	}
}

func TestLargeMessageIsReadBeforeTheCut(t *testing.T) {
	for _, direction := range directions {
		t.Run(direction.String(), func(t *testing.T) {
			w := newWire(t, on('b', faultproxy.Action{Kind: faultproxy.Cut, After: true}))
			from, to := w.ends(direction)
			message := typed('b', strings.Repeat("0123456789", 1<<20))
			written := async(func() error {
				_, err := io.WriteString(from, message)
				return err
			})
			expectLast(t, to, message)
			if err := receive(t, "the end of writing", written); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestAnswerNeverOvertakesTheCut(t *testing.T) {
	for range 200 {
		w := newWire(t, on('Q', faultproxy.Action{Kind: faultproxy.Cut, After: true}))
		message := typed('Q', "COMMIT\x00")
		write(t, w.client, message)
		expect(t, w.server, message)
		write(t, w.server, typed('C', "COMMIT\x00"))
		expectLast(t, w.client, "")
		if err := errors.Join(w.client.Close(), w.server.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLastWordsOfAPeerAreForwarded(t *testing.T) {
	for _, direction := range directions {
		t.Run(direction.String(), func(t *testing.T) {
			w := newWire(t, nil)
			from, to := w.ends(direction)
			words := strings.Repeat(typed('E', "last words"), 10_000)
			write(t, from, words)
			if err := from.Close(); err != nil {
				t.Fatal(err)
			}
			expectLast(t, to, words)
		})
	}
}

func TestClientThatOnlyStopsSendingIsStillAnswered(t *testing.T) {
	w := newWire(t, nil)
	if err := w.client.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	expectLast(t, w.server, "")
	answer := typed('Z', "I")
	write(t, w.server, answer)
	if err := w.server.Close(); err != nil {
		t.Fatal(err)
	}
	expectLast(t, w.client, answer)
}

func TestRequestOfAClientThatIsGoneReachesTheServer(t *testing.T) {
	// The delay lets the proxy notice first that the client does not read any more.
	w := newWire(t, on('Q', faultproxy.Action{Kind: faultproxy.Delay, Wait: 200 * time.Millisecond}))
	flood := strings.Repeat(typed('D', strings.Repeat("x", 1000)), 20_000)
	flooded := async(func() error {
		_, err := io.WriteString(w.server, flood)
		return err
	})
	message := typed('Q', "COMMIT\x00")
	write(t, w.client, message)
	expect(t, w.client, typed('D', "")[:1]) // the answer has begun, and is left unread
	if err := w.client.Close(); err != nil {
		t.Fatal(err)
	}
	expectLast(t, w.server, message)
	if err := receive(t, "the end of the flood", flooded); err != nil {
		t.Error(err)
	}
}

func TestResetIsWhatTheClientMeets(t *testing.T) {
	for _, kind := range []faultproxy.Kind{faultproxy.Cut, faultproxy.BlackHole} {
		for _, direction := range directions {
			t.Run(kind.String()+" "+direction.String(), func(t *testing.T) {
				w := newWire(t, on('b', faultproxy.Action{Kind: kind, Reset: true}))
				from, _ := w.ends(direction)
				write(t, from, typed('b', "x"))
				if _, err := io.ReadAll(w.client); !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("the client met %v", err)
				}
				if kind == faultproxy.BlackHole {
					w.proxy.Release()
				}
				expectLast(t, w.server, "")
			})
		}
	}
	t.Run("CutAll", func(t *testing.T) {
		w := newWire(t, nil)
		w.proxy.CutAll(true)
		if _, err := io.ReadAll(w.client); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the client met %v", err)
		}
		expectLast(t, w.server, "")
	})
}

func TestBlackHoleForwardsItsPartAndNothingElse(t *testing.T) {
	for _, direction := range directions {
		t.Run(direction.String(), func(t *testing.T) {
			w := newWire(t, on('b', faultproxy.Action{Kind: faultproxy.BlackHole, Bytes: 3}))
			from, to := w.ends(direction)
			message := typed('b', "message")
			write(t, from, message+typed('c', "later"))
			expect(t, to, message[:3])
			expectLast(t, w.client, "")
			write(t, w.server, typed('Z', "nobody hears"))
			if err := w.client.Close(); err != nil {
				t.Fatal(err)
			}
			w.proxy.Release()
			expectLast(t, w.server, "")
		})
	}
}

func TestStallForwardsTheRestOfTheMessageOnRelease(t *testing.T) {
	for _, direction := range directions {
		t.Run(direction.String(), func(t *testing.T) {
			trap := newTrap(faultproxy.Action{Kind: faultproxy.Stall, Bytes: 7}, func(m faultproxy.Message) bool {
				return m.Type == 'b'
			})
			w := newWire(t, trap.rule)
			from, to := w.ends(direction)
			message, back := typed('b', "message")+typed('c', "later"), typed('d', "back")
			write(t, from, message)
			expect(t, to, message[:7])
			write(t, to, back)
			if err := from.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if seen := trap.since(); len(seen) > 0 {
				t.Errorf("in spite of the stall came %q", seen)
			}
			if n := w.proxy.Open(); n != 1 {
				t.Errorf("%d connections are open", n)
			}
			w.proxy.Release()
			expectLast(t, to, message[7:])
			if direction == faultproxy.ToServer {
				// A server that closes is not told what the client says meanwhile.
				expect(t, from, back)
			}
		})
	}
}

func TestCutAllEndsAStall(t *testing.T) {
	trap := newTrap(faultproxy.Action{Kind: faultproxy.Stall}, func(faultproxy.Message) bool { return true })
	w := newWire(t, trap.rule)
	write(t, w.client, typed('b', "held"))
	receive(t, "the message", trap.sprung)
	if n := w.proxy.CutAll(false); n != 1 {
		t.Errorf("%d connections were cut", n)
	}
	expectLast(t, w.client, "")
	expectLast(t, w.server, "")
	w.proxy.Release()
}

func TestRuleMayUseTheProxy(t *testing.T) {
	proxy := make(chan *faultproxy.Proxy, 1)
	w := newWire(t, func(faultproxy.Message) faultproxy.Action {
		p := <-proxy
		p.SetRule(nil)
		p.Release()
		p.CutAll(false)
		return faultproxy.Action{}
	})
	proxy <- w.proxy
	write(t, w.client, typed('b', "x"))
	expectLast(t, w.client, "")
	expectLast(t, w.server, "")
}

func TestMessagesAreNumberedAndNamed(t *testing.T) {
	var got []faultproxy.Message
	w := newWire(t, func(m faultproxy.Message) faultproxy.Action {
		m.Body = bytes.Clone(m.Body)
		got = append(got, m)
		return faultproxy.Action{}
	})
	requests := typed('P', "name\x00SELECT 1\x00\x00\x00") + typed('Q', "COMMIT\x00") + typed('Q', "") + typed('S', "")
	write(t, w.client, requests)
	expect(t, w.server, requests)
	answer := typed('Q', "SELECT 1\x00")
	write(t, w.server, answer)
	expect(t, w.client, answer)
	if err := w.proxy.Close(); err != nil {
		t.Fatal(err)
	}
	want := []faultproxy.Message{
		{Conn: 1, Direction: faultproxy.ToServer, Type: 'P', Nth: 1, Body: []byte("name\x00SELECT 1\x00\x00\x00")},
		{Conn: 1, Direction: faultproxy.ToServer, Type: 'Q', Nth: 1, Body: []byte("COMMIT\x00")},
		{Conn: 1, Direction: faultproxy.ToServer, Type: 'Q', Nth: 2, Body: []byte{}},
		{Conn: 1, Direction: faultproxy.ToServer, Type: 'S', Nth: 1, Body: []byte{}},
		{Conn: 1, Direction: faultproxy.ToClient, Type: 'Q', Nth: 1, Body: []byte("SELECT 1\x00")},
	}
	same := func(a, b faultproxy.Message) bool {
		body := bytes.Equal(a.Body, b.Body)
		return body && a.Conn == b.Conn && a.Direction == b.Direction && a.Type == b.Type && a.Nth == b.Nth
	}
	if !slices.EqualFunc(got, want, same) {
		t.Errorf("the messages were %v", got)
	}
	texts := []string{"SELECT 1", "COMMIT", "", "", ""}
	for i, m := range got {
		if m.SQL() != texts[i] {
			t.Errorf("the SQL of %v is %q", m, m.SQL())
		}
	}
}

// firstContact connects to a proxy in front of a bare server without sending anything.
func firstContact(t *testing.T, rule faultproxy.Rule) (client, server net.Conn) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	proxy := start(t, "tcp", listener.Addr().String(), rule)
	if client, err = net.Dial("tcp", proxy.Addr()); err != nil {
		t.Fatal(err)
	}
	if server, err = listener.Accept(); err != nil {
		t.Fatal(err)
	}
	for _, end := range []net.Conn{client, server} {
		t.Cleanup(func() { _ = end.Close() }) // tests close some themselves
		if err := end.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
	}
	return client, server
}

const (
	sslRequest    = 80877103
	gssencRequest = 80877104
	cancelRequest = 80877102
)

func TestBothKindsOfEncryptionAreRefusedInOneConnection(t *testing.T) {
	client, server := firstContact(t, nil)
	for _, code := range []uint32{gssencRequest, sslRequest} {
		write(t, client, untyped(code, ""))
		expect(t, client, "N")
	}
	startup := untyped(196608, "user\x00x\x00\x00") + typed('p', "secret")
	write(t, client, startup)
	expect(t, server, startup)
}

func TestRefusalOfEncryptionCanBeCutToo(t *testing.T) {
	for _, after := range []bool{false, true} {
		client, server := firstContact(t, on(0, faultproxy.Action{Kind: faultproxy.Cut, After: after}))
		write(t, client, untyped(sslRequest, ""))
		answer := ""
		if after {
			answer = "N"
		}
		expectLast(t, client, answer)
		expectLast(t, server, "")
	}
}

func TestCancelRequestOfAClientThatDoesNotWaitIsPassedOn(t *testing.T) {
	client, server := firstContact(t, nil)
	request := untyped(cancelRequest, "pid.a key of more than four bytes")
	write(t, client, request)
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	expectLast(t, server, request)
}

func TestWhatIsNotTheProtocolIsCut(t *testing.T) {
	for name, test := range map[string]struct {
		bytes     string
		direction faultproxy.Direction
	}{
		"TLS at once":           {"\x16\x03\x01\x02\x00\x01\x00\x01", faultproxy.ToServer},
		"a startup packet of 4": {"\x00\x00\x00\x04", faultproxy.ToServer},
		"a length of 3":         {"Z\x00\x00\x00\x03", faultproxy.ToClient},
		"a negative length":     {"Z\xff\xff\xff\xff", faultproxy.ToClient},
	} {
		t.Run(name, func(t *testing.T) {
			client, server := firstContact(t, nil)
			from := client
			if test.direction == faultproxy.ToClient {
				from = server
			}
			write(t, from, test.bytes)
			expectLast(t, client, "")
			expectLast(t, server, "")
		})
	}
}

func TestServerThatIsNotThereEndsTheConnection(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	proxy := start(t, "tcp", listener.Addr().String(), nil)
	client, err := net.Dial("tcp", proxy.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	expectLast(t, client, "")
	if proxy.Accepted() != 1 || proxy.Open() != 0 {
		t.Errorf("%d accepted, %d open", proxy.Accepted(), proxy.Open())
	}
}

func TestUnknownNetworkIsRefused(t *testing.T) {
	if _, err := faultproxy.Start("udp", "127.0.0.1:5432", nil); err == nil {
		t.Error("it started")
	}
}

func TestDSNLeadsToTheProxy(t *testing.T) {
	proxy := start(t, "tcp", "127.0.0.1:1", nil)
	addr := proxy.Addr()
	for dsn, want := range map[string]string{
		"postgres://u:p%40ss@db.example:5432/name?sslmode=disable": "postgres://u:p%40ss@" + addr + "/name?sslmode=disable",
		"postgresql://db.example/name":                             "postgresql://" + addr + "/name",
		"postgres:///name?host=/run/pg&port=5433&sslmode=disable":  "postgres://" + addr + "/name?sslmode=disable",
	} {
		if got, err := proxy.DSN(dsn); err != nil || got != want {
			t.Errorf("%s became %s, %v", dsn, got, err)
		}
	}
	for _, dsn := range []string{"", "host=db.example password=secret", "postgres://u:secret#x@h", "postgres://h/?a=%secret"} {
		got, err := proxy.DSN(dsn)
		if err == nil {
			t.Errorf("%s became %s", dsn, got)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("the error tells the password: %v", err)
		}
	}
}
