//go:build linux

package inet

import (
	"net"
	"net/netip"
	"slices"
	"sort"
	"testing"
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

func TestAConnectionStandsFromItsHandshakeToItsEnd(t *testing.T) {
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
			want        bool
		}{{called, client, true}, {client, called, true}, {called, nobody, false}, {nobody, client, false}, {called, called, false}} {
			if got, err := d.Stands(q.here, q.there); got != q.want || err != nil {
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
		if got, err := d.Stands(called, client); got || err != nil {
			t.Errorf("%s: after a reset: %v, %v", at, got, err)
		}
	}
}

func FuzzAnswersOfSockDiag(f *testing.F) {
	f.Add([]byte{16, 0, 0, 0, 3, 0, 0, 0})
	f.Add(make([]byte, 88))
	f.Fuzz(func(t *testing.T, b []byte) { _, _ = parseDiag(b, 0, func(*diagMessage) {}) })
}
