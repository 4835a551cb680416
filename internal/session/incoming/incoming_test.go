package incoming

import (
	"context"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/inet"
	"github.com/stead-dev/stead/internal/intercept"
	"github.com/stead-dev/stead/internal/session/pod"
	"github.com/stead-dev/stead/internal/wire"
)

// slowPod is an agent that answers when it is told to.
type slowPod struct {
	asked, answer chan struct{}
	closed        chan struct{}
}

func newSlowPod() *slowPod {
	return &slowPod{make(chan struct{}), make(chan struct{}), make(chan struct{})}
}

func (p *slowPod) Subscribe(context.Context, wire.Subscribe) (*pod.Subscription, wire.Reply, error) {
	close(p.asked)
	<-p.answer
	return pod.NewSubscription(1, func() { close(p.closed) }), wire.Reply{ID: 1}, nil
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
	protocol, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil {
		t.Fatal(err)
	}
	return &intercept.Socket{FD: fd, Cookie: cookie, Family: unix.AF_INET, Type: kind, Protocol: protocol}
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

func TestAPortThatIsStillAskedForWhenTheProgramEndsIsGivenBack(t *testing.T) {
	p := newSlowPod()
	r := New(Config{Mode: wire.Steal, Pod: p, Trouble: func(err error) { t.Error(err) }})
	o := r.Listen(socket(t, unix.SOCK_STREAM), 1)
	done := make(chan intercept.Outcome)
	go func() { done <- o.Later(context.Background()) }()
	<-p.asked
	r.Drain(context.Background())
	close(p.answer)
	<-done
	<-p.closed
	r.Close()
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

// listening makes a program's socket that listens on any address of its family.
func listening(t *testing.T, r *Room, family, only6, port int) *intercept.Socket {
	t.Helper()
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	var at unix.Sockaddr = &unix.SockaddrInet4{Port: port}
	if family == unix.AF_INET6 {
		at = &unix.SockaddrInet6{Port: port}
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, only6)
	}
	if err == nil {
		err = unix.Bind(fd, at)
	}
	if err != nil {
		t.Fatal(err)
	}
	s := &intercept.Socket{FD: fd, Family: family, Type: unix.SOCK_STREAM}
	if o := r.Listen(s, 1); o.Later != nil {
		o.Later(context.Background())
	}
	return s
}

// A laptop whose IPv6 is switched off has IPv6 sockets all the same, which take IPv4.
func TestAConnectionComesToTheListenerOfItsFamily(t *testing.T) {
	both := func(t *testing.T, r *Room) (v4, v6 *intercept.Socket) {
		s := listening(t, r, unix.AF_INET6, 0, 0)
		return s, s
	}
	apart := func(t *testing.T, r *Room) (v4, v6 *intercept.Socket) {
		v6 = listening(t, r, unix.AF_INET6, 1, 0)
		return listening(t, r, unix.AF_INET, 0, int(name(t, v6).Port())), v6
	}
	for _, c := range []struct {
		name   string
		listen func(*testing.T, *Room) (v4, v6 *intercept.Socket)
		ipv6   bool
	}{{"one for both", both, true}, {"one for each", apart, true}, {"no IPv6", both, false}} {
		t.Run(c.name, func(t *testing.T) {
			if !c.ipv6 {
				withoutIPv6(t)
			}
			r := New(Config{Mode: wire.Steal, Pod: readyPod{}, Trouble: func(err error) { t.Error(err) }})
			defer r.Close()
			v4, v6 := c.listen(t, r)
			for local, l := range map[string]*intercept.Socket{"10.9.0.2": v4, "fd09::2": v6} {
				in := wire.Incoming{Subscription: 1, Local: netip.AddrPortFrom(netip.MustParseAddr(local), name(t, v4).Port()), Remote: netip.MustParseAddrPort("10.9.9.9:1")}
				conn, undo, err := r.connect(in)
				if err != nil {
					t.Errorf("to %s: %v", local, err)
					continue
				}
				defer conn.Close()
				defer undo()
				fd, _, err := unix.Accept(l.FD)
				if err != nil {
					t.Errorf("to %s: the listener has no connection: %v", local, err)
					continue
				}
				defer unix.Close(fd)
				if peer, ok := r.PeerName(&intercept.Socket{FD: fd, Family: l.Family, Type: unix.SOCK_STREAM}); !ok || peer.Addr().Unmap() != in.Remote.Addr() {
					t.Errorf("to %s: the peer is %v %v", local, peer, ok)
				}
			}
		})
	}
}

// withoutIPv6 puts the test, all of which is on one thread, into a network with an IPv4 loopback alone.
func withoutIPv6(t *testing.T) {
	t.Helper()
	runtime.LockOSThread() // never unlocked: the thread ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skip("no network namespace to be had: ", err)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err == nil {
		lo.SetUint16(unix.IFF_UP)
		err = unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
	}
	if err == nil {
		err = os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("1"), 0)
	}
	if err != nil {
		t.Fatal(err)
	}
}
