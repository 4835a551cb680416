package incoming

import (
	"context"
	"net/netip"
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
	r := New(Config{Pod: readyPod{}})
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
