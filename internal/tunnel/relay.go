package tunnel

import (
	"context"
	"errors"
	"io"
	"net"
	"syscall"
)

// Relay carries bytes between a TCP connection and a stream until both directions have ended, and
// owns both. An end of bytes is passed on as one; a reset as a reset.
func Relay(ctx context.Context, c net.Conn, s Stream) {
	stop := context.AfterFunc(ctx, func() { s.Reset(0); c.Close() })
	defer stop()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, err := copyTo(s, c)
		if err == nil {
			s.CloseWrite()
			return
		}
		s.Reset(uint32(syscall.ECONNRESET))
		abort(c)
	}()
	_, err := copyFrom(c, s)
	var reset *ResetError
	switch {
	case err == nil:
		if h, ok := c.(interface{ CloseWrite() error }); ok {
			h.CloseWrite()
		}
	case errors.As(err, &reset):
		abort(c)
	default:
		s.Reset(uint32(syscall.ECONNRESET))
		abort(c)
	}
	<-done
	c.Close()
	s.Close()
}

func abort(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		t.SetLinger(0)
	}
	c.Close()
}

// copyTo and copyFrom use the stream's own loops, which move whole chunks.
func copyTo(s Stream, c net.Conn) (int64, error) {
	if r, ok := s.(io.ReaderFrom); ok {
		return r.ReadFrom(c)
	}
	return io.Copy(s, c)
}

func copyFrom(c net.Conn, s Stream) (int64, error) {
	if w, ok := s.(io.WriterTo); ok {
		return w.WriteTo(c)
	}
	return io.Copy(c, s)
}
