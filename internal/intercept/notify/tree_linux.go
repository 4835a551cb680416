package notify

import (
	"context"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/intercept"
	"github.com/stead-dev/stead/internal/sys"
)

// This file looks things up in the tree. Everything in it may wait for whoever serves the tree, so
// it runs on goroutines of holds; the one exception is quick, which never waits.

// place is where a path has led to.
type place struct {
	fd   int // O_PATH
	name string
	here bool // this machine's: fd is of its own file system, and name may end in a magic link

	links []string // of the tree's, which were followed
}

func (p place) close() { unix.Close(p.fd) }

// look opens a name in the tree with O_PATH.
func look(tree intercept.Tree, name string, follow bool) (int, unix.Errno) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC}
	if !follow {
		how.Flags |= unix.O_NOFOLLOW
	}
	return below(tree, name, how)
}

// below opens a name in the tree: the kernel's own walk, "..", with the tree's root as "/". It follows
// no link (ELOOP).
func below(tree intercept.Tree, name string, how unix.OpenHow) (int, unix.Errno) {
	how.Resolve |= unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS
	if c, ok := tree.(intercept.Copies); ok {
		return c.Open(name, how.Flags, how.Mode, how.Resolve)
	}
	return open(tree.Root(), name, &how)
}

// open is openat2, once more where the kernel asks for it: a rename during a walk with "..".
func open(dir int, name string, how *unix.OpenHow) (int, unix.Errno) {
	for range 100 {
		fd, err := unix.Openat2(dir, name, how)
		switch err {
		case nil:
			return fd, 0
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			if how.Resolve&resolveCached == 0 {
				continue
			}
		}
		return -1, err.(unix.Errno)
	}
	return -1, unix.EAGAIN
}

// resolveCached is RESOLVE_CACHED (Linux 5.12).
const resolveCached = 0x20

// quick looks a name up in the kernel's caches alone. EAGAIN: that is not enough.
func quick(tree intercept.Tree, name string, follow bool) (int, unix.Errno) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: resolveCached}
	if !follow {
		how.Flags |= unix.O_NOFOLLOW
	}
	fd, errno := below(tree, name, how)
	if errno == unix.ELOOP || errno == unix.EINVAL { // EINVAL: before Linux 5.12
		errno = unix.EAGAIN
	}
	return fd, errno
}

// walk finds out where name leads for thread tid. With ENOENT the place has a name all the same where
// only the last part is missing, at the end of whatever links: open(2) may make it there.
func walk(tree intercept.Tree, tid int, name string, follow bool) (place, unix.Errno) {
	if real := path.Clean(name); tree.Other(real) {
		fd, errno := look(tree, name, follow)
		if errno != unix.ELOOP {
			return place{fd: fd, name: real}, errno
		}
	}
	p, errno := trace(tree, tid, name, follow)
	if errno == unix.ENOENT && doubt(tree, p.links) {
		return trace(tree, tid, name, follow)
	}
	return p, errno
}

// doubt says whether it may lead elsewhere to follow links once more: copies of links are believed for
// a while, and what one led to may be gone since (the kubelet's ..data).
func doubt(tree intercept.Tree, links []string) bool {
	c, ok := tree.(intercept.Copies)
	if !ok {
		return false
	}
	for _, l := range links {
		c.Doubt(l)
	}
	return len(links) > 0
}

// maxLinks is how many links the kernel follows on the way to a file.
const maxLinks = 40

// trace is walk for a name with links on its way, or with ".." that lead out of the tree. It goes part
// by part and looks each up where it is, in the tree or on this machine: in a walk of the kernel's
// through the tree this machine's files would be as the tree shows them, a second old, and
// /proc/self would be us.
func trace(tree intercept.Tree, tid int, name string, follow bool) (place, unix.Errno) {
	var followed []string
	links, checked := 0, false
	for dir, rest := "/", name; ; {
		part, after, slash := strings.Cut(strings.TrimLeft(rest, "/"), "/")
		last := strings.Trim(after, "/") == ""
		p := path.Join(dir, part) // a directory's, where part is nothing or dots
		if !last && (part == "." || part == "..") {
			dir, rest = p, after
			continue
		}
		at := place{name: p, here: !tree.Other(p), links: followed}
		var errno unix.Errno
		if !at.here {
			at.fd, errno = look(tree, p, false)
		} else {
			if !checked {
				if errno := mayAct(tid); errno != 0 {
					return place{}, errno
				}
				checked = true
			}
			if (p == "/proc/self" || p == "/proc/thread-self") && (follow || slash) {
				tgid, err := threadGroup(tid)
				if err != nil {
					return place{}, unix.ESRCH
				}
				at.name = "/proc/" + strconv.Itoa(tgid)
				if p == "/proc/thread-self" {
					at.name += "/task/" + strconv.Itoa(tid)
				}
			}
			at.fd, errno = open(unix.AT_FDCWD, at.name, &unix.OpenHow{Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC})
		}
		if errno == unix.ENOENT && last && !slash {
			return place{fd: -1, name: at.name, here: at.here, links: followed}, errno
		}
		if errno != 0 {
			return place{links: followed}, errno
		}
		var st unix.Stat_t
		if err := unix.Fstat(at.fd, &st); err != nil {
			at.close()
			return place{}, err.(unix.Errno)
		}
		switch kind := st.Mode & unix.S_IFMT; {
		case kind == unix.S_IFLNK && (follow || slash):
			if links++; links > maxLinks {
				at.close()
				return place{}, unix.ELOOP
			}
			if !at.here {
				followed = append(followed, at.name)
			}
			if at.here && magic(at.name) {
				at.close()
				if slash {
					at.name += "/" + after
				}
				how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC}
				if !follow && !last {
					how.Flags |= unix.O_NOFOLLOW
				}
				at.fd, errno = open(unix.AT_FDCWD, at.name, &how)
				return at, errno
			}
			b := make([]byte, maxPath)
			n, err := unix.Readlinkat(at.fd, "", b)
			at.close()
			if err != nil {
				return place{}, err.(unix.Errno)
			}
			if rest = string(b[:n]); rest == "" {
				return place{}, unix.ENOENT
			}
			if rest[0] == '/' {
				dir = "/"
			}
			if slash {
				rest += "/" + after
			}
		case slash && kind != unix.S_IFDIR:
			at.close()
			return place{}, unix.ENOTDIR
		case last:
			return at, 0
		default:
			at.close()
			dir, rest = at.name, after
		}
	}
}

// magic says whether the link name leads where its text does not: those of processes.
func magic(name string) bool {
	rest, ok := strings.CutPrefix(name, "/proc/")
	return ok && rest[0] >= '0' && rest[0] <= '9'
}

// status returns lines of /proc/TID/status by their keys.
func status(tid int, keys ...string) ([]string, unix.Errno) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return nil, unix.ESRCH
	}
	out := make([]string, len(keys))
	for i, k := range keys {
		_, rest, _ := strings.Cut(string(b), "\n"+k+":\t")
		out[i], _, _ = strings.Cut(rest, "\n")
	}
	return out, 0
}

// patience is how long a path call is deaf to signals: such calls are not expected to fail with
// EINTR, so only one that waits for a pod far away may be interrupted.
const patience = time.Second

// later runs f, which may wait for the tree, with the caller's rights, and finishes the call with what it returns. When a
// signal interrupts the call f runs on to its end and its result is dropped: the call comes again.
func (s *Supervisor) later(t *task, f func() result) { s.laterAs(t, false, f) }

func (s *Supervisor) laterAs(t *task, real bool, f func() result) {
	s.holds.add(t, func(ctx context.Context) {
		done, dropped := make(chan result), make(chan struct{})
		began := time.Now()
		go func() {
			r := asCaller(t.tid, real, f)
			select {
			case done <- r:
			case <-dropped:
				r.close()
			}
		}()
		select {
		case r := <-done:
			s.finishPath(t, r)
			return
		case <-ctx.Done():
		}
		select {
		case r := <-done:
			s.finishPath(t, r)
		case <-time.After(patience - time.Since(began)):
			close(dropped)
			s.end(ctx, t, intercept.Fail(unix.EINTR))
		}
	})
}

// at runs f on where name leads.
func (s *Supervisor) at(t *task, name string, follow bool, f func(place) result) {
	tree, tid := s.tree, t.tid
	s.later(t, func() result {
		p, errno := walk(tree, tid, name, follow)
		if errno != 0 {
			return fails(errno)
		}
		defer p.close()
		return f(p)
	})
}

// in runs f on the directory that name is in, and its last part, for calls that make or remove names.
func (s *Supervisor) in(t *task, name string, f func(dir place, base string) unix.Errno) {
	tree, tid := s.tree, t.tid
	s.later(t, func() result {
		p, base, errno := parent(tree, tid, name)
		if errno != 0 {
			return fails(errno)
		}
		defer p.close()
		return fails(f(p, base))
	})
}

// parent finds the directory that name is in. A slash at the end stays with the last part.
func parent(tree intercept.Tree, tid int, name string) (place, string, unix.Errno) {
	i := strings.LastIndexByte(strings.TrimRight(name, "/"), '/')
	if i < 0 {
		i = 0 // "/" itself
	}
	p, errno := walk(tree, tid, name[:i+1], true)
	base := name[i+1:]
	if base == "" {
		base = "."
	}
	// A slash at the end means a directory, and that a link is followed: with one from the tree to
	// this machine the parent's own side counts.
	return p, base, errno
}

// statOf is newfstatat(2) on fd as the kernel fills it in.
func statOf(fd, flags int) result {
	b := make([]byte, unsafe.Sizeof(unix.Stat_t{}))
	e := sys.StatFD(fd, flags, (*unix.Stat_t)(unsafe.Pointer(&b[0])))
	return result{errno: e, memory: b}
}

// stat is the stat family: the path's and the buffer's argument, and flags as of newfstatat(2).
func (s *Supervisor) stat(t *task, path, buf, flags int) {
	s.attributes(t, path, flags, func(fd, sync int) result { return s.statOf(t, fd, buf, sync) })
}

// statOf is what is shown of fd, for the buffer in an argument.
func (s *Supervisor) statOf(t *task, fd, buf, sync int) result {
	r := statOf(fd, sync)
	if r.errno == 0 {
		s.shown((*unix.Stat_t)(unsafe.Pointer(&r.memory[0])))
	}
	r.addr = t.args[buf]
	return r
}

func (s *Supervisor) statx(t *task) {
	mask := uint32(t.args[3])
	s.attributes(t, 1, int(int32(t.args[2])), func(fd, sync int) result {
		b := make([]byte, unsafe.Sizeof(unix.Statx_t{}))
		st := (*unix.Statx_t)(unsafe.Pointer(&b[0]))
		e := sys.StatxFD(fd, sync, mask, st)
		if e == 0 {
			s.shownX(st)
		}
		return result{errno: e, memory: b, addr: t.args[4]}
	})
}

// attributes answers at once what the kernel has cached: a name's attributes come with the name and
// are believed as long.
func (s *Supervisor) attributes(t *task, path, flags int, get func(fd, sync int) result) {
	if s.onDescriptor(t, path) {
		s.statDescriptor(t, t.fd(path-1), func(fd int) result { return get(fd, unix.AT_STATX_DONT_SYNC) })
		return
	}
	name, ok := s.find(t, path)
	if !ok {
		return
	}
	follow := flags&unix.AT_SYMLINK_NOFOLLOW == 0
	if name != "/" { // which no look-up leads to
		fd, errno := quick(s.tree, name, follow)
		if errno == 0 && s.treesOwn(name) {
			r := get(fd, unix.AT_STATX_DONT_SYNC)
			unix.Close(fd)
			s.finishPath(t, r)
			return
		}
		if errno == 0 {
			unix.Close(fd)
		} else if errno != unix.EAGAIN {
			s.l.Answer(t.id, 0, errno)
			return
		}
	}
	s.at(t, name, follow, func(p place) result { return get(p.fd, 0) })
}

// treesOwn says whether a name that was found without a link is the tree's own.
func (s *Supervisor) treesOwn(name string) bool {
	return s.tree.Other(path.Clean(name))
}

func (s *Supervisor) access(t *task, path, mode, flags int) {
	name, ok := s.find(t, path)
	if !ok {
		return
	}
	want := uint32(t.args[mode])
	tree, tid := s.tree, t.tid
	s.laterAs(t, flags&unix.AT_EACCESS == 0, func() result {
		p, errno := walk(tree, tid, name, flags&unix.AT_SYMLINK_NOFOLLOW == 0)
		if errno != 0 {
			return fails(errno)
		}
		defer p.close()
		return fails(sys.AccessFD(p.fd, want))
	})
}

func (s *Supervisor) readlink(t *task, path, buf, size int) {
	if s.magicLink(t, path, buf, size) {
		return
	}
	name, ok := s.find(t, path)
	if !ok {
		return
	}
	n := int(int32(t.args[size]))
	if n <= 0 {
		s.l.Answer(t.id, 0, unix.EINVAL)
		return
	}
	s.at(t, name, false, func(p place) result {
		b := make([]byte, min(n, maxPath))
		got, e := sys.ReadlinkFD(p.fd, b)
		if e == unix.ENOENT { // what the kernel says of an O_PATH descriptor that is no link
			e = unix.EINVAL
		}
		if e != 0 {
			return fails(e)
		}
		return result{val: int64(got), memory: b[:got], addr: t.args[buf]}
	})
}

func (s *Supervisor) statfs(t *task) {
	name, ok := s.find(t, 0)
	if !ok {
		return
	}
	s.at(t, name, true, func(p place) result {
		var st unix.Statfs_t
		if err := unix.Fstatfs(p.fd, &st); err != nil {
			return fails(err.(unix.Errno))
		}
		return result{memory: unsafe.Slice((*byte)(unsafe.Pointer(&st)), unsafe.Sizeof(st)), addr: t.args[1]}
	})
}

// watch adds an inotify watch: to the program's own instance, which we share for the moment.
func (s *Supervisor) watch(t *task) {
	name, ok := s.find(t, 1)
	if !ok {
		return
	}
	num, mask, tid := t.fd(0), uint32(t.args[2]), t.tid
	s.at(t, name, mask&unix.IN_DONT_FOLLOW == 0, func(p place) result {
		ifd, err := takeFD(tid, num)
		if err != nil {
			return fails(unix.EBADF)
		}
		defer unix.Close(ifd)
		wd, err := unix.InotifyAddWatch(ifd, "/proc/self/fd/"+strconv.Itoa(p.fd), mask&^unix.IN_DONT_FOLLOW)
		if err != nil {
			return fails(err.(unix.Errno))
		}
		return result{val: int64(wd)}
	})
}

// The flags that open(2) and openat(2) look at; they ignore all others, which openat2(2) refuses.
const openFlags = unix.O_ACCMODE | unix.O_CREAT | unix.O_EXCL | unix.O_NOCTTY | unix.O_TRUNC | unix.O_APPEND | unix.O_NONBLOCK |
	unix.O_SYNC | unix.O_ASYNC | unix.O_DIRECT | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_NOATIME | unix.O_CLOEXEC | unix.O_PATH | unix.O_TMPFILE

// oldHow turns the arguments of open(2) into those of openat2(2).
func oldHow(flags, mode uint64) unix.OpenHow {
	flags &= openFlags
	if flags&unix.O_PATH != 0 {
		flags &= unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	} else {
		flags |= largeFile
	}
	how := unix.OpenHow{Flags: flags}
	if flags&(unix.O_CREAT|unix.O_TMPFILE&^unix.O_DIRECTORY) != 0 {
		how.Mode = mode & 0o7777
	}
	return how
}

func (s *Supervisor) openat(t *task) { s.open(t, 1, oldHow(t.args[2], t.args[3])) }

func (s *Supervisor) openat2(t *task) {
	var how unix.OpenHow
	b := unsafe.Slice((*byte)(unsafe.Pointer(&how)), unsafe.Sizeof(how))
	const stays = unix.RESOLVE_BENEATH | unix.RESOLVE_IN_ROOT // relative to a directory that is not ours
	if t.args[3] != uint64(len(b)) || !s.readTask(t, t.args[2], b) || how.Resolve&stays != 0 {
		s.l.Continue(t.id)
		return
	}
	s.open(t, 1, how)
}

func (s *Supervisor) open(t *task, arg int, how unix.OpenHow) {
	name, ok := s.find(t, arg)
	if !ok {
		return
	}
	tree, tid := s.tree, t.tid
	s.later(t, func() result {
		fd, errno := openAt(tree, tid, name, how)
		if errno != 0 {
			return fails(errno)
		}
		return result{fd: fd, cloexec: how.Flags&unix.O_CLOEXEC != 0}
	})
}

// openAt opens name as the program asked for. The descriptor is never 0.
func openAt(tree intercept.Tree, tid int, name string, how unix.OpenHow) (int, unix.Errno) {
	ours := how
	// Not O_PATH, which ADDFD refuses (EBADF): the program gets a descriptor that can be read, too,
	// and none for a link itself (ELOOP).
	ours.Flags = ours.Flags&^unix.O_PATH | unix.O_CLOEXEC | largeFile |
		unix.O_NOCTTY | unix.O_NONBLOCK // a pipe without a writer would hold us up
	give := func(fd int, errno unix.Errno) (int, unix.Errno) {
		if errno == 0 && how.Flags&unix.O_NONBLOCK == 0 {
			if fl, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err == nil {
				unix.FcntlInt(uintptr(fd), unix.F_SETFL, fl&^unix.O_NONBLOCK)
			}
		}
		return fd, errno
	}
	real := path.Clean(name)
	if tree.Other(real) {
		fd, errno := below(tree, name, ours)
		if errno != unix.ELOOP || how.Resolve&unix.RESOLVE_NO_SYMLINKS != 0 {
			return give(fd, errno)
		}
	}
	// A link is on the way, or "..": where does it lead?
	if how.Flags&unix.O_CREAT != 0 && strings.HasSuffix(name, "/") { // whatever is there
		dir, _, errno := parent(tree, tid, name)
		if errno == 0 {
			dir.close()
			errno = unix.EISDIR
		}
		return -1, errno
	}
	follow := how.Flags&unix.O_NOFOLLOW == 0 && how.Flags&(unix.O_CREAT|unix.O_EXCL) != unix.O_CREAT|unix.O_EXCL
	p, errno := walk(tree, tid, name, follow)
	switch {
	case errno == 0:
		defer p.close()
	case errno == unix.ENOENT && p.name != "" && how.Flags&unix.O_CREAT != 0:
	default:
		return -1, errno
	}
	if !p.here {
		fd, errno := below(tree, p.name, ours)
		if errno == unix.ENOENT && doubt(tree, p.links) {
			if p, errno := walk(tree, tid, name, follow); errno == 0 {
				defer p.close()
				if !p.here {
					return give(below(tree, p.name, ours))
				}
			}
		}
		return give(fd, errno)
	}
	dir, errno := open(unix.AT_FDCWD, path.Dir(p.name), &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC})
	if errno != 0 {
		return -1, errno
	}
	defer unix.Close(dir)
	ours.Resolve = 0
	if ours.Mode, errno = masked(tid, ours.Mode); errno != 0 {
		return -1, errno
	}
	return give(open(dir, path.Base(p.name), &ours))
}

// masked is mode as thread tid makes files with it on this machine.
func masked(tid int, mode uint64) (uint64, unix.Errno) {
	if mode == 0 {
		return 0, 0
	}
	st, errno := status(tid, "Umask")
	if errno != 0 {
		return 0, errno
	}
	mask, _ := strconv.ParseUint(st[0], 8, 32)
	return mode &^ mask, 0
}

func (s *Supervisor) mkdir(t *task, path, mode int) {
	if name, ok := s.find(t, path); ok {
		m, tid := t.args[mode], t.tid
		s.in(t, name, func(dir place, base string) unix.Errno {
			if readOnly(s.tree, dir) {
				return refuseMaking(s.tree, dir, base, true)
			}
			if dir.here {
				var errno unix.Errno
				if m, errno = masked(tid, m); errno != 0 {
					return errno
				}
			}
			return errnoOf(unix.Mkdirat(dir.fd, base, uint32(m)))
		})
	}
}

func (s *Supervisor) mknod(t *task, path, mode, dev int) {
	if name, ok := s.find(t, path); ok {
		m, d, tid := t.args[mode], int(t.args[dev]), t.tid
		s.in(t, name, func(dir place, base string) unix.Errno {
			if readOnly(s.tree, dir) {
				return refuseMaking(s.tree, dir, base, false)
			}
			if dir.here {
				var errno unix.Errno
				if m, errno = masked(tid, m); errno != 0 {
					return errno
				}
			}
			return errnoOf(unix.Mknodat(dir.fd, base, uint32(m), d))
		})
	}
}

func (s *Supervisor) unlink(t *task, path, flags int) {
	if name, ok := s.find(t, path); ok {
		s.in(t, name, func(dir place, base string) unix.Errno {
			if readOnly(s.tree, dir) {
				return refuseRemoving(s.tree, dir, base, flags)
			}
			return errnoOf(unix.Unlinkat(dir.fd, base, flags))
		})
	}
}

func (s *Supervisor) symlink(t *task, target, path int) {
	name, ok := s.find(t, path)
	if !ok {
		return
	}
	p, there, err := readPath(t.tid, t.args[target], s.path[:])
	if err != nil || !there {
		s.l.Continue(t.id)
		return
	}
	to := string(p)
	s.in(t, name, func(dir place, base string) unix.Errno {
		if readOnly(s.tree, dir) {
			return refuseMaking(s.tree, dir, base, false)
		}
		return errnoOf(unix.Symlinkat(to, dir.fd, base))
	})
}

func (s *Supervisor) rename(t *task, from, to int, flags uint) {
	s.two(t, from, to, func(d1 place, b1 string, d2 place, b2 string) unix.Errno {
		if readOnly(s.tree, d1) {
			return refuseMoving(s.tree, d1, b1, d2, b2, flags)
		}
		return errnoOf(unix.Renameat2(d1.fd, b1, d2.fd, b2, flags))
	})
}

func (s *Supervisor) link(t *task, from, to int) {
	s.two(t, from, to, func(d1 place, b1 string, d2 place, b2 string) unix.Errno {
		if readOnly(s.tree, d1) {
			return refuseLinking(s.tree, d1, b1, d2, b2)
		}
		return errnoOf(unix.Linkat(d1.fd, b1, d2.fd, b2, 0))
	})
}

// two runs f on the directories of two names.
func (s *Supervisor) two(t *task, i, j int, f func(d1 place, b1 string, d2 place, b2 string) unix.Errno) {
	a, b, ok := s.both(t, i, j)
	if !ok {
		return
	}
	tree, tid := s.tree, t.tid
	s.later(t, func() result {
		p, pb, errno := parent(tree, tid, a)
		if errno != 0 {
			return fails(errno)
		}
		defer p.close()
		q, qb, errno := parent(tree, tid, b)
		if errno != 0 {
			return fails(errno)
		}
		defer q.close()
		if p.here != q.here && s.copies != nil { // which may be on one file system
			return fails(unix.EXDEV)
		}
		return fails(f(p, pb, q, qb))
	})
}

// change refuses to change what is the tree's; what is not there is not there.
func (s *Supervisor) change(t *task, path int, follow bool) {
	if s.onDescriptor(t, path) {
		s.l.Answer(t.id, 0, unix.EROFS)
		return
	}
	if name, ok := s.find(t, path); ok {
		s.at(t, name, follow, func(place) result { return fails(unix.EROFS) })
	}
}

// attribute answers for extended attributes, of which the tree has none.
func (s *Supervisor) attribute(t *task, follow bool, errno unix.Errno) {
	if name, ok := s.find(t, 0); ok {
		s.at(t, name, follow, func(place) result { return fails(errno) })
	}
}

func errnoOf(err error) unix.Errno {
	if err == nil {
		return 0
	}
	if e, ok := err.(syscall.Errno); ok {
		return e
	}
	return unix.EIO
}
