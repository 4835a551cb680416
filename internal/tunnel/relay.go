package tunnel

import (
	"context"
	"errors"
	"io"
	"net"
	"syscall"
	"time"
)

// Relay carries bytes between a TCP connection and a stream until both directions have ended, and
// owns both. An end of bytes is passed on as one, a reset as a reset with its errno. ctx ends it.
// While nothing comes it holds two goroutines and no buffer.
func Relay(ctx context.Context, c net.Conn, s Stream) {
	wake := func() { _ = c.SetDeadline(time.Unix(1, 0)) }
	stop := context.AfterFunc(ctx, func() { _ = s.Reset(0); wake() })
	defer stop()
	if own, ok := s.(*stream); ok {
		own.onEnd(wake) // a reset of the stream ends what waits for c, too
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		send(c, s)
	}()
	receive(c, s)
	<-done
	_ = c.Close()
	_ = s.Close()
}

// send carries c's bytes to s.
func send(c net.Conn, s Stream) {
	var err error
	if r, ok := s.(io.ReaderFrom); ok {
		_, err = r.ReadFrom(c) // moves whole chunks
	} else {
		_, err = io.Copy(s, c)
	}
	if err == nil {
		_ = s.CloseWrite()
		return
	}
	_ = s.Reset(code(err))
	abort(c)
}

// receive carries s's bytes to c.
func receive(c net.Conn, s Stream) {
	var err error
	if w, ok := s.(io.WriterTo); ok {
		_, err = w.WriteTo(c)
	} else {
		_, err = io.Copy(c, s)
	}
	if err == nil {
		if h, ok := c.(interface{ CloseWrite() error }); ok {
			_ = h.CloseWrite()
		}
		return
	}
	_ = s.Reset(code(err))
	abort(c)
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

// onEnd has f called when both directions have ended by a reset or with the tunnel, now if they
// have. f must not block, nor use the stream.
func (s *stream) onEnd(f func()) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if s.outEnd != nil && s.inEnd != nil {
		f()
		return
	}
	s.wake = f
}
