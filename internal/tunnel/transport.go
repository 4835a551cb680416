package tunnel

import (
	"bufio"
	"fmt"
	"net"
	"time"
)

// attach makes t the tunnel's transport; the peer has received peerRecv frames so far. It returns
// false when the tunnel is over or the number cannot be.
func (c *conn) attach(t net.Conn, r *bufio.Reader, peerRecv uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil || !c.ackLocked(peerRecv) {
		return false
	}
	if c.transport != nil {
		c.transport.Close() // the peer has given it up before we noticed
	}
	c.transport = t
	c.gen++
	c.lastRecv = time.Now()
	c.wantAck = true
	c.wg.Add(2)
	go func(gen uint64) { defer c.wg.Done(); c.write(t, gen) }(c.gen)
	go func(gen uint64) { defer c.wg.Done(); c.read(t, r, gen) }(c.gen)
	c.work.Broadcast()
	return true
}

// lose gives up transport gen after err. The session's side then dials again; the agent's waits.
func (c *conn) lose(gen uint64, err error) {
	c.mu.Lock()
	if c.gen != gen || c.transport == nil || c.err != nil {
		c.mu.Unlock()
		return
	}
	t := c.transport
	c.transport = nil
	c.gen++ // what its reader still has in hand is not counted: the peer sends it again
	c.lostAt = time.Now()
	c.lostErr = err
	closing := c.closing
	c.work.Broadcast()
	c.mu.Unlock()
	t.Close()
	if closing {
		c.finish(ErrClosed)
		return
	}
	c.onLoss(err)
}

// ackLocked notes that the peer has received n frames; false: it cannot have.
func (c *conn) ackLocked(n uint64) bool {
	if n < c.ackedSeq || n > c.sentSeq {
		return false
	}
	for ; c.ackedSeq < n; c.ackedSeq++ {
		f := &c.unacked[0]
		c.unackedBytes -= f.size()
		if f.c != nil {
			f.c.free()
		}
		*f = sent{}
		c.unacked = c.unacked[1:]
	}
	if len(c.unacked) == 0 {
		c.unacked = nil
	}
	return true
}

// write is the writer of transport gen. First it repeats what the peer has not seen.
func (c *conn) write(t net.Conn, gen uint64) {
	c.mu.Lock()
	var batch net.Buffers
	for i := range c.unacked {
		batch = append(batch, c.unacked[i].bytes())
	}
	c.mu.Unlock()
	if len(batch) > 0 {
		if err := send(t, batch, c.o.DeadAfter); err != nil {
			c.lose(gen, err)
			return
		}
	}
	buffers := make(net.Buffers, 0, 64)
	for {
		c.mu.Lock()
		for c.gen == gen && c.err == nil && c.transport != nil && !c.dueLocked() {
			c.work.Wait()
		}
		if c.gen != gen || c.err != nil || c.transport == nil {
			c.mu.Unlock()
			return
		}
		batch := c.batchLocked(buffers[:0])
		last := c.closing && len(c.small) == 0 && len(c.ready) == 0
		if last {
			head := new([headSize]byte)
			putHead(head[:], frameGone, 0, 0)
			batch = append(batch, head[:])
		}
		c.mu.Unlock()
		if err := send(t, batch, c.o.DeadAfter); err != nil {
			c.lose(gen, err)
			return
		}
		if last {
			// The peer closes when it has read that; closing first, with its bytes unread, would
			// take the last word back.
			return
		}
	}
}

func send(t net.Conn, b net.Buffers, limit time.Duration) error {
	_ = t.SetWriteDeadline(time.Now().Add(limit))
	_, err := b.WriteTo(t)
	return err
}

// dueLocked says whether the writer has something to send now.
func (c *conn) dueLocked() bool {
	return c.wantAck || c.wantPing || c.closing || len(c.small) > 0 || len(c.ready) > 0 && c.roomLocked()
}

// roomLocked says whether more may be sent unacknowledged.
func (c *conn) roomLocked() bool { return c.unackedBytes < maxUnacked && len(c.unacked) < maxFrames }

// batchLocked gathers what is sent with one write: the small frames, then a chunk of each stream
// in turn. While several streams wait, a round is short, so that none waits for long.
func (c *conn) batchLocked(b net.Buffers) net.Buffers {
	if c.wantAck {
		head := new([headSize]byte)
		putHead(head[:], frameAck, uint32(c.recvSeq>>32), uint32(c.recvSeq))
		b = append(b, head[:])
		c.wantAck, c.recvBytes, c.ackedToPeer = false, 0, c.recvSeq
	}
	if c.wantPing {
		head := new([headSize]byte)
		putHead(head[:], framePing, 0, 0)
		b = append(b, head[:])
		c.wantPing = false
	}
	for i := range c.small {
		b = append(b, c.keepLocked(c.small[i]))
	}
	c.small = c.small[:0]
	for total := 0; total < batchBytes && len(c.ready) > 0 && c.roomLocked(); {
		s := c.ready[0]
		c.ready = c.ready[1:]
		f, more := s.nextLocked()
		b = append(b, c.keepLocked(f))
		total += f.size()
		if more {
			c.ready = append(c.ready, s)
		} else {
			s.queued = false
		}
	}
	if len(c.ready) == 0 {
		c.ready = nil
	}
	return b
}

// keepLocked numbers a frame and keeps it until it is acknowledged.
func (c *conn) keepLocked(f sent) []byte {
	c.unacked = append(c.unacked, f)
	c.unackedBytes += f.size()
	c.sentSeq++
	// The kept copy's head is what is sent: a frame without data must not point into a slice
	// that moves when it grows.
	if f.c == nil {
		head := f.head
		return head[:]
	}
	return f.bytes()
}

// read is the reader of transport gen. It never waits for anybody but the transport: what arrives
// fits the windows that we gave, or the peer is broken.
func (c *conn) read(t net.Conn, r *bufio.Reader, gen uint64) {
	for {
		f, err := readFrame(r)
		if err != nil {
			c.lose(gen, err)
			return
		}
		c.mu.Lock()
		if c.gen != gen || c.err != nil {
			c.mu.Unlock()
			return
		}
		c.lastRecv = time.Now()
		err = c.receiveLocked(&f)
		c.mu.Unlock()
		if err != nil {
			c.finish(err)
			return
		}
	}
}

// receiveLocked acts on one frame. An error is the end of the tunnel: the peer broke the protocol,
// or closed it.
func (c *conn) receiveLocked(f *received) error {
	switch f.kind {
	case frameAck:
		if !c.ackLocked(uint64(f.stream)<<32 | uint64(f.value)) {
			return fmt.Errorf("peer acknowledged %d frames, sent were %d", uint64(f.stream)<<32|uint64(f.value), c.sentSeq)
		}
		c.work.Signal()
		return nil
	case framePing:
		c.wantAck = true
		c.work.Signal()
		return nil
	case frameGone:
		return ErrClosed
	}
	c.recvSeq++
	c.recvBytes += headSize
	if f.c != nil {
		c.recvBytes += len(f.c.data)
	}
	if c.recvBytes >= ackEvery || c.recvSeq-c.ackedToPeer >= ackFrames {
		c.wantAck = true
		c.work.Signal()
	} else if c.recvSeq == c.ackedToPeer+1 {
		c.ackTimer.Reset(ackDelay)
	}
	if f.kind == frameOpen {
		return c.openedLocked(f.stream)
	}
	s := c.streams[f.stream]
	if s == nil { // it is over on our side; what was on its way is of no use
		if f.c != nil {
			f.c.free()
		}
		return nil
	}
	switch f.kind {
	case frameData:
		return s.dataLocked(f.c)
	case frameFin:
		s.finLocked()
	case frameReset:
		s.resetLocked(f.value)
	case frameCredit:
		s.creditLocked(f.value)
	}
	return nil
}

func (c *conn) openedLocked(id uint32) error {
	if id == 0 || id%2 == c.next%2 || c.streams[id] != nil {
		return fmt.Errorf("peer opened stream %d, which it may not", id)
	}
	if len(c.backlog) >= maxBacklog || len(c.streams) >= maxStreams {
		c.smallLocked(frameReset, id, 0)
		return nil
	}
	s := newStream(c, id)
	c.streams[id] = s
	c.backlog = append(c.backlog, s)
	c.signalLocked()
	return nil
}

// owedAck sends the acknowledgement of what came since the last one, some time after.
func (c *conn) owedAck() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.recvSeq != c.ackedToPeer {
		c.wantAck = true
		c.work.Signal()
	}
}

// tend pings a silent peer and gives up a dead transport, until the tunnel is over.
func (c *conn) tend() {
	tick := time.NewTicker(c.o.Keepalive / 2)
	defer tick.Stop()
	for {
		select {
		case <-c.done:
			c.ackTimer.Stop()
			return
		case <-tick.C:
		}
		c.mu.Lock()
		gen, alive := c.gen, c.transport != nil
		silent := time.Since(c.lastRecv)
		if alive && silent >= c.o.Keepalive {
			c.wantPing = true
			c.work.Signal()
		}
		c.mu.Unlock()
		if alive && silent >= c.o.DeadAfter {
			c.lose(gen, fmt.Errorf("nothing heard for %v", c.o.DeadAfter))
		}
	}
}
