package agent

import (
	"errors"
	"io"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Assembling a client's bytes from its segments. Only connections whose SYN was seen are followed:
// without the beginning no protocol makes sense. Everything is bounded; what does not fit ends the
// copy of that connection, never the connection.
const (
	maxFlows     = 16384
	maxHole      = 512 << 10 // bytes kept beyond a hole
	maxCopy      = 4 << 20   // bytes that wait for one session
	holeAge      = 10 * time.Second
	flowAge      = 30 * time.Minute // of a client's silence, before it is asked whether its connection stands
	handshakeAge = 10 * time.Second
	sweepEvery   = time.Second
	maxSegments  = 4096 // segments kept beyond a hole

	// When, and of how many connections at once, it is asked whether they stand.
	askFirst, askLast = 20 * time.Millisecond, 2 * time.Second
	maxAsked          = 256
)

var (
	errDropped = errors.New("dropped")
	errReset   = errors.New("reset by the client")
)

// assembler follows the connections of a tap. It is guarded by tap.mu.
type assembler struct {
	flows map[flowKey]*flow
	begun []*flow   // that may not stand yet
	due   time.Time // when it is to be asked of the next of them
	room  *room
}

// room bounds the bytes that all copies of a tap keep together.
type room struct{ used atomic.Int64 }

const maxKept = 64 << 20

// take reserves n bytes, or says that there is no room for them.
func (r *room) take(n int) bool {
	if r.used.Add(int64(n)) > maxKept {
		r.used.Add(int64(-n))
		return false
	}
	return true
}

func (r *room) give(n int) { r.used.Add(int64(-n)) }

// flow is one connection's direction to the target. next, ahead and the times are the
// assembler's; the copies have their own lock.
type flow struct {
	key     flowKey
	room    *room
	first   uint32 // sequence number of the first byte
	next    uint32 // of the next
	ahead   []segment
	beyond  int // bytes in ahead
	seen    time.Time
	hole    time.Time // since when ahead is not empty
	fin     uint32
	haveFin bool
	stands  bool // the handshake is over
	ask     time.Time
	pause   time.Duration // before it is asked again whether it stands
	device  int           // by which its packets come

	// The witness's, whether it is the target's and its ends as the one who accepts it sees them.
	ours        bool
	here, there netip.AddrPort

	mu     sync.Mutex
	head   []byte // bytes before the copies were made
	copies []*copyOf
	sealed bool
	ended  error // io.EOF, errReset or errDropped
}

// take follows one segment; it returns the flow of a connection that stands: the client has
// answered the handshake. A SYN alone may be refused by the target, or be one of a flood.
func (a *assembler) take(s *segment, now time.Time) (began *flow) {
	f := a.flows[s.key]
	if s.syn && !s.ack {
		if f != nil && f.first == s.seq+1 {
			return nil // sent again, or delivered again
		}
		if f != nil {
			a.end(f, errReset) // the number pair is used anew
		} else if len(a.flows) >= maxFlows {
			return nil
		}
		f = &flow{key: s.key, room: a.room, first: s.seq + 1, next: s.seq + 1, device: s.device, ask: now.Add(askFirst), pause: askFirst}
		a.flows[s.key] = f
		if len(a.begun) == 0 || f.ask.Before(a.due) {
			a.due = f.ask
		}
		a.begun = append(a.begun, f)
		s.seq++ // data may come with the SYN (fast open)
	}
	if f == nil {
		return nil
	}
	f.seen = now
	if s.rst {
		a.end(f, errReset)
		return nil
	}
	if s.ack && !f.stands {
		f.stands, began = true, f
	}
	if s.fin {
		f.fin, f.haveFin = s.seq+uint32(len(s.data)), true
	}
	kept := len(s.data) == 0 || f.data(s, now)
	switch {
	case !kept || f.beyond > maxHole || len(f.ahead) > maxSegments:
		a.end(f, errDropped)
	case f.haveFin && int32(f.next-f.fin) >= 0:
		a.end(f, io.EOF)
	}
	return began
}

// silent finds the connections that stand though their clients have said nothing yet. The segment that ends
// a handshake has no data, and the kernel's filter lets none of those pass: so the kernel is asked.
func (a *assembler) silent(now time.Time, ask func(*flow) answer) (began []*flow) {
	if len(a.begun) == 0 || now.Before(a.due) {
		return nil
	}
	var again []*flow // those that were asked about stand behind the others
	asked, enough := 0, false
	rest := a.begun[:0]
	for _, f := range a.begun {
		switch {
		case f.stands || a.flows[f.key] != f:
			continue
		case enough || now.Before(f.ask):
			rest = append(rest, f)
			continue
		}
		asked++
		x := ask(f)
		enough = asked == maxAsked || x == unanswered
		switch x {
		case stands:
			f.stands, began = true, append(began, f)
			continue
		case notOurs:
			a.end(f, errReset)
			continue
		case halfOpen: // as long as an app that defers it likes
			f.seen = now
		}
		f.pause = min(2*f.pause, askLast)
		f.ask = now.Add(f.pause)
		again = append(again, f)
	}
	rest = append(rest, again...)
	clear(a.begun[len(rest):])
	a.begun = rest
	a.due = now.Add(askLast)
	for _, f := range rest {
		if f.ask.Before(a.due) {
			a.due = f.ask
		}
	}
	if soon := now.Add(askFirst); a.due.Before(soon) {
		a.due = soon
	}
	return began
}

// follows says whether a segment goes on with a connection that is known.
func (a *assembler) follows(s *segment) bool {
	return a.flows[s.key] != nil && (!s.syn || s.ack)
}

func (a *assembler) end(f *flow, err error) {
	if a.flows[f.key] == f {
		delete(a.flows, f.key)
	}
	f.room.give(f.beyond)
	f.ahead, f.beyond = nil, 0
	f.end(err)
}

func (a *assembler) endAll() {
	for _, f := range a.flows {
		a.end(f, errReset)
	}
}

// sweep gives up what waits for bytes that were lost, and what is silent for very long and does not stand.
func (a *assembler) sweep(now time.Time, ask func(*flow) answer) {
	for _, f := range a.flows {
		switch {
		case len(f.ahead) > 0 && now.Sub(f.hole) > holeAge:
			a.end(f, errDropped)
		case !f.stands && now.Sub(f.seen) > handshakeAge:
			a.end(f, errReset)
		case now.Sub(f.seen) > flowAge:
			if x := ask(f); x == stands || x == unanswered {
				f.seen = now
			} else {
				a.end(f, errReset)
			}
		}
	}
}

// data puts the bytes of s in order. Sequence numbers wrap: they are compared by difference.
// It says whether there was room for them.
func (f *flow) data(s *segment, now time.Time) bool {
	if d := int32(s.seq - f.next); d > 0 { // a hole in front of it
		if !f.room.take(len(s.data)) {
			return false
		}
		if len(f.ahead) == 0 {
			f.hole = now
		}
		kept := segment{seq: s.seq, data: append([]byte(nil), s.data...)}
		i := len(f.ahead)
		for i > 0 && int32(kept.seq-f.ahead[i-1].seq) < 0 {
			i--
		}
		f.ahead = append(f.ahead, segment{})
		copy(f.ahead[i+1:], f.ahead[i:])
		f.ahead[i] = kept
		f.beyond += len(kept.data)
		return true
	}
	f.advance(s)
	for len(f.ahead) > 0 && int32(f.ahead[0].seq-f.next) <= 0 {
		f.beyond -= len(f.ahead[0].data)
		f.room.give(len(f.ahead[0].data))
		f.advance(&f.ahead[0])
		f.ahead = f.ahead[1:]
		f.hole = now
	}
	if len(f.ahead) == 0 {
		f.ahead = nil
	}
	return true
}

// advance takes the part of s that is new.
func (f *flow) advance(s *segment) {
	old := f.next - s.seq
	if old >= uint32(len(s.data)) {
		return // all of it was seen
	}
	b := s.data[old:]
	f.next += uint32(len(b))
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.sealed {
		f.head = append(f.head, b...)
		if len(f.head) > maxCopy {
			f.head, f.sealed = nil, true
			f.ended = errDropped
		}
	}
	for _, c := range f.copies {
		c.put(b)
	}
}

func (f *flow) end(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ended != nil {
		return
	}
	f.ended = err
	for _, c := range f.copies {
		c.finish(err)
	}
}

// copy makes a further copy, from the connection's first byte; only before seal.
func (f *flow) copy() *copyOf {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := &copyOf{room: f.room, abandoned: make(chan struct{}), lost: make(chan struct{})}
	c.change.L = &c.mu
	if len(f.head) > 0 {
		c.put(f.head)
	}
	if f.ended != nil {
		c.finish(f.ended)
	}
	f.copies = append(f.copies, c)
	return c
}

// seal says that no further copy will be made.
func (f *flow) seal() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sealed = true
	f.head = nil
}

// wanted says whether somebody has a copy, or may still make one.
func (f *flow) wanted() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return !f.sealed || slices.ContainsFunc(f.copies, (*copyOf).wanted)
}

// copyOf is a queue of bytes for one session.
type copyOf struct {
	room      *room
	mu        sync.Mutex
	change    sync.Cond
	buf       []byte
	err       error
	gone      bool
	abandoned chan struct{}
	lost      chan struct{} // closed when err becomes errDropped
}

func (c *copyOf) put(b []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil || c.gone {
		return
	}
	if len(c.buf)+len(b) > maxCopy || !c.room.take(len(b)) {
		c.room.give(len(c.buf))
		c.buf, c.err = nil, errDropped
		close(c.lost)
	} else {
		c.buf = append(c.buf, b...)
	}
	c.change.Signal()
}

func (c *copyOf) finish(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = err
		if err == errDropped {
			close(c.lost)
		}
	}
	c.change.Signal()
}

// abandon ends next: nobody wants the rest.
func (c *copyOf) abandon() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.gone {
		c.gone = true
		c.room.give(len(c.buf))
		c.buf = nil
		close(c.abandoned)
	}
	c.change.Signal()
}

func (c *copyOf) wanted() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.gone
}

// next waits for bytes; with the last of them, or alone, comes the reason why there are no more.
func (c *copyOf) next() ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.buf) == 0 && c.err == nil && !c.gone {
		c.change.Wait()
	}
	if c.gone {
		return nil, errReset
	}
	b := c.buf
	c.room.give(len(b))
	c.buf = nil
	if c.err == io.EOF || c.err == nil {
		return b, c.err
	}
	return nil, c.err
}
