package agent_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stead-dev/stead/internal/session/pod"
	"github.com/stead-dev/stead/internal/tunnel"
	"github.com/stead-dev/stead/internal/wire"
)

func TestASessionLearnsWhatThePodIs(t *testing.T) {
	b := newBed(t)
	c := b.join(b.startAgent(), "ann@laptop", pod.Handlers{})
	host, err := os.Hostname() // the UTS namespace began as a copy
	if err != nil {
		t.Fatal(err)
	}
	cwd, _ := os.Getwd()
	g := c.Target()
	if g.Hostname != host || g.WorkDir != cwd {
		t.Errorf("host name %q, directory %q", g.Hostname, g.WorkDir)
	}
	if d := cmp.Diff([]string{"POD_NAME=orders-0", "GREETING=hello from the pod"}, g.Env); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]uint16{appPort}, g.Listening); d != "" {
		t.Error(d)
	}
	var addrs []string
	for _, a := range g.Addrs {
		if !a.IsLinkLocalUnicast() {
			addrs = append(addrs, a.String())
		}
	}
	if d := cmp.Diff([]string{podIP.String(), podIP6.String()}, addrs); d != "" {
		t.Error(d)
	}
}

func TestConnectionsLeaveFromThePod(t *testing.T) {
	b := newBed(t)
	c := b.join(b.startAgent(), "ann@laptop", pod.Handlers{})
	for _, at := range []struct{ server, client netip.Addr }{{elseIP, podIP}, {elseIP6, podIP6}} {
		to := netip.AddrPortFrom(at.server, elsePort)
		ln := b.listenElsewhere("tcp", to)
		seen := make(chan string, 1)
		go func() {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			seen <- c.RemoteAddr().String()
			talk(c, "server")
		}()
		s, r, err := c.Dial(context.Background(), wire.Dial{Network: "tcp", To: to})
		if err != nil || s == nil {
			t.Fatalf("%s: %+v, %v", to, r, err)
		}
		if from := <-seen; from != r.Local.String() || r.Local.Addr() != at.client || r.Remote != to {
			t.Errorf("the server saw %s, the reply says %s -> %s", from, r.Local, r.Remote)
		}
		if got, err := say(s, bufio.NewReader(s), "hello"); got != "server: hello" {
			t.Error(got, err)
		}
		s.Close()
	}
}

// A port that the kernel keeps for the privileged, too: the app, which is root in many pods, has it.
func TestTheProgramsSourcePortIsTakenInThePod(t *testing.T) {
	b := newBed(t)
	c := b.join(b.startAgent(), "ann@laptop", pod.Handlers{})
	to := netip.AddrPortFrom(elseIP, elsePort)
	go answer(b.listenElsewhere("tcp", to), "server")
	for _, port := range []uint16{700, 7000} {
		s, r, err := c.Dial(context.Background(), wire.Dial{Network: "tcp", To: to, Bind: netip.AddrPortFrom(podIP, port)})
		if err != nil || s == nil || r.Local.Port() != port {
			t.Fatalf("bound to %d: %+v, %v", port, r, err)
		}
		s.Close()
	}
}

func TestErrnosAreThoseOfThePodsKernel(t *testing.T) {
	b := newBed(t)
	c := b.join(b.startAgent(), "ann@laptop", pod.Handlers{})
	for _, at := range []struct {
		network, to string
		want        syscall.Errno
	}{
		{"tcp", "10.77.0.1:1", syscall.ECONNREFUSED},
		{"tcp", "[fd77::1]:1", syscall.ECONNREFUSED},
		{"tcp", "127.0.0.1:1", syscall.ECONNREFUSED},
		{"tcp", "10.78.0.1:1", syscall.ENETUNREACH},
		{"tcp", "[fd78::1]:1", syscall.ENETUNREACH},
		{"udp", "10.78.0.1:1", syscall.ENETUNREACH},
		{"tcp", "10.77.0.99:1", syscall.EHOSTUNREACH},
		{"tcp", "10.77.0.255:1", syscall.ENETUNREACH}, // broadcast
		{"icmp", "10.77.0.1:1", syscall.EINVAL},
	} {
		s, r, err := c.Dial(context.Background(), wire.Dial{Network: at.network, To: netip.MustParseAddrPort(at.to)})
		if err != nil || s != nil || syscall.Errno(r.Errno) != at.want {
			t.Errorf("%s %s: %v (%s), %v; want %v", at.network, at.to, syscall.Errno(r.Errno), r.Error, err, at.want)
		}
	}
}

// How long the pod's kernel tries is what the program has set on its own socket.
func TestTheOptionsOfADialAreThoseOfThePodsSocket(t *testing.T) {
	b := newBed(t)
	c := b.join(b.startAgent(), "ann@laptop", pod.Handlers{})
	if err := b.inPod.Do(func() error {
		err := os.WriteFile("/proc/sys/net/ipv4/tcp_syn_linear_timeouts", []byte("0"), 0) // Linux 6.5
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	silent := b.fullListener()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	plain := make(chan struct{})
	go func() {
		defer close(plain)
		c.Dial(ctx, wire.Dial{Network: "tcp", To: silent})
	}()
	for _, o := range []wire.Options{{SynCount: 1}, {UserTimeout: 1000}} {
		_, r, err := c.Dial(ctx, wire.Dial{Network: "tcp", To: silent, Options: o})
		if err != nil || syscall.Errno(r.Errno) != syscall.ETIMEDOUT {
			t.Errorf("%+v: %+v, %v", o, r, err)
		}
	}
	select {
	case <-plain:
		t.Error("one without options has ended already")
	default:
	}
	cancel()
	<-plain
}

func TestUDPCarriesDatagramsAndTheErrorsOfTheNetwork(t *testing.T) {
	b := newBed(t)
	c := b.join(b.startAgent(), "ann@laptop", pod.Handlers{})
	var u net.PacketConn
	to, refused := netip.AddrPortFrom(elseIP, elsePort), netip.AddrPortFrom(elseIP, 1)
	if err := b.elsewhere.Do(func() (err error) { u, err = net.ListenPacket("udp", to.String()); return err }); err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	go echo(u)
	buf := make([]byte, wire.MaxDatagram)
	connected := func(to netip.AddrPort) tunnel.Stream {
		s, r, err := c.Dial(context.Background(), wire.Dial{Network: "udp", To: to})
		if err != nil || s == nil {
			t.Fatalf("%+v, %v", r, err)
		}
		s.SetDeadline(time.Now().Add(10 * time.Second))
		return s
	}
	s := connected(to)
	for _, size := range []int{0, 1, 1400, 65507} { // the most that IPv4 has room for
		s.Write(wire.AppendDatagram(nil, buf[:size]))
		if n, errno, err := wire.ReadDatagram(s, buf); n != size || errno != 0 || err != nil {
			t.Errorf("connected, %d bytes: %d, %v, %v", size, n, errno, err)
		}
	}
	s.Close()
	s = connected(refused)
	s.Write(wire.AppendDatagram(nil, []byte("x")))
	if _, errno, err := wire.ReadDatagram(s, buf); syscall.Errno(errno) != syscall.ECONNREFUSED {
		t.Errorf("connected, refused: %d, %v", errno, err)
	}
	s.Close()
	for _, ipv6 := range []bool{false, true} { // an IPv6 socket speaks IPv4 too
		p, r, err := c.Packet(context.Background(), wire.Packet{IPv6: ipv6})
		if err != nil || p == nil {
			t.Fatalf("%+v, %v", r, err)
		}
		p.SetDeadline(time.Now().Add(10 * time.Second))
		for range 3 { // an error does not eat the next datagram
			p.Write(wire.AppendPacket(nil, refused, []byte("x")))
			if from, _, errno, err := wire.ReadPacket(p, buf); syscall.Errno(errno) != syscall.ECONNREFUSED || from != refused {
				t.Errorf("unconnected, refused: %s, %d, %v", from, errno, err)
			}
			p.Write(wire.AppendPacket(nil, to, []byte("hello")))
			if from, n, _, err := wire.ReadPacket(p, buf); from != to || string(buf[:n]) != "hello" {
				t.Errorf("unconnected: %q from %s, %v", buf[:n], from, err)
			}
		}
		p.Close()
	}
}

// IPv6 has room for 20 bytes more than IPv4.
func TestTheLargestDatagramsOfIPv6AreCarried(t *testing.T) {
	b := newBed(t)
	c := b.join(b.startAgent(), "ann@laptop", pod.Handlers{})
	to := netip.AddrPortFrom(elseIP6, elsePort)
	var u net.PacketConn
	if err := b.elsewhere.Do(func() (err error) { u, err = net.ListenPacket("udp", to.String()); return err }); err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	go echo(u)
	s, r, err := c.Dial(context.Background(), wire.Dial{Network: "udp", To: to})
	if err != nil || s == nil {
		t.Fatalf("%+v, %v", r, err)
	}
	defer s.Close()
	p, r, err := c.Packet(context.Background(), wire.Packet{IPv6: true})
	if err != nil || p == nil {
		t.Fatalf("%+v, %v", r, err)
	}
	defer p.Close()
	s.SetDeadline(time.Now().Add(20 * time.Second))
	p.SetDeadline(time.Now().Add(20 * time.Second))
	want := make([]byte, 65527)
	buf := make([]byte, wire.MaxDatagram)
	for range 2 { // nor is the stream broken by one
		s.Write(wire.AppendDatagram(nil, want))
		if n, errno, err := wire.ReadDatagram(s, buf); n != len(want) || errno != 0 || err != nil {
			t.Errorf("connected: %d, %v, %v", n, syscall.Errno(errno), err)
		}
		p.Write(wire.AppendPacket(nil, to, want))
		if from, n, errno, err := wire.ReadPacket(p, buf); from != to || n != len(want) || errno != 0 || err != nil {
			t.Errorf("unconnected: %d from %s, %v, %v", n, from, syscall.Errno(errno), err)
		}
	}
}

func TestAThousandPendingDialsCostNoThreadsAndEndWhenTheSessionGivesUp(t *testing.T) {
	b := newBed(t)
	a := b.startAgent()
	c := b.join(a, "ann@laptop", pod.Handlers{})
	fds := descriptors(a.PID)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	// A listener whose queue is full: the kernel drops the SYNs, and the dial goes on for minutes.
	full := b.fullListener()
	var wg sync.WaitGroup
	for range 1000 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			s, r, err := c.Dial(ctx, wire.Dial{Network: "tcp", To: full})
			if s != nil {
				s.Close()
			} else if !errors.Is(err, context.Canceled) {
				t.Errorf("%+v, %v", r, err)
			}
		}()
	}
	within(t, "all are pending", func() bool { return descriptors(a.PID) >= fds+990 })
	if n := status(a.PID, "Threads"); n > 40 {
		t.Errorf("%d threads", n)
	}
	t.Logf("pending: %d threads, %d kB", status(a.PID, "Threads"), status(a.PID, "VmRSS"))
	cancel()
	wg.Wait()
	within(t, "all sockets are closed", func() bool { return descriptors(a.PID) <= fds+2 })
}

// fullListener is a port elsewhere that answers no SYN.
func (b *bed) fullListener() (at netip.AddrPort) {
	b.t.Helper()
	var fd int
	err := b.elsewhere.Do(func() (err error) {
		fd, err = syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
		if err == nil {
			err = syscall.Bind(fd, &syscall.SockaddrInet4{Port: 6060, Addr: elseIP.As4()})
		}
		if err == nil {
			err = syscall.Listen(fd, 0)
		}
		return err
	})
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { syscall.Close(fd) })
	at = netip.AddrPortFrom(elseIP, 6060)
	filler, err := dial(b.inPod, at)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { filler.Close() })
	return at
}

func TestTwoThousandIdleConnectionsAreSmallAndBytesArriveWhole(t *testing.T) {
	b := newBed(t)
	a := b.startAgent()
	c := b.join(a, "ann@laptop", pod.Handlers{})
	to := netip.AddrPortFrom(elseIP, elsePort)
	ln := b.listenElsewhere("tcp", to)
	go answer(ln, "server")
	idle, fds := status(a.PID, "VmRSS"), descriptors(a.PID)
	const n = 2000
	var conns []tunnel.Stream
	for range n {
		s, r, err := c.Dial(context.Background(), wire.Dial{Network: "tcp", To: to})
		if err != nil || s == nil {
			t.Fatalf("%+v, %v", r, err)
		}
		conns = append(conns, s)
		if got, err := say(s, bufio.NewReader(s), "x"); got != "server: x" {
			t.Fatal(got, err)
		}
	}
	with := status(a.PID, "VmRSS")
	t.Logf("idle %d kB, with %d connections %d kB: %.1f kB each", idle, n, with, float64(with-idle)/n)
	if (with-idle)/n > 20 && !underRace {
		t.Error("more than 20 kB a connection")
	}
	for _, s := range conns {
		s.Close()
	}
	within(t, "all sockets are closed", func() bool { return descriptors(a.PID) <= fds+2 })
	s, _, err := c.Dial(context.Background(), wire.Dial{Network: "tcp", To: to})
	if err != nil {
		t.Fatal(err)
	}
	checkSum(t, s, 32<<20, "server")
}

// checkSum sends n bytes and compares what the other end has counted and summed.
func checkSum(t *testing.T, s interface {
	io.ReadWriter
	CloseWrite() error
}, n int, who string) {
	t.Helper()
	want := sendSum(t, s, n, who)
	got, err := bufio.NewReader(s).ReadString('\n')
	if got != want || err != nil {
		t.Errorf("%q, %v; want %q", got, err, want)
	}
}
