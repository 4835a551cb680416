package agent

import (
	"context"
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
)

// nft steals by a rule in the target's network namespace, where BPF is not to be had, as in a user
// namespace: nftables' tproxy hands packets to stolen ports to our listener's socket. As with sk_lookup
// no packet is changed and no connection needs to be tracked, so addresses are the real ones, what stands
// when a port is taken or given back goes on as it is, and nothing of a connection outlives it. A
// redirection would not do: connection tracking remembers one for 10 s after a reset and leads the next
// client that calls from the same port to a listener of ours that is gone.
//
// The table has an owner, our netlink socket (Linux 5.12): the kernel drops it when that socket closes,
// however we end; and where our listener is gone first, tproxy lets packets go on to the app.
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

// tproxyPriority is behind dstnat (-100): where a sidecar redirects what comes in to itself, the
// connections to steal are those that it makes to the app, as with sk_lookup.
const tproxyPriority = nftables.ChainPriority(-90)

func newNFT(t *target, caught catcher) (_ stealer, err error) {
	e := &nft{t: t}
	defer func() {
		if err != nil {
			e.detach()
			e.close()
		}
	}()
	if e.lns, err = t.listenBoth(true); err != nil {
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
	priority := tproxyPriority
	// What is sent over the loopback comes in there, too.
	chain := e.conn.AddChain(&nftables.Chain{Name: "incoming", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: &priority})
	for _, ln := range e.lns {
		if ln != nil {
			e.conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: e.steal(ln.Addr().(*net.TCPAddr).AddrPort())})
		}
	}
	if err = e.conn.Flush(); err != nil {
		return nil, fmt.Errorf("make nftables rules: %w", err)
	}
	for _, ln := range e.lns {
		if ln != nil {
			e.work.Add(1)
			go func() { defer e.work.Done(); acceptAll(ln, caught) }()
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

// steal is: of the family of listener, TCP, to an address of the pod's own, not by us, to a stolen port ->
// to listener. Packets of connections that stand are those sockets' with tproxy, too.
func (e *nft) steal(listener netip.AddrPort) []expr.Any {
	family := byte(unix.NFPROTO_IPV4)
	if listener.Addr().Is6() {
		family = unix.NFPROTO_IPV6
	}
	is := func(data []byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data} }
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, is([]byte{family}),
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, is([]byte{unix.IPPROTO_TCP}),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Lookup{SourceRegister: 1, SetName: e.ports.Name, SetID: e.ports.ID},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(ownMark)},
		&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
		is(binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)),
		&expr.Immediate{Register: 1, Data: listener.Addr().AsSlice()},
		&expr.Immediate{Register: 2, Data: binaryutil.BigEndian.PutUint16(listener.Port())},
		&expr.TProxy{Family: family, RegAddr: 1, RegPort: 2},
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

func (e *nft) detach() {
	if e.conn != nil {
		_ = e.conn.CloseLasting() // and with it the table
		e.conn = nil
	}
	for _, ln := range e.lns {
		if ln != nil {
			ln.Close()
		}
	}
	e.work.Wait()
}

func (e *nft) close() {}
