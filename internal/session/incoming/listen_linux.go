package incoming

import (
	"context"
	"fmt"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/fault"
	"github.com/stead-dev/stead/internal/inet"
	"github.com/stead-dev/stead/internal/intercept"
	"github.com/stead-dev/stead/internal/wire"
)

// Bind answers bind(2). The kernel runs it as it stands where it can; a port that the laptop does
// not give is exchanged, and an address that is the pod's becomes any.
func (r *Room) Bind(s *intercept.Socket, at netip.AddrPort) intercept.Outcome {
	if s.Family == unix.AF_INET && !at.Addr().Is4() {
		return intercept.Continue
	}
	if s.Type == unix.SOCK_DGRAM {
		return r.bindUDP(s, at)
	}
	if s.Type != unix.SOCK_STREAM {
		return intercept.Continue
	}
	bind := func(a netip.Addr, port uint16) error {
		return unix.Bind(s.FD, inet.ToUnix(s.Family, netip.AddrPortFrom(a, port)))
	}
	here := at.Addr()
	err := bind(here, at.Port())
	if err == unix.EADDRNOTAVAIL { // not one of the laptop's addresses: the pod's
		here = inet.Any(s.Family == unix.AF_INET6)
		if err = bind(here, at.Port()); err == nil {
			r.believe(s, at)
		}
	}
	switch err {
	case nil:
		return intercept.Outcome{}
	case unix.EADDRINUSE, unix.EACCES:
	default:
		return intercept.Fail(err.(unix.Errno))
	}
	// Where another socket of the program's had that port exchanged the same one is tried, so that the
	// kernel says how the two get along, and shares connections out.
	r.mu.Lock()
	own, given := r.here[at.Port()], r.given[at.Port()]
	r.mu.Unlock()
	if own {
		return intercept.Fail(unix.EADDRINUSE) // as in the pod
	}
	if given != 0 {
		if bind(here, given) == nil {
			r.believe(s, at)
			return intercept.Outcome{}
		}
		if _, own := r.OwnTCP(at.Port()); own {
			return intercept.Fail(unix.EADDRINUSE)
		}
	}
	if err := bind(here, 0); err != nil {
		return intercept.Fail(err.(unix.Errno))
	}
	given = r.believe(s, at)
	r.mu.Lock()
	r.given[at.Port()] = given
	r.mu.Unlock()
	r.c.Notice(fmt.Sprintf("port %d of the laptop is taken or privileged: on the laptop the program listens on %d instead", at.Port(), given))
	return intercept.Outcome{}
}

// believe notes that the program is to see the address that it asked for; it returns the port that it
// really has.
func (r *Room) believe(s *intercept.Socket, at netip.AddrPort) uint16 {
	sa, err := unix.Getsockname(s.FD)
	if err != nil {
		return 0
	}
	real := inet.FromUnix(sa).Port()
	if at.Port() == 0 {
		at = netip.AddrPortFrom(at.Addr(), real)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.bound[s.Cookie] = at
	return real
}

// Leaves is told that the program connects a socket: its names are another room's from now on.
func (r *Room) Leaves(s *intercept.Socket) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.bound, s.Cookie)
}

// bindUDP notes the port, so that datagrams to the program itself stay on the laptop.
func (r *Room) bindUDP(s *intercept.Socket, at netip.AddrPort) intercept.Outcome {
	if at.Addr().IsUnspecified() || at.Addr().Unmap().IsLoopback() {
		if err := unix.Bind(s.FD, inet.ToUnix(s.Family, at)); err != nil {
			return intercept.Fail(err.(unix.Errno))
		}
	} else {
		err := unix.Bind(s.FD, inet.ToUnix(s.Family, at))
		if err == unix.EADDRNOTAVAIL {
			any := inet.Any(s.Family == unix.AF_INET6)
			err = unix.Bind(s.FD, inet.ToUnix(s.Family, netip.AddrPortFrom(any, at.Port())))
		}
		if err != nil {
			return intercept.Fail(err.(unix.Errno))
		}
	}
	r.noteUDP(s)
	return intercept.Outcome{}
}

func (r *Room) noteUDP(s *intercept.Socket) {
	var st unix.Stat_t
	sa, err := unix.Getsockname(s.FD)
	if err != nil || unix.Fstat(s.FD, &st) != nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.udp[inet.FromUnix(sa).Port()] = st.Ino
}

// Answerable is told of a datagram socket that speaks to another one of the program's, which may answer:
// it is bound and noted now, because the kernel would bind it in the call and tell nobody.
func (r *Room) Answerable(s *intercept.Socket) {
	sa, err := unix.Getsockname(s.FD)
	if err == nil && inet.FromUnix(sa).Port() == 0 {
		_ = unix.Bind(s.FD, inet.ToUnix(s.Family, netip.AddrPortFrom(inet.Any(s.Family == unix.AF_INET6), 0)))
	}
	r.noteUDP(s)
}

// Listen answers listen(2): the socket listens first, so that no connection comes too early, then
// the port's connections are asked for, and the call returns when they come.
func (r *Room) Listen(s *intercept.Socket, backlog int) intercept.Outcome {
	if s.Type != unix.SOCK_STREAM {
		return intercept.Continue
	}
	if err := unix.Listen(s.FD, backlog); err != nil {
		return intercept.Fail(err.(unix.Errno))
	}
	sa, err := unix.Getsockname(s.FD)
	var st unix.Stat_t
	if err != nil || unix.Fstat(s.FD, &st) != nil {
		return intercept.Outcome{}
	}
	local := inet.FromUnix(sa)
	r.mu.Lock()
	believed := local.Port()
	if at, ok := r.bound[s.Cookie]; ok {
		believed = at.Port()
	}
	r.here[local.Port()] = true
	l := listener{at: reach(local, v6only(s)), ipv6: s.Family == unix.AF_INET6}
	p := r.ports[believed]
	if p != nil { // another family, SO_REUSEPORT, or a second listen
		p.listeners[st.Ino] = l
		r.mu.Unlock()
		return intercept.Outcome{}
	}
	r.mu.Unlock()
	if r.c.Mode == "" {
		return intercept.Outcome{}
	}
	p = &port{listeners: map[uint64]listener{st.Ino: l}}
	return intercept.Outcome{Later: func(ctx context.Context) intercept.Outcome { return r.subscribe(ctx, believed, p) }}
}

func (r *Room) subscribe(ctx context.Context, number uint16, p *port) intercept.Outcome {
	r.mu.Lock()
	if r.ports[number] != nil {
		r.mu.Unlock()
		return intercept.Outcome{}
	}
	r.ports[number] = p // before the first connection can come
	r.mu.Unlock()
	sub, reply, err := r.c.Pod.Subscribe(ctx, wire.Subscribe{Network: "tcp", Port: number, Mode: r.c.Mode, Probes: r.c.Probes[number]})
	if err == nil && reply.Errno == 0 {
		r.mu.Lock()
		p.sub = sub
		r.mu.Unlock()
		return intercept.Outcome{}
	}
	r.mu.Lock()
	delete(r.ports, number)
	r.mu.Unlock()
	switch {
	case err != nil && ctx.Err() != nil:
		return intercept.Fail(unix.EINTR)
	case err != nil:
		r.c.Trouble(fmt.Errorf("%s port %d of the pod: %w", r.c.Mode, number, err))
		return intercept.Outcome{} // it still serves the laptop
	}
	errno := unix.Errno(reply.Errno)
	cause := reply.Error
	if cause == "" {
		cause = errno.Error()
	}
	r.c.Trouble(fault.With(fmt.Errorf("%s port %d of the pod: %s", r.c.Mode, number, cause), reply.Hint))
	if errno == unix.EADDRINUSE {
		return intercept.Fail(errno)
	}
	return intercept.Outcome{}
}

// reach is the address at which a listener bound to local is reached from the laptop itself.
func reach(local netip.AddrPort, only6 bool) netip.AddrPort {
	a := local.Addr()
	if a == netip.IPv6Unspecified() {
		a = inet.Loopback(only6) // IPv4's where it can be, for it has more addresses
	}
	if a = a.Unmap(); a == netip.IPv4Unspecified() {
		a = inet.Loopback(false)
	}
	return netip.AddrPortFrom(a, local.Port())
}

func v6only(s *intercept.Socket) bool {
	v, err := unix.GetsockoptInt(s.FD, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY)
	return err == nil && v != 0
}

// noteLeg binds our socket and tells its address before it connects.
func noteLeg(source netip.Addr, note func(netip.AddrPort)) func(context.Context, string, string, syscall.RawConn) error {
	return func(_ context.Context, _, _ string, c syscall.RawConn) error {
		var err error
		cerr := c.Control(func(fd uintptr) {
			family := unix.AF_INET
			if source.Is6() {
				family = unix.AF_INET6
			}
			if err = unix.Bind(int(fd), inet.ToUnix(family, netip.AddrPortFrom(source, 0))); err != nil {
				return
			}
			var sa unix.Sockaddr
			if sa, err = unix.Getsockname(int(fd)); err == nil {
				note(inet.FromUnix(sa))
			}
		})
		if cerr != nil {
			return cerr
		}
		return err
	}
}

// Accepted gives the peer that the program is to see.
func (r *Room) Accepted(s *intercept.Socket, from netip.AddrPort) netip.AddrPort {
	if in, ok := r.Client(from); ok {
		return inet.Shape(s.Family, in.Remote)
	}
	return from
}

// PeerName answers for a connection that came from the pod; ok is false for any other socket.
func (r *Room) PeerName(s *intercept.Socket) (netip.AddrPort, bool) {
	in, ok := r.caught(s)
	return inet.Shape(s.Family, in.Remote), ok
}

// SockName answers for a connection that came from the pod, and for a listener whose port was
// exchanged.
func (r *Room) SockName(s *intercept.Socket) (netip.AddrPort, bool) {
	if in, ok := r.caught(s); ok {
		return inet.Shape(s.Family, in.Local), true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	at, ok := r.bound[s.Cookie]
	return at, ok
}

// caught finds the connection by our end of its leg, which is the socket's real peer.
func (r *Room) caught(s *intercept.Socket) (wire.Incoming, bool) {
	if s.Type != unix.SOCK_STREAM {
		return wire.Incoming{}, false
	}
	sa, err := unix.Getpeername(s.FD)
	if err != nil {
		return wire.Incoming{}, false
	}
	return r.Client(inet.FromUnix(sa))
}

// watchEvery is how often the program's listeners are looked for: nobody tells us of a close.
const watchEvery = time.Second

// watch gives back the ports on which the program listens no more.
func (r *Room) watch() {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case <-r.ctx.Done():
			return
		case <-tick.C:
		}
		r.mu.Lock()
		idle := len(r.ports) == 0 && len(r.udp) == 0 && len(r.here) == 0
		r.mu.Unlock()
		if !idle {
			r.sweep()
		}
	}
}

func (r *Room) sweep() {
	listening, inodes, udp := make(map[uint16]bool), make(map[uint64]bool), make(map[uint64]bool)
	err := inet.Sockets("tcp", func(s inet.Row) {
		listening[s.Port], inodes[s.Inode] = true, true
	})
	if err != nil || inet.Sockets("udp", func(s inet.Row) { udp[s.Inode] = true }) != nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for n, p := range r.ports {
		alive := false
		for ino := range p.listeners {
			if inodes[ino] {
				alive = true
			} else {
				delete(p.listeners, ino)
			}
		}
		if !alive && p.sub != nil {
			p.sub.Close()
			delete(r.ports, n)
		}
	}
	for n := range r.here {
		if !listening[n] {
			delete(r.here, n)
		}
	}
	for n, ino := range r.udp {
		if !udp[ino] {
			delete(r.udp, n)
		}
	}
}
