package inet

import (
	"encoding/binary"
	"sync"
	"syscall"
	"unsafe"

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

// Send sends payload through the socket fd without waiting, to an address where that is not nil. With a
// segment that is not 0 the kernel makes datagrams of that size of it.
func Send(fd int, payload []byte, segment int, to unix.Sockaddr) error {
	const flags = unix.MSG_DONTWAIT | unix.MSG_NOSIGNAL
	if segment == 0 {
		return unix.Sendto(fd, payload, flags, to)
	}
	b := make([]byte, unix.CmsgSpace(2))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = unix.SOL_UDP, unix.UDP_SEGMENT
	h.SetLen(unix.CmsgLen(2))
	binary.NativeEndian.PutUint16(b[unix.CmsgLen(0):], uint16(segment))
	_, err := unix.SendmsgN(fd, payload, b, to, flags)
	return err
}

// Segment returns the size of UDP_SEGMENT in a message's control data, 0 for none.
func Segment(control []byte) int {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return 0
	}
	for _, m := range messages {
		if m.Header.Level == unix.SOL_UDP && m.Header.Type == unix.UDP_SEGMENT && len(m.Data) >= 2 {
			return int(binary.NativeEndian.Uint16(m.Data))
		}
	}
	return 0
}
