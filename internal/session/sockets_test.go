package session

import (
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"
)

// named serves TCP connections: it says who it is.
func named(t *testing.T, name string) string {
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
			io.WriteString(c, name)
			defer c.Close()
		}
	}()
	return l.Addr().String()
}

func TestEachDatagramReachesOneOfTheThreadsThatWait(t *testing.T) {
	p := &nearPod{tcp: map[string]string{"udp 10.9.9.9:53": udpEcho(t)}}
	got := python(t, p, `
import socket, struct, threading, time
s=socket.socket(type=socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll",2,0))
s.sendto(b"first",("10.9.9.9",53)); s.recvfrom(100)
got=[]
def receive():
    while True:
        try: got.append(s.recvfrom(100)[0])
        except BlockingIOError: return
ts=[threading.Thread(target=receive) for _ in range(4)]
for t in ts: t.start()
for i in range(300):
    s.sendto(b"%d"%i,("10.9.9.9",53))
    end=time.time()+5
    while len(got)<=i and time.time()<end: time.sleep(0.0001)
for t in ts: t.join()
print(len(got), len(set(got)))
`)
	if want := "300 300\n"; got != want {
		t.Errorf("received, and different ones: %s, want %s", got, want)
	}
}

// Nobody can hold the receiver up: O_NONBLOCK is the open file's, so another process may take it off
// between our look at it and the accept.
func TestAListenerThatIsMadeBlockingMeanwhileStopsNobody(t *testing.T) {
	got := python(t, &nearPod{}, `
import fcntl, os, socket, threading, time
l=socket.socket(); l.bind(("127.0.0.1",0)); l.listen(); l.setblocking(False)
end=time.time()+2
on=True
def toggle():
    while on:
        fcntl.fcntl(l, fcntl.F_SETFL, os.O_NONBLOCK); fcntl.fcntl(l, fcntl.F_SETFL, 0)
def feed():
    while on:
        socket.create_connection(l.getsockname()).close(); time.sleep(0.02)
ts=[threading.Thread(target=f) for f in (toggle, feed)]
for t in ts: t.start()
while time.time()<end:
    try: l.accept()
    except BlockingIOError: pass
on=False
for t in ts: t.join()
print("done")
`)
	if got != "done\n" {
		t.Errorf("got %q", got)
	}
}

// Workers of a pool are killed while they wait in accept; the others take what comes.
func TestAConnectionIsNotLostWithTheProcessThatWaitedForIt(t *testing.T) {
	got := python(t, &nearPod{}, `
import os, signal, socket, time
l=socket.create_server(("127.0.0.1",0))
def worker():
    pid=os.fork()
    if pid: return pid
    while True:
        c,_=l.accept(); c.sendall(b"hello"); c.close()
pids=[worker() for _ in range(2)]
time.sleep(1.2)
lost=0
for i in range(20):
    c=socket.socket(); c.settimeout(5)
    pids.append(worker()); time.sleep(0.05)
    os.kill(pids[0], signal.SIGKILL); c.connect(l.getsockname()); os.waitpid(pids.pop(0),0)
    try: c.recv(5) # nothing, when it was taken by the one that was killed
    except TimeoutError: lost+=1
    except ConnectionResetError: pass
print("lost", lost)
for p in pids: os.kill(p, signal.SIGKILL)
`)
	if got != "lost 0\n" {
		t.Errorf("got %q", got)
	}
}

func TestAConnectionForWhichTheProgramHadNoDescriptorComesLater(t *testing.T) {
	got := python(t, &nearPod{}, `
import resource, select, socket
l=socket.create_server(("127.0.0.1",0)); l.setblocking(False)
p=select.poll(); p.register(l, select.POLLIN)
def client():
    c=socket.create_connection(l.getsockname()); c.settimeout(5); return c
a=client(); p.poll(); x,_=l.accept(); b=client()
resource.setrlimit(resource.RLIMIT_NOFILE, (b.fileno()+1,)*2)
p.poll()
try: l.accept(); print("accepted")
except OSError as e: print(e.strerror)
x.close()
print("readable", bool(p.poll(5000)))
y,_=l.accept(); y.sendall(b"hello"); print(b.recv(5))
y.close()
try: print(l.accept())
except BlockingIOError: print("no more")
`)
	if want := "Too many open files\nreadable True\nb'hello'\nno more\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// A kernel goes on connecting when a signal interrupts connect(2): with SA_RESTART the call waits on, without
// it the program does, as Python here, which polls the socket and asks for its error.
func TestASignalDoesNotEndAConnect(t *testing.T) {
	p := &nearPod{
		delay: 500 * time.Millisecond,
		tcp:   map[string]string{"10.9.9.9:80": greeter(t), "udp 10.9.9.9:53": udpEcho(t)},
		errno: map[string]syscall.Errno{"10.9.9.9:81": syscall.ECONNREFUSED},
	}
	got := python(t, p, `
import ctypes, os, signal, socket
libc=ctypes.CDLL(None, use_errno=True)
for interrupts in True, False:
    signal.signal(signal.SIGALRM, lambda *a: None); signal.siginterrupt(signal.SIGALRM, interrupts)
    signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
    s=socket.socket(); s.connect(("10.9.9.9",80)); print(s.recv(5), s.getpeername())
    try: socket.socket().connect(("10.9.9.9",81)); print("connected")
    except OSError as e: print(e.strerror)
    # What never waits in a kernel is not interrupted.
    def to(port): return b"\2\0"+port.to_bytes(2,"big")+socket.inet_aton("10.9.9.9")+bytes(8)
    def result(r): return r if r>=0 else os.strerror(ctypes.get_errno())
    u=socket.socket(type=socket.SOCK_DGRAM); print("udp", result(libc.connect(u.fileno(), to(53), 16)))
    l=socket.socket(); l.bind(("127.0.0.1",0)); print("listen", result(libc.listen(l.fileno(), 1)))
    signal.setitimer(signal.ITIMER_REAL, 0)
`)
	want := "b'hello' ('10.9.9.9', 80)\nConnection refused\nudp 0\nlisten 0\n"
	if got != want+want {
		t.Errorf("got %s\nwant twice %s", got, want)
	}
}

// SO_SNDTIMEO ends the wait, not the connect.
func TestAConnectThatTimedOutGoesOn(t *testing.T) {
	p := &nearPod{delay: 500 * time.Millisecond, tcp: map[string]string{"10.9.9.9:80": greeter(t)}}
	got := python(t, p, `
import errno, select, socket, struct
s=socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll",0,100000))
print(errno.errorcode[s.connect_ex(("10.9.9.9",80))], s.getsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, 16)==struct.pack("ll",0,100000))
p=select.poll(); p.register(s, select.POLLOUT)
print(p.poll(0), bool(p.poll(5000)), s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), s.recv(5))
`)
	if want := "EINPROGRESS True\n[] True 0 b'hello'\n"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// A port of the loopback may be had anew by the next socket while the pod still connects for the last one.
func TestAConnectThatWasGivenUpIsNobodyElses(t *testing.T) {
	one, two := greeter(t), named(t, "two")
	p := &nearPod{delay: 400 * time.Millisecond, tcp: map[string]string{"10.9.9.9:80": one, "10.9.9.9:81": two}}
	got := python(t, p, `
import errno, select, socket, time
def begin(at, port):
    s=socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.bind(("127.0.0.1",at)); s.setblocking(False)
    print(errno.errorcode[s.connect_ex(("10.9.9.9",port))]); return s
f=socket.socket(); f.bind(("127.0.0.1",0)); at=f.getsockname()[1]; f.close()
begin(at, 80).close(); time.sleep(0.2)
s=begin(at, 81)
p=select.poll(); p.register(s, select.POLLIN)
print(bool(p.poll(5000)), s.recv(5))
`)
	if want := "EINPROGRESS\nEINPROGRESS\nTrue b'two'\n"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestASocketThatWasDissolvedKnowsNothingOfItsLastConnect(t *testing.T) {
	p := &nearPod{
		delay: 300 * time.Millisecond, tcp: map[string]string{"10.9.9.9:80": greeter(t)},
		errno: map[string]syscall.Errno{"10.9.9.9:81": syscall.ECONNREFUSED},
	}
	got := python(t, p, `
import ctypes, errno, select, socket, time
s=socket.socket(); s.setblocking(False)
print(errno.errorcode[s.connect_ex(("10.9.9.9",81))]); time.sleep(0.2)
print(ctypes.CDLL(None).connect(s.fileno(), bytes(16), 16))
print(errno.errorcode[s.connect_ex(("10.9.9.9",80))])
p=select.poll(); p.register(s, select.POLLIN|select.POLLOUT)
print([e&select.POLLHUP for _,e in p.poll(5000)], s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
p.modify(s, select.POLLIN); p.poll(5000); print(s.recv(5))
`)
	if want := "EINPROGRESS\n0\nEINPROGRESS\n[0] 0\nb'hello'\n"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestARefusalReachesASocketWhoseThreadHasEnded(t *testing.T) {
	p := &nearPod{delay: 300 * time.Millisecond, errno: map[string]syscall.Errno{"10.9.9.9:81": syscall.ECONNREFUSED}}
	got := python(t, p, `
import errno, select, socket, threading
def begin(s): s.setblocking(False); print(errno.errorcode[s.connect_ex(("10.9.9.9",81))])
def end(s):
    p=select.poll(); p.register(s, select.POLLOUT)
    print(bool(p.poll(5000)), errno.errorcode.get(s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)))
s=socket.socket(); t=threading.Thread(target=begin, args=(s,)); t.start(); t.join(); end(s)
`)
	if want := "EINPROGRESS\nTrue ECONNREFUSED\n"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// What a program does in a network namespace that it made (a build's sandbox) is none of the pod's.
func TestSocketsOfANetworkNamespaceOfTheProgramsOwnAreLeftAlone(t *testing.T) {
	p := &nearPod{tcp: map[string]string{"127.0.0.1:7021": greeter(t)}}
	got, code := under(t, p, "unshare", "-rn", "python3", "-c", `
import fcntl, socket, struct, time
fcntl.ioctl(socket.socket(), 0x8914, struct.pack("16sh", b"lo", 0x49)) # SIOCSIFFLAGS: up
l=socket.create_server(("127.0.0.1",7021)); u=socket.socket(type=socket.SOCK_DGRAM); u.bind(("127.0.0.1",7021))
for wait in 0, 2.5: # the laptop's tables, which are looked at each second, have none of these
    time.sleep(wait)
    c=socket.create_connection(("127.0.0.1",7021)); a,_=l.accept(); a.sendall(b"own"); print(c.recv(10))
    v=socket.socket(type=socket.SOCK_DGRAM); v.settimeout(2); v.sendto(b"x", u.getsockname()); u.sendto(b"own", u.recvfrom(9)[1]); print(v.recv(9))
try: socket.create_connection(("127.0.0.1",7022))
except OSError as e: print(e.strerror)
`)
	if want := "b'own'\nb'own'\nb'own'\nb'own'\nConnection refused\n"; got != want || code != 0 {
		t.Errorf("got %s, want %s", got, want)
	}
	p.subs.Range(func(port, _ any) bool { t.Errorf("the pod was asked for port %v", port); return true })
}

// The pod's address is not one of the laptop's. A program that binds to it (it knows it by its host name, or
// by POD_IP) sees it as its own.
func TestAProgramBindsToThePodsAddress(t *testing.T) {
	p := &nearPod{tcp: map[string]string{"10.9.9.9:80": greeter(t), "udp 10.9.9.9:53": udpEcho(t)}}
	got := python(t, p, `
import errno, socket
pod="10.9.0.2"
for kind in socket.SOCK_STREAM, socket.SOCK_DGRAM:
    s=socket.socket(type=kind); s.bind((pod,0)); print(s.getsockname()[0], s.getsockname()[1]>0)
s=socket.socket(); s.bind((pod,0)); s.connect(("10.9.9.9",80)); print(s.recv(5), s.getsockname()[0])
s=socket.socket(type=socket.SOCK_DGRAM); s.bind((pod,0)); at=s.getsockname()
s.sendto(b"x",("10.9.9.9",53)); print(s.recvfrom(10), s.getsockname()==at)
l=socket.socket(); l.bind((pod,0)); l.listen(); print(l.getsockname()[0])
c=socket.create_connection(("127.0.0.1",l.getsockname()[1])); a,_=l.accept(); a.sendall(b"own"); print(c.recv(5))
try: m=socket.socket(); m.bind(l.getsockname())
except OSError as e: print(errno.errorcode[e.errno])
s=socket.socket(socket.AF_INET6); s.bind(("::ffff:"+pod,0)); print(s.getsockname()[0])
try: socket.socket().bind(("203.0.113.9",0))
except OSError as e: print(errno.errorcode[e.errno])
`)
	want := `10.9.0.2 True
10.9.0.2 True
b'hello' 10.9.0.2
(b'udp: x', ('10.9.9.9', 53)) True
10.9.0.2
b'own'
EADDRINUSE
::ffff:10.9.0.2
EADDRNOTAVAIL
`
	if got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
}

// A UDP server of the program's answers whoever reached it on the laptop: another socket of the program's, or
// another process; also from a second socket, as TFTP does.
func TestWhoeverReachedAUDPServerOnTheLaptopHasItsAnswer(t *testing.T) {
	free, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := free.LocalAddr().String()
	free.Close()
	answered := make(chan string, 1)
	go func() {
		defer close(answered)
		c, err := net.Dial("udp", at)
		if err != nil {
			return
		}
		defer c.Close()
		b := make([]byte, 100)
		for range 100 {
			c.Write([]byte("q"))
			c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
			if n, err := c.Read(b); err == nil {
				answered <- string(b[:n])
				return
			}
			time.Sleep(20 * time.Millisecond) // refused, as long as it is not bound
		}
	}()
	got, _ := under(t, &nearPod{}, "python3", "-c", `
import socket, sys
host, port = sys.argv[1].split(":")
def udp(): s=socket.socket(type=socket.SOCK_DGRAM); s.settimeout(10); return s
a=udp(); a.bind((host,int(port)))
d,f=a.recvfrom(100); a.sendto(b"to the laptop",f)
a.close(); a=udp(); a.bind(("127.0.0.1",0))
b=udp(); b.sendto(b"q",a.getsockname()); d,f=a.recvfrom(100); a.sendto(b"one",f); print(b.recv(100))
c=udp(); c.connect(a.getsockname()); c.send(b"q"); m=a.recvmsg(100); a.sendmsg([b"two"],[],0,m[3]); print(c.recv(100))
e=udp(); e.connect(m[3]); e.send(b"lost"); c.settimeout(.1); print(e.getpeername()==m[3])
b.sendto(b"q",a.getsockname()); d,f=a.recvfrom(100); g=udp(); g.sendto(b"three",f); print(b.recv(100))
`, at)
	if want := "b'one'\nb'two'\nTrue\nb'three'\n"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if a := <-answered; a != "to the laptop" {
		t.Errorf("the laptop got %q", a)
	}
}

func TestAConnectedDatagramSocketSendsElsewhereToo(t *testing.T) {
	p := &nearPod{tcp: map[string]string{"udp 10.9.9.9:53": udpEcho(t), "udp 10.9.9.8:53": udpEcho(t)}}
	got := python(t, p, `
import ctypes, socket
s=socket.socket(type=socket.SOCK_DGRAM); s.settimeout(10); s.connect(("10.9.9.9",53))
print(s.sendto(b"same",("10.9.9.9",53)), s.recvfrom(100))
print(s.sendto(b"other",("10.9.9.8",53)), s.sendto(b"other",("10.9.9.8",53)))
s.send(b"again"); print(s.recv(100)) # what the other answers is not for a connected socket
print(ctypes.CDLL(None).connect(s.fileno(), bytes(16), 16))
print(s.sendto(b"x",("10.9.9.8",53)), s.recvfrom(100))
`)
	want := "4 (b'udp: same', ('10.9.9.9', 53))\n5 5\nb'udp: again'\n0\n1 (b'udp: x', ('10.9.9.8', 53))\n"
	if got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestThreadsThatSendFirstToOneDestinationShareItsRelay(t *testing.T) {
	p := &nearPod{delay: 50 * time.Millisecond, tcp: map[string]string{"udp 10.9.9.9:53": udpEcho(t)}}
	ended := make(chan string)
	go func() {
		ended <- python(t, p, `
import socket, threading
for i in range(5):
    s=socket.socket(type=socket.SOCK_DGRAM); s.settimeout(10)
    ts=[threading.Thread(target=s.sendto, args=(b"x",("10.9.9.9",53))) for _ in range(8)]
    for t in ts: t.start()
    for t in ts: t.join()
    print(len([s.recvfrom(10) for _ in ts]))
    s.close()
`)
	}()
	select {
	case got := <-ended:
		if want := strings.Repeat("8\n", 5); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	case <-time.After(60 * time.Second):
		t.Fatal("the session does not end")
	}
}

// UDP_SEGMENT, with which QUIC sends many datagrams at once.
func TestDatagramsThatAreSentAsSegmentsArriveAsSuch(t *testing.T) {
	p := &nearPod{tcp: map[string]string{"udp 10.9.9.9:53": udpEcho(t)}}
	got := python(t, p, `
import ctypes, socket, struct
UDP_SEGMENT=103
def cut(n): return [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("H",n)), (socket.IPPROTO_IP, socket.IP_TOS, struct.pack("i",0))]
s=socket.socket(type=socket.SOCK_DGRAM); s.settimeout(10)
for i in range(2): # the first one finds no way to the pod yet
    print(s.sendmsg([b"x"*2000,b"y"*500],cut(1000),0,("10.9.9.9",53)), [len(s.recvfrom(10000)[0]) for _ in range(3)])
s.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 600)
print(s.sendto(b"z"*1000,("10.9.9.9",53)), [len(s.recvfrom(10000)[0]) for _ in range(2)])
c=socket.socket(type=socket.SOCK_DGRAM); c.settimeout(10); c.connect(("10.9.9.9",53))
print(c.sendmsg([b"x"*2500],cut(1000)), [len(c.recv(10000)) for _ in range(3)])
`)
	want := "2500 [1005, 1005, 505]\n2500 [1005, 1005, 505]\n1000 [605, 405]\n2500 [1005, 1005, 505]\n"
	if got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// A port that the laptop does not give is another one there. The program does not see it.
func TestAProgramReachesItselfOnAPortThatWasExchanged(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	_, port, _ := net.SplitHostPort(taken.Addr().String())
	got, _ := under(t, &nearPod{}, "python3", "-c", `
import errno, os, socket, sys
at=("127.0.0.1",int(sys.argv[1]))
def listener(*options):
    s=socket.socket()
    for o in options: s.setsockopt(socket.SOL_SOCKET, o, 1)
    s.bind(at); s.listen(); return s
l=listener(socket.SO_REUSEPORT); print(l.getsockname()==at)
def meet(c, by=l):
    a,_=by.accept(); a.sendall(b"own"); print(c.recv(5), c.getpeername()==at, a.getsockname()==at)
meet(socket.create_connection(at))
c=socket.socket(); c.settimeout(10); c.connect(at); meet(c)
c=socket.socket(socket.AF_INET6); c.connect(("::ffff:127.0.0.1",at[1])); print(c.getpeername()[:2]); l.accept()
try: listener()
except OSError as e: print(errno.errorcode[e.errno])
m=listener(socket.SO_REUSEPORT); print(m.getsockname()==at); l.close()
meet(socket.create_connection(at), m)
m.close()
two=[socket.socket() for _ in range(2)]
for s in two: s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1); s.bind(at)
for s in two: s.listen()
def here(s): return [l.split()[1] for l in open("/proc/net/tcp") if l.split()[9]==str(os.fstat(s.fileno()).st_ino)]
print(here(two[0])==here(two[1])!=[]); two[0].close(); two[1].close()
try: c=socket.create_connection(at); print("connected")
except OSError as e: print(errno.errorcode[e.errno])
`, port)
	want := "True\nb'own' True True\nb'own' True True\n('::ffff:127.0.0.1', " + port + ")\nEADDRINUSE\nTrue\nb'own' True True\nTrue\n"
	if got != want+"ECONNREFUSED\n" && got != want+"EHOSTUNREACH\n" { // EHOSTUNREACH: from the pod
		t.Errorf("got %s, want %s and no connection", got, want)
	}
}
