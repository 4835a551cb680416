package notify

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// This file answers the calls that make, move and remove names, which a tree may refuse.

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
