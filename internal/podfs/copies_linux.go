package podfs

import (
	"path"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/wire"
)

// Copies is the pod's tree as ordinary files in a directory of this machine's, for machines without
// FUSE. Each is made when it is asked for: what is on the way to a name when the name is looked up, a
// directory's entries when it is opened, a regular file's bytes when it is. What is there is believed
// as long as the kernel believes it of a FUSE file system; a file's time and size are asked for at each
// opening. A file that has changed gets a new copy, so who has the old one open goes on reading that.
//
// The copies have the pod's kinds and modes, and owners where those can be set, so that the kernel's
// own walk decides who may go where; all else that stat tells is kept here (Known). Nothing but Open
// may be used to open them: a copy that was not asked for is empty.
type Copies struct {
	f        *FS
	root     int // descriptor of the directory
	dev      uint64
	admin    bool // modes hinder us not, owners can be set
	tooLarge func(name string, size uint64)

	work sync.WaitGroup // what asks the agent

	mu    sync.Mutex // guards what is below and all changes of the directory; never held while the agent is asked
	top   *copied
	byIno map[uint64]*copied
	bytes int64
	gone  int // nodes of names that are not there
}

// The bounds of what is copied: of one file, and of all. Beyond the second the files that were opened
// longest ago go first.
const (
	MaxCopy    = 64 << 20
	maxCopies  = 256 << 20
	maxGone    = 10000
	fillers    = 8   // reads under way for one file
	fillTries  = 4   // a file that changes all the time
	lookTries  = 100 // a tree that changes all the time
	listAtOnce = 64  // entries made without letting others in
)

// copied is one name. Copies.mu guards it.
type copied struct {
	parent   *copied
	name     string
	children map[string]*copied

	asked time.Time // when what follows was true; the zero time: ask
	attr  wire.Attr // as shown; Mode 0: no such file
	link  string

	there   bool // it has a copy, with these numbers:
	ino     uint64
	listed  time.Time // a directory's entries
	filled  bool      // a regular file's bytes
	filling chan struct{}
	opened  time.Time
}

// NewCopies shows f below root, an empty directory that it owns.
func NewCopies(f *FS, root int, tooLarge func(name string, size uint64)) (*Copies, error) {
	c := &Copies{f: f, root: root, admin: unix.Geteuid() == 0, tooLarge: tooLarge, top: &copied{}, byIno: make(map[uint64]*copied)}
	var st unix.Stat_t
	if err := unix.Fstat(root, &st); err != nil {
		return nil, err
	}
	c.dev = st.Dev
	c.top.there, c.top.ino = true, st.Ino
	c.byIno[st.Ino] = c.top
	return c, nil
}

// Wait returns when nobody asks the agent any more, which is after its client's end at the latest.
func (c *Copies) Wait() { c.work.Wait() }

// Root is the directory.
func (c *Copies) Root() int { return c.root }

// Known is intercept.Copies'.
func (c *Copies) Known(dev, ino uint64) (name string, a wire.Attr, ok bool) {
	if dev != c.dev {
		return "", a, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.byIno[ino]
	if n == nil {
		return "", a, false
	}
	return n.path(), n.attr, true
}

// Doubt is intercept.Copies'.
func (c *Copies) Doubt(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.top
	for _, part := range strings.Split(strings.Trim(name, "/"), "/") {
		if n = n.children[part]; n == nil {
			return
		}
	}
	n.asked = time.Time{}
}

// Moved is called after the client's Move: all is asked for again.
func (c *Copies) Moved() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.doubtLocked(c.top)
}

func (c *Copies) doubtLocked(n *copied) {
	n.asked, n.listed = time.Time{}, time.Time{}
	for _, k := range n.children {
		c.doubtLocked(k)
	}
}

func (n *copied) path() string {
	if n.parent == nil {
		return "/"
	}
	return path.Join(n.parent.path(), n.name)
}

func (n *copied) kind() uint32 { return n.attr.Mode & syscall.S_IFMT }

// Open is intercept.Copies'.
func (c *Copies) Open(name string, flags, mode, resolve uint64) (int, syscall.Errno) {
	const cached = 0x20 // RESOLVE_CACHED
	q := query{name: name, began: time.Now()}
	writes := flags&unix.O_ACCMODE != unix.O_RDONLY || flags&unix.O_TRUNC != 0
	q.open = flags&unix.O_PATH == 0 && !writes
	q.refused = flags&unix.O_DIRECTORY != 0 || flags&(unix.O_CREAT|unix.O_EXCL) == unix.O_CREAT|unix.O_EXCL
	for range lookTries {
		if resolve&cached == 0 {
			c.mu.Lock()
		} else if !c.mu.TryLock() {
			return -1, syscall.EAGAIN
		}
		s := c.missingLocked(&q)
		if s == nil {
			defer c.mu.Unlock()
			return c.openLocked(&q, &unix.OpenHow{Flags: flags, Mode: mode, Resolve: resolve&^cached | unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS})
		}
		c.mu.Unlock()
		if resolve&cached != 0 {
			return -1, syscall.EAGAIN
		}
		// Elsewhere: this thread may have somebody else's rights.
		done := make(chan syscall.Errno, 1)
		c.work.Add(1)
		go func() {
			defer c.work.Done()
			s.bring(done)
		}()
		if errno := <-done; errno != 0 {
			return -1, errno
		}
	}
	return -1, syscall.EIO
}

// query is one look-up.
type query struct {
	name  string
	open  bool // the contents are wanted
	began time.Time
	// refused: the kernel says no of a regular file, whatever is in it
	refused bool
	fills   int

	last *copied // where it led to, as far as names go
	end  bool    // that is the name's last part
}

// step is what is missing for a look-up. It sends one result.
type step interface {
	bring(done chan<- syscall.Errno)
}

// missingLocked walks a name. nil: the kernel can walk it now, and will say what we would.
func (c *Copies) missingLocked(q *query) step {
	believed := q.began.Add(-cacheFor)
	ask := &asking{c: c}
	n, p := c.top, "/"
	look := func(n *copied, p string, last bool) {
		since := believed
		if last && q.open && q.fills < fillTries && n != nil && n.kind() == syscall.S_IFREG {
			since = q.began
		}
		if n == nil || n.asked.Before(since) {
			ask.names = append(ask.names, p)
		}
	}
	parts := strings.Split(strings.Trim(q.name, "/"), "/")
	if parts[0] == "" {
		parts = nil
	}
	look(n, p, len(parts) == 0)
	q.last, q.end = n, true
	for i, part := range parts {
		if n != nil && !n.asked.IsZero() && n.kind() != syscall.S_IFDIR || n != nil && !c.admin && n.attr.Mode&0o100 == 0 && !n.asked.IsZero() {
			q.end = false
			break
		}
		switch part {
		case "", ".":
			continue
		case "..":
			p = path.Dir(p)
			if n != nil && n.parent != nil {
				n = n.parent
			}
			q.last = n
			continue
		}
		p = path.Join(p, part)
		if n != nil {
			n = n.children[part]
		}
		q.last = n
		look(n, p, i == len(parts)-1)
	}
	switch {
	case len(ask.names) > 0:
		return ask
	case !q.end || !q.open:
		return nil
	case n.kind() == syscall.S_IFDIR && n.listed.Before(believed):
		return &listing{c, n, n.path()}
	case n.kind() == syscall.S_IFREG && !n.filled && !q.refused:
		q.fills++
		return &filling{c, n, q.fills >= fillTries}
	}
	return nil
}

// openLocked opens what is there by now. The copies are writable, the tree is not.
func (c *Copies) openLocked(q *query, how *unix.OpenHow) (int, syscall.Errno) {
	if how.Flags&unix.O_TMPFILE&^unix.O_DIRECTORY != 0 {
		return -1, syscall.EOPNOTSUPP
	}
	writes := how.Flags&unix.O_ACCMODE != unix.O_RDONLY || how.Flags&unix.O_TRUNC != 0
	if how.Flags&unix.O_TRUNC != 0 {
		how.Flags = how.Flags&^(unix.O_TRUNC|unix.O_ACCMODE) | unix.O_RDWR
	}
	there := q.last != nil && q.last.there && q.end
	if how.Flags&unix.O_CREAT != 0 && !there {
		return -1, c.mayMake(q.name)
	}
	if there && how.Flags&unix.O_PATH == 0 {
		if k := q.last.kind(); k == syscall.S_IFCHR || k == syscall.S_IFBLK {
			return -1, syscall.EACCES // as on every file system mounted without devices
		}
		q.last.opened = q.began
	}
	fd, errno := open(c.root, q.name, how)
	if errno == 0 && writes {
		unix.Close(fd)
		return -1, syscall.EROFS
	}
	return fd, errno
}

// mayMake is what becomes of a file that would be made by open.
func (c *Copies) mayMake(name string) syscall.Errno {
	if strings.HasSuffix(name, "/") {
		return syscall.EISDIR
	}
	dir, errno := open(c.root, name[:strings.LastIndexByte(name, '/')+1], &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS})
	if errno != 0 {
		return errno
	}
	defer unix.Close(dir)
	if err := unix.Faccessat(dir, ".", unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
		return err.(syscall.Errno)
	}
	if len(path.Base(name)) > 255 {
		return syscall.ENAMETOOLONG
	}
	return syscall.EROFS
}

func open(dir int, name string, how *unix.OpenHow) (int, syscall.Errno) {
	for {
		fd, err := unix.Openat2(dir, name, how)
		switch err {
		case nil:
			return fd, 0
		case unix.EINTR, unix.EAGAIN:
			continue
		}
		return -1, err.(syscall.Errno)
	}
}
