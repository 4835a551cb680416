// Package agent is what stands beside the target: it connects, listens, and reads files on behalf
// of sessions, in the target's namespaces. One agent serves any number of sessions of one target.
//
// It changes the target in nothing that outlives it: every change is held by a file descriptor (a
// socket, a BPF link, an nftables table owned by a netlink socket), so however it dies the kernel
// takes it back. It never enters the target's mount namespace and runs nothing of the target's.
//
// It ends by itself when its last session has ended, when the target's main process ends, and when
// whoever started it is gone.
package agent

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/tunnel"
	"github.com/stead-dev/stead/internal/wire"
)

// Config is what an agent is started with.
type Config struct {
	PID      int           // the target's main process
	Listener net.Listener  // brings transports; the agent closes it. Its end ends the agent
	Secret   []byte        // what a session must know; empty where the listener is private
	Linger   time.Duration // how long to wait for a (next) session; default 10 s
	Resume   time.Duration // how long a session may be away; see tunnel.Options
	Steal    string        // "auto", "sk_lookup" or "nft"
	Build    string
	Log      *slog.Logger // nil: silent
}

// server is a running agent.
type server struct {
	c      Config
	target *target
	tun    *tunnel.Server
	ports  *ports
	roster roster
	work   sync.WaitGroup
	live   atomic.Int32 // sessions
	change chan struct{}
	late   chan struct{} // requests for files of a volume that hangs
}

const defaultLinger = 10 * time.Second

// Run serves until the agent's use is over. The error says why it could not begin; an agent that
// ends as it should returns nil.
func Run(ctx context.Context, c Config) error {
	defer c.Listener.Close()
	if c.Linger == 0 {
		c.Linger = defaultLinger
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	t, err := openTarget(c.PID)
	if err != nil {
		return err
	}
	defer t.close()
	c.Log.Info("agent begins", "pid", c.PID, "build", c.Build)
	s := &server{c: c, target: t, tun: tunnel.NewServer(tunnel.Options{Resume: c.Resume}), change: make(chan struct{}, 1), late: make(chan struct{}, maxSlow)}
	s.ports = newPorts(t, c.Steal, c.Log)
	ctx, cancel := context.WithCancel(ctx)
	defer func() {
		cancel()
		c.Listener.Close()
		s.tun.Close()
		s.ports.close()
		s.work.Wait()
	}()
	starter := make(chan struct{})
	s.work.Add(2)
	go func() { defer s.work.Done(); defer close(starter); s.transports(ctx) }()
	go func() { defer s.work.Done(); s.sessions(ctx) }()
	c.Log.Info("agent ends", "why", s.supervise(ctx, starter))
	return nil
}

// supervise returns when the agent is of no more use, and why.
func (s *server) supervise(ctx context.Context, starter <-chan struct{}) string {
	idle := time.NewTimer(s.c.Linger)
	defer idle.Stop()
	for {
		select {
		case <-ctx.Done():
			return "it was told to"
		case <-starter:
			return "whoever started it is gone"
		case <-s.target.ended:
			time.Sleep(100 * time.Millisecond) // the sessions' last words
			return "the target's main process has ended"
		case <-s.change:
			if s.live.Load() == 0 {
				idle.Reset(s.c.Linger)
			}
		case <-idle.C:
			if s.live.Load() == 0 && s.tun.Tunnels() == 0 {
				return fmt.Sprintf("no session for %v", s.c.Linger)
			}
			idle.Reset(s.c.Linger)
		}
	}
}

func (s *server) transports(ctx context.Context) {
	for {
		t, err := s.c.Listener.Accept()
		if err != nil {
			// Out of descriptors or memory for a moment; anything else is the end of the listener.
			if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.ENOMEM) {
				time.Sleep(acceptPause)
				continue
			}
			return
		}
		s.work.Add(1)
		go func() {
			defer s.work.Done()
			if err := s.tun.Handle(ctx, t); err != nil {
				s.c.Log.Error("refused", "err", fmt.Errorf("transport: %w", err))
			}
		}()
	}
}

func (s *server) sessions(ctx context.Context) {
	for {
		t, err := s.tun.Accept(ctx)
		if err != nil {
			return
		}
		s.live.Add(1)
		s.work.Add(1)
		go func() {
			defer s.work.Done()
			x := &session{s: s, t: t}
			x.serve(ctx)
			s.roster.remove(x)
			t.Close()
			s.live.Add(-1)
			if !x.greeted.Load() { // who only asks does not keep the agent
				return
			}
			s.c.Log.Info("session ends", "holder", x.holder)
			select {
			case s.change <- struct{}{}:
			default:
			}
		}()
	}
}

// session is one developer's session. Its goroutine ends with the tunnel, after all that it
// started.
type session struct {
	s       *server
	t       tunnel.Conn
	known   atomic.Bool // it has introduced itself; whoever set it sets holder
	holder  string      // not to be read before greeted
	greeted atomic.Bool
	work    sync.WaitGroup
}

// kinds is the table of what a stream may be for.
var kinds map[wire.Kind]func(*session, context.Context, tunnel.Stream, *wire.Open)

func init() {
	kinds = map[wire.Kind]func(*session, context.Context, tunnel.Stream, *wire.Open){
		wire.KindControl:   (*session).control,
		wire.KindDial:      (*session).dial,
		wire.KindPacket:    (*session).packet,
		wire.KindSubscribe: (*session).subscribe,
		wire.KindFiles:     (*session).files,
		wire.KindStatus:    (*session).status,
	}
}

// openTimeout bounds the wait for the first message of a stream.
const openTimeout = 30 * time.Second

func (x *session) serve(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer x.work.Wait()
	defer cancel()
	for {
		st, err := x.t.Accept(ctx)
		if err != nil {
			return
		}
		x.work.Add(1)
		go func() {
			defer x.work.Done()
			var o wire.Open
			st.SetReadDeadline(time.Now().Add(openTimeout))
			if err := wire.Read(st, &o); err != nil {
				st.Reset(uint32(unix.EPROTO))
				return
			}
			st.SetReadDeadline(time.Time{})
			serve := kinds[o.Kind]
			if serve == nil || o.Kind != wire.KindControl && o.Kind != wire.KindStatus && !x.greeted.Load() {
				st.Reset(uint32(unix.EPROTO))
				return
			}
			serve(x, ctx, st, &o)
		}()
	}
}

// control greets the session, then tells it when the target ends.
func (x *session) control(ctx context.Context, st tunnel.Stream, o *wire.Open) {
	defer st.Close()
	w := x.welcome(o.Hello)
	if w.Error != "" {
		x.s.c.Log.Error("session refused", "err", w.Error)
	}
	if err := wire.Write(st, w); err != nil || w.Error != "" {
		return
	}
	x.s.c.Log.Info("session begins", "holder", x.holder, "build", o.Hello.Build)
	end := make(chan struct{})
	go func() { // ends with the stream
		io.Copy(io.Discard, st)
		close(end)
	}()
	select {
	case <-end:
		x.t.Close()
	case <-x.s.target.ended:
		_ = wire.Write(st, wire.Event{Kind: wire.EventTargetGone, Text: "its main process is gone"})
	case <-ctx.Done():
	}
}

// longestName bounds what a session says of itself and others are told.
const longestName = 256

func (x *session) welcome(h *wire.Hello) *wire.Welcome {
	w := &wire.Welcome{Build: x.s.c.Build}
	switch {
	case h == nil:
		w.Error = "no greeting"
		return w
	case subtle.ConstantTimeCompare(h.Secret, x.s.c.Secret) != 1:
		w.Error, w.Hint = "wrong secret", "the agent belongs to somebody else's session: start another one"
		return w
	case h.MinVersion > wire.Version || h.Version < wire.MinVersion:
		w.Error = fmt.Sprintf("stead %s speaks protocol %d to %d, the agent %s speaks %d to %d", h.Build, h.MinVersion, h.Version, x.s.c.Build, wire.MinVersion, wire.Version)
		w.Hint = "use a stead and an agent of the same version"
		return w
	}
	t, err := x.s.target.describe()
	if err != nil {
		w.Error = err.Error()
		return w
	}
	if !x.known.CompareAndSwap(false, true) {
		w.Error = "the session has introduced itself already"
		return w
	}
	t.Features = x.s.ports.features()
	w.Target, w.Version = *t, min(h.Version, wire.Version)
	x.holder = h.Holder[:min(len(h.Holder), longestName)]
	x.s.roster.add(x, x.holder, h.Build[:min(len(h.Build), longestName)])
	x.greeted.Store(true)
	return w
}

// fail answers a request that the agent could not fulfil.
func fail(st tunnel.Stream, err error) {
	var errno unix.Errno
	if !errors.As(err, &errno) {
		errno = unix.EIO
	}
	_ = wire.Write(st, wire.Reply{Errno: uint32(errno), Error: err.Error()})
	st.Close()
}
