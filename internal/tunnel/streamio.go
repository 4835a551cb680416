package tunnel

import (
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

// Read implements net.Conn.
func (s *stream) Read(p []byte) (int, error) {
	s.reader.Lock()
	defer s.reader.Unlock()
	if s.cur == nil {
		s.c.mu.Lock()
		if err := s.waitReadLocked(); err != nil {
			s.c.mu.Unlock()
			return 0, err
		}
		s.cur = s.in[0]
		s.in[0] = nil
		s.in = s.in[1:]
		s.partly = true
		s.readLocked(len(s.cur.data))
		s.c.mu.Unlock()
	} else if err := s.readable(); err != nil {
		return 0, err
	}
	n := copy(p, s.cur.data)
	if s.cur.data = s.cur.data[n:]; len(s.cur.data) == 0 {
		s.cur.free()
		s.cur = nil
		s.c.mu.Lock()
		s.partly = false
		s.c.mu.Unlock()
	}
	return n, nil
}

// readable says why what was received is not to be read any more.
func (s *stream) readable() error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	switch {
	case s.readDead:
		return ErrClosed
	case s.readAt.passed():
		return os.ErrDeadlineExceeded
	}
	if r, ok := s.inEnd.(*ResetError); ok {
		return r
	}
	return nil
}

// waitReadLocked waits for data; an error means that none will come.
func (s *stream) waitReadLocked() error {
	for {
		switch {
		case s.readDead:
			return ErrClosed
		case s.readAt.passed():
			return os.ErrDeadlineExceeded
		case len(s.in) > 0:
			return nil
		case s.inEnd != nil:
			return s.inEnd
		}
		s.change.Wait()
	}
}

// readLocked notes that n bytes were consumed, and lets the peer send more. A window whose half
// is used up in no time is too small for the way there and back: it is doubled.
func (s *stream) readLocked(n int) {
	s.inBytes -= n
	s.consumed += n
	if len(s.in) == 0 {
		s.in = nil
	}
	if s.consumed < s.window/2 || s.inEnd != nil {
		return
	}
	give, now := s.consumed, time.Now()
	if s.window < largeWindow && now.Sub(s.creditAt) < growWithin && s.c.grown+s.window <= growBudget {
		give += s.window
		s.c.grown += s.window
		s.window *= 2
	}
	s.consumed, s.creditAt = 0, now
	s.c.smallLocked(frameCredit, s.id, uint32(give))
}

// WriteTo implements io.WriterTo: it hands the chunks on as they came, and lets the peer send more
// when w has taken them.
func (s *stream) WriteTo(w io.Writer) (total int64, err error) {
	s.reader.Lock()
	defer s.reader.Unlock()
	var taken []*chunk
	var bufs net.Buffers
	for {
		taken, bufs = taken[:0], bufs[:0]
		s.c.mu.Lock()
		if s.cur != nil {
			taken, s.cur, s.partly = append(taken, s.cur), nil, false
			n := len(taken[0].data)
			s.inBytes, s.consumed = s.inBytes+n, s.consumed-n // what Read noted
		} else if err := s.waitReadLocked(); err != nil {
			s.c.mu.Unlock()
			if err == io.EOF {
				err = nil
			}
			return total, err
		}
		taken = append(taken, s.in...)
		s.in = nil
		s.c.mu.Unlock()
		n := 0
		for _, c := range taken {
			bufs = append(bufs, c.data)
			n += len(c.data)
		}
		rest := bufs
		k, err := rest.WriteTo(w)
		total += k
		for i, c := range taken {
			c.free()
			taken[i] = nil
		}
		s.c.mu.Lock()
		s.readLocked(n)
		s.movedLocked(n)
		s.c.mu.Unlock()
		if err != nil {
			return total, err
		}
		if cap(taken) > 64 {
			taken, bufs = nil, nil
		}
	}
}

// Write implements net.Conn.
func (s *stream) Write(p []byte) (int, error) {
	s.writer.Lock()
	defer s.writer.Unlock()
	total := 0
	for len(p) > 0 {
		n := min(len(p), chunkSize)
		if err := s.pushBytes(p[:n]); err != nil {
			return total, err
		}
		p = p[n:]
		total += n
	}
	return total, nil
}

// pushBytes queues a copy of p, at most chunkSize. A few bytes join what waits already.
func (s *stream) pushBytes(p []byte) error {
	if len(p) <= smallSize {
		s.c.mu.Lock()
		if last := len(s.out) - 1; last >= 0 && s.out[last].room() >= len(p) && s.writableLocked() == nil {
			s.out[last].data = append(s.out[last].data, p...)
			s.outBytes += len(p)
			s.noteLocked(len(p))
			s.queueLocked()
			s.c.mu.Unlock()
			return nil
		}
		s.c.mu.Unlock()
	}
	c := newChunk(len(p))
	c.data = c.space()[:copy(c.space(), p)]
	err := s.push(c)
	if err != nil {
		c.free()
	}
	return err
}

func (s *stream) writableLocked() error {
	switch {
	case s.outEnd != nil:
		return s.outEnd
	case s.fin, s.c.closing:
		return ErrClosed
	case s.writeAt.passed():
		return os.ErrDeadlineExceeded
	}
	return nil
}

// push queues a chunk, which the stream then owns, when there is room.
func (s *stream) push(c *chunk) error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	for {
		if err := s.writableLocked(); err != nil {
			return err
		}
		if s.outBytes < maxQueued {
			break
		}
		s.change.Wait()
	}
	s.out = append(s.out, c)
	s.outBytes += len(c.data)
	s.noteLocked(len(c.data))
	s.queueLocked()
	s.movedLocked(len(c.data))
	return nil
}

// ReadFrom implements io.ReaderFrom: it reads straight into the chunks that are sent. From a
// connection of the kernel's it reads only when there is something, so an idle one holds no chunk.
func (s *stream) ReadFrom(r io.Reader) (total int64, err error) {
	next := func() (*chunk, error) { return readChunk(r) }
	if sc, ok := r.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			next = rawReader(raw)
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

// rawReader is readChunk for a descriptor: a chunk is taken when the descriptor is readable.
func rawReader(raw syscall.RawConn) func() (*chunk, error) {
	var c *chunk
	var err error
	read := func(fd uintptr) bool {
		c, err = newChunk(chunkSize), nil
		for {
			n, e := syscall.Read(int(fd), c.space())
			if n > 0 {
				c.data = c.space()[:n]
				c = c.fit()
				return true
			}
			if e == syscall.EINTR {
				continue
			}
			c.free()
			c = nil
			switch e {
			case syscall.EAGAIN:
				return false
			case nil:
				err = io.EOF
			default:
				err = os.NewSyscallError("read", e)
			}
			return true
		}
	}
	return func() (*chunk, error) {
		if cerr := raw.Read(read); cerr != nil {
			return nil, cerr
		}
		got := c
		c = nil
		return got, err
	}
}
