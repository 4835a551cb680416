package tunnel

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// tcpPair returns two connected sockets.
func tcpPair(t *testing.T) (client, server *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); s.Close() })
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

// bridge is a client and a server joined by two relays and the tunnel between them.
func bridge(t *testing.T, session, agent Conn) (client, server *net.TCPConn) {
	t.Helper()
	client, near := tcpPair(t)
	far, server := tcpPair(t)
	s, err := session.Open(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	p, err := agent.Accept(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	var relays sync.WaitGroup
	relays.Go(func() { Relay(context.Background(), near, s) })
	relays.Go(func() { Relay(context.Background(), far, p) })
	t.Cleanup(func() {
		client.Close()
		server.Close()
		relays.Wait()
	})
	return client, server
}

func TestRelayCarriesHalfClose(t *testing.T) {
	session, agent, _ := pair(t, Options{})
	client, server := bridge(t, session, agent)
	fmt.Fprint(client, "question")
	client.CloseWrite()
	if b, err := io.ReadAll(server); err != nil || string(b) != "question" {
		t.Errorf("server read %q, %v", b, err)
	}
	fmt.Fprint(server, "answer")
	server.Close()
	if b, err := io.ReadAll(client); err != nil || string(b) != "answer" {
		t.Errorf("client read %q, %v", b, err)
	}
}

func TestRelayCarriesAResetBothWays(t *testing.T) {
	session, agent, _ := pair(t, Options{})
	for _, fromServer := range []bool{true, false} {
		from, to := bridge(t, session, agent)
		if fromServer {
			from, to = to, from
		}
		fmt.Fprint(from, "x")
		io.ReadFull(to, make([]byte, 1))
		from.SetLinger(0)
		from.Close()
		to.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := to.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("reset from server %v arrived as %v", fromServer, err)
		}
	}
}

func TestRelayTellsTheErrnoOfAReset(t *testing.T) {
	session, agent, _ := pair(t, Options{})
	client, near := tcpPair(t)
	s, _ := session.Open(context.Background())
	var relay sync.WaitGroup
	relay.Go(func() { Relay(context.Background(), near, s) })
	p, err := agent.Accept(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	client.SetLinger(0)
	client.Close()
	var reset *ResetError
	if _, err := p.Read(make([]byte, 1)); !errors.As(err, &reset) || reset.Code != uint32(syscall.ECONNRESET) {
		t.Errorf("read: %v", err)
	}
	relay.Wait()
}

// The relay is in the middle of a write that the client does not take.
func TestAResetReachesAClientThatDoesNotRead(t *testing.T) {
	session, agent, _ := pair(t, Options{})
	client, near := tcpPair(t)
	s, _ := session.Open(context.Background())
	var relay sync.WaitGroup
	relay.Go(func() { Relay(context.Background(), near, s) })
	p, err := agent.Accept(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	p.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
	p.Write(make([]byte, 64<<20))
	p.Reset(uint32(syscall.ECONNRESET))
	relay.Wait()
	if _, err := io.Copy(io.Discard, client); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("client read to %v", err)
	}
}

func TestTheEndOfItsContextEndsARelay(t *testing.T) {
	session, agent, _ := pair(t, Options{})
	client, near := tcpPair(t)
	s, _ := session.Open(context.Background())
	if _, err := agent.Accept(context.Background()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var relay sync.WaitGroup
	relay.Go(func() { Relay(ctx, near, s) })
	cancel()
	relay.Wait()
	if _, err := client.Read(make([]byte, 1)); err == nil {
		t.Error("the client's connection goes on")
	}
}

// The stream is over already, and its last bytes wait for a client that does not read.
func TestTheEndOfItsContextEndsARelayOfAStreamThatIsOver(t *testing.T) {
	session, agent, _ := pair(t, Options{})
	client, near := tcpPair(t)
	s, _ := session.Open(context.Background())
	p, err := agent.Accept(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var relay sync.WaitGroup
	relay.Go(func() { Relay(ctx, near, s) })
	client.CloseWrite()
	if _, err := p.Read(make([]byte, 1)); err != io.EOF {
		t.Fatal(err)
	}
	p.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
	p.Write(make([]byte, 64<<20))
	p.CloseWrite()
	cancel()
	relay.Wait()
}

func TestTheEndOfTheTunnelEndsItsRelays(t *testing.T) {
	session, agent, _ := pair(t, Options{})
	client, server := bridge(t, session, agent)
	session.Close()
	for _, c := range []*net.TCPConn{client, server} {
		if _, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF {
			t.Errorf("read: %v, want a reset", err)
		}
	}
}

func TestManyConnectionsCarryTheirBytesAtOnceWhileTheTransportIsCut(t *testing.T) {
	session, agent, d := pair(t, Options{})
	stop := make(chan struct{})
	var cutting sync.WaitGroup
	cutting.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
				d.cut()
			}
		}
	})
	var work sync.WaitGroup
	for i := range 20 {
		client, server := bridge(t, session, agent)
		data := make([]byte, 1<<20+i*1000)
		rand.NewChaCha8([32]byte{byte(i)}).Read(data)
		for _, ends := range [][2]*net.TCPConn{{client, server}, {server, client}} {
			work.Go(func() {
				ends[0].Write(data)
				ends[0].CloseWrite()
			})
			work.Go(func() {
				sum := sha256.New()
				n, err := io.Copy(sum, ends[1])
				if want := sha256.Sum256(data); err != nil || !bytes.Equal(sum.Sum(nil), want[:]) {
					t.Errorf("connection %d: %d of %d bytes, %v", i, n, len(data), err)
				}
			})
		}
	}
	work.Wait()
	close(stop)
	cutting.Wait()
}

// Both relays of a connection and both ends of its stream, measured together.
func TestAnIdleConnectionCostsTwoGoroutinesAndLittleMemoryAtEachEnd(t *testing.T) {
	session, agent, _ := pair(t, Options{})
	talk := func(client, server *net.TCPConn) {
		for _, ends := range [][2]*net.TCPConn{{client, server}, {server, client}} {
			if _, err := ends[0].Write(make([]byte, 30_000)); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(ends[1], make([]byte, 30_000)); err != nil {
				t.Fatal(err)
			}
		}
	}
	measure := func() (memory uint64, goroutines int) {
		var m runtime.MemStats
		for range 3 { // pools empty themselves in two
			runtime.GC()
			time.Sleep(ackDelay) // until nothing waits for its acknowledgement
		}
		runtime.ReadMemStats(&m)
		return m.HeapAlloc + m.StackInuse, runtime.NumGoroutine()
	}
	client, server := bridge(t, session, agent)
	talk(client, server)
	const n = 500
	memory, goroutines := measure()
	for range n {
		client, server := bridge(t, session, agent)
		talk(client, server)
	}
	memoryNow, goroutinesNow := measure()
	if each := float64(memoryNow-memory) / n; each > 2*20<<10 {
		t.Errorf("an idle connection costs %.0f bytes, both ends together", each)
	} else {
		t.Logf("%.0f bytes, both ends and the test's four sockets together", each)
	}
	if each := float64(goroutinesNow-goroutines) / n; each > 4.1 {
		t.Errorf("an idle connection costs %.1f goroutines, both ends together", each)
	}
}

func TestRelayCarriesWhatIsNoKernelConnectionToo(t *testing.T) {
	session, agent, _ := pair(t, Options{})
	x, y := net.Pipe()
	s, _ := session.Open(context.Background())
	var relay sync.WaitGroup
	relay.Go(func() { Relay(context.Background(), y, s) })
	p, err := agent.Accept(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	go fmt.Fprint(x, "hello")
	b := make([]byte, 5)
	if _, err := io.ReadFull(p, b); err != nil || string(b) != "hello" {
		t.Errorf("read %q, %v", b, err)
	}
	p.Reset(0)
	if _, err := x.Read(b); err == nil || strings.Contains(err.Error(), "timeout") {
		t.Errorf("read after reset: %v", err)
	}
	relay.Wait()
}

func TestFeedDropsWhatComesBackAndTellsItsEnd(t *testing.T) {
	session, agent, _ := pair(t, Options{})
	client, near := tcpPair(t)
	s, _ := session.Open(context.Background())
	var relay sync.WaitGroup
	relay.Go(func() { Feed(context.Background(), near, s) })
	p, err := agent.Accept(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	relay.Go(func() { // more than any buffer holds: it is read
		fmt.Fprint(client, strings.Repeat("answer", 4<<20))
		client.CloseWrite()
	})
	if b, err := io.ReadAll(p); err != nil || len(b) != 0 {
		t.Errorf("the other end read %d bytes, %v", len(b), err)
	}
	fmt.Fprint(p, "question")
	p.CloseWrite()
	if b, err := io.ReadAll(client); err != nil || string(b) != "question" {
		t.Errorf("client read %q, %v", b, err)
	}
	relay.Wait()
}

func TestFeedPassesOnAReset(t *testing.T) {
	session, agent, _ := pair(t, Options{})
	client, near := tcpPair(t)
	s, _ := session.Open(context.Background())
	var relay sync.WaitGroup
	relay.Go(func() { Feed(context.Background(), near, s) })
	p, err := agent.Accept(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	client.SetLinger(0)
	client.Close()
	var reset *ResetError
	if _, err := p.Read(make([]byte, 1)); !errors.As(err, &reset) || reset.Code != uint32(syscall.ECONNRESET) {
		t.Errorf("read: %v", err)
	}
	relay.Wait()
}
