package tunnel

import (
	"bufio"
	"context"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// Server is the agent's side: it makes tunnels of transports. Its methods may be called from any
// goroutine.
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
	return &Server{
		o: o.withDefaults(), tunnels: make(map[[16]byte]*conn),
		backlog: make(chan *conn, maxTunnels), done: make(chan struct{}),
	}
}

// Handle takes a transport on which a session's side has something to say, and returns when it is
// in use, or not: then it is closed. It waits for the greeting, so each call wants a goroutine.
func (s *Server) Handle(ctx context.Context, t net.Conn) error {
	stop := context.AfterFunc(ctx, func() { t.Close() })
	defer stop()
	err := s.handle(t)
	if err != nil {
		t.Close()
	}
	return err
}

func (s *Server) handle(t net.Conn) error {
	_ = t.SetDeadline(time.Now().Add(greetTimeout))
	g, err := readGreeting(t) // not a byte more: a descriptor may come with the next
	if err != nil {
		return fmt.Errorf("greeting: %w", err)
	}
	c, fresh := s.find(g)
	var answer [answerSize]byte
	if c == nil {
		answer[0] = statusUnknown
		_, _ = t.Write(answer[:])
		return ErrUnknownTunnel
	}
	if g.lane == laneHandoff {
		c.takeHanded(t, g)
		return nil
	}
	received, ok := c.expect(g)
	if !ok {
		answer[0] = statusLane
		_, _ = t.Write(answer[:])
		return errors.New("greeting of a lane that there is not, or of a transport given up already")
	}
	binary.BigEndian.PutUint64(answer[1:], received)
	if _, err = t.Write(answer[:]); err == nil {
		_ = t.SetDeadline(time.Time{})
		if !c.links[g.lane].attach(t, bufio.NewReaderSize(t, readBuffer), g.received, g.attempt) {
			err = errors.New("greeting of a transport that is given up already")
		}
	}
	switch {
	case err != nil && fresh:
		c.finish(err)
		c.wg.Wait()
	case fresh:
		select {
		case s.backlog <- c:
		case <-c.done: // the queue is full of tunnels that have ended
		}
	}
	return err
}

// expect prepares the greeting's lane for a new transport: from the old one nothing more is taken,
// so the number of frames received is final.
func (c *conn) expect(g greeting) (received uint64, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if int(g.lane) >= len(c.links) || c.err != nil {
		return 0, false
	}
	l := c.links[g.lane]
	if g.attempt <= l.attempt {
		return 0, false
	}
	l.attempt = g.attempt
	if l.transport != nil {
		l.dropLocked(errors.New("the session came with another connection"))
	}
	return l.recvSeq, true
}

// find gives the tunnel that the greeting is about, nil for none.
func (s *Server) find(g greeting) (c *conn, fresh bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c = s.tunnels[g.id]
	if g.known {
		if c == nil || subtle.ConstantTimeCompare(c.token[:], g.token[:]) != 1 {
			return nil, false
		}
		return c, false
	}
	if c != nil || s.closed || len(s.tunnels) >= maxTunnels || g.received != 0 || g.lane != 0 {
		return nil, false
	}
	c = newConn(s.o, false)
	c.id, c.token = g.id, g.token
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
	var ends sync.WaitGroup
	for _, c := range all {
		ends.Go(func() { c.Close() })
	}
	ends.Wait()
}
