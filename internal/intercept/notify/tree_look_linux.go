package notify

import (
	"path"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/sys"
)

// This file answers the calls that look at a path in a tree and open nothing.

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
