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
	if s.Type != unix.SOCK_STREAM || at.Port() == 0 {
		return intercept.Continue
	}
	err := unix.Bind(s.FD, inet.ToUnix(s.Family, at))
	if err == unix.EADDRNOTAVAIL { // not one of the laptop's addresses: the pod's
		any := inet.Any(s.Family == unix.AF_INET6)
		err = unix.Bind(s.FD, inet.ToUnix(s.Family, netip.AddrPortFrom(any, at.Port())))
		at = netip.AddrPortFrom(any, at.Port())
		if err == nil {
			return intercept.Outcome{}
		}
	}
	switch err {
	case nil:
		return intercept.Outcome{}
	case unix.EADDRINUSE, unix.EACCES:
		if r.OwnTCP(at.Port()) {
			return intercept.Fail(unix.EADDRINUSE) // the program's own listener: as in the pod
		}
	default:
		return intercept.Fail(err.(unix.Errno))
	}
	if err := unix.Bind(s.FD, inet.ToUnix(s.Family, netip.AddrPortFrom(at.Addr(), 0))); err != nil {
		return intercept.Fail(err.(unix.Errno))
	}
	r.mu.Lock()
	r.bound[s.Cookie] = at
	r.mu.Unlock()
	sa, _ := unix.Getsockname(s.FD)
	r.c.Notice(fmt.Sprintf("port %d of the laptop is taken or privileged: on the laptop the program listens on %d instead", at.Port(), inet.FromUnix(sa).Port()))
	return intercept.Outcome{}
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
	var st unix.Stat_t
	sa, err := unix.Getsockname(s.FD)
	if err != nil || unix.Fstat(s.FD, &st) != nil {
		return intercept.Outcome{}
	}
	r.mu.Lock()
	r.udp[inet.FromUnix(sa).Port()] = st.Ino
	r.mu.Unlock()
	return intercept.Outcome{}
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
	p := r.ports[believed]
	if p != nil { // SO_REUSEPORT, or a second listen
		p.inodes[st.Ino] = true
		p.local = reach(local)
		r.mu.Unlock()
		return intercept.Outcome{}
	}
	r.mu.Unlock()
	if r.c.Mode == "" {
		return intercept.Outcome{}
	}
	p = &port{local: reach(local), inodes: map[uint64]bool{st.Ino: true}}
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
func reach(local netip.AddrPort) netip.AddrPort {
	a := local.Addr()
	switch {
	case a == netip.IPv6Unspecified():
		// An IPv6 wildcard takes IPv4 too unless it is V6ONLY; ::1 is right for both.
		a = inet.Loopback(true)
	case a.IsUnspecified():
		a = inet.Loopback(false)
	case a.Is4In6():
		a = a.Unmap()
		if a.IsUnspecified() {
			a = inet.Loopback(false)
		}
	}
	return netip.AddrPortFrom(a, local.Port())
}

// noteLeg binds our socket and tells its address before it connects.
func noteLeg(note func(netip.AddrPort), to netip.Addr) func(context.Context, string, string, syscall.RawConn) error {
	return func(_ context.Context, _, _ string, c syscall.RawConn) error {
		var err error
		cerr := c.Control(func(fd uintptr) {
			family := unix.AF_INET
			if to.Is6() {
				family = unix.AF_INET6
			}
			at := inet.Loopback(false)
			if to.Is6() {
				at = inet.Loopback(true)
			}
			if !to.IsLoopback() {
				at = to // an address of the laptop's: from itself
			}
			if err = unix.Bind(int(fd), inet.ToUnix(family, netip.AddrPortFrom(at, 0))); err != nil {
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

// listens asks the kernel whether anybody of this machine listens on the TCP port.
func listens(port uint16) (yes bool) {
	err := inet.Sockets("tcp", func(s inet.Row) { yes = yes || s.Port == port })
	return yes || err != nil
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
		for ino := range p.inodes {
			if inodes[ino] {
				alive = true
			} else {
				delete(p.inodes, ino)
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
