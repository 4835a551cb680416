//go:build linux

package incoming

import (
	"context"
	"io"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/inet"
	"github.com/stead-dev/stead/internal/intercept"
	"github.com/stead-dev/stead/internal/session/pod"
	"github.com/stead-dev/stead/internal/tunnel"
	"github.com/stead-dev/stead/internal/wire"
)

// desk gives ports as an agent does, when the test says so.
type desk struct {
	asked  chan wire.Subscribe
	answer chan wire.Reply
	closed chan uint64
}

func (d *desk) Subscribe(_ context.Context, s wire.Subscribe) (*pod.Subscription, wire.Reply, error) {
	d.asked <- s
	r := <-d.answer
	return pod.NewSubscription(r.ID, func() { d.closed <- r.ID }), r, nil
}

func newRoom(t *testing.T) (*Room, *desk) {
	d := &desk{make(chan wire.Subscribe, 10), make(chan wire.Reply, 10), make(chan uint64, 10)}
	r := New(Config{Pod: d, Mode: wire.Steal, Trouble: func(err error) { t.Error(err) }, Notice: func(string) {}})
	t.Cleanup(r.Close)
	return r, d
}

// listens is a listen of the program's on a port that is free; end waits for its outcome.
func listens(t *testing.T, r *Room) (port uint16, end func()) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, inet.ToUnix(unix.AF_INET, netip.MustParseAddrPort("127.0.0.1:0"))); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	o := r.Listen(&intercept.Socket{FD: fd, Family: unix.AF_INET, Type: unix.SOCK_STREAM}, 10)
	done := make(chan intercept.Outcome, 1)
	go func() { done <- o.Later(context.Background()) }()
	return inet.FromUnix(sa).Port(), func() {
		t.Helper()
		if o := <-done; o.Errno != 0 {
			t.Error(o.Errno)
		}
	}
}

func TestAProgramThatEndsWhileItsPortIsAskedForLeavesNoSubscription(t *testing.T) {
	r, d := newRoom(t)
	_, end := listens(t, r)
	<-d.asked
	r.Drain(t.Context())
	d.answer <- wire.Reply{ID: 7}
	end()
	if id := <-d.closed; id != 7 {
		t.Errorf("gave back %d", id)
	}
}

// The agent catches connections from the moment that it has the port, which the program is told later.
func TestAConnectionThatComesBeforeTheAnswerReachesTheProgram(t *testing.T) {
	r, d := newRoom(t)
	port, end := listens(t, r)
	<-d.asked
	session, agent := tunnel.Pipe()
	defer agent.Close()
	defer session.Close()
	ours, err := session.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := agent.Accept(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		r.Serve(ours, wire.Incoming{Subscription: 7, Local: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.2"), port)})
	}()
	var reply wire.Reply
	if err := wire.Read(theirs, &reply); err != nil || reply.Errno != 0 {
		t.Errorf("%+v, %v", reply, err)
	}
	theirs.Reset(0)
	_, _ = io.Copy(io.Discard, theirs)
	<-served
	d.answer <- wire.Reply{ID: 7}
	end()
	r.release()
	<-d.closed
}

// socket is a program's.
func socket(t *testing.T, kind int) *intercept.Socket {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		t.Fatal(err)
	}
	return &intercept.Socket{FD: fd, Cookie: cookie, Family: unix.AF_INET, Type: kind}
}

// name is what the kernel says of a socket's own end.
func name(t *testing.T, s *intercept.Socket) netip.AddrPort {
	t.Helper()
	sa, err := unix.Getsockname(s.FD)
	if err != nil {
		t.Fatal(err)
	}
	return inet.FromUnix(sa)
}

// readyPod is an agent that gives every port.
type readyPod struct{}

func (readyPod) Subscribe(context.Context, wire.Subscribe) (*pod.Subscription, wire.Reply, error) {
	return pod.NewSubscription(1, func() {}), wire.Reply{ID: 1}, nil
}

// The kernel's tables are read while the program goes on.
func TestASocketIsGoneOnlyWhenTablesThatAreYoungerLackIt(t *testing.T) {
	r := New(Config{Mode: wire.Steal, Pod: readyPod{}, Trouble: func(err error) { t.Error(err) }})
	defer r.Close()
	before := tables{at: time.Now()}
	l, u := socket(t, unix.SOCK_STREAM), socket(t, unix.SOCK_DGRAM)
	if o := r.Listen(l, 1).Later(context.Background()); o.Errno != 0 {
		t.Fatal(o.Errno)
	}
	if o := r.Bind(u, netip.MustParseAddrPort("127.0.0.1:0")); o.Errno != 0 {
		t.Fatal(o.Errno)
	}
	tcp, udp := name(t, l).Port(), name(t, u).Port()
	for _, c := range []struct {
		tables tables
		there  bool
	}{{before, true}, {before, true}, {tables{at: time.Now()}, false}} {
		r.giveBack(c.tables)
		r.mu.Lock()
		subscribed := r.ports[tcp] != nil
		r.mu.Unlock()
		_, ownTCP := r.OwnTCP(tcp)
		_, ownUDP := r.OwnUDP(udp)
		if subscribed != c.there || ownTCP != c.there || ownUDP != c.there {
			t.Errorf("subscribed %v, own TCP %v, own UDP %v, want all %v", subscribed, ownTCP, ownUDP, c.there)
		}
	}
}

// A socket that was bound to the pod's address may be closed, or connected, without a word to us.
func TestNamesOfSocketsThatAreGoneAreForgotten(t *testing.T) {
	r := New(Config{Pod: readyPod{}, PodAddr: func(a netip.Addr) bool { return a.String() == "203.0.113.7" }})
	defer r.Close()
	l, c, u := socket(t, unix.SOCK_STREAM), socket(t, unix.SOCK_STREAM), socket(t, unix.SOCK_DGRAM)
	for _, s := range []*intercept.Socket{l, c, u} {
		if o := r.Bind(s, netip.MustParseAddrPort("203.0.113.7:0")); o.Errno != 0 || o.Continue {
			t.Fatal(o)
		}
	}
	r.Listen(l, 1)
	var st unix.Stat_t
	if err := unix.Fstat(l.FD, &st); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	for _, step := range []struct {
		at      time.Time
		l, c, u bool // which are known
	}{{now, true, true, false}, {now.Add(listenTime - time.Second), true, true, false}, {now.Add(listenTime + time.Second), true, false, false}} {
		r.giveBack(tables{at: step.at, tcp: map[uint64]bool{st.Ino: true}})
		for i, s := range []*intercept.Socket{l, c, u} {
			if at, ok := r.SockName(s); ok != []bool{step.l, step.c, step.u}[i] || ok && at.Addr().String() != "203.0.113.7" {
				t.Errorf("%v later, socket %d: %v %v", step.at.Sub(now), i, at, ok)
			}
		}
	}
}

func TestOnlyWhoIsNearIsAnsweredOnTheLaptop(t *testing.T) {
	r := New(Config{Pod: readyPod{}})
	defer r.Close()
	r.linked, r.links = time.Now(), []netip.Prefix{netip.MustParsePrefix("192.0.2.2/24"), netip.MustParsePrefix("fe80::1/64")}
	for from, near := range map[string]bool{
		"127.0.0.1:5": true, "[::1]:5": true, "[::ffff:127.0.0.1]:6": true, "192.0.2.77:5": true, "[fe80::2%eth0]:5": true,
		"10.96.0.10:53": false, "198.51.100.1:5": false, "[2001:db8::1]:5": false,
	} {
		at := netip.MustParseAddrPort(from)
		if r.Hear(at); r.Heard(at) != near {
			t.Errorf("%s: heard %v", from, !near)
		}
	}
	r.giveBack(tables{at: time.Now().Add(heardTime + time.Minute)})
	if r.Heard(netip.MustParseAddrPort("127.0.0.1:5")) {
		t.Error("not forgotten")
	}
}
