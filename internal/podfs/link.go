package podfs

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"sync"
	"syscall"
	"time"

	"github.com/stead-dev/stead/internal/tunnel"
	"github.com/stead-dev/stead/internal/wire"
)

// link is one stream to the file service of one agent. It ends with the stream.
type link struct {
	st         tunnel.Stream
	moves      uint64 // of the client, when it was opened
	generation uint64 // how many there were before

	write sync.Mutex

	mu    sync.Mutex
	calls map[uint32]*call
	next  uint32
	err   error
	done  chan struct{}

	work sync.WaitGroup // of done's goroutine: handles that it gives back
}

// call waits for one answer. dst is filled with the body of a read; body is that of all others.
type call struct {
	dst   []byte
	n     int
	body  []byte
	errno syscall.Errno
	done  chan struct{}

	opens bool // a handle comes with the answer
	left  bool // under link.mu: interrupted, nobody waits
}

var errLost = errors.New("the agent's file service is gone")

func newLink(st tunnel.Stream) *link {
	l := &link{st: st, calls: make(map[uint32]*call), done: make(chan struct{})}
	go l.receive()
	return l
}

func (l *link) close() {
	l.st.Reset(0)
	<-l.done
}

func (l *link) alive() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err == nil
}

// inode keeps the inodes of different pods apart: the kernel has the one's contents in its cache.
func (l *link) inode(ino uint64) uint64 { return ino ^ l.generation*0x9e3779b97f4a7c15 }

func (l *link) receive() {
	defer close(l.done)
	defer l.work.Wait()
	err := l.answers(bufio.NewReaderSize(l.st, 64<<10))
	l.st.Reset(0) // where it is an answer that nobody understands, the agent does not know yet
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = errors.Join(errLost, err)
	for id, k := range l.calls {
		k.errno = syscall.EIO
		close(k.done)
		delete(l.calls, id)
	}
}

func (l *link) answers(r *bufio.Reader) error {
	for {
		id, errno, size, err := wire.ReadFileAnswerHead(r)
		if err != nil {
			return err
		}
		l.mu.Lock()
		k := l.calls[id]
		delete(l.calls, id)
		left := k == nil || k.left
		l.mu.Unlock()
		if left {
			if err := l.refuse(r, k, errno, size); err != nil {
				return err
			}
			continue
		}
		k.errno = syscall.Errno(errno)
		switch {
		case k.dst != nil && size <= len(k.dst):
			k.n = size
			_, err = io.ReadFull(r, k.dst[:size])
		case k.dst != nil: // more than was asked for: what of it would be the file's?
			k.errno = syscall.EIO
			_, err = io.CopyN(io.Discard, r, int64(size))
		default:
			k.body = make([]byte, size)
			_, err = io.ReadFull(r, k.body)
		}
		if err != nil {
			k.errno = syscall.EIO
			l.mu.Lock()
			l.err = errors.Join(errLost, err) // before anybody asks why
			l.mu.Unlock()
		}
		close(k.done)
		if err != nil {
			return err
		}
	}
}

// refuse takes an answer for which nobody waits. A handle that came with it is given back: the agent
// keeps only so many.
func (l *link) refuse(r *bufio.Reader, k *call, errno uint32, size int) error {
	if k == nil || !k.opens || errno != 0 || size < 8 {
		_, err := io.CopyN(io.Discard, r, int64(size))
		return err
	}
	var head [8]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	if _, err := io.CopyN(io.Discard, r, int64(size-len(head))); err != nil {
		return err
	}
	l.work.Add(1)
	go func() { // not here: the agent may read no request before we have read its answers
		defer l.work.Done()
		_, _ = l.do(context.Background(), &wire.FileRequest{Op: wire.FileClose, Handle: binary.BigEndian.Uint64(head[:])}, nil)
	}()
	return nil
}

// patience is how long a call is deaf to the end of its context: its caller has a signal to take, and path
// calls of a kernel's own file systems are not interrupted. Only one that waits for a pod far away is.
const patience = time.Second

// do sends one request and waits for its answer. The end of ctx (the caller of the file system call
// was interrupted) gives EINTR, with patience.
func (l *link) do(ctx context.Context, q *wire.FileRequest, dst []byte) (*call, syscall.Errno) {
	k := &call{dst: dst, opens: q.Op == wire.FileOpen, done: make(chan struct{})}
	l.mu.Lock()
	if l.err != nil {
		l.mu.Unlock()
		return k, syscall.EIO
	}
	l.next++
	q.ID = l.next
	l.calls[q.ID] = k
	l.mu.Unlock()
	b := wire.AppendFileRequest(nil, q)
	l.write.Lock()
	_, err := l.st.Write(b)
	l.write.Unlock()
	if err != nil {
		l.st.Reset(0) // the other direction, too
		<-k.done
		return k, syscall.EIO
	}
	if patient(ctx, k.done) {
		return k, k.errno
	}
	if dst == nil {
		l.mu.Lock()
		k.left = true
		answered := l.calls[q.ID] != k
		l.mu.Unlock()
		if answered { // or about to be: the receiver has it
			<-k.done
			return k, k.errno
		}
		return k, syscall.EINTR
	}
	<-k.done // dst is the caller's: it must not be written after we return
	return k, k.errno
}

// patient waits until done is closed; false when the caller waits no more.
func patient(ctx context.Context, done <-chan struct{}) bool {
	began := time.Now()
	select {
	case <-done:
		return true
	case <-ctx.Done():
	}
	select {
	case <-done:
		return true
	case <-time.After(patience - time.Since(began)):
		return false
	}
}
