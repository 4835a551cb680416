package tunnel

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// A transport begins with a greeting of the session's side: magic, whether the tunnel is new, its
// id and secret token, and the number of frames that it has received. The agent's side answers
// with a status and its own number. What the token protects is a resumption; who may open a tunnel
// at all is the business of what is said on it.
var magic = [8]byte{'s', 't', 'e', 'a', 'd', 0, 0, 1}

const (
	greetingSize = 8 + 1 + 16 + 16 + 8
	answerSize   = 1 + 8

	statusOK      = 0
	statusUnknown = 1

	greetTimeout = 20 * time.Second
	readBuffer   = 128 << 10
)

type greeting struct {
	resume    bool
	id, token [16]byte
	received  uint64
}

func (g *greeting) encode() []byte {
	b := append(make([]byte, 0, greetingSize), magic[:]...)
	if g.resume {
		b = append(b, 1)
	} else {
		b = append(b, 0)
	}
	b = append(b, g.id[:]...)
	b = append(b, g.token[:]...)
	return binary.BigEndian.AppendUint64(b, g.received)
}

func readGreeting(r io.Reader) (g greeting, err error) {
	var b [greetingSize]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return g, err
	}
	if [8]byte(b[:8]) != magic {
		return g, errors.New("not a stead session")
	}
	g.resume = b[8] == 1
	g.id, g.token = [16]byte(b[9:25]), [16]byte(b[25:41])
	g.received = binary.BigEndian.Uint64(b[41:])
	return g, nil
}

// Dial opens a tunnel over the transport that dial gives, and dials again whenever that is lost,
// for as long as o.Resume. ctx bounds the opening only.
func Dial(ctx context.Context, dial Dialer, o Options) (Conn, error) {
	c := newConn(o, true)
	rand.Read(c.id[:])
	rand.Read(c.token[:])
	again := make(chan error, 1)
	c.onLoss = func(err error) {
		if c.o.Resume < 0 {
			c.finish(fmt.Errorf("connection to the agent lost: %w", err))
			return
		}
		select {
		case again <- err:
		default:
		}
	}
	if err := c.greet(ctx, dial, false); err != nil {
		c.finish(err)
		c.wg.Wait()
		return nil, err
	}
	c.wg.Add(1)
	go func() {
		defer c.wg.Done()
		for {
			select {
			case <-c.done:
				return
			case lost := <-again:
				if err := c.redial(dial); err != nil {
					c.finish(fmt.Errorf("connection to the agent lost (%w), and not to be had again: %w", lost, err))
					return
				}
			}
		}
	}()
	return c, nil
}

// redial tries until the peer answers, says that it does not know us, or the time is over.
func (c *conn) redial(dial Dialer) error {
	ctx, cancel := context.WithTimeout(context.Background(), c.o.Resume)
	defer cancel()
	go func() { // ends with ctx
		select {
		case <-c.done:
			cancel()
		case <-ctx.Done():
		}
	}()
	var last error
	for wait := 20 * time.Millisecond; ; wait = min(wait*2, 2*time.Second) {
		err := c.greet(ctx, dial, true)
		if err == nil || errors.Is(err, ErrUnknownTunnel) {
			return err
		}
		if ctx.Err() == nil || last == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return last
		case <-time.After(wait):
		}
	}
}

// greet dials once and makes the result the transport.
func (c *conn) greet(ctx context.Context, dial Dialer, resume bool) error {
	t, err := dial(ctx)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { t.Close() })
	c.mu.Lock()
	g := greeting{resume: resume, id: c.id, token: c.token, received: c.recvSeq}
	c.mu.Unlock()
	_ = t.SetDeadline(time.Now().Add(greetTimeout))
	r := bufio.NewReaderSize(t, readBuffer)
	var b [answerSize]byte
	if _, err = t.Write(g.encode()); err == nil {
		_, err = io.ReadFull(r, b[:])
	}
	if !stop() {
		err = context.Cause(ctx)
	}
	switch {
	case err != nil:
		err = fmt.Errorf("greet: %w", err)
	case b[0] != statusOK:
		err = ErrUnknownTunnel
	default:
		_ = t.SetDeadline(time.Time{})
		if c.attach(t, r, binary.BigEndian.Uint64(b[1:])) {
			return nil
		}
		err = ErrUnknownTunnel
	}
	t.Close()
	return err
}

// Server is the agent's side: it makes tunnels of transports.
type Server struct {
	o Options

	mu      sync.Mutex
	tunnels map[[16]byte]*conn
	backlog chan *conn
	closed  bool
	done    chan struct{}
}

// maxTunnels bounds the sessions of one agent.
const maxTunnels = 256

// NewServer returns a server without tunnels.
func NewServer(o Options) *Server {
	return &Server{o: o.withDefaults(), tunnels: make(map[[16]byte]*conn), backlog: make(chan *conn, maxTunnels), done: make(chan struct{})}
}

// Handle takes a transport on which a session's side has something to say, and returns when it is
// in use, or not: then it is closed. It waits for the greeting, so each call wants a goroutine.
func (s *Server) Handle(ctx context.Context, t net.Conn) error {
	stop := context.AfterFunc(ctx, func() { t.Close() })
	defer stop()
	_ = t.SetDeadline(time.Now().Add(greetTimeout))
	r := bufio.NewReaderSize(t, readBuffer)
	g, err := readGreeting(r)
	if err != nil {
		t.Close()
		return fmt.Errorf("greeting: %w", err)
	}
	c, fresh := s.find(g)
	var answer [answerSize]byte
	if c == nil {
		answer[0] = statusUnknown
		_, _ = t.Write(answer[:])
		t.Close()
		return ErrUnknownTunnel
	}
	c.mu.Lock()
	if c.transport != nil { // the session gave it up before we noticed: nothing more is read from it
		old := c.transport
		c.transport = nil
		c.gen++
		c.work.Broadcast()
		old.Close()
	}
	binary.BigEndian.PutUint64(answer[1:], c.recvSeq)
	c.mu.Unlock()
	if _, err := t.Write(answer[:]); err != nil {
		t.Close()
		if fresh {
			c.finish(err)
		} else {
			c.onLoss(err)
		}
		return err
	}
	_ = t.SetDeadline(time.Time{})
	if !c.attach(t, r, g.received) {
		// An old greeting, overtaken by a newer transport: the session has given it up.
		t.Close()
		return errors.New("greeting of a transport that is given up already")
	}
	if fresh {
		s.backlog <- c // has room for every tunnel
	}
	return nil
}

// find gives the tunnel that the greeting is about, nil for none.
func (s *Server) find(g greeting) (c *conn, fresh bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c = s.tunnels[g.id]
	if g.resume {
		if c == nil || subtle.ConstantTimeCompare(c.token[:], g.token[:]) != 1 {
			return nil, false
		}
		return c, false
	}
	if c != nil || s.closed || len(s.tunnels) >= maxTunnels || g.received != 0 {
		return nil, false
	}
	c = newConn(s.o, false)
	c.id, c.token = g.id, g.token
	// A tunnel whose session does not come back is ended.
	c.onLoss = func(err error) {
		if s.o.Resume < 0 {
			c.finish(fmt.Errorf("session gone: %w", err))
			return
		}
		time.AfterFunc(s.o.Resume, func() {
			c.mu.Lock()
			missing := c.transport == nil && time.Since(c.lostAt) >= s.o.Resume
			c.mu.Unlock()
			if missing {
				c.finish(fmt.Errorf("session did not come back within %v: %w", s.o.Resume, err))
			}
		})
	}
	c.onEnd = func() {
		s.mu.Lock()
		delete(s.tunnels, g.id)
		s.mu.Unlock()
	}
	s.tunnels[g.id] = c
	return c, true
}

// Accept waits for a new tunnel.
func (s *Server) Accept(ctx context.Context) (Conn, error) {
	select {
	case c := <-s.backlog:
		return c, nil
	case <-s.done:
		return nil, ErrClosed
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// Tunnels returns how many tunnels there are, those that wait for their session's return included.
func (s *Server) Tunnels() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.tunnels)
}

// Close ends every tunnel.
func (s *Server) Close() {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.done)
	}
	all := make([]*conn, 0, len(s.tunnels))
	for _, c := range s.tunnels {
		all = append(all, c)
	}
	s.mu.Unlock()
	for _, c := range all {
		c.Close()
	}
}

// Pipe returns the two ends of a tunnel over memory, for tests.
func Pipe() (session, agent Conn) {
	a, b := newConn(Options{}, true), newConn(Options{}, false)
	for _, c := range []*conn{a, b} {
		c.onLoss = func(err error) { c.finish(err) }
	}
	x, y := net.Pipe()
	a.attach(x, bufio.NewReaderSize(x, readBuffer), 0)
	b.attach(y, bufio.NewReaderSize(y, readBuffer), 0)
	return a, b
}
