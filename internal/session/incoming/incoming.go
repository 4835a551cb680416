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
	"fmt"
	"net"
	"net/netip"
	"slices"
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

	mu        sync.Mutex
	exchanged map[uint16]uint16            // TCP ports that the program asked for, and what they are on the laptop
	named     map[uint64]bound             // by cookie: those that are bound to something else than they asked for
	ports     map[uint16]*port             // listening, by the port that the program believes in
	here      map[uint16]time.Time         // TCP ports on which the program really listens, and since when
	udp       map[uint64]bound             // UDP sockets that the program bound, by cookie
	heard     map[netip.AddrPort]time.Time // whose datagrams reached the program on the laptop, and when last
	legs      map[netip.AddrPort]wire.Incoming

	links  []netip.Prefix // of the laptop's interfaces, as they were at linked
	linked time.Time

	released bool // no port is asked for any more
}

// port is one subscription and where its connections go.
type port struct {
	listeners map[uint64]listener // the program's sockets, by inode
	sub       *pod.Subscription   // nil until the agent has answered
}

// listener is a socket of the program's that listens.
type listener struct {
	since time.Time
	reach []netip.AddrPort // at which it is reached on the laptop
}

// bound is a socket of the program's.
type bound struct {
	inode uint64
	since time.Time
	port  uint16         // on the laptop
	kind  int            // of a named one: SOCK_STREAM or SOCK_DGRAM
	at    netip.AddrPort // of a named one: what the program is to see
}

// New makes an empty room; SetPod must be called before the program runs.
func New(c Config) *Room {
	r := &Room{
		c: c, exchanged: make(map[uint16]uint16), named: make(map[uint64]bound), ports: make(map[uint16]*port),
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

// OwnTCP says whether the program itself listens on the port, and which one that is on the laptop.
func (r *Room) OwnTCP(n uint16) (real uint16, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if real, ok = r.exchanged[n]; ok {
		_, ok = r.here[real]
		return real, ok
	}
	_, virtual := r.ports[n]
	_, here := r.here[n]
	return n, here || virtual
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
func (r *Room) Serve(stream tunnel.Stream, in wire.Incoming) {
	conn, undo, err := r.connect(in)
	if err != nil {
		_ = wire.Write(stream, wire.Reply{Errno: refused, Error: err.Error()})
		stream.Close()
		return
	}
	defer undo()
	if err := wire.Write(stream, wire.Reply{}); err != nil {
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

const refused = 111 // ECONNREFUSED on Linux, whatever system we run on

// connect reaches the program's listener, with the leg noted before the program can accept it.
func (r *Room) connect(in wire.Incoming) (net.Conn, func(), error) {
	r.mu.Lock()
	p := r.ports[in.Local.Port()]
	if p == nil || p.sub == nil || p.sub.ID != in.Subscription {
		p = r.bySubscriptionLocked(in.Subscription)
	}
	var to []netip.AddrPort
	if p != nil {
		to = p.reach(in.Local.Addr().Unmap().Is4())
	}
	r.mu.Unlock()
	err := fmt.Errorf("no listener for subscription %d", in.Subscription)
	for _, at := range to {
		var conn net.Conn
		var undo func()
		if conn, undo, err = r.dial(at, in); err == nil {
			return conn, undo, nil
		}
	}
	return nil, nil, err
}

// reach gives where the port's listeners are reached. Those that are so by the client's own family come
// first: a program may listen on each by a socket of its own.
func (p *port) reach(ipv4 bool) (out []netip.AddrPort) {
	for _, l := range p.listeners {
		for _, at := range l.reach {
			if !slices.Contains(out, at) {
				out = append(out, at)
			}
		}
	}
	slices.SortFunc(out, func(a, b netip.AddrPort) int {
		if x, y := a.Addr().Is4() == ipv4, b.Addr().Is4() == ipv4; x != y {
			if x {
				return -1
			}
			return 1
		}
		return a.Compare(b)
	})
	return out
}

// dial connects to one of the program's listeners.
func (r *Room) dial(to netip.AddrPort, in wire.Incoming) (net.Conn, func(), error) {
	var leg netip.AddrPort
	noted := false
	d := net.Dialer{
		Timeout: 5 * time.Second,
		ControlContext: noteLeg(func(at netip.AddrPort) { // which binds, too
			leg, noted = at, true
			r.mu.Lock()
			r.legs[leg] = in
			r.mu.Unlock()
		}, to.Addr()),
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
