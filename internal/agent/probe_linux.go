package agent

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The kubelet asks a pod how it does by HTTP requests to a port that may be stolen. A program that is
// debugged would have the pod restarted: so these requests are left to the app. A connection is one of
// them if it comes from an address of the node, and begins with a request for a probe's path by an
// agent that calls itself kube-probe. Nothing of it is taken before that is known, and whoever does
// not speak first is kept waiting only if it is the node that calls, on a port that speaks HTTP, where
// clients speak first.

// probeWithin bounds the wait for a first byte from the node. The kubelet sends one at once, but later if
// its CPU is taken from it just then; it gives a probe up after a second, if nobody says otherwise
// (timeoutSeconds).
const probeWithin = 2 * time.Second

// probes are those of one port.
type probes struct {
	paths []string
	node  []netip.Addr
}

func newProbes(paths []string) *probes {
	p := &probes{paths: paths}
	// Process 1 is the node's, where we have its process ids; else it is the pod's, which does not
	// probe itself.
	if f, err := os.Open("/proc/1/net/fib_trie"); err == nil {
		p.node = localIPv4(f)
		f.Close()
	}
	if f, err := os.Open("/proc/1/net/if_inet6"); err == nil {
		p.node = append(p.node, localIPv6(f)...)
		f.Close()
	}
	return p
}

// has says whether a connection is a probe. The wait ends with ctx.
func (p *probes) has(ctx context.Context, c net.Conn, from netip.AddrPort) bool {
	if p == nil || !slices.Contains(p.node, from.Addr()) {
		return false
	}
	t, ok := c.(*net.TCPConn)
	if !ok {
		return false
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, probeWithin)
	defer t.SetReadDeadline(time.Time{})
	woken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { _ = t.SetReadDeadline(time.Unix(1, 0)); close(woken) })
	defer func() {
		if !stop() {
			<-woken // it sets no deadline from now on
		}
		cancel()
	}()
	head, n := make([]byte, 2048), 0
	peek := func(fd uintptr) bool {
		var err error
		n, _, err = unix.Recvfrom(int(fd), head, unix.MSG_PEEK|unix.MSG_DONTWAIT)
		return err != unix.EAGAIN && err != unix.EINTR
	}
	if raw.Read(peek) != nil { // the time is over, which may be because we got no CPU ourselves
		_ = raw.Control(func(fd uintptr) { peek(fd) })
	}
	return n > 0 && isProbe(head[:n], p.paths)
}

// isProbe says whether a request's head is that of a probe of one of the paths. The kubelet sends it in
// one piece.
func isProbe(head []byte, paths []string) bool {
	line, rest, ok := bytes.Cut(head, []byte("\r\n"))
	if !ok {
		return false
	}
	f := strings.Split(string(line), " ")
	return len(f) == 3 && f[0] == "GET" && strings.HasPrefix(f[2], "HTTP/1.") && slices.Contains(paths, f[1]) &&
		(bytes.HasPrefix(rest, []byte("User-Agent: kube-probe/")) || bytes.Contains(rest, []byte("\r\nUser-Agent: kube-probe/")))
}

// localIPv4 reads the addresses of a network namespace from its fib_trie: those with a route of type
// LOCAL of their whole length.
func localIPv4(r io.Reader) (out []netip.Addr) {
	var last netip.Addr
	for lines := bufio.NewScanner(r); lines.Scan(); {
		l := strings.TrimSpace(lines.Text())
		if a, ok := strings.CutPrefix(l, "|-- "); ok {
			last, _ = netip.ParseAddr(a)
		}
		if l == "/32 host LOCAL" && last.IsValid() && !last.IsLoopback() && !slices.Contains(out, last) {
			out = append(out, last)
		}
	}
	return out
}

// localIPv6 reads the same from if_inet6.
func localIPv6(r io.Reader) (out []netip.Addr) {
	for lines := bufio.NewScanner(r); lines.Scan(); {
		f := strings.Fields(lines.Text())
		if len(f) == 0 {
			continue
		}
		b, err := hex.DecodeString(f[0])
		if a, ok := netip.AddrFromSlice(b); err == nil && ok && !a.IsLoopback() {
			out = append(out, a)
		}
	}
	return out
}
