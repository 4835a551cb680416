// Package incoming brings the pod's incoming connections to the program.
//
// When the program listens on a port, the agent is asked for that port's connections. Each that it
// catches is a stream; we connect to the program's own listener over the laptop's loopback and
// carry the bytes. The program's accept, getpeername and getsockname are told the real client and
// the address that it called, found by our end of the loopback leg.
//
// A port that the laptop does not give (taken by another process, or privileged) is exchanged for
// a free one at bind; the program goes on seeing the one it asked for.
package incoming

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/stead-dev/stead/internal/session/pod"
	"github.com/stead-dev/stead/internal/tunnel"
	"github.com/stead-dev/stead/internal/wire"
)

// Pod is what this room needs of the agent.
type Pod interface {
	Subscribe(context.Context, wire.Subscribe) (*pod.Subscription, wire.Reply, error)
}

// Config is what a Room is made of.
type Config struct {
	Pod     Pod
	Mode    wire.Mode             // empty: nothing is asked for
	Probes  map[uint16][]string   // of the kubelet, by port: left to the app where the port is stolen
	PodAddr func(netip.Addr) bool // says whether an address is the pod's
	Trouble func(error)
	Notice  func(string)
}

// Room keeps the program's listeners.
type Room struct {
	c    Config
	ctx  context.Context
	stop context.CancelFunc
	work sync.WaitGroup
	live atomic.Int32 // connections

	sources atomic.Uint32 // legs so far, see source

	mu    sync.Mutex
	named map[uint64]bound             // by cookie: those that are bound to something else than they asked for
	given map[uint16]uint16            // the port that was given last for one that the laptop did not give
	ports map[uint16]*port             // listening, by the port that the program believes in
	here  map[uint16]time.Time         // TCP ports on which the program really listens, and since when
	udp   map[uint64]bound             // UDP sockets that the program bound, by cookie
	heard map[netip.AddrPort]time.Time // whose datagrams reached the program on the laptop, and when last
	legs  map[netip.AddrPort]wire.Incoming

	links  []netip.Prefix // of the laptop's interfaces, as they were at linked
	linked time.Time

	released bool // no port is asked for any more
}

// port is one subscription and where its connections go: to one of the program's listeners, by inode.
type port struct {
	listeners map[uint64]listener
	sub       *pod.Subscription // nil until the agent has answered
}

// bound is a socket of the program's.
type bound struct {
	inode uint64
	since time.Time
	port  uint16         // on the laptop
	kind  int            // of a named one: SOCK_STREAM or SOCK_DGRAM
	at    netip.AddrPort // of a named one: what the program is to see
}

// listener is a listening socket of the program's.
type listener struct {
	at    netip.AddrPort // where it is reached from the laptop itself
	ipv6  bool           // its socket's family; such a one may take IPv4, too
	since time.Time
}

// order is the listeners as they are to be tried for a connection to the address called: first those of
// its family, as the kernel would. Equal ones, which SO_REUSEPORT makes, have turns by chance.
func order(listeners map[uint64]listener, called netip.Addr) []netip.AddrPort {
	var own, other []netip.AddrPort
	for _, l := range listeners {
		if l.ipv6 == called.Unmap().Is6() {
			own = append(own, l.at)
		} else {
			other = append(other, l.at)
		}
	}
	return append(own, other...)
}

// New makes an empty room; SetPod must be called before the program runs.
func New(c Config) *Room {
	r := &Room{
		c: c, named: make(map[uint64]bound), given: make(map[uint16]uint16), ports: make(map[uint16]*port),
		here: make(map[uint16]time.Time), udp: make(map[uint64]bound), heard: make(map[netip.AddrPort]time.Time), legs: make(map[netip.AddrPort]wire.Incoming),
	}
	r.ctx, r.stop = context.WithCancel(context.Background())
	r.work.Add(1)
	go func() { defer r.work.Done(); r.watch() }()
	return r
}

// SetPod gives the room its agent, which needs the room's Serve to be made.
func (r *Room) SetPod(p Pod) { r.c.Pod = p }

// Drain is called when the program has ended: it gives every port back, and returns when what the
// program wrote to its connections before is delivered, or with ctx. Those come to their end by
// themselves, as soon as the client has closed too.
func (r *Room) Drain(ctx context.Context) {
	r.release()
	if r.c.Mode == wire.Mirror {
		return // what it wrote reaches nobody, and the real connections go on
	}
	for r.live.Load() > 0 {
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Millisecond):
		}
	}
}

func (r *Room) release() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.released = true
	for n, p := range r.ports {
		if delete(r.ports, n); p.sub != nil { // else subscribe gives it back
			p.sub.Close()
		}
	}
}

// Close gives every port back and waits for the connections to end.
func (r *Room) Close() {
	r.stop()
	r.release()
	r.work.Wait()
}

// OwnTCP says whether the program itself listens on the port, and on which of the laptop's that is. The
// tables may not know yet that it has closed its listener: the kernel is asked.
func (r *Room) OwnTCP(n uint16) (real uint16, ok bool) {
	r.mu.Lock()
	real, ok = r.given[n]
	if !ok || r.here[real].IsZero() {
		real = n
	}
	ok = !r.here[real].IsZero()
	r.mu.Unlock()
	return real, ok && listensHere(real)
}

// OwnUDP says whether the program is bound to the UDP port.
func (r *Room) OwnUDP(n uint16) (real uint16, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, u := range r.udp {
		if u.port == n {
			return n, true
		}
	}
	return n, false
}

// Serve carries one caught connection; it owns stream and returns when the connection has ended.
//
// A program that listens and does not accept, in a debugger say, lets its clients wait, as it would in
// the pod: the connection is taken, so that it does not go to the app.
func (r *Room) Serve(stream tunnel.Stream, in wire.Incoming) {
	conn, undo, err := r.connect(in)
	taken := false
	for ; waits(err); conn, undo, err = r.connect(in) {
		if !taken && wire.Write(stream, wire.Reply{}) != nil {
			stream.Reset(0)
			return
		}
		taken = true
	}
	if err != nil {
		if taken {
			stream.Reset(0)
			return
		}
		_ = wire.Write(stream, wire.Reply{Errno: refused, Error: err.Error()})
		stream.Close()
		return
	}
	defer undo()
	if !taken && wire.Write(stream, wire.Reply{}) != nil {
		conn.Close()
		stream.Reset(0)
		return
	}
	r.live.Add(1)
	defer r.live.Add(-1)
	if r.c.Mode == wire.Mirror {
		tunnel.Feed(r.ctx, conn, stream) // what the program answers is for nobody
		return
	}
	tunnel.Relay(r.ctx, conn, stream)
}

const (
	refused = 111 // ECONNREFUSED on Linux, whatever system we run on
	// queueTimeout bounds one attempt at a listener whose queue is full.
	queueTimeout = 5 * time.Second
)

// waits says whether a connection failed because the listener's queue is full.
func waits(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

// connect reaches one of the program's listeners. One that it closed a moment ago is still in the table.
func (r *Room) connect(in wire.Incoming) (conn net.Conn, undo func(), err error) {
	r.mu.Lock()
	p := r.ports[in.Local.Port()]
	if p == nil || p.sub != nil && p.sub.ID != in.Subscription { // without sub: the answer is on its way
		p = r.bySubscriptionLocked(in.Subscription)
	}
	var to []netip.AddrPort
	if p != nil {
		to = order(p.listeners, in.Local.Addr())
	}
	r.mu.Unlock()
	err = fmt.Errorf("no listener for subscription %d", in.Subscription)
	for _, at := range to {
		if conn, undo, err = r.dial(in, at); err == nil || waits(err) {
			break
		}
	}
	return conn, undo, err
}

// dial connects to a listener of the program's, with the leg noted before the program can accept it.
func (r *Room) dial(in wire.Incoming, to netip.AddrPort) (net.Conn, func(), error) {
	var leg netip.AddrPort
	noted := false
	d := net.Dialer{
		Timeout: queueTimeout,
		ControlContext: noteLeg(r.source(to.Addr()), func(at netip.AddrPort) {
			leg, noted = at, true
			r.mu.Lock()
			r.legs[leg] = in
			r.mu.Unlock()
		}),
	}
	d.SetMultipathTCP(false)
	undo := func() {
		if noted {
			r.mu.Lock()
			delete(r.legs, leg)
			r.mu.Unlock()
		}
	}
	conn, err := d.DialContext(r.ctx, "tcp", to.String())
	if err != nil {
		undo()
		return nil, nil, err
	}
	return conn, undo, nil
}

// source is the address of our end of the next leg. Each has a port of its own, for that names the client;
// and where the client closes first it stays in TIME_WAIT for a minute. So the legs have the
// addresses of 127.0.0.0/16 in turn, each with all of its ports.
func (r *Room) source(to netip.Addr) netip.Addr {
	if !to.Is4() || !to.IsLoopback() {
		return to // the laptop's address, from itself
	}
	n := 1 + r.sources.Add(1)%65000
	return netip.AddrFrom4([4]byte{127, 0, byte(n >> 8), byte(n)})
}

func (r *Room) bySubscriptionLocked(id uint64) *port {
	for _, p := range r.ports {
		if p.sub != nil && p.sub.ID == id {
			return p
		}
	}
	return nil
}

// Client gives the real client of a connection that came over the loopback leg from.
func (r *Room) Client(from netip.AddrPort) (wire.Incoming, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	in, ok := r.legs[netip.AddrPortFrom(from.Addr().Unmap(), from.Port())]
	return in, ok
}
