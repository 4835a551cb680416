package agent

import (
	"context"
	"os"
	"path"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/tunnel"
	"github.com/stead-dev/stead/internal/wire"
)

// Serving the target's files, read only. Every path is resolved by openat2 below the target's root
// as its processes see it (/proc/PID/root), so no symlink and no ".." leads out, and never through
// /proc's magic links. What is on the pod's /proc, /sys and /dev is not served: they describe the
// pod's machine, or act.

const (
	maxFileWorkers = 32
	maxSlow        = 100 // workers beyond those, that wait for a volume which hangs
	maxHandles     = 4096
	resolve        = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS
)

// slow is how long a request may take before its worker counts for one that waits for a volume that does
// not answer, as one of a network may do for ever: the requests for all others go on past it.
const slow = time.Second

// fileServer serves one stream. Requests are answered by a bounded number of goroutines, each
// answer written with one Write.
type fileServer struct {
	root int
	who  *rights
	st   tunnel.Stream

	write sync.Mutex

	mu      sync.Mutex
	handles map[uint64]*os.File // nil after the end
	next    uint64
}

func (x *session) files(ctx context.Context, st tunnel.Stream, _ *wire.Open) {
	serveFiles(ctx, st, int(x.s.target.root.Fd()), &x.s.target.rights, x.s.late)
}

// fileCall is one request; by is set where the agent's own rights stand for the target's.
type fileCall struct {
	wire.FileRequest
	by *identity
}

// serveFiles answers requests until the stream ends. late holds those workers of all streams that wait for a
// volume which hangs; it has room for maxSlow.
func serveFiles(ctx context.Context, st tunnel.Stream, root int, who *rights, late chan struct{}) {
	f := &fileServer{root: root, who: who, st: st, handles: make(map[uint64]*os.File)}
	stop := context.AfterFunc(ctx, func() { st.Reset(0) })
	defer stop()
	var work sync.WaitGroup
	slots := make(chan struct{}, maxFileWorkers)
	for {
		q, err := wire.ReadFileRequest(st)
		if err != nil {
			break
		}
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			continue // the stream is reset
		}
		work.Go(func() {
			hangs := time.AfterFunc(slow, func() {
				late <- struct{}{} // with too many of them the slot stays taken
				<-slots
			})
			b := f.answer(&fileCall{FileRequest: q})
			if hangs.Stop() {
				f.say(b)
				<-slots
			} else {
				<-late
				f.say(b)
			}
		})
	}
	st.Close()
	f.mu.Lock()
	handles := f.handles
	f.handles = nil
	f.mu.Unlock()
	// Who still waits for a volume holds nobody up: neither the session's end nor the agent's.
	over := make(chan struct{})
	go func() {
		defer close(over)
		for _, h := range handles {
			work.Go(func() { h.Close() })
		}
		work.Wait()
	}()
	select {
	case <-over:
	case <-time.After(slow / 10):
	}
}

var answers = sync.Pool{New: func() any { b := make([]byte, 0, 64<<10); return &b }}

// fileOps is the table of operations: each appends its body to b. Those with a name look it up with the
// target's rights.
var fileOps = [...]struct {
	do    func(f *fileServer, q *fileCall, b []byte) ([]byte, error)
	named bool
}{
	wire.FileStat:     {(*fileServer).stat, true},
	wire.FileReadlink: {(*fileServer).readlink, true},
	wire.FileList:     {(*fileServer).list, true},
	wire.FileOpen:     {(*fileServer).open, true},
	wire.FileRead:     {(*fileServer).read, false},
	wire.FileClose:    {(*fileServer).close, false},
}

// answer does what is asked; the answer is one of answers.
func (f *fileServer) answer(q *fileCall) *[]byte {
	p := answers.Get().(*[]byte)
	b := wire.BeginFileAnswer((*p)[:0], q.ID, 0)
	err := error(unix.ENOSYS)
	if int(q.Op) < len(fileOps) && fileOps[q.Op].do != nil {
		if op := &fileOps[q.Op]; op.named {
			head := len(b)
			err = f.who.run(func(by *identity) (err error) {
				q.by = by
				b, err = op.do(f, q, b[:head])
				return err
			})
		} else {
			b, err = op.do(f, q, b)
		}
	}
	if err != nil {
		errno, ok := err.(unix.Errno)
		if !ok {
			errno = unix.EIO
		}
		b = wire.BeginFileAnswer(b[:0], q.ID, uint32(errno))
	}
	*p = wire.EndFileAnswer(b)
	return p
}

func (f *fileServer) say(p *[]byte) {
	f.write.Lock()
	_, _ = f.st.Write(*p)
	f.write.Unlock()
	if cap(*p) <= 2*wire.MaxFileRead {
		answers.Put(p)
	}
}

// hidden are the places that are not served.
var hidden = []string{"/proc", "/sys", "/dev"}

// at opens a path below the root. A link of the pod's may lead into what is hidden, as the app itself
// may go there; a session looks up links by itself.
func (f *fileServer) at(name string, flags uint64, by *identity) (int, error) {
	if !path.IsAbs(name) {
		name = "/" + name
	}
	plain := path.Clean(name)
	for _, h := range hidden {
		if rest, ok := strings.CutPrefix(plain, h); ok && (rest == "" || rest[0] == '/') {
			if rest != "" || flags&unix.O_PATH == 0 {
				return -1, unix.ENOENT
			}
		}
	}
	if by != nil {
		return f.walk(strings.FieldsFunc(plain, func(r rune) bool { return r == '/' }), flags, by)
	}
	if name = strings.TrimLeft(name, "/"); name == "" {
		name = "."
	}
	for range 64 { // EAGAIN: a rename raced with a ".." in a symlink
		fd, err := unix.Openat2(f.root, name, &unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: resolve})
		if err != unix.EAGAIN && err != unix.EINTR {
			return fd, err
		}
	}
	return -1, unix.EAGAIN
}

// walk opens what is at a path of names by the capabilities that the target has in its user namespace,
// where the agent's own stand for them: they hold for what is of that namespace's ids, and what is not must
// be open to the target without them, each directory on the way, too. It goes through no link.
func (f *fileServer) walk(names []string, flags uint64, by *identity) (int, error) {
	dir := f.root
	leave := func() {
		if dir != f.root {
			unix.Close(dir)
		}
	}
	for ; len(names) > 1; names = names[1:] {
		next, err := f.enter(dir, names[0], unix.O_PATH|unix.O_NOFOLLOW, by)
		leave()
		if err != nil {
			return -1, err
		}
		dir = next
	}
	defer leave()
	last := "." // the root itself
	if len(names) > 0 {
		last = names[0]
	}
	return f.enter(dir, last, flags, by)
}

func (f *fileServer) enter(dir int, name string, flags uint64, by *identity) (int, error) {
	if !f.allows(dir, unix.X_OK, by) {
		return -1, unix.EACCES
	}
	fd, err := unix.Openat2(dir, name, &unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: resolve | unix.RESOLVE_NO_SYMLINKS})
	if err == nil && flags&unix.O_PATH == 0 && !f.allows(fd, unix.R_OK, by) {
		unix.Close(fd)
		return -1, unix.EACCES
	}
	return fd, err
}

// allows says whether the target may do that with the file fd.
func (f *fileServer) allows(fd int, what uint32, by *identity) (ok bool) {
	return by.owns(fd) || f.who.become(by, func() {
		ok = unix.Faccessat2(fd, "", what, unix.AT_EMPTY_PATH|unix.AT_EACCESS) == nil
	}) && ok
}

func (f *fileServer) stat(q *fileCall, b []byte) ([]byte, error) {
	fd, err := f.at(q.Path, unix.O_PATH|unix.O_NOFOLLOW, q.by)
	if err != nil {
		return b, err
	}
	defer unix.Close(fd)
	a, err := attr(fd, "")
	if err != nil {
		return b, err
	}
	return wire.AppendAttr(b, &a), nil
}

// attr is the attributes of name in fd's directory, or of fd itself.
func attr(fd int, name string) (a wire.Attr, err error) {
	var st unix.Stat_t
	if name == "" {
		err = unix.Fstatat(fd, "", &st, unix.AT_EMPTY_PATH)
	} else {
		err = unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	}
	if err != nil {
		return a, err
	}
	return wire.Attr{
		// Several file systems make the pod's tree, it is shown as one: keep their inodes apart.
		Ino: st.Ino ^ uint64(st.Dev)*0x9e3779b97f4a7c15, Size: uint64(st.Size), Blocks: uint64(st.Blocks),
		Mode: st.Mode, Nlink: uint32(st.Nlink), UID: st.Uid, GID: st.Gid, Rdev: uint32(st.Rdev),
		Atime: st.Atim.Nano(), Mtime: st.Mtim.Nano(), Ctime: st.Ctim.Nano(),
	}, nil
}

func (f *fileServer) readlink(q *fileCall, b []byte) ([]byte, error) {
	fd, err := f.at(q.Path, unix.O_PATH|unix.O_NOFOLLOW, q.by)
	if err != nil {
		return b, err
	}
	defer unix.Close(fd)
	buf := make([]byte, wire.MaxFilePath)
	n, err := unix.Readlinkat(fd, "", buf)
	if err == unix.ENOENT { // not a link, says readlinkat of an empty path
		err = unix.EINVAL
	}
	if err != nil {
		return b, err
	}
	return append(b, buf[:n]...), nil
}

func (f *fileServer) list(q *fileCall, b []byte) ([]byte, error) {
	fd, err := f.at(q.Path, unix.O_RDONLY|unix.O_DIRECTORY, q.by)
	if err != nil {
		return b, err
	}
	d := os.NewFile(uintptr(fd), q.Path)
	defer d.Close()
	for {
		names, err := d.Readdirnames(1024)
		for _, n := range names {
			a, err := attr(fd, n)
			if err != nil && err != unix.EACCES { // EACCES: names may be read and no more
				continue // gone meanwhile
			}
			b = wire.AppendEntry(b, &wire.Entry{Name: n, Attr: a})
			if len(b) > wire.MaxFileBody {
				return b, unix.EOVERFLOW
			}
		}
		if err != nil || len(names) == 0 {
			return b, nil
		}
	}
}

// open opens a regular file: to open anything else could block, or do something.
func (f *fileServer) open(q *fileCall, b []byte) ([]byte, error) {
	look, err := f.at(q.Path, unix.O_PATH|unix.O_NOFOLLOW, q.by)
	if err != nil {
		return b, err
	}
	defer unix.Close(look)
	a, err := attr(look, "")
	if err != nil {
		return b, err
	}
	switch a.Mode & unix.S_IFMT {
	case unix.S_IFREG:
	case unix.S_IFLNK:
		return b, unix.ELOOP
	default:
		return b, unix.ENXIO
	}
	fd, err := f.at(q.Path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY, q.by)
	if err != nil {
		return b, err
	}
	file := os.NewFile(uintptr(fd), q.Path)
	if a, err = attr(fd, ""); err != nil || a.Mode&unix.S_IFMT != unix.S_IFREG {
		file.Close()
		return b, unix.ESTALE
	}
	f.mu.Lock()
	if f.handles == nil || len(f.handles) >= maxHandles {
		f.mu.Unlock()
		file.Close()
		return b, unix.ENFILE
	}
	f.next++
	h := f.next
	f.handles[h] = file
	f.mu.Unlock()
	for shift := 56; shift >= 0; shift -= 8 {
		b = append(b, byte(h>>shift))
	}
	return wire.AppendAttr(b, &a), nil
}

func (f *fileServer) read(q *fileCall, b []byte) ([]byte, error) {
	f.mu.Lock()
	file := f.handles[q.Handle]
	f.mu.Unlock()
	if file == nil {
		return b, unix.EBADF
	}
	if q.Count > wire.MaxFileRead || q.Offset < 0 {
		return b, unix.EINVAL
	}
	at := len(b)
	if need := at + int(q.Count); cap(b) < need {
		b = append(make([]byte, 0, need), b...)
	}
	n, err := file.ReadAt(b[at:at+int(q.Count)], q.Offset)
	if n == 0 && err != nil {
		if pe, ok := err.(*os.PathError); ok {
			return b, pe.Err
		}
	}
	return b[:at+n], nil
}

func (f *fileServer) close(q *fileCall, b []byte) ([]byte, error) {
	f.mu.Lock()
	file := f.handles[q.Handle]
	delete(f.handles, q.Handle)
	f.mu.Unlock()
	if file == nil {
		return b, unix.EBADF
	}
	return b, file.Close()
}
