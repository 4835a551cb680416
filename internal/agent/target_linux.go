package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/fault"
	"github.com/stead-dev/stead/internal/inet"
	"github.com/stead-dev/stead/internal/sys"
	"github.com/stead-dev/stead/internal/wire"
)

// target is the process beside which the agent stands. Its pidfd makes sure that it stays the
// same process: what is read by number is believed only if the pidfd is alive afterwards.
type target struct {
	pid    int
	pidfd  int
	net    *sys.Namespaces
	root   *os.File // O_PATH, its root directory
	rights rights
	ended  chan struct{} // closed when the process is gone
	wake   int           // eventfd that ends the watcher
	done   chan struct{}
}

func openTarget(pid int) (t *target, err error) {
	t = &target{pid: pid, rights: rights{pid: pid}, pidfd: -1, wake: -1, ended: make(chan struct{}), done: make(chan struct{})}
	if t.pidfd, err = unix.PidfdOpen(pid, 0); err != nil {
		return nil, targetFault(pid, "find", err)
	}
	if t.net, err = sys.EnterNetwork(pid); err != nil {
		unix.Close(t.pidfd)
		return nil, targetFault(pid, "enter the network of", err)
	}
	fd, err := unix.Open(fmt.Sprintf("/proc/%d/root", pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.net.Close()
		unix.Close(t.pidfd)
		return nil, targetFault(pid, "open the files of", err)
	}
	t.root = os.NewFile(uintptr(fd), fmt.Sprintf("root of process %d", pid))
	if t.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC); err == nil && !t.alive() {
		err = unix.ESRCH
	}
	if err != nil {
		t.root.Close()
		t.net.Close()
		unix.Close(t.pidfd)
		return nil, targetFault(pid, "find", err)
	}
	go t.watch()
	return t, nil
}

func targetFault(pid int, what string, err error) error {
	err = fmt.Errorf("%s process %d: %w", what, pid, err)
	switch {
	case errors.Is(err, unix.ESRCH), errors.Is(err, os.ErrNotExist):
		return fault.With(err, "ps -e (the target is not running)")
	case (errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES)) && os.Geteuid() == 0:
		return fault.With(err, "to root only AppArmor, SELinux or a capability that was taken away forbid it: docs/kubernetes.md, Confined targets")
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fault.With(err, "sudo stead exec ... (the target belongs to somebody else; or sysctl kernel.yama.ptrace_scope is not 0 or 1)")
	}
	return err
}

// watch closes ended when the process is gone.
func (t *target) watch() {
	defer close(t.done)
	fds := []unix.PollFd{{Fd: int32(t.pidfd), Events: unix.POLLIN}, {Fd: int32(t.wake), Events: unix.POLLIN}}
	for {
		if _, err := unix.Poll(fds, -1); err == unix.EINTR {
			continue
		}
		break
	}
	if fds[0].Revents != 0 {
		close(t.ended)
	}
}

func (t *target) alive() bool {
	return unix.PidfdSendSignal(t.pidfd, 0, nil, 0) != unix.ESRCH
}

func (t *target) close() {
	unix.Write(t.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	<-t.done
	unix.Close(t.wake)
	t.net.Close()
	t.root.Close()
	unix.Close(t.pidfd)
}

// describe reads what a session wants to know of the target.
func (t *target) describe() (*wire.Target, error) {
	w := &wire.Target{}
	var err error
	if w.Hostname, w.Domain, err = sys.Hostname(t.pid); err != nil {
		return nil, targetFault(t.pid, "read the host name of", err)
	}
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", t.pid))
	if err != nil {
		return nil, targetFault(t.pid, "read the environment of", err)
	}
	if t.pid == os.Getpid() {
		env = nil // our own: a secret, and nothing that a program is to have
	}
	for _, kv := range bytes.Split(env, []byte{0}) {
		if bytes.IndexByte(kv, '=') > 0 {
			w.Env = append(w.Env, string(kv))
		}
	}
	w.WorkDir, _ = os.Readlink(fmt.Sprintf("/proc/%d/cwd", t.pid))
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		w.Release = unix.ByteSliceToString(u.Release[:])
	}
	if b, err := t.readFile("etc/resolv.conf"); err == nil {
		w.Nameservers = nameservers(string(b))
	}
	_ = t.net.Do(func() error {
		w.Addrs = interfaceAddrs()
		return inet.Sockets("tcp", func(r inet.Row) {
			if !slices.Contains(w.Listening, r.Port) {
				w.Listening = append(w.Listening, r.Port)
			}
		})
	})
	if !t.alive() {
		return nil, targetFault(t.pid, "find", unix.ESRCH)
	}
	return w, nil
}

// interfaceAddrs are the addresses of the namespace of the calling thread.
func interfaceAddrs() (out []netip.Addr) {
	addrs, err := net.InterfaceAddrs() // netlink on a fresh socket: of this thread's namespace
	if err != nil {
		return nil
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(n.IP); ok && !ip.IsLoopback() {
				out = append(out, ip.Unmap())
			}
		}
	}
	return out
}

// maxSmallFile bounds the files that the agent reads for its own use.
const maxSmallFile = 1 << 20

// readFile reads a small file of the target's, below its root whatever symlinks say.
func (t *target) readFile(name string) ([]byte, error) {
	fd, err := unix.Openat2(int(t.root.Fd()), name, &unix.OpenHow{
		Flags: unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	if i, err := f.Stat(); err != nil || !i.Mode().IsRegular() {
		return nil, unix.EINVAL // a pipe could keep us waiting
	}
	return io.ReadAll(io.LimitReader(f, maxSmallFile))
}

// nameservers reads the nameserver lines of a resolv.conf.
func nameservers(conf string) (out []netip.Addr) {
	for _, line := range strings.Split(conf, "\n") {
		f := strings.Fields(line)
		if len(f) >= 2 && f[0] == "nameserver" {
			if a, err := netip.ParseAddr(f[1]); err == nil {
				out = append(out, a)
			}
		}
	}
	return out
}
