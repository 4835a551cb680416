// Package forward is what stead does for a target without a program in its stead: it carries single
// ports between the laptop and the target, prints what reaches the target, measures the way there.
package forward

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/stead-dev/stead/internal/fault"
	"github.com/stead-dev/stead/internal/session/pod"
	"github.com/stead-dev/stead/internal/session/seats"
	"github.com/stead-dev/stead/internal/tell"
	"github.com/stead-dev/stead/internal/tunnel"
	"github.com/stead-dev/stead/internal/wire"
)

// Options say which target.
type Options struct {
	Dial   tunnel.Dialer
	Secret []byte
	Build  string
	Target string       // as the user named it, for messages
	Says   *tell.Teller // our own lines

	Pod    string        // beside which Dial's agent stands, "" where that is the target itself
	Pods   seats.Source  // follows the target's pods, nil where there is that one alone
	Follow time.Duration // how long a pod that ended may be without a successor
}

// Local is one -L: a port of the laptop's that leads to a host and port as the target sees them.
type Local struct {
	Listen netip.AddrPort // on the laptop; port 0 takes any
	Host   string
	Port   uint16
}

// Remote is one -R: a port of the target's whose new connections come to the laptop.
type Remote struct {
	Port uint16
	To   string // HOST:PORT on the laptop
}

var errNoHost = errors.New("no host")

// ParseLocal reads [BIND:]PORT:HOST:PORT; IPv6 addresses in brackets. Without BIND it listens on the
// loopback.
func ParseLocal(s string) (l Local, err error) {
	hint := "-L 5432:db:5432, -L [::1]:8080:orders.shop:80"
	parts := fields(s)
	if len(parts) == 3 {
		parts = append([]string{"127.0.0.1"}, parts...)
	}
	if len(parts) != 4 {
		return l, fault.With(fmt.Errorf("-L %s: want [BIND:]PORT:HOST:PORT", s), hint)
	}
	bind, err := netip.ParseAddr(parts[0])
	if err != nil {
		return l, fault.With(fmt.Errorf("-L %s: %q is no address to listen on", s, parts[0]), hint)
	}
	port, err := parsePort(parts[1], true)
	if err == nil {
		l.Port, err = parsePort(parts[3], false)
	}
	if err == nil && parts[2] == "" {
		err = errNoHost
	}
	if err != nil {
		return l, fault.With(fmt.Errorf("-L %s: %w", s, err), hint)
	}
	l.Listen, l.Host = netip.AddrPortFrom(bind, port), parts[2]
	return l, nil
}

// ParseRemote reads PORT:[HOST:]PORT; without HOST it is the laptop's loopback.
func ParseRemote(s string) (r Remote, err error) {
	hint := "-R 8080:3000, -R 8080:127.0.0.1:3000"
	parts := fields(s)
	if len(parts) == 2 {
		parts = []string{parts[0], "127.0.0.1", parts[1]}
	}
	if len(parts) != 3 {
		return r, fault.With(fmt.Errorf("-R %s: want POD-PORT:[HOST:]PORT", s), hint)
	}
	var to uint16
	if r.Port, err = parsePort(parts[0], false); err == nil {
		to, err = parsePort(parts[2], false)
	}
	if err == nil && parts[1] == "" {
		err = errNoHost
	}
	if err != nil {
		return r, fault.With(fmt.Errorf("-R %s: %w", s, err), hint)
	}
	r.To = net.JoinHostPort(parts[1], strconv.Itoa(int(to)))
	return r, nil
}

// fields splits at colons outside of brackets, which it takes away.
func fields(s string) (out []string) {
	depth, from := 0, 0
	for i := 0; i <= len(s); i++ {
		switch {
		case i == len(s) || s[i] == ':' && depth == 0:
			out = append(out, strings.Trim(s[from:i], "[]"))
			from = i + 1
		case s[i] == '[':
			depth++
		case s[i] == ']':
			depth--
		}
	}
	return out
}

func parsePort(s string, zero bool) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 && !zero {
		return 0, fmt.Errorf("%q is no port", s)
	}
	return uint16(n), nil
}

// run is a session without a program. Its goroutines end with ctx; wait waits for them.
type run struct {
	o     Options
	pod   *seats.Room
	names *names
	ctx   context.Context
	work  sync.WaitGroup
}

func newRun(ctx context.Context, o Options) *run {
	return &run{o: o, ctx: ctx}
}

// Ports carries the given ports until ctx ends (nil) or the agent is lost for good.
func Ports(ctx context.Context, o Options, locals []Local, remotes []Remote) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r := newRun(ctx, o)
	byPort := &table{to: make(map[uint64]Remote)}
	if err := r.join(func(st tunnel.Stream, in wire.Incoming) { r.incoming(byPort, st, in) }); err != nil {
		return err
	}
	defer r.pod.Close()
	defer r.work.Wait()
	defer cancel()
	if len(locals) > 0 {
		var err error
		if r.names, err = newNames(ctx, r.pod); err != nil {
			return err
		}
	}
	for _, l := range locals {
		if err := r.local(l); err != nil {
			return err
		}
	}
	for _, m := range remotes {
		sub, err := r.subscribe(wire.Subscribe{Network: "tcp", Port: m.Port, Mode: wire.Steal})
		if err != nil {
			return err
		}
		defer sub.Close()
		byPort.set(sub.ID, m)
		r.say("port %d of %s -> %s", m.Port, o.Target, m.To)
	}
	return r.wait()
}

func (r *run) join(incoming func(tunnel.Stream, wire.Incoming)) error {
	r.pod = seats.New(seats.Config{
		Target: r.o.Target, Hello: wire.Hello{Build: r.o.Build, Secret: r.o.Secret}, Wait: r.o.Follow, Incoming: incoming,
		Event: func(e wire.Event) { r.say("%s", e.Text) }, Notice: func(s string) { r.say("%s", s) },
		Trouble: r.trouble, Moved: func() {},
	})
	if err := r.pod.Begin(r.ctx, r.o.Pod, r.o.Dial); err != nil {
		r.pod.Close()
		return err
	}
	if r.o.Pods != nil {
		r.pod.Follow(r.ctx, r.o.Pods, false)
	}
	return nil
}

// wait returns at the end of ctx, or with the cause when the agent is lost for good.
func (r *run) wait() error {
	select {
	case <-r.ctx.Done():
		return nil
	case <-r.pod.Lost():
		return r.pod.Err()
	}
}

// subscribe asks for a port, and explains a refusal.
func (r *run) subscribe(s wire.Subscribe) (*pod.Subscription, error) {
	sub, reply, err := r.pod.Subscribe(r.ctx, s)
	if err != nil {
		return nil, fmt.Errorf("ask for port %d: %w", s.Port, err)
	}
	if reply.Errno != 0 {
		return nil, fault.With(fmt.Errorf("%s port %d of %s: %s", s.Mode, s.Port, r.o.Target, reply.Error), reply.Hint)
	}
	return sub, nil
}

func (r *run) say(format string, a ...any) {
	r.o.Says.Say(fmt.Sprintf("stead: "+format, a...))
}

// trouble tells what is tried again and again, once.
func (r *run) trouble(err error) { r.o.Says.Once("stead: " + err.Error()) }

// local opens one -L.
func (r *run) local(l Local) error {
	ln, err := net.Listen("tcp", l.Listen.String())
	if err != nil {
		return fault.With(fmt.Errorf("listen on %s: %w", l.Listen, err), "take another port: -L 0:"+l.Host+":"+strconv.Itoa(int(l.Port))+" takes any that is free")
	}
	r.say("%s -> %s as %s sees it", ln.Addr(), net.JoinHostPort(l.Host, strconv.Itoa(int(l.Port))), r.o.Target)
	stop := context.AfterFunc(r.ctx, func() { ln.Close() })
	r.work.Add(1)
	go func() { // ends with the listener, which ends with ctx
		defer r.work.Done()
		defer stop()
		for {
			c, err := ln.Accept()
			if err != nil {
				if errors.Is(err, net.ErrClosed) {
					return
				}
				time.Sleep(acceptPause) // out of descriptors
				continue
			}
			r.work.Add(1)
			go func() { defer r.work.Done(); r.carry(c, l) }()
		}
	}()
	return nil
}

const acceptPause = 20 * time.Millisecond

// carry connects from the target and relays. It owns c.
func (r *run) carry(c net.Conn, l Local) {
	st, err := r.dial(l)
	if err != nil {
		r.say("connection from %s: %v", c.RemoteAddr(), err)
		_ = c.(*net.TCPConn).SetLinger(0) // refused is what it was
		c.Close()
		return
	}
	tunnel.Relay(r.ctx, c, st)
}

// dial connects to l's host from the target, trying each address.
func (r *run) dial(l Local) (tunnel.Stream, error) {
	addrs, err := r.names.lookup(r.ctx, l.Host)
	if err != nil {
		return nil, err
	}
	for _, a := range addrs {
		to := netip.AddrPortFrom(a, l.Port)
		st, reply, derr := r.pod.Dial(r.ctx, wire.Dial{Network: "tcp", To: to})
		switch {
		case derr != nil:
			return nil, derr
		case reply.Errno == 0:
			return st, nil
		}
		err = fmt.Errorf("connect to %s from %s: %w", to, r.o.Target, syscall.Errno(reply.Errno))
	}
	return nil, err
}

// table finds the -R of a subscription.
type table struct {
	mu sync.Mutex
	to map[uint64]Remote
}

func (t *table) set(id uint64, r Remote) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.to[id] = r
}

func (t *table) get(id uint64) (Remote, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r, ok := t.to[id]
	return r, ok
}

// incoming carries a caught connection to the laptop; where nobody listens there, it goes to the app.
func (r *run) incoming(t *table, st tunnel.Stream, in wire.Incoming) {
	to, ok := t.get(in.Subscription)
	var c net.Conn
	err := errors.New("no such port")
	if ok {
		d := net.Dialer{Timeout: 5 * time.Second}
		c, err = d.DialContext(r.ctx, "tcp", to.To)
	}
	if err != nil {
		if ok {
			r.say("connection of %s goes to the app: %v", in.Remote, err)
		}
		_ = wire.Write(st, wire.Reply{Errno: uint32(syscall.ECONNREFUSED), Error: err.Error()})
		st.Close()
		return
	}
	if err := wire.Write(st, wire.Reply{}); err != nil {
		c.Close()
		st.Reset(0)
		return
	}
	tunnel.Relay(r.ctx, c, st)
}
