package tunnel

import (
	"net"

	"golang.org/x/sys/unix"
)

// unsent is how many bytes the kernel may keep that are not on the way yet: what waits there can't
// be overtaken by anything smaller.
const unsent = 128 << 10

// tune prepares a transport of the kernel's.
func tune(t net.Conn) {
	tcp, ok := t.(*net.TCPConn)
	if !ok {
		return
	}
	_ = tcp.SetNoDelay(true)
	raw, err := tcp.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsent)
	})
}
