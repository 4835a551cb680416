package podfs

import (
	"context"
	"path"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/wire"
)

// This file asks the agent for the attributes of names, and makes the copies fit the answers.

// asking asks for the attributes of names, each the parent of the next or of one of those.
type asking struct {
	c     *Copies
	names []string
}

type answer struct {
	at    time.Time
	attr  wire.Attr
	link  string
	errno syscall.Errno
}

func (s *asking) bring(done chan<- syscall.Errno) {
	got := make([]answer, len(s.names))
	var all sync.WaitGroup
	for i, p := range s.names {
		all.Add(1)
		go func() { // all at once: the way to the pod is long
			defer all.Done()
			got[i] = s.c.ask(p)
		}()
	}
	all.Wait()
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	for i, p := range s.names {
		stop, errno := s.c.applyLocked(p, &got[i])
		if errno != 0 {
			done <- errno
			return
		}
		if stop {
			break // what is below was asked for in vain
		}
	}
	done <- 0
}

// ask asks for one name, and where a link leads.
func (c *Copies) ask(p string) (a answer) {
	ctx := context.Background()
	a.at = time.Now()
	if c.f.abovePod(p) {
		a.attr = c.f.madeUp(p, Virtual{Dir: true})
		return a
	}
	if a.attr, a.errno = c.f.attrOf(ctx, p); a.errno != 0 || a.attr.Mode&syscall.S_IFMT != syscall.S_IFLNK {
		return a
	}
	if v, ok := c.f.virtual(p); ok && v.Link != "" {
		a.link = v.Link
		return a
	}
	b, errno := c.f.c.Readlink(ctx, p)
	if errno == syscall.EINVAL { // no link any more
		return c.ask(p)
	}
	a.link, a.errno = string(b), errno
	return a
}

// abovePod says whether p is on the way through a tree of the laptop's to a place of the pod's.
func (f *FS) abovePod(p string) bool {
	for q := range f.pods {
		if strings.HasPrefix(q, p+"/") {
			for up := p; len(up) > 1; up = path.Dir(up) {
				if f.o.Overlay[up].Laptop {
					return true
				}
			}
		}
	}
	return false
}

// applyLocked makes the copy of p be what the agent said. stop: nothing is below it.
func (c *Copies) applyLocked(p string, a *answer) (stop bool, errno syscall.Errno) {
	n := c.top
	if p != "/" {
		parent := c.top
		for _, part := range strings.Split(path.Dir(p)[1:], "/") {
			if part == "" {
				continue
			}
			if parent = parent.children[part]; parent == nil {
				return true, 0
			}
		}
		if !parent.there || parent.kind() != syscall.S_IFDIR {
			return true, 0
		}
		name := path.Base(p)
		if n = parent.children[name]; n == nil {
			n = &copied{parent: parent, name: name}
		}
	}
	switch {
	case a.errno == 0:
		return a.attr.Mode&syscall.S_IFMT != syscall.S_IFDIR, c.setLocked(n, a)
	case a.errno == syscall.ENOENT, a.errno == syscall.ENOTDIR:
		if n.parent == nil {
			return true, syscall.EIO
		}
		c.removeLocked(n)
		c.keepLocked(n)
		n.attr, n.asked = wire.Attr{}, a.at
		if c.gone++; c.gone > maxGone {
			c.forgetLocked(c.top)
			c.gone = 0
		}
		return true, 0
	}
	return true, a.errno
}

// keepLocked enters a node under its parent.
func (c *Copies) keepLocked(n *copied) {
	if n.parent != nil && n.parent.children[n.name] != n {
		if n.parent.children == nil {
			n.parent.children = make(map[string]*copied)
		}
		n.parent.children[n.name] = n
	}
}

// forgetLocked lets go of names that are not there.
func (c *Copies) forgetLocked(n *copied) {
	for name, k := range n.children {
		if !k.there {
			delete(n.children, name)
		} else {
			c.forgetLocked(k)
		}
	}
}

// setLocked makes the copy of a node that is there.
func (c *Copies) setLocked(n *copied, a *answer) syscall.Errno {
	attr := a.attr
	if c.f.o.Owner != nil {
		attr.UID, attr.GID = c.f.o.Owner.Uid, c.f.o.Owner.Gid
	}
	old := &n.attr
	if n.there && n.parent != nil && (n.kind() != attr.Mode&syscall.S_IFMT || n.link != a.link ||
		n.kind() == syscall.S_IFREG && (old.Ino != attr.Ino || old.Size != attr.Size || old.Mtime != attr.Mtime)) {
		c.removeLocked(n)
	}
	c.keepLocked(n)
	made := !n.there
	same := n.there && old.Mode == attr.Mode && old.UID == attr.UID && old.GID == attr.GID
	n.attr, n.link, n.asked = attr, a.link, a.at
	if same {
		return 0
	}
	if made {
		if errno := c.makeLocked(n); errno != 0 {
			n.asked = time.Time{}
			return errno
		}
	}
	return c.dressLocked(n, made)
}

// rel is a path for calls below root.
func (n *copied) rel() string {
	if n.parent == nil {
		return "."
	}
	return n.path()[1:]
}

// within runs f, which changes the entries of directory n.
func (c *Copies) within(n *copied, f func() error) syscall.Errno {
	hinders := !c.admin && n.attr.Mode&0o300 != 0o300
	if hinders {
		_ = unix.Fchmodat(c.root, n.rel(), n.attr.Mode&0o7777|0o700, 0)
	}
	err := f()
	if hinders {
		_ = unix.Fchmodat(c.root, n.rel(), n.attr.Mode&0o7777, 0)
	}
	errno, _ := err.(syscall.Errno)
	return errno
}

func (c *Copies) makeLocked(n *copied) syscall.Errno {
	mode := n.attr.Mode & 0o7777
	errno := c.within(n.parent, func() error {
		name := n.rel()
		var err error
		switch kind := n.kind(); kind {
		case syscall.S_IFDIR:
			err = unix.Mkdirat(c.root, name, mode)
		case syscall.S_IFLNK:
			err = unix.Symlinkat(n.text(), c.root, name)
		case syscall.S_IFIFO, syscall.S_IFSOCK:
			err = unix.Mknodat(c.root, name, kind|mode, 0)
		default: // devices too, which nobody may make: they are never opened
			err = unix.Mknodat(c.root, name, syscall.S_IFREG|mode, 0)
		}
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Fstatat(c.root, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		n.ino = st.Ino
		return nil
	})
	if errno == 0 {
		n.there, n.filled, n.listed = true, false, time.Time{}
		c.byIno[n.ino] = n
	}
	return errno
}

// text is a link's; one that is known from a listing only has another until it is asked for.
func (n *copied) text() string {
	if n.link == "" {
		return "?"
	}
	return n.link
}

// dressLocked gives a copy its owner and mode.
func (c *Copies) dressLocked(n *copied, made bool) syscall.Errno {
	if c.admin && (!made || n.attr.UID != 0 || n.attr.GID != 0) {
		// Where a user namespace lacks the owner it stays ours; what is shown is right.
		_ = unix.Fchownat(c.root, n.rel(), int(n.attr.UID), int(n.attr.GID), unix.AT_SYMLINK_NOFOLLOW)
	}
	if n.kind() == syscall.S_IFLNK {
		return 0
	}
	if err := unix.Fchmodat(c.root, n.rel(), n.attr.Mode&0o7777, 0); err != nil {
		return err.(syscall.Errno)
	}
	return 0
}

// removeLocked takes away a copy and all below it. Who has it open keeps it.
func (c *Copies) removeLocked(n *copied) {
	for _, k := range n.children {
		c.removeLocked(k)
	}
	n.children = nil
	if !n.there {
		return
	}
	flags := 0
	if n.kind() == syscall.S_IFDIR {
		flags = unix.AT_REMOVEDIR
	}
	_ = c.within(n.parent, func() error { return unix.Unlinkat(c.root, n.rel(), flags) })
	delete(c.byIno, n.ino)
	if n.filled {
		c.bytes -= int64(n.attr.Size)
	}
	n.there, n.filled, n.link, n.listed = false, false, "", time.Time{}
}
