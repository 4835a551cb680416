package tunnel

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// noLeaks fails the test when goroutines of this package outlive it.
func noLeaks(t *testing.T) {
	t.Cleanup(func() {
		var left string
		for range 100 {
			buf := make([]byte, 1<<20)
			left = ""
			for _, g := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
				if strings.Contains(g, "internal/tunnel.(") && !strings.Contains(g, "testing.tRunner") {
					left += g + "\n\n"
				}
			}
			if left == "" {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
		t.Errorf("goroutines left:\n%s", left)
	})
}

// cutter is a dialer of transports to a server that it can cut.
type cutter struct {
	srv  *Server
	mu   sync.Mutex
	last net.Conn
	cuts atomic.Int32
}

func (d *cutter) dial(context.Context) (net.Conn, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer l.Close()
	a, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return nil, err
	}
	b, err := l.Accept()
	if err != nil {
		return nil, err
	}
	go d.srv.Handle(context.Background(), b)
	d.mu.Lock()
	d.last = a
	d.mu.Unlock()
	return a, nil
}

// cut breaks the transport in the middle of whatever it carries.
func (d *cutter) cut() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.last != nil {
		d.last.(*net.TCPConn).SetLinger(0)
		d.last.Close()
		d.cuts.Add(1)
	}
}

func pair(t *testing.T, o Options) (session, agent Conn, d *cutter) {
	t.Helper()
	noLeaks(t)
	d = &cutter{srv: NewServer(o)}
	session, err := Dial(context.Background(), d.dial, o)
	if err != nil {
		t.Fatal(err)
	}
	agent, err = d.srv.Accept(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { session.Close(); d.srv.Close() })
	return session, agent, d
}

func echo(agent Conn) {
	for {
		s, err := agent.Accept(context.Background())
		if err != nil {
			return
		}
		go func() {
			io.Copy(s, s)
			s.CloseWrite()
			s.Close()
		}()
	}
}

func TestBytesComeBackWholeAndHalfCloseIsCarried(t *testing.T) {
	session, agent, _ := pair(t, Options{})
	go echo(agent)
	for _, size := range []int{0, 1, 4096, chunkSize + 1, 5 << 20} {
		s, err := session.Open(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		want := make([]byte, size)
		for i := range want {
			want[i] = byte(i * 7)
		}
		go func() { s.Write(want); s.CloseWrite() }()
		got, err := io.ReadAll(s)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("size %d: got %d bytes, error %v", size, len(got), err)
		}
		s.Close()
	}
}

func TestStreamsSurviveATransportThatIsCutAgainAndAgain(t *testing.T) {
	session, agent, d := pair(t, Options{Resume: 30 * time.Second})
	go echo(agent)
	stop := make(chan struct{})
	var cutting sync.WaitGroup
	cutting.Add(1)
	go func() {
		defer cutting.Done()
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Duration(rand.IntN(4000)) * time.Microsecond):
				d.cut()
			}
		}
	}()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			s, err := session.Open(context.Background())
			if err != nil {
				t.Error(err)
				return
			}
			defer s.Close()
			sent, got := sha256.New(), sha256.New()
			total := 0
			go func() {
				defer s.CloseWrite()
				b := make([]byte, 100_000)
				for n := 0; n < 200; n++ {
					binary.BigEndian.PutUint64(b, uint64(n*8+i))
					k := 1 + (n*7919)%len(b)
					sent.Write(b[:k])
					total += k
					if _, err := s.Write(b[:k]); err != nil {
						t.Error(err)
						return
					}
				}
			}()
			n, err := io.Copy(got, s)
			if err != nil || int(n) != total || !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
				t.Errorf("stream %d: got %d of %d bytes back, error %v", i, n, total, err)
			}
		}()
	}
	wg.Wait()
	close(stop)
	cutting.Wait()
	if d.cuts.Load() < 5 {
		t.Errorf("the transport was cut %d times only: the test shows nothing", d.cuts.Load())
	}
	t.Logf("%d cuts", d.cuts.Load())
}

func TestAResetCarriesItsCodeAndEndsBothDirections(t *testing.T) {
	session, agent, _ := pair(t, Options{})
	s, _ := session.Open(context.Background())
	s.Write([]byte("x"))
	p, err := agent.Accept(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	p.Reset(104)
	var reset *ResetError
	if _, err := s.Read(make([]byte, 1)); !errors.As(err, &reset) || reset.Code != 104 {
		t.Errorf("read after reset: %v", err)
	}
	if _, err := s.Write([]byte("y")); !errors.As(err, &reset) {
		t.Errorf("write after reset: %v", err)
	}
}

func TestAStreamThatNobodyReadsStopsNoOther(t *testing.T) {
	session, agent, _ := pair(t, Options{})
	deaf, _ := session.Open(context.Background())
	filled := make(chan int)
	go func() {
		n, _ := deaf.Write(make([]byte, 64<<20))
		filled <- n
	}()
	time.Sleep(50 * time.Millisecond)
	if _, err := agent.Accept(context.Background()); err != nil {
		t.Fatal(err)
	}
	go echo(agent)
	for range 100 {
		s, _ := session.Open(context.Background())
		fmt.Fprint(s, "hello")
		s.CloseWrite()
		if b, err := io.ReadAll(s); err != nil || string(b) != "hello" {
			t.Fatalf("beside a full stream: %q, %v", b, err)
		}
		s.Close()
	}
	deaf.Reset(0)
	if n := <-filled; n > firstWindow+maxQueued+2*chunkSize {
		t.Errorf("an unread stream took %d bytes, its window is %d", n, firstWindow)
	}
}

func TestDeadlinesEndCalls(t *testing.T) {
	session, _, _ := pair(t, Options{})
	s, _ := session.Open(context.Background())
	s.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if _, err := s.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read: %v", err)
	}
	s.SetWriteDeadline(time.Now().Add(20 * time.Millisecond))
	if _, err := s.Write(make([]byte, 10<<20)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("write: %v", err)
	}
}

func TestAnAgentStartedAnewEndsTheTunnel(t *testing.T) {
	session, _, d := pair(t, Options{Resume: 30 * time.Second})
	s, _ := session.Open(context.Background())
	old := d.srv
	d.srv = NewServer(Options{})
	d.cut()
	select {
	case <-session.Done():
	case <-time.After(20 * time.Second):
		t.Fatal("the tunnel does not end")
	}
	if !errors.Is(session.Err(), ErrUnknownTunnel) {
		t.Errorf("ended with %v", session.Err())
	}
	if _, err := s.Read(make([]byte, 1)); !errors.Is(err, ErrUnknownTunnel) {
		t.Errorf("stream ended with %v", err)
	}
	old.Close()
	d.srv.Close()
}

func TestASessionThatDoesNotComeBackIsForgotten(t *testing.T) {
	for _, resume := range []time.Duration{-1, 50 * time.Millisecond} {
		noLeaks(t)
		d := &cutter{srv: NewServer(Options{Resume: resume})}
		session, err := Dial(context.Background(), d.dial, Options{Resume: -1})
		if err != nil {
			t.Fatal(err)
		}
		agent, err := d.srv.Accept(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		d.cut()
		select {
		case <-agent.Done():
		case <-time.After(20 * time.Second):
			t.Fatal("the agent keeps the tunnel")
		}
		if n := d.srv.Tunnels(); n != 0 {
			t.Errorf("%d tunnels left", n)
		}
		session.Close()
		d.srv.Close()
	}
}

func TestAStrangersTokenDoesNotResume(t *testing.T) {
	session, _, d := pair(t, Options{})
	c := session.(*conn)
	stranger := newConn(Options{}, true)
	stranger.id = c.id
	stranger.links[0].attempt = 100
	if err := stranger.links[0].greet(context.Background(), d.dial, true); !errors.Is(err, ErrUnknownTunnel) {
		t.Errorf("a resumption with another token: %v", err)
	}
	stranger.finish(ErrClosed)
	stranger.wg.Wait()
}

func TestCloseEndsEverythingAtOnce(t *testing.T) {
	session, agent, _ := pair(t, Options{})
	go echo(agent)
	var wg sync.WaitGroup
	for range 50 {
		s, _ := session.Open(context.Background())
		wg.Add(2)
		go func() { defer wg.Done(); io.Copy(io.Discard, s) }()
		go func() {
			defer wg.Done()
			for {
				if _, err := s.Write(make([]byte, 10000)); err != nil {
					return
				}
			}
		}()
	}
	time.Sleep(20 * time.Millisecond)
	session.Close()
	wg.Wait()
	<-agent.Done()
}
