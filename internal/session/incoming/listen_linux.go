package incoming

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
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
	switch {
	case s.Family == unix.AF_INET && !at.Addr().Is4():
		return intercept.Continue
	case at.Addr().IsLinkLocalUnicast(): // which has a scope, that of an interface of the laptop's
		return intercept.Continue
	case s.Type != unix.SOCK_STREAM && s.Type != unix.SOCK_DGRAM:
		return intercept.Continue
	}
	real := at
	err := bind(s, real)
	if err == unix.EADDRNOTAVAIL && r.c.PodAddr(at.Addr().Unmap()) {
		real = netip.AddrPortFrom(inet.Any(s.Family == unix.AF_INET6), at.Port())
		err = bind(s, real)
	}
	if s.Type == unix.SOCK_STREAM && (err == unix.EADDRINUSE || err == unix.EACCES) {
		real, err = r.exchange(s, real)
	}
	if err != nil {
		return intercept.Fail(err.(unix.Errno))
	}
	r.name(s, at, real)
	return intercept.Outcome{}
}

func bind(s *intercept.Socket, at netip.AddrPort) error {
	return unix.Bind(s.FD, inet.ToUnix(s.Family, at))
}

// exchange binds s to another port than that of at, which the laptop does not give.
func (r *Room) exchange(s *intercept.Socket, at netip.AddrPort) (real netip.AddrPort, err error) {
	r.mu.Lock()
	own, given := !r.here[at.Port()].IsZero(), r.given[at.Port()]
	r.mu.Unlock()
	if own {
		return at, unix.EADDRINUSE // as in the pod
	}
	if given != 0 {
		// Where another socket of the program's had that port exchanged the same one is tried, so that
		// the kernel says how the two get along, and shares connections out.
		real = netip.AddrPortFrom(at.Addr(), given)
		if bind(s, real) == nil {
			return real, nil
		}
		if _, own := r.OwnTCP(at.Port()); own {
			return at, unix.EADDRINUSE
		}
	}
	real = netip.AddrPortFrom(at.Addr(), 0)
	return real, bind(s, real)
}

// name notes what is to be known of a socket that asked for at and was bound to real.
func (r *Room) name(s *intercept.Socket, at, real netip.AddrPort) {
	if at == real && s.Type == unix.SOCK_STREAM {
		return
	}
	var st unix.Stat_t
	sa, err := unix.Getsockname(s.FD)
	if err != nil || unix.Fstat(s.FD, &st) != nil {
		return
	}
	port, now := inet.FromUnix(sa).Port(), time.Now()
	exchanged := at.Port() != 0 && at.Port() != port
	if exchanged {
		r.c.Notice(fmt.Sprintf("port %d of the laptop is taken or privileged: on the laptop the program listens on %d instead", at.Port(), port))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if exchanged {
		r.given[at.Port()] = port
	}
	if s.Type == unix.SOCK_DGRAM { // datagrams to the program itself stay on the laptop
		r.udp[s.Cookie] = bound{inode: st.Ino, since: now, port: port}
	}
	if at == real {
		return
	}
	if at.Port() == 0 {
		at = netip.AddrPortFrom(at.Addr(), port)
	}
	r.named[s.Cookie] = bound{inode: st.Ino, since: now, port: port, kind: s.Type, at: at}
}

// Leaves is told that the program connects a socket: its names are another room's from now on.
func (r *Room) Leaves(s *intercept.Socket) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.named, s.Cookie)
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
	if b, ok := r.named[s.Cookie]; ok {
		believed = b.at.Port()
	}
	now := time.Now()
	r.here[local.Port()] = now
	l := listener{at: inet.Reach(local, inet.V6Only(s.FD)), ipv6: s.Family == unix.AF_INET6, since: now}
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
	return intercept.Outcome{Later: func(ctx context.Context) intercept.Outcome {
		ctx, cancel := intercept.Patient(ctx)
		defer cancel()
		return r.subscribe(ctx, believed, p)
	}}
}

func (r *Room) subscribe(ctx context.Context, number uint16, p *port) intercept.Outcome {
	r.mu.Lock()
	if r.ports[number] != nil || r.released {
		r.mu.Unlock()
		return intercept.Outcome{}
	}
	r.ports[number] = p // before the first connection can come
	r.mu.Unlock()
	sub, reply, err := r.c.Pod.Subscribe(ctx, wire.Subscribe{Network: "tcp", Port: number, Mode: r.c.Mode, Probes: r.c.Probes[number]})
	given := err == nil && reply.Errno == 0
	r.mu.Lock()
	switch wanted := r.ports[number] == p; {
	case given && wanted:
		p.sub = sub
	case given: // released meanwhile
		defer sub.Close()
	case wanted:
		delete(r.ports, number)
	}
	r.mu.Unlock()
	switch {
	case given:
		return intercept.Outcome{}
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

// PeerName answers for a connection that came from the pod, and for one of the program's to a port of its
// own that was exchanged; ok is false for any other socket.
func (r *Room) PeerName(s *intercept.Socket) (netip.AddrPort, bool) {
	if in, ok := r.caught(s); ok {
		return inet.Shape(s.Family, in.Remote), true
	}
	return r.asked(s, unix.Getpeername)
}

// SockName answers for a connection that came from the pod, and for a socket that is bound to something
// else than it asked for, or was accepted by one.
func (r *Room) SockName(s *intercept.Socket) (netip.AddrPort, bool) {
	if in, ok := r.caught(s); ok {
		return inet.Shape(s.Family, in.Local), true
	}
	r.mu.Lock()
	b, ok := r.named[s.Cookie]
	r.mu.Unlock()
	if ok {
		return b.at, true
	}
	return r.asked(s, unix.Getsockname)
}

// asked is a name of a socket's with the port that the program asked for, where that was exchanged.
func (r *Room) asked(s *intercept.Socket, name func(fd int) (unix.Sockaddr, error)) (at netip.AddrPort, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.given) == 0 || s.Type != unix.SOCK_STREAM {
		return at, false
	}
	sa, err := name(s.FD)
	if err != nil {
		return at, false
	}
	at = inet.FromUnix(sa)
	for n, real := range r.given {
		if at.Port() == real {
			return netip.AddrPortFrom(at.Addr(), n), true
		}
	}
	return at, false
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

const (
	// heardTime is how long the answers to a datagram may take, or the next one may be in coming.
	heardTime = 5 * time.Minute
	maxHeard  = 10000
	linksAge  = 10 * time.Second
)

// ReceivesAny says whether the program has bound a UDP socket.
func (r *Room) ReceivesAny() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.udp) > 0
}

// ReceivesFor says whether s is a UDP socket that the program bound: Hear wants to know its datagrams.
func (r *Room) ReceivesFor(s *intercept.Socket) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, ok := r.udp[s.Cookie]
	return ok
}

// Hear is told that a datagram from the laptop reached the program, so that the answers find the way back.
// One that claims to come from further than the laptop's own networks is nobody's to send there: it could
// claim to come from the pod's nameserver.
func (r *Room) Hear(from netip.AddrPort) {
	r.mu.Lock()
	defer r.mu.Unlock()
	from = inet.Unmap(from)
	if len(r.heard) < maxHeard && r.nearLocked(from.Addr()) {
		r.heard[from] = time.Now()
	}
}

// nearLocked says whether an address is the laptop's or in one of the networks that it is in.
func (r *Room) nearLocked(a netip.Addr) bool {
	if a.IsLoopback() {
		return true
	}
	if time.Since(r.linked) > linksAge {
		r.linked, r.links = time.Now(), nil
		addrs, _ := net.InterfaceAddrs()
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				r.links = append(r.links, p)
			}
		}
	}
	return slices.ContainsFunc(r.links, func(p netip.Prefix) bool { return p.Contains(a.WithZone("")) })
}

// Heard says whether a datagram from there has reached the program on the laptop.
func (r *Room) Heard(from netip.AddrPort) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	from = inet.Unmap(from)
	_, ok := r.heard[from]
	if ok {
		r.heard[from] = time.Now()
	}
	return ok
}

// listenTime is how long after its bind a socket may begin to listen or to connect.
const listenTime = 10 * time.Minute

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
		idle := len(r.ports) == 0 && len(r.udp) == 0 && len(r.here) == 0 && len(r.named) == 0 && len(r.heard) == 0
		r.mu.Unlock()
		if !idle {
			r.sweep()
		}
	}
}

// listensHere asks the kernel whether anybody of this machine listens on the TCP port.
func listensHere(port uint16) (yes bool) {
	err := inet.Sockets("tcp", func(s inet.Row) { yes = yes || s.Port == port })
	return yes || err != nil
}

func (r *Room) sweep() {
	if t, err := look(); err == nil {
		r.giveBack(t)
	}
}

// tables are the sockets of the laptop, as the kernel tells them. What came after at may be missing.
type tables struct {
	at        time.Time
	listening map[uint16]bool
	tcp, udp  map[uint64]bool // inodes
}

func look() (tables, error) {
	t := tables{at: time.Now(), listening: make(map[uint16]bool), tcp: make(map[uint64]bool), udp: make(map[uint64]bool)}
	err := inet.Sockets("tcp", func(s inet.Row) {
		t.listening[s.Port], t.tcp[s.Inode] = true, true
	})
	if err == nil {
		err = inet.Sockets("udp", func(s inet.Row) { t.udp[s.Inode] = true })
	}
	return t, err
}

// giveBack forgets what is not there any more.
func (r *Room) giveBack(t tables) {
	gone := func(there bool, since time.Time) bool { return !there && since.Before(t.at) }
	r.mu.Lock()
	defer r.mu.Unlock()
	for n, p := range r.ports {
		for ino, l := range p.listeners {
			if gone(t.tcp[ino], l.since) {
				delete(p.listeners, ino)
			}
		}
		if len(p.listeners) == 0 && p.sub != nil {
			p.sub.Close()
			delete(r.ports, n)
		}
	}
	for n, since := range r.here {
		if gone(t.listening[n], since) {
			delete(r.here, n)
		}
	}
	for c, u := range r.udp {
		if gone(t.udp[u.inode], u.since) {
			delete(r.udp, c)
		}
	}
	maps.DeleteFunc(r.heard, func(_ netip.AddrPort, last time.Time) bool { return last.Before(t.at.Add(-heardTime)) })
	for c, b := range r.named {
		since := b.since
		if b.kind == unix.SOCK_STREAM { // the tables have those that listen
			since = since.Add(listenTime)
		}
		if gone(t.tcp[b.inode] || t.udp[b.inode], since) {
			delete(r.named, c)
		}
	}
	maps.DeleteFunc(r.given, func(n, real uint16) bool {
		for _, b := range r.named {
			if b.at.Port() == n && b.port == real {
				return false
			}
		}
		return true
	})
}
