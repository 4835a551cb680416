package notify

import (
	"context"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/intercept"
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
