// Package outgoing makes the program's connections leave from the pod.
//
// A connection has two legs: the program's own socket, connected over the loopback to a socket of
// ours, and a stream of the tunnel whose far end is a socket in the pod. What the program cannot
// be allowed to see of that (names, errors) is answered from the table here, by SO_COOKIE.
//
// A blocking connect is held until the pod's kernel has answered, then the program's socket is
// connected to a listener of ours, which succeeds at once. One that a signal interrupts goes on as a
// non-blocking one.
//
// A non-blocking connect must return at once and complete later, with the pod's answer. Neither
// connecting the loopback leg at once (it would complete too early, a refusal would come as a
// reset) nor holding the call (it would stop an event loop) will do. So the socket is sent into a
// real SYN_SENT: it connects to a listener whose queue is kept full (blackhole.go), where the
// kernel drops the SYN. When the pod has answered, a socket of ours, bound to the listener's port,
// connects to the program's: the two SYNs cross, and the kernel completes both ends by TCP's
// simultaneous open (RFC 9293, 3.5) within microseconds. When the pod's answer is an error the
// program's socket is shut down, which ends SYN_SENT and wakes every poller, and SO_ERROR is
// answered with the pod's errno. A refused one is then connected to where our kernel refuses it, so
// that send and recv tell it, too. So epoll, poll, a second connect and getsockopt all say what they
// say without us, whatever the program does meanwhile.
//
// Nobody tells us that the program closed a socket: no entry holds the program's socket open, and
// the relay's end, or a failing simultaneous open, tells of the death.
package outgoing

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/stead-dev/stead/internal/inet"
	"github.com/stead-dev/stead/internal/intercept"
	"github.com/stead-dev/stead/internal/policy"
	"github.com/stead-dev/stead/internal/tunnel"
	"github.com/stead-dev/stead/internal/wire"
)

// Pod is what this room needs of the agent.
type Pod interface {
	Dial(context.Context, wire.Dial) (tunnel.Stream, wire.Reply, error)
	Packet(context.Context, wire.Packet) (tunnel.Stream, wire.Reply, error)
}

// Network is what the room knows of the pod's.
type Network struct {
	Policy policy.Network
	Addrs  []netip.Addr // the pod's, told as the local end until the pod has chosen one
}

// Config is what a Room is made of.
type Config struct {
	Pod     Pod
	Network Network
	// OwnTCP and OwnUDP say whether the program itself listens on, or is bound to, a port; real is the
	// laptop's that it has in its place.
	OwnTCP func(port uint16) (real uint16, ok bool)
	OwnUDP func(port uint16) bool
	// Heard says whether a datagram from there reached the program on the laptop: what goes there answers it.
	Heard   func(from netip.AddrPort) bool
	Trouble func(error)
}

// Room keeps the program's outgoing sockets.
type Room struct {
	c    Config
	ctx  context.Context
	stop context.CancelFunc
	work sync.WaitGroup
	live atomic.Int32 // TCP connections, and receivers of UDP

	ending atomic.Bool // the program has ended: what ends now stays so

	network atomic.Pointer[Network]

	synRetries int // of this machine

	relay4, relay6 *listener
	hole4, hole6   *blackhole

	mu    sync.Mutex
	socks map[uint64]*sock         // TCP, by cookie
	dead  []*sock                  // failed ones, oldest first: their program may never ask
	legs  map[netip.AddrPort]*sock // the pending ones, by their end of the loopback

	udp udpTable
}

// sock is what is known of one of the program's TCP sockets. Guarded by Room.mu.
type sock struct {
	cookie      uint64
	family      int // of a pending one
	state       state
	peer, local netip.AddrPort
	errno       syscall.Errno // of a failed one; 0 when the program has been told
	since       time.Time
	done        chan struct{} // closed when it is pending no more; nil where it never was
}

type state uint8

const (
	pending state = iota
	connected
	failed
)

// deadAge is how long a failed connect's errno is kept for a program that does not ask.
const deadAge = 2 * time.Minute

// New opens the listeners on the laptop's loopback.
func New(c Config) (*Room, error) {
	r := &Room{c: c, socks: make(map[uint64]*sock), legs: make(map[netip.AddrPort]*sock), synRetries: synRetries()}
	r.SetNetwork(c.Network)
	r.ctx, r.stop = context.WithCancel(context.Background())
	if err := r.open(); err != nil {
		r.Close()
		return nil, fmt.Errorf("open loopback relay: %w", err)
	}
	r.udp.start(r)
	return r, nil
}

// SetNetwork is told that connections leave from another pod from now on.
func (r *Room) SetNetwork(n Network) { r.network.Store(&n) }

func (r *Room) open() (err error) {
	if r.relay4, err = r.listen(inet.Loopback(false)); err != nil {
		return err
	}
	if r.hole4, err = newBlackhole(inet.Loopback(false)); err != nil {
		return err
	}
	// A laptop without IPv6 reaches the relay by the v4-mapped address.
	if r.relay6, err = r.listen(inet.Loopback(true)); err != nil {
		r.relay6 = nil
		return nil
	}
	r.hole6, err = newBlackhole(inet.Loopback(true))
	return err
}

// Close ends every connection and waits for what carries them.
func (r *Room) Close() {
	r.stop()
	for _, l := range []*listener{r.relay4, r.relay6} {
		if l != nil {
			l.close()
		}
	}
	r.udp.close()
	r.work.Wait()
	for _, h := range []*blackhole{r.hole4, r.hole6} {
		if h != nil {
			h.close()
		}
	}
}

// localFor is the address told as the local end until the pod's kernel has chosen one.
func (r *Room) localFor(to netip.Addr, port uint16) netip.AddrPort {
	if to.IsLoopback() {
		return netip.AddrPortFrom(to, port)
	}
	for _, a := range r.network.Load().Addrs {
		if a.Is4() == to.Is4() && !a.IsLinkLocalUnicast() {
			return netip.AddrPortFrom(a, port)
		}
	}
	return netip.AddrPortFrom(inet.Any(!to.Is4()), port)
}

// Connect answers connect(2).
func (r *Room) Connect(s *intercept.Socket, to netip.AddrPort) intercept.Outcome {
	switch {
	case other(s):
		return r.refuseOther(to)
	case s.Type == syscall.SOCK_STREAM:
		return r.connectTCP(s, to)
	case s.Type == syscall.SOCK_DGRAM:
		return r.connectUDP(s, to)
	}
	return intercept.Continue
}

// other says whether a socket sends what is no TCP or UDP: a raw one, or one of ping's.
func other(s *intercept.Socket) bool {
	return s.Type == syscall.SOCK_RAW || s.Type == syscall.SOCK_DGRAM && s.Protocol != syscall.IPPROTO_UDP
}

// refuseOther answers for such a socket: what it sends to the pod's network would leave from the laptop's,
// where the address is somebody else's, or be answered by the laptop itself.
func (r *Room) refuseOther(to netip.AddrPort) intercept.Outcome {
	a := to.Addr().Unmap()
	nothing := func(uint16) bool { return false }
	if !to.IsValid() || a.IsLoopback() || a.IsUnspecified() || r.network.Load().Policy.Destination(to, nothing).Where == policy.Laptop {
		return intercept.Continue
	}
	r.c.Trouble(errors.New("ping and raw sockets: only TCP and UDP leave from the pod"))
	return intercept.Fail(syscall.EHOSTUNREACH)
}

// PeerName answers getpeername(2) for a socket of ours.
func (r *Room) PeerName(s *intercept.Socket) (netip.AddrPort, syscall.Errno) {
	if s.Type == syscall.SOCK_DGRAM {
		return r.udp.peerName(s.Cookie), 0
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	k := r.socks[s.Cookie]
	switch {
	case k == nil:
		return netip.AddrPort{}, 0
	case k.state == connected:
		return k.peer, 0
	default:
		return netip.AddrPort{}, syscall.ENOTCONN
	}
}

// SockName answers getsockname(2) for a socket of ours.
func (r *Room) SockName(s *intercept.Socket) (netip.AddrPort, syscall.Errno) {
	if s.Type == syscall.SOCK_DGRAM {
		return r.udp.sockName(s.Cookie), 0
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if k := r.socks[s.Cookie]; k != nil && k.state != failed {
		return k.local, 0
	}
	return netip.AddrPort{}, 0
}

// SocketError answers getsockopt(SO_ERROR): the pod's errno once, then the kernel's.
func (r *Room) SocketError(s *intercept.Socket) (syscall.Errno, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	k := r.socks[s.Cookie]
	if k == nil || k.state != failed || k.errno == 0 {
		return 0, false
	}
	// Clear the kernel's own note of it (ECONNRESET) together with ours.
	_, _ = syscall.GetsockoptInt(s.FD, syscall.SOL_SOCKET, syscall.SO_ERROR)
	e := k.errno
	delete(r.socks, s.Cookie)
	return e, true
}

// setLocked enters k and drops failures that nobody asked about in time.
func (r *Room) setLocked(k *sock) {
	r.socks[k.cookie] = k
	for len(r.dead) > 0 && time.Since(r.dead[0].since) > deadAge {
		if old := r.dead[0]; r.socks[old.cookie] == old {
			delete(r.socks, old.cookie)
		}
		r.dead = r.dead[1:]
	}
}

// forget drops k if it still is what the table knows of its socket.
func (r *Room) forget(k *sock) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.socks[k.cookie] == k {
		delete(r.socks, k.cookie)
	}
}
