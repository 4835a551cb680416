// Package tunnel is the one logical connection between a session and an agent, and the streams on
// it. A stream has the manners of a TCP connection: half-close, reset with an errno, backpressure.
// The tunnel outlives its transports: each end counts what it sends, keeps what the peer has not
// acknowledged, and sends it again when the session's side has dialled anew; no byte is lost or
// doubled. Who may open a tunnel, and what is said on it, is not its business.
//
// A tunnel has one or two lanes, each with a transport of its own (link.go). Small traffic and all
// frames without data take the first; a stream that sends much takes the second, which is dialled
// when it is first needed (schedule.go). A lane is ordered and resumes by itself; frames of one
// stream carry a number, so that they may take either. How much bulk is on its way follows the
// measured delay, as a proxy between the ends would queue it in front of everything else. Where
// both ends are on one machine a connection that carries much is handed to the agent by its
// descriptor and leaves the tunnel (handoff.go).
//
// Memory is bounded by credit: a stream may have a window of data unread, which is small at first
// and grows while its reader keeps up, within a budget of the tunnel; of what is unacknowledged a
// lane keeps a bounded amount, and then waits. The reader of a transport never waits for anybody.
//
// It is our own because no library has reset codes, precedence or resumption. Nor does one cost
// less: medians of test/bench/mux on 2 CPUs, both ends in one process, over a unix socket pair and
// over loopback TCP:
//
//	                                      ours          smux          yamux
//	bulk, MB/s                            4333, 2625    3568, 2189    4091, 2176
//	1 KiB there and back, us              11.8, 17.4    15.4, 21.0    15.7, 31.1
//	the same, 10 at once                  73, 121       80, 194       102, 245
//	the same, beside a bulk stream        12.2, 18.2    58, 65        91, 31
//
// To change it one must know: conn.mu guards everything of a tunnel, and whoever holds it waits for
// nothing; a frame's memory belongs to the link until the peer has acknowledged it; both ends are
// of the same version, which the greeting's magic says (greeting.go): change that with any frame.
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
	// Away is closed while the peer cannot be reached: what is sent waits for its return. Each
	// absence has a channel of its own.
	Away() <-chan struct{}
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
