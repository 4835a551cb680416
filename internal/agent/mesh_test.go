package agent_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/session/pod"
	"github.com/stead-dev/stead/internal/wire"
)

// sidecarIP is from where a mesh's proxy calls the app, as Istio's does.
var sidecarIP = netip.MustParseAddr("127.0.0.6")

// addSidecar puts a service mesh's proxy into the pod: what comes over the network to the app's port is
// redirected to it, it takes the disguise off, as a mesh does with TLS,
// and calls the app over the loopback.
func (b *bed) addSidecar() {
	b.t.Helper()
	const port = 15006
	var lns []net.Listener
	err := b.inPod.Do(func() error {
		for _, network := range []string{"tcp4", "tcp6"} {
			ln, err := net.Listen(network, fmt.Sprintf(":%d", port))
			if err != nil {
				return err
			}
			lns = append(lns, ln)
		}
		return nil
	})
	if err != nil {
		b.t.Fatal(err)
	}
	b.translate(nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest,
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: append([]byte("eth0"), make([]byte, 12)...)},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(appPort)},
		&expr.Immediate{Register: 1, Data: binaryutil.BigEndian.PutUint16(port)},
		&expr.Redir{RegisterProtoMin: 1})
	for _, ln := range lns {
		b.t.Cleanup(func() { ln.Close() })
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				go b.sidecar(c)
			}
		}()
	}
}

// translate adds a rule of NAT in the pod's network.
func (b *bed) translate(hook *nftables.ChainHook, priority *nftables.ChainPriority, rule ...expr.Any) {
	b.t.Helper()
	err := b.inPod.Do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		table := c.AddTable(&nftables.Table{Name: "nat", Family: nftables.TableFamilyINet})
		chain := c.AddChain(&nftables.Chain{Name: fmt.Sprint("hook", *hook), Table: table, Type: nftables.ChainTypeNAT, Hooknum: hook, Priority: priority})
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: rule})
		return c.Flush()
	})
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *bed) sidecar(c net.Conn) {
	defer c.Close()
	var app net.Conn
	err := b.inPod.Do(func() (err error) {
		app, err = (&net.Dialer{LocalAddr: &net.TCPAddr{IP: sidecarIP.AsSlice()}}).Dial("tcp", netip.AddrPortFrom(podIP, appPort).String())
		return err
	})
	if err != nil {
		return
	}
	defer app.Close()
	go func() {
		_, _ = io.Copy(app, disguise{c})
		_ = app.(*net.TCPConn).CloseWrite()
	}()
	_, _ = io.Copy(c, app)
}

// disguise turns over the case of letters that are read.
type disguise struct{ io.Reader }

func (d disguise) Read(p []byte) (int, error) {
	n, err := d.Reader.Read(p)
	for i, x := range p[:n] {
		if x|0x20 >= 'a' && x|0x20 <= 'z' {
			p[i] = x ^ 0x20
		}
	}
	return n, err
}

// With a mesh's proxy in the pod the connections of the app's port are those that the proxy makes.
func TestBehindAMeshsProxyTheAppsConnectionsAreTaken(t *testing.T) {
	eachEngine(t, func(t *testing.T, b *bed, steal string) {
		b.addSidecar()
		a := b.startAgent(steal)
		said, calls := make(chan string, 1000), make(chan wire.Incoming, 1000)
		subscribe(t, b.join(a, "ann@laptop", pod.Handlers{Incoming: hears(said, calls)}), wire.Mirror)
		for _, who := range []string{"app", "program"} {
			if who == "program" {
				subscribe(t, b.join(a, "bob@desk", pod.Handlers{Incoming: takes("program", nil)}), wire.Steal)
			}
			for _, road := range b.roads() {
				line, from := "HELLO by "+road.name, road.client
				want := line
				if road.from == b.elsewhere {
					want, from = flip(line), sidecarIP
				}
				if got, err := ask(road.from, road.to, line); got != who+": "+want || err != nil {
					t.Fatalf("%s: %q, %v", road.name, got, err)
				}
				if got := next(t, said); got != want+"\n" {
					t.Errorf("%s: heard %q", road.name, got)
				}
				if in := <-calls; in.Remote.Addr() != from {
					t.Errorf("%s: announced as %+v", road.name, in)
				}
			}
		}
		// Many at once, of which each is over before anybody has looked at it.
		var all sync.WaitGroup
		const many = 200
		for range many {
			all.Go(func() { _, _ = ask(b.elsewhere, b.roads()[0].to, "MANY") })
		}
		all.Wait()
		for range many {
			if got := next(t, said); got != "many\n" {
				t.Fatalf("heard %q", got)
			}
		}
		select {
		case got := <-said:
			t.Errorf("heard more: %q", got)
		default:
		}
	})
}

func flip(s string) string {
	b, _ := io.ReadAll(disguise{strings.NewReader(s)})
	return string(b)
}

// In a node's own network namespace, where a target may be, services' addresses are translated: to an address
// of the node's, that is to the target, or to another pod's, whose traffic passes through.
func TestATranslatedConnectionIsMirroredWhereItEndsHere(t *testing.T) {
	b := newBed(t)
	service, other := netip.MustParseAddr("10.77.0.9"), netip.MustParseAddr("10.77.0.10")
	to := func(from, to netip.Addr) {
		b.translate(nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest,
			&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.NFPROTO_IPV4}},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: from.AsSlice()},
			&expr.Immediate{Register: 1, Data: to.AsSlice()},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1})
	}
	to(service, podIP)
	to(other, elseIP)
	// Else the other pod would answer its client, who is at the same address here, without us.
	b.translate(nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource,
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: append([]byte("eth0"), make([]byte, 12)...)},
		&expr.Masq{})
	if err := b.inPod.Do(func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0) }); err != nil {
		t.Fatal(err)
	}
	err := b.elsewhere.Do(func() error {
		h, err := netlink.NewHandle()
		if err != nil {
			return err
		}
		defer h.Close()
		for _, a := range []netip.Addr{service, other} {
			if err := h.RouteAdd(&netlink.Route{Dst: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(32, 32)}, Gw: podIP.AsSlice()}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	go answer(b.listenElsewhere("tcp", netip.AddrPortFrom(elseIP, appPort)), "other")
	said, calls := make(chan string, 100), make(chan wire.Incoming, 100)
	subscribe(t, b.join(b.startAgent(), "ann@laptop", pod.Handlers{Incoming: hears(said, calls)}), wire.Mirror)
	for range 3 {
		if got, err := ask(b.elsewhere, netip.AddrPortFrom(other, appPort), "another's"); got != "other: another's" || err != nil {
			t.Fatal(got, err)
		}
		c, err := dial(b.elsewhere, netip.AddrPortFrom(service, appPort)) // which says nothing at first
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		select {
		case in := <-calls:
			if in.Local != netip.AddrPortFrom(podIP, appPort) || in.Remote.String() != c.LocalAddr().String() {
				t.Errorf("announced as %+v", in)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("not announced")
		}
		if got, err := say(c, bufio.NewReader(c), "by a service"); got != "app: by a service" || err != nil {
			t.Fatal(got, err)
		}
		c.Close()
		if got := next(t, said); got != "by a service\n" {
			t.Errorf("heard %q", got)
		}
	}
	select {
	case got := <-said:
		t.Errorf("heard %q, too", got)
	default:
	}
}
