package kube

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/client-go/transport/spdy"
)

const spdyProtocol = "portforward.k8s.io"

func (c *Client) forwardSPDY(ctx context.Context, path string, port int) (net.Conn, error) {
	rt, upgrader, err := spdy.RoundTripperFor(c.config)
	if err != nil {
		return nil, err
	}
	u := *c.base
	u.Path += path
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), nil)
	if err != nil {
		return nil, err
	}
	conn, _, err := spdy.Negotiate(upgrader, &http.Client{Transport: rt}, req, spdyProtocol)
	if err != nil {
		return nil, err
	}
	f, err := openSPDY(ctx, conn, port)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("open a stream to port %d: %w", port, err)
	}
	return f, nil
}

// openSPDY makes the two streams of one forwarded connection. The library waits for the peer
// without end, so ctx closes what it waits on.
func openSPDY(ctx context.Context, conn httpstream.Connection, port int) (net.Conn, error) {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	h := http.Header{}
	h.Set("streamType", "error")
	h.Set("port", strconv.Itoa(port))
	h.Set("requestID", "0")
	trouble, err := conn.CreateStream(h)
	if err != nil {
		return nil, err
	}
	trouble.Close() // we say nothing on it
	h.Set("streamType", "data")
	data, err := conn.CreateStream(h)
	if err != nil {
		return nil, err
	}
	f := &spdyForward{Stream: data, conn: conn, said: make(chan error, 1)}
	go func() { // ends with the connection
		text, err := io.ReadAll(io.LimitReader(trouble, maxErrorText))
		if err == nil && len(text) > 0 {
			f.said <- &forwardFailure{string(text)}
			conn.Close()
		}
		close(f.said)
	}()
	return f, nil
}

// spdyForward is a forward over a SPDY connection of its own. A deadline that passes while a call
// waits ends it; one that is set meanwhile counts for the next call.
type spdyForward struct {
	httpstream.Stream
	conn        httpstream.Connection
	said        chan error // the kubelet's complaint, then closed
	read, write limit
}

// limit is the deadline of one direction.
type limit struct {
	mu   sync.Mutex
	at   time.Time
	late bool
}

func (l *limit) set(t time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.at = t
	return nil
}

// bound runs call, which expire ends when the deadline passes: the library has none of its own.
func (l *limit) bound(expire func(), call func() (int, error)) (int, error) {
	l.mu.Lock()
	if l.at.IsZero() {
		l.mu.Unlock()
		return call()
	}
	t := time.AfterFunc(time.Until(l.at), func() {
		l.mu.Lock()
		l.late = true
		l.mu.Unlock()
		expire()
	})
	l.mu.Unlock()
	n, err := call()
	t.Stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.late && err != nil {
		err = os.ErrDeadlineExceeded
	}
	return n, err
}

// why is the kubelet's own word for an error, where it said one.
func (f *spdyForward) why(err error) error {
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	select {
	case said, ok := <-f.said:
		if ok {
			return said
		}
	case <-time.After(100 * time.Millisecond): // it comes on a stream of its own
	}
	return err
}

// Read implements net.Conn.
func (f *spdyForward) Read(p []byte) (int, error) {
	n, err := f.read.bound(f.end, func() (int, error) { return f.Stream.Read(p) })
	if n > 0 {
		return n, nil
	}
	return n, f.why(err)
}

// Write implements net.Conn.
func (f *spdyForward) Write(p []byte) (int, error) {
	n, err := f.write.bound(f.end, func() (int, error) { return f.Stream.Write(p) })
	return n, f.why(err)
}

func (f *spdyForward) end() { f.conn.Close() }

// Close implements net.Conn.
func (f *spdyForward) Close() error { return f.conn.Close() }

// SetDeadline implements net.Conn.
func (f *spdyForward) SetDeadline(t time.Time) error {
	return errors.Join(f.SetReadDeadline(t), f.SetWriteDeadline(t))
}

// SetReadDeadline implements net.Conn.
func (f *spdyForward) SetReadDeadline(t time.Time) error { return f.read.set(t) }

// SetWriteDeadline implements net.Conn.
func (f *spdyForward) SetWriteDeadline(t time.Time) error { return f.write.set(t) }

// LocalAddr implements net.Conn.
func (f *spdyForward) LocalAddr() net.Addr { return spdyAddr{} }

// RemoteAddr implements net.Conn.
func (f *spdyForward) RemoteAddr() net.Addr { return spdyAddr{} }

type spdyAddr struct{}

func (spdyAddr) Network() string { return "spdy" }
func (spdyAddr) String() string  { return "port-forward" }
