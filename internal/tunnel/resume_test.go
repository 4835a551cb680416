package tunnel

import (
	"context"
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// unixPair returns two connected sockets.
func unixPair() (a, b net.Conn, err error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		return nil, nil, err
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		syscall.CloseOnExec(fd)
		f := os.NewFile(uintptr(fd), "pair")
		defer f.Close()
		if conns[i], err = net.FileConn(f); err != nil {
			return nil, nil, err
		}
	}
	return conns[0], conns[1], nil
}

// frail is a transport that breaks when a number of bytes has gone over it, both ways together:
// in the middle of a frame as well as between two, or of the greeting.
type frail struct {
	net.Conn
	left   *atomic.Int64
	broken *atomic.Int32
}

// take gives how many of n bytes may go, and breaks the transport after the last.
func (f frail) take(n int) (k int, last func()) {
	left := f.left.Add(-int64(n))
	if left > 0 {
		return n, func() {}
	}
	return max(0, n+int(left)), func() {
		if left > -int64(n) {
			f.broken.Add(1)
		}
		f.Conn.Close()
	}
}

func (f frail) Read(p []byte) (int, error) {
	n, err := f.Conn.Read(p)
	if n == 0 {
		return n, err
	}
	n, last := f.take(n)
	last()
	if n == 0 {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func (f frail) Write(p []byte) (int, error) {
	n, last := f.take(len(p))
	defer last()
	k, err := f.Conn.Write(p[:n])
	if err == nil && n < len(p) {
		err = io.ErrClosedPipe
	}
	return k, err
}

func TestNotAByteIsLostOrDoubledOverTransportsThatBreakAtRandomBytes(t *testing.T) {
	noLeaks(t)
	want := int32(2000)
	if testing.Short() {
		want = 200
	}
	srv := NewServer(Options{})
	var broken atomic.Int32
	var handled sync.WaitGroup
	first := true
	dial := func(context.Context) (net.Conn, error) {
		a, b, err := unixPair()
		if err != nil {
			return nil, err
		}
		handled.Go(func() { _ = srv.Handle(context.Background(), b) })
		left := new(atomic.Int64)
		left.Store(1 + rand.Int64N(1<<(4+rand.IntN(14))))
		if first {
			left.Store(1 << 16)
			first = false
		}
		return frail{a, left, &broken}, nil
	}
	session, err := Dial(context.Background(), dial, Options{})
	if err != nil {
		t.Fatal(err)
	}
	agent, err := srv.Accept(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	go echo(agent)
	var work sync.WaitGroup
	for i := range 6 {
		work.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 7))
			for round := 0; broken.Load() < want; round++ {
				s, err := session.Open(context.Background())
				if err != nil {
					t.Errorf("open: %v", err)
					return
				}
				size := 1 + r.IntN(1<<(4+r.IntN(16)))
				var sums [2]hash.Hash = [2]hash.Hash{sha256.New(), sha256.New()}
				var writing sync.WaitGroup
				writing.Go(func() {
					b := make([]byte, 1+min(size, 1<<r.IntN(17)))
					g := rand.NewChaCha8([32]byte{byte(i), byte(round)})
					for done := 0; done < size; {
						n := min(len(b), size-done)
						g.Read(b[:n])
						sums[0].Write(b[:n])
						if _, err := s.Write(b[:n]); err != nil {
							t.Errorf("stream %d, round %d: write: %v", i, round, err)
							return
						}
						done += n
					}
					s.CloseWrite()
				})
				got, err := io.Copy(sums[1], s)
				writing.Wait()
				if err != nil || int(got) != size || string(sums[0].Sum(nil)) != string(sums[1].Sum(nil)) {
					t.Errorf("stream %d, round %d: %d of %d bytes came back, or others: %v", i, round, got, size, err)
					return
				}
				s.Close()
			}
		})
	}
	work.Wait()
	session.Close()
	srv.Close()
	handled.Wait()
	t.Logf("%d transports broke", broken.Load())
}

func TestBulkTakesALaneOfItsOwnAndSmallTrafficKeepsTheFirst(t *testing.T) {
	session, agent, _ := pair(t, Options{})
	go echo(agent)
	s, err := session.Open(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	const size = 64 << 20
	go func() {
		s.Write(make([]byte, size))
		s.CloseWrite()
	}()
	if n, err := io.Copy(io.Discard, s); n != size || err != nil {
		t.Fatalf("%d of %d bytes came back: %v", n, size, err)
	}
	for _, end := range []Conn{session, agent} {
		c := end.(*conn)
		c.mu.Lock()
		if bulk, quick := c.links[1].sentSeq, c.links[0].sentSeq; bulk < 100 || quick > bulk {
			t.Errorf("%d frames on the lane for bulk, %d on the first", bulk, quick)
		}
		c.mu.Unlock()
	}
}

// The loss of one lane holds only what is on it.
func TestSmallTrafficGoesOnWhileTheLaneForBulkIsAway(t *testing.T) {
	noLeaks(t)
	srv := NewServer(Options{})
	defer srv.Close()
	var handled sync.WaitGroup
	defer handled.Wait()
	var mu sync.Mutex
	var dialled []net.Conn
	closedRoad := make(chan struct{})
	dial := func(ctx context.Context) (net.Conn, error) {
		mu.Lock()
		n := len(dialled)
		mu.Unlock()
		if n == 2 { // the third is the return of the lost lane
			select {
			case <-closedRoad:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		a, b, err := unixPair()
		if err != nil {
			return nil, err
		}
		mu.Lock()
		dialled = append(dialled, a)
		mu.Unlock()
		handled.Go(func() { _ = srv.Handle(context.Background(), b) })
		return a, nil
	}
	session, err := Dial(context.Background(), dial, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	agent, err := srv.Accept(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	go echo(agent)
	bulk, _ := session.Open(context.Background())
	defer bulk.Close()
	ended := make(chan error, 1)
	const size = 200 << 20
	go func() {
		bulk.Write(make([]byte, size))
		bulk.CloseWrite()
	}()
	go func() {
		n, err := io.Copy(io.Discard, bulk)
		if err == nil && n != size {
			err = io.ErrUnexpectedEOF
		}
		ended <- err
	}()
	for { // until the second lane is there
		mu.Lock()
		n := len(dialled)
		if n == 2 {
			dialled[1].Close()
		}
		mu.Unlock()
		if n == 2 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	for range 50 {
		s, err := session.Open(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(s, "hello")
		s.CloseWrite()
		if b, err := io.ReadAll(s); err != nil || string(b) != "hello" {
			t.Fatalf("while the lane for bulk is away: %q, %v", b, err)
		}
		s.Close()
	}
	close(closedRoad)
	if err := <-ended; err != nil {
		t.Errorf("bulk after the return of its lane: %v", err)
	}
}

// mute is a transport that carries nothing any more and says nothing about it, as when a laptop
// changes its network.
type mute struct {
	net.Conn
	off *atomic.Bool
}

func (m mute) Write(p []byte) (int, error) {
	if m.off.Load() {
		return len(p), nil
	}
	return m.Conn.Write(p)
}

func TestALinkOnWhichNothingComesIsGivenUpAndDialledAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := NewServer(Options{Lanes: 1})
		var dials int
		off := new(atomic.Bool)
		var handled sync.WaitGroup
		session, err := Dial(context.Background(), func(context.Context) (net.Conn, error) {
			dials++
			off = new(atomic.Bool)
			a, b := net.Pipe()
			handled.Go(func() { _ = srv.Handle(context.Background(), mute{b, off}) })
			return mute{a, off}, nil
		}, Options{Lanes: 1})
		if err != nil {
			t.Fatal(err)
		}
		agent, err := srv.Accept(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		s, _ := session.Open(context.Background())
		io.WriteString(s, "before")
		p, _ := agent.Accept(context.Background())
		b := make([]byte, 6)
		io.ReadFull(p, b)

		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if dials != 1 {
			t.Errorf("%d dials while the link was idle and well", dials)
		}
		off.Store(true)
		start := time.Now()
		io.WriteString(s, "during")
		if _, err := io.ReadFull(p, b); err != nil || string(b) != "during" {
			t.Errorf("read %q, %v", b, err)
		}
		if took := time.Since(start); dials != 2 || took > 40*time.Second {
			t.Errorf("%d dials, %v until the bytes came", dials, took)
		}
		session.Close()
		srv.Close()
		handled.Wait()
	})
}

func TestATunnelWhoseAgentIsNotReachedEndsAfterItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := NewServer(Options{Lanes: 1})
		var handled sync.WaitGroup
		gone := errors.New("no route")
		var last net.Conn
		session, err := Dial(context.Background(), func(context.Context) (net.Conn, error) {
			if last != nil {
				return nil, gone
			}
			a, b := net.Pipe()
			last = a
			handled.Go(func() { _ = srv.Handle(context.Background(), b) })
			return a, nil
		}, Options{Lanes: 1})
		if err != nil {
			t.Fatal(err)
		}
		agent, _ := srv.Accept(context.Background())
		s, _ := session.Open(context.Background())
		start := time.Now()
		last.Close()
		if _, err := s.Read(make([]byte, 1)); !errors.Is(err, gone) {
			t.Errorf("read: %v", err)
		}
		if took := time.Since(start); took < 59*time.Second || took > 61*time.Second {
			t.Errorf("gave up after %v", took)
		}
		<-agent.Done()
		if took := time.Since(start); took > 65*time.Second+30*time.Second {
			t.Errorf("the agent kept the tunnel for %v", took)
		}
		if n := srv.Tunnels(); n != 0 {
			t.Errorf("%d tunnels left", n)
		}
		session.Close()
		srv.Close()
		handled.Wait()
	})
}

func TestADialerThatKnowsTheAgentGoneEndsTheTunnelAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := NewServer(Options{})
		var handled sync.WaitGroup
		var last net.Conn
		session, err := Dial(context.Background(), func(context.Context) (net.Conn, error) {
			if last != nil {
				return nil, ErrUnknownTunnel
			}
			a, b := net.Pipe()
			last = a
			handled.Go(func() { _ = srv.Handle(context.Background(), b) })
			return a, nil
		}, Options{})
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		last.Close()
		<-session.Done()
		if took := time.Since(start); took > time.Second || !errors.Is(session.Err(), ErrUnknownTunnel) {
			t.Errorf("after %v: %v", took, session.Err())
		}
		session.Close()
		srv.Close()
		handled.Wait()
	})
}
