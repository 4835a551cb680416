package notify

import (
	"bytes"
	"path"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/sys"
)

// Path calls. A path of this machine's is left to the kernel (CONTINUE); one of the tree's is
// looked up in the tree by us, and the result put into the program: a descriptor, or the bytes that
// the kernel gave us for the same call.
//
// Only calls relative to the working directory, or absolute ones, come here (ifNoDirectory): the
// directories of the tree are real ones, so below a descriptor of one the kernel finds the way
// itself. The same holds for the working directory once it is in the tree (chdir_linux.go).
//
// What is known to differ from a mount namespace: links of this machine's that lead to a path of
// the tree's are followed on this machine; an absolute path given along with a directory's
// descriptor is this machine's; the mount calls go to this machine; execve as exec_linux.go says; a thread that gave
// itself a working directory of its own (unshare(CLONE_FS)) is taken to share its process's; stat of
// what the kernel has cached does not ask whether a thread that was root may search the way there; a
// signal whose handler lacks SA_RESTART makes a call fail with EINTR when it comes in the
// microseconds before the receiver has taken the call (the kernel's wait is interruptible until then).

func paths(o Options) bool { return o.Paths }

// pathCalls are the rows that both our CPUs have, and those that only amd64 has.
func pathCalls() []call {
	rows := []call{
		{name: "openat", nr: unix.SYS_OPENAT, test: ifNoDirectory(0), handle: (*Supervisor).openat},
		{name: "openat2", nr: unix.SYS_OPENAT2, test: ifNoDirectory(0), handle: (*Supervisor).openat2},
		{name: "newfstatat", nr: sysNewfstatat, test: ifNoDirectory(0), handle: func(s *Supervisor, t *task) { s.stat(t, 1, 2, int(int32(t.args[3]))) }},
		{name: "statx", nr: unix.SYS_STATX, test: ifNoDirectory(0), handle: (*Supervisor).statx},
		{name: "faccessat", nr: unix.SYS_FACCESSAT, test: ifNoDirectory(0), handle: func(s *Supervisor, t *task) { s.access(t, 1, 2, 0) }},
		{name: "faccessat2", nr: unix.SYS_FACCESSAT2, test: ifNoDirectory(0), handle: func(s *Supervisor, t *task) { s.access(t, 1, 2, int(int32(t.args[3]))) }},
		{name: "readlinkat", nr: unix.SYS_READLINKAT, test: ifNoDirectory(0), handle: func(s *Supervisor, t *task) { s.readlink(t, 1, 2, 3) }},
		{name: "statfs", nr: unix.SYS_STATFS, handle: (*Supervisor).statfs},
		{name: "chdir", nr: unix.SYS_CHDIR, handle: (*Supervisor).chdir},
		{name: "fchdir", nr: unix.SYS_FCHDIR, handle: (*Supervisor).fchdir},
		{name: "getcwd", nr: unix.SYS_GETCWD, handle: (*Supervisor).getcwd},
		{name: "inotify_add_watch", nr: unix.SYS_INOTIFY_ADD_WATCH, handle: (*Supervisor).watch},

		{name: "mkdirat", nr: unix.SYS_MKDIRAT, test: ifNoDirectory(0), handle: func(s *Supervisor, t *task) { s.mkdir(t, 1, 2) }},
		{name: "mknodat", nr: unix.SYS_MKNODAT, test: ifNoDirectory(0), handle: func(s *Supervisor, t *task) { s.mknod(t, 1, 2, 3) }},
		{name: "unlinkat", nr: unix.SYS_UNLINKAT, test: ifNoDirectory(0), handle: func(s *Supervisor, t *task) { s.unlink(t, 1, int(int32(t.args[2]))) }},
		{name: "symlinkat", nr: unix.SYS_SYMLINKAT, test: ifNoDirectory(1), handle: func(s *Supervisor, t *task) { s.symlink(t, 0, 2) }},
		{name: "renameat", nr: sysRenameat, test: ifNoDirectory(0), handle: func(s *Supervisor, t *task) { s.rename(t, 1, 3, 0) }},
		{name: "renameat2", nr: unix.SYS_RENAMEAT2, test: ifNoDirectory(0), handle: func(s *Supervisor, t *task) { s.rename(t, 1, 3, uint(t.args[4])) }},
		{name: "linkat", nr: unix.SYS_LINKAT, test: ifNoDirectory(0), handle: func(s *Supervisor, t *task) { s.link(t, 1, 3) }},
		{name: "fchmodat", nr: unix.SYS_FCHMODAT, test: ifNoDirectory(0), handle: func(s *Supervisor, t *task) { s.change(t, 1, true) }},
		{name: "fchmodat2", nr: sysFchmodat2, test: ifNoDirectory(0), handle: func(s *Supervisor, t *task) { s.change(t, 1, t.args[3]&unix.AT_SYMLINK_NOFOLLOW == 0) }},
		{name: "fchownat", nr: unix.SYS_FCHOWNAT, test: ifNoDirectory(0), handle: func(s *Supervisor, t *task) { s.change(t, 1, t.args[4]&unix.AT_SYMLINK_NOFOLLOW == 0) }},
		{name: "utimensat", nr: unix.SYS_UTIMENSAT, test: ifNoDirectory(0), handle: func(s *Supervisor, t *task) { s.change(t, 1, t.args[3]&unix.AT_SYMLINK_NOFOLLOW == 0) }},
		{name: "truncate", nr: unix.SYS_TRUNCATE, handle: func(s *Supervisor, t *task) { s.change(t, 0, true) }},

		{name: "setxattr", nr: unix.SYS_SETXATTR, handle: func(s *Supervisor, t *task) { s.attribute(t, true, unix.EROFS) }},
		{name: "lsetxattr", nr: unix.SYS_LSETXATTR, handle: func(s *Supervisor, t *task) { s.attribute(t, false, unix.EROFS) }},
		{name: "getxattr", nr: unix.SYS_GETXATTR, handle: func(s *Supervisor, t *task) { s.attribute(t, true, unix.ENODATA) }},
		{name: "lgetxattr", nr: unix.SYS_LGETXATTR, handle: func(s *Supervisor, t *task) { s.attribute(t, false, unix.ENODATA) }},
		{name: "listxattr", nr: unix.SYS_LISTXATTR, handle: func(s *Supervisor, t *task) { s.attribute(t, true, 0) }},
		{name: "llistxattr", nr: unix.SYS_LLISTXATTR, handle: func(s *Supervisor, t *task) { s.attribute(t, false, 0) }},
		{name: "removexattr", nr: unix.SYS_REMOVEXATTR, handle: func(s *Supervisor, t *task) { s.attribute(t, true, unix.EROFS) }},
		{name: "lremovexattr", nr: unix.SYS_LREMOVEXATTR, handle: func(s *Supervisor, t *task) { s.attribute(t, false, unix.EROFS) }},
	}
	rows = append(rows, oldPathCalls()...)
	for i := range rows {
		rows[i].when = paths
		rows[i].dirs = rows[i].test != nil
	}
	return rows
}

// sysFchmodat2 is of Linux 6.6, with the same number everywhere.
const sysFchmodat2 = 452

// maxPath is PATH_MAX, with the NUL.
const maxPath = 4096

// readPath copies the path at addr into buf. ok is false when there is none to be read: the kernel
// will say so itself.
func readPath(tid int, addr uint64, buf []byte) (p []byte, ok bool, err error) {
	const page = 4096 // or a multiple of it
	for n := 0; n < len(buf); {
		// A piece does not cross a page: the next one may not be there. The first is short, for
		// paths are.
		piece := min(len(buf)-n, page-int((addr+uint64(n))%page))
		if n == 0 {
			piece = min(piece, 256)
		}
		got, err := sys.ReadTask(tid, addr+uint64(n), buf[n:n+piece])
		if err != nil || got == 0 {
			if err == unix.EFAULT || err == unix.ESRCH {
				err = nil
			}
			return nil, false, err
		}
		if i := bytes.IndexByte(buf[n:n+got], 0); i >= 0 {
			return buf[:n+i], true, nil
		}
		n += got
	}
	return nil, false, nil // ENAMETOOLONG
}

// clean says whether an absolute path is as path.Clean would have it.
func clean(p []byte) bool {
	if len(p) > 1 && p[len(p)-1] == '/' {
		return false
	}
	for i := 0; i < len(p)-1; i++ {
		if p[i] == '/' && (p[i+1] == '/' || p[i+1] == '.' && (i+2 == len(p) || p[i+2] == '/' || p[i+2] == '.')) {
			return false // "/..x" is taken for unclean, too: it only costs time
		}
	}
	return true
}

// find reads the path in argument i and returns it as an absolute one when it is the tree's. ok is
// false when the call has been answered.
func (s *Supervisor) find(t *task, i int) (name string, ok bool) {
	name, other, ok := s.whose(t, i)
	if ok && !other {
		s.l.Continue(t.id)
		return "", false
	}
	return name, ok
}

// whose is find for calls with two paths: it says whether the path is the tree's. The name of a path
// of this machine's is given too where naming is asked for by a second look (see two).
func (s *Supervisor) whose(t *task, i int) (name string, other, ok bool) {
	s.settle(t.tid)
	p, there, err := readPath(t.tid, t.args[i], s.path[:])
	if err != nil {
		s.trouble(t, unix.EACCES, err)
		return "", false, false
	}
	if !there || len(p) == 0 {
		s.l.Continue(t.id)
		return "", false, false
	}
	dirfd := unix.AT_FDCWD
	if t.dirs {
		dirfd = t.fd(i - 1)
	}
	if p[0] == '/' {
		if clean(p) {
			if !s.tree.Other(unsafe.String(&p[0], len(p))) {
				return "", false, true
			}
			return string(p), true, true
		}
		name = string(p)
		return name, s.otherUnclean(name), true
	}
	var dir string
	var inside bool
	if dirfd < 0 {
		dir, inside, err = s.cwd(t.tid)
	} else {
		dir, inside, err = s.directory(t.tid, dirfd)
	}
	if err != nil {
		s.l.Continue(t.id) // it died, or hides from us (not dumpable), or EBADF
		return "", false, false
	}
	if dir == "/" {
		dir = ""
	}
	name = dir + "/" + string(p)
	return name, inside || s.otherUnclean(name), true
}

// otherUnclean decides a path with dots or slashes too many. Where ".." follows a part of the
// tree's, only a walk tells where it leads.
func (s *Supervisor) otherUnclean(name string) bool {
	if s.tree.Other(path.Clean(name)) {
		return true
	}
	for i := 0; ; i += len("/..") {
		n := strings.Index(name[i:], "/..")
		if n < 0 {
			return false
		}
		i += n
		if i > 0 && s.tree.Other(path.Clean(name[:i])) {
			return true
		}
	}
}

// both is find for two paths. The call is ours when one of them is the tree's; then both are named.
func (s *Supervisor) both(t *task, i, j int) (a, b string, ok bool) {
	a, otherA, ok := s.whose(t, i)
	if !ok {
		return
	}
	b, otherB, ok := s.whose(t, j)
	if !ok {
		return
	}
	if !otherA && !otherB {
		s.l.Continue(t.id)
		return "", "", false
	}
	for _, x := range []struct {
		name *string
		arg  int
	}{{&a, i}, {&b, j}} { // whose names a plain path of this machine's only when it had to
		if *x.name == "" {
			p, _, err := readPath(t.tid, t.args[x.arg], s.path[:])
			if err != nil || len(p) == 0 {
				s.l.Continue(t.id)
				return "", "", false
			}
			*x.name = string(p)
		}
	}
	return a, b, true
}

// result is how a path call ends, found without the program's being touched.
type result struct {
	val     int64
	errno   unix.Errno
	memory  []byte // written at addr before the answer
	addr    uint64
	fd      int // the result is a copy of this descriptor of ours; 0 is none
	cloexec bool
	enter   int // the working directory becomes this descriptor of ours; 0 is none
	execute *execution
}

// close gives back the descriptors of a result that nobody takes.
func (r *result) close() {
	for _, fd := range []int{r.fd, r.enter} {
		if fd != 0 {
			unix.Close(fd)
		}
	}
	if r.execute != nil {
		unix.Close(r.execute.fd)
	}
}

func fails(e unix.Errno) result { return result{errno: e} }

// finishPath ends a path call. It owns the result's descriptors.
func (s *Supervisor) finishPath(t *task, r result) {
	switch {
	case r.fd != 0:
		err := s.inject(t, r.fd, r.cloexec)
		unix.Close(r.fd)
		if e, ok := err.(unix.Errno); ok && e != unix.ENOENT {
			s.l.Answer(t.id, 0, e) // EMFILE
		}
	case r.enter != 0:
		s.enter(t, r.enter)
		unix.Close(r.enter)
	case r.execute != nil:
		s.execute(t, r.execute)
		unix.Close(r.execute.fd)
	default:
		if len(r.memory) > 0 && r.errno == 0 {
			if !s.l.Valid(t.id) {
				return
			}
			if sys.WriteTask(t.tid, r.addr, r.memory) != nil {
				r.errno = unix.EFAULT
			}
		}
		s.l.Answer(t.id, r.val, r.errno)
	}
}
