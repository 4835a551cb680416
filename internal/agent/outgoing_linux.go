package agent

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/inet"
	"github.com/stead-dev/stead/internal/tunnel"
	"github.com/stead-dev/stead/internal/wire"
)

// dial connects from the target's network. The pod's kernel decides how long it takes; a session
// that gives up resets the stream, which ends the attempt.
func (x *session) dial(ctx context.Context, st tunnel.Stream, o *wire.Open) {
	d := o.Dial
	if d == nil || !d.To.IsValid() || d.Network != "tcp" && d.Network != "udp" {
		fail(st, unix.EINVAL)
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c, err := x.s.target.connect(ctx, st, d)
	x.s.c.Log.Debug("a connection leaves", "holder", x.holder, "network", d.Network, "to", d.To, "err", err)
	if err != nil {
		fail(st, err)
		return
	}
	local, _ := addrPortOf(c.LocalAddr())
	if err := wire.Write(st, wire.Reply{Local: local, Remote: d.To}); err != nil {
		c.Close()
		st.Reset(0)
		return
	}
	if d.Network == "tcp" {
		tunnel.Relay(ctx, c, st)
		return
	}
	relayUDP(ctx, c.(*net.UDPConn), st)
}

func addrPortOf(a net.Addr) (netip.AddrPort, bool) {
	switch a := a.(type) {
	case *net.TCPAddr:
		return inet.Unmap(a.AddrPort()), true
	case *net.UDPAddr:
		return inet.Unmap(a.AddrPort()), true
	}
	return netip.AddrPort{}, false
}

// connect makes a socket in the target's network namespace and connects it without occupying a
// thread: what waits is the runtime's poller.
func (t *target) connect(ctx context.Context, st tunnel.Stream, d *wire.Dial) (net.Conn, error) {
	ipv6 := d.To.Addr().Is6()
	kind := unix.SOCK_STREAM
	if d.Network == "udp" {
		kind = unix.SOCK_DGRAM
	}
	fd, err := t.socket(ipv6, kind)
	if err != nil {
		return nil, err
	}
	family := unix.AF_INET
	if ipv6 {
		family = unix.AF_INET6
	}
	if d.Bind.IsValid() && d.Bind.Addr().Unmap().Is6() != ipv6 { // an IPv6 socket that speaks IPv4
		d.Bind = netip.AddrPortFrom(inet.Any(ipv6), d.Bind.Port())
	}
	if d.Bind.IsValid() {
		// The port that the program chose, where it is free here; an address that is not this
		// host's is the laptop's own affair.
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) != nil || unix.Bind(fd, inet.ToUnix(family, d.Bind)) != nil {
			_ = unix.Bind(fd, inet.ToUnix(family, netip.AddrPortFrom(inet.Any(ipv6), 0)))
		}
	}
	if d.Network == "tcp" {
		setOptions(fd, ipv6, d.Options)
	}
	err = unix.Connect(fd, inet.ToUnix(family, d.To))
	if err != nil && err != unix.EINPROGRESS {
		unix.Close(fd)
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "socket in the pod")
	if err == unix.EINPROGRESS {
		if err := t.await(ctx, st, f); err != nil {
			f.Close()
			return nil, err
		}
	}
	defer f.Close()
	return net.FileConn(f)
}

// setOptions gives the socket what the program has set on its own. What the kernel refuses it would
// have refused there, too.
func setOptions(fd int, ipv6 bool, o wire.Options) {
	class := [2]int{unix.IPPROTO_IP, unix.IP_TOS}
	if ipv6 {
		class = [2]int{unix.IPPROTO_IPV6, unix.IPV6_TCLASS}
	}
	for _, x := range []struct{ level, option, value int }{
		{unix.IPPROTO_TCP, unix.TCP_SYNCNT, o.SynCount},
		{unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, o.UserTimeout},
		{class[0], class[1], o.Class},
	} {
		if x.value != 0 {
			_ = unix.SetsockoptInt(fd, x.level, x.option, x.value)
		}
	}
}

func (t *target) socket(ipv6 bool, kind int) (fd int, err error) {
	family := unix.AF_INET
	if ipv6 {
		family = unix.AF_INET6
	}
	err = t.net.Do(func() error {
		fd, err = unix.Socket(family, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		return err
	})
	return fd, err
}

// await waits for a connect to end, for the session to reset the stream, or for ctx.
func (t *target) await(ctx context.Context, st tunnel.Stream, f *os.File) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// The session sends nothing before the reply: what ends this read is a reset, or the end.
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		if _, err := st.Read(make([]byte, 1)); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			cancel()
		}
	}()
	err := connected(ctx, f, time.Time{})
	_ = st.SetReadDeadline(time.Unix(1, 0))
	<-gone
	_ = st.SetReadDeadline(time.Time{})
	return err
}

// connected waits until the pending connect of f has ended and returns its errno; ETIMEDOUT when
// it has not by then (zero: the kernel's own time), ctx's error when that ends first. It occupies
// no thread.
func connected(ctx context.Context, f *os.File, until time.Time) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	_ = f.SetWriteDeadline(until)
	stop := context.AfterFunc(ctx, func() { _ = f.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	var errno int
	werr := raw.Write(func(fd uintptr) bool {
		// Called before the first wait too: ask the socket whether there is something to know.
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		if n, _ := unix.Poll(p, 0); n == 0 {
			return false
		}
		errno, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		return true
	})
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(werr, os.ErrDeadlineExceeded):
		return unix.ETIMEDOUT
	case werr != nil:
		return werr
	case err != nil:
		return err
	case errno != 0:
		return unix.Errno(errno)
	}
	return nil
}
