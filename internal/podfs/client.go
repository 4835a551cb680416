// Package podfs shows the pod's files as files of the kernel's: a FUSE file system, read only, over
// the agent's file service. Some names are not the pod's (Overlay): places where trees of the
// laptop are bound over, and a few small files that a session makes up.
//
// The kernel caches names and attributes for a second and the contents of files for as long as
// their attributes stay the same, so that most calls never leave it.
package podfs

import (
	"bufio"
	"context"
	"errors"
	"io"
	"path"
	"sync"
	"syscall"

	"github.com/stead-dev/stead/internal/tunnel"
	"github.com/stead-dev/stead/internal/wire"
)

// Client asks the agent for files over one stream. Its methods may be called from any goroutine.
type Client struct {
	st    tunnel.Stream
	write sync.Mutex

	mu    sync.Mutex
	calls map[uint32]*call
	next  uint32
	err   error
	done  chan struct{}
}

// call waits for one answer. dst is filled with the body of a read; body is that of all others.
type call struct {
	dst   []byte
	n     int
	body  []byte
	errno syscall.Errno
	done  chan struct{}
}

var errLost = errors.New("the agent's file service is gone")

// NewClient takes over a stream of kind files.
func NewClient(st tunnel.Stream) *Client {
	c := &Client{st: st, calls: make(map[uint32]*call), done: make(chan struct{})}
	go c.receive()
	return c
}

// Close ends the client: calls under way and later ones fail with EIO.
func (c *Client) Close() {
	c.st.Reset(0)
	<-c.done
}

func (c *Client) receive() {
	defer close(c.done)
	r := bufio.NewReaderSize(c.st, 64<<10)
	err := c.answers(r)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = errors.Join(errLost, err)
	for id, k := range c.calls {
		k.errno = syscall.EIO
		close(k.done)
		delete(c.calls, id)
	}
}

func (c *Client) answers(r *bufio.Reader) error {
	for {
		id, errno, size, err := wire.ReadFileAnswerHead(r)
		if err != nil {
			return err
		}
		c.mu.Lock()
		k := c.calls[id]
		delete(c.calls, id)
		c.mu.Unlock()
		if k == nil { // interrupted: nobody waits
			if _, err := io.CopyN(io.Discard, r, int64(size)); err != nil {
				return err
			}
			continue
		}
		k.errno = syscall.Errno(errno)
		if k.dst != nil && size <= len(k.dst) {
			k.n = size
			_, err = io.ReadFull(r, k.dst[:size])
		} else {
			k.body = make([]byte, size)
			_, err = io.ReadFull(r, k.body)
		}
		if err != nil {
			k.errno = syscall.EIO
		}
		close(k.done)
		if err != nil {
			return err
		}
	}
}

// do sends one request and waits for its answer. The end of ctx (the caller of the file system call
// was interrupted) gives EINTR.
func (c *Client) do(ctx context.Context, q *wire.FileRequest, dst []byte) (*call, syscall.Errno) {
	k := &call{dst: dst, done: make(chan struct{})}
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return k, syscall.EIO
	}
	c.next++
	q.ID = c.next
	c.calls[q.ID] = k
	c.mu.Unlock()
	b := wire.AppendFileRequest(nil, q)
	c.write.Lock()
	_, err := c.st.Write(b)
	c.write.Unlock()
	if err != nil {
		c.mu.Lock()
		delete(c.calls, q.ID)
		c.mu.Unlock()
		return k, syscall.EIO
	}
	select {
	case <-k.done:
		return k, k.errno
	case <-ctx.Done():
		if dst == nil {
			c.mu.Lock()
			delete(c.calls, q.ID)
			c.mu.Unlock()
			return k, syscall.EINTR
		}
		<-k.done // dst is the caller's: it must not be written after we return
		return k, syscall.EINTR
	}
}

// Stat returns the attributes of name, a link's own.
func (c *Client) Stat(ctx context.Context, name string) (a wire.Attr, errno syscall.Errno) {
	k, errno := c.do(ctx, &wire.FileRequest{Op: wire.FileStat, Path: name}, nil)
	if errno == 0 {
		var err error
		if a, _, err = wire.ParseAttr(k.body); err != nil {
			errno = syscall.EIO
		}
	}
	return a, errno
}

// Readlink returns the target of a symbolic link.
func (c *Client) Readlink(ctx context.Context, name string) ([]byte, syscall.Errno) {
	k, errno := c.do(ctx, &wire.FileRequest{Op: wire.FileReadlink, Path: name}, nil)
	return k.body, errno
}

// List returns the entries of a directory, unsorted, without "." and "..".
func (c *Client) List(ctx context.Context, name string) ([]wire.Entry, syscall.Errno) {
	k, errno := c.do(ctx, &wire.FileRequest{Op: wire.FileList, Path: name}, nil)
	if errno != 0 {
		return nil, errno
	}
	out, err := wire.ParseEntries(k.body)
	if err != nil {
		return nil, syscall.EIO
	}
	return out, 0
}

// Open opens a regular file.
func (c *Client) Open(ctx context.Context, name string) (handle uint64, errno syscall.Errno) {
	k, errno := c.do(ctx, &wire.FileRequest{Op: wire.FileOpen, Path: name}, nil)
	if errno != 0 {
		return 0, errno
	}
	if len(k.body) < 8 {
		return 0, syscall.EIO
	}
	for _, b := range k.body[:8] {
		handle = handle<<8 | uint64(b)
	}
	return handle, 0
}

// Read reads at an offset, less than len(dst) only at the file's end.
func (c *Client) Read(ctx context.Context, handle uint64, dst []byte, off int64) (int, syscall.Errno) {
	if len(dst) > wire.MaxFileRead {
		dst = dst[:wire.MaxFileRead]
	}
	k, errno := c.do(ctx, &wire.FileRequest{Op: wire.FileRead, Handle: handle, Offset: off, Count: uint32(len(dst))}, dst)
	return k.n, errno
}

// Release closes a handle.
func (c *Client) Release(handle uint64) {
	_, _ = c.do(context.Background(), &wire.FileRequest{Op: wire.FileClose, Handle: handle}, nil)
}

// ReadFile reads a whole small file, following links.
func (c *Client) ReadFile(ctx context.Context, name string, limit int) ([]byte, syscall.Errno) {
	for range 8 {
		h, errno := c.Open(ctx, name)
		if errno == syscall.ELOOP {
			to, e := c.Readlink(ctx, name)
			if e != 0 {
				return nil, e
			}
			name = join(name, string(to))
			continue
		}
		if errno != 0 {
			return nil, errno
		}
		defer c.Release(h)
		b := make([]byte, min(limit, wire.MaxFileRead))
		n, errno := c.Read(ctx, h, b, 0)
		return b[:n], errno
	}
	return nil, syscall.ELOOP
}

// join resolves a link's target against the link's path.
func join(link, target string) string {
	if path.IsAbs(target) {
		return path.Clean(target)
	}
	return path.Join(path.Dir(link), target)
}
