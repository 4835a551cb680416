// Package podfs shows the pod's files as files of the kernel's: a FUSE file system, read only, over
// the agent's file service. Some names are not the pod's (Overlay): places where trees of the
// laptop are bound over, and a few small files that a session makes up.
//
// The kernel caches names and attributes for a second and the contents of files for as long as
// their attributes stay the same, so that most calls never leave it.
//
// The pod may become another one under it (Client.Move). Names are looked up there from then on; a
// file that is open goes on as long as the old pod does, then it is stale (ESTALE).
package podfs

import (
	"context"
	"errors"
	"path"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/stead-dev/stead/internal/tunnel"
	"github.com/stead-dev/stead/internal/wire"
)

// Opener gives a fresh stream of kind files to the pod whose files are shown. It may wait for one.
type Opener func(context.Context) (tunnel.Stream, error)

// Client asks the agent for files. Its methods may be called from any goroutine.
type Client struct {
	open    Opener
	ctx     context.Context // of the client
	stop    context.CancelFunc
	turn    chan struct{} // held by the one who opens a link
	moves   atomic.Uint64
	current atomic.Pointer[link]

	mu    sync.Mutex
	links map[*link]bool // those that have not ended
}

// Handle is an open file, of the pod where it was opened.
type Handle struct {
	link *link
	id   uint64
}

// NewClient makes a client. Its stream is opened by Connect, or by the first call of another method.
func NewClient(open Opener) *Client {
	c := &Client{open: open, turn: make(chan struct{}, 1), links: make(map[*link]bool)}
	c.ctx, c.stop = context.WithCancel(context.Background())
	return c
}

// Connect opens the stream, where that is to be known before the first file is asked for.
func (c *Client) Connect(ctx context.Context) error {
	_, err := c.link(ctx)
	return err
}

// Move tells that open leads to another pod now. Names are looked up there from now on.
func (c *Client) Move() { c.moves.Add(1) }

// Close ends the client: calls under way and later ones fail.
func (c *Client) Close() {
	c.stop()
	c.mu.Lock()
	links := c.links
	c.links = nil
	c.mu.Unlock()
	for l := range links {
		l.close()
	}
}

var errClosed = errors.New("the files are shown no more")

// link gives the stream to the pod whose files are shown, and opens one where there is none.
func (c *Client) link(ctx context.Context) (*link, error) {
	if l := c.current.Load(); l != nil && l.alive() && l.moves == c.moves.Load() {
		return l, nil
	}
	select {
	case c.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-c.ctx.Done():
		return nil, errClosed
	}
	defer func() { <-c.turn }()
	old := c.current.Load()
	moves := c.moves.Load()
	if old != nil && old.alive() && old.moves == moves {
		return old, nil
	}
	octx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.ctx, cancel)()
	st, err := c.open(octx)
	if err != nil {
		return nil, err
	}
	l := newLink(st)
	l.moves = moves
	if old != nil {
		l.generation = old.generation + 1
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.links == nil {
		l.close()
		return nil, errClosed
	}
	c.links[l] = true
	for o := range c.links {
		if !o.alive() {
			delete(c.links, o)
		}
	}
	c.current.Store(l)
	return l, nil
}

// attempts bounds how often one call is made anew because its stream ended.
const attempts = 3

// ask sends a request about a name to the pod whose files are shown.
func (c *Client) ask(ctx context.Context, q wire.FileRequest) (*call, *link, syscall.Errno) {
	for range attempts {
		l, err := c.link(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return nil, nil, syscall.EINTR
			}
			return nil, nil, syscall.EIO
		}
		k, errno := l.do(ctx, &q, nil)
		if errno == 0 || l.alive() || ctx.Err() != nil {
			return k, l, errno
		}
	}
	return nil, nil, syscall.EIO
}

// Stat returns the attributes of name, a link's own.
func (c *Client) Stat(ctx context.Context, name string) (a wire.Attr, errno syscall.Errno) {
	k, l, errno := c.ask(ctx, wire.FileRequest{Op: wire.FileStat, Path: name})
	if errno == 0 {
		var err error
		if a, _, err = wire.ParseAttr(k.body); err != nil {
			errno = syscall.EIO
		}
		a.Ino = l.inode(a.Ino)
	}
	return a, errno
}

// Readlink returns the target of a symbolic link.
func (c *Client) Readlink(ctx context.Context, name string) ([]byte, syscall.Errno) {
	k, _, errno := c.ask(ctx, wire.FileRequest{Op: wire.FileReadlink, Path: name})
	if errno != 0 {
		return nil, errno
	}
	return k.body, 0
}

// List returns the entries of a directory, unsorted, without "." and "..".
func (c *Client) List(ctx context.Context, name string) ([]wire.Entry, syscall.Errno) {
	k, l, errno := c.ask(ctx, wire.FileRequest{Op: wire.FileList, Path: name})
	if errno != 0 {
		return nil, errno
	}
	out, err := wire.ParseEntries(k.body)
	if err != nil {
		return nil, syscall.EIO
	}
	for i := range out {
		out[i].Attr.Ino = l.inode(out[i].Attr.Ino)
	}
	return out, 0
}

// Open opens a regular file.
func (c *Client) Open(ctx context.Context, name string) (h Handle, errno syscall.Errno) {
	k, l, errno := c.ask(ctx, wire.FileRequest{Op: wire.FileOpen, Path: name})
	if errno != 0 {
		return h, errno
	}
	if len(k.body) < 8 {
		return h, syscall.EIO
	}
	h.link = l
	for _, b := range k.body[:8] {
		h.id = h.id<<8 | uint64(b)
	}
	return h, 0
}

// Read reads at an offset, less than len(dst) only at the file's end. A file whose pod has ended is
// stale.
func (c *Client) Read(ctx context.Context, h Handle, dst []byte, off int64) (int, syscall.Errno) {
	if len(dst) > wire.MaxFileRead {
		dst = dst[:wire.MaxFileRead]
	}
	k, errno := h.link.do(ctx, &wire.FileRequest{Op: wire.FileRead, Handle: h.id, Offset: off, Count: uint32(len(dst))}, dst)
	if errno != 0 && !h.link.alive() && ctx.Err() == nil {
		errno = syscall.ESTALE
	}
	return k.n, errno
}

// Release closes a handle.
func (c *Client) Release(h Handle) {
	_, _ = h.link.do(context.Background(), &wire.FileRequest{Op: wire.FileClose, Handle: h.id}, nil)
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
