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
