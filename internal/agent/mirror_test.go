package agent_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stead-dev/stead/internal/session/pod"
	"github.com/stead-dev/stead/internal/sys"
	"github.com/stead-dev/stead/internal/tunnel"
	"github.com/stead-dev/stead/internal/wire"
)

// hears is a handler that keeps what clients say; said gets each connection's bytes at its end.
func hears(said chan<- string, calls chan<- wire.Incoming) func(tunnel.Stream, wire.Incoming) {
	return func(s tunnel.Stream, in wire.Incoming) {
		defer s.Close()
		if wire.Write(s, wire.Reply{}) != nil {
			return
		}
		if calls != nil {
			calls <- in
		}
		fmt.Fprintln(s, "what a mirror answers goes nowhere")
		b, err := io.ReadAll(s)
		if err != nil {
			b = append(b, " ("+err.Error()+")"...)
		}
		said <- string(b)
	}
}

func next(t *testing.T, said <-chan string) string {
	t.Helper()
	select {
	case s := <-said:
		return s
	case <-time.After(30 * time.Second):
		t.Fatal("nothing was heard")
		return ""
	}
}

func TestAMirrorHearsWhatClientsSayOnEveryRoadAndTheAppAnswers(t *testing.T) {
	b := newBed(t)
	a := b.startAgent()
	said, said2, calls := make(chan string, 100), make(chan string, 100), make(chan wire.Incoming, 100)
	early, err := dial(b.elsewhere, b.roads()[0].to)
	if err != nil {
		t.Fatal(err)
	}
	defer early.Close()
	c := b.join(a, "ann@laptop", pod.Handlers{Incoming: hears(said, calls)})
	s := subscribe(t, c, wire.Mirror)
	subscribe(t, b.join(a, "bob@desk", pod.Handlers{Incoming: hears(said2, nil)}), wire.Mirror)
	if got, err := say(early, bufio.NewReader(early), "early"); got != "app: early" {
		t.Error(got, err)
	}
	for _, road := range b.roads() {
		if got, err := ask(road.from, road.to, road.name); got != "app: "+road.name || err != nil {
			t.Errorf("%s: %q, %v", road.name, got, err)
		}
		for _, said := range []chan string{said, said2} {
			if got := next(t, said); got != road.name+"\n" {
				t.Errorf("%s: heard %q", road.name, got)
			}
		}
		if in := <-calls; in.Local != road.to || in.Remote.Addr() != road.client || in.Subscription != s.ID {
			t.Errorf("%s: announced as %+v", road.name, in)
		}
	}
	if c, err := dial(b.elsewhere, netip.AddrPortFrom(podIP, 1)); err == nil {
		c.Close()
		t.Error("port 1 answers")
	}
	select {
	case got := <-said:
		t.Errorf("heard once more: %q", got)
	default:
	}
	s.Close()
}

// Where the server speaks first, a client may say nothing for long: its connection is announced all the same. One
// that the app refuses is not.
func TestAMirrorHearsOfClientsThatSayNothing(t *testing.T) {
	eachEngine(t, func(t *testing.T, b *bed, steal string) {
		a := b.startAgent(steal)
		said, calls := make(chan string, 100), make(chan wire.Incoming, 100)
		ann := b.join(a, "ann@laptop", pod.Handlers{Incoming: hears(said, calls)})
		subscribe(t, ann, wire.Mirror)
		const nobody = 4321
		if s, r, err := ann.Subscribe(t.Context(), wire.Subscribe{Network: "tcp", Port: nobody, Mode: wire.Mirror}); s == nil {
			t.Fatal(r, err)
		}
		for _, who := range []string{"app", "program"} {
			if who == "program" {
				subscribe(t, b.join(a, "bob@desk", pod.Handlers{Incoming: takes("program", nil)}), wire.Steal)
			}
			for _, road := range b.roads() {
				if c, err := dial(road.from, netip.AddrPortFrom(road.to.Addr(), nobody)); err == nil {
					c.Close()
					t.Fatal("somebody answers at a port that nobody has")
				}
				c, err := dial(road.from, road.to)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				select {
				case in := <-calls:
					if in.Local != road.to || in.Remote.String() != c.LocalAddr().String() {
						t.Fatalf("%s: announced as %+v", road.name, in)
					}
				case <-time.After(20 * time.Second):
					t.Fatalf("%s, answered by the %s: not announced", road.name, who)
				}
				if got, err := say(c, bufio.NewReader(c), road.name); got != who+": "+road.name || err != nil {
					t.Fatal(got, err)
				}
				c.Close()
				if got := next(t, said); got != road.name+"\n" {
					t.Errorf("%s: heard %q", road.name, got)
				}
			}
		}
	})
}

func TestAMirrorGoesAlongWithASteal(t *testing.T) {
	eachEngine(t, func(t *testing.T, b *bed, steal string) {
		a := b.startAgent(steal)
		said := make(chan string, 10)
		subscribe(t, b.join(a, "ann@laptop", pod.Handlers{Incoming: hears(said, nil)}), wire.Mirror)
		subscribe(t, b.join(a, "bob@desk", pod.Handlers{Incoming: takes("program", nil)}), wire.Steal)
		if got, err := ask(b.elsewhere, b.roads()[0].to, "hello"); got != "program: hello" {
			t.Error(got, err)
		}
		if got := next(t, said); got != "hello\n" {
			t.Errorf("heard %q", got)
		}
	})
}

// What the thief does not take comes to the app in a connection of the agent's, which is no client's.
func TestAMirrorHearsOnceWhatIsStolenAndGivenToTheApp(t *testing.T) {
	eachEngine(t, func(t *testing.T, b *bed, steal string) {
		a := b.startAgent(steal)
		said := make(chan string, 100)
		subscribe(t, b.join(b.startAgent(), "ann@laptop", pod.Handlers{Incoming: hears(said, nil)}), wire.Mirror)
		subscribe(t, b.join(a, "eve@tablet", pod.Handlers{Incoming: hears(said, nil)}), wire.Mirror)
		thief := subscribe(t, b.join(a, "bob@desk", pod.Handlers{Incoming: func(s tunnel.Stream, _ wire.Incoming) {
			wire.Write(s, wire.Reply{Errno: uint32(syscall.ECONNREFUSED)})
			s.Close()
		}}), wire.Steal)
		heard := func(line string) {
			t.Helper()
			if got, err := ask(b.elsewhere, b.roads()[0].to, line); got != "app: "+line {
				t.Fatal(got, err)
			}
			for range 2 {
				if got := next(t, said); got != line+"\n" {
					t.Errorf("heard %q, said %q", got, line)
				}
			}
		}
		for i := range 5 {
			heard(fmt.Sprint("call ", i))
		}
		thief.Close()
		heard("last")
	})
}

// As a program that takes one connection and then listens no more.
func TestAMirroredConnectionGoesOnWhenItsPortIsGivenBack(t *testing.T) {
	for name, others := range map[string][]uint16{"the only port": nil, "one of two ports": {appPort + 1}} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			a := b.startAgent()
			said, calls := make(chan string, 10), make(chan wire.Incoming, 10)
			c := b.join(a, "ann@laptop", pod.Handlers{Incoming: hears(said, calls)})
			for _, port := range others {
				if s, r, err := c.Subscribe(t.Context(), wire.Subscribe{Network: "tcp", Port: port, Mode: wire.Mirror}); err != nil || s == nil {
					t.Fatalf("%+v, %v", r, err)
				}
			}
			s := subscribe(t, c, wire.Mirror)
			conn, err := dial(b.elsewhere, b.roads()[0].to)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			r := bufio.NewReader(conn)
			say(conn, r, "one")
			<-calls
			s.Close()
			within(t, "the port is given back", func() bool {
				return len(askStatus(t, a).Sessions[0].Incoming) == len(others)
			})
			if got, err := say(conn, r, "two"); got != "app: two" {
				t.Error(got, err)
			}
			conn.Close()
			if got := next(t, said); got != "one\ntwo\n" {
				t.Errorf("heard %q", got)
			}
			if got, err := ask(b.elsewhere, b.roads()[0].to, "three"); got != "app: three" {
				t.Error(got, err)
			}
			select {
			case got := <-said:
				t.Errorf("heard once more: %q", got)
			default:
			}
		})
	}
}

func TestAConnectionThatGoesOnToTheAppIsMirroredOnce(t *testing.T) {
	eachEngine(t, func(t *testing.T, b *bed, steal string) {
		a := b.startAgent(steal)
		said := make(chan string, 100)
		subscribe(t, b.join(a, "ann@laptop", pod.Handlers{Incoming: hears(said, nil)}), wire.Mirror)
		refuses := func(s tunnel.Stream, _ wire.Incoming) {
			_ = wire.Write(s, wire.Reply{Errno: uint32(syscall.ECONNREFUSED)})
			s.Close()
		}
		subscribe(t, b.join(a, "bob@desk", pod.Handlers{Incoming: refuses}), wire.Steal)
		for i := range 5 {
			for _, road := range b.roads() {
				line := fmt.Sprint(road.name, i)
				if got, err := ask(road.from, road.to, line); got != "app: "+line || err != nil {
					t.Fatal(got, err)
				}
				if got := next(t, said); got != line+"\n" {
					t.Fatalf("heard %q after %q", got, line)
				}
			}
		}
	})
}

func TestAMirrorIsByteExact(t *testing.T) {
	b := newBed(t)
	a := b.startAgent()
	said := make(chan string, 10)
	subscribe(t, b.join(a, "ann@laptop", pod.Handlers{Incoming: func(s tunnel.Stream, _ wire.Incoming) {
		if wire.Write(s, wire.Reply{}) == nil {
			talk(heardOnly{s, said}, "mirror")
		}
	}}), wire.Mirror)
	for _, road := range b.roads() {
		conn, err := dial(road.from, road.to)
		if err != nil {
			t.Fatal(err)
		}
		want := sendSum(t, conn.(*net.TCPConn), 3<<20, "app")
		if got, err := bufio.NewReader(conn).ReadString('\n'); got != want || err != nil {
			t.Errorf("%s: %q, %v; want %q", road.name, got, err, want)
		}
		conn.Close()
		if got := next(t, said); got != "mirror"+strings.TrimPrefix(want, "app") {
			t.Errorf("%s: heard %q, said %q", road.name, got, want)
		}
	}
}

// heardOnly is a stream whose answers are kept.
type heardOnly struct {
	tunnel.Stream
	said chan<- string
}

func (h heardOnly) Write(p []byte) (int, error) {
	h.said <- string(p)
	return len(p), nil
}

// A few thousand requests a second: each client gets the app's answer, and each request is heard or
// its loss is told.
func TestUnderLoadEachRequestIsHeardOrItsLossIsTold(t *testing.T) {
	b := newBed(t)
	a := b.startAgent()
	var heard, wrong, lost atomic.Int64
	c := b.join(a, "ann@laptop", pod.Handlers{
		Incoming: func(s tunnel.Stream, _ wire.Incoming) {
			defer s.Close()
			if wire.Write(s, wire.Reply{}) != nil {
				return
			}
			got, err := io.ReadAll(s)
			if err == nil && strings.HasPrefix(string(got), "request ") && strings.HasSuffix(string(got), " end\n") {
				heard.Add(1)
			} else if err == nil {
				wrong.Add(1)
			}
		},
		Event: func(e wire.Event) { lost.Store(int64(e.Count)) },
	})
	subscribe(t, c, wire.Mirror)
	const each, clients = 1000, 6
	var failed atomic.Int64
	var wg sync.WaitGroup
	begin := time.Now()
	for i := range clients {
		from := []*sys.Namespaces{b.enter(b.room), b.enter(b.app)}[i%2]
		wg.Add(1)
		go func() {
			defer wg.Done()
			for k := range each {
				line := fmt.Sprintf("request %d of %d %s end", k, i, strings.Repeat("x", k%2000))
				if got, err := ask(from, b.roads()[0].to, line); got != "app: "+line {
					failed.Add(1)
					t.Log(got, err)
				}
			}
		}()
	}
	wg.Wait()
	t.Logf("%.0f requests/s, the agent at %d kB", each*clients/time.Since(begin).Seconds(), status(a.PID, "VmRSS"))
	within(t, "all are heard or told lost", func() bool { return heard.Load()+lost.Load() >= each*clients })
	t.Logf("heard %d, told lost %d", heard.Load(), lost.Load())
	if failed.Load() != 0 || wrong.Load() != 0 {
		t.Errorf("%d requests failed, %d heard wrong", failed.Load(), wrong.Load())
	}
	if heard.Load() < each*clients*9/10 {
		t.Error("more than a tenth was lost")
	}
}

// A program that does not read: its copy is given up and told, client and app notice nothing.
func TestAMirrorThatDoesNotReadHoldsNobodyUp(t *testing.T) {
	b := newBed(t)
	a := b.startAgent()
	told := make(chan wire.Event, 100)
	stop := make(chan struct{})
	c := b.join(a, "ann@laptop", pod.Handlers{
		Incoming: func(s tunnel.Stream, _ wire.Incoming) {
			defer s.Reset(0)
			wire.Write(s, wire.Reply{})
			<-stop
		},
		Event: func(e wire.Event) { told <- e },
	})
	defer close(stop)
	subscribe(t, c, wire.Mirror)
	conn, err := dial(b.elsewhere, b.roads()[0].to)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	checkSum(t, conn.(*net.TCPConn), 64<<20, "app")
	select {
	case e := <-told:
		if e.Kind != wire.EventDropped || e.Count != 1 {
			t.Errorf("%+v", e)
		}
	case <-time.After(20 * time.Second):
		t.Error("the loss was not told")
	}
	if kb := status(a.PID, "VmRSS"); kb > 100<<10 && !underRace {
		t.Errorf("the agent has %d kB", kb)
	}
}

func TestNothingOfAMirrorIsLeftWhenTheAgentIsKilled(t *testing.T) {
	b := newBed(t)
	for round := range 20 {
		a := b.startAgent()
		said := make(chan string, 10)
		c := b.join(a, "ann@laptop", pod.Handlers{Incoming: hears(said, nil)})
		subscribe(t, c, wire.Mirror)
		if got, err := ask(b.elsewhere, b.roads()[0].to, "x"); got != "app: x" {
			t.Fatal(got, err)
		}
		if got := next(t, said); got != "x\n" {
			t.Fatalf("round %d: heard %q", round, got)
		}
		syscall.Kill(a.PID, syscall.SIGKILL)
		<-a.Exited()
		if got, err := ask(b.elsewhere, b.roads()[0].to, "x"); got != "app: x" {
			t.Fatal(got, err)
		}
	}
	b.nothingLeft()
}
