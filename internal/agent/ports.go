package agent

import (
	"context"
	"errors"
	"log/slog"
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
	log  *slog.Logger

	mu     sync.Mutex
	next   uint64
	steal  map[uint16]*subscription
	mirror map[uint16][]*subscription
	engine *engine
	tap    *tap

	closed bool
	ctx    context.Context
	cancel context.CancelFunc
	work   sync.WaitGroup // engines that end
}

// subscription is one session's wish for one port.
type subscription struct {
	id     uint64
	x      *session
	port   uint16
	mode   wire.Mode
	probes *probes       // that are left to the app, nil for none
	note   tunnel.Stream // for events
	claim  *claim        // of the port that it steals

	dropped atomic.Uint64 // copies given up
	missed  atomic.Uint64 // connections of which there was no copy, for the session could not be reached; not yet told
	telling atomic.Bool   // news of lost packets is under way
}

// stealer brings the new connections of some ports of the target's to us instead of to the app.
type stealer interface {
	// add and remove take effect for connections that begin after they return.
	add(port uint16) error
	remove(port uint16)
	// pass connects to the app past the stealing.
	pass(ctx context.Context, to netip.AddrPort) (net.Conn, error)
	// detach takes it out of the kernel and accepts no more; pass may still be called until close.
	detach()
	close()
}

// engine is a stealer and its connections. It lasts from the first stolen port until a moment after the
// last one is given back, and for as long as there are connections that it passes to the app.
type engine struct {
	stealer
	by     string         // which one it is
	work   sync.WaitGroup // connections; Add under ports.mu while it is ports.engine or not yet detached
	rested int            // how often its last port was given back
}

// drain is how long an engine of which nobody holds a port stays: what was half open or in the queue when
// the last port was given back goes to the app instead of being reset, and who comes meanwhile takes it on.
const drain = time.Second

func (p *ports) newEngine() (*engine, error) {
	e := &engine{}
	var err error
	// mu is held: a connection that is caught before stealer is set waits for it.
	e.stealer, e.by, err = newStealer(p.t, p.mode, func(c net.Conn, called netip.AddrPort) { p.caught(e, c, called) })
	return e, err
}

// restLocked lets the engine go, of which nobody holds a port, unless somebody comes meanwhile. Called with
// mu held.
func (p *ports) restLocked() {
	e := p.engine
	e.rested++
	rest := e.rested
	p.work.Go(func() {
		select {
		case <-time.After(drain):
		case <-p.ctx.Done():
		}
		p.mu.Lock()
		over := p.engine == e && e.rested == rest && len(p.steal) == 0
		if over {
			p.engine = nil
		}
		p.mu.Unlock()
		if over {
			e.end()
		}
	})
}

// end gives up an engine that is no more that of its ports.
func (e *engine) end() {
	e.detach()
	e.work.Wait()
	e.close()
}

func newPorts(t *target, mode string, log *slog.Logger) *ports {
	p := &ports{t: t, mode: mode, log: log, steal: make(map[uint16]*subscription), mirror: make(map[uint16][]*subscription)}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p
}

func (p *ports) features() []string {
	return []string{wire.FeatureSteal, wire.FeatureMirror, wire.FeatureFiles}
}

func (p *ports) close() {
	p.mu.Lock()
	p.closed = true
	p.cancel()
	if e := p.engine; e != nil {
		p.engine = nil
		p.work.Go(e.end)
	}
	tap := p.tap
	p.tap = nil
	p.mu.Unlock()
	if tap != nil {
		tap.close() // waits for a goroutine that takes mu
	}
	p.work.Wait()
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
	if s.Mode == wire.Steal && len(s.Probes) > 0 {
		sub.probes = newProbes(s.Probes)
	}
	reply := x.s.ports.add(sub)
	log := x.s.c.Log.With("port", sub.port, "holder", x.holder)
	switch {
	case reply.Errno == 0:
		log.Info(string(sub.mode) + " begins")
		defer func() { x.s.ports.remove(sub); log.Info(string(sub.mode) + " ends") }()
	case sub.claim == nil && reply.Errno == uint32(unix.EADDRINUSE):
		log.Info(string(sub.mode)+" refused", "err", reply.Error)
	default:
		log.Error(string(sub.mode)+" failed", "err", reply.Error)
	}
	if err := wire.Write(st, reply); err != nil || reply.Errno != 0 {
		return
	}
	// The session never writes here: the read ends with the subscription.
	stop := context.AfterFunc(ctx, func() { st.Reset(0) })
	defer stop()
	_, _ = st.Read(make([]byte, 1))
}

var errEnding = errors.New("the agent is ending")

func (p *ports) add(s *subscription) wire.Reply {
	var err error
	if s.mode == wire.Steal { // without mu: who holds the port may be slow to say who it is
		s.claim, err = p.claim(s.port, s.x.holder)
	}
	if err == nil {
		if err = p.begin(s); err != nil && s.claim != nil {
			s.claim.close()
		}
	}
	held := (*heldError)(nil)
	switch {
	case err == nil:
		return wire.Reply{ID: s.id}
	case err == errEnding:
		return wire.Reply{Errno: uint32(unix.ESHUTDOWN), Error: err.Error()}
	case errors.As(err, &held):
		return wire.Reply{Errno: uint32(unix.EADDRINUSE), Error: held.Error(),
			Hint: "use --mirror, or ask " + held.holder + " to end the session"}
	}
	r := wire.Reply{Errno: uint32(unix.EPERM), Error: err.Error(), Hint: "the agent needs CAP_NET_ADMIN and CAP_NET_RAW in the pod's network namespace; stealing also Linux 5.9 with BPF, or 5.12 with nftables' tproxy (CONFIG_NFT_TPROXY)"}
	if e := unix.Errno(0); errors.As(err, &e) {
		r.Errno = uint32(e)
	}
	return r
}

// claimPatience is how long a port is asked for again that the same holder has, or nobody who says so: a
// program that listens anew, or a session started again, may come while what was before is being given back.
const claimPatience, claimAgain = time.Second, 10 * time.Millisecond

func (p *ports) claim(port uint16, holder string) (*claim, error) {
	for end := time.Now().Add(claimPatience); ; {
		c, err := p.t.claim(port, holder)
		held := (*heldError)(nil)
		if !errors.As(err, &held) || held.holder != holder && held.holder != unknownHolder || time.Now().After(end) {
			return c, err
		}
		select {
		case <-time.After(claimAgain):
		case <-p.ctx.Done():
			return nil, errEnding
		}
	}
}

// begin puts a subscription into force.
func (p *ports) begin(s *subscription) (err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return errEnding
	}
	p.next++
	s.id = p.next
	switch s.mode {
	case wire.Steal:
		if p.engine == nil {
			p.engine, err = p.newEngine()
			if err != nil {
				p.engine = nil
				return err
			}
			p.log.Debug("stealing", "by", p.engine.by)
		}
		if err = p.engine.add(s.port); err != nil {
			if e := p.engine; len(p.steal) == 0 { // the next one may find one that works
				p.engine = nil
				p.work.Go(e.end)
			}
			return err
		}
		p.steal[s.port] = s
	case wire.Mirror:
		if p.tap == nil {
			if p.tap, err = newTap(p.t, p.mirrored, p.packetsLost); err != nil {
				return err
			}
		}
		p.mirror[s.port] = append(p.mirror[s.port], s)
		p.tap.watch(p.mirrorPortsLocked())
	}
	return nil
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
			if p.engine != nil {
				p.engine.remove(s.port)
				if len(p.steal) == 0 {
					p.restLocked()
				}
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
				p.work.Go(func() { tap.retire(p.ctx) })
			}
		}
	}
}

// caught takes a stolen connection to the session that holds its port. One that nobody holds any
// more, or that the session cannot take, goes on to the app: its client must not notice.
func (p *ports) caught(e *engine, c net.Conn, called netip.AddrPort) {
	p.mu.Lock()
	s := p.steal[called.Port()]
	closed := p.closed
	if !closed {
		e.work.Add(1)
	}
	p.mu.Unlock()
	if closed {
		c.Close()
		return
	}
	go func() {
		defer e.work.Done()
		remote, _ := addrPortOf(c.RemoteAddr())
		if s != nil && !s.probes.has(p.ctx, c, remote) {
			st, err := s.x.offer(p.ctx, wire.Incoming{Subscription: s.id, Remote: remote, Local: called})
			if err == nil {
				p.log.Debug("a connection goes to the session", "from", remote, "to", called, "holder", s.x.holder)
				tunnel.Relay(p.ctx, c, st)
				return
			}
			p.log.Debug("the session has not taken a connection", "from", remote, "to", called, "holder", s.x.holder, "err", err)
		}
		app, err := e.pass(p.ctx, called)
		if err != nil {
			p.log.Error("a connection can go neither to a session nor to the app", "from", remote, "to", called, "err", err)
			abort(c)
			return
		}
		p.log.Debug("a connection goes to the app", "from", remote, "to", called)
		splice(p.ctx, c, app)
	}()
}

// offerTimeout bounds how long a client waits for a session that does not answer, before it is
// given to the app.
const offerTimeout = 10 * time.Second

var errAway = errors.New("the session cannot be reached at the moment")

// offer opens a stream for a caught connection and waits until the session has taken it.
func (x *session) offer(ctx context.Context, in wire.Incoming) (tunnel.Stream, error) {
	// A session that is cut off may come back; until then the app answers, without a delay.
	away := x.t.Away()
	select {
	case <-away:
		return nil, errAway
	default:
	}
	st, err := x.t.Open(ctx)
	if err != nil {
		return nil, err
	}
	var r wire.Reply
	st.SetDeadline(time.Now().Add(offerTimeout))
	answered, watched := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-away:
			st.SetDeadline(time.Unix(1, 0))
		case <-answered:
		}
	}()
	if err = wire.Write(st, wire.Open{Kind: wire.KindIncoming, Incoming: &in}); err == nil {
		err = wire.Read(st, &r)
	}
	close(answered)
	<-watched // it sets no deadline from now on
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
