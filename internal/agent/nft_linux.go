package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/inet"
)

// nft steals by redirecting in the target's network namespace: where BPF is not to be had, as in a
// user namespace. Its table has an owner, our netlink socket (Linux 5.12): the kernel drops it when
// that socket closes, however we end. Connections that stood before go on as they are: an address
// is translated with a connection's first packet or never.
type nft struct {
	t     *target
	lns   [2]*net.TCPListener // IPv4, IPv6; the latter nil where the pod has none
	conn  *nftables.Conn
	ports *nftables.Set
	work  sync.WaitGroup
}

// tables counts the tables of this process, for their names: one may be made before the last of
// another is gone.
var tables atomic.Uint32

// redirectPriority is behind dstnat (-100): where a sidecar redirects what comes in to itself, the
// connections to steal are those that it makes to the app, as with sk_lookup.
const redirectPriority = nftables.ChainPriority(-90)

func newNFT(t *target, caught catcher) (_ stealer, err error) {
	e := &nft{t: t}
	defer func() {
		if err != nil {
			e.detach()
			e.close()
		}
	}()
	if e.lns, err = t.listenBoth(inet.Any); err != nil {
		return nil, err
	}
	table, err := e.ownTable(fmt.Sprintf("stead-%d-%d", os.Getpid(), tables.Add(1)))
	if err != nil {
		return nil, fmt.Errorf("make nftables table: %w", err)
	}
	e.ports = &nftables.Set{Table: table, Name: "ports", KeyType: nftables.TypeInetService}
	if err = e.conn.AddSet(e.ports, nil); err != nil {
		return nil, fmt.Errorf("make nftables set: %w", err)
	}
	priority := redirectPriority
	for _, hook := range []struct {
		name string
		hook *nftables.ChainHook
	}{
		{"incoming", nftables.ChainHookPrerouting},
		{"loopback", nftables.ChainHookOutput},
	} {
		chain := e.conn.AddChain(&nftables.Chain{Name: hook.name, Table: table, Type: nftables.ChainTypeNAT,
			Hooknum: hook.hook, Priority: &priority})
		for i, ln := range e.lns {
			if ln != nil {
				to := ln.Addr().(*net.TCPAddr).AddrPort().Port()
				e.conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: e.redirect(i == 1, to)})
			}
		}
	}
	if err = e.conn.Flush(); err != nil {
		return nil, fmt.Errorf("make nftables rules: %w", err)
	}
	for i, ln := range e.lns {
		if ln != nil {
			called := originalOf[i]
			e.work.Add(1)
			go func() { defer e.work.Done(); acceptAll(ln, caught, called) }()
		}
	}
	return e, nil
}

// ownTable makes a table that lives as long as e.conn. The library writes no table flags, so this
// message is made by hand, on the library's socket.
func (e *nft) ownTable(name string) (*nftables.Table, error) {
	var nl *netlink.Conn
	err := e.t.net.Do(func() (err error) { // the socket is of the namespace that it was made in
		e.conn, err = nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *netlink.Conn) error { nl = c; return nil }))
		return err
	})
	if err != nil {
		return nil, err
	}
	const tableOwner = 2 // NFT_TABLE_F_OWNER
	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_TABLE_NAME, Data: append([]byte(name), 0)},
		{Type: unix.NFTA_TABLE_FLAGS, Data: binaryutil.BigEndian.PutUint32(tableOwner)},
	})
	if err != nil {
		return nil, err
	}
	message := func(kind netlink.HeaderType, flags netlink.HeaderFlags, data []byte) netlink.Message {
		return netlink.Message{Header: netlink.Header{Type: kind, Flags: netlink.Request | flags}, Data: data}
	}
	// struct nfgenmsg: family, version, resource (the subsystem for the marks of a batch).
	mark := []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, unix.NFNL_SUBSYS_NFTABLES}
	_, err = nl.SendMessages([]netlink.Message{
		message(unix.NFNL_MSG_BATCH_BEGIN, 0, mark),
		message(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWTABLE, netlink.Create|netlink.Excl|netlink.Acknowledge,
			append([]byte{unix.NFPROTO_INET, unix.NFNETLINK_V0, 0, 0}, attrs...)),
		message(unix.NFNL_MSG_BATCH_END, 0, mark),
	})
	if err == nil {
		_, err = nl.Receive() // the acknowledgement, or the errno
	}
	return &nftables.Table{Name: name, Family: nftables.TableFamilyINet}, err
}

// redirect is: of this family, TCP, to an address of the pod's own, not by us, to a stolen port ->
// to our listener.
func (e *nft) redirect(ipv6 bool, listener uint16) []expr.Any {
	family := byte(unix.NFPROTO_IPV4)
	if ipv6 {
		family = unix.NFPROTO_IPV6
	}
	is := func(data []byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data} }
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, is([]byte{family}),
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, is([]byte{unix.IPPROTO_TCP}),
		// A SYN: where nobody tracked connections before us, the next packet of an old one is the
		// first that the tracking sees, and must not be taken for a beginning.
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{flagFIN | flagSYN | flagRST | flagACK}, Xor: []byte{0}},
		is([]byte{flagSYN}),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Lookup{SourceRegister: 1, SetName: e.ports.Name, SetID: e.ports.ID},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(ownMark)},
		&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
		is(binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)),
		&expr.Immediate{Register: 1, Data: binaryutil.BigEndian.PutUint16(listener)},
		&expr.Redir{RegisterProtoMin: 1},
	}
}

func elements(port uint16) []nftables.SetElement {
	return []nftables.SetElement{{Key: binaryutil.BigEndian.PutUint16(port)}}
}

func (e *nft) add(port uint16) error {
	err := e.conn.SetAddElements(e.ports, elements(port))
	if err == nil {
		err = e.conn.Flush()
	}
	if err != nil {
		return fmt.Errorf("steal port %d: %w", port, err)
	}
	return nil
}

func (e *nft) remove(port uint16) {
	if e.conn.SetDeleteElements(e.ports, elements(port)) == nil {
		_ = e.conn.Flush()
	}
}

func (e *nft) pass(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	return e.t.dialApp(ctx, to, func(fd int) (func(), error) {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, ownMark); err != nil {
			return nil, fmt.Errorf("mark the connection to the app: %w", err)
		}
		return func() {}, nil
	})
}

// stop has nothing to do: the set of ports is empty by then. The table stays until close, because
// with the namespace's last NAT chain the kernel forgets the translation of connections that stand.
func (e *nft) stop() {}

func (e *nft) detach() {
	for _, ln := range e.lns {
		if ln != nil {
			ln.Close()
		}
	}
	e.work.Wait()
}

func (e *nft) close() {
	if e.conn != nil {
		_ = e.conn.CloseLasting()
	}
}

// originalOf asks the kernel's connection tracking which address a client called before the
// redirection; by family. The kernel answers with a sockaddr, for which the two calls have room.
var originalOf = [2]func(*net.TCPConn) (netip.AddrPort, error){
	func(c *net.TCPConn) (a netip.AddrPort, err error) {
		return askSocket(c, func(fd int) (a netip.AddrPort, err error) {
			m, err := unix.GetsockoptIPv6Mreq(fd, unix.SOL_IP, unix.SO_ORIGINAL_DST)
			if err != nil {
				return a, err
			}
			a, _ = inet.Parse(m.Multiaddr[:])
			return a, nil
		})
	},
	func(c *net.TCPConn) (a netip.AddrPort, err error) {
		return askSocket(c, func(fd int) (a netip.AddrPort, err error) {
			m, err := unix.GetsockoptIPv6MTUInfo(fd, unix.SOL_IPV6, unix.SO_ORIGINAL_DST)
			if err != nil {
				return a, err
			}
			port := binaryutil.BigEndian.Uint16(binaryutil.NativeEndian.PutUint16(m.Addr.Port))
			return netip.AddrPortFrom(netip.AddrFrom16(m.Addr.Addr), port), nil
		})
	},
}

func askSocket(c *net.TCPConn, ask func(fd int) (netip.AddrPort, error)) (a netip.AddrPort, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return a, err
	}
	cerr := raw.Control(func(fd uintptr) { a, err = ask(int(fd)) })
	return a, errors.Join(cerr, err)
}
