package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// Bounds of what one end keeps. A stream begins with a small window, which grows while its reader
// keeps up: a stream that nobody reads never costs more than the first.
const (
	firstWindow  = 128 << 10
	largeWindow  = 8 << 20
	growBudget   = 64 << 20               // of all windows of a tunnel, beyond the first
	growWithin   = 250 * time.Millisecond // a window used up faster than that is too small
	maxQueued    = 2 * chunkSize          // data of one stream waiting for the writer
	maxUnacked   = 16 << 20               // sent on a lane and not yet acknowledged
	maxFrames    = 4096                   // the same in number
	ackEvery     = 256 << 10              // bytes after which the receiver acknowledges
	ackFrames    = 256                    // frames, likewise
	ackDelay     = 100 * time.Millisecond
	maxStreams   = 1 << 16
	maxBacklog   = 4096    // streams that the peer opened and nobody accepted
	openQueue    = 4096    // frames without data that wait for the writer; Open waits beyond
	smallQueue   = 1 << 18 // of the same, and sent ones that the peer has not acknowledged
	closeTimeout = time.Second
)

// conn is one end of a tunnel. mu guards its fields, those of its links and of its streams. The
// writer and the reader of each link's transport, the goroutine that tends them, and on the
// session's side those that dial, belong to the conn; finish makes them end, Close waits for them.
type conn struct {
	o      Options
	id     [16]byte
	token  [16]byte
	dialer bool   // this end opened the tunnel; its streams have odd numbers
	dial   Dialer // of the session's side

	mu      sync.Mutex
	links   []*link // one for each lane
	room    sync.Cond
	streams map[uint32]*stream
	next    uint32
	grown   int // of growBudget
	backlog []*stream
	arrived chan struct{} // signals backlog
	closing bool
	quickAt time.Time // when something quick was last sent or received

	away chan struct{} // closed while the first lane has no transport

	err  error
	done chan struct{}
	wg   sync.WaitGroup

	onEnd func() // called once, without mu
}

func newConn(o Options, dialer bool) *conn {
	c := &conn{
		o: o.withDefaults(), dialer: dialer, streams: make(map[uint32]*stream),
		arrived: make(chan struct{}, 1), done: make(chan struct{}), away: make(chan struct{}), next: 2,
	}
	if dialer {
		c.next = 1
	}
	c.room.L = &c.mu
	for lane := range c.o.Lanes {
		c.links = append(c.links, newLink(c, lane))
	}
	c.wg.Add(1)
	go func() { defer c.wg.Done(); c.tend() }()
	return c
}

// Open implements Conn.
func (c *conn) Open(ctx context.Context) (Stream, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.links[0].small) >= openQueue { // no transport, or a peer that is slow to read
		stop := context.AfterFunc(ctx, func() {
			c.mu.Lock()
			c.room.Broadcast()
			c.mu.Unlock()
		})
		defer stop()
		for c.err == nil && ctx.Err() == nil && len(c.links[0].small) >= openQueue {
			c.room.Wait()
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
	switch {
	case c.err != nil:
		return nil, c.err
	case c.closing:
		return nil, ErrClosed
	case len(c.streams) >= maxStreams:
		return nil, fmt.Errorf("open stream: %d are open", len(c.streams))
	case c.next >= 1<<32-2:
		return nil, errors.New("open stream: the tunnel's numbers are used up")
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
			c.backlog[0] = nil
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

// Away implements Conn.
func (c *conn) Away() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.away
}

// awayLocked keeps away in step with the first lane's transport.
func (c *conn) awayLocked() {
	gone := c.links[0].transport == nil
	select {
	case <-c.away:
		if !gone {
			c.away = make(chan struct{})
		}
	default:
		if gone {
			close(c.away)
		}
	}
}

// Close implements Conn: what was written is sent, the peer is told, and nothing of this end is
// left when it returns. A peer that does not answer is waited for closeTimeout long.
func (c *conn) Close() error {
	c.mu.Lock()
	c.closing = true
	for _, s := range c.streams {
		s.change.Broadcast()
	}
	for _, l := range c.links {
		l.wantPing = l.wantPing || l.lane > 0 && len(l.unacked) > 0
		l.work.Broadcast()
	}
	c.room.Broadcast()
	alone := c.links[0].transport == nil
	c.mu.Unlock()
	if !alone {
		timeout := time.NewTimer(closeTimeout)
		defer timeout.Stop()
		select {
		case <-c.done:
		case <-timeout.C:
		}
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
		s.endLocked(err)
	}
	c.streams = map[uint32]*stream{}
	c.backlog = nil
	var transports []net.Conn
	for _, l := range c.links {
		// The chunks are left to the collector: a writer may still be in the middle of one.
		l.unacked, l.early, l.small, l.quick, l.bulk = nil, nil, nil, nil, nil
		if l.transport != nil {
			transports = append(transports, l.transport)
			l.transport = nil
		}
		l.ackTimer.Stop()
		l.work.Broadcast()
	}
	c.room.Broadcast()
	c.mu.Unlock()
	for _, t := range transports {
		t.Close()
	}
	if c.onEnd != nil {
		c.onEnd()
	}
	close(c.done)
}

func (c *conn) smallLocked(kind byte, stream, value uint32) {
	if c.err != nil {
		return
	}
	l := c.links[0]
	l.small = append(l.small, newHead(kind, stream, value, 0))
	l.work.Signal()
}

// receiveLocked acts on a frame about a stream, of whatever lane.
func (c *conn) receiveLocked(f *received) error {
	if l := c.links[0]; len(l.small)+len(l.unacked) > smallQueue {
		return errors.New("peer asks for answers and does not take them")
	}
	s := c.streams[f.stream]
	row, ok := receivers[f.kind]
	if !ok {
		return fmt.Errorf("frame of unknown kind %d", f.kind)
	}
	if s == nil && row.onStream { // it is over on our side; what was on its way is of no use
		if f.c != nil {
			f.c.free()
		}
		return nil
	}
	return row.take(c, s, f)
}

// receivers has what to do on each counted frame.
var receivers = map[byte]struct {
	onStream bool
	take     func(c *conn, s *stream, f *received) error
}{
	frameOpen:   {false, func(c *conn, _ *stream, f *received) error { return c.openedLocked(f.stream) }},
	frameData:   {true, func(_ *conn, s *stream, f *received) error { return s.arrivedLocked(f) }},
	frameFin:    {true, func(_ *conn, s *stream, f *received) error { return s.arrivedLocked(f) }},
	frameReset:  {true, func(_ *conn, s *stream, f *received) error { return s.resetLocked(f.value) }},
	frameCredit: {true, func(_ *conn, s *stream, f *received) error { return s.creditLocked(f.value) }},
	frameLane: {false, func(c *conn, _ *stream, f *received) error {
		if c.dialer && f.value == 1 && len(c.links) > 1 && !c.links[1].used {
			c.links[1].askTransport()
		}
		return nil
	}},
}

func (c *conn) openedLocked(id uint32) error {
	if id == 0 || id%2 == c.next%2 || c.streams[id] != nil {
		return fmt.Errorf("peer opened stream %d, which it may not", id)
	}
	if len(c.backlog) >= maxBacklog || len(c.streams) >= maxStreams || c.closing {
		c.smallLocked(frameReset, id, 0)
		return nil
	}
	s := newStream(c, id)
	s.known = true
	c.streams[id] = s
	c.backlog = append(c.backlog, s)
	c.signalLocked()
	return nil
}

// tend pings a silent peer, gives up a dead transport, and on the agent's side a session that does
// not come back, until the tunnel is over.
func (c *conn) tend() {
	every := c.o.Keepalive / 2
	if c.o.Resume > 0 {
		every = min(every, c.o.Resume/2)
	}
	tick := time.NewTicker(max(every, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-c.done:
			return
		case <-tick.C:
		}
		for _, l := range c.links {
			l.tend()
		}
	}
}

func (l *link) tend() {
	c := l.c
	c.mu.Lock()
	gen, alive, lost := l.gen, l.transport != nil, l.lostErr
	silent := time.Since(l.lastRecv)
	if alive && silent >= c.o.Keepalive {
		l.wantPing = true
		l.work.Signal()
	}
	missing := !alive && l.used && !c.dialer && time.Since(l.lostAt) >= c.o.Resume
	c.mu.Unlock()
	switch {
	case alive && silent >= c.o.DeadAfter:
		l.lose(gen, fmt.Errorf("nothing heard for %v", c.o.DeadAfter))
	case missing:
		c.finish(fmt.Errorf("session did not come back within %v: %w", c.o.Resume, lost))
	}
}
