package session

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stead-dev/stead/internal/intercept/notify"
	"github.com/stead-dev/stead/internal/launch"
	"github.com/stead-dev/stead/internal/session/incoming"
	"github.com/stead-dev/stead/internal/session/outgoing"
	"github.com/stead-dev/stead/internal/session/pod"
	"github.com/stead-dev/stead/internal/sys"
	"github.com/stead-dev/stead/internal/tunnel"
	"github.com/stead-dev/stead/internal/wire"
)

// nearPod stands in for an agent: the pod's network is a table of names for servers of this test
// on the loopback, and of errnos. What is tested is everything on the laptop's side of it.
type nearPod struct {
	tcp   map[string]string        // destination -> server
	errno map[string]syscall.Errno // destination -> what the pod's kernel says
	delay time.Duration
	subs  sync.Map // port -> true
}

type tcpStream struct{ *net.TCPConn }

func (s tcpStream) Reset(uint32) error { s.SetLinger(0); return s.Close() }

// wait is the way to the pod and back.
func (p *nearPod) wait(ctx context.Context) error {
	if p.delay == 0 {
		return nil
	}
	select {
	case <-time.After(p.delay):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (p *nearPod) Dial(ctx context.Context, d wire.Dial) (tunnel.Stream, wire.Reply, error) {
	if err := p.wait(ctx); err != nil {
		return nil, wire.Reply{}, err
	}
	if e, ok := p.errno[d.To.String()]; ok {
		return nil, wire.Reply{Errno: uint32(e)}, nil
	}
	if d.Network == "udp" {
		to, ok := p.tcp["udp "+d.To.String()]
		if !ok {
			return nil, wire.Reply{Errno: uint32(syscall.ENETUNREACH)}, nil
		}
		a, b, err := tcpPair()
		if err != nil {
			return nil, wire.Reply{}, err
		}
		c, err := net.Dial("udp", to)
		if err != nil {
			return nil, wire.Reply{}, err
		}
		go func() {
			buf := make([]byte, wire.MaxDatagram)
			for {
				n, _, err := wire.ReadDatagram(b, buf)
				if err != nil {
					c.Close()
					return
				}
				c.Write(buf[:n])
			}
		}()
		go func() {
			buf := make([]byte, wire.MaxDatagram)
			for {
				n, err := c.Read(buf)
				if err != nil {
					if strings.Contains(err.Error(), "refused") {
						b.Write(wire.AppendErrno(nil, uint16(syscall.ECONNREFUSED)))
						continue
					}
					return
				}
				b.Write(wire.AppendDatagram(nil, buf[:n]))
			}
		}()
		return tcpStream{a}, wire.Reply{Local: netip.MustParseAddrPort("10.9.0.2:4242"), Remote: d.To}, nil
	}
	to, ok := p.tcp[d.To.String()]
	if !ok {
		return nil, wire.Reply{Errno: uint32(syscall.EHOSTUNREACH)}, nil
	}
	c, err := net.Dial("tcp", to)
	if err != nil {
		return nil, wire.Reply{Errno: uint32(syscall.ECONNREFUSED)}, nil
	}
	local := netip.MustParseAddrPort("10.9.0.2:4242")
	if d.To.Addr().Is6() {
		local = netip.MustParseAddrPort("[fd09::2]:4242")
	}
	return tcpStream{c.(*net.TCPConn)}, wire.Reply{Local: local, Remote: d.To}, nil
}

func (p *nearPod) Packet(ctx context.Context, _ wire.Packet) (tunnel.Stream, wire.Reply, error) {
	if err := p.wait(ctx); err != nil {
		return nil, wire.Reply{}, err
	}
	a, b, err := tcpPair()
	if err != nil {
		return nil, wire.Reply{}, err
	}
	go func() {
		c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			return
		}
		names := sync.Map{}
		go func() {
			buf := make([]byte, wire.MaxDatagram)
			for {
				n, from, err := c.ReadFromUDPAddrPort(buf)
				if err != nil {
					return
				}
				if name, ok := names.Load(from); ok {
					b.Write(wire.AppendPacket(nil, name.(netip.AddrPort), buf[:n]))
				}
			}
		}()
		buf := make([]byte, wire.MaxDatagram)
		for {
			to, n, _, err := wire.ReadPacket(b, buf)
			if err != nil {
				c.Close()
				return
			}
			if at, ok := p.tcp["udp "+to.String()]; ok {
				real := netip.MustParseAddrPort(at)
				names.Store(real, to)
				c.WriteToUDPAddrPort(buf[:n], real)
			}
		}
	}()
	return tcpStream{a}, wire.Reply{Local: netip.MustParseAddrPort("10.9.0.2:4243")}, nil
}

func (p *nearPod) Subscribe(ctx context.Context, s wire.Subscribe) (*pod.Subscription, wire.Reply, error) {
	if err := p.wait(ctx); err != nil {
		return nil, wire.Reply{}, err
	}
	p.subs.Store(s.Port, true)
	return pod.NewSubscription(1, func() {}), wire.Reply{ID: 1}, nil
}

func tcpPair() (*net.TCPConn, *net.TCPConn, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	defer l.Close()
	a, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return nil, nil, err
	}
	b, err := l.Accept()
	return a.(*net.TCPConn), b.(*net.TCPConn), err
}

// greeter serves TCP connections: it says hello and echoes.
func greeter(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.WriteString(c, "hello\n")
				io.Copy(c, c)
			}()
		}
	}()
	return l.Addr().String()
}

func udpEcho(t *testing.T) string {
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go func() {
		b := make([]byte, 65536)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			c.WriteTo(append([]byte("udp: "), b[:n]...), from)
		}
	}()
	return c.LocalAddr().String()
}

// under runs a program under the interceptor with the pod p and returns what it printed.
func under(t *testing.T, p *nearPod, argv ...string) (string, int) {
	t.Helper()
	path, err := launch.LookPath(argv[0], os.Getenv("PATH"), "/")
	if err != nil {
		t.Fatal(err)
	}
	trouble := func(err error) { t.Log("trouble:", err) }
	addrs := []netip.Addr{netip.MustParseAddr("10.9.0.2")}
	in := incoming.New(incoming.Config{
		Mode: wire.Steal, PodAddr: func(a netip.Addr) bool { return slices.Contains(addrs, a) },
		Trouble: trouble, Notice: func(s string) { t.Log(s) },
	})
	in.SetPod(p)
	out, err := outgoing.New(outgoing.Config{
		Pod: p, Network: outgoing.Network{Addrs: addrs},
		OwnTCP: in.OwnTCP, OwnUDP: in.OwnUDP, Heard: in.Heard, Trouble: trouble,
	})
	if err != nil {
		t.Fatal(err)
	}
	h := &handler{in: in, out: out, node: "pod-0", trouble: trouble}
	var sup *notify.Supervisor
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	oldOut, oldErr := os.Stdout, os.Stderr
	save1, _ := syscall.Dup(1)
	save2, _ := syscall.Dup(2)
	syscall.CloseOnExec(save1)
	syscall.CloseOnExec(save2)
	syscall.Dup3(int(w.Fd()), 1, 0)
	syscall.Dup3(int(w.Fd()), 2, 0)
	proc, err := launch.Start(context.Background(), launch.Spec{
		Path: path, Argv: argv, Env: os.Environ(), Filter: notify.Options{Uname: true},
		Serve: func(l sys.Listener) (err error) { sup, err = notify.Start(l, h, nil); return err },
	})
	syscall.Dup3(save1, 1, 0)
	syscall.Dup3(save2, 2, 0)
	syscall.Close(save1)
	syscall.Close(save2)
	_, _ = oldOut, oldErr
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	copied := make(chan struct{})
	go func() { io.Copy(&b, r); close(copied) }()
	select {
	case <-proc.Done():
	case <-time.After(60 * time.Second):
		t.Error("the program hangs")
	}
	code := proc.ExitCode()
	proc.Kill()
	sup.Close()
	in.Close()
	out.Close()
	<-copied
	r.Close()
	return b.String(), code
}

func python(t *testing.T, p *nearPod, code string) string {
	t.Helper()
	out, exit := under(t, p, "python3", "-c", code)
	if exit != 0 {
		t.Errorf("exit code %d", exit)
	}
	return out
}

func TestBlockingConnectReachesThePodAndSeesItsNames(t *testing.T) {
	p := &nearPod{tcp: map[string]string{"10.9.9.9:80": greeter(t)}}
	got := python(t, p, `
import socket
s=socket.create_connection(("10.9.9.9",80))
print(s.getpeername(), s.getsockname(), s.makefile().readline().strip())
s.sendall(b"x"*1000000); s.shutdown(1)
n=0
while True:
    b=s.recv(65536)
    if not b: break
    n+=len(b)
print(n)
s6=socket.socket(socket.AF_INET6); s6.connect(("::ffff:10.9.9.9",80)); print(s6.getpeername()[0], s6.recv(6))
`)
	want := "('10.9.9.9', 80) ('10.9.0.2', 4242) hello\n1000000\n::ffff:10.9.9.9 b'hello\\n'\n"
	if got != want {
		t.Errorf("got %q\nwant %q", got, want)
	}
}

func TestNonBlockingConnectCompletesWithThePodsAnswer(t *testing.T) {
	for _, delay := range []time.Duration{0, 300 * time.Millisecond} {
		p := &nearPod{
			delay: delay,
			tcp:   map[string]string{"10.9.9.9:80": greeter(t), "[fd09::9]:80": greeter(t)},
			errno: map[string]syscall.Errno{"10.9.9.9:81": syscall.ECONNREFUSED, "10.9.9.9:82": syscall.ETIMEDOUT, "10.9.9.9:83": syscall.EHOSTUNREACH},
		}
		got := python(t, p, `
import socket,select,errno
def go(fam,to):
    s=socket.socket(fam); s.setblocking(False)
    ep=select.epoll(); ep.register(s,select.EPOLLOUT|select.EPOLLIN|select.EPOLLRDHUP)
    print(to[1], errno.errorcode[s.connect_ex(to)], end=" ")
    ep.unregister(s); ep.register(s,select.EPOLLOUT)
    r=ep.poll(10)
    assert r, "no event"
    e=s.getsockopt(socket.SOL_SOCKET,socket.SO_ERROR)
    print(errno.errorcode.get(e,e), s.getsockopt(socket.SOL_SOCKET,socket.SO_ERROR), end=" ")
    if e==0:
        s.setblocking(True); print(s.getpeername()[0], s.getsockname()[0], s.recv(6), [s.connect_ex(to) for _ in 'ab']==[0,errno.EISCONN])
    else:
        try: print(s.getpeername())
        except OSError as x: print(errno.errorcode[x.errno])
go(socket.AF_INET,("10.9.9.9",80))
go(socket.AF_INET6,("::ffff:10.9.9.9",80))
go(socket.AF_INET6,("fd09::9",80))
for p in (81,82,83): go(socket.AF_INET,("10.9.9.9",p))
`)
		want := `80 EINPROGRESS 0 0 10.9.9.9 10.9.0.2 b'hello\n' True
80 EINPROGRESS 0 0 ::ffff:10.9.9.9 ::ffff:10.9.0.2 b'hello\n' True
80 EINPROGRESS 0 0 fd09::9 fd09::2 b'hello\n' True
81 EINPROGRESS ECONNREFUSED 0 ENOTCONN
82 EINPROGRESS ETIMEDOUT 0 ENOTCONN
83 EINPROGRESS EHOSTUNREACH 0 ENOTCONN
`
		if got != want {
			t.Errorf("delay %v: got %s\nwant %s", delay, got, want)
		}
	}
}

func TestBlockingConnectReturnsThePodsErrno(t *testing.T) {
	p := &nearPod{errno: map[string]syscall.Errno{"10.9.9.9:81": syscall.ECONNREFUSED, "10.9.9.9:82": syscall.ENETUNREACH}}
	got := python(t, p, `
import socket,errno
for p in 81,82: print(errno.errorcode[socket.socket().connect_ex(("10.9.9.9",p))])
`)
	if want := "ECONNREFUSED\nENETUNREACH\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestASignalInterruptsAHeldConnect(t *testing.T) {
	p := &nearPod{delay: time.Hour}
	got := python(t, p, `
import socket,signal
class Alarm(Exception): pass
def h(*a): raise Alarm
signal.signal(signal.SIGALRM,h); signal.setitimer(signal.ITIMER_REAL,0.2)
try: socket.socket().connect(("10.9.9.9",80))
except Alarm: print("alarm")
s=socket.socket(); s.settimeout(0.2)
try: s.connect(("10.9.9.9",80))
except TimeoutError: print("timeout")
`)
	if want := "alarm\ntimeout\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestDatagramsKeepTheirNames(t *testing.T) {
	p := &nearPod{tcp: map[string]string{"udp 10.9.9.9:53": udpEcho(t), "udp 10.9.9.8:53": udpEcho(t)}}
	got := python(t, p, `
import socket
s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.connect(("10.9.9.9",53))
print(s.getpeername(), s.getsockname())
s.send(b"a"); print(s.recvfrom(100)); s.send(b"b"); print(s.recvmsg(100)[0::3])
u=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)
for to in (("10.9.9.9",53),("10.9.9.8",53)):
    print(u.sendto(b"cc",to)); print(u.recvfrom(100))
    print(u.sendmsg([b"d",b"e"],[],0,to)); print(u.recvmsg(100)[0::3])
big=b"z"*40000
u.sendto(big,("10.9.9.8",53)); d,a=u.recvfrom(65536); print(len(d),a)
`)
	want := `('10.9.9.9', 53) ('10.9.0.2', 4242)
(b'udp: a', ('10.9.9.9', 53))
(b'udp: b', ('10.9.9.9', 53))
2
(b'udp: cc', ('10.9.9.9', 53))
2
(b'udp: de', ('10.9.9.9', 53))
2
(b'udp: cc', ('10.9.9.8', 53))
2
(b'udp: de', ('10.9.9.8', 53))
40005 ('10.9.9.8', 53)
`
	if got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
}

func TestExitCodesAreTheProgramsOwn(t *testing.T) {
	p := &nearPod{}
	for _, c := range []struct {
		script string
		want   int
	}{{"exit 0", 0}, {"exit 7", 7}, {"kill -TERM $$", 143}, {"kill -9 $$", 137}} {
		if _, code := under(t, p, "sh", "-c", c.script); code != c.want {
			t.Errorf("%s: exit code %d, want %d", c.script, code, c.want)
		}
	}
	out, _ := under(t, p, "uname", "-n")
	if out != "pod-0\n" {
		t.Errorf("uname -n: %q", out)
	}
}
