package tunnel

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// keep holds a descriptor of c's that nobody waits on: so c's end is not sent when the agent, which has
// another, dies. The release says that the agent is through, or gone: a connection whose end it has not
// sent ends with a reset.
func keep(c net.Conn) (release func()) {
	release = func() {}
	s, ok := c.(syscall.Conn)
	if !ok {
		return release
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return release
	}
	fd := -1
	cerr := raw.Control(func(from uintptr) { fd, err = unix.FcntlInt(from, unix.F_DUPFD_CLOEXEC, 0) })
	if cerr != nil || err != nil {
		return release
	}
	return func() {
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err == nil && (info.State == unix.BPF_TCP_ESTABLISHED || info.State == unix.BPF_TCP_CLOSE_WAIT) {
			_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		}
		unix.Close(fd)
	}
}
