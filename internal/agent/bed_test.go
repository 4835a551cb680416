package agent_test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/stead-dev/stead/internal/agent"
	"github.com/stead-dev/stead/internal/local/beside"
	"github.com/stead-dev/stead/internal/session/pod"
	"github.com/stead-dev/stead/internal/sys"
	"github.com/stead-dev/stead/internal/tunnel"
	"github.com/stead-dev/stead/internal/wire"
)

// The bed of the tests: an app in network and UTS namespaces of its own (the "pod"), another
// network namespace (the "elsewhere") joined to it by a veth pair, and an agent process of the same
// binary beside the app.
const (
	appPort  = 8080
	udpPort  = 9001
	elsePort = 7070 // a server elsewhere
)

var (
	podIP, elseIP   = netip.MustParseAddr("10.77.0.2"), netip.MustParseAddr("10.77.0.1")
	podIP6, elseIP6 = netip.MustParseAddr("fd77::2"), netip.MustParseAddr("fd77::1")
	blackhole       = netip.MustParseAddr("10.77.0.99")
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "agent": // agent serve ARGS
			confine()
			os.Exit(agent.Main(context.Background(), os.Args[3:], os.Environ(), "test", os.Stderr))
		case "app":
			os.Exit(app())
		case "look":
			lookAt(os.Args[2:])
			io.Copy(io.Discard, os.Stdin)
			os.Exit(0)
		case "hang":
			os.Exit(hang(os.Args[2]))
		case "room":
			io.Copy(io.Discard, os.Stdin)
			os.Exit(0)
		}
	}
	os.Exit(m.Run())
}

// app answers "app: LINE" to each line on TCP, echoes UDP, until its standard input ends.
func app() int {
	if lo, err := netlink.LinkByName("lo"); err == nil {
		_ = netlink.LinkSetUp(lo)
	}
	ln, err := net.Listen("tcp", fmt.Sprintf("[::]:%d", appPort))
	if err != nil {
		fmt.Println(err)
		return 1
	}
	u, err := net.ListenPacket("udp", fmt.Sprintf("[::]:%d", udpPort))
	if err != nil {
		fmt.Println(err)
		return 1
	}
	go echo(u)
	go answer(ln, "app")
	fmt.Println("ready")
	io.Copy(io.Discard, os.Stdin)
	return 0
}

func echo(u net.PacketConn) {
	b := make([]byte, 65536)
	for {
		n, from, err := u.ReadFrom(b)
		if err != nil {
			return
		}
		u.WriteTo(b[:n], from)
	}
}

// answer replies "WHO: LINE" to each line; after "sum" to all that follows with its SHA-256.
func answer(ln net.Listener, who string) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		go talk(c, who)
	}
}

func talk(c io.ReadWriteCloser, who string) {
	defer c.Close()
	r := bufio.NewReader(c)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		if line == "sum\n" {
			h := sha256.New()
			n, _ := io.Copy(h, r)
			fmt.Fprintf(c, "%s: %d %s\n", who, n, hex.EncodeToString(h.Sum(nil)))
			return
		}
		fmt.Fprintf(c, "%s: %s", who, line)
	}
}

// child starts this binary in namespaces of its own; it ends with the test.
func child(t testing.TB, mode string, flags uintptr, cred *syscall.SysProcAttr) *exec.Cmd {
	t.Helper()
	c := exec.Command("/proc/self/exe", mode)
	if cred == nil {
		cred = &syscall.SysProcAttr{}
	}
	cred.Cloneflags |= flags
	// No Pdeathsig: it is about the thread that starts the child, which may end before the test.
	c.SysProcAttr = cred
	c.Env = []string{"POD_NAME=orders-0", "GREETING=hello from the pod"}
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatalf("start %s in its namespaces: %v", mode, err)
	}
	t.Cleanup(func() { in.Close(); c.Process.Kill(); c.Wait() })
	if mode == "app" {
		if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
			t.Fatalf("app: %q, %v", line, err)
		}
	}
	return c
}

type bed struct {
	t         testing.TB
	app, room *exec.Cmd
	elsewhere *sys.Namespaces
	inPod     *sys.Namespaces
}

func newBed(t testing.TB) *bed {
	t.Helper()
	b := &bed{t: t}
	b.app = child(t, "app", syscall.CLONE_NEWNET|syscall.CLONE_NEWUTS, nil)
	b.room = child(t, "room", syscall.CLONE_NEWNET, nil)
	at := func(pid int) *netlink.Handle {
		ns, err := netns.GetFromPid(pid)
		if err != nil {
			t.Fatal(err)
		}
		defer ns.Close()
		h, err := netlink.NewHandleAt(ns)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(h.Close)
		return h
	}
	hp, he := at(b.app.Process.Pid), at(b.room.Process.Pid)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(hp.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "pod0",
		PeerNamespace: netlink.NsPid(b.room.Process.Pid)}))
	for _, s := range []struct {
		h     *netlink.Handle
		link  string
		addrs []string
	}{{hp, "lo", nil}, {he, "lo", nil},
		{hp, "eth0", []string{podIP.String() + "/24", podIP6.String() + "/64"}},
		{he, "pod0", []string{elseIP.String() + "/24", elseIP6.String() + "/64"}}} {
		l, err := s.h.LinkByName(s.link)
		must(err)
		for _, a := range s.addrs {
			p, err := netlink.ParseAddr(a)
			must(err)
			if p.IP.To4() == nil {
				p.Flags = syscall.IFA_F_NODAD
			}
			must(s.h.AddrAdd(l, p))
		}
		must(s.h.LinkSetUp(l))
	}
	b.elsewhere, b.inPod = b.enter(b.room), b.enter(b.app)
	must(b.elsewhere.Do(func() error { // each refused datagram is answered, not some a second
		return os.WriteFile("/proc/sys/net/ipv4/icmp_ratelimit", []byte("0"), 0)
	}))
	return b
}

func (b *bed) enter(c *exec.Cmd) *sys.Namespaces {
	b.t.Helper()
	n, err := sys.EnterNetwork(c.Process.Pid)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(n.Close)
	return n
}

// dial connects from elsewhere, or from inside the pod.
func dial(from *sys.Namespaces, to netip.AddrPort) (c net.Conn, err error) {
	err = from.Do(func() error {
		c, err = net.DialTimeout("tcp", to.String(), 10*time.Second)
		return err
	})
	if err == nil {
		c.SetDeadline(time.Now().Add(20 * time.Second))
	}
	return c, err
}

// ask sends a line on a connection of its own and returns what is answered.
func ask(from *sys.Namespaces, to netip.AddrPort, line string) (string, error) {
	c, err := dial(from, to)
	if err != nil {
		return "", err
	}
	defer c.Close()
	return say(c, bufio.NewReader(c), line)
}

func say(c net.Conn, r *bufio.Reader, line string) (string, error) {
	if _, err := io.WriteString(c, line+"\n"); err != nil {
		return "", err
	}
	s, err := r.ReadString('\n')
	return strings.TrimSuffix(s, "\n"), err
}

func (b *bed) listenElsewhere(network string, at netip.AddrPort) (ln net.Listener) {
	b.t.Helper()
	err := b.elsewhere.Do(func() (err error) { ln, err = net.Listen(network, at.String()); return err })
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { ln.Close() })
	return ln
}

func (b *bed) startAgent(args ...string) *beside.Agent {
	b.t.Helper()
	a, err := beside.Start(b.app.Process.Pid, args...)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(a.Close)
	return a
}

// join attaches a session to the agent.
func (b *bed) join(a *beside.Agent, holder string, h pod.Handlers) *pod.Conn {
	b.t.Helper()
	c, err := attach(a, holder, h)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(c.Close)
	return c
}

func attach(a *beside.Agent, holder string, h pod.Handlers) (*pod.Conn, error) {
	tun, err := tunnel.Dial(context.Background(), a.Dial, tunnel.Options{Resume: -1})
	if err != nil {
		return nil, err
	}
	return pod.Attach(context.Background(), tun, wire.Hello{Build: "test", Holder: holder}, h)
}

// takes is a handler that answers as who what the agent brings, and remembers who called whom.
func takes(who string, calls chan<- wire.Incoming) func(tunnel.Stream, wire.Incoming) {
	return func(s tunnel.Stream, in wire.Incoming) {
		if wire.Write(s, wire.Reply{}) != nil {
			return
		}
		if calls != nil {
			calls <- in
		}
		talk(s, who)
	}
}

func subscribe(t testing.TB, c *pod.Conn, mode wire.Mode) *pod.Subscription {
	t.Helper()
	s, r, err := c.Subscribe(context.Background(), wire.Subscribe{Network: "tcp", Port: appPort, Mode: mode})
	if err != nil || s == nil {
		t.Fatalf("subscribe %s: %+v, %v", mode, r, err)
	}
	return s
}

// within waits until what holds; it fails the test after half a minute.
func within(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for range 3000 {
		if holds() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("never: %s", what)
}

func descriptors(pid int) int {
	d, _ := os.ReadDir("/proc/" + strconv.Itoa(pid) + "/fd")
	return len(d)
}

func status(pid int, key string) int {
	b, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	for _, l := range strings.Split(string(b), "\n") {
		if v, ok := strings.CutPrefix(l, key+":"); ok {
			n, _ := strconv.Atoi(strings.Fields(v)[0])
			return n
		}
	}
	return -1
}
