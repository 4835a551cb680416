// Names makes of network and mount namespaces of its own (unshare(1)) a laptop with every name service that
// one may have: nscd, systemd-resolved by varlink and by 127.0.0.53, D-Bus, Avahi, a nameserver on 127.0.0.1;
// /etc/resolv.conf and /etc/nsswitch.conf lead to them. Whatever they are asked they answer with the address
// of nobody, and say "asked SERVICE". "up" is said when all are there.
package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

var nobody = net.IPv4(192, 0, 2, 66)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "names:", err)
		os.Exit(1)
	}
	select {} // until the test kills us
}

func run() error {
	// The C library asks for addresses of those families alone which an interface has (AI_ADDRCONFIG).
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "nowhere"}); err != nil {
		return fmt.Errorf("veth: %w", err)
	}
	for _, name := range []string{"lo", "nowhere", "eth0"} {
		l, err := netlink.LinkByName(name)
		if err == nil {
			err = netlink.LinkSetUp(l)
		}
		for _, a := range []string{"192.0.2.1/24", "2001:db8:66::1/64"} {
			if name == "eth0" && err == nil {
				var addr *netlink.Addr
				if addr, err = netlink.ParseAddr(a); err == nil {
					err = netlink.AddrAdd(l, addr)
				}
			}
		}
		if err != nil {
			return fmt.Errorf("interface %s: %w", name, err)
		}
	}
	if err := unix.Mount("run", "/run", "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount on /run: %w", err)
	}
	for name, data := range map[string]string{
		"/etc/resolv.conf":   "nameserver 127.0.0.53\noptions edns0 trust-ad\n",
		"/etc/nsswitch.conf": "passwd: files systemd\ngroup: files systemd\nhosts: mymachines resolve [!UNAVAIL=return] files myhostname dns\n",
	} {
		ours := "/run/" + filepath.Base(name)
		if err := os.WriteFile(ours, []byte(data), 0o644); err != nil {
			return err
		}
		at, err := filepath.EvalSymlinks(name)
		if err != nil { // a machine without: the C library's default will do
			continue
		}
		if err := unix.Mount(ours, at, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind on %s: %w", at, err)
		}
	}
	for _, s := range []struct {
		name, path string
		answer     func(net.Conn)
	}{
		{"nscd", "/run/nscd/socket", nscd},
		{"resolved", "/run/systemd/resolve/io.systemd.Resolve", varlink},
		{"D-Bus", "/run/dbus/system_bus_socket", func(c net.Conn) { fmt.Fprint(c, "REJECTED\r\n") }},
		{"Avahi", "/run/avahi-daemon/socket", func(c net.Conn) { fmt.Fprintln(c, "+ 2 0 db.local", nobody) }},
	} {
		if err := os.MkdirAll(filepath.Dir(s.path), 0o755); err != nil {
			return err
		}
		l, err := net.Listen("unix", s.path)
		if err != nil {
			return err
		}
		if err := os.Chmod(s.path, 0o666); err != nil {
			return err
		}
		go serve(l, s.name, s.answer)
	}
	for _, addr := range []string{"127.0.0.53:53", "127.0.0.1:53", "[::1]:53"} {
		h := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
			fmt.Println("asked", addr)
			m := new(dns.Msg).SetReply(q)
			if q.Question[0].Qtype == dns.TypeA {
				m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 5}, A: nobody})
			}
			_ = w.WriteMsg(m)
		})
		pc, err := net.ListenPacket("udp", addr)
		if err != nil {
			return err
		}
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return err
		}
		go (&dns.Server{PacketConn: pc, Handler: h}).ActivateAndServe()
		go (&dns.Server{Listener: l, Handler: h}).ActivateAndServe()
	}
	fmt.Println("up")
	return nil
}

func serve(l net.Listener, name string, answer func(net.Conn)) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		fmt.Println("asked", name)
		go func() { defer c.Close(); answer(c) }()
	}
}

// nscd answers the C library's getaddrinfo; whoever asks for the shared table (a GETFD...) is hung up on, and
// asks again.
func nscd(c net.Conn) {
	const version, getAddrInfo = 2, 14
	var request struct{ Version, Type, Length int32 }
	if binary.Read(c, binary.NativeEndian, &request) != nil || request.Type != getAddrInfo {
		return
	}
	var b bytes.Buffer
	// version, found, addresses, their bytes, the canonical name's, no error
	_ = binary.Write(&b, binary.NativeEndian, []int32{version, 1, 1, 4, 0, 0})
	b.Write(nobody.To4())
	b.WriteByte(unix.AF_INET)
	_, _ = c.Write(b.Bytes())
}

// varlink answers io.systemd.Resolve.ResolveHostname.
func varlink(c net.Conn) {
	b := make([]byte, 4096)
	if _, err := c.Read(b); err == nil {
		fmt.Fprintf(c, `{"parameters":{"addresses":[{"ifindex":1,"family":2,"address":[%d,%d,%d,%d]}],"name":"db","flags":1}}`+"\x00",
			nobody[12], nobody[13], nobody[14], nobody[15])
	}
}
