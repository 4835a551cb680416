package forward

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/stead-dev/stead/internal/fault"
	"github.com/stead-dev/stead/internal/podfs"
	"github.com/stead-dev/stead/internal/session/seats"
	"github.com/stead-dev/stead/internal/tunnel"
	"github.com/stead-dev/stead/internal/wire"
)

// names looks up host names as the target would: its hosts file, then its nameservers with its
// search domains.
type names struct {
	dial    func(context.Context, wire.Dial) (tunnel.Stream, wire.Reply, error) // from the pod
	hosts   map[string][]netip.Addr
	servers []netip.Addr
	search  []string
	ndots   int
	at      atomic.Uint32 // of servers, which one is asked first
}

func newNames(ctx context.Context, p *seats.Room) (*names, error) {
	c := podfs.NewClient(p.Files)
	defer c.Close()
	read := func(name string) string {
		b, errno := c.ReadFile(ctx, name, 1<<20)
		if errno != 0 {
			return "" // then the defaults hold, as for the target itself
		}
		return string(b)
	}
	n := &names{dial: p.Dial, servers: p.Target().Nameservers, ndots: 1}
	n.readHosts(read("/etc/hosts"))
	n.readResolv(read("/etc/resolv.conf"))
	return n, nil
}

func (n *names) readHosts(text string) {
	n.hosts = make(map[string][]netip.Addr)
	for _, line := range strings.Split(text, "\n") {
		line, _, _ = strings.Cut(line, "#")
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		a, err := netip.ParseAddr(f[0])
		if err != nil {
			continue
		}
		for _, name := range f[1:] {
			name = strings.ToLower(name)
			n.hosts[name] = append(n.hosts[name], a)
		}
	}
}

// readResolv reads search and ndots (resolv.conf(5)): the last search or domain line counts.
func (n *names) readResolv(text string) {
	for _, line := range strings.Split(text, "\n") {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "search", "domain":
			n.search = f[1:]
		case "options":
			for _, o := range f[1:] {
				if v, ok := strings.CutPrefix(o, "ndots:"); ok {
					if k, err := strconv.Atoi(v); err == nil {
						n.ndots = min(k, 15)
					}
				}
			}
		}
	}
}

// lookup returns the addresses of host, the target's order of families: IPv4 first.
func (n *names) lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a.Unmap()}, nil
	}
	if a := n.hosts[strings.ToLower(strings.TrimSuffix(host, "."))]; len(a) > 0 {
		return a, nil
	}
	if len(n.servers) == 0 {
		return nil, fault.With(fmt.Errorf("look up %s: the target has no nameserver", host), "give an address instead of a name")
	}
	r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return n.nameserver(ctx, network)
	}}
	var last error
	for _, name := range n.candidates(host) {
		found, err := r.LookupNetIP(ctx, "ip", name)
		if err == nil && len(found) > 0 {
			for i := range found {
				found[i] = found[i].Unmap()
			}
			slices.SortStableFunc(found, func(a, b netip.Addr) int { return a.BitLen() - b.BitLen() })
			return found, nil
		}
		last = err
		var d *net.DNSError
		if !errors.As(err, &d) || !d.IsNotFound {
			break
		}
	}
	if d := (*net.DNSError)(nil); errors.As(last, &d) && d.IsNotFound {
		return nil, fault.With(fmt.Errorf("the target knows no host %s", host), "check the name, and the namespace in it (NAME.NAMESPACE.svc)")
	}
	return nil, fmt.Errorf("look up %s as the target: %w", host, last)
}

// candidates are the full names to try, in order.
func (n *names) candidates(host string) (out []string) {
	if strings.HasSuffix(host, ".") {
		return []string{host}
	}
	for _, s := range n.search {
		out = append(out, host+"."+strings.TrimSuffix(s, ".")+".")
	}
	if strings.Count(host, ".") >= n.ndots {
		return append([]string{host + "."}, out...)
	}
	return append(out, host+".")
}

// nameserver connects to the first nameserver of the target's that takes it, by UDP, or by TCP where the
// answer had no room in a datagram. One that did not answer is asked last from then on: that UDP takes it
// says nothing.
func (n *names) nameserver(ctx context.Context, network string) (net.Conn, error) {
	if network != "tcp" {
		network = "udp"
	}
	var err error
	first := n.at.Load()
	for i := range uint32(len(n.servers)) {
		a := n.servers[(first+i)%uint32(len(n.servers))]
		st, r, derr := n.dial(ctx, wire.Dial{Network: network, To: netip.AddrPortFrom(a, 53)})
		switch {
		case derr != nil:
			return nil, derr
		case r.Errno != 0:
			err = syscall.Errno(r.Errno)
		case network == "tcp":
			return st, nil
		default:
			return &datagrams{Stream: st, silent: func() { n.at.CompareAndSwap(first, first+1) }}, nil
		}
	}
	return nil, err
}

// datagrams is a stream of kind dial, network udp, as a connection whose reads and writes are whole
// datagrams. It is a net.PacketConn because that is how a resolver knows one.
type datagrams struct {
	tunnel.Stream
	silent func() // called when no answer came
}

func (d *datagrams) Read(b []byte) (int, error) {
	n, errno, err := wire.ReadDatagram(d.Stream, b)
	if err == nil && errno != 0 {
		err = os.NewSyscallError("read", syscall.Errno(errno))
	}
	if err != nil {
		d.silent()
	}
	return n, err
}

func (d *datagrams) Write(b []byte) (int, error) {
	if _, err := d.Stream.Write(wire.AppendDatagram(nil, b)); err != nil {
		return 0, err
	}
	return len(b), nil
}

func (d *datagrams) ReadFrom(b []byte) (int, net.Addr, error) {
	n, err := d.Read(b)
	return n, d.RemoteAddr(), err
}
func (d *datagrams) WriteTo(b []byte, _ net.Addr) (int, error) { return d.Write(b) }
func (d *datagrams) LocalAddr() net.Addr                       { return &net.UDPAddr{} }
func (d *datagrams) RemoteAddr() net.Addr                      { return &net.UDPAddr{} }
func (d *datagrams) SetDeadline(t time.Time) error {
	return errors.Join(d.Stream.SetReadDeadline(t), d.Stream.SetWriteDeadline(t))
}
