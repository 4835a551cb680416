package session

import (
	"testing"
)

func TestEachDatagramReachesOneOfTheThreadsThatWait(t *testing.T) {
	p := &nearPod{tcp: map[string]string{"udp 10.9.9.9:53": udpEcho(t)}}
	got := python(t, p, `
import socket, struct, threading, time
s=socket.socket(type=socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1<<20)
s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll",1,0))
s.sendto(b"first",("10.9.9.9",53)); s.recvfrom(100)
got=[]
def receive():
    while True:
        try: got.append(s.recvfrom(100)[0])
        except BlockingIOError: return
ts=[threading.Thread(target=receive) for _ in range(4)]
for t in ts: t.start()
for i in range(1000):
    s.sendto(b"%d"%i,("10.9.9.9",53))
    if i%20==0: time.sleep(0.002)
for t in ts: t.join()
print(len(got), len(set(got)))
`)
	if want := "1000 1000\n"; got != want {
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
