package agent_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/google/nftables"

	"github.com/stead-dev/stead/internal/session/pod"
	"github.com/stead-dev/stead/internal/sys"
	"github.com/stead-dev/stead/internal/tunnel"
	"github.com/stead-dev/stead/internal/wire"
)

var engines = func() []string {
	if e := os.Getenv("STEAD_TEST_ENGINES"); e != "" {
		return strings.Split(e, ",")
	}
	return []string{"sk_lookup", "nft"}
}()

func eachEngine(t *testing.T, f func(t *testing.T, b *bed, steal string)) {
	for _, e := range engines {
		t.Run(e, func(t *testing.T) { f(t, newBed(t), "--steal="+e) })
	}
}

type road struct {
	name   string
	from   *sys.Namespaces
	to     netip.AddrPort
	client netip.Addr
}

func (b *bed) roads() []road {
	at := func(a netip.Addr) netip.AddrPort { return netip.AddrPortFrom(a, appPort) }
	lo, lo6 := netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()
	return []road{
		{"IPv4 from elsewhere", b.elsewhere, at(podIP), elseIP},
		{"IPv6 from elsewhere", b.elsewhere, at(podIP6), elseIP6},
		{"IPv4 loopback", b.inPod, at(lo), lo},
		{"IPv6 loopback", b.inPod, at(lo6), lo6},
		{"IPv4 from the pod to its own address", b.inPod, at(podIP), podIP},
	}
}

func TestStolenConnectionsComeWithTheirRealAddressesOnEveryRoad(t *testing.T) {
	eachEngine(t, func(t *testing.T, b *bed, steal string) {
		calls := make(chan wire.Incoming, 100)
		c := b.join(b.startAgent(steal), "ann@laptop", pod.Handlers{Incoming: takes("program", calls)})
		before, err := dial(b.elsewhere, b.roads()[0].to) // stands before the steal
		if err != nil {
			t.Fatal(err)
		}
		defer before.Close()
		r := bufio.NewReader(before)
		if got, err := say(before, r, "early"); got != "app: early" {
			t.Fatal(got, err)
		}
		s := subscribe(t, c, wire.Steal)
		for _, cookies := range []string{"1", "2"} { // 2: as under a flood, what begins is not remembered
			if err := b.inPod.Do(func() error { return os.WriteFile("/proc/sys/net/ipv4/tcp_syncookies", []byte(cookies), 0) }); err != nil {
				t.Fatal(err)
			}
			for _, road := range b.roads() {
				got, err := ask(road.from, road.to, "hello")
				if got != "program: hello" || err != nil {
					t.Errorf("%s, SYN cookies %s: %q, %v", road.name, cookies, got, err)
					continue
				}
				if in := <-calls; in.Local != road.to || in.Remote.Addr() != road.client || in.Subscription != s.ID {
					t.Errorf("%s: announced as %+v", road.name, in)
				}
			}
		}
		if got, err := say(before, r, "still"); got != "app: still" {
			t.Errorf("a connection that stood before the steal: %q, %v", got, err)
		}
		s.Close()
		within(t, "the port is given back", func() bool {
			got, _ := ask(b.elsewhere, b.roads()[0].to, "hello")
			return got == "app: hello"
		})
		for _, road := range b.roads() {
			if got, err := ask(road.from, road.to, "hello"); got != "app: hello" || err != nil {
				t.Errorf("%s, given back: %q, %v", road.name, got, err)
			}
		}
	})
}

func TestASecondThiefIsToldWhoHoldsThePort(t *testing.T) {
	b := newBed(t)
	a := b.startAgent()
	first := subscribe(t, b.join(a, "ann@laptop", pod.Handlers{Incoming: takes("ann", nil)}), wire.Steal)
	bob := b.join(a, "bob@desk", pod.Handlers{Incoming: takes("bob", nil)})
	want := wire.Subscribe{Network: "tcp", Port: appPort, Mode: wire.Steal}
	_, r, err := bob.Subscribe(context.Background(), want)
	if err != nil || syscall.Errno(r.Errno) != syscall.EADDRINUSE || !strings.Contains(r.Error, "ann@laptop") {
		t.Fatalf("second steal: %+v, %v", r, err)
	}
	first.Close()
	within(t, "the port is free for the next one", func() bool {
		s, _, err := bob.Subscribe(context.Background(), want)
		return err == nil && s != nil
	})
	if got, err := ask(b.elsewhere, b.roads()[0].to, "x"); got != "bob: x" {
		t.Error(got, err)
	}
	// Another agent beside the same pod, by the other engine.
	eve := b.join(b.startAgent("--steal="+engines[len(engines)-1]), "eve@tablet", pod.Handlers{Incoming: takes("eve", nil)})
	_, r, err = eve.Subscribe(context.Background(), want)
	if err != nil || syscall.Errno(r.Errno) != syscall.EADDRINUSE || !strings.Contains(r.Error, "bob@desk") || !strings.Contains(r.Hint, "bob@desk") {
		t.Errorf("a steal by another agent: %+v, %v", r, err)
	}
	syscall.Kill(a.PID, syscall.SIGKILL)
	<-a.Exited()
	subscribe(t, eve, wire.Steal)
	if got, err := ask(b.elsewhere, b.roads()[0].to, "x"); got != "eve: x" {
		t.Error(got, err)
	}
}

func TestWhatTheProgramRefusesGoesToTheApp(t *testing.T) {
	eachEngine(t, func(t *testing.T, b *bed, steal string) {
		c := b.join(b.startAgent(steal), "ann@laptop", pod.Handlers{Incoming: func(s tunnel.Stream, _ wire.Incoming) {
			wire.Write(s, wire.Reply{Errno: uint32(syscall.ECONNREFUSED)})
			s.Close()
		}})
		subscribe(t, c, wire.Steal)
		for _, road := range b.roads() {
			for i := range 5 {
				line := fmt.Sprint("call ", i)
				if got, err := ask(road.from, road.to, line); got != "app: "+line || err != nil {
					t.Errorf("%s: %q, %v", road.name, got, err)
				}
			}
		}
	})
}

// Connections are made all the time while sessions come and go: none may fail, whoever answers.
func TestNoConnectionIsLostWhileAStealBeginsAndEnds(t *testing.T) {
	eachEngine(t, func(t *testing.T, b *bed, steal string) {
		a := b.startAgent(steal)
		stop := make(chan struct{})
		var wg sync.WaitGroup
		var mu sync.Mutex
		count := map[string]int{}
		for range 3 {
			wg.Add(1)
			from := b.enter(b.room)
			go func() {
				defer wg.Done()
				for {
					select {
					case <-stop:
						return
					default:
					}
					got, err := ask(from, b.roads()[0].to, "x")
					if err != nil {
						got = err.Error()
					}
					mu.Lock()
					count[got]++
					mu.Unlock()
				}
			}()
		}
		c := b.join(a, "ann@laptop", pod.Handlers{Incoming: takes("program", nil)})
		for range 20 {
			s := subscribe(t, c, wire.Steal)
			for range 3 {
				ask(b.elsewhere, b.roads()[0].to, "y")
			}
			s.Close()
			within(t, "the app answers again", func() bool {
				got, _ := ask(b.elsewhere, b.roads()[0].to, "y")
				return got == "app: y"
			})
		}
		close(stop)
		wg.Wait()
		t.Log(count)
		for got := range count {
			if got != "app: x" && got != "program: x" {
				t.Errorf("%d connections: %s", count[got], got)
			}
		}
		if count["app: x"] == 0 || count["program: x"] == 0 {
			t.Error("not both of them have answered")
		}
	})
}

func TestNothingIsLeftOfAnAgentThatIsKilled(t *testing.T) {
	eachEngine(t, func(t *testing.T, b *bed, steal string) {
		to := b.roads()[0].to
		for round := range 20 {
			a := b.startAgent(steal)
			c := b.join(a, "ann@laptop", pod.Handlers{Incoming: takes("program", nil)})
			subscribe(t, c, wire.Steal)
			held, err := dial(b.elsewhere, to) // one connection stands while it dies
			if err != nil {
				t.Fatal(err)
			}
			r := bufio.NewReader(held)
			if got, err := say(held, r, "x"); got != "program: x" {
				t.Fatalf("round %d: %q, %v", round, got, err)
			}
			syscall.Kill(a.PID, syscall.SIGKILL)
			<-a.Exited()
			if _, err := say(held, r, "x"); err == nil {
				t.Errorf("round %d: a dead agent's connection goes on", round)
			}
			held.Close()
			for i, road := range b.roads() {
				if got, err := ask(road.from, road.to, "x"); got != "app: x" || err != nil {
					t.Fatalf("round %d, call %d: %q, %v", round, i, got, err)
				}
			}
			<-c.Done()
		}
		b.nothingLeft()
	})
}

// A client may call from the port of an earlier connection of its. However that one ended, with its session
// or with its agent, nothing of it may lead the new one astray.
func TestAClientThatCallsFromAPortAnewIsAnswered(t *testing.T) {
	eachEngine(t, func(t *testing.T, b *bed, steal string) {
		to := b.roads()[0].to
		// again calls from the same port each time and leaves no TIME_WAIT of the client's behind.
		again := func(want string) (c net.Conn) {
			t.Helper()
			err := b.elsewhere.Do(func() (err error) {
				c, err = (&net.Dialer{Timeout: 10 * time.Second, LocalAddr: &net.TCPAddr{Port: 4444}}).Dial("tcp", to.String())
				return err
			})
			if err != nil {
				t.Fatalf("want %s: %v", want, err)
			}
			t.Cleanup(func() { c.Close() })
			c.(*net.TCPConn).SetLinger(0)
			c.SetDeadline(time.Now().Add(20 * time.Second))
			if got, err := say(c, bufio.NewReader(c), "x"); got != want+": x" || err != nil {
				t.Fatalf("want %s: %q, %v", want, got, err)
			}
			return c
		}
		for _, beside := range []string{"nobody", "another session"} { // with another one connections may be tracked all the time
			if beside != "nobody" {
				c := b.join(b.startAgent(steal), "eve@tablet", pod.Handlers{})
				if s, r, err := c.Subscribe(t.Context(), wire.Subscribe{Network: "tcp", Port: 4321, Mode: wire.Steal}); s == nil {
					t.Fatal(r, err)
				}
			}
			for range 3 {
				a := b.startAgent(steal)
				c := b.join(a, "ann@laptop", pod.Handlers{Incoming: takes("program", nil)})
				s := subscribe(t, c, wire.Steal)
				again("program").Close()
				standing := again("program")
				s.Close()
				within(t, "the port is given back", func() bool { got, _ := ask(b.elsewhere, to, "y"); return got == "app: y" })
				standing.Close()
				subscribe(t, c, wire.Steal)
				standing = again("program")
				c.Close() // resets it
				if _, err := standing.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
					t.Fatalf("a connection whose session has gone: %v", err)
				}
				standing.Close()
				syscall.Kill(a.PID, syscall.SIGKILL)
				<-a.Exited()
			}
		}
	})
}

// A program that closes its listener and listens again, or a session that is started anew, is not told that it
// is in its own way.
func TestAPortThatWasJustGivenBackIsTakenAnew(t *testing.T) {
	eachEngine(t, func(t *testing.T, b *bed, steal string) {
		a := b.startAgent(steal)
		c := b.join(a, "ann@laptop", pod.Handlers{Incoming: takes("program", nil)})
		for i := range 200 {
			subscribe(t, c, wire.Steal).Close()
			if i%10 == 0 {
				c.Close()
				c = b.join(a, "ann@laptop", pod.Handlers{Incoming: takes("program", nil)})
			}
		}
		subscribe(t, c, wire.Steal)
		if got, err := ask(b.elsewhere, b.roads()[0].to, "x"); got != "program: x" || err != nil {
			t.Error(got, err)
		}
	})
}

// nothingLeft looks for tables, BPF programs and listeners.
func (b *bed) nothingLeft() {
	b.t.Helper()
	err := b.inPod.Do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		tables, err := c.ListTables()
		for _, t := range tables {
			b.t.Errorf("left: table %s", t.Name)
		}
		return err
	})
	if err != nil {
		b.t.Error(err)
	}
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", b.app.Process.Pid))
	if err != nil {
		b.t.Fatal(err)
	}
	defer ns.Close()
	r, err := link.QueryPrograms(link.QueryOptions{Target: int(ns.Fd()), Attach: ebpf.AttachSkLookup})
	if os.Getenv("STEAD_TEST_ENGINES") != "" && (errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, syscall.EPERM)) {
		return // no BPF in a user namespace, for the agent neither
	}
	if err != nil {
		b.t.Fatal(err)
	}
	if len(r.Programs) != 0 {
		b.t.Errorf("left: %d sk_lookup programs in the pod", len(r.Programs))
	}
}
