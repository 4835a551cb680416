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
