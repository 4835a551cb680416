package tunnel

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"time"
)

// Relay carries bytes between a TCP connection and a stream until both directions have ended, and
// owns both. An end of bytes is passed on as one, a reset as a reset with its errno. ctx ends it.
// While nothing comes it holds two goroutines and no buffer.
func Relay(ctx context.Context, c net.Conn, s Stream) {
	(&relay{ctx: ctx, c: c, s: s, settled: make(chan struct{})}).run()
}

// Feed is Relay for who only listens: what comes from c is read and dropped, and of it only the end, or
// a reset, is passed on.
func Feed(ctx context.Context, c net.Conn, s Stream) {
	(&relay{ctx: ctx, c: c, s: s, drop: true, settled: make(chan struct{})}).run()
}

func (r *relay) run() {
	ctx, c, s := r.ctx, r.c, r.s
	wake := func() { _ = c.SetDeadline(time.Unix(1, 0)) }
	stop := context.AfterFunc(ctx, func() { _ = s.Reset(0); wake() })
	defer stop()
	if own, ok := s.(*stream); ok {
		r.own = own
		own.relayed(wake, r) // a reset of the stream ends what waits for c, too
	}
	done := make(chan bool, 1)
	go func() { done <- r.send() }()
	whole := r.receive()
	whole = <-done && whole
	r.finish(whole)
}

// relay is one end of a relayed connection. mu guards what is below it; a stream's conn.mu may be
// held when it is taken, but not the other way round.
type relay struct {
	ctx context.Context
	c   net.Conn
	s   Stream
	own *stream // s, where it is one of ours

	drop bool // what comes from c goes nowhere

	mu      sync.Mutex
	ended   bool // one direction is over: there is nothing to hand over any more
	asking  bool // the session's side waits for the agent's answer
	handed  bool
	side    *net.UnixConn
	other   net.Conn      // agent's side: the connection that came
	settled chan struct{} // closed when asking is over
}

// relayed tells the stream who relays it: wake is called when both its directions have ended by a
// reset or with the tunnel, now if they have, and must not block.
func (s *stream) relayed(wake func(), r *relay) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if s.outEnd != nil && s.inEnd != nil {
		wake()
		return
	}
	s.wake = wake
	if p, ok := r.c.(*net.TCPConn); ok && !r.drop {
		if s.c.canHandLocked() {
			s.offer = func() { r.offer(p) }
		} else if !s.c.dialer {
			s.take = r.take
		}
	}
}

// offer begins to hand p to the agent. It is called once, with conn.mu.
func (r *relay) offer(p *net.TCPConn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		return
	}
	r.asking = true
	go func() { // receive, or finish, waits for it
		side, unsure, err := r.own.c.hand(r.ctx, r.own.id, p)
		if unsure {
			_ = r.s.Reset(uint32(syscall.ECONNRESET)) // no byte must be lost unnoticed
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if err == nil {
			r.handed, r.side = true, side
			_ = r.c.SetReadDeadline(time.Unix(1, 0))
		}
		close(r.settled)
	}()
}

// take is the agent's answer to offer.
func (r *relay) take(other net.Conn, side *net.UnixConn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended || r.handed {
		return false
	}
	r.handed, r.other, r.side = true, other, side
	_ = r.c.SetReadDeadline(time.Unix(1, 0))
	return true
}

// isHanded says whether what follows on c is not for this relay. final: the answer is needed, and
// it is the last moment to hand over.
func (r *relay) isHanded(final bool) bool {
	r.mu.Lock()
	asking := r.asking
	if !asking && !r.handed && final {
		r.ended = true
	}
	r.mu.Unlock()
	if asking && final {
		<-r.settled // within handoffTimeout
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.handed
}

// finish ends the relay after both directions.
func (r *relay) finish(whole bool) {
	defer r.s.Close()
	defer r.c.Close()
	if !r.isHanded(true) {
		return
	}
	switch {
	case !whole:
		r.side.Close()
		if r.other != nil {
			abort(r.other)
		}
	case r.other != nil:
		splice(r.ctx, r.c, r.other, r.side)
	default:
		defer keep(r.c)()
		defer r.side.Close()
		_ = r.c.Close() // the agent has it
		stop := context.AfterFunc(r.ctx, func() { _ = r.side.SetDeadline(time.Unix(1, 0)) })
		defer stop()
		if _, err := r.side.Write([]byte{0}); err == nil {
			_, _ = io.Copy(io.Discard, r.side) // to the connection's end
		}
	}
}

// send carries c's bytes to s, and says whether it came to an end in order.
func (r *relay) send() bool {
	var err error
	if r.drop {
		err = discard(r.c)
	} else if f, ok := r.s.(io.ReaderFrom); ok {
		_, err = f.ReadFrom(r.c) // moves whole chunks
	} else {
		_, err = io.Copy(r.s, r.c)
	}
	if err == nil {
		if !r.isHanded(false) {
			r.mu.Lock()
			r.ended = !r.asking && !r.handed
			r.mu.Unlock()
		}
		_ = r.s.CloseWrite()
		return true
	}
	if timeout(err) && r.isHanded(false) && r.ctx.Err() == nil {
		return r.s.CloseWrite() == nil
	}
	_ = r.s.Reset(code(err))
	abort(r.c)
	return false
}

// receive carries s's bytes to c, and says whether it came to an end in order.
func (r *relay) receive() bool {
	var err error
	if w, ok := r.s.(io.WriterTo); ok {
		_, err = w.WriteTo(r.c)
	} else {
		_, err = io.Copy(r.c, r.s)
	}
	if err == nil {
		if !r.isHanded(true) {
			_ = closeWrite(r.c)
		}
		return true
	}
	_ = r.s.Reset(code(err))
	abort(r.c)
	return false
}

func timeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

// code is what a reset says about err. Where no errno is known it is what a peer sees of a process
// that died.
func code(err error) uint32 {
	var errno syscall.Errno
	if errors.As(err, &errno) && errno != syscall.EPIPE {
		return uint32(errno)
	}
	return uint32(syscall.ECONNRESET)
}

// abort closes c so that its peer sees a reset, and wakes what waits for it.
func abort(c net.Conn) {
	if t, ok := c.(interface{ SetLinger(int) error }); ok {
		_ = t.SetLinger(0)
	}
	_ = c.Close()
}
