package notify

import (
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/intercept"
	"github.com/stead-dev/stead/internal/sys"
)

// A tree of copies (intercept.Copies) differs from one that the kernel asks for: a name below a
// descriptor of the tree's may not be there yet, what the kernel says of a copy is not what is to be
// shown, and it could be changed. So calls with a directory's descriptor are trapped too (whose),
// those that ask or change by a descriptor are, and what makes or removes names is refused here with
// what the kernel says of a file system that is read only.
//
// What differs from the other trees, beside what is said in paths_linux.go: a copy that is open stays
// as it is when the pod's file changes; getdents' inode numbers are the copies'; /proc/PID/maps and
// fdinfo show the copies, as do calls that no filter sees; statfs tells of the file system that they
// are on; inotify tells of copies that are made; a copy can be opened for writing over /proc/PID/fd,
// which changes the copy alone; files above a limit cannot be opened (EFBIG).

func copies(o Options) bool { return o.Copies }

// copyCalls are the rows for descriptors of copies.
func copyCalls() []call {
	rows := []call{
		{name: "fstat", nr: unix.SYS_FSTAT, handle: func(s *Supervisor, t *task) {
			s.statDescriptor(t, t.fd(0), func(fd int) result { return s.statOf(t, fd, 1, unix.AT_STATX_DONT_SYNC) })
		}},
		{name: "fchmod", nr: unix.SYS_FCHMOD, handle: (*Supervisor).changeDescriptor},
		{name: "fchown", nr: unix.SYS_FCHOWN, handle: (*Supervisor).changeDescriptor},
		{name: "fsetxattr", nr: unix.SYS_FSETXATTR, handle: (*Supervisor).changeDescriptor},
		{name: "fremovexattr", nr: unix.SYS_FREMOVEXATTR, handle: (*Supervisor).changeDescriptor},
	}
	for i := range rows {
		rows[i].when = copies
	}
	return rows
}

// knownAt says what is a copy, by a path of this machine's.
func (s *Supervisor) knownAt(name string, flags int) (p string, a intercept.Attr, known bool, errno unix.Errno) {
	var st unix.Stat_t
	if err := unix.Fstatat(unix.AT_FDCWD, name, &st, unix.AT_STATX_DONT_SYNC|flags); err != nil {
		return "", a, false, err.(unix.Errno)
	}
	if s.copies == nil {
		return "", a, uint64(st.Dev) == s.cwds.dev, 0
	}
	p, a, known = s.copies.Known(uint64(st.Dev), st.Ino)
	return p, a, known, 0
}

func procFD(tid, fd int) string { return "/proc/" + strconv.Itoa(tid) + "/fd/" + strconv.Itoa(fd) }

// directory returns where descriptor fd of thread tid is, as cwd does for the working directory.
func (s *Supervisor) directory(tid, fd int) (dir string, inside bool, err error) {
	dir, _, inside, errno := s.knownAt(procFD(tid, fd), 0)
	if errno != 0 {
		return "", false, errno
	}
	if dir == "" {
		if dir, err = os.Readlink(procFD(tid, fd)); err == nil && !strings.HasPrefix(dir, "/") {
			err = unix.ENOTDIR
		}
	}
	return dir, inside, err
}

// onDescriptor says whether a call with a path in argument i is one on the descriptor before it, of a
// copy: its path is empty, or none.
func (s *Supervisor) onDescriptor(t *task, i int) bool {
	if s.copies == nil || !t.dirs || t.fd(i-1) < 0 {
		return false
	}
	if t.args[i] != 0 {
		p, there, err := readPath(t.tid, t.args[i], s.path[:])
		if err != nil || !there || len(p) > 0 {
			return false
		}
	}
	_, _, known, errno := s.knownAt(procFD(t.tid, t.fd(i-1)), 0)
	return known && errno == 0
}

// statDescriptor answers for descriptor num by get, which is given one of ours for the same file.
func (s *Supervisor) statDescriptor(t *task, num int, get func(fd int) result) {
	if num < 0 {
		s.l.Continue(t.id)
		return
	}
	if _, _, known, errno := s.knownAt(procFD(t.tid, num), 0); !known || errno != 0 {
		s.l.Continue(t.id)
		return
	}
	fd, errno := open(unix.AT_FDCWD, procFD(t.tid, num), &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC})
	if errno != 0 {
		s.l.Continue(t.id)
		return
	}
	r := get(fd)
	unix.Close(fd)
	s.finishPath(t, r)
}

func (s *Supervisor) changeDescriptor(t *task) {
	if t.fd(0) >= 0 {
		if _, _, known, errno := s.knownAt(procFD(t.tid, t.fd(0)), 0); known && errno == 0 {
			s.l.Answer(t.id, 0, unix.EROFS)
			return
		}
	}
	s.l.Continue(t.id)
}

func set[T ~int32 | ~int64 | ~uint32 | ~uint64, V ~uint32 | ~uint64](to *T, v V) { *to = T(v) }

// shown corrects what the kernel says of a copy.
func (s *Supervisor) shown(st *unix.Stat_t) {
	if s.copies == nil {
		return
	}
	_, a, ok := s.copies.Known(uint64(st.Dev), st.Ino)
	if !ok {
		return
	}
	st.Ino, st.Mode, st.Uid, st.Gid = a.Ino, a.Mode, a.UID, a.GID
	st.Size, st.Blocks, st.Blksize = int64(a.Size), int64(a.Blocks), 4096
	set(&st.Nlink, a.Nlink)
	set(&st.Rdev, a.Rdev)
	st.Atim, st.Mtim, st.Ctim = unix.NsecToTimespec(a.Atime), unix.NsecToTimespec(a.Mtime), unix.NsecToTimespec(a.Ctime)
}

func (s *Supervisor) shownX(st *unix.Statx_t) {
	if s.copies == nil {
		return
	}
	_, a, ok := s.copies.Known(unix.Mkdev(st.Dev_major, st.Dev_minor), st.Ino)
	if !ok {
		return
	}
	at := func(t int64) unix.StatxTimestamp {
		n := unix.NsecToTimespec(t)
		return unix.StatxTimestamp{Sec: int64(n.Sec), Nsec: uint32(n.Nsec)}
	}
	st.Mask &^= unix.STATX_BTIME
	st.Btime = unix.StatxTimestamp{}
	st.Ino, st.Mode, st.Uid, st.Gid, st.Nlink = a.Ino, uint16(a.Mode), a.UID, a.GID, a.Nlink
	st.Size, st.Blocks, st.Blksize = a.Size, a.Blocks, 4096
	st.Rdev_major, st.Rdev_minor = unix.Major(uint64(a.Rdev)), unix.Minor(uint64(a.Rdev))
	st.Atime, st.Mtime, st.Ctime = at(a.Atime), at(a.Mtime), at(a.Ctime)
}

// magicLink answers readlink for a link of /proc's that leads to a copy: its text would be where the
// copy is.
func (s *Supervisor) magicLink(t *task, arg, buf, size int) bool {
	if s.copies == nil || int(int32(t.args[size])) <= 0 {
		return false
	}
	p, there, err := readPath(t.tid, t.args[arg], s.path[:])
	if err != nil || !there {
		return false
	}
	rest, ok := strings.CutPrefix(string(p), "/proc/")
	if !ok {
		return false
	}
	who, rest, _ := strings.Cut(rest, "/")
	switch who {
	case "self":
		tgid, err := threadGroup(t.tid)
		if err != nil {
			return false
		}
		who = strconv.Itoa(tgid)
	case "thread-self":
		who = strconv.Itoa(t.tid)
	}
	name := "/proc/" + who + "/" + rest
	if !magic(name) {
		return false
	}
	// A link, not a file that it leads to: one that names no link has the same numbers both ways.
	to, _, known, errno := s.knownAt(name, 0)
	if errno != 0 || !known {
		return false
	}
	if _, _, itself, errno := s.knownAt(name, unix.AT_SYMLINK_NOFOLLOW); errno != 0 || itself {
		return false
	}
	b := []byte(to)
	b = b[:min(len(b), int(int32(t.args[size])))]
	s.finishPath(t, result{val: int64(len(b)), memory: b, addr: t.args[buf]})
	return true
}

// readOnly says whether what is made or removed in dir is refused here.
func readOnly(tree intercept.Tree, dir place) bool {
	_, ok := tree.(intercept.Copies)
	return ok && !dir.here
}

// entry looks at what is called base in a directory of the tree's; kind 0: nothing is.
func entry(tree intercept.Tree, dir place, base string) (kind uint32, p place, errno unix.Errno) {
	p = place{name: path.Join(dir.name, base), fd: -1}
	if len(strings.TrimRight(base, "/")) > 255 {
		return 0, p, unix.ENAMETOOLONG
	}
	fd, errno := look(tree, strings.TrimRight(dir.name+"/"+base, "/"), false)
	if errno == unix.ENOENT {
		return 0, p, 0
	}
	if errno != 0 {
		return 0, p, errno
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, p, err.(unix.Errno)
	}
	return st.Mode & unix.S_IFMT, p, 0
}

// mayWrite is what the kernel says of a change of dir's entries.
func mayWrite(dir place) unix.Errno {
	if e := sys.AccessFD(dir.fd, unix.W_OK|unix.X_OK); e != 0 {
		return e
	}
	return unix.EROFS
}

func dots(base string) bool { b := strings.TrimRight(base, "/"); return b == "." || b == ".." }

// refuseMaking is how mkdir (directory), mknod and symlink end on a file system that is read only.
func refuseMaking(tree intercept.Tree, dir place, base string, directory bool) unix.Errno {
	kind, _, errno := entry(tree, dir, base)
	switch {
	case dots(base):
		return unix.EEXIST
	case errno != 0:
		return errno
	case kind != 0:
		return unix.EEXIST
	case strings.HasSuffix(base, "/") && !directory:
		return unix.ENOENT
	}
	return mayWrite(dir)
}

// refuseRemoving is how unlink and rmdir end.
func refuseRemoving(tree intercept.Tree, dir place, base string, flags int) unix.Errno {
	rmdir := flags&unix.AT_REMOVEDIR != 0
	switch b := strings.TrimRight(base, "/"); {
	case b == "." && dir.name == "/" && rmdir:
		return unix.EBUSY
	case b == "." && rmdir:
		return unix.EINVAL
	case b == ".." && rmdir:
		return unix.ENOTEMPTY
	case dots(base):
		return unix.EISDIR
	}
	kind, _, errno := entry(tree, dir, base)
	switch slash := strings.HasSuffix(base, "/"); {
	case errno != 0:
		return errno
	case kind == 0:
		return unix.ENOENT
	case slash && !rmdir && kind == unix.S_IFDIR:
		return unix.EISDIR
	case slash && kind != unix.S_IFDIR:
		return unix.ENOTDIR
	}
	if e := mayWrite(dir); e != unix.EROFS {
		return e
	}
	switch {
	case rmdir && kind != unix.S_IFDIR:
		return unix.ENOTDIR
	case !rmdir && kind == unix.S_IFDIR:
		return unix.EISDIR
	}
	return unix.EROFS
}

// refuseMoving is how rename ends; both directories are the tree's.
func refuseMoving(tree intercept.Tree, d1 place, b1 string, d2 place, b2 string, flags uint) unix.Errno {
	if dots(b1) || dots(b2) {
		return unix.EBUSY
	}
	k1, from, errno := entry(tree, d1, b1)
	if errno != 0 {
		return errno
	}
	if k1 == 0 {
		return unix.ENOENT
	}
	k2, to, errno := entry(tree, d2, b2)
	switch {
	case errno != 0:
		return errno
	case flags&unix.RENAME_NOREPLACE != 0 && k2 != 0:
		return unix.EEXIST
	case flags&unix.RENAME_EXCHANGE != 0 && k2 == 0:
		return unix.ENOENT
	case k1 != unix.S_IFDIR && (strings.HasSuffix(b1, "/") || flags&unix.RENAME_EXCHANGE == 0 && strings.HasSuffix(b2, "/")):
		return unix.ENOTDIR
	case strings.HasPrefix(to.name, from.name+"/"):
		return unix.EINVAL
	case strings.HasPrefix(from.name, to.name+"/"):
		return unix.ENOTEMPTY
	case from.name == to.name:
		return 0
	}
	for _, d := range []place{d1, d2} {
		if e := mayWrite(d); e != unix.EROFS {
			return e
		}
	}
	switch {
	case k2 == 0 || flags&unix.RENAME_EXCHANGE != 0:
	case k1 == unix.S_IFDIR && k2 != unix.S_IFDIR:
		return unix.ENOTDIR
	case k1 != unix.S_IFDIR && k2 == unix.S_IFDIR:
		return unix.EISDIR
	}
	return unix.EROFS
}

// refuseLinking is how link ends; both directories are the tree's.
func refuseLinking(tree intercept.Tree, d1 place, b1 string, d2 place, b2 string) unix.Errno {
	k1, _, errno := entry(tree, d1, b1)
	switch {
	case errno != 0:
		return errno
	case k1 == 0:
		return unix.ENOENT
	case strings.HasSuffix(b1, "/") && k1 != unix.S_IFDIR:
		return unix.ENOTDIR
	}
	if e := refuseMaking(tree, d2, b2, false); e != unix.EROFS {
		return e
	}
	if k1 == unix.S_IFDIR {
		return unix.EPERM
	}
	return unix.EROFS
}
