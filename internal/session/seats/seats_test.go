package seats

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stead-dev/stead/internal/tunnel"
	"github.com/stead-dev/stead/internal/wire"
)

// agent answers as an agent does, on a real tunnel: what is tested is the session's side.
type agent struct {
	name   string
	srv    *tunnel.Server
	cancel context.CancelFunc
	end    chan struct{} // closed when its target ends
	ended  sync.Once

	mu     sync.Mutex
	next   uint64
	ports  map[uint16]uint64 // asked for, with the number given
	held   bool              // somebody else has every port
	deaf   chan struct{}     // while not nil, connections are not answered
	tunnel tunnel.Conn
}

func newAgent(name string, first uint64) *agent {
	a := &agent{name: name, srv: tunnel.NewServer(tunnel.Options{Resume: -1}), end: make(chan struct{}), next: first, ports: make(map[uint16]uint64)}
	ctx, cancel := context.WithCancel(context.Background())
	a.cancel = cancel
	go func() {
		for {
			c, err := a.srv.Accept(ctx)
			if err != nil {
				return
			}
			a.mu.Lock()
			a.tunnel = c
			a.mu.Unlock()
			go func() {
				for {
					st, err := c.Accept(ctx)
					if err != nil {
						return
					}
					go a.serve(c, st)
				}
			}()
		}
	}()
	return a
}

func (a *agent) dial(ctx context.Context) (net.Conn, error) {
	select {
	case <-a.end:
		return nil, fmt.Errorf("%s is gone: %w", a.name, tunnel.ErrUnknownTunnel)
	default:
	}
	here, there := net.Pipe()
	go a.srv.Handle(context.Background(), there)
	return here, nil
}

// dies ends the agent, because its target has ended or not.
func (a *agent) dies(target bool) {
	if target {
		a.ended.Do(func() { close(a.end) })
		return
	}
	a.mu.Lock()
	c := a.tunnel
	a.mu.Unlock()
	c.Close()
}

func (a *agent) close() {
	a.cancel()
	a.srv.Close()
}

// serve answers one stream. A connection's answer is the agent's name.
func (a *agent) serve(c tunnel.Conn, st tunnel.Stream) {
	defer st.Close()
	var o wire.Open
	if wire.Read(st, &o) != nil {
		return
	}
	switch o.Kind {
	case wire.KindControl:
		wire.Write(st, wire.Welcome{Version: wire.Version, Target: wire.Target{Hostname: a.name}})
		stop := make(chan struct{})
		go func() { st.Read(make([]byte, 1)); close(stop) }()
		select {
		case <-a.end:
			wire.Write(st, wire.Event{Kind: wire.EventTargetGone, Text: "gone"})
			time.Sleep(100 * time.Millisecond) // as an agent does
			c.Close()
		case <-stop:
			c.Close()
		}
	case wire.KindDial, wire.KindPacket, wire.KindFiles:
		a.mu.Lock()
		deaf := a.deaf
		a.mu.Unlock()
		if deaf != nil {
			<-deaf
		}
		if o.Kind != wire.KindFiles {
			wire.Write(st, wire.Reply{Local: netip.MustParseAddrPort("10.0.0.1:1")})
		}
		st.Write([]byte(a.name))
	case wire.KindSubscribe:
		a.mu.Lock()
		if a.held {
			a.mu.Unlock()
			wire.Write(st, wire.Reply{Errno: uint32(syscall.EADDRINUSE), Error: "bob is stealing it already"})
			return
		}
		a.next++
		id := a.next
		a.ports[o.Subscribe.Port] = id
		a.mu.Unlock()
		wire.Write(st, wire.Reply{ID: id})
		st.Read(make([]byte, 1))
		a.mu.Lock()
		delete(a.ports, o.Subscribe.Port)
		a.mu.Unlock()
	}
}

// catches brings a connection of a port to the session.
func (a *agent) catches(t *testing.T, port uint16) {
	t.Helper()
	a.mu.Lock()
	id, ok := a.ports[port]
	c := a.tunnel
	a.mu.Unlock()
	if !ok {
		t.Fatalf("%s was not asked for port %d", a.name, port)
	}
	st, err := c.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	wire.Write(st, wire.Open{Kind: wire.KindIncoming, Incoming: &wire.Incoming{Subscription: id}})
	var r wire.Reply
	if err := wire.Read(st, &r); err != nil {
		t.Fatalf("%s brings a connection: %v", a.name, err)
	}
	st.Close()
}

func (a *agent) asked(port uint16) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	_, ok := a.ports[port]
	return ok
}

// bench is a room with what it says.
type bench struct {
	*Room
	mu       sync.Mutex
	said     []string
	troubles []string
	incoming []uint64
	moves    int
	agents   []*agent
}

func newBench(wait time.Duration) *bench {
	b := &bench{}
	b.Room = New(Config{
		Target: "deployment/orders", Hello: wire.Hello{Build: "test"}, Wait: wait,
		Incoming: func(st tunnel.Stream, in wire.Incoming) {
			b.mu.Lock()
			b.incoming = append(b.incoming, in.Subscription)
			b.mu.Unlock()
			wire.Write(st, wire.Reply{})
			st.Close()
		},
		Event:   func(wire.Event) {},
		Notice:  func(s string) { b.mu.Lock(); defer b.mu.Unlock(); b.said = append(b.said, s) },
		Trouble: func(err error) { b.mu.Lock(); defer b.mu.Unlock(); b.troubles = append(b.troubles, err.Error()) },
		Moved:   func() { b.mu.Lock(); defer b.mu.Unlock(); b.moves++ },
	})
	return b
}

func (b *bench) agent(name string) *agent {
	a := newAgent(name, uint64(100*len(b.agents))) // no number is the same at two of them
	b.agents = append(b.agents, a)
	return a
}

// pods is a Source whose pods the test adds and ends.
type pods struct {
	join chan func(Join)
	over chan error
}

func (p *pods) source(ctx context.Context, all bool, first *Seat, join Join, ready func()) error {
	ready()
	for {
		select {
		case f := <-p.join:
			f(join)
		case err := <-p.over:
			return err
		case <-ctx.Done():
			return nil
		}
	}
}

func newPods() *pods { return &pods{join: make(chan func(Join)), over: make(chan error)} }

func (p *pods) come(t *testing.T, a *agent) (s *Seat) {
	t.Helper()
	done := make(chan struct{})
	p.join <- func(join Join) {
		defer close(done)
		var err error
		if s, err = join(t.Context(), a.name, a.dial); err != nil {
			t.Errorf("join %s: %v", a.name, err)
		}
	}
	<-done
	return s
}

// try runs f with a room that stands for pod b, in a bubble of time: it does not end while a goroutine
// is left.
func try(t *testing.T, wait time.Duration, f func(t *testing.T, b *bench, first *agent, p *pods)) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(wait)
		first := b.agent("b")
		if err := b.Begin(t.Context(), "b", first.dial); err != nil {
			t.Fatal(err)
		}
		p := newPods()
		b.Follow(t.Context(), p.source, true)
		f(t, b, first, p)
		b.Close()
		for _, a := range b.agents {
			a.close()
		}
	})
}

// answeredBy says who a connection leads to.
func answeredBy(t *testing.T, b *bench) string {
	t.Helper()
	st, _, err := b.Dial(t.Context(), wire.Dial{Network: "tcp", To: netip.MustParseAddrPort("10.9.9.9:1")})
	if err != nil {
		return "error: " + err.Error()
	}
	defer st.Close()
	got := make([]byte, 1)
	if _, err := st.Read(got); err != nil {
		t.Fatal(err)
	}
	return string(got)
}

func (b *bench) expect(t *testing.T, said ...string) {
	t.Helper()
	synctest.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	if !slices.Equal(b.said, said) {
		t.Errorf("said %q, want %q", b.said, said)
	}
}

func TestWhoIsStoodFor(t *testing.T) {
	seat := func(name string, ending bool) *Seat { return &Seat{name: name, ending: ending} }
	a, b, c := seat("a", false), seat("b", false), seat("c", true)
	d := seat("d", true)
	for _, x := range []struct {
		what string
		now  *Seat
		all  []*Seat
		want *Seat
	}{
		{"nobody is there", nil, nil, nil},
		{"the first by name", nil, []*Seat{b, a}, a},
		{"who is stood for stays", b, []*Seat{a, b}, b},
		{"one that is gone does not", b, []*Seat{a}, a},
		{"one that is about to end gives way", c, []*Seat{c, b}, b},
		{"and stays where there is no other", c, []*Seat{c}, c},
		{"or only others that are about to end", d, []*Seat{c, d}, d},
		{"one about to end comes last", nil, []*Seat{c, b}, b},
		{"the first of those, where all are", b, []*Seat{d, c}, c},
	} {
		if got := choose(x.now, x.all); got != x.want {
			t.Errorf("%s: %+v", x.what, got)
		}
	}
}

func TestAPortIsAskedForAtEveryPodAlsoAtThoseThatCome(t *testing.T) {
	try(t, time.Minute, func(t *testing.T, b *bench, first *agent, p *pods) {
		second, third := b.agent("a"), b.agent("c")
		p.come(t, second)
		sub, reply, err := b.Subscribe(t.Context(), wire.Subscribe{Network: "tcp", Port: 80, Mode: wire.Steal})
		if err != nil || reply.Errno != 0 {
			t.Fatal(err, reply)
		}
		p.come(t, third)
		for _, a := range []*agent{first, second, third} {
			a.catches(t, 80)
		}
		if want := []uint64{sub.ID, sub.ID, sub.ID}; !slices.Equal(b.incoming, want) {
			t.Errorf("told as %v, want %v", b.incoming, want)
		}
		if got := answeredBy(t, b); got != "b" {
			t.Errorf("leaves from %s", got)
		}
		sub.Close()
		synctest.Wait()
		for _, a := range []*agent{first, second, third} {
			if a.asked(80) {
				t.Errorf("%s still has the port", a.name)
			}
		}
		fourth := b.agent("d")
		p.come(t, fourth)
		if fourth.asked(80) {
			t.Error("a port that was given back is asked for again")
		}
		b.expect(t)
	})
}

func TestAConnectionThatNobodyAskedForIsRefused(t *testing.T) {
	try(t, time.Minute, func(t *testing.T, b *bench, first *agent, p *pods) {
		first.mu.Lock()
		c := first.tunnel
		first.mu.Unlock()
		st, err := c.Open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		wire.Write(st, wire.Open{Kind: wire.KindIncoming, Incoming: &wire.Incoming{Subscription: 1}})
		var r wire.Reply
		if err := wire.Read(st, &r); err == nil && r.Errno == 0 {
			t.Error("it is taken")
		}
		if len(b.incoming) != 0 {
			t.Errorf("told as %v", b.incoming)
		}
	})
}

func TestWhenThePodEndsTheNextIsStoodForAndThePortsStay(t *testing.T) {
	try(t, time.Minute, func(t *testing.T, b *bench, first *agent, p *pods) {
		second := b.agent("c")
		p.come(t, second)
		if _, _, err := b.Subscribe(t.Context(), wire.Subscribe{Network: "tcp", Port: 80, Mode: wire.Steal}); err != nil {
			t.Fatal(err)
		}
		first.dies(true)
		time.Sleep(time.Second)
		if got := answeredBy(t, b); got != "c" {
			t.Errorf("leaves from %s", got)
		}
		st, err := b.Files(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		name := make([]byte, 1)
		if st.Read(name); string(name) != "c" || b.Target().Hostname != "c" {
			t.Errorf("files of %s, target %s", name, b.Target().Hostname)
		}
		st.Close()
		second.catches(t, 80)
		b.expect(t, "pod b ended; now in the stead of pod c")
		if b.moves != 1 {
			t.Errorf("told %d times", b.moves)
		}
	})
}

func TestACallThatComesWhileNobodyIsStoodForWaitsForTheNext(t *testing.T) {
	try(t, time.Minute, func(t *testing.T, b *bench, first *agent, p *pods) {
		first.dies(true)
		time.Sleep(time.Second)
		got := make(chan string, 2)
		go func() { got <- answeredBy(t, b) }()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if _, _, err := b.Dial(ctx, wire.Dial{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("one that does not wait: %v", err)
		}
		time.Sleep(10 * time.Second)
		p.come(t, b.agent("z"))
		if who := <-got; who != "z" {
			t.Errorf("answered by %s", who)
		}
		b.expect(t, "pod b ended; waiting for another one, for at most 1m0s", "pod b ended; now in the stead of pod z")
	})
}

func TestACallUnderWayIsMadeAnewWhenItsPodEnds(t *testing.T) {
	try(t, time.Minute, func(t *testing.T, b *bench, first *agent, p *pods) {
		first.mu.Lock()
		first.deaf = make(chan struct{})
		first.mu.Unlock()
		got := make(chan string, 1)
		go func() { got <- answeredBy(t, b) }()
		synctest.Wait()
		first.dies(true)
		p.come(t, b.agent("c"))
		if who := <-got; who != "c" {
			t.Errorf("answered by %s", who)
		}
		close(first.deaf)
	})
}

func TestAPodThatIsAboutToEndGivesWayAndKeepsWhatItHas(t *testing.T) {
	try(t, time.Minute, func(t *testing.T, b *bench, first *agent, p *pods) {
		if _, _, err := b.Subscribe(t.Context(), wire.Subscribe{Network: "tcp", Port: 80, Mode: wire.Steal}); err != nil {
			t.Fatal(err)
		}
		b.mu.Lock()
		seat := b.Room.at
		b.mu.Unlock()
		seat.Ending()
		if got := answeredBy(t, b); got != "b" {
			t.Errorf("while there is no other: %s", got)
		}
		p.come(t, b.agent("c"))
		if got := answeredBy(t, b); got != "c" {
			t.Errorf("leaves from %s", got)
		}
		first.catches(t, 80)
		first.dies(true)
		time.Sleep(time.Second)
		b.expect(t, "pod b ended; now in the stead of pod c")
	})
}

func TestTheSameAppStartedAnewAndAnotherAgentAreToldAsWhatTheyAre(t *testing.T) {
	try(t, time.Minute, func(t *testing.T, b *bench, first *agent, p *pods) {
		first.dies(true)
		time.Sleep(time.Second)
		again := b.agent("b")
		p.come(t, again)
		again.dies(false)
		time.Sleep(time.Second)
		p.come(t, b.agent("b"))
		synctest.Wait()
		if len(b.said) != 2 || b.said[0] != "the app of pod b was started anew; now in the stead of that" ||
			!strings.HasPrefix(b.said[1], "lost the agent beside pod b (") || !strings.HasSuffix(b.said[1], "another one stands there now") {
			t.Errorf("said %q", b.said)
		}
	})
}

func TestWhoIsLostForGoodIsTold(t *testing.T) {
	lost := func(t *testing.T, b *bench, words ...string) {
		t.Helper()
		select {
		case <-b.Lost():
		case <-time.After(time.Hour):
			t.Fatal("never lost")
		}
		for _, w := range words {
			if !strings.Contains(b.Err().Error(), w) {
				t.Errorf("%v, want %q", b.Err(), w)
			}
		}
		if _, _, err := b.Dial(t.Context(), wire.Dial{}); err == nil {
			t.Error("a connection through nobody")
		}
	}
	t.Run("after the wait", func(t *testing.T) {
		try(t, time.Minute, func(t *testing.T, b *bench, first *agent, p *pods) {
			began := time.Now()
			first.dies(true)
			lost(t, b, "pod b ended: none was there to stand for within 1m0s")
			if d := time.Since(began); d < time.Minute || d > 61*time.Second {
				t.Errorf("after %v", d)
			}
		})
	})
	t.Run("at once, where none will come", func(t *testing.T) {
		try(t, time.Minute, func(t *testing.T, b *bench, first *agent, p *pods) {
			first.dies(true)
			time.Sleep(time.Second)
			p.over <- errors.New("it has no pod any more")
			lost(t, b, "pod b ended: it has no pod any more")
		})
	})
	t.Run("where none will come any more, with the last", func(t *testing.T) {
		try(t, time.Minute, func(t *testing.T, b *bench, first *agent, p *pods) {
			p.over <- errors.New("it has no pod any more")
			synctest.Wait()
			select {
			case <-b.Lost():
				t.Fatal("lost while its pod is there")
			default:
			}
			first.dies(false)
			lost(t, b, "lost the agent beside deployment/orders: ", "it has no pod any more")
		})
	})
	t.Run("with its pod, where nobody wants to wait", func(t *testing.T) {
		try(t, 0, func(t *testing.T, b *bench, first *agent, p *pods) {
			p.come(t, b.agent("c"))
			first.dies(true)
			lost(t, b, "pod b ended")
			b.expect(t)
		})
	})
}

func TestAPortThatAnotherHasAtOnePodIsAskedForAgain(t *testing.T) {
	try(t, time.Minute, func(t *testing.T, b *bench, first *agent, p *pods) {
		second := b.agent("c")
		second.held = true
		p.come(t, second)
		if _, reply, err := b.Subscribe(t.Context(), wire.Subscribe{Network: "tcp", Port: 80, Mode: wire.Steal}); err != nil || reply.Errno != 0 {
			t.Fatal("the pod that is stood for gives it", err, reply)
		}
		if len(b.troubles) != 1 || b.troubles[0] != "steal port 80 of pod c: bob is stealing it already" {
			t.Errorf("told: %q", b.troubles)
		}
		second.mu.Lock()
		second.held = false
		second.mu.Unlock()
		time.Sleep(2 * catchUpEvery)
		second.catches(t, 80)
	})
}

func TestThePodThatIsStoodForDecidesWhetherAPortIsGiven(t *testing.T) {
	try(t, time.Minute, func(t *testing.T, b *bench, first *agent, p *pods) {
		second := b.agent("c")
		p.come(t, second)
		first.held = true
		sub, reply, err := b.Subscribe(t.Context(), wire.Subscribe{Network: "tcp", Port: 80, Mode: wire.Steal})
		if sub != nil || err != nil || reply.Errno != uint32(syscall.EADDRINUSE) {
			t.Errorf("%v, %v, %v", sub, reply, err)
		}
		time.Sleep(2 * catchUpEvery)
		if second.asked(80) {
			t.Error("the other has it all the same")
		}
	})
}

func TestATargetThatIsDialledAgainIsFollowedWhileItStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(time.Minute)
		var mu sync.Mutex
		now := b.agent("b")
		up := true
		dial := func(ctx context.Context) (net.Conn, error) {
			mu.Lock()
			defer mu.Unlock()
			return now.dial(ctx)
		}
		if err := b.Begin(t.Context(), "", dial); err != nil {
			t.Fatal(err)
		}
		b.Follow(t.Context(), Same("playground/orders", dial, func(context.Context) error {
			mu.Lock()
			defer mu.Unlock()
			if !up {
				return errors.New("the playground is not up")
			}
			return nil
		}), true)
		now.dies(true)
		time.Sleep(3 * time.Second)
		mu.Lock()
		now = b.agent("x")
		mu.Unlock()
		if got := answeredBy(t, b); got != "x" {
			t.Errorf("leaves from %s", got)
		}
		mu.Lock()
		up = false
		mu.Unlock()
		now.dies(true)
		<-b.Lost()
		if !strings.Contains(b.Err().Error(), "the playground is not up") {
			t.Error(b.Err())
		}
		b.Close()
		for _, a := range b.agents {
			a.close()
		}
	})
}
