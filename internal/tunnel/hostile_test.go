package tunnel

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"
)

// stranger is a peer that speaks the protocol by hand. It is the session's side of a tunnel, over
// memory, so that nothing it sends waits in a queue.
type stranger struct {
	net.Conn
	agent Conn
	srv   *Server
}

func newStranger(t *testing.T) *stranger {
	t.Helper()
	s := meet(t)
	go io.Copy(io.Discard, s) // ends with the transport
	return s
}

// meet gives a stranger that has been greeted, and reads nothing by itself.
func meet(t *testing.T) *stranger {
	t.Helper()
	noLeaks(t)
	srv := NewServer(Options{Resume: -1})
	a, b := net.Pipe()
	var handled sync.WaitGroup
	handled.Go(func() { _ = srv.Handle(context.Background(), b) })
	t.Cleanup(func() { a.Close(); srv.Close(); handled.Wait() })
	g := greeting{attempt: 1, id: [16]byte{1}}
	if _, err := a.Write(g.encode()); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(a, make([]byte, answerSize)); err != nil {
		t.Fatal(err)
	}
	agent, err := srv.Accept(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return &stranger{a, agent, srv}
}

func frameBytes(kind byte, stream, value, seq uint32, data ...byte) []byte {
	h := newHead(kind, stream, value, seq)
	return append(h[:], data...)
}

func TestAPeerThatBreaksTheRulesEndsItsTunnelAndNothingElse(t *testing.T) {
	block := make([]byte, chunkSize)
	open := frameBytes(frameOpen, 1, 0, 0)
	rows := map[string][][]byte{
		"a kind that there is not":          {frameBytes(77, 0, 0, 0)},
		"a stream of the other side's":      {frameBytes(frameOpen, 2, 0, 0)},
		"a stream without number":           {frameBytes(frameOpen, 0, 0, 0)},
		"a stream twice":                    {open, open},
		"data larger than a frame":          {open, frameBytes(frameData, 1, chunkSize+1, 0)},
		"an empty data frame":               {open, frameBytes(frameData, 1, 0, 0)},
		"more data than the window":         {open, frameBytes(frameData, 1, chunkSize, 0, block...), frameBytes(frameData, 1, 1, 1, 'x')},
		"credit without end":                {open, frameBytes(frameCredit, 1, 1<<32-1, 0)},
		"credit that adds up":               {open, frameBytes(frameCredit, 1, 2*largeWindow-firstWindow, 0), frameBytes(frameCredit, 1, 1, 0)},
		"an acknowledgement of the unsent":  {frameBytes(frameAck, 0, 1<<31, 0)},
		"an acknowledgement out of bounds":  {frameBytes(frameAck, 1<<32-1, 1<<32-1, 0)},
		"more out of order than the window": {open, bytes.Repeat(frameBytes(frameData, 1, 1, 5, 'x'), firstWindow+1)},
	}
	for name, frames := range rows {
		t.Run(name, func(t *testing.T) {
			s := newStranger(t)
			for _, f := range frames {
				if _, err := s.Write(f); err != nil {
					break
				}
			}
			select {
			case <-s.agent.Done():
				if errors.Is(s.agent.Err(), ErrClosed) {
					t.Errorf("ended as if closed: %v", s.agent.Err())
				}
			case <-time.After(20 * time.Second):
				t.Error("the tunnel goes on")
			}
		})
	}
}

// What a peer can make us keep is bounded by the windows that it was given, whatever it sends.
func TestDataThatNobodyReadsTakesLittleMoreThanItsWindow(t *testing.T) {
	for name, step := range map[string]uint32{"in order": 1, "out of order": 2} {
		t.Run(name, func(t *testing.T) {
			s := newStranger(t)
			s.Write(frameBytes(frameOpen, 1, 0, 0))
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			var all []byte
			for i := range uint32(1000) {
				all = append(all, frameBytes(frameData, 1, 1, (step-1)+i*step, 'x')...)
			}
			s.Write(all)
			st, err := s.agent.Accept(context.Background())
			if err != nil && s.agent.Err() == nil {
				t.Fatal(err)
			}
			runtime.GC()
			runtime.ReadMemStats(&after)
			if grew := int64(after.HeapAlloc) - int64(before.HeapAlloc); grew > 3<<20 {
				t.Errorf("1000 frames of a byte cost %d bytes", grew)
			}
			runtime.KeepAlive(st)
		})
	}
}

// The frame is acknowledged while it is written: its memory is still on the way to the peer, which
// reads what comes into it.
func TestAnAcknowledgementBeforeItsFrameShowsThePeerNothingOfOthers(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // a chunk that is freed is the next that is taken
	s := meet(t)
	read := func(n int) []byte {
		b := make([]byte, n)
		if _, err := io.ReadFull(s, b); err != nil {
			t.Fatal(err)
		}
		return b
	}
	s.Write(frameBytes(frameOpen, 1, 0, 0))
	st, err := s.agent.Accept(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	own := bytes.Repeat([]byte{'a'}, chunkSize)
	if _, err := st.Write(own); err != nil {
		t.Fatal(err)
	}
	counted := uint32(1)
	for h := read(headSize); h[0] != frameData; h = read(headSize) {
		if h[0] != frameAck {
			counted++
		}
	}
	got := read(100)
	s.Write(frameBytes(frameAck, 0, counted, 0))
	s.Write(frameBytes(framePing, 0, 0, 0)) // taken: what was before it is done
	for range 4 {
		c := newChunk(chunkSize) // of whatever tunnel
		for i := range c.space() {
			c.space()[i] = 's'
		}
		defer runtime.KeepAlive(c)
	}
	if got = append(got, read(chunkSize-100)...); !bytes.Equal(got, own) {
		t.Errorf("%d bytes of another's stream", bytes.Count(got, []byte{'s'}))
	}
}

// A peer that reads our answers and never says so.
func TestWhatIsKeptForAPeerThatAcknowledgesNothingIsBounded(t *testing.T) {
	s := newStranger(t)
	for i := range uint32(maxBacklog) { // nobody accepts them: the next are answered by a reset
		s.Write(frameBytes(frameOpen, 2*i+1, 0, 0))
	}
	refused := bytes.Repeat(frameBytes(frameOpen, 2*maxBacklog+1, 0, 0), 1<<14)
	for range 2 * smallQueue >> 14 {
		if _, err := s.Write(refused); err != nil {
			break
		}
	}
	c := s.agent.(*conn)
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := len(c.links[0].unacked); c.err == nil {
		t.Errorf("%d frames are kept", n)
	}
}

func TestAGreetingThatIsNoneIsRefused(t *testing.T) {
	good := (&greeting{attempt: 1, id: [16]byte{9}}).encode()
	lane := (&greeting{attempt: 1, id: [16]byte{9}, lane: 1}).encode()
	known := (&greeting{attempt: 1, id: [16]byte{9}, known: true, lane: 200}).encode()
	for name, b := range map[string][]byte{
		"nothing": nil, "half of one": good[:20], "of another protocol": []byte("GET / HTTP/1.1\r\nHost: a\r\n\r\n and so on, for long enough"),
		"of a lane without its tunnel": lane, "of a tunnel not known": known,
	} {
		t.Run(name, func(t *testing.T) {
			noLeaks(t)
			srv := NewServer(Options{})
			defer srv.Close()
			x, y := net.Pipe()
			result := make(chan error, 1)
			go func() { result <- srv.Handle(context.Background(), y) }()
			go func() {
				x.Write(b)
				if len(b) < greetingSize {
					x.Close()
				}
			}()
			go io.Copy(io.Discard, x)
			if err := <-result; err == nil {
				t.Error("taken")
			}
			if n := srv.Tunnels(); n != 0 {
				t.Errorf("%d tunnels", n)
			}
			x.Close()
		})
	}
}

func TestAFloodOfStreamsThatNobodyAcceptsIsBounded(t *testing.T) {
	s := newStranger(t)
	var all []byte
	for i := range uint32(3 * maxBacklog) {
		all = append(all, frameBytes(frameOpen, 2*i+1, 0, 0)...)
	}
	s.Write(all)
	s.Write(frameBytes(framePing, 0, 0, 0)) // taken: all before was, too
	s.Write(frameBytes(framePing, 0, 0, 0))
	c := s.agent.(*conn)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil || len(c.backlog) > maxBacklog || len(c.streams) > maxBacklog {
		t.Errorf("%d streams, %d waiting, error %v", len(c.streams), len(c.backlog), c.err)
	}
}

// FuzzReadFrame gives the receiver whatever bytes.
func FuzzReadFrame(f *testing.F) {
	var all []byte
	for _, b := range [][]byte{
		frameBytes(frameOpen, 2, 0, 0), frameBytes(frameData, 2, 4, 0, []byte("abcd")...),
		frameBytes(frameData, 2, 1, 2, 'x'), frameBytes(frameCredit, 2, 100, 0),
		frameBytes(framePing, 0, 0, 0), frameBytes(frameFin, 2, 0, 3), frameBytes(frameLane, 0, 1, 0),
		frameBytes(frameData, 2, 2, 1, []byte("yz")...), frameBytes(frameReset, 2, 104, 0), frameBytes(frameAck, 0, 0, 0),
	} {
		f.Add(b)
		all = append(all, b...)
	}
	f.Add(all)
	f.Add([]byte{0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		c := newConn(Options{}, true)
		defer func() { c.finish(ErrClosed); c.wg.Wait() }()
		var h head
		for i := 0; ; i++ {
			fr, err := readFrame(r, &h)
			if err != nil {
				return
			}
			c.mu.Lock()
			err = c.links[i%2].receiveLocked(&fr)
			for _, s := range c.streams {
				if s.inBytes > s.window {
					t.Errorf("stream holds %d bytes, its window is %d", s.inBytes, s.window)
				}
			}
			c.mu.Unlock()
			if err != nil {
				return
			}
		}
	})
}

// FuzzGreeting gives whatever bytes to a server that has one tunnel.
func FuzzGreeting(f *testing.F) {
	srv := NewServer(Options{})
	f.Cleanup(srv.Close)
	there, _ := srv.find(greeting{id: [16]byte{1}, token: [16]byte{2}})
	for _, g := range []greeting{
		{id: [16]byte{9}, attempt: 1},
		{id: [16]byte{1}, attempt: 1},
		{known: true, id: [16]byte{1}, token: [16]byte{2}, attempt: 7, received: 3},
		{known: true, id: [16]byte{1}, token: [16]byte{2}, lane: 1, attempt: 1},
		{known: true, id: [16]byte{1}, token: [16]byte{2}, lane: 2, attempt: 1},
		{known: true, id: [16]byte{1}, token: [16]byte{2}, lane: laneHandoff, received: 1},
	} {
		f.Add(g.encode())
	}
	f.Add(magic[:])
	f.Fuzz(func(t *testing.T, b []byte) {
		g, err := readGreeting(bytes.NewReader(b))
		if err != nil {
			return
		}
		if again, err := readGreeting(bytes.NewReader(g.encode())); err != nil || again != g {
			t.Errorf("%+v became %+v, %v", g, again, err)
		}
		c, fresh := srv.find(g)
		switch {
		case fresh:
			if g.known || g.lane != 0 || g.received != 0 || g.id == there.id {
				t.Errorf("%+v is a new tunnel", g)
			}
			c.finish(ErrClosed)
			c.wg.Wait()
		case c != nil:
			if c != there || !g.known || g.token != there.token {
				t.Errorf("%+v is a known tunnel", g)
			}
			if _, ok := c.expect(g); ok && int(g.lane) >= len(c.links) {
				t.Errorf("lane %d", g.lane)
			}
			for _, l := range c.links { // for the next one
				l.attempt = 0
			}
		}
	})
}
