package podfs

import (
	"context"
	"path"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/wire"
)

// This file fills the copies: directories with their entries, regular files with their bytes.

// listing brings a directory's entries.
type listing struct {
	c *Copies
	n *copied
	p string
}

func (s *listing) bring(done chan<- syscall.Errno) {
	c, at := s.c, time.Now()
	list, errno := c.f.list(context.Background(), s.p)
	if errno != 0 {
		done <- errno
		return
	}
	names := make(map[string]bool, len(list))
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range list {
		e := &list[i]
		if names[e.Name] = true; i%listAtOnce == listAtOnce-1 {
			c.mu.Unlock() // the receiver may want to know something
			c.mu.Lock()
		}
		k := s.n.children[e.Name]
		if k == nil {
			k = &copied{parent: s.n, name: e.Name}
		}
		if c.byIno[s.n.ino] != s.n { // it was removed meanwhile
			done <- 0
			return
		}
		a := answer{at: at, attr: e.Attr}
		if isLink := e.Attr.Mode&syscall.S_IFMT == syscall.S_IFLNK; isLink {
			if k.there && k.kind() == syscall.S_IFLNK && k.attr.Ino == e.Attr.Ino && k.attr.Mtime == e.Attr.Mtime {
				continue
			}
			a.at = time.Time{} // where it leads is asked for when somebody goes there
		}
		if e.Attr.Ino == 0 || c.f.o.Overlay[path.Join(s.p, e.Name)].Laptop {
			a.at = time.Time{}
		}
		if errno := c.setLocked(k, &a); errno != 0 {
			done <- errno
			return
		}
	}
	for name, k := range s.n.children {
		if !names[name] && k.there && k.asked.Before(at) {
			c.removeLocked(k)
			delete(s.n.children, name)
		}
	}
	s.n.listed = at
	done <- 0
}

// filling brings a regular file's bytes.
type filling struct {
	c    *Copies
	n    *copied
	torn bool // take what comes: it changes all the time
}

func (s *filling) bring(done chan<- syscall.Errno) {
	c, n := s.c, s.n
	c.mu.Lock()
	if wait := n.filling; wait != nil {
		c.mu.Unlock()
		<-wait
		done <- 0
		return
	}
	name, attr, ino := n.path(), n.attr, n.ino
	if n.filled || !n.there {
		c.mu.Unlock()
		done <- 0
		return
	}
	if attr.Size > MaxCopy {
		c.mu.Unlock()
		c.tooLarge(name, attr.Size)
		done <- syscall.EFBIG
		return
	}
	c.makeRoomLocked(int64(attr.Size))
	fd, errno := c.writableLocked(n)
	if errno != 0 {
		c.mu.Unlock()
		done <- errno
		return
	}
	n.filling = make(chan struct{})
	c.mu.Unlock()

	handle, errno := c.fill(fd, name, &attr)
	if errno == syscall.ENOSPC || errno == syscall.EDQUOT {
		c.tooLarge(name, attr.Size)
		errno = syscall.EFBIG
	}

	c.mu.Lock()
	close(n.filling)
	n.filling = nil
	same := n.there && n.ino == ino
	if same {
		_ = unix.Fchmod(fd, n.attr.Mode&0o7777)
	}
	if same && errno == syscall.ESTALE {
		_ = unix.Ftruncate(fd, 0)
	}
	unix.Close(fd) // before it may be executed (ETXTBSY)
	if same {
		if s.torn && errno == syscall.ESTALE {
			errno = 0
		}
		switch {
		case errno == syscall.ESTALE: // it changed meanwhile
			n.asked, errno = time.Time{}, 0
		case errno == 0:
			t := []unix.Timespec{unix.NsecToTimespec(attr.Atime), unix.NsecToTimespec(attr.Mtime)}
			_ = unix.UtimesNanoAt(c.root, n.rel(), t, unix.AT_SYMLINK_NOFOLLOW)
			n.filled = true
			c.bytes += int64(attr.Size)
		}
	}
	c.mu.Unlock()
	done <- errno
	if handle != (Handle{}) {
		c.f.c.Release(handle)
	}
}

// writableLocked opens a copy that nobody has opened yet.
func (c *Copies) writableLocked(n *copied) (int, syscall.Errno) {
	if !c.admin && n.attr.Mode&0o200 == 0 {
		_ = unix.Fchmodat(c.root, n.rel(), n.attr.Mode&0o7777|0o200, 0)
	}
	return open(c.root, n.rel(), &unix.OpenHow{Flags: unix.O_WRONLY | unix.O_TRUNC | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS})
}

// fill writes the pod's file to fd. ESTALE: it is another by now.
func (c *Copies) fill(fd int, name string, attr *wire.Attr) (handle Handle, errno syscall.Errno) {
	if v, ok := c.f.virtual(name); ok && !v.Dir {
		return Handle{}, writeAll(fd, v.Data, 0)
	}
	if attr.Size == 0 {
		return Handle{}, 0
	}
	ctx := context.Background()
	handle, errno = c.f.c.Open(ctx, name)
	switch errno {
	case 0:
	case syscall.ENOENT, syscall.ELOOP, syscall.ENXIO:
		return Handle{}, syscall.ESTALE
	default:
		return Handle{}, errno
	}
	pieces := int((attr.Size + pieceSize - 1) / pieceSize)
	results := make([]syscall.Errno, min(pieces, fillers))
	var all sync.WaitGroup
	for w := range results {
		all.Add(1)
		go func() {
			defer all.Done()
			b := make([]byte, min(uint64(pieceSize), attr.Size))
			for i := w; i < pieces && results[w] == 0; i += len(results) {
				off := int64(i) * pieceSize
				want := min(pieceSize, int64(attr.Size)-off)
				n, e := c.f.c.Read(ctx, handle, b[:want], off)
				if e == 0 && int64(n) < want {
					e = syscall.ESTALE
				}
				if e == 0 {
					e = writeAll(fd, b[:n], off)
				}
				results[w] = e
			}
		}()
	}
	all.Wait()
	for _, e := range results {
		if e != 0 {
			return handle, e
		}
	}
	if pieces > 1 { // it took a while
		now, e := c.f.c.Stat(ctx, name)
		if e != 0 || now.Ino != attr.Ino || now.Size < attr.Size || now.Size == attr.Size && now.Mtime != attr.Mtime { // more may follow
			return handle, syscall.ESTALE
		}
	}
	return handle, 0
}

func writeAll(fd int, b []byte, off int64) syscall.Errno {
	for len(b) > 0 {
		n, err := unix.Pwrite(fd, b, off)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err.(syscall.Errno)
		}
		b, off = b[n:], off+int64(n)
	}
	return 0
}

// makeRoomLocked lets go of copies until size more bytes may come.
func (c *Copies) makeRoomLocked(size int64) {
	for c.bytes+size > maxCopies {
		var oldest *copied
		for _, n := range c.byIno {
			if n.filled && n.attr.Size > 0 && (oldest == nil || n.opened.Before(oldest.opened)) {
				oldest = n
			}
		}
		if oldest == nil {
			return
		}
		c.removeLocked(oldest)
		if c.makeLocked(oldest) == 0 {
			c.dressLocked(oldest, true)
		}
	}
}
