package notify

import (
	"bytes"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/intercept"
	"github.com/stead-dev/stead/internal/sys"
)

// pidfds keeps a pidfd for each thread that made a call, so that taking a socket costs one call
// and not three, and its process's id. A pidfd names its thread for ever: when the thread is gone it
// says ESRCH, and the number may have been given to another. Before Linux 6.9 there is none for a
// thread that does not lead its group; such threads are looked at anew each time.
type pidfds struct {
	flags int // PIDFD_THREAD where it is there
	byTID map[int]thread
}

type thread struct {
	fd    int
	group process
}

// process is a thread group. Its number alone is given to another when it has ended.
type process struct {
	tgid  int
	start uint64 // in clock ticks, see proc_pid_stat(5)
}

const maxPidfds = 256

func (p *pidfds) init() {
	p.byTID = make(map[int]thread)
	if fd, err := unix.PidfdOpen(os.Getpid(), sys.PidfdThread); err == nil {
		unix.Close(fd)
		p.flags = sys.PidfdThread
	}
}

func (p *pidfds) close() {
	for tid := range p.byTID {
		p.drop(tid)
	}
}

func (p *pidfds) drop(tid int) {
	if t, ok := p.byTID[tid]; ok {
		unix.Close(t.fd)
		delete(p.byTID, tid)
	}
}

// get returns what is kept of thread tid; old says that it was kept before, so that the thread may
// be another one by now. An error: there can be no pidfd for it.
func (p *pidfds) get(tid int) (t thread, old bool, err error) {
	if t, old = p.byTID[tid]; old {
		return t, true, nil
	}
	if len(p.byTID) >= maxPidfds {
		for other := range p.byTID {
			p.drop(other)
			break
		}
	}
	if t.fd, err = unix.PidfdOpen(tid, p.flags); err == nil {
		p.byTID[tid] = t
	}
	return t, false, err
}

// getfd returns our copy of descriptor fd of thread tid. The caller asks Valid afterwards.
func (p *pidfds) getfd(tid, fd int) (int, error) {
	if p.flags == 0 {
		return takeFD(tid, fd) // a leader's pidfd would outlive the thread
	}
	for {
		t, old, err := p.get(tid)
		if err != nil {
			return -1, err
		}
		got, err := unix.PidfdGetfd(t.fd, fd, 0)
		if err == unix.ESRCH && old {
			p.drop(tid)
			continue
		}
		return got, err
	}
}

// group returns the process of a thread that waits in a call; ok is false where that would have to
// be looked up each time.
func (p *pidfds) group(tid int) (g process, ok bool) {
	t, old, err := p.get(tid)
	if old && unix.PidfdSendSignal(t.fd, 0, nil, 0) != nil {
		p.drop(tid)
		t, _, err = p.get(tid)
	}
	if err != nil {
		return process{}, false
	}
	if t.group.tgid == 0 {
		if t.group, err = processOf(tid); err != nil {
			return process{}, false
		}
		p.byTID[tid] = t
	}
	return t.group, true
}

// process returns the number of the process of a thread that waits in a call.
func (p *pidfds) process(tid int) (int, error) {
	if g, ok := p.group(tid); ok {
		return g.tgid, nil
	}
	return threadGroup(tid)
}

// takeFD is getfd without a cache, for any goroutine.
func takeFD(tid, fd int) (int, error) {
	pfd, err := unix.PidfdOpen(tid, sys.PidfdThread)
	if err != nil {
		tgid, terr := threadGroup(tid)
		if terr != nil {
			return -1, terr
		}
		if pfd, err = unix.PidfdOpen(tgid, 0); err != nil {
			return -1, err
		}
	}
	defer unix.Close(pfd)
	return unix.PidfdGetfd(pfd, fd, 0)
}

// processOf is threadGroup with what tells it from others that had or will have the same number.
func processOf(tid int) (p process, err error) {
	if p.tgid, err = threadGroup(tid); err != nil {
		return p, err
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/stat", p.tgid))
	if err != nil {
		return process{}, unix.ESRCH
	}
	f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(f) < 20 {
		return process{}, unix.ESRCH
	}
	p.start, err = strconv.ParseUint(string(f[19]), 10, 64)
	return p, err
}

// threadGroup returns the process to which thread tid belongs.
func threadGroup(tid int) (int, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return 0, unix.ESRCH
	}
	_, rest, ok := bytes.Cut(b, []byte("\nTgid:"))
	var id int
	if ok {
		_, err = fmt.Sscan(string(rest), &id)
	}
	if !ok || err != nil {
		return 0, unix.ESRCH
	}
	return id, nil
}

// netnsOf is the cookie of a socket's network namespace, 0 where the kernel does not tell.
func netnsOf(fd int) uint64 {
	c, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0
	}
	return c
}

// ownNetns is the cookie of ours.
func ownNetns() uint64 {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	return netnsOf(fd)
}

// socket takes the socket that the call names in argument 0. nil means that the call has been
// answered: it is no IPv4 or IPv6 socket, or one of a network namespace that the program made, in which
// neither pod nor laptop are, so the kernel runs the call; or it cannot be taken.
func (s *Supervisor) socket(t *task) *intercept.Socket {
	num := t.fd(0)
	if num < 0 {
		s.l.Continue(t.id) // EBADF is the kernel's to say
		return nil
	}
	fd, err := s.pids.getfd(t.tid, num)
	switch {
	case err == unix.EBADF:
		s.l.Continue(t.id)
		return nil
	case err == unix.ESRCH:
		return nil // died: nobody waits
	case err != nil:
		s.trouble(t, unix.EACCES, fmt.Errorf("take its socket: %w", err))
		return nil
	}
	if !s.l.Valid(t.id) {
		unix.Close(fd)
		return nil
	}
	family, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil || family != unix.AF_INET && family != unix.AF_INET6 {
		unix.Close(fd)
		s.l.Continue(t.id)
		return nil
	}
	if s.netns != 0 && netnsOf(fd) != s.netns {
		unix.Close(fd)
		s.l.Continue(t.id)
		return nil
	}
	sock := &intercept.Socket{FD: fd, Family: family}
	sock.Type, _ = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	sock.Protocol, _ = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	sock.Cookie, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	flags, ferr := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil || ferr != nil {
		unix.Close(fd)
		s.trouble(t, unix.EACCES, fmt.Errorf("look at its socket: %w", err))
		return nil
	}
	sock.Nonblock = flags&unix.O_NONBLOCK != 0
	tid, group, cookie := t.tid, t.tid, sock.Cookie
	if t.nr == unix.SYS_CONNECT { // whose answer may come when the thread is gone
		if g, err := s.pids.process(tid); err == nil {
			group = g
		}
	}
	sock.Again = func() (int, error) { return again(tid, group, num, cookie) }
	return sock
}

// again takes descriptor num of thread tid, or when that has ended of its process, if it still is the
// socket.
func again(tid, group, num int, cookie uint64) (int, error) {
	fd, err := takeFD(tid, num)
	if err == unix.ESRCH && group != tid {
		fd, err = takeFD(group, num)
	}
	if err != nil {
		return -1, err
	}
	got, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err == nil && got != cookie {
		err = unix.EBADF
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func closeSocket(sock *intercept.Socket) {
	if sock != nil && sock.FD >= 0 {
		unix.Close(sock.FD)
		sock.FD = -1
	}
}
