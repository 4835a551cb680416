package pod

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"

	"github.com/stead-dev/stead/internal/fault"
	"github.com/stead-dev/stead/internal/leak"
	"github.com/stead-dev/stead/internal/tunnel"
	"github.com/stead-dev/stead/internal/wire"
)

func TestMain(m *testing.M) { os.Exit(leak.Main(m.Run)) }

// agent is the other end of a real tunnel. Each stream of the session's is served by what is set for its
// kind; the first is answered by welcome.
type agent struct {
	welcome wire.Welcome
	hello   chan wire.Hello
	kinds   map[wire.Kind]func(tunnel.Stream, wire.Open)
	tunnels chan tunnel.Conn
	control chan tunnel.Stream
}

func newAgent() *agent {
	return &agent{welcome: wire.Welcome{Version: wire.Version, Target: wire.Target{Hostname: "orders-0"}}, hello: make(chan wire.Hello, 1),
		kinds: map[wire.Kind]func(tunnel.Stream, wire.Open){}, tunnels: make(chan tunnel.Conn, 1), control: make(chan tunnel.Stream, 1)}
}

// attach begins a session with the agent, which lasts as long as the test.
func (a *agent) attach(t *testing.T, h Handlers) (*Conn, error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	srv := tunnel.NewServer(tunnel.Options{Resume: -1})
	var work sync.WaitGroup
	work.Add(1)
	go func() {
		defer work.Done()
		c, err := srv.Accept(ctx)
		if err != nil {
			return
		}
		a.tunnels <- c
		for {
			st, err := c.Accept(ctx)
			if err != nil {
				return
			}
			work.Add(1)
			go func() { defer work.Done(); a.serve(st) }()
		}
	}()
	t.Cleanup(func() { cancel(); srv.Close(); work.Wait() })
	tun, err := tunnel.Dial(ctx, func(context.Context) (net.Conn, error) {
		here, there := net.Pipe()
		work.Add(1)
		go func() { defer work.Done(); srv.Handle(ctx, there) }()
		return here, nil
	}, tunnel.Options{Resume: -1})
	if err != nil {
		t.Fatal(err)
	}
	return Attach(ctx, tun, wire.Hello{Build: "test", Holder: "ann@laptop", Secret: []byte("s")}, h)
}

func (a *agent) serve(st tunnel.Stream) {
	var o wire.Open
	if wire.Read(st, &o) != nil {
		st.Reset(0)
		return
	}
	if o.Kind == wire.KindControl && a.kinds[o.Kind] == nil {
		a.hello <- *o.Hello
		wire.Write(st, a.welcome)
		a.control <- st
		return
	}
	if f := a.kinds[o.Kind]; f != nil {
		f(st, o)
	}
	st.Close()
}

func joined(t *testing.T, a *agent, h Handlers) *Conn {
	t.Helper()
	c, err := a.attach(t, h)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

var ctx = context.Background()

func TestASessionIntroducesItselfAndLearnsOfTheTarget(t *testing.T) {
	a := newAgent()
	c := joined(t, a, Handlers{})
	h := <-a.hello
	if h.Version != wire.Version || h.MinVersion != wire.MinVersion || h.Holder != "ann@laptop" || string(h.Secret) != "s" || h.Build != "test" {
		t.Errorf("%+v", h)
	}
	if c.Target().Hostname != "orders-0" || c.Err() != nil {
		t.Errorf("%+v, %v", c.Target(), c.Err())
	}
}

func TestARefusalIsTheAgentsCauseWithItsHint(t *testing.T) {
	a := newAgent()
	a.welcome = wire.Welcome{Error: "stead v1 speaks protocol 1 to 1, the agent v9 speaks 3 to 4", Hint: "use the same version"}
	_, err := a.attach(t, Handlers{})
	if err == nil || err.Error() != "agent refused the session: "+a.welcome.Error || fault.Hint(err) != a.welcome.Hint {
		t.Errorf("%v, hint %q", err, fault.Hint(err))
	}
}

func TestAnAgentThatEndsWhileItIsGreetedIsAnError(t *testing.T) {
	a := newAgent()
	a.kinds[wire.KindControl] = func(tunnel.Stream, wire.Open) { (<-a.tunnels).Close() }
	if c, err := a.attach(t, Handlers{}); err == nil {
		c.Close()
		t.Error("greeted")
	}
}

func TestWhatThePodsKernelSaysComesAsItIs(t *testing.T) {
	a := newAgent()
	local := netip.MustParseAddrPort("10.244.0.11:33000")
	a.kinds[wire.KindDial] = func(st tunnel.Stream, o wire.Open) {
		if o.Dial.To.Port() == 1 {
			wire.Write(st, wire.Reply{Errno: uint32(syscall.ECONNREFUSED), Error: "refused"})
			return
		}
		wire.Write(st, wire.Reply{Local: local, Remote: o.Dial.To})
		io.Copy(st, st)
	}
	a.kinds[wire.KindPacket] = func(st tunnel.Stream, o wire.Open) {
		wire.Write(st, wire.Reply{Errno: uint32(syscall.EAFNOSUPPORT)})
	}
	c := joined(t, a, Handlers{})
	to := netip.MustParseAddrPort("10.244.0.12:5432")
	st, r, err := c.Dial(ctx, wire.Dial{Network: "tcp", To: to})
	if err != nil || st == nil || r.Local != local || r.Remote != to {
		t.Fatalf("%+v, %v", r, err)
	}
	io.WriteString(st, "hello")
	st.CloseWrite()
	if b, err := io.ReadAll(st); string(b) != "hello" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	st.Close()
	st, r, err = c.Dial(ctx, wire.Dial{Network: "tcp", To: netip.AddrPortFrom(to.Addr(), 1)})
	if st != nil || err != nil || syscall.Errno(r.Errno) != syscall.ECONNREFUSED {
		t.Errorf("refused: %v, %+v, %v", st, r, err)
	}
	if st, r, err := c.Packet(ctx, wire.Packet{IPv6: true}); st != nil || err != nil || syscall.Errno(r.Errno) != syscall.EAFNOSUPPORT {
		t.Errorf("no IPv6: %v, %+v, %v", st, r, err)
	}
}

// Who gives up a connect gives it up in the pod, too.
func TestTheEndOfTheCallersContextEndsTheAgentsWork(t *testing.T) {
	a := newAgent()
	begun, ended := make(chan struct{}), make(chan error, 1)
	a.kinds[wire.KindDial] = func(st tunnel.Stream, _ wire.Open) {
		close(begun)
		_, err := st.Read(make([]byte, 1)) // the pod's kernel does not answer
		ended <- err
	}
	c := joined(t, a, Handlers{})
	ctx, cancel := context.WithCancel(ctx)
	go func() { <-begun; cancel() }()
	if st, _, err := c.Dial(ctx, wire.Dial{}); !errors.Is(err, context.Canceled) || st != nil {
		t.Errorf("%v, %v", st, err)
	}
	if err := <-ended; !errors.As(err, new(*tunnel.ResetError)) {
		t.Errorf("the agent's end: %v", err)
	}
}

func TestASubscriptionLastsUntilItIsClosedAndBringsNews(t *testing.T) {
	a := newAgent()
	ended := make(chan struct{})
	a.kinds[wire.KindSubscribe] = func(st tunnel.Stream, o wire.Open) {
		if o.Subscribe.Port == 1 {
			wire.Write(st, wire.Reply{Errno: uint32(syscall.EADDRINUSE), Error: "bob is stealing it already"})
			return
		}
		wire.Write(st, wire.Reply{ID: 42})
		wire.Write(st, wire.Event{Kind: wire.EventDropped, Count: 7})
		st.Read(make([]byte, 1))
		close(ended)
	}
	news := make(chan wire.Event, 1)
	c := joined(t, a, Handlers{Event: func(e wire.Event) { news <- e }})
	s, _, err := c.Subscribe(ctx, wire.Subscribe{Network: "tcp", Port: 8080, Mode: wire.Steal})
	if err != nil || s.ID != 42 {
		t.Fatalf("%+v, %v", s, err)
	}
	if e := <-news; e.Kind != wire.EventDropped || e.Count != 7 {
		t.Errorf("%+v", e)
	}
	select {
	case <-ended:
		t.Error("it ends by itself")
	default:
	}
	s.Close()
	<-ended
	if s, r, err := c.Subscribe(ctx, wire.Subscribe{Network: "tcp", Port: 1, Mode: wire.Steal}); s != nil || err != nil || syscall.Errno(r.Errno) != syscall.EADDRINUSE || r.Error == "" {
		t.Errorf("somebody else's port: %+v, %+v, %v", s, r, err)
	}
}

func TestACaughtConnectionIsHandedOutAndNonsenseIsReset(t *testing.T) {
	a := newAgent()
	in := wire.Incoming{Subscription: 3, Remote: netip.MustParseAddrPort("10.0.0.1:1"), Local: netip.MustParseAddrPort("10.0.0.2:2")}
	c := joined(t, a, Handlers{Incoming: func(s tunnel.Stream, got wire.Incoming) {
		if got != in {
			t.Errorf("%+v", got)
		}
		wire.Write(s, wire.Reply{})
		io.Copy(s, s)
		s.Close()
	}})
	tun := <-a.tunnels
	st, err := tun.Open(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var r wire.Reply
	if err := errors.Join(wire.Write(st, wire.Open{Kind: wire.KindIncoming, Incoming: &in}), wire.Read(st, &r)); err != nil || r.Errno != 0 {
		t.Fatal(r, err)
	}
	io.WriteString(st, "hello")
	st.CloseWrite()
	if b, err := io.ReadAll(st); string(b) != "hello" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	st.Close()
	for name, o := range map[string]any{
		"a kind that no session takes":        wire.Open{Kind: wire.KindDial, Dial: &wire.Dial{}},
		"an incoming one that says not whose": wire.Open{Kind: wire.KindIncoming},
		"no message":                          "nonsense",
	} {
		st, err := tun.Open(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := wire.Write(st, o); err != nil {
			t.Fatal(err)
		}
		if _, err := st.Read(make([]byte, 1)); !errors.As(err, new(*tunnel.ResetError)) {
			t.Errorf("%s: %v", name, err)
		}
		st.Close()
	}
	if c.Err() != nil {
		t.Errorf("the session has ended of it: %v", c.Err())
	}
}

func TestTheTargetsEndAndTheAgentsAreToldApart(t *testing.T) {
	for _, gone := range []bool{true, false} {
		a := newAgent()
		news := make(chan wire.Event, 1)
		c := joined(t, a, Handlers{Event: func(e wire.Event) { news <- e }})
		control := <-a.control
		if gone {
			if err := wire.Write(control, wire.Event{Kind: wire.EventTargetGone, Text: "its main process is gone"}); err != nil {
				t.Fatal(err)
			}
			if e := <-news; e.Kind != wire.EventTargetGone {
				t.Errorf("%+v", e)
			}
		}
		(<-a.tunnels).Close()
		<-c.Done()
		if c.Err() == nil || c.TargetGone() != gone {
			t.Errorf("%v, target gone %v, want %v", c.Err(), c.TargetGone(), gone)
		}
		if _, _, err := c.Dial(ctx, wire.Dial{}); err == nil {
			t.Error("a lost agent connects")
		}
	}
}

func TestCloseWaitsForWhoServesAConnection(t *testing.T) {
	a := newAgent()
	begun, served := make(chan struct{}), false
	c := joined(t, a, Handlers{Incoming: func(s tunnel.Stream, _ wire.Incoming) {
		close(begun)
		io.Copy(io.Discard, s) // until the tunnel's end
		served = true          // the race detector sees it when nobody waits
	}})
	st, err := (<-a.tunnels).Open(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := wire.Write(st, wire.Open{Kind: wire.KindIncoming, Incoming: &wire.Incoming{}}); err != nil {
		t.Fatal(err)
	}
	<-begun
	c.Close()
	if !served {
		t.Error("a handler goes on after Close")
	}
}
