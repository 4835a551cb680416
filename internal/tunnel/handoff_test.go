package tunnel

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"
)

// localPair is a tunnel whose transports are unix sockets.
func localPair(t *testing.T) (session, agent Conn) {
	t.Helper()
	noLeaks(t)
	srv := NewServer(Options{})
	var handled sync.WaitGroup
	session, err := Dial(context.Background(), func(context.Context) (net.Conn, error) {
		a, b, err := unixPair()
		if err == nil {
			handled.Go(func() { _ = srv.Handle(context.Background(), b) })
		}
		return a, err
	}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	agent, err = srv.Accept(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { session.Close(); srv.Close(); handled.Wait() })
	return session, agent
}

// forwarded is a unix socket that some forwarder brought: no descriptor passes it.
type forwarded struct{ net.Conn }

func TestAConnectionThatCannotBeHandedGoesOnOverTheTunnel(t *testing.T) {
	noLeaks(t)
	srv := NewServer(Options{})
	defer srv.Close()
	var handled sync.WaitGroup
	defer handled.Wait()
	session, err := Dial(context.Background(), func(context.Context) (net.Conn, error) {
		a, b, err := unixPair()
		if err == nil {
			handled.Go(func() { _ = srv.Handle(context.Background(), forwarded{b}) })
		}
		return a, err
	}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	agent, err := srv.Accept(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	client, server := bridge(t, session, agent)
	const size = 20 << 20
	go func() {
		client.Write(make([]byte, size))
		client.CloseWrite()
	}()
	if n, err := io.Copy(io.Discard, server); n != size || err != nil {
		t.Errorf("%d of %d bytes, %v", n, size, err)
	}
}

// handOver has the bridge's client send until its connection is handed to the agent.
func handOver(t *testing.T, session Conn, client, server *net.TCPConn) {
	t.Helper()
	if _, err := client.Write(make([]byte, 64<<10)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(server, make([]byte, 64<<10)); err != nil {
		t.Fatal(err)
	}
	c := session.(*conn)
	b := make([]byte, handAfter)
	client.Write(b)
	io.ReadFull(server, b)
	for range 2000 { // the stream is over then
		c.mu.Lock()
		n := len(c.streams)
		c.mu.Unlock()
		if n == 0 {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatal("the connection is not handed to the agent")
}

func TestAConnectionHandedToTheAgentLosesNoByteInEitherDirection(t *testing.T) {
	session, agent := localPair(t)
	for round := range 30 {
		client, server := bridge(t, session, agent)
		var work sync.WaitGroup
		for i, ends := range [][2]*net.TCPConn{{client, server}, {server, client}} {
			data := make([]byte, 1+rand.IntN(6<<20))
			rand.NewChaCha8([32]byte{byte(round), byte(i)}).Read(data)
			work.Go(func() {
				for b := data; len(b) > 0; {
					n := min(len(b), 1+rand.IntN(100_000))
					if _, err := ends[0].Write(b[:n]); err != nil {
						t.Errorf("round %d: write: %v", round, err)
						return
					}
					b = b[n:]
				}
				ends[0].CloseWrite()
			})
			work.Go(func() {
				sum := sha256.New()
				n, err := io.Copy(sum, ends[1])
				if want := sha256.Sum256(data); err != nil || !bytes.Equal(sum.Sum(nil), want[:]) {
					t.Errorf("round %d, direction %d: %d of %d bytes, %v", round, i, n, len(data), err)
				}
			})
		}
		work.Wait()
	}
}

func TestAHandedConnectionKeepsHalfCloseAndReset(t *testing.T) {
	session, agent := localPair(t)
	client, server := bridge(t, session, agent)
	handOver(t, session, client, server)
	io.WriteString(client, "question")
	client.CloseWrite()
	if b, err := io.ReadAll(server); err != nil || string(b) != "question" {
		t.Errorf("server read %q, %v", b, err)
	}
	io.WriteString(server, "answer")
	server.Close()
	if b, err := io.ReadAll(client); err != nil || string(b) != "answer" {
		t.Errorf("client read %q, %v", b, err)
	}
	for _, fromServer := range []bool{true, false} {
		from, to := bridge(t, session, agent)
		if fromServer {
			from, to = to, from
			handOver(t, session, to, from)
		} else {
			handOver(t, session, from, to)
		}
		from.SetLinger(0)
		from.Close()
		to.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := to.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("reset from server %v arrived as %v", fromServer, err)
		}
	}
}

func TestTheEndOfEitherRelayEndsAHandedConnection(t *testing.T) {
	session, agent := localPair(t)
	for which := range 2 {
		client, near := tcpPair(t)
		far, server := tcpPair(t)
		s, _ := session.Open(context.Background())
		p, err := agent.Accept(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		var relays sync.WaitGroup
		var cancels [2]context.CancelFunc
		for i, end := range []struct {
			c net.Conn
			s Stream
		}{{near, s}, {far, p}} {
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			cancels[i] = cancel
			relays.Go(func() { Relay(ctx, end.c, end.s) })
		}
		handOver(t, session, client, server)
		cancels[which]()
		relays.Wait()
		for _, c := range []net.Conn{client, server} {
			c.SetReadDeadline(time.Now().Add(10 * time.Second))
			if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("relay %d ended: read: %v", which, err)
			}
		}
	}
}

func TestConnectionsThatAreHandedLeaveNoDescriptorBehind(t *testing.T) {
	session, agent := localPair(t)
	once := func() {
		client, server := bridge(t, session, agent)
		handOver(t, session, client, server)
		client.Close()
		io.Copy(io.Discard, server)
		server.Close()
	}
	count := func() int {
		n := 1 << 30
		for range 40 { // relays end a little after their connections
			d, err := os.ReadDir("/dev/fd")
			if err != nil {
				t.Fatal(err)
			}
			n = min(n, len(d))
			time.Sleep(5 * time.Millisecond)
		}
		return n
	}
	once()
	before := count()
	for range 50 {
		once()
	}
	if after := count(); after > before+8 { // the runtime keeps a few pipes for splice
		t.Errorf("%d descriptors before, %d after 50 connections", before, after)
	}
}
