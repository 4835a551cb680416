package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// Options set the times of a tunnel; the zero value has the defaults.
type Options struct {
	Keepalive time.Duration // ping a silent peer this often; default 10 s
	DeadAfter time.Duration // give up a transport on which nothing came for so long; default 30 s
	Resume    time.Duration // how long a lost transport may be missing; default 60 s, negative: not at all
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
	return o
}

// Bounds of what one end keeps. A stream begins with a small window, which grows as its reader
// keeps up: a stream that nobody reads never costs more than the first.
const (
	firstWindow  = 128 << 10
	largeWindow  = 4 << 20
	maxQueued    = 2 * chunkSize // data of one stream waiting for the writer
	maxUnacked   = 16 << 20      // sent and not yet acknowledged; the writer waits beyond it
	ackEvery     = 512 << 10     // bytes after which the receiver acknowledges
	ackFrames    = 256           // frames, likewise
	maxStreams   = 1 << 16
	maxBacklog   = 4096 // streams that the peer opened and nobody accepted
	batchBytes   = 4 * chunkSize
	ackDelay     = 100 * time.Millisecond
	maxFrames    = 4096 // sent and not yet acknowledged, in number
	closeTimeout = time.Second
)

// ErrUnknownTunnel ends a tunnel whose peer does not know it any more: the agent was started anew.
var ErrUnknownTunnel = errors.New("the agent does not know this tunnel any more")

// conn is one end of a tunnel. mu guards all fields without a note, those of the streams too. The
// writer and the reader of the current transport, and on the session's side the goroutine that
// dials again, belong to the conn; finish makes them end, Close waits for them.
type conn struct {
	o      Options
	id     [16]byte
	token  [16]byte
	dialer bool // this end opened the tunnel; its streams have odd numbers

	mu      sync.Mutex
	work    sync.Cond // the writer has something to do, or its transport changed
	streams map[uint32]*stream
	next    uint32
	backlog []*stream
	arrived chan struct{} // signals backlog
	small   []sent        // frames without data, sent first
	ready   []*stream     // streams with data (or a fin) to send, round robin

	unacked      []sent // sent, kept for the next transport
	unackedBytes int
	sentSeq      uint64 // frames sent, ever
	ackedSeq     uint64 // of those, acknowledged
	recvSeq      uint64 // frames received, ever
	ackedToPeer  uint64
	recvBytes    int // since the last ack
	wantAck      bool
	wantPing     bool
	closing      bool

	transport net.Conn // nil while there is none
	gen       uint64   // counts transports
	lastRecv  time.Time
	lostAt    time.Time

	lostErr  error
	ackTimer *time.Timer

	err  error
	done chan struct{}
	wg   sync.WaitGroup

	onLoss func(error) // called without mu when a transport was lost
	onEnd  func()      // called once, without mu
}

func newConn(o Options, dialer bool) *conn {
	c := &conn{
		o: o.withDefaults(), dialer: dialer, streams: make(map[uint32]*stream),
		arrived: make(chan struct{}, 1), done: make(chan struct{}), next: 2,
	}
	if dialer {
		c.next = 1
	}
	c.work.L = &c.mu
	c.ackTimer = time.AfterFunc(time.Hour, c.owedAck)
	c.ackTimer.Stop()
	c.wg.Add(1)
	go func() { defer c.wg.Done(); c.tend() }()
	return c
}

// Open implements Conn.
func (c *conn) Open(context.Context) (Stream, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return nil, c.err
	}
	if len(c.streams) >= maxStreams {
		return nil, fmt.Errorf("open stream: %d are open", len(c.streams))
	}
	s := newStream(c, c.next)
	c.next += 2
	c.streams[s.id] = s
	c.smallLocked(frameOpen, s.id, 0)
	return s, nil
}

// Accept implements Conn.
func (c *conn) Accept(ctx context.Context) (Stream, error) {
	for {
		c.mu.Lock()
		if len(c.backlog) > 0 {
			s := c.backlog[0]
			c.backlog = c.backlog[1:]
			if len(c.backlog) > 0 {
				c.signalLocked()
			}
			c.mu.Unlock()
			return s, nil
		}
		err := c.err
		c.mu.Unlock()
		if err != nil {
			return nil, err
		}
		select {
		case <-c.arrived:
		case <-c.done:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (c *conn) signalLocked() {
	select {
	case c.arrived <- struct{}{}:
	default:
	}
}

// Done implements Conn.
func (c *conn) Done() <-chan struct{} { return c.done }

// Err implements Conn.
func (c *conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close implements Conn: what was written is sent, the peer is told, and nothing of this end is
// left when it returns.
func (c *conn) Close() error {
	c.mu.Lock()
	c.closing = true
	for _, s := range c.streams {
		s.change.Broadcast()
	}
	c.work.Broadcast()
	c.mu.Unlock()
	select {
	case <-c.done:
	case <-time.After(closeTimeout): // a peer that does not read
	}
	c.finish(ErrClosed)
	c.wg.Wait()
	return nil
}

// finish ends the tunnel with err, once.
func (c *conn) finish(err error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = err
	for _, s := range c.streams {
		s.failLocked(err)
	}
	c.streams = map[uint32]*stream{}
	// The chunks are left to the collector: a writer may still be in the middle of one.
	c.unacked, c.small, c.ready, c.backlog = nil, nil, nil, nil
	t := c.transport
	c.transport = nil
	c.work.Broadcast()
	c.mu.Unlock()
	if t != nil {
		t.Close()
	}
	if c.onEnd != nil {
		c.onEnd()
	}
	close(c.done)
}

func (c *conn) smallLocked(kind byte, stream, value uint32) {
	var f sent
	putHead(f.head[:], kind, stream, value)
	c.small = append(c.small, f)
	c.work.Signal()
}
