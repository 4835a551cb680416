package tunnel

import "time"

// What goes first. A stream is bulk while it sends more than bulkBurst in burstTime, in chunks of
// some size, or has that much waiting, and quick otherwise: many small messages are quick however
// many. A bulk stream is quick again some time after its queue has run empty. On
// one lane frames without data go first, then quick streams, then a short turn of bulk. With a
// second lane bulk goes there, so that small traffic has a transport whose queues are empty. A
// stream returns to the first lane when the peer has all that it sent on the other.
const (
	bulkBurst = 128 << 10
	bulkChunk = 8 << 10
	burstTime = 10 * time.Millisecond
	bulkRest  = 50 * time.Millisecond
	bulkTurn  = chunkSize       // bulk between two looks at what is quick, on one lane
	batchSize = 4 * chunkSize   // of one write, on the lane for bulk
	askAgain  = 5 * time.Second // after a lane was not to be had

	probeFrom = 64 << 10

	quickSize = 32 << 10               // what is sent or received in larger pieces is not waited for
	quickRest = 100 * time.Millisecond // for so long after it bulk stays narrow
)

// A pace is how much bulk may be on its way on a lane, which follows the measured delay: so much that
// the transport is busy, and little enough that its queues do not fill. A proxy on the way (a
// port-forward) has deep ones.
type pace struct {
	first, least int
	// A measurement of up to good widens, of more than bad narrows, given the quickest there was.
	good, bad func(quickest time.Duration) time.Duration
}

var (
	// shared is for the only lane: what is quick has to wait for all that is queued on the way.
	shared = &pace{1 << 20, 512 << 10,
		func(q time.Duration) time.Duration { return 2*q + time.Millisecond },
		func(q time.Duration) time.Duration { return 4*q + 2*time.Millisecond }}
	// alone is for a lane of its own while nobody waits for an answer: nothing is to be kept short.
	alone = &pace{8 << 20, 8 << 20, shared.good, shared.bad}
	// beside is for a lane of its own while there is something quick on the other. They have the
	// machines on the way in common, whose processors bulk takes.
	beside = &pace{256 << 10, 128 << 10,
		func(q time.Duration) time.Duration { return q*5/4 + time.Millisecond },
		func(q time.Duration) time.Duration { return q*3/2 + 2*time.Millisecond }}
	paces = []*pace{shared, alone, beside}
)

// paceLocked is the one that holds now.
func (l *link) paceLocked() *pace {
	switch {
	case l.lane == 0:
		return shared
	case time.Since(l.c.quickAt) < quickRest:
		return beside
	}
	return alone
}

// allowLocked is how much bulk may be unacknowledged.
func (l *link) allowLocked() int { return l.allow[l.paceLocked()] }

// noteLocked counts n bytes that the stream is about to send and decides its class.
func (s *stream) noteLocked(n int) {
	now := time.Now()
	if s.bulk && now.Sub(s.lastPush) > bulkRest && s.outBytes == n && s.onBulk == 0 {
		s.bulk = false
	}
	if now.Sub(s.burstAt) > burstTime {
		s.burstAt, s.burst = now, 0
	}
	s.lastPush = now
	if n >= bulkChunk {
		s.burst += n
	}
	if s.burst >= bulkBurst || s.outBytes >= bulkBurst {
		s.bulk = true
	}
	if !s.bulk && n <= quickSize {
		s.c.quickAt = now
	}
}

// routeLocked gives the link that the stream's data takes now.
func (c *conn) routeLocked(s *stream) *link {
	// The peer knows the stream when it has given credit: before, the lane for bulk could be
	// faster than the frame that opens it.
	if len(c.links) < 2 || !s.bulk || !s.known {
		return c.links[0]
	}
	l := c.links[1]
	if l.transport != nil {
		return l
	}
	if now := time.Now(); !l.used && now.Sub(l.askedAt) > askAgain {
		l.askedAt = now
		if c.dialer {
			l.askTransport()
		} else {
			c.smallLocked(frameLane, 0, 1)
		}
	}
	return c.links[0]
}

// queueLocked puts the stream into a writer's round when it has something that may be sent.
func (s *stream) queueLocked() {
	if s.queued || s.c.err != nil || !s.sendableLocked() {
		return
	}
	s.queued = true
	l := s.c.routeLocked(s)
	if s.bulk {
		l.bulk = append(l.bulk, s)
	} else {
		l.quick = append(l.quick, s)
	}
	l.work.Signal()
}

func (s *stream) sendableLocked() bool {
	if len(s.out) > 0 {
		return s.credit > 0
	}
	return s.fin && !s.finSent && s.outEnd == nil
}

// rerouteLocked finds the waiting bulk streams their lanes anew, after one came or went.
func (c *conn) rerouteLocked() {
	var waiting []*stream
	for _, l := range c.links {
		waiting = append(waiting, l.bulk...)
		l.bulk = nil
	}
	for _, s := range waiting {
		s.queued = false
		s.queueLocked()
	}
}

// dueLocked says whether the writer has something to send now.
func (l *link) dueLocked() bool {
	return l.wantAck || l.wantPing || len(l.small) > 0 ||
		len(l.quick) > 0 && l.roomLocked(maxUnacked) || len(l.bulk) > 0 && l.bulkDueLocked() || l.lastLocked()
}

// bulkDueLocked says whether waiting bulk may go, or a ping is to ask for the acknowledgement that it
// waits for: the peer may keep that back for longer.
func (l *link) bulkDueLocked() bool { return l.roomLocked(l.allowLocked()) || l.probeAt.IsZero() }

// roomLocked says whether more may be sent while limit bytes at most are unacknowledged.
func (l *link) roomLocked(limit int) bool {
	return l.unackedBytes < limit && len(l.unacked) < maxFrames
}

// probeLocked begins a measurement of how long a frame takes to be acknowledged behind the bulk
// that is on its way. The ping makes the peer answer at once.
func (l *link) probeLocked(b [][]byte) [][]byte {
	if !l.probeAt.IsZero() || l.unackedBytes < probeFrom && l.roomLocked(l.allowLocked()) {
		return b
	}
	l.probeAt, l.probeSeq, l.probePace = time.Now(), l.sentSeq, l.paceLocked()
	h := newHead(framePing, 0, 0, 0)
	return append(b, h[:])
}

// probedLocked ends the measurement and adapts the pace that held when it began.
func (l *link) probedLocked() {
	if l.probeAt.IsZero() || l.ackedSeq < l.probeSeq {
		return
	}
	took := time.Since(l.probeAt)
	l.probeAt = time.Time{}
	if l.quickest == 0 || took < l.quickest {
		l.quickest = took
	}
	p := l.probePace
	switch allow := l.allow[p]; {
	case took <= p.good(l.quickest):
		if !l.roomLocked(allow / 2) {
			l.allow[p] = min(2*allow, maxUnacked)
		}
	case took > p.bad(l.quickest):
		l.allow[p] = max(allow*3/4, p.least)
	}
}

// lastLocked says whether it is time for the tunnel's last frame: nothing is left to send, and what
// took other lanes has arrived.
func (l *link) lastLocked() bool {
	if !l.c.closing || l.lane != 0 {
		return false
	}
	for _, o := range l.c.links {
		if len(o.small)+len(o.quick)+len(o.bulk) > 0 || o != l && len(o.unacked) > 0 {
			return false
		}
	}
	return true
}

// batchLocked appends what is sent with one write.
func (l *link) batchLocked(b [][]byte) [][]byte {
	if l.wantAck {
		h := newHead(frameAck, uint32(l.recvSeq>>32), uint32(l.recvSeq), 0)
		b = append(b, h[:])
		l.wantAck, l.recvBytes, l.ackedToPeer = false, 0, l.recvSeq
	}
	if l.wantPing {
		h := newHead(framePing, 0, 0, 0)
		b = append(b, h[:])
		l.wantPing = false
	}
	if n := len(l.small); n > 0 {
		heads := make([]byte, 0, n*headSize)
		for i := range l.small {
			heads = append(heads, l.small[i][:]...)
			l.keepLocked(sent{bytes: heads[i*headSize : (i+1)*headSize : (i+1)*headSize]})
		}
		b = append(b, heads)
		if l.small = l.small[:0]; cap(l.small) > 256 {
			l.small = nil
		}
	}
	limit := bulkTurn
	if l.lane > 0 {
		limit = batchSize
	}
	b = l.roundLocked(b, &l.quick, batchSize, maxUnacked)
	b = l.roundLocked(b, &l.bulk, limit, l.allowLocked())
	return l.probeLocked(b)
}

// roundLocked appends frames of the streams of queue, one each in turn, up to limit bytes, while
// allow bytes at most are unacknowledged.
func (l *link) roundLocked(b [][]byte, queue *[]*stream, limit, allow int) [][]byte {
	for total := 0; total < limit && len(*queue) > 0 && l.roomLocked(allow); {
		s := (*queue)[0]
		(*queue)[0] = nil
		*queue = (*queue)[1:]
		s.queued = false
		if !s.sendableLocked() { // reset meanwhile
			continue
		}
		f := s.nextLocked()
		if l.lane > 0 {
			f.s = s
			s.onBulk++
		}
		b = append(b, l.keepLocked(f))
		total += len(f.bytes)
		s.queueLocked()
	}
	if len(*queue) == 0 {
		*queue = nil
	}
	return b
}

// nextLocked takes the stream's next frame; there is one.
func (s *stream) nextLocked() (f sent) {
	seq := s.outSeq
	s.outSeq++
	if len(s.out) == 0 {
		h := newHead(frameFin, s.id, 0, seq)
		s.finSent = true
		s.doneLocked()
		return sent{bytes: h[:]}
	}
	c := s.out[0]
	if len(c.data) > s.credit { // send what the peer has room for
		part := newChunk(s.credit)
		part.data = part.space()[:copy(part.space(), c.data[:s.credit])]
		c.data = c.data[s.credit:]
		c = part
	} else {
		s.out[0] = nil
		if s.out = s.out[1:]; len(s.out) == 0 {
			s.out = nil
		}
	}
	n := len(c.data)
	s.credit -= n
	s.outBytes -= n
	s.change.Broadcast()
	return sent{bytes: c.frame(newHead(frameData, s.id, uint32(n), seq)), c: c}
}
