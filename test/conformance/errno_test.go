package conformance

import (
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stead-dev/stead/test/internal/bed"
)

// How a connection fails is the pod's kernel's to say: to a port where nobody listens, a host that is not
// there, one that never answers, a network to which no way leads, one that is forbidden. Blocking or not, by
// TCP or UDP, IPv4 or IPv6.
func TestErrnosAreThoseOfThePodsKernel(t *testing.T) {
	t.Parallel()
	b := bed.Up(t, stead, "conformance-errnos")
	if r := b.Native("sh", "-ec", `
		echo 3 > /proc/sys/net/ipv4/tcp_syn_retries # of the pod's network alone; a neighbour is given up earlier
		f=/proc/sys/net/ipv4/tcp_syn_linear_timeouts; [ ! -e $f ] || echo 0 > $f
		ip route add throw 203.0.113.0/24; ip -6 route add throw 2001:db8:1::/48
		ip route add prohibit 192.0.2.0/24; ip -6 route add prohibit 2001:db8:2::/48`); r.Code != 0 {
		t.Fatal(r.Stderr)
	}
	want := map[string]string{
		"10.244.0.12": "ECONNREFUSED", "fd00:244::12": "ECONNREFUSED", "127.0.0.1": "ECONNREFUSED", "::1": "ECONNREFUSED",
		"10.244.0.99": "EHOSTUNREACH", "fd00:244::99": "EHOSTUNREACH",
		"198.51.100.1": "ETIMEDOUT", "2001:db8::1": "ETIMEDOUT",
		"203.0.113.1": "ENETUNREACH", "2001:db8:1::1": "ENETUNREACH",
		"192.0.2.1": "EACCES", "2001:db8:2::1": "EACCES",
	}
	var to []string
	for a := range want {
		to = append(to, a)
	}
	all := map[string][]string{
		"python3": {"/usr/bin/env", "python3", programs + "/probe.py"}, "static musl C": {programs + "/cprobe"},
		"static Go": {programs + "/goprobe"}, "node": {"node", programs + "/probe.js"},
		"java": {"java", "-cp", programs, "Probe"}, "java with IPv4 sockets": {"java", "-Djava.net.preferIPv4Stack=true", "-cp", programs, "Probe"},
	}
	type result struct{ native, under bed.Result }
	results := make(map[string]*result)
	var running sync.WaitGroup // they all wait for the same silence
	for name, program := range all {
		r := new(result)
		results[name] = r
		argv := append(append(program, "errnos"), to...)
		running.Go(func() { r.native = b.Native(argv...) })
		running.Go(func() { r.under = b.Exec([]string{"--no-incoming"}, argv...) })
	}
	running.Wait()
	for a, errno := range want {
		if r := results["python3"].native; !strings.Contains(r.Stdout, "tcp "+a+" True "+errno+"\n") {
			t.Errorf("natively %s is not %s: %s%s", a, errno, r.Stdout, r.Stderr)
		}
	}
	// What the pod's kernel refuses at once, without a packet, takes the way there and back: a non-blocking
	// connect tells it when it ends, and a datagram to nobody's connection has left.
	later := strings.NewReplacer(
		"('ENETUNREACH', 20,", "('EINPROGRESS', 28,", "('EACCES', 20,", "('EINPROGRESS', 28,",
		" False ENETUNREACH\n", " False ok\n", " False EACCES\n", " False ok\n",
		"Network unreachable, events 14, No error information", "Operation in progress, events 1c, Network unreachable",
		"Permission denied, events 14, No error information", "Operation in progress, events 1c, Permission denied")
	for name, r := range results {
		r.native.Stdout = later.Replace(r.native.Stdout)
		if diff := cmp.Diff(r.native, r.under); diff != "" || r.native.Code != 0 {
			t.Errorf("%s: - pod + stead:\n%s", name, diff)
		}
	}
}

// How long the pod's kernel tries is what the program has set on its socket, and its packets have the
// program's class.
func TestOptionsSetBeforeConnectingHold(t *testing.T) {
	t.Parallel()
	b := bed.Up(t, stead, "conformance-options")
	if r := b.Native("sh", "-c", `f=/proc/sys/net/ipv4/tcp_syn_linear_timeouts; [ ! -e $f ] || echo 0 > $f`); r.Code != 0 {
		t.Fatal(r.Stderr)
	}
	same(t, b, nil, "/usr/bin/env", "python3", programs+"/probe.py", "options", "198.51.100.1", "2001:db8::1")
	const connect = `import socket
for a, mapped in (("10.244.0.12", False), ("fd00:244::12", False), ("::ffff:10.244.0.12", True)):
    for blocking in (True, False):
        s = socket.socket(socket.AF_INET6 if ":" in a else socket.AF_INET)
        if not mapped and ":" in a: s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, 0x28)
        else: s.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0x28)
        s.settimeout(None if blocking else 30)
        s.connect((a, 5432)); s.sendall(b"x"); s.recv(9); s.close()`
	// What the db pod's wire shows of the first packets of connections to it.
	watch := func(run func(argv ...string) bed.Result) string {
		const count = 6
		c := b.Command("playground", "exec", "db", "--", "python3", "-u", "-c", `import socket
s = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
print("up")
n = 0
while n < 6:
    p, (_, proto, *_) = s.recvfrom(2000)
    tcp, tos = (p[(p[0] & 15) * 4:], p[1]) if proto == 0x800 else (p[40:], (p[0] & 15) << 4 | p[1] >> 4)
    if len(tcp) > 13 and (p[9] if proto == 0x800 else p[6]) == 6 and tcp[2:4] == b"\x15\x38" and tcp[13] & 18 == 2:
        print(proto, hex(tos)); n += 1`)
		said := begin(t, c)
		if l := said.line(); l != "up" {
			t.Fatalf("the watcher says %q", l)
		}
		if r := run("python3", "-c", connect); r.Code != 0 {
			t.Fatalf("exit code %d: %s", r.Code, r.Stderr)
		}
		var lines []string
		for range count {
			lines = append(lines, said.line())
		}
		return strings.Join(lines, "\n")
	}
	native := watch(b.Native)
	if strings.Count(native, "0x28") != 6 {
		t.Fatalf("natively %q", native)
	}
	if diff := cmp.Diff(native, watch(func(argv ...string) bed.Result { return b.Exec([]string{"--no-incoming"}, argv...) })); diff != "" {
		t.Errorf("- pod + stead:\n%s", diff)
	}
}
