package inet

import (
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// whole are buffers that hold any datagram, for the moment of a read: sockets that wait have none.
var whole = sync.Pool{New: func() any { b := make([]byte, 64<<10); return &b }}

// Receive waits for a datagram on c, a non-blocking socket, and hands it to f with where it came
// from (nil on a connected socket). The error is the socket's (a syscall.Errno), or net.ErrClosed.
// idle, where it is not nil, is asked before each wait, and ends it with true: what it looks at may
// wake the wait.
func Receive(c syscall.RawConn, f func(payload []byte, from unix.Sockaddr), idle func(fd int) bool) error {
	var err error
	rerr := c.Read(func(fd uintptr) bool {
		b := whole.Get().(*[]byte)
		defer whole.Put(b)
		var n int
		var from unix.Sockaddr
		for {
			n, from, err = unix.Recvfrom(int(fd), *b, unix.MSG_DONTWAIT)
			if err != unix.EINTR {
				break
			}
		}
		if err == unix.EAGAIN {
			if idle != nil && idle(int(fd)) {
				err = nil
				return true
			}
			return false
		}
		if err == nil {
			f((*b)[:n], from)
		}
		return true
	})
	if rerr != nil {
		return rerr
	}
	return err
}
