package outgoing

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/inet"
	"github.com/stead-dev/stead/internal/intercept"
	"github.com/stead-dev/stead/internal/policy"
	"github.com/stead-dev/stead/internal/tunnel"
	"github.com/stead-dev/stead/internal/wire"
)

// errLost is the errno for a connection that the tunnel could not ask for.
const errLost = unix.ENETUNREACH

func (r *Room) connectTCP(s *intercept.Socket, to netip.AddrPort) intercept.Outcome {
	if !to.IsValid() { // AF_UNSPEC dissolves a connection
		r.mu.Lock()
		delete(r.socks, s.Cookie)
		r.mu.Unlock()
		return intercept.Continue
	}
	r.mu.Lock()
	if k := r.socks[s.Cookie]; k != nil {
		if k.state != failed {
			r.mu.Unlock()
			return intercept.Continue // EISCONN and EALREADY are the kernel's to say
		}
		// A program may ask for the result by connecting again: it gets the errno once.
		delete(r.socks, s.Cookie)
		if k.errno != 0 {
			r.mu.Unlock()
			_, _ = unix.GetsockoptInt(s.FD, unix.SOL_SOCKET, unix.SO_ERROR)
			return intercept.Fail(k.errno)
		}
	}
	r.mu.Unlock()
	if s.Family == unix.AF_INET && !to.Addr().Is4() {
		return intercept.Continue // EAFNOSUPPORT or EINVAL
	}
	d := r.network.Load().Policy.Destination(to, r.c.OwnTCP)
	if d.Where == policy.Laptop {
		return intercept.Continue
	}
	ask := wire.Dial{Network: "tcp", To: d.To, Bind: r.bound(s), Options: r.options(s, d.To)}
	if s.Nonblock && s.Protocol == unix.IPPROTO_TCP {
		return r.connectSoon(s, to, ask)
	}
	return intercept.Outcome{Later: func(ctx context.Context) intercept.Outcome { return r.connectNow(ctx, s, to, ask) }}
}

// peer is the far end that the program is shown, which is the one that it asked for (a resolver drops what
// another nameserver answers), in the kernel's words: who names no host gets this one.
func peer(to netip.AddrPort) netip.AddrPort {
	a := to.Addr().Unmap().WithZone("")
	if a.IsUnspecified() {
		a = inet.Loopback(a.Is6())
	}
	return netip.AddrPortFrom(a, to.Port())
}

// bound is the local port that the program chose before connect, if it did.
func (r *Room) bound(s *intercept.Socket) netip.AddrPort {
	sa, err := unix.Getsockname(s.FD)
	if err != nil {
		return netip.AddrPort{}
	}
	a := inet.FromUnix(sa)
	if a.Port() == 0 {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(inet.Any(!a.Addr().Unmap().Is4()), a.Port())
}

// options reads what the program has set on its socket. What the kernel tells of TCP_SYNCNT where it is
// not set is the machine's setting.
func (r *Room) options(s *intercept.Socket, to netip.AddrPort) (o wire.Options) {
	if s.Protocol != unix.IPPROTO_TCP {
		return o
	}
	if n, err := unix.GetsockoptInt(s.FD, unix.IPPROTO_TCP, unix.TCP_SYNCNT); err == nil && n != r.synRetries {
		o.SynCount = n
	}
	if n, err := unix.GetsockoptInt(s.FD, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT); err == nil {
		o.UserTimeout = n
	}
	level, option := unix.IPPROTO_IP, unix.IP_TOS
	if to.Addr().Is6() {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_TCLASS
	}
	if n, err := unix.GetsockoptInt(s.FD, level, option); err == nil {
		o.Class = n
	}
	return o
}

// synRetries is the machine's setting of net.ipv4.tcp_syn_retries.
func synRetries() int {
	b, _ := os.ReadFile("/proc/sys/net/ipv4/tcp_syn_retries")
	n, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	return n
}

// connectNow holds the call until the pod has answered. An interrupted one leaves nothing: the
// program's socket is untouched until the pod's connection stands.
func (r *Room) connectNow(ctx context.Context, s *intercept.Socket, to netip.AddrPort, ask wire.Dial) intercept.Outcome {
	caller := ctx
	timeout := false
	if tv, err := unix.GetsockoptTimeval(s.FD, unix.SOL_SOCKET, unix.SO_SNDTIMEO); err == nil && (tv.Sec != 0 || tv.Usec != 0) && !s.Nonblock {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(tv.Nano()))
		defer cancel()
		timeout = true
	}
	stream, reply, err := r.c.Pod.Dial(ctx, ask)
	switch {
	case err != nil && caller.Err() != nil:
		return intercept.Fail(unix.EINTR)
	case err != nil && timeout && errors.Is(err, context.DeadlineExceeded):
		return intercept.Fail(unix.EINPROGRESS) // connect(2): what SO_SNDTIMEO gives
	case err != nil:
		r.trouble(ask, err)
		return intercept.Fail(errLost)
	case reply.Errno != 0:
		return intercept.Fail(unix.Errno(reply.Errno))
	}
	k := &sock{cookie: s.Cookie, state: connected, peer: inet.Shape(s.Family, peer(to)), local: inet.Shape(s.Family, reply.Local)}
	l, target := r.relayFor(s, to)
	if l == nil {
		stream.Reset(0)
		return intercept.Fail(unix.EADDRNOTAVAIL)
	}
	conn, errno := l.join(s, target)
	if errno != 0 {
		stream.Reset(0)
		return intercept.Fail(errno)
	}
	r.mu.Lock()
	r.setLocked(k)
	r.mu.Unlock()
	r.relay(k, conn, stream)
	return intercept.Outcome{}
}

// connectSoon sends the program's socket into SYN_SENT and returns EINPROGRESS.
func (r *Room) connectSoon(s *intercept.Socket, to netip.AddrPort, ask wire.Dial) intercept.Outcome {
	hole, target := r.holeFor(s, to)
	if hole == nil {
		return intercept.Fail(unix.EADDRNOTAVAIL)
	}
	if err := unix.Connect(s.FD, target); err != unix.EINPROGRESS {
		if err == nil {
			err = unix.ECONNREFUSED // cannot be: the hole's queue is full
		}
		return intercept.Fail(err.(unix.Errno))
	}
	sa, err := unix.Getsockname(s.FD)
	if err != nil {
		return intercept.Fail(unix.ENOBUFS)
	}
	leg := inet.FromUnix(sa)
	leg = inet.Unmap(leg)
	k := &sock{
		cookie: s.Cookie, state: pending, peer: inet.Shape(s.Family, peer(to)),
		local: inet.Shape(s.Family, r.localFor(ask.To.Addr(), leg.Port())),
	}
	r.mu.Lock()
	r.setLocked(k)
	r.mu.Unlock()
	again := s.Again
	r.work.Add(1)
	go func() {
		defer r.work.Done()
		stream, reply, err := r.c.Pod.Dial(r.ctx, ask)
		errno := unix.Errno(reply.Errno)
		if err != nil {
			r.trouble(ask, err)
			errno = errLost
		}
		if errno != 0 {
			r.fail(k, errno, again)
			return
		}
		r.mu.Lock()
		k.state, k.local = connected, inet.Shape(s.Family, reply.Local)
		r.mu.Unlock()
		conn, err := hole.open(leg)
		if err != nil { // the program has closed its socket
			stream.Reset(0)
			r.forget(k)
			return
		}
		r.relay(k, conn, stream)
	}()
	return intercept.Fail(unix.EINPROGRESS)
}

// fail ends a pending connect with the pod's errno. The errno is noted first: the program asks
// for it as soon as the shutdown wakes it.
func (r *Room) fail(k *sock, errno unix.Errno, again func() (int, error)) {
	r.mu.Lock()
	k.state, k.errno, k.since = failed, errno, time.Now()
	r.dead = append(r.dead, k)
	r.mu.Unlock()
	fd, err := again()
	if err != nil {
		// Closed, or moved to another descriptor: then the kernel's own time-out ends it.
		return
	}
	defer unix.Close(fd)
	_ = unix.Shutdown(fd, unix.SHUT_RDWR)
}

// relay carries the bytes until both directions have ended. It owns conn and stream.
func (r *Room) relay(k *sock, conn net.Conn, stream tunnel.Stream) {
	r.work.Add(1)
	r.live.Add(1)
	go func() {
		defer r.work.Done()
		defer r.live.Add(-1)
		defer r.forget(k)
		tunnel.Relay(r.ctx, conn, stream)
	}()
}

func (r *Room) trouble(d wire.Dial, err error) {
	if r.ctx.Err() == nil {
		r.c.Trouble(fmt.Errorf("%s connection to %s through the pod: %w", d.Network, d.To, err))
	}
}

// relayFor chooses the listener that a socket of this family can reach, and its address as the
// socket must name it. The family of the socket counts, not that of the address: Java uses IPv6
// sockets for everything.
func (r *Room) relayFor(s *intercept.Socket, to netip.AddrPort) (*listener, unix.Sockaddr) {
	if use6(s, to) && r.relay6 != nil {
		return r.relay6, inet.ToUnix(s.Family, r.relay6.addr)
	}
	if v6only(s) {
		return nil, nil
	}
	return r.relay4, inet.ToUnix(s.Family, r.relay4.addr)
}

func (r *Room) holeFor(s *intercept.Socket, to netip.AddrPort) (*blackhole, unix.Sockaddr) {
	if use6(s, to) && r.hole6 != nil {
		return r.hole6, inet.ToUnix(s.Family, r.hole6.addr)
	}
	if v6only(s) {
		return nil, nil
	}
	return r.hole4, inet.ToUnix(s.Family, r.hole4.addr)
}

// use6 says whether the leg is to be IPv6: the socket is, and the address is no v4-mapped one.
func use6(s *intercept.Socket, to netip.AddrPort) bool {
	return s.Family == unix.AF_INET6 && !to.Addr().Is4In6() && !to.Addr().Is4()
}

func v6only(s *intercept.Socket) bool {
	if s.Family != unix.AF_INET6 {
		return false
	}
	v, err := unix.GetsockoptInt(s.FD, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY)
	return err == nil && v != 0
}

// fileConn turns a socket of ours into a net.Conn, which owns it.
func fileConn(fd int, name string) (net.Conn, error) {
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	return net.FileConn(f)
}
