package notify

import (
	"context"
	"encoding/binary"
	"maps"
	"net/netip"
	"runtime"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/inet"
	"github.com/stead-dev/stead/internal/intercept"
	"github.com/stead-dev/stead/internal/sys"
)

// address reads the socket address of a call. false: the call has been answered.
func (s *Supervisor) address(t *task, addr, size int) (sockaddr, bool) {
	a, errno, ok := readSockaddr(t.tid, t.args[addr], t.args[size])
	switch {
	case errno != 0:
		s.trouble(t, errno, unix.EPERM)
	case !ok:
		s.l.Continue(t.id)
	default:
		return a, true
	}
	return a, false
}

func (s *Supervisor) connect(t *task) {
	a, ok := s.address(t, 1, 2)
	if !ok {
		return
	}
	switch a.family {
	case unix.AF_UNIX:
		path, other := s.unixPath(t, a.path)
		if other {
			s.l.Answer(t.id, 0, unix.ENOENT) // what is seen of the tree's sockets is their names
			return
		}
		s.finish(t, nil, s.h.ConnectUnix(path))
	case unix.AF_INET, unix.AF_INET6, unix.AF_UNSPEC:
		if sock := s.socket(t); sock != nil {
			s.finish(t, sock, s.h.Connect(sock, a.ip))
		}
	default:
		s.l.Continue(t.id)
	}
}

func (s *Supervisor) bind(t *task) {
	a, ok := s.address(t, 1, 2)
	if !ok {
		return
	}
	if a.family == unix.AF_UNIX {
		if _, other := s.unixPath(t, a.path); other {
			s.l.Answer(t.id, 0, unix.EROFS)
			return
		}
	}
	if a.family != unix.AF_INET && a.family != unix.AF_INET6 {
		s.l.Continue(t.id)
		return
	}
	if sock := s.socket(t); sock != nil {
		s.finish(t, sock, s.h.Bind(sock, a.ip))
	}
}

// unixPath makes the path of a unix socket absolute where path calls are trapped, and says whether
// it is the tree's.
func (s *Supervisor) unixPath(t *task, p string) (abs string, other bool) {
	if s.tree == nil || p == "" || p[0] == '@' {
		return p, false
	}
	if p[0] != '/' {
		dir, inside, err := s.cwd(t.tid)
		if err != nil {
			return p, false
		}
		p = dir + "/" + p
		if inside {
			return p, true
		}
	}
	return p, s.otherUnclean(p)
}

func (s *Supervisor) listen(t *task) {
	if sock := s.socket(t); sock != nil {
		s.finish(t, sock, s.h.Listen(sock, int(int32(t.args[1]))))
	}
}

func (s *Supervisor) getpeername(t *task) { s.name(t, s.h.PeerName) }
func (s *Supervisor) getsockname(t *task) { s.name(t, s.h.SockName) }

func (s *Supervisor) name(t *task, ask func(*intercept.Socket) (netip.AddrPort, unix.Errno)) {
	sock := s.socket(t)
	if sock == nil {
		return
	}
	defer closeSocket(sock)
	addr, errno := ask(sock)
	switch {
	case errno != 0:
		s.l.Answer(t.id, 0, errno)
	case !addr.IsValid():
		s.l.Continue(t.id)
	default:
		if !s.l.Valid(t.id) {
			return
		}
		s.l.Answer(t.id, 0, writeSockaddr(t.tid, t.args[1], t.args[2], inet.Append(nil, sock.Family, addr)))
	}
}

// sockError is getsockopt(fd, SOL_SOCKET, SO_ERROR).
func (s *Supervisor) sockError(t *task) {
	sock := s.socket(t)
	if sock == nil {
		return
	}
	defer closeSocket(sock)
	errno, ok := s.h.SocketError(sock)
	if !ok {
		s.l.Continue(t.id)
		return
	}
	if !s.l.Valid(t.id) {
		return
	}
	var b [4]byte
	if n, err := sys.ReadTask(t.tid, t.args[4], b[:]); err != nil || n != 4 {
		s.l.Answer(t.id, 0, unix.EFAULT)
		return
	}
	fit := int(int32(binary.NativeEndian.Uint32(b[:])))
	if fit < 0 {
		s.l.Answer(t.id, 0, unix.EINVAL)
		return
	}
	fit = min(fit, 4)
	var val [4]byte
	binary.NativeEndian.PutUint32(val[:], uint32(errno))
	binary.NativeEndian.PutUint32(b[:], uint32(fit))
	if sys.WriteTask(t.tid, t.args[3], val[:fit]) != nil || sys.WriteTask(t.tid, t.args[4], b[:]) != nil {
		s.l.Answer(t.id, 0, unix.EFAULT)
		return
	}
	s.l.Answer(t.id, 0, 0)
}

// accept accepts on the program's listener itself, because only so the program can be shown the
// real client, and puts the connection into the program.
//
// Everybody under the filter accepts through here, so a connection that we took for a caller who
// died or was interrupted meanwhile is kept for the next one.
func (s *Supervisor) accept(t *task) {
	sock := s.socket(t)
	if sock == nil {
		return
	}
	if sock.Type != unix.SOCK_STREAM {
		closeSocket(sock)
		s.l.Continue(t.id)
		return
	}
	flags := 0
	if t.nr == unix.SYS_ACCEPT4 {
		flags = int(int32(t.args[3]))
	}
	if flags&^(unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK) != 0 {
		closeSocket(sock)
		s.l.Continue(t.id) // EINVAL
		return
	}
	fd, errno := s.acceptNow(t, sock, flags)
	if errno == unix.EAGAIN && !sock.Nonblock {
		s.holds.add(t, func(ctx context.Context) {
			defer closeSocket(sock)
			fd, errno := s.acceptSoon(ctx, t, sock, flags)
			if errno == unix.EINTR {
				s.end(ctx, t, intercept.Fail(errno))
				return
			}
			s.accepted(t, sock, fd, errno, flags)
		})
		return
	}
	defer closeSocket(sock)
	s.accepted(t, sock, fd, errno, flags)
}

// acceptNow takes a waiting connection, EAGAIN when there is none, EINTR when the caller waits no more. It
// does not block, whatever somebody else makes of O_NONBLOCK meanwhile: the poll and the accept are under
// one lock, and nobody else accepts.
func (s *Supervisor) acceptNow(t *task, sock *intercept.Socket, flags int) (int, unix.Errno) {
	s.left.mu.Lock()
	defer s.left.mu.Unlock()
	if fd, ok := s.left.takeLocked(sock.Cookie); ok {
		if flags&unix.SOCK_NONBLOCK != 0 {
			_ = unix.SetNonblock(fd, true)
		}
		return fd, 0
	}
	for {
		p := []unix.PollFd{{Fd: int32(sock.FD), Events: unix.POLLIN}}
		if n, _ := unix.Poll(p, 0); n <= 0 {
			return -1, unix.EAGAIN
		}
		if !s.l.Valid(t.id) { // so what comes waits for the next caller
			return -1, unix.EINTR
		}
		fd, _, e := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(sock.FD), 0, 0, uintptr(flags&unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC), 0, 0)
		if e != 0 {
			return -1, e
		}
		if !s.left.knockLocked(int(fd)) {
			return int(fd), 0
		}
		unix.Close(int(fd))
	}
}

func (s *Supervisor) acceptSoon(ctx context.Context, t *task, sock *intercept.Socket, flags int) (int, unix.Errno) {
	for {
		if e := waitReadable(ctx, sock.FD); e != 0 {
			return -1, e
		}
		fd, e := s.acceptNow(t, sock, flags)
		if e != unix.EAGAIN {
			return fd, e
		}
	}
}

// accepted ends an accept with the connection fd, which it owns, or errno.
func (s *Supervisor) accepted(t *task, listener *intercept.Socket, fd int, errno unix.Errno, flags int) {
	if errno != 0 {
		s.l.Answer(t.id, 0, errno)
		return
	}
	if t.args[1] != 0 {
		sa, err := unix.Getpeername(fd)
		if err == nil && s.l.Valid(t.id) {
			peer := s.h.Accepted(listener, inet.FromUnix(sa))
			if e := writeSockaddr(t.tid, t.args[1], t.args[2], inet.Append(nil, listener.Family, peer)); e != 0 {
				unix.Close(fd)
				s.l.Answer(t.id, 0, e)
				return
			}
		}
		// A client that is gone already (ENOTCONN): the kernel's accept fails so too.
		if err != nil {
			unix.Close(fd)
			s.l.Answer(t.id, 0, unix.ECONNABORTED)
			return
		}
	}
	err := s.inject(t, fd, flags&unix.SOCK_CLOEXEC != 0)
	switch err {
	case nil:
		unix.Close(fd)
	case unix.ENOENT: // the caller died or was interrupted: the client must not suffer
		s.left.keep(listener, fd)
	default: // EMFILE: the caller's table is full
		s.left.keep(listener, fd)
		s.l.Answer(t.id, 0, err.(unix.Errno))
	}
}

// inject gives fd to the task as the call's result, from any goroutine.
func (s *Supervisor) inject(t *task, fd int, cloexec bool) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var old, all uint64
	all = ^uint64(0)
	unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&all)), uintptr(unsafe.Pointer(&old)), 8, 0, 0)
	err := s.l.AddFDSend(t.id, fd, cloexec)
	unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&old)), 0, 8, 0, 0)
	return err
}

// leftovers are accepted connections that found no caller, by listener. Nobody tells us that a
// listener is closed, so a connection is dropped when no accept came for it in time.
//
// Whoever waits for the listener to be readable must learn of it, which the kernel tells of connections in
// its queue alone: so for each that we keep there is one of ours, a knock, that nobody is given.
type leftovers struct {
	mu       sync.Mutex
	byCookie map[uint64][]leftover
	knocks   map[netip.AddrPort]time.Time // by our end
}

type leftover struct {
	fd    int
	since time.Time
}

const leftoverAge = 30 * time.Second

func (l *leftovers) keep(listener *intercept.Socket, fd int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.byCookie == nil {
		l.byCookie, l.knocks = make(map[uint64][]leftover), make(map[netip.AddrPort]time.Time)
	}
	for c, q := range l.byCookie {
		for len(q) > 0 && time.Since(q[0].since) > leftoverAge {
			unix.Close(q[0].fd)
			q = q[1:]
		}
		if l.byCookie[c] = q; len(q) == 0 {
			delete(l.byCookie, c)
		}
	}
	maps.DeleteFunc(l.knocks, func(_ netip.AddrPort, at time.Time) bool { return time.Since(at) > leftoverAge })
	l.byCookie[listener.Cookie] = append(l.byCookie[listener.Cookie], leftover{fd, time.Now()})
	if from, err := knock(listener); err == nil {
		l.knocks[from] = time.Now()
	}
}

// knock makes the listener readable, and tells as whom it is to be known. Where it cannot, connections that
// wait in the kernel's queue make it so, or none does.
func knock(listener *intercept.Socket) (from netip.AddrPort, err error) {
	sa, err := unix.Getsockname(listener.FD)
	if err != nil {
		return from, err
	}
	for _, to := range inet.Reach(inet.FromUnix(sa), false) {
		if from, err = knockAt(to); err == nil {
			break
		}
	}
	return from, err
}

func knockAt(to netip.AddrPort) (from netip.AddrPort, err error) {
	family := unix.AF_INET
	if to.Addr().Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return from, err
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, inet.ToUnix(family, to)); err != nil && err != unix.EINPROGRESS {
		return from, err
	}
	_, _ = unix.Write(fd, []byte{0}) // for TCP_DEFER_ACCEPT
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return from, err
	}
	return inet.FromUnix(sa), nil
}

// knockLocked says whether an accepted connection is a knock of ours.
func (l *leftovers) knockLocked(fd int) bool {
	if len(l.knocks) == 0 {
		return false
	}
	sa, err := unix.Getpeername(fd)
	if err != nil {
		return false
	}
	from := inet.Unmap(inet.FromUnix(sa))
	_, ok := l.knocks[from]
	delete(l.knocks, from)
	return ok
}

func (l *leftovers) takeLocked(cookie uint64) (int, bool) {
	q := l.byCookie[cookie]
	if len(q) == 0 {
		return -1, false
	}
	if len(q) == 1 {
		delete(l.byCookie, cookie)
	} else {
		l.byCookie[cookie] = q[1:]
	}
	return q[0].fd, true
}

func (l *leftovers) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, q := range l.byCookie {
		for _, x := range q {
			unix.Close(x.fd)
		}
	}
	l.byCookie = nil
}
