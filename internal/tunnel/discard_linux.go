package tunnel

import (
	"io"
	"net"

	"golang.org/x/sys/unix"
)

// discard reads c to its end.
func discard(c net.Conn) error {
	t, ok := c.(*net.TCPConn)
	if !ok {
		_, err := io.Copy(io.Discard, c)
		return err
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return err
	}
	for {
		var n int
		var rerr error
		err := raw.Read(func(fd uintptr) bool {
			// MSG_TRUNC: the kernel drops the bytes instead of copying them (tcp(7)).
			n, _, rerr = unix.Recvfrom(int(fd), dropped[:], unix.MSG_TRUNC|unix.MSG_DONTWAIT)
			return rerr != unix.EAGAIN
		})
		switch {
		case err != nil:
			return err
		case rerr == unix.EINTR:
		case rerr != nil:
			return rerr
		case n == 0:
			return nil
		}
	}
}

var dropped [1 << 20]byte // says how many at a time; never written
