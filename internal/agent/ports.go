package agent

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/tunnel"
	"github.com/stead-dev/stead/internal/wire"
)

// ports keeps who has asked for the incoming connections of which port. A port has at most one
// holder who steals; mirrors go along with it and with each other. The engines that change what
// the kernel does with connections are made when first needed and closed when nobody needs them.
type ports struct {
	t    *target
	mode string // how to steal: auto, sk_lookup, nft

	mu     sync.Mutex
	next   uint64
	steal  map[uint16]*subscription
	mirror map[uint16][]*subscription
	engine stealer
	tap    *tap

	closed bool
	ctx    context.Context
	cancel context.CancelFunc
	work   sync.WaitGroup // connections
}

// subscription is one session's wish for one port.
type subscription struct {
	id    uint64
	x     *session
	port  uint16
	mode  wire.Mode
	note  tunnel.Stream // for events
	claim *claim        // of the port that it steals

	dropped atomic.Uint64 // copies given up
	telling atomic.Bool   // news of lost packets is under way
}

// stealer brings the new connections of some ports of the target's to us instead of to the app.
type stealer interface {
	// add and remove take effect for connections that begin after they return.
	add(port uint16) error
	remove(port uint16)
	// pass connects to the app past the stealing.
	pass(ctx context.Context, to netip.AddrPort) (net.Conn, error)
	// detach gives all ports back and accepts no more; pass may still be called until close.
	detach()
	close()
}

func newPorts(t *target, mode string) *ports {
	p := &ports{t: t, mode: mode, steal: make(map[uint16]*subscription), mirror: make(map[uint16][]*subscription)}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p
}

func (p *ports) features() []string {
	return []string{wire.FeatureSteal, wire.FeatureMirror, wire.FeatureFiles}
}

func (p *ports) close() {
	p.mu.Lock()
	p.closed = true
	engine, tap := p.engine, p.tap
	p.tap = nil
	p.mu.Unlock()
	// Both wait for goroutines that take mu.
	if engine != nil {
		engine.detach()
	}
	if tap != nil {
		tap.close()
	}
	p.cancel()
	p.work.Wait()
	if engine != nil {
		engine.close()
	}
}

// subscribe serves one subscription for as long as its stream lives.
func (x *session) subscribe(ctx context.Context, st tunnel.Stream, o *wire.Open) {
	defer st.Close()
	s := o.Subscribe
	if s == nil || s.Port == 0 || s.Network != "tcp" || s.Mode != wire.Steal && s.Mode != wire.Mirror {
		fail(st, unix.EINVAL)
		return
	}
	sub := &subscription{x: x, port: s.Port, mode: s.Mode, note: st}
	reply := x.s.ports.add(sub)
	if reply.Errno == 0 {
		defer x.s.ports.remove(sub)
	}
	if err := wire.Write(st, reply); err != nil || reply.Errno != 0 {
		return
	}
	// The session never writes here: the read ends with the subscription.
	stop := context.AfterFunc(ctx, func() { st.Reset(0) })
	defer stop()
	_, _ = st.Read(make([]byte, 1))
}

func (p *ports) add(s *subscription) wire.Reply {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return wire.Reply{Errno: uint32(unix.ESHUTDOWN), Error: "the agent is ending"}
	}
	p.next++
	s.id = p.next
	var err error
	switch s.mode {
	case wire.Steal:
		if s.claim, err = p.t.claim(s.port, s.x.holder); err != nil {
			break
		}
		if p.engine == nil {
			p.engine, err = newStealer(p.t, p.mode, p.caught)
		}
		if err == nil {
			err = p.engine.add(s.port)
		}
		if err != nil {
			s.claim.close()
			break
		}
		p.steal[s.port] = s
	case wire.Mirror:
		if p.tap == nil {
			p.tap, err = newTap(p.t, p.mirrored, p.packetsLost)
		}
		if err == nil {
			p.mirror[s.port] = append(p.mirror[s.port], s)
			p.tap.watch(p.mirrorPortsLocked())
		}
	}
	if held := (*heldError)(nil); errors.As(err, &held) {
		return wire.Reply{Errno: uint32(unix.EADDRINUSE), Error: held.Error(),
			Hint: "use --mirror, or ask " + held.holder + " to end the session"}
	}
	if err != nil {
		r := wire.Reply{Errno: uint32(unix.EPERM), Error: err.Error(), Hint: "the agent needs CAP_NET_ADMIN and CAP_NET_RAW in the pod's network namespace; stealing also Linux 5.12 with nftables, or 5.9 with BPF"}
		if e := unix.Errno(0); errors.As(err, &e) {
			r.Errno = uint32(e)
		}
		return r
	}
	return wire.Reply{ID: s.id}
}

func (p *ports) mirrorPortsLocked() []uint16 {
	var out []uint16
	for port, subs := range p.mirror {
		if len(subs) > 0 {
			out = append(out, port)
		}
	}
	return out
}

func (p *ports) remove(s *subscription) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch s.mode {
	case wire.Steal:
		if p.steal[s.port] == s {
			delete(p.steal, s.port)
			if !p.closed {
				p.engine.remove(s.port)
			}
			s.claim.close()
		}
	case wire.Mirror:
		p.mirror[s.port] = slices.DeleteFunc(p.mirror[s.port], func(o *subscription) bool { return o == s })
		if len(p.mirror[s.port]) == 0 {
			delete(p.mirror, s.port)
		}
		if p.tap != nil {
			p.tap.watch(p.mirrorPortsLocked())
			if len(p.mirror) == 0 {
				tap := p.tap
				p.tap = nil
				go tap.close() // waits for its goroutine, which may wait for mu
			}
		}
	}
}

// caught takes a stolen connection to the session that holds its port. One that nobody holds any
// more, or that the session cannot take, goes on to the app: its client must not notice.
func (p *ports) caught(c net.Conn, called netip.AddrPort) {
	p.mu.Lock()
	s, engine := p.steal[called.Port()], p.engine
	closed := p.closed
	if !closed {
		p.work.Add(1)
	}
	p.mu.Unlock()
	if closed {
		c.Close()
		return
	}
	go func() {
		defer p.work.Done()
		remote, _ := addrPortOf(c.RemoteAddr())
		if s != nil {
			st, err := s.x.offer(p.ctx, wire.Incoming{Subscription: s.id, Remote: remote, Local: called})
			if err == nil {
				tunnel.Relay(p.ctx, c, st)
				return
			}
		}
		app, err := engine.pass(p.ctx, called)
		if err != nil {
			abort(c)
			return
		}
		splice(p.ctx, c, app)
	}()
}

// offerTimeout bounds how long a client waits for a session that does not answer, before it is
// given to the app.
const offerTimeout = 10 * time.Second

// offer opens a stream for a caught connection and waits until the session has taken it.
func (x *session) offer(ctx context.Context, in wire.Incoming) (tunnel.Stream, error) {
	st, err := x.t.Open(ctx)
	if err != nil {
		return nil, err
	}
	var r wire.Reply
	st.SetDeadline(time.Now().Add(offerTimeout))
	if err = wire.Write(st, wire.Open{Kind: wire.KindIncoming, Incoming: &in}); err == nil {
		err = wire.Read(st, &r)
	}
	if err == nil && r.Errno != 0 {
		err = unix.Errno(r.Errno)
	}
	if err != nil {
		st.Reset(0)
		return nil, err
	}
	st.SetDeadline(time.Time{})
	return st, nil
}

// splice carries bytes between two connections until both directions have ended.
func splice(ctx context.Context, a, b net.Conn) {
	stop := context.AfterFunc(ctx, func() { abort(a); abort(b) })
	defer stop()
	done := make(chan struct{})
	one := func(to, from net.Conn) {
		if _, err := to.(*net.TCPConn).ReadFrom(from); err != nil {
			abort(to)
			abort(from)
			return
		}
		_ = to.(*net.TCPConn).CloseWrite()
	}
	go func() { defer close(done); one(a, b) }()
	one(b, a)
	<-done
	a.Close()
	b.Close()
}

// abort closes with a reset.
func abort(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	c.Close()
}
