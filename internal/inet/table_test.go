//go:build linux

package inet

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"sort"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Both ways of asking know the sockets that we open, and agree on the ports.
func TestTheKernelsTablesAgree(t *testing.T) {
	var open []uint16
	for _, at := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, err := net.Listen("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		open = append(open, uint16(l.Addr().(*net.TCPAddr).Port))
		c, err := net.Dial("tcp", l.Addr().String()) // a connection is no listener
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		u, err := net.ListenPacket("udp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		open = append(open, uint16(u.LocalAddr().(*net.UDPAddr).Port))
	}
	for i, network := range []string{"tcp", "udp"} {
		var asked, read []Row
		for range 1000 { // others open and close sockets between the two
			var err error
			if asked, err = diag(network); err != nil {
				t.Fatal(err)
			}
			read = nil
			if err := table(network, func(r Row) { read = append(read, r) }); err != nil {
				t.Fatal(err)
			}
			for _, rows := range [][]Row{asked, read} {
				sort.Slice(rows, func(i, j int) bool { return rows[i].Inode < rows[j].Inode })
			}
			if slices.Equal(asked, read) {
				break
			}
		}
		for _, rows := range [][]Row{asked, read} {
			for _, p := range []uint16{open[i], open[i+2]} {
				if !slices.ContainsFunc(rows, func(r Row) bool { return r.Port == p && r.Inode != 0 }) {
					t.Errorf("%s: port %d is missing in %v", network, p, rows)
				}
			}
		}
		if !slices.Equal(asked, read) {
			t.Errorf("%s: sock_diag says %v, /proc %v", network, asked, read)
		}
	}
}

func TestAConnectionIsKnownFromItsHandshakeToItsEnd(t *testing.T) {
	d, err := OpenDiag()
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for _, at := range []string{"127.0.0.1:0", "[::1]:0", "[::]:0"} { // the last: IPv4 at a socket of IPv6
		l, err := net.Listen("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		called := l.Addr().(*net.TCPAddr).AddrPort()
		if called.Addr().IsUnspecified() {
			called = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), called.Port())
		}
		c, err := net.Dial("tcp", called.String())
		if err != nil {
			t.Fatal(err)
		}
		client := Unmap(c.LocalAddr().(*net.TCPAddr).AddrPort())
		nobody := netip.AddrPortFrom(client.Addr(), 1)
		for _, q := range []struct {
			here, there netip.AddrPort
			want        State
		}{{called, client, Standing}, {client, called, Standing}, {called, nobody, Unknown}, {nobody, client, Unknown}, {called, called, Unknown}} {
			if got, err := d.Connection(q.here, q.there, 0); got != q.want || err != nil {
				t.Errorf("%s: %s and %s: %v, %v", at, q.here, q.there, got, err)
			}
		}
		s, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range []net.Conn{c, s} {
			x.(*net.TCPConn).SetLinger(0)
			x.Close()
		}
		if got, err := d.Connection(called, client, 0); got != Unknown || err != nil {
			t.Errorf("%s: after a reset: %v, %v", at, got, err)
		}
	}
}

// What is bound to a device is found by that alone, and what the app defers is half open.
func TestAConnectionOfADeviceAndOneThatIsDeferred(t *testing.T) {
	d, err := OpenDiag()
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		set  func(fd int) error
		want State
	}{
		{"bound", func(fd int) error { return unix.SetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, "lo") }, Standing},
		{"deferred", func(fd int) error { return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 30) }, HalfOpen},
	} {
		l, err := (&net.ListenConfig{Control: func(_, _ string, x syscall.RawConn) (err error) {
			cerr := x.Control(func(fd uintptr) { err = c.set(int(fd)) })
			return errors.Join(cerr, err)
		}}).Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		x, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer x.Close()
		here, there := l.Addr().(*net.TCPAddr).AddrPort(), x.LocalAddr().(*net.TCPAddr).AddrPort()
		if got, err := d.Connection(here, there, lo.Index); got != c.want || err != nil {
			t.Errorf("%s: %v, %v", c.name, got, err)
		}
	}
}

func FuzzAnswersOfSockDiag(f *testing.F) {
	f.Add([]byte{16, 0, 0, 0, 3, 0, 0, 0})
	f.Add(make([]byte, 88))
	f.Fuzz(func(t *testing.T, b []byte) { _, _ = parse(b, 0, unix.SOCK_DIAG_BY_FAMILY, func([]byte) {}) })
}
