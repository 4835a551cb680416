package tunnel

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// stream is one end of a stream. Its fields are guarded by conn.mu.
type stream struct {
	c  *conn
	id uint32

	change sync.Cond // anything a blocked call waits for

	// receiving
	in       []*chunk // whole data of frames, the first one partly consumed
	inBytes  int
	window   int   // what the peer may have sent unread
	consumed int   // read since the last credit
	inEnd    error // after in: io.EOF, or why no more comes
	readDead bool  // closed for reading by us: what comes is dropped
	readAt   deadline

	// sending
	out      []*chunk
	outBytes int
	credit   int
	fin      bool // CloseWrite was called
	finSent  bool
	outEnd   error
	writeAt  deadline
	queued   bool // in conn.ready
	orphan   *time.Timer
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
	if !t.IsZero() {
		d.timer = time.AfterFunc(time.Until(t), func() {
			s.c.mu.Lock()
			s.change.Broadcast()
			s.c.mu.Unlock()
		})
	}
	s.change.Broadcast()
}

// Read implements net.Conn.
func (s *stream) Read(p []byte) (int, error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if err := s.waitReadLocked(); err != nil {
		return 0, err
	}
	n := 0
	for len(s.in) > 0 && n < len(p) {
		k := copy(p[n:], s.in[0].data)
		n += k
		if s.in[0].data = s.in[0].data[k:]; len(s.in[0].data) == 0 {
			s.in[0].free()
			s.in = s.in[1:]
		}
	}
	s.readLocked(n)
	return n, nil
}

// waitReadLocked waits for data; an error means that none will come.
func (s *stream) waitReadLocked() error {
	for len(s.in) == 0 {
		switch {
		case s.readDead:
			return ErrClosed
		case s.inEnd != nil:
			return s.inEnd
		case s.readAt.passed():
			return os.ErrDeadlineExceeded
		}
		s.change.Wait()
	}
	if s.readDead {
		return ErrClosed
	}
	return nil
}

// readLocked notes that n bytes were consumed, and lets the peer send more. A window that was used
// up to the half between two credits is too small for the way there and back: it is doubled.
func (s *stream) readLocked(n int) {
	s.inBytes -= n
	s.consumed += n
	if len(s.in) == 0 {
		s.in = nil
	}
	if s.consumed < s.window/2 || s.inEnd != nil {
		return
	}
	give := s.consumed
	if s.window < largeWindow {
		give += s.window
		s.window *= 2
	}
	s.consumed = 0
	s.c.smallLocked(frameCredit, s.id, uint32(give))
}

// WriteTo implements io.WriterTo: it hands the chunks on as they came.
func (s *stream) WriteTo(w io.Writer) (total int64, err error) {
	for {
		s.c.mu.Lock()
		if err := s.waitReadLocked(); err != nil {
			s.c.mu.Unlock()
			if err == io.EOF {
				err = nil
			}
			return total, err
		}
		taken := s.in
		s.in = nil
		s.c.mu.Unlock()
		n := 0
		bufs := make(net.Buffers, len(taken))
		for i, c := range taken {
			bufs[i] = c.data
			n += len(c.data)
		}
		k, err := bufs.WriteTo(w)
		total += k
		for _, c := range taken {
			c.free()
		}
		s.c.mu.Lock()
		s.readLocked(n)
		s.c.mu.Unlock()
		if err != nil {
			return total, err
		}
	}
}

// Write implements net.Conn.
func (s *stream) Write(p []byte) (int, error) {
	total := 0
	for len(p) > 0 {
		c := newChunk(len(p))
		n := copy(c.space(), p)
		c.data = c.space()[:n]
		if err := s.push(c); err != nil {
			c.free()
			return total, err
		}
		p = p[n:]
		total += n
	}
	return total, nil
}

// push queues a chunk, which the stream then owns, when there is room.
func (s *stream) push(c *chunk) error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	for {
		switch {
		case s.outEnd != nil:
			return s.outEnd
		case s.fin, s.c.closing:
			return ErrClosed
		case s.writeAt.passed():
			return os.ErrDeadlineExceeded
		}
		if s.outBytes < maxQueued {
			break
		}
		s.change.Wait()
	}
	s.out = append(s.out, c)
	s.outBytes += len(c.data)
	s.queueLocked()
	return nil
}

// ReadFrom implements io.ReaderFrom: it reads straight into the chunks that are sent. From a
// connection of the kernel's it reads only when there is something, so an idle one holds no chunk.
func (s *stream) ReadFrom(r io.Reader) (total int64, err error) {
	next := func() (*chunk, error) { return readChunk(r) }
	if sc, ok := r.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			next = func() (*chunk, error) { return readRaw(raw) }
		}
	}
	for {
		c, err := next()
		if c != nil {
			total += int64(len(c.data))
			if err := s.push(c); err != nil {
				c.free()
				return total, err
			}
		}
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// readChunk reads once; the chunk is nil when nothing came.
func readChunk(r io.Reader) (*chunk, error) {
	c := newChunk(chunkSize)
	n, err := r.Read(c.space())
	if n <= 0 {
		c.free()
		return nil, err
	}
	c.data = c.space()[:n]
	return c.fit(), err
}

// readRaw is readChunk for a descriptor: the chunk is taken when the descriptor is readable.
func readRaw(raw syscall.RawConn) (c *chunk, err error) {
	cerr := raw.Read(func(fd uintptr) bool {
		c = newChunk(chunkSize)
		for {
			n, e := syscall.Read(int(fd), c.space())
			switch {
			case n > 0:
				c.data = c.space()[:n]
				c = c.fit()
				return true
			case e == syscall.EINTR:
				continue
			}
			c.free()
			c = nil
			switch {
			case e == syscall.EAGAIN:
				return false
			case e == nil:
				err = io.EOF
			default:
				err = e
			}
			return true
		}
	})
	if cerr != nil {
		return nil, cerr
	}
	return c, err
}

// queueLocked puts the stream into the writer's round when it has something that may be sent.
func (s *stream) queueLocked() {
	if s.queued || s.c.err != nil {
		return
	}
	if len(s.out) > 0 && s.credit > 0 || len(s.out) == 0 && s.fin && !s.finSent && s.outEnd == nil {
		s.queued = true
		s.c.ready = append(s.c.ready, s)
		s.c.work.Signal()
	}
}

// nextLocked gives the next frame; more says whether there is another one.
func (s *stream) nextLocked() (f sent, more bool) {
	if len(s.out) == 0 {
		// Only the end is left, or the stream was reset meanwhile: then the frame is without effect.
		if s.fin && !s.finSent && s.outEnd == nil {
			putHead(f.head[:], frameFin, s.id, 0)
			s.finSent = true
			s.doneLocked()
		} else {
			putHead(f.head[:], frameCredit, s.id, 0)
		}
		return f, false
	}
	c := s.out[0]
	if len(c.data) > s.credit { // send what the peer has room for
		part := newChunk(s.credit)
		part.data = part.space()[:copy(part.space(), c.data[:s.credit])]
		c.data = c.data[s.credit:]
		c = part
	} else {
		s.out = s.out[1:]
		if len(s.out) == 0 {
			s.out = nil
		}
	}
	// The head goes right in front of the data: a chunk cut at its front has moved data.
	if n := len(c.data); &c.data[0] != &c.mem[headSize] {
		copy(c.mem[headSize:], c.data)
		c.data = c.mem[headSize : headSize+n]
	}
	s.credit -= len(c.data)
	s.outBytes -= len(c.data)
	s.change.Broadcast()
	putHead(f.head[:], frameData, s.id, uint32(len(c.data)))
	f.c = c
	return f, len(s.out) > 0 && s.credit > 0 || len(s.out) == 0 && s.fin && !s.finSent
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
// sending is reset.
func (s *stream) Close() error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.readAt.setLocked(s, time.Time{})
	s.writeAt.setLocked(s, time.Time{})
	s.readDead = true
	unread := len(s.in) > 0
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
	if s.c.streams[s.id] != s {
		return nil // over already
	}
	s.readDead = true
	s.dropLocked()
	s.endLocked(ErrClosed)
	s.c.smallLocked(frameReset, s.id, code)
	return nil
}

// dataLocked takes what the peer sent. More than the window is a broken peer.
func (s *stream) dataLocked(c *chunk) error {
	n := len(c.data)
	if s.inBytes+n > s.window {
		return errors.New("peer sent more than its window")
	}
	if s.readDead {
		c.free()
		s.endLocked(ErrClosed)
		s.c.smallLocked(frameReset, s.id, 0)
		return nil
	}
	s.in = append(s.in, c)
	s.inBytes += n
	s.change.Broadcast()
	return nil
}

func (s *stream) finLocked() {
	if s.inEnd == nil {
		s.inEnd = io.EOF
	}
	s.doneLocked()
	s.change.Broadcast()
}

func (s *stream) resetLocked(code uint32) {
	s.dropLocked() // as the kernel does: a reset overtakes what was not read
	s.endLocked(&ResetError{Code: code})
}

func (s *stream) creditLocked(n uint32) {
	if n > 2*largeWindow {
		n = 2 * largeWindow
	}
	s.credit += int(n)
	s.queueLocked()
}

// doneLocked forgets the stream when both directions are over.
func (s *stream) doneLocked() {
	if s.finSent && s.inEnd != nil {
		s.forgetLocked()
	}
}

// endLocked ends both directions with err and forgets the stream.
func (s *stream) endLocked(err error) {
	if s.inEnd == nil {
		s.inEnd = err
	}
	if s.outEnd == nil {
		s.outEnd = err
	}
	s.out, s.outBytes = nil, 0
	s.forgetLocked()
	s.change.Broadcast()
}

func (s *stream) forgetLocked() {
	if s.c.streams[s.id] == s {
		delete(s.c.streams, s.id)
	}
	if s.orphan != nil {
		s.orphan.Stop()
	}
}

func (s *stream) failLocked(err error) {
	if s.inEnd == nil {
		s.inEnd = err
	}
	if s.outEnd == nil {
		s.outEnd = err
	}
	s.out, s.outBytes = nil, 0
	s.change.Broadcast()
}

func (s *stream) dropLocked() {
	for _, c := range s.in {
		c.free()
	}
	s.in, s.inBytes = nil, 0
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
