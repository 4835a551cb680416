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
def toggle():
    while time.time()<end:
        fcntl.fcntl(l, fcntl.F_SETFL, os.O_NONBLOCK); fcntl.fcntl(l, fcntl.F_SETFL, 0)
def feed():
    while time.time()<end+.1:
        socket.create_connection(l.getsockname()).close(); time.sleep(0.02)
ts=[threading.Thread(target=f) for f in (toggle, feed)]
for t in ts: t.start()
while time.time()<end:
    try: l.accept()
    except BlockingIOError: pass
for t in ts: t.join()
print("done")
`)
	if got != "done\n" {
		t.Errorf("got %q", got)
	}
}
