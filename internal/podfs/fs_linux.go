package podfs

import (
	"context"
	"fmt"
	"io"
	"log"
	"path"
	"slices"
	"sort"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/stead-dev/stead/internal/wire"
)

// Overlay holds the names that are not the pod's, by absolute path.
type Overlay map[string]Virtual

// Virtual is one made-up name: a directory or a file to bind over (its contents do not matter), a
// link, or a small file.
type Virtual struct {
	Dir  bool
	Link string // a symbolic link's target
	Data []byte // a file's contents

	Laptop bool // this machine's own file or directory with that path
	Absent bool // there is no such file, whatever the pod has
}

// Options say how the files are shown.
type Options struct {
	Overlay Overlay
	Pods    []string // paths below Laptop ones that are the pod's
	// Owner, when set, is shown as the owner of every file: in a user namespace other ids would
	// be shown as nobody.
	Owner *fuse.Owner
	// Furnish begins with a tree of which only the made-up names are listed, for who lays other
	// trees over them, until Furnished.
	Furnish bool
}

// cacheFor is how long the kernel believes names and attributes of the pod's.
const cacheFor = time.Second

// keepFor is how long it believes what is made up. For the directories above made-up names that is
// more than speed: a name that the kernel asks for again and finds to be another file takes along
// what is mounted below it.
const keepFor = 365 * 24 * time.Hour

// FS is a served file system.
type FS struct {
	c     *Client
	o     Options
	names map[string][]string // virtual names by directory
	pods  map[string]bool
	begun time.Time
	srv   *fuse.Server
	root  *node

	furnishing atomic.Bool
	above      map[string]wire.Attr // the directories above made-up names, as they were at asked
	asked      time.Time

	aheadBytes atomic.Int64 // of pieces, see ahead_linux.go
}

// New makes a file system of the client's files.
func New(c *Client, o Options) *FS {
	f := &FS{c: c, o: o, names: make(map[string][]string), pods: make(map[string]bool), begun: time.Now()}
	f.root = &node{f: f, path: "/"}
	for _, p := range o.Pods {
		f.pods[p] = true
	}
	f.furnishing.Store(o.Furnish)
	for p, v := range o.Overlay {
		for ; p != "/" && !v.Absent; p = path.Dir(p) {
			dir, base := path.Split(p)
			dir = path.Clean(dir)
			if !contains(f.names[dir], base) {
				f.names[dir] = append(f.names[dir], base)
			}
		}
	}
	for _, n := range f.names {
		sort.Strings(n)
	}
	return f
}

func contains(l []string, s string) bool {
	for _, x := range l {
		if x == s {
			return true
		}
	}
	return false
}

// Serve answers the kernel on fd, a mounted /dev/fuse which it owns, until Close or until the
// mount is gone.
func (f *FS) Serve(fd int) error {
	keep := cacheFor
	raw := fs.NewNodeFS(f.root, &fs.Options{EntryTimeout: &keep, AttrTimeout: &keep, NegativeTimeout: &keep, RootStableAttr: &fs.StableAttr{Ino: 1, Mode: syscall.S_IFDIR}})
	srv, err := fuse.NewServer(raw, fmt.Sprintf("/dev/fd/%d", fd), &fuse.MountOptions{
		MaxBackground: 64, MaxWrite: wire.MaxFileRead, MaxReadAhead: wire.MaxFileRead,
		// The library would write the end of each connection to stderr, which is the program's.
		Logger:               log.New(io.Discard, "", 0),
		EnableSymlinkCaching: true, Name: "stead", FsName: "stead",
	})
	if err != nil {
		syscall.Close(fd)
		return fmt.Errorf("serve FUSE: %w", err)
	}
	f.srv = srv
	go srv.Serve()
	return nil
}

// Ask finds out, in one go, what the session is about to be asked for the directories above made-up
// names. It is called before Serve, or not at all.
func (f *FS) Ask(ctx context.Context) {
	type answer struct {
		dir  string
		attr wire.Attr
		ok   bool
	}
	answers := make(chan answer)
	for dir := range f.names {
		go func() {
			a, errno := f.c.Stat(ctx, dir)
			answers <- answer{dir, a, errno == 0 && a.Mode&syscall.S_IFMT == syscall.S_IFDIR}
		}()
	}
	f.above = make(map[string]wire.Attr, len(f.names))
	for range f.names {
		if a := <-answers; a.ok {
			f.above[a.dir] = a.attr
		}
	}
	f.asked = time.Now()
}

// Furnished ends what Options.Furnish began.
func (f *FS) Furnished() { f.furnishing.Store(false) }

// Wait returns when the kernel has closed the connection: the last mount is gone.
func (f *FS) Wait() {
	if f.srv != nil {
		f.srv.Wait()
	}
}

// Moved is called after the client's Move: the kernel forgets the files that it knows.
func (f *FS) Moved() {
	if f.srv != nil {
		f.root.forget()
	}
}

// forget drops what is known below n. Directories stay what they are, by their path: mounts of the
// laptop's trees lie on them, which the kernel takes away with a name that is dropped.
func (n *node) forget() {
	n.mu.Lock()
	n.listing = nil
	n.mu.Unlock()
	in := n.EmbeddedInode()
	for name, child := range in.Children() {
		c, ok := child.Operations().(*node)
		switch {
		case !ok: // the laptop's
		case child.IsDir():
			c.forget()
		default:
			if _, made := n.f.virtual(c.path); !made {
				_ = in.NotifyEntry(name)
			}
		}
	}
}

// virtual says whether path is made up, or leads to something that is.
func (f *FS) virtual(p string) (v Virtual, ok bool) {
	if v, ok = f.o.Overlay[p]; ok {
		return v, true
	}
	if len(f.names[p]) > 0 {
		return Virtual{Dir: true}, true
	}
	return v, false
}

// node is one file. Its path is fixed: the file system is read only, and a name that the pod
// renames is looked up anew when the kernel's cache expires. A directory is known by its path alone, so
// that it stays the same when the pod becomes another.
type node struct {
	fs.Inode
	f    *FS
	path string

	mu      sync.Mutex
	listing map[string]wire.Attr // of the last listing, for the look-ups that follow it
	listed  time.Time
}

var (
	_ = (fs.NodeLookuper)((*node)(nil))
	_ = (fs.NodeGetattrer)((*node)(nil))
	_ = (fs.NodeReaddirer)((*node)(nil))
	_ = (fs.NodeReadlinker)((*node)(nil))
	_ = (fs.NodeOpener)((*node)(nil))
	_ = (fs.NodeStatfser)((*node)(nil))
	_ = (fs.NodeSetattrer)((*node)(nil))
	_ = (fs.NodeCreater)((*node)(nil))
	_ = (fs.NodeMkdirer)((*node)(nil))
	_ = (fs.NodeUnlinker)((*node)(nil))
	_ = (fs.NodeRmdirer)((*node)(nil))
	_ = (fs.NodeRenamer)((*node)(nil))
	_ = (fs.NodeSymlinker)((*node)(nil))
	_ = (fs.NodeLinker)((*node)(nil))
	_ = (fs.NodeMknoder)((*node)(nil))
	_ = (fs.NodeSetxattrer)((*node)(nil))
	_ = (fs.NodeRemovexattrer)((*node)(nil))
)

// attrOf is what is shown of p: the pod's, or what is made up.
func (f *FS) attrOf(ctx context.Context, p string) (wire.Attr, syscall.Errno) {
	v, ok := f.virtual(p)
	switch {
	case !ok:
		return f.c.Stat(ctx, p)
	case v.Absent:
		return wire.Attr{}, syscall.ENOENT
	case len(f.names[p]) == 0: // nothing of the pod's is seen of it
		return f.madeUp(p, v), 0
	}
	// A directory of the pod's with that name keeps its attributes.
	a, known := f.above[p]
	if f.above == nil || time.Since(f.asked) > cacheFor {
		var errno syscall.Errno
		a, errno = f.c.Stat(ctx, p)
		known = errno == 0 && a.Mode&syscall.S_IFMT == syscall.S_IFDIR
	}
	if !known {
		a = f.madeUp(p, v)
	}
	return a, 0
}

// stable is what makes p one file for the kernel. Directories, what is made up and what leads to that
// stay the same file whatever the pod puts there, and whichever pod it is: the kernel would take away
// what is mounted on them.
func (f *FS) stable(p string, a *wire.Attr) fs.StableAttr {
	s := fs.StableAttr{Mode: a.Mode & syscall.S_IFMT, Ino: a.Ino}
	if _, made := f.virtual(p); made || s.Mode == syscall.S_IFDIR {
		s.Ino = pathInode(p)
	}
	return s
}

// keep says how long the kernel may believe the name p, and what it is.
func (f *FS) keep(p string, out *fuse.EntryOut) {
	if v, ok := f.virtual(p); ok && !v.Laptop {
		out.SetEntryTimeout(keepFor)
		if len(f.names[p]) == 0 {
			out.SetAttrTimeout(keepFor)
		}
	}
}

func (f *FS) madeUp(p string, v Virtual) wire.Attr {
	t := f.begun.UnixNano()
	a := wire.Attr{Ino: pathInode(p), Nlink: 1, Atime: t, Mtime: t, Ctime: t}
	switch {
	case v.Dir:
		a.Mode, a.Nlink = syscall.S_IFDIR|0o755, 2
	case v.Link != "":
		a.Mode, a.Size = syscall.S_IFLNK|0o777, uint64(len(v.Link))
	default:
		a.Mode, a.Size = syscall.S_IFREG|0o644, uint64(len(v.Data))
		a.Blocks = (a.Size + 511) / 512
	}
	return a
}

// pathInode is FNV-1a of a made-up path, with the highest bit set.
func pathInode(p string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(p) {
		h = (h ^ uint64(p[i])) * 1099511628211
	}
	return h | 1<<63
}

func (f *FS) fill(a *wire.Attr, out *fuse.Attr) {
	out.Ino, out.Size, out.Blocks = a.Ino, a.Size, a.Blocks
	out.Mode, out.Nlink, out.Rdev = a.Mode, a.Nlink, a.Rdev
	out.Uid, out.Gid = a.UID, a.GID
	if f.o.Owner != nil {
		out.Owner = *f.o.Owner
	}
	const second = int64(time.Second)
	out.Atime, out.Atimensec = uint64(a.Atime/second), uint32(a.Atime%second)
	out.Mtime, out.Mtimensec = uint64(a.Mtime/second), uint32(a.Mtime%second)
	out.Ctime, out.Ctimensec = uint64(a.Ctime/second), uint32(a.Ctime%second)
	out.Blksize = 4096
}

func (n *node) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	p := path.Join(n.path, name)
	if n.f.o.Overlay[p].Laptop {
		return n.laptop(ctx, p, out)
	}
	a, ok := n.recent(name)
	if !ok {
		return n.f.lookup(ctx, n.EmbeddedInode(), p, out)
	}
	n.f.fill(&a, &out.Attr)
	n.f.keep(p, out)
	return n.NewInode(ctx, &node{f: n.f, path: p}, n.f.stable(p, &a)), 0
}

// recent finds a name in the last listing, while that is as fresh as the kernel's cache.
func (n *node) recent(name string) (a wire.Attr, ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listing == nil {
		return a, false
	}
	if time.Since(n.listed) > cacheFor {
		n.listing = nil
		return a, false
	}
	a, ok = n.listing[name]
	return a, ok && a.Ino != 0
}

func (n *node) Getattr(ctx context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	a, errno := n.f.attrOf(ctx, n.path)
	if errno == 0 {
		a.Ino = n.StableAttr().Ino
		n.f.fill(&a, &out.Attr)
	}
	return errno
}

func (n *node) Readdir(ctx context.Context) (fs.DirStream, syscall.Errno) {
	list, errno := n.f.list(ctx, n.path)
	if errno != 0 {
		return nil, errno
	}
	at := make(map[string]wire.Attr, len(list))
	entries := make([]fuse.DirEntry, 0, len(list))
	for _, e := range list {
		at[e.Name] = e.Attr
		st := n.f.stable(path.Join(n.path, e.Name), &e.Attr)
		entries = append(entries, fuse.DirEntry{Name: e.Name, Mode: st.Mode, Ino: st.Ino})
	}
	n.mu.Lock()
	n.listing, n.listed = at, time.Now()
	n.mu.Unlock()
	return fs.NewListDirStream(entries), 0
}

// list is what is shown of directory p: the pod's entries, and what is made up.
func (f *FS) list(ctx context.Context, p string) (list []wire.Entry, errno syscall.Errno) {
	made := f.names[p]
	if !f.furnishing.Load() || len(made) == 0 {
		list, errno = f.c.List(ctx, p)
		list = slices.DeleteFunc(list, func(e wire.Entry) bool { return f.o.Overlay[path.Join(p, e.Name)].Absent })
	}
	if errno != 0 && (errno != syscall.ENOENT || len(made) == 0) {
		return nil, errno
	}
	at := make(map[string]int, len(made)) // the pod's of these names
	for i, e := range list {
		if contains(made, e.Name) {
			at[e.Name] = i
		}
	}
	for _, name := range made {
		q := path.Join(p, name)
		i, ok := at[name]
		switch {
		case !ok:
			a, _ := f.attrOf(ctx, q)
			list = append(list, wire.Entry{Name: name, Attr: a})
		case len(f.names[q]) == 0 || list[i].Attr.Mode&syscall.S_IFMT != syscall.S_IFDIR:
			list[i].Attr, _ = f.attrOf(ctx, q)
		}
	}
	return list, 0
}

func (n *node) Readlink(ctx context.Context) ([]byte, syscall.Errno) {
	if v, ok := n.f.virtual(n.path); ok && v.Link != "" {
		return []byte(v.Link), 0
	}
	return n.f.c.Readlink(ctx, n.path)
}

func (n *node) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	if flags&syscall.O_ACCMODE != syscall.O_RDONLY || flags&syscall.O_TRUNC != 0 {
		return nil, 0, syscall.EROFS
	}
	if v, ok := n.f.virtual(n.path); ok && !v.Dir {
		return &madeFile{v.Data}, fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_NOFLUSH, 0
	}
	h, errno := n.f.c.Open(ctx, n.path)
	if errno != 0 {
		return nil, 0, errno
	}
	// The kernel drops its pages itself when size or mtime have changed (FUSE_AUTO_INVAL_DATA).
	return &file{f: n.f, handle: h}, fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_NOFLUSH, 0
}

func (n *node) Statfs(_ context.Context, out *fuse.StatfsOut) syscall.Errno {
	*out = fuse.StatfsOut{Bsize: 4096, Frsize: 4096, NameLen: 255}
	return 0
}

// The file system is read only, and says so.
func (n *node) Setattr(context.Context, fs.FileHandle, *fuse.SetAttrIn, *fuse.AttrOut) syscall.Errno {
	return syscall.EROFS
}
func (n *node) Create(context.Context, string, uint32, uint32, *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	return nil, nil, 0, syscall.EROFS
}
func (n *node) Mkdir(context.Context, string, uint32, *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	return nil, syscall.EROFS
}
func (n *node) Mknod(context.Context, string, uint32, uint32, *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	return nil, syscall.EROFS
}
func (n *node) Symlink(context.Context, string, string, *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	return nil, syscall.EROFS
}
func (n *node) Link(context.Context, fs.InodeEmbedder, string, *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	return nil, syscall.EROFS
}
func (n *node) Setxattr(context.Context, string, []byte, uint32) syscall.Errno { return syscall.EROFS }
func (n *node) Removexattr(context.Context, string) syscall.Errno              { return syscall.EROFS }
func (n *node) Unlink(context.Context, string) syscall.Errno                   { return syscall.EROFS }
func (n *node) Rmdir(context.Context, string) syscall.Errno                    { return syscall.EROFS }
func (n *node) Rename(context.Context, string, fs.InodeEmbedder, string, uint32) syscall.Errno {
	return syscall.EROFS
}

// file is an open file of the pod's.
type file struct {
	f      *FS
	handle Handle
	ahead  ahead
}

var (
	_ = (fs.FileReader)((*file)(nil))
	_ = (fs.FileReleaser)((*file)(nil))
	_ = (fs.FileReader)((*madeFile)(nil))
)

func (h *file) Read(ctx context.Context, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	if pieces := h.take(off, len(dest)); pieces != nil {
		return readPieces(ctx, pieces, dest, off)
	}
	n, errno := h.f.c.Read(ctx, h.handle, dest, off)
	if errno != 0 {
		return nil, errno
	}
	return fuse.ReadResultData(dest[:n]), 0
}

func (h *file) Release(context.Context) syscall.Errno {
	h.dropAll()
	h.f.c.Release(h.handle)
	return 0
}

// madeFile is an open file that a session made up.
type madeFile struct{ data []byte }

func (h *madeFile) Read(_ context.Context, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	if off >= int64(len(h.data)) {
		return fuse.ReadResultData(nil), 0
	}
	return fuse.ReadResultData(h.data[off:min(off+int64(len(dest)), int64(len(h.data)))]), 0
}
