package podfs

import (
	"context"
	"fmt"
	"io"
	"log"
	"path"
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
}

// Options say how the files are shown.
type Options struct {
	Overlay Overlay
	Pods    []string // paths below Laptop ones that are the pod's
	// Owner, when set, is shown as the owner of every file: in a user namespace other ids would
	// be shown as nobody.
	Owner *fuse.Owner
}

// cacheFor is how long the kernel believes names and attributes.
const cacheFor = time.Second

// FS is a served file system.
type FS struct {
	c     *Client
	o     Options
	names map[string][]string // virtual names by directory
	pods  map[string]bool
	begun time.Time
	srv   *fuse.Server

	aheadBytes atomic.Int64 // of pieces, see ahead_linux.go
}

// New makes a file system of the client's files.
func New(c *Client, o Options) *FS {
	f := &FS{c: c, o: o, names: make(map[string][]string), pods: make(map[string]bool), begun: time.Now()}
	for _, p := range o.Pods {
		f.pods[p] = true
	}
	for p := range o.Overlay {
		for ; p != "/"; p = path.Dir(p) {
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
	raw := fs.NewNodeFS(&node{f: f, path: "/"}, &fs.Options{EntryTimeout: &keep, AttrTimeout: &keep, NegativeTimeout: &keep, RootStableAttr: &fs.StableAttr{Ino: 1, Mode: syscall.S_IFDIR}})
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

// Wait returns when the kernel has closed the connection: the last mount is gone.
func (f *FS) Wait() {
	if f.srv != nil {
		f.srv.Wait()
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
// renames is looked up anew when the kernel's cache expires.
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
	if !ok {
		return f.c.Stat(ctx, p)
	}
	if v.Dir {
		// A directory of the pod's with that name keeps its attributes.
		if a, errno := f.c.Stat(ctx, p); errno == 0 && a.Mode&syscall.S_IFMT == syscall.S_IFDIR {
			return a, 0
		}
	}
	return f.madeUp(p, v), 0
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
	return n.NewInode(ctx, &node{f: n.f, path: p}, fs.StableAttr{Mode: a.Mode & syscall.S_IFMT, Ino: a.Ino}), 0
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
		entries = append(entries, fuse.DirEntry{Name: e.Name, Mode: e.Attr.Mode & syscall.S_IFMT, Ino: e.Attr.Ino})
	}
	n.mu.Lock()
	n.listing, n.listed = at, time.Now()
	n.mu.Unlock()
	return fs.NewListDirStream(entries), 0
}

// list is what is shown of directory p: the pod's entries, and what is made up.
func (f *FS) list(ctx context.Context, p string) ([]wire.Entry, syscall.Errno) {
	list, errno := f.c.List(ctx, p)
	made := f.names[p]
	if errno != 0 && len(made) == 0 {
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
		v, _ := f.virtual(q)
		i, ok := at[name]
		switch {
		case !ok:
			list = append(list, wire.Entry{Name: name, Attr: f.madeUp(q, v)})
		case !v.Dir || list[i].Attr.Mode&syscall.S_IFMT != syscall.S_IFDIR:
			list[i].Attr = f.madeUp(q, v)
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
		return &madeFile{v.Data}, fuse.FOPEN_KEEP_CACHE, 0
	}
	h, errno := n.f.c.Open(ctx, n.path)
	if errno != 0 {
		return nil, 0, errno
	}
	// The kernel drops its pages itself when size or mtime have changed (FUSE_AUTO_INVAL_DATA).
	return &file{f: n.f, handle: h}, fuse.FOPEN_KEEP_CACHE, 0
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
	handle uint64
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
