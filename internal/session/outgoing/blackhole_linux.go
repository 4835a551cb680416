package outgoing

import (
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/inet"
)

// blackhole is a listener whose accept queue is full for ever, so that the kernel drops each SYN
// sent to it (tcp_conn_request, sk_acceptq_is_full) and the sender stays in SYN_SENT until open
// meets it half way. It has SO_REUSEPORT, so that sockets of ours, and only our user's, can be
// bound to its port and connect from there. Beside it is a port where nobody ever listens.
type blackhole struct {
	addr   netip.AddrPort
	family int
	fd     int
	filler int // the connection that fills the queue
	shut   int // has the port closed
	closed netip.AddrPort
}

func newBlackhole(at netip.Addr) (*blackhole, error) {
	b := &blackhole{family: unix.AF_INET, fd: -1, filler: -1, shut: -1}
	if at.Is6() {
		b.family = unix.AF_INET6
	}
	err := b.fill(at)
	if err != nil {
		b.close()
		return nil, fmt.Errorf("listener without room on %s: %w", at, err)
	}
	return b, nil
}

func (b *blackhole) fill(at netip.Addr) (err error) {
	if b.fd, err = b.socket(netip.AddrPortFrom(at, 0)); err != nil {
		return err
	}
	if err = unix.Listen(b.fd, 0); err != nil { // a queue of 0 holds one
		return err
	}
	sa, err := unix.Getsockname(b.fd)
	if err != nil {
		return err
	}
	b.addr = inet.FromUnix(sa)
	if b.filler, err = unix.Socket(b.family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return err
	}
	if err = ignoringEINTR(func() error { return unix.Connect(b.filler, sa) }); err != nil {
		return err
	}
	if b.shut, err = unix.Socket(b.family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return err
	}
	if err = unix.Bind(b.shut, inet.ToUnix(b.family, netip.AddrPortFrom(at, 0))); err != nil {
		return err
	}
	if sa, err = unix.Getsockname(b.shut); err != nil {
		return err
	}
	b.closed = inet.FromUnix(sa)
	return nil
}

// socket makes a socket bound to at, sharing the port with its like.
func (b *blackhole) socket(at netip.AddrPort) (int, error) {
	fd, err := unix.Socket(b.family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err == nil {
		err = unix.Bind(fd, inet.ToUnix(b.family, at))
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// open completes the connection of the socket that waits in SYN_SENT at leg. It fails with
// ECONNREFUSED when there is none any more.
func (b *blackhole) open(leg netip.AddrPort) (net.Conn, error) {
	fd, err := b.socket(b.addr)
	if err != nil {
		return nil, err
	}
	// Over the loopback both handshakes are done when connect returns.
	if err := ignoringEINTR(func() error { return unix.Connect(fd, inet.ToUnix(b.family, leg)) }); err != nil {
		unix.Close(fd)
		return nil, err
	}
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	return fileConn(fd, "relay to "+leg.String())
}

// refuse ends a non-blocking socket's SYN_SENT as a refusal does: it is shut down, and connected at once
// to where our kernel refuses it. False: the one is done, but not the other.
func (b *blackhole) refuse(fd int) bool {
	family, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		family = b.family
	}
	to := inet.ToUnix(family, b.closed)
	_ = unix.Shutdown(fd, unix.SHUT_RDWR) // who waits for the socket is awake from here
	if unix.Connect(fd, to) != unix.EINPROGRESS {
		return false
	}
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	return err == nil && info.State == tcpClose
}

const tcpClose = 7 // TCP_CLOSE of include/net/tcp_states.h

func (b *blackhole) close() {
	for _, fd := range []int{b.filler, b.fd, b.shut} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// ignoringEINTR repeats a blocking connect that the runtime's preemption signal interrupted: the
// second call waits for the first one's result, EISCONN is success.
func ignoringEINTR(connect func() error) error {
	for first := true; ; first = false {
		err := connect()
		switch {
		case err == unix.EINTR || err == unix.EALREADY:
			continue
		case err == unix.EISCONN && !first:
			return nil
		}
		return err
	}
}
