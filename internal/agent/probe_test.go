package agent

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestOnlyTheKubeletsRequestsForAProbesPathAreProbes(t *testing.T) {
	const kubelet = "GET /healthz HTTP/1.1\r\nHost: 10.244.0.5:8080\r\nUser-Agent: kube-probe/1.34\r\nAccept: */*\r\nConnection: close\r\n\r\n"
	paths := []string{"/ready?full=1", "/healthz"}
	for _, c := range []struct {
		head string
		want bool
	}{
		{kubelet, true},
		{"GET /ready?full=1 HTTP/1.1\r\nUser-Agent: kube-probe/1.34\r\n\r\n", true},
		{strings.Replace(kubelet, "/healthz", "/ready", 1), false},
		{strings.Replace(kubelet, "/healthz", "/", 1), false},
		{strings.Replace(kubelet, "kube-probe/", "curl/", 1), false},
		{strings.Replace(kubelet, "GET", "POST", 1), false},
		{strings.Replace(kubelet, "User-Agent: ", "X-User-Agent: ", 1), false},
		{strings.Replace(kubelet, "HTTP/1.1", "SIP/2.0", 1), false},
		{kubelet[:len("GET /healthz HTTP/1.1\r")], false},
		{"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", false},
		{"\x16\x03\x01\x02\x00", false},
		{"", false},
	} {
		if got := isProbe([]byte(c.head), paths); got != c.want {
			t.Errorf("%q: %v", c.head, got)
		}
	}
}

func FuzzIsProbe(f *testing.F) {
	f.Add([]byte("GET / HTTP/1.1\r\nUser-Agent: kube-probe/1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if isProbe(b, []string{"/"}) && !strings.HasPrefix(string(b), "GET / HTTP/1.") {
			t.Errorf("%q", b)
		}
	})
}

// What a client sends is left where it is; one that says nothing is not waited for without end, and one
// that is not the node's not at all.
func TestLookingForAProbeTakesNothing(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p := &probes{paths: []string{"/healthz"}, node: []netip.Addr{netip.MustParseAddr("127.0.0.1")}}
	const request = "GET /healthz HTTP/1.1\r\nUser-Agent: kube-probe/1.34\r\n\r\n"
	ended, end := context.WithCancel(t.Context())
	end()
	for _, c := range []struct {
		says   string
		late   time.Duration
		closes bool
		who    *probes
		ctx    context.Context
		want   bool
	}{
		{says: request, who: p, want: true},
		{says: request, who: p, late: 600 * time.Millisecond, want: true},
		{says: "hello", who: p},
		{says: "", who: p},
		{says: "", who: p, ctx: ended},
		{says: "", who: p, closes: true},
		{says: request, who: &probes{paths: p.paths}},
		{says: request, who: nil},
	} {
		client, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		s, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		said := make(chan struct{})
		go func() {
			defer close(said)
			time.Sleep(c.late)
			fmt.Fprint(client, c.says)
			if c.closes {
				client.(*net.TCPConn).CloseWrite()
			}
		}()
		from, _ := addrPortOf(s.RemoteAddr())
		if c.ctx == nil {
			c.ctx = t.Context()
		}
		if c.late == 0 {
			<-said
		}
		if got := c.who.has(c.ctx, s, from); got != c.want {
			t.Errorf("%q: %v", c.says, got)
		}
		<-said
		client.(*net.TCPConn).CloseWrite()
		s.SetReadDeadline(time.Now().Add(30 * time.Second))
		b := make([]byte, 1000)
		n := 0
		for {
			k, err := s.Read(b[n:])
			n += k
			if err != nil {
				break
			}
		}
		if string(b[:n]) != c.says {
			t.Errorf("%q is left of %q", b[:n], c.says)
		}
		client.Close()
		s.Close()
	}
}

// The kernel's own files are read as the kernel's own answer has it.
func TestTheAddressesOfAMachineAreFound(t *testing.T) {
	var got []netip.Addr
	for name, read := range map[string]func(*os.File) []netip.Addr{
		"/proc/self/net/fib_trie": func(f *os.File) []netip.Addr { return localIPv4(f) },
		"/proc/self/net/if_inet6": func(f *os.File) []netip.Addr { return localIPv6(f) },
	} {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, read(f)...)
		f.Close()
	}
	want := interfaceAddrs()
	for _, a := range want {
		if !slices.Contains(got, a.WithZone("")) {
			t.Errorf("%v is not found: %v", a, got)
		}
	}
	if len(got) != len(want) {
		t.Errorf("found %v, the interfaces have %v", got, want)
	}
}
