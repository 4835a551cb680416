package outgoing

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/inet"
	"github.com/stead-dev/stead/internal/intercept"
	"github.com/stead-dev/stead/internal/policy"
	"github.com/stead-dev/stead/internal/tunnel"
	"github.com/stead-dev/stead/internal/wire"
)

// udpTable keeps the program's UDP sockets that speak with the pod's network, by cookie.
//
// Each far end has a relay socket on the loopback: the program's datagrams go there by the kernel,
// and those of the far end come from there, so recvfrom and recvmsg need only the address changed.
// A connected socket has one relay and a connected stream, an unconnected one a relay for each far
// end and one packet stream, hence one port in the pod. A connected one that sends elsewhere too has both;
// it receives nothing from there, as in any kernel.
//
// The end of the program's socket is seen by its inode missing from /proc/net/udp, looked at while
// there is any entry.
type udpTable struct {
	room *Room
	any  atomic.Int32 // number of entries, read without the lock

	mu       sync.Mutex
	byCookie map[uint64]*association
}

// association is one of the program's UDP sockets. Its fields are guarded by udpTable.mu; the
// goroutines that carry datagrams have copies of what they need.
type association struct {
	cookie    uint64
	inode     uint64
	since     time.Time
	family    int
	local     netip.AddrPort // told to the program; the pod's
	here      netip.AddrPort // the program's socket on the loopback
	connected netip.AddrPort // the far end of a connected one
	beside    *association   // of a connected one: its unconnected one
	stream    tunnel.Stream  // to the pod's socket; another one after the pod has ended
	relays    map[netip.AddrPort]*net.UDPConn
	far       map[netip.AddrPort]netip.AddrPort // by relay
	again     func() (int, error)
	stop      context.CancelFunc
	ctx       context.Context

	write sync.Mutex // serializes the writers of stream; taken without udpTable.mu
}

const (
	sweepEvery = 2 * time.Second
	// bindTime is far more than it takes from an association's entry to its socket's first datagram,
	// with which the kernel's table has it.
	bindTime = 500 * time.Millisecond
	// maxRelays bounds the far ends of one unconnected socket; beyond it the first of them is
	// given up, as a NAT would do.
	maxRelays = 512
)

func (u *udpTable) start(r *Room) {
	u.room = r
	u.byCookie = make(map[uint64]*association)
	r.work.Add(1)
	go func() {
		defer r.work.Done()
		tick := time.NewTicker(sweepEvery)
		defer tick.Stop()
		for {
			select {
			case <-r.ctx.Done():
				return
			case <-tick.C:
				if u.any.Load() > 0 {
					u.sweep()
				}
			}
		}
	}()
}

func (u *udpTable) close() {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, a := range u.byCookie {
		u.dropLocked(a)
	}
}

// sweep drops the associations whose socket is gone.
func (u *udpTable) sweep() {
	at := time.Now()
	if live, err := liveUDP(); err == nil {
		u.giveBack(at, live)
	}
}

// giveBack drops those whose socket is not in the kernel's table, which was read at that time. One that
// has just been entered may be missing there: it came later, or it was not bound yet.
func (u *udpTable) giveBack(at time.Time, live map[uint64]bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, a := range u.byCookie {
		if !live[a.inode] && a.since.Before(at.Add(-bindTime)) {
			u.dropLocked(a)
		}
	}
}

// liveUDP returns the inodes of the UDP sockets of this network namespace.
func liveUDP() (map[uint64]bool, error) {
	live := make(map[uint64]bool)
	err := inet.Sockets("udp", func(s inet.Row) { live[s.Inode] = true })
	return live, err
}

func (u *udpTable) dropLocked(a *association) {
	if u.byCookie[a.cookie] == a {
		delete(u.byCookie, a.cookie)
		u.any.Add(-1)
	}
	a.stop()
	if a.stream != nil {
		a.stream.Close()
	}
	for _, c := range a.relays {
		c.Close()
	}
	if a.beside != nil {
		u.dropLocked(a.beside)
	}
}

func (u *udpTable) addLocked(a *association) {
	if old := u.byCookie[a.cookie]; old != nil {
		u.dropLocked(old)
	}
	u.byCookie[a.cookie] = a
	u.any.Add(1)
}

// packetsLocked is the unconnected association of a socket.
func (u *udpTable) packetsLocked(cookie uint64) *association {
	a := u.byCookie[cookie]
	if a != nil && a.connected.IsValid() {
		return a.beside
	}
	return a
}

func (u *udpTable) addPacketsLocked(a *association) {
	if c := u.byCookie[a.cookie]; c != nil {
		c.beside = a
	} else {
		u.addLocked(a)
	}
}

// relayTo is the relay for a far end, where there is one; a may be nil.
func (a *association) relayTo(far netip.AddrPort) *net.UDPConn {
	for ; a != nil; a = a.beside {
		if c := a.relays[far]; c != nil {
			return c
		}
	}
	return nil
}

func (u *udpTable) peerName(cookie uint64) netip.AddrPort {
	u.mu.Lock()
	defer u.mu.Unlock()
	if a := u.byCookie[cookie]; a != nil {
		return a.connected
	}
	return netip.AddrPort{}
}

func (u *udpTable) sockName(cookie uint64) netip.AddrPort {
	u.mu.Lock()
	defer u.mu.Unlock()
	if a := u.byCookie[cookie]; a != nil && a.connected.IsValid() {
		return a.local
	}
	return netip.AddrPort{}
}

// ReceivesAny says whether any socket's datagrams need Source.
func (r *Room) ReceivesAny() bool { return r.udp.any.Load() > 0 }

// ReceivesFor says whether this socket's datagrams need Source.
func (r *Room) ReceivesFor(s *intercept.Socket) bool {
	r.udp.mu.Lock()
	defer r.udp.mu.Unlock()
	return r.udp.byCookie[s.Cookie] != nil
}

// Source gives the far end whose relay from is; ok is false when it is none: from itself is the source.
func (r *Room) Source(s *intercept.Socket, from netip.AddrPort) (far netip.AddrPort, ok bool) {
	r.udp.mu.Lock()
	defer r.udp.mu.Unlock()
	if a := r.udp.byCookie[s.Cookie]; a != nil {
		if far, ok := a.far[inet.Unmap(from)]; ok {
			return inet.Shape(s.Family, far), true
		}
	}
	return from, false
}

func newAssociation(r *Room, s *intercept.Socket) (*association, error) {
	var st unix.Stat_t
	if err := unix.Fstat(s.FD, &st); err != nil {
		return nil, err
	}
	a := &association{
		cookie: s.Cookie, inode: st.Ino, since: time.Now(), family: s.Family, again: s.Again,
		relays: make(map[netip.AddrPort]*net.UDPConn), far: make(map[netip.AddrPort]netip.AddrPort),
	}
	a.ctx, a.stop = context.WithCancel(r.ctx)
	return a, nil
}

// openRelay makes a relay on the loopback for a socket of the family.
func openRelay(s *intercept.Socket, to netip.AddrPort) (*net.UDPConn, error) {
	if use6(s, to) {
		c, err := net.ListenUDP("udp6", net.UDPAddrFromAddrPort(netip.AddrPortFrom(inet.Loopback(true), 0)))
		if err == nil || inet.V6Only(s.FD) {
			return c, err
		}
	}
	return net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(inet.Loopback(false), 0)))
}

func relayAddr(c *net.UDPConn) netip.AddrPort { return c.LocalAddr().(*net.UDPAddr).AddrPort() }

// connectUDP connects a datagram socket. It asks the pod first, for its answer tells a resolver
// which of several addresses can be reached, and from where (RFC 6724).
func (r *Room) connectUDP(s *intercept.Socket, to netip.AddrPort) intercept.Outcome {
	r.udp.mu.Lock()
	old := r.udp.byCookie[s.Cookie]
	if old != nil {
		r.udp.dropLocked(old)
	}
	r.udp.mu.Unlock()
	if !to.IsValid() || s.Family == unix.AF_INET && !to.Addr().Is4() || r.c.Heard(to) {
		return intercept.Continue
	}
	d := r.network.Load().Policy.Destination(to, r.c.OwnUDP)
	if d.Where == policy.Laptop {
		return intercept.Continue
	}
	return intercept.Outcome{Later: func(ctx context.Context) intercept.Outcome {
		ctx, cancel := intercept.Patient(ctx)
		defer cancel()
		ask := wire.Dial{Network: "udp", To: d.To, Bind: r.bound(s)}
		stream, reply, err := r.c.Pod.Dial(ctx, ask)
		switch {
		case err != nil && ctx.Err() != nil:
			return intercept.Fail(unix.EINTR)
		case err != nil:
			r.trouble(ask, err)
			return intercept.Fail(errLost)
		case reply.Errno != 0:
			return intercept.Fail(unix.Errno(reply.Errno))
		}
		if errno := r.joinUDP(s, to, ask, reply.Local, stream); errno != 0 {
			stream.Close()
			return intercept.Fail(errno)
		}
		return intercept.Outcome{}
	}}
}

// joinUDP connects the program's socket and a relay to each other.
func (r *Room) joinUDP(s *intercept.Socket, to netip.AddrPort, ask wire.Dial, local netip.AddrPort, stream tunnel.Stream) unix.Errno {
	far := ask.To
	a, err := newAssociation(r, s)
	if err != nil {
		return unix.EBADF
	}
	relay, err := openRelay(s, to)
	if err != nil {
		a.stop()
		return unix.EADDRNOTAVAIL
	}
	fail := func(err error) unix.Errno {
		relay.Close()
		a.stop()
		if e, ok := err.(unix.Errno); ok {
			return e
		}
		return unix.EADDRNOTAVAIL
	}
	at := relayAddr(relay)
	if err := unix.Connect(s.FD, inet.ToUnix(s.Family, at)); err != nil {
		return fail(err)
	}
	sa, err := unix.Getsockname(s.FD)
	if err != nil {
		return fail(err)
	}
	a.here = inet.Unmap(inet.FromUnix(sa))
	if err := connectUDPConn(relay, a.here); err != nil {
		return fail(err)
	}
	shown := peer(to)
	a.connected, a.local = inet.Shape(s.Family, shown), inet.Shape(s.Family, local)
	a.stream = stream
	a.relays[far], a.far[at] = relay, shown
	r.udp.mu.Lock()
	r.udp.addLocked(a)
	r.udp.mu.Unlock()
	r.work.Add(2)
	r.live.Add(1)
	go func() { defer r.work.Done(); r.sendConnected(a, relay) }()
	go func(relay *net.UDPConn) { // which becomes another one
		defer r.work.Done()
		defer r.live.Add(-1)
		for on := true; on; on = relay != nil && r.renew(a, func(ctx context.Context) (tunnel.Stream, wire.Reply, error) { return r.c.Pod.Dial(ctx, ask) }) {
			relay = r.receiveConnected(a, relay, far, at)
		}
	}(relay)
	return 0
}

// renewPause is the pause before a socket that lost its pod gets one in another.
const renewPause = 200 * time.Millisecond

// renew gives an association whose stream has ended, with its pod, a socket in the pod that is stood
// for now. It is false when the program's socket or the session is gone.
func (r *Room) renew(a *association, open func(context.Context) (tunnel.Stream, wire.Reply, error)) bool {
	for {
		if r.ending.Load() {
			return false
		}
		select {
		case <-a.ctx.Done():
			return false
		case <-time.After(renewPause):
		}
		stream, reply, err := open(a.ctx)
		if err != nil {
			return false
		}
		if reply.Errno != 0 { // the pod's kernel does not give it, for now
			continue
		}
		r.udp.mu.Lock()
		gone := a.ctx.Err() != nil
		if !gone {
			a.stream.Close()
			a.stream, a.local = stream, inet.Shape(a.family, reply.Local)
		}
		r.udp.mu.Unlock()
		if gone {
			stream.Close()
		}
		return !gone
	}
}

func (u *udpTable) streamOf(a *association) tunnel.Stream {
	u.mu.Lock()
	defer u.mu.Unlock()
	return a.stream
}

// connectUDPConn connects a relay to the program's socket, so that nobody else's datagrams count.
func connectUDPConn(c *net.UDPConn, to netip.AddrPort) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	family := unix.AF_INET
	if relayAddr(c).Addr().Is6() {
		family = unix.AF_INET6
	}
	cerr := raw.Control(func(fd uintptr) { err = unix.Connect(int(fd), inet.ToUnix(family, to)) })
	if cerr != nil {
		return cerr
	}
	return err
}
