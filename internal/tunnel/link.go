package tunnel

import (
	"bufio"
	"fmt"
	"net"
	"sync"
	"time"
)

// link is one lane of a tunnel: frames go over it in order, and go on where they were when it
// gets a new transport. All fields are guarded by conn.mu.
type link struct {
	c    *conn
	lane int
	work sync.Cond // the writer has something to do, or its transport changed

	small []head    // frames without data, sent first
	quick []*stream // streams with little to send, served before bulk
	bulk  []*stream // streams with much, one chunk each in turn

	unacked      []sent // sent, kept for the next transport
	unackedBytes int
	sentSeq      uint64   // frames sent, ever
	ackedSeq     uint64   // of those, acknowledged
	written      uint64   // of those, in no writer's hand any more
	early        []*chunk // acknowledged before that: a writer may be in the middle of them
	recvSeq      uint64   // frames received, ever
	ackedToPeer  uint64
	recvBytes    int // since the last ack
	wantAck      bool
	wantPing     bool
	ackTimer     *time.Timer

	allow     map[*pace]int // bulk that may be unacknowledged
	probeAt   time.Time     // when a probe was sent, zero: none is on its way
	probeSeq  uint64        // answered when so many frames are acknowledged
	probePace *pace
	quickest  time.Duration // of this transport's probes

	transport net.Conn // nil while there is none
	used      bool     // it had one
	gen       uint64   // counts transports
	attempt   uint32   // of the session's side to connect; the highest counts
	lastRecv  time.Time
	lostAt    time.Time
	lostErr   error
	writer    chan struct{} // closed when the latest writer has ended
	again     chan struct{} // session's side: asks for a transport
	askedAt   time.Time     // when a first transport was asked for
}

func newLink(c *conn, lane int) *link {
	l := &link{c: c, lane: lane, again: make(chan struct{}, 1)}
	l.work.L = &c.mu
	l.ackTimer = time.AfterFunc(time.Hour, l.owedAck)
	l.ackTimer.Stop()
	return l
}

// attach makes t the link's transport; the peer has received peerRecv frames so far. It returns
// false when the tunnel is over, a later attempt has come, or the number cannot be.
func (l *link) attach(t net.Conn, r *bufio.Reader, peerRecv uint64, attempt uint32) bool {
	tune(t)
	c := l.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil || attempt != l.attempt || !l.ackLocked(peerRecv) {
		return false
	}
	if l.transport != nil {
		l.transport.Close() // the peer has given it up before we noticed
	}
	l.transport, l.used = t, true
	l.gen++
	l.lastRecv = time.Now()
	l.wantAck = true
	l.allow, l.quickest, l.probeAt = make(map[*pace]int), 0, time.Time{}
	for _, p := range paces {
		l.allow[p] = p.first
	}
	before, now := l.writer, make(chan struct{})
	l.writer = now
	c.wg.Add(2)
	go func(gen uint64) {
		defer c.wg.Done()
		defer close(now)
		if before != nil {
			<-before // what it has in hand is not to be freed
		}
		l.write(t, gen)
	}(l.gen)
	go func(gen uint64) { defer c.wg.Done(); l.read(t, r, gen) }(l.gen)
	l.work.Broadcast()
	c.awayLocked()
	c.rerouteLocked()
	return true
}

// dropLocked gives up the transport. What its reader still has in hand is not counted: the peer
// sends it again.
func (l *link) dropLocked(err error) {
	t := l.transport
	l.transport = nil
	l.gen++
	l.lostAt, l.lostErr = time.Now(), err
	l.work.Broadcast()
	t.Close()
	l.c.awayLocked()
	l.c.rerouteLocked()
}

// lose gives up transport gen after err. The session's side then dials again; the agent's waits.
func (l *link) lose(gen uint64, err error) {
	c := l.c
	c.mu.Lock()
	if l.gen != gen || l.transport == nil || c.err != nil {
		c.mu.Unlock()
		return
	}
	l.dropLocked(err)
	closing := c.closing
	c.mu.Unlock()
	switch {
	case closing:
		c.finish(ErrClosed)
	case c.o.Resume < 0:
		c.finish(fmt.Errorf("connection between session and agent lost: %w", err))
	default:
		l.askTransport()
	}
}

func (l *link) askTransport() {
	select {
	case l.again <- struct{}{}:
	default:
	}
}

// ackLocked notes that the peer has received n frames; false: it cannot have.
func (l *link) ackLocked(n uint64) bool {
	if n < l.ackedSeq || n > l.sentSeq {
		return false
	}
	for ; l.ackedSeq < n; l.ackedSeq++ {
		f := &l.unacked[0]
		l.unackedBytes -= len(f.bytes)
		if f.s != nil {
			f.s.onBulk--
		}
		switch {
		case f.c == nil:
		case l.ackedSeq < l.written:
			f.c.free()
		default: // the next who takes it would write for this peer
			l.early = append(l.early, f.c)
		}
		*f = sent{}
		l.unacked = l.unacked[1:]
	}
	if len(l.unacked) == 0 {
		l.unacked = nil
	}
	return true
}

// idleLocked notes that no writer has a frame in hand.
func (l *link) idleLocked() {
	l.written = l.sentSeq
	for _, k := range l.early {
		k.free()
	}
	clear(l.early)
	l.early = l.early[:0]
}

// keepLocked counts a frame and keeps it until it is acknowledged.
func (l *link) keepLocked(f sent) []byte {
	l.unacked = append(l.unacked, f)
	l.unackedBytes += len(f.bytes)
	l.sentSeq++
	return f.bytes
}

// write is the writer of transport gen. First it repeats what the peer has not seen.
func (l *link) write(t net.Conn, gen uint64) {
	c := l.c
	c.mu.Lock()
	if l.gen != gen {
		c.mu.Unlock()
		return
	}
	l.idleLocked() // the writer before has ended
	l.written = l.ackedSeq
	batch := make(net.Buffers, 0, max(64, len(l.unacked)))
	for i := range l.unacked {
		batch = append(batch, l.unacked[i].bytes)
	}
	c.mu.Unlock()
	buffers := batch[:0]
	for {
		if len(batch) > 0 {
			if err := flush(t, batch, c.o.DeadAfter); err != nil {
				l.lose(gen, err)
				return
			}
			clear(buffers[:cap(buffers)]) // acknowledged chunks are no longer ours
		}
		c.mu.Lock()
		l.idleLocked()
		for l.gen == gen && c.err == nil && !l.dueLocked() {
			l.work.Wait()
		}
		if l.gen != gen || c.err != nil {
			c.mu.Unlock()
			return
		}
		batch = l.batchLocked(buffers)
		buffers = batch[:0]
		last := l.lastLocked()
		if last {
			gone := newHead(frameGone, 0, 0, 0)
			batch = append(batch, gone[:])
		}
		c.mu.Unlock()
		if last {
			// The peer closes when it has read that; closing first, with its bytes unread, would
			// take the last word back.
			if err := flush(t, batch, c.o.DeadAfter); err != nil {
				l.lose(gen, err)
			}
			return
		}
	}
}

// flush writes b; a peer that takes nothing for limit is dead.
func flush(t net.Conn, b net.Buffers, limit time.Duration) error {
	_ = t.SetWriteDeadline(time.Now().Add(limit))
	if w, ok := t.(buffersWriter); ok {
		_, err := w.WriteBuffers(b)
		return err
	}
	_, err := b.WriteTo(t)
	return err
}

// buffersWriter is a transport that writes several pieces better than one after the other, as the
// kernel's do. It may change the slice.
type buffersWriter interface {
	WriteBuffers(net.Buffers) (int64, error)
}

// read is the reader of transport gen. It never waits for anybody but the transport: what arrives
// fits the windows that we gave, or the peer is broken.
func (l *link) read(t net.Conn, r *bufio.Reader, gen uint64) {
	c := l.c
	var h head
	for {
		f, err := readFrame(r, &h)
		if err != nil {
			l.lose(gen, err)
			return
		}
		c.mu.Lock()
		if l.gen != gen || c.err != nil {
			c.mu.Unlock()
			if f.c != nil {
				f.c.free()
			}
			return
		}
		l.lastRecv = time.Now()
		err = l.receiveLocked(&f)
		c.mu.Unlock()
		if err != nil {
			if err == ErrClosed {
				l.farewell(t, gen)
			}
			c.finish(err)
			return
		}
	}
}

// farewell answers a peer that closes the tunnel, so that it need not wait for the end of the
// transport: what is between us may keep that back (a container runtime that forwards a port does,
// for a second). The writer is through before, as the peer reads all that it had in hand.
func (l *link) farewell(t net.Conn, gen uint64) {
	c := l.c
	c.mu.Lock()
	if c.closing || l.gen != gen || c.err != nil {
		c.mu.Unlock()
		return
	}
	l.gen++
	writer := l.writer
	l.work.Broadcast()
	c.mu.Unlock()
	limit := time.NewTimer(farewellTime)
	defer limit.Stop()
	select {
	case <-writer:
		gone := newHead(frameGone, 0, 0, 0)
		_ = flush(t, net.Buffers{gone[:]}, farewellTime)
	case <-limit.C:
	}
}

const farewellTime = 200 * time.Millisecond

// receiveLocked acts on one frame. An error is the end of the tunnel: the peer broke the protocol,
// or closed it.
func (l *link) receiveLocked(f *received) error {
	c := l.c
	switch f.kind {
	case frameAck:
		n := uint64(f.stream)<<32 | uint64(f.value)
		if !l.ackLocked(n) {
			return fmt.Errorf("peer acknowledged %d frames, sent were %d", n, l.sentSeq)
		}
		l.probedLocked()
		l.work.Signal()
		c.room.Broadcast()
		if c.closing {
			c.links[0].work.Signal()
		}
		return nil
	case framePing:
		l.wantAck = true
		l.work.Signal()
		return nil
	case frameGone:
		return ErrClosed
	}
	l.recvSeq++
	l.recvBytes += headSize
	if f.c != nil {
		l.recvBytes += len(f.c.data)
		if l.lane == 0 && len(f.c.data) <= quickSize {
			c.quickAt = l.lastRecv
		}
	}
	if l.recvBytes >= ackEvery || l.recvSeq-l.ackedToPeer >= ackFrames {
		l.wantAck = true
		l.work.Signal()
	} else if l.recvSeq == l.ackedToPeer+1 {
		l.ackTimer.Reset(ackDelay)
	}
	return c.receiveLocked(f)
}

// owedAck sends the acknowledgement of what came since the last one, some time after.
func (l *link) owedAck() {
	l.c.mu.Lock()
	defer l.c.mu.Unlock()
	if l.recvSeq != l.ackedToPeer {
		l.wantAck = true
		l.work.Signal()
	}
}
