// Package tunnel is the one logical connection between a session and an agent, and the streams on
// it.
package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"
)

// Conn is one end of a tunnel. Its methods may be called from any goroutine.
type Conn interface {
	// Open begins a stream. It does not wait for the peer.
	Open(ctx context.Context) (Stream, error)
	// Accept waits for a stream that the peer opened.
	Accept(ctx context.Context) (Stream, error)
	// Close ends the tunnel and every stream on it, on both ends.
	Close() error
	// Done is closed when the tunnel is over for good; Err then says why.
	Done() <-chan struct{}
	Err() error
}

// Stream is a byte stream with the manners of a TCP connection: half-close, reset, backpressure.
// Read, Write and the rest may be called from different goroutines.
type Stream interface {
	net.Conn
	// CloseWrite sends the end of our bytes; the peer reads io.EOF after the last of them.
	CloseWrite() error
	// Reset ends both directions at once; the peer's calls fail with a *ResetError carrying code
	// (a Linux errno, or 0).
	Reset(code uint32) error
}

// ResetError is what a stream's calls return after the peer reset it.
type ResetError struct{ Code uint32 }

func (e *ResetError) Error() string { return fmt.Sprintf("stream reset by peer (code %d)", e.Code) }

// ErrClosed is returned by the calls of a Conn or Stream that this end has closed.
var ErrClosed = errors.New("tunnel closed")

// Dialer gives a fresh transport connection to the same agent; it is called again whenever the
// last one was lost, and for each further lane. It must return when ctx is done, and may be called
// from two goroutines at once.
type Dialer func(ctx context.Context) (net.Conn, error)

// Options set the times of a tunnel; the zero value has the defaults.
type Options struct {
	Keepalive time.Duration // ping a silent peer this often; default 10 s
	DeadAfter time.Duration // give up a transport on which nothing came for so long; default 30 s
	Resume    time.Duration // how long a lost transport may be missing; default 60 s, negative: not at all
	Lanes     int           // transports side by side, 1 or 2; default 2: small traffic and bulk
}

func (o Options) withDefaults() Options {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&o.Keepalive, 10*time.Second)
	def(&o.DeadAfter, 30*time.Second)
	def(&o.Resume, 60*time.Second)
	if o.Lanes <= 0 || o.Lanes > maxLanes {
		o.Lanes = maxLanes
	}
	return o
}

// ErrUnknownTunnel ends a tunnel whose peer does not know it any more: the agent was started anew.
// A Dialer that knows the agent to be gone for good returns an error that wraps it: no further
// attempt is made.
var ErrUnknownTunnel = errors.New("the agent does not know this tunnel any more")
