package notify

import (
	"path"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/intercept"
)

// This file opens paths in a tree.

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
