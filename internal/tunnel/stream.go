package tunnel

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// stream is one end of a stream. Its fields are guarded by conn.mu, but for cur.
type stream struct {
	c  *conn
	id uint32

	change sync.Cond // anything a blocked call waits for

	// receiving
	reader   sync.Mutex // held by the one who reads; guards cur
	cur      *chunk     // the one that Read is in the middle of
	in       []*chunk   // whole data of frames, in order
	held     []segment  // came on one lane before what precedes it on another
	inSeq    uint32     // of the next data or fin frame
	inBytes  int        // in in, held, and with a WriteTo
	partly   bool       // cur is not empty
	window   int        // what the peer may have sent unread
	consumed int        // read since the last credit
	creditAt time.Time
	inEnd    error // after in: io.EOF, or why no more comes
	readDead bool  // closed for reading by us: what comes is dropped
	readAt   deadline

	// sending
	writer   sync.Mutex // held by Write, so that one call's bytes stay together
	out      []*chunk
	outBytes int
	outSeq   uint32
	credit   int
	known    bool // the peer has shown that it knows the stream
	fin      bool // CloseWrite was called
	finSent  bool
	outEnd   error
	writeAt  deadline
	queued   bool // in a queue of a link
	orphan   *time.Timer

	// see schedule.go
	bulk     bool
	onBulk   int // frames on the lane for bulk that are not acknowledged
	burst    int
	burstAt  time.Time
	lastPush time.Time

	// see relay.go and handoff.go
	wake  func() // called with conn.mu when both directions have ended; must not block
	moved int
	offer func()
	take  func(net.Conn, *net.UnixConn) bool
}

// segment is the data of frames with sequence seq to seq+n-1, or a fin.
type segment struct {
	seq, n uint32
	c      *chunk
}

func newStream(c *conn, id uint32) *stream {
	s := &stream{c: c, id: id, window: firstWindow, credit: firstWindow}
	s.change.L = &c.mu
	return s
}

// deadline wakes the stream's calls when it passes.
type deadline struct {
	at    time.Time
	timer *time.Timer
}

func (d *deadline) passed() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

func (d *deadline) setLocked(s *stream, t time.Time) {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	d.at = t
	if wait := time.Until(t); !t.IsZero() && wait > 0 {
		d.timer = time.AfterFunc(wait, func() {
			s.c.mu.Lock()
			s.change.Broadcast()
			s.c.mu.Unlock()
		})
	}
	s.change.Broadcast()
}

// CloseWrite implements Stream.
func (s *stream) CloseWrite() error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if s.outEnd != nil {
		return s.outEnd
	}
	s.fin = true
	s.queueLocked()
	s.change.Broadcast()
	return nil
}

// Close implements net.Conn: what was written is sent, what comes is dropped; a peer that goes on
// sending is reset, and so is one whose bytes were not read.
func (s *stream) Close() error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.readAt.setLocked(s, time.Time{})
	s.writeAt.setLocked(s, time.Time{})
	if s.readDead {
		return nil
	}
	s.readDead = true
	unread := len(s.in)+len(s.held) > 0 || s.partly
	s.dropLocked()
	if s.outEnd == nil && unread {
		s.endLocked(ErrClosed)
		s.c.smallLocked(frameReset, s.id, 0)
		return nil
	}
	s.fin = true
	s.queueLocked()
	s.doneLocked()
	s.change.Broadcast()
	if s.c.streams[s.id] == s && s.orphan == nil {
		s.orphan = time.AfterFunc(orphanAge, func() { s.Reset(0) })
	}
	return nil
}

// orphanAge is how long a stream that we closed waits for the peer to close it too; the kernel's
// tcp_fin_timeout is as long.
const orphanAge = 60 * time.Second

// Reset implements Stream.
func (s *stream) Reset(code uint32) error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.readDead = true
	s.dropLocked()
	if s.c.streams[s.id] != s { // over already
		s.change.Broadcast()
		return nil
	}
	s.endLocked(ErrClosed)
	s.c.smallLocked(frameReset, s.id, code)
	return nil
}

// arrivedLocked takes a data or a fin frame. More than the window is a broken peer.
func (s *stream) arrivedLocked(f *received) error {
	if f.c != nil {
		n := len(f.c.data)
		if s.readDead {
			f.c.free()
			s.endLocked(ErrClosed)
			s.c.smallLocked(frameReset, s.id, 0)
			return nil
		}
		if s.inBytes+n > s.window {
			f.c.free()
			return errors.New("peer sent more than its window")
		}
		s.inBytes += n
	}
	if f.seq != s.inSeq {
		return s.holdLocked(f)
	}
	s.takeLocked(segment{f.seq, 1, f.c})
	for i := 0; i < len(s.held); i++ {
		if g := s.held[i]; g.seq == s.inSeq {
			s.held = append(s.held[:i], s.held[i+1:]...)
			s.takeLocked(g)
			i = -1
		}
	}
	if len(s.held) == 0 {
		s.held = nil
	}
	return nil
}

// takeLocked makes the next segment readable.
func (s *stream) takeLocked(g segment) {
	s.inSeq += g.n
	if g.c == nil {
		if s.inEnd == nil {
			s.inEnd = io.EOF
		}
		s.doneLocked()
	} else if last := len(s.in) - 1; last < 0 || !s.in[last].join(g.c) {
		s.in = append(s.in, g.c)
	}
	s.change.Broadcast()
}

// join appends b's data to c's and frees b, where that saves memory.
func (c *chunk) join(b *chunk) bool {
	if len(b.data) > chunkPools[1].size || len(b.data) > c.room() {
		return false
	}
	c.data = append(c.data, b.data...)
	b.free()
	return true
}

// holdLocked keeps what overtook its stream's earlier frames on another lane.
func (s *stream) holdLocked(f *received) error {
	for i := range s.held {
		g := &s.held[i]
		if g.seq+g.n == f.seq && g.c != nil && f.c != nil && g.c.join(f.c) {
			g.n++
			return nil
		}
	}
	if len(s.held) >= maxHeld || len(s.c.links) < 2 {
		if f.c != nil {
			f.c.free()
		}
		return errors.New("peer sent frames of a stream out of order")
	}
	s.held = append(s.held, segment{f.seq, 1, f.c})
	return nil
}

// maxHeld is more segments than a window has: two in a row that could not be joined make up half
// a chunk of the smallest kind at least.
const maxHeld = 2*largeWindow/smallSize + 2

func (s *stream) resetLocked(code uint32) error {
	s.dropLocked() // as the kernel does: a reset overtakes what was not read
	s.endLocked(&ResetError{Code: code})
	return nil
}

func (s *stream) creditLocked(n uint32) error {
	if s.credit += int(n); n > 2*largeWindow || s.credit > 2*largeWindow {
		return errors.New("peer gave more credit than a window has")
	}
	s.known = true
	s.queueLocked()
	return nil
}

// doneLocked forgets the stream when both directions are over.
func (s *stream) doneLocked() {
	if s.finSent && s.inEnd != nil {
		s.forgetLocked()
	}
}

// endLocked ends both directions with err and forgets the stream. What was received stays readable.
func (s *stream) endLocked(err error) {
	if s.inEnd == nil {
		s.inEnd = err
	}
	if s.outEnd == nil {
		s.outEnd = err
	}
	s.out, s.outBytes, s.held = nil, 0, nil
	s.forgetLocked()
	s.change.Broadcast()
	if s.wake != nil {
		s.wake()
	}
}

func (s *stream) forgetLocked() {
	if s.c.streams[s.id] == s {
		delete(s.c.streams, s.id)
		s.c.grown -= s.window - firstWindow
	}
	if s.orphan != nil {
		s.orphan.Stop()
	}
}

func (s *stream) dropLocked() {
	for _, c := range s.in {
		c.free()
	}
	s.in, s.held = nil, nil
}

// SetDeadline implements net.Conn.
func (s *stream) SetDeadline(t time.Time) error {
	s.SetReadDeadline(t)
	return s.SetWriteDeadline(t)
}

// SetReadDeadline implements net.Conn.
func (s *stream) SetReadDeadline(t time.Time) error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.readAt.setLocked(s, t)
	return nil
}

// SetWriteDeadline implements net.Conn.
func (s *stream) SetWriteDeadline(t time.Time) error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.writeAt.setLocked(s, t)
	return nil
}

type addr struct{}

func (addr) Network() string { return "stead" }
func (addr) String() string  { return "tunnel" }

// LocalAddr implements net.Conn; a stream has no address.
func (s *stream) LocalAddr() net.Addr { return addr{} }

// RemoteAddr implements net.Conn; a stream has no address.
func (s *stream) RemoteAddr() net.Addr { return addr{} }
