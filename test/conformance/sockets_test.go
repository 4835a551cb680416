package conformance

import (
	"bytes"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/test/internal/bed"
)

func TestCallsOnSocketsSayWhatTheySayInThePod(t *testing.T) {
	b := bed.Up(t, stead, "conformance-sockets")
	for _, c := range []string{"refused", "mapped", "bound", "segments", "answered"} {
		argv := []string{"python3", programs + "/sockets.py", c}
		native := b.Native(argv...)
		under := b.Exec([]string{"--no-incoming"}, argv...)
		if diff := cmp.Diff(native.Stdout, under.Stdout); diff != "" || native.Code != 0 || under.Code != 0 || native.Stdout == "" {
			t.Errorf("%s: exit codes %d and %d, stderr %s\n- pod + stead:\n%s", c, native.Code, under.Code, native.Stderr+under.Stderr, diff)
		}
	}
}

// What would leave from the laptop, or be answered by it, is refused and told.
func TestPingIsToldThatItDoesNotLeaveFromThePod(t *testing.T) {
	b := machine(t, "conformance-ping", "echo 0 2147483647 > /proc/sys/net/ipv4/ping_group_range")
	for _, kind := range []string{"SOCK_RAW", "SOCK_DGRAM"} { // as root, and as everybody on many systems
		r := b.Exec([]string{"--no-incoming"}, "python3", "-c", `
import errno, socket, struct
def ping(family, protocol, to, echo):
    s = socket.socket(family, socket.`+kind+`, protocol)
    s.settimeout(10)
    b = struct.pack("!BBHHH", echo, 0, 0xffff - (echo << 8) - 1 if echo == 8 else 0, 0, 1)
    for send in (lambda: s.sendto(b, (to, 0)), lambda: s.sendmsg([b], [], 0, (to, 0)), lambda: s.connect((to, 0)) or s.send(b)):
        try:
            send()
            yield "answered" if s.recv(100) else ""
        except OSError as e:
            yield errno.errorcode.get(e.errno, str(e))
for to in ("10.244.0.12", "10.244.0.99", "127.0.0.1"):
    print(*ping(socket.AF_INET, socket.IPPROTO_ICMP, to, 8))
for to in ("fd00:244::12", "::1"):
    print(*ping(socket.AF_INET6, socket.IPPROTO_ICMPV6, to, 128))
`)
		away, here := strings.Repeat(" EHOSTUNREACH", 3)[1:]+"\n", strings.Repeat(" answered", 3)[1:]+"\n"
		if want := away + away + here + away + here; r.Stdout != want || r.Code != 0 {
			t.Errorf("%s: exit code %d: %q, want %q", kind, r.Code, r.Stdout, want)
		}
		if n := strings.Count(r.Stderr, "only TCP and UDP leave from the pod"); n != 1 {
			t.Errorf("%s: told %d times: %s", kind, n, r.Stderr)
		}
	}
}

// A program whose stderr nobody reads goes on, though there is something to tell of it; natively it would
// wait only where it writes there itself.
func TestAProgramWhoseWarningsNobodyReadsGoesOn(t *testing.T) {
	b := bed.Up(t, stead, "conformance-unread")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	fd := int(w.Fd()) // each call makes it blocking
	if err := unix.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	for full := []byte{'.'}; err == nil; {
		_, err = unix.Write(fd, full)
	}
	if err := unix.SetNonblock(fd, false); err != nil {
		t.Fatal(err)
	}
	const text = `
import socket, urllib.request
for i in range(3): # told of
    for family, to in (socket.AF_INET, "10.244.0.12"), (socket.AF_INET6, "fd00:244::12"):
        try: socket.socket(family, socket.SOCK_RAW, 1).sendto(b"12345678", (to, 0))
        except OSError as e: print(e.strerror)
print(urllib.request.urlopen("http://db.shop.svc.cluster.local").status)
`
	c := b.Command("exec", "--target", "playground/orders", "--", "python3", "-c", text)
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, w
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	stop := time.AfterFunc(bed.Limit, func() { c.Process.Signal(syscall.SIGKILL) })
	err = c.Wait()
	if want := strings.Repeat("No route to host\n", 6) + "200\n"; err != nil || out.String() != want || !stop.Stop() {
		t.Errorf("%v: %q, want %q", err, out.String(), want)
	}
}
