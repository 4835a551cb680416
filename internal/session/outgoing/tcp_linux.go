package outgoing

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
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
		if k.state == pending && !s.Nonblock {
			r.mu.Unlock()
			return intercept.Outcome{Later: func(ctx context.Context) intercept.Outcome { return r.await(ctx, s, to, k) }}
		}
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
		if d.To.Port() != to.Port() {
			return r.connectOwn(s, netip.AddrPortFrom(to.Addr(), d.To.Port()))
		}
		return intercept.Continue
	}
	ask := wire.Dial{Network: "tcp", To: d.To, Bind: r.bound(s)}
	if s.Nonblock && s.Protocol == unix.IPPROTO_TCP {
		return r.connectSoon(s, to, ask)
	}
	return intercept.Outcome{Later: func(ctx context.Context) intercept.Outcome { return r.connectNow(ctx, s, to, ask) }}
}

// connectOwn connects to a listener of the program's by its address on the laptop.
func (r *Room) connectOwn(s *intercept.Socket, real netip.AddrPort) intercept.Outcome {
	target := inet.ToUnix(s.Family, real)
	if s.Nonblock {
		return outcome(unix.Connect(s.FD, target))
	}
	return intercept.Outcome{Later: func(ctx context.Context) intercept.Outcome {
		err := begin(s, target)
		for err == unix.EINPROGRESS || err == unix.EALREADY { // its queue is full
			if !pause(ctx) {
				return intercept.Fail(unix.EINTR)
			}
			err = begin(s, target)
		}
		return outcome(err)
	}}
}

func outcome(err error) intercept.Outcome {
	errno, _ := err.(unix.Errno)
	return intercept.Fail(errno)
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

// answer is the pod's to a dial.
type answer struct {
	stream tunnel.Stream
	reply  wire.Reply
	err    error
}

// dial asks the pod for a connection. The answer is to be taken, with leave if by nobody else.
func (r *Room) dial(ask wire.Dial) (got chan answer, end context.CancelFunc) {
	got = make(chan answer, 1)
	ctx, end := context.WithCancel(r.ctx)
	r.work.Add(1)
	go func() {
		defer r.work.Done()
		defer end()
		stream, reply, err := r.c.Pod.Dial(ctx, ask)
		got <- answer{stream, reply, err}
	}()
	return got, end
}

// leave ends a dial whose answer nobody wants.
func (r *Room) leave(got <-chan answer, end context.CancelFunc) {
	end()
	r.work.Add(1)
	go func() {
		defer r.work.Done()
		if a := <-got; a.stream != nil {
			a.stream.Reset(0)
		}
	}()
}

// connectNow holds the call until the pod has answered. When a signal or SO_SNDTIMEO ends the call before,
// it is as in a kernel: the socket goes on connecting.
func (r *Room) connectNow(ctx context.Context, s *intercept.Socket, to netip.AddrPort, ask wire.Dial) intercept.Outcome {
	got, end := r.dial(ask)
	timeout, stop := sendTimeout(s)
	defer stop()
	var a answer
	errno := unix.Errno(0)
	select {
	case a = <-got:
	case <-ctx.Done():
		errno = unix.EINTR
	case <-timeout:
		errno = unix.EINPROGRESS
	}
	if errno != 0 {
		if s.Protocol != unix.IPPROTO_TCP || r.pend(s, to, ask, got) != unix.EINPROGRESS {
			r.leave(got, end)
		}
		return intercept.Fail(errno)
	}
	switch {
	case a.err != nil:
		r.trouble(ask, a.err)
		return intercept.Fail(errLost)
	case a.reply.Errno != 0:
		return intercept.Fail(unix.Errno(a.reply.Errno))
	}
	k := &sock{cookie: s.Cookie, state: connected, peer: inet.Shape(s.Family, ask.To), local: inet.Shape(s.Family, a.reply.Local)}
	l, target := r.relayFor(s, to)
	if l == nil {
		a.stream.Reset(0)
		return intercept.Fail(unix.EADDRNOTAVAIL)
	}
	conn, errno := l.join(s, target)
	if errno != 0 {
		a.stream.Reset(0)
		return intercept.Fail(errno)
	}
	r.mu.Lock()
	r.setLocked(k)
	r.mu.Unlock()
	r.relay(k, conn, a.stream)
	return intercept.Outcome{}
}

// sendTimeout is SO_SNDTIMEO of a blocking socket, which bounds its connect.
func sendTimeout(s *intercept.Socket) (timeout <-chan time.Time, stop func() bool) {
	tv, err := unix.GetsockoptTimeval(s.FD, unix.SOL_SOCKET, unix.SO_SNDTIMEO)
	if err != nil || tv.Sec == 0 && tv.Usec == 0 || s.Nonblock {
		return nil, func() bool { return false }
	}
	t := time.NewTimer(time.Duration(tv.Nano()))
	return t.C, t.Stop
}

// await holds a connect of a socket that is connecting already: it was interrupted, and comes again.
func (r *Room) await(ctx context.Context, s *intercept.Socket, to netip.AddrPort, k *sock) intercept.Outcome {
	timeout, stop := sendTimeout(s)
	defer stop()
	select {
	case <-k.done:
		r.mu.Lock()
		known := r.socks[s.Cookie] == k
		r.mu.Unlock()
		if !known {
			return intercept.Fail(unix.ETIMEDOUT) // the laptop's kernel gave up before the pod's
		}
		return r.connectTCP(s, to)
	case <-ctx.Done():
		return intercept.Fail(unix.EINTR)
	case <-timeout:
		return intercept.Fail(unix.EALREADY)
	}
}

// connectSoon sends the program's socket into SYN_SENT and returns EINPROGRESS.
func (r *Room) connectSoon(s *intercept.Socket, to netip.AddrPort, ask wire.Dial) intercept.Outcome {
	return intercept.Fail(r.pend(s, to, ask, nil))
}

// pend sends the program's socket into SYN_SENT, where it stays until the pod's answer comes; EINPROGRESS
// is success. got is where that comes, nil where the pod has not been asked yet.
func (r *Room) pend(s *intercept.Socket, to netip.AddrPort, ask wire.Dial, got <-chan answer) unix.Errno {
	hole, target := r.holeFor(s, to)
	if hole == nil {
		return unix.EADDRNOTAVAIL
	}
	if err := begin(s, target); err != unix.EINPROGRESS {
		if err == nil {
			err = unix.ECONNREFUSED // cannot be: the hole's queue is full
		}
		return err.(unix.Errno)
	}
	sa, err := unix.Getsockname(s.FD)
	if err != nil {
		return unix.ENOBUFS
	}
	leg := inet.FromUnix(sa)
	leg = inet.Unmap(leg)
	k := &sock{
		cookie: s.Cookie, family: s.Family, state: pending, peer: inet.Shape(s.Family, ask.To),
		local: inet.Shape(s.Family, r.localFor(ask.To.Addr(), leg.Port())),
		done:  make(chan struct{}),
	}
	r.mu.Lock()
	r.setLocked(k)
	r.legs[leg] = k
	r.mu.Unlock()
	if got == nil {
		got, _ = r.dial(ask)
	}
	again := s.Again
	r.work.Add(1)
	go func() {
		defer r.work.Done()
		defer close(k.done)
		r.complete(k, hole, leg, ask, <-got, again)
	}()
	return unix.EINPROGRESS
}

// begin is connect(2) that does not wait, whatever the socket's flags, which are others' too.
func begin(s *intercept.Socket, target unix.Sockaddr) error {
	if s.Nonblock {
		return unix.Connect(s.FD, target)
	}
	old, err := unix.GetsockoptTimeval(s.FD, unix.SOL_SOCKET, unix.SO_SNDTIMEO)
	if err != nil {
		return err
	}
	if err := unix.SetsockoptTimeval(s.FD, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Usec: 1}); err != nil {
		return err
	}
	defer unix.SetsockoptTimeval(s.FD, unix.SOL_SOCKET, unix.SO_SNDTIMEO, old)
	if err = unix.Connect(s.FD, target); err == unix.EINTR {
		err = unix.EINPROGRESS
	}
	return err
}

// complete ends a pending connect with the pod's answer.
func (r *Room) complete(k *sock, hole *blackhole, leg netip.AddrPort, ask wire.Dial, a answer, again func() (int, error)) {
	errno := unix.Errno(a.reply.Errno)
	if a.err != nil {
		r.trouble(ask, a.err)
		errno = errLost
	}
	r.mu.Lock()
	// A closed socket's port may be another's by now, whose connect is not this one.
	still := r.legs[leg] == k
	if still {
		delete(r.legs, leg)
	}
	if still && errno == 0 {
		k.state, k.local = connected, inet.Shape(k.family, a.reply.Local)
	}
	r.mu.Unlock()
	if errno != 0 {
		r.fail(k, errno, again)
		return
	}
	if still {
		if conn, err := hole.open(leg); err == nil {
			r.relay(k, conn, a.stream)
			return
		}
	}
	a.stream.Reset(0) // the program has closed its socket
	r.forget(k)
}

// fail ends a pending connect with the pod's errno. The errno is noted first: the program asks
// for it as soon as the shutdown wakes it.
func (r *Room) fail(k *sock, errno unix.Errno, again func() (int, error)) {
	r.mu.Lock()
	still := r.socks[k.cookie] == k // else it was dissolved, and may connect elsewhere by now
	if still {
		k.state, k.errno, k.since = failed, errno, time.Now()
		r.dead = append(r.dead, k)
	}
	r.mu.Unlock()
	if !still {
		return
	}
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
