package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"unsafe"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/inet"
)

// nft steals by redirection, where sk_lookup cannot be had: in a user namespace (BPF wants
// capabilities of the initial one) and before Linux 5.9. The table is owned by our netlink socket
// (NFT_TABLE_F_OWNER, Linux 5.12): nobody else can change it, and the kernel drops it when the
// socket closes, also when we are killed. The address that the client called is what the kernel's
// connection tracking remembers (SO_ORIGINAL_DST).
type nft struct {
	t     *target
	ln    *net.TCPListener
	conn  *nftables.Conn
	table *nftables.Table
	set   *nftables.Set
	work  sync.WaitGroup
	mu    sync.Mutex // one batch at a time on conn
}

const (
	nftTableOwner = 2          // NFT_TABLE_F_OWNER
	nftMark       = 0x73746561 // of our own connections to the app
	nftPriority   = -110       // before the usual destination NAT (-100)
)

func newNFT(t *target, caught func(net.Conn, netip.AddrPort)) (_ stealer, err error) {
	e := &nft{t: t}
	defer func() {
		if err != nil {
			e.close()
		}
	}()
	if e.ln, err = t.listenAny(); err != nil {
		return nil, fmt.Errorf("listen in the pod: %w", err)
	}
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", t.pid))
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	var nl *netlink.Conn
	e.conn, err = nftables.New(nftables.AsLasting(), nftables.WithNetNSFd(int(ns.Fd())),
		nftables.WithSockOptions(func(c *netlink.Conn) error { nl = c; return nil }))
	if err != nil {
		return nil, fmt.Errorf("open nftables in the pod: %w", err)
	}
	name := fmt.Sprintf("stead-%d", os.Getpid())
	if err = ownTable(nl, name); err != nil {
		return nil, fmt.Errorf("make an nftables table that dies with us: %w", err)
	}
	e.table = &nftables.Table{Name: name, Family: nftables.TableFamilyINet}
	if err = e.rules(uint16(e.ln.Addr().(*net.TCPAddr).Port)); err != nil {
		return nil, fmt.Errorf("nftables rules: %w", err)
	}
	e.work.Add(1)
	go func() {
		defer e.work.Done()
		acceptAll(e.ln, func(c net.Conn) {
			local, err := originalDestination(c.(*net.TCPConn))
			if err != nil || local.Port() == uint16(e.ln.Addr().(*net.TCPAddr).Port) {
				abort(c) // not by redirection
				return
			}
			caught(c, local)
		})
	}()
	return e, nil
}

// ownTable creates the table with the owner flag, which the library does not pass on.
func ownTable(nl *netlink.Conn, name string) error {
	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_TABLE_NAME, Data: append([]byte(name), 0)},
		{Type: unix.NFTA_TABLE_FLAGS, Data: binaryutil.BigEndian.PutUint32(nftTableOwner)},
	})
	if err != nil {
		return err
	}
	message := func(kind netlink.HeaderType, flags netlink.HeaderFlags, data []byte) netlink.Message {
		return netlink.Message{Header: netlink.Header{Type: kind, Flags: netlink.Request | flags}, Data: data}
	}
	batch := []byte{0, 0, 0, unix.NFNL_SUBSYS_NFTABLES}
	if _, err := nl.SendMessages([]netlink.Message{
		message(unix.NFNL_MSG_BATCH_BEGIN, 0, batch),
		message(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWTABLE, netlink.Create|netlink.Acknowledge, append([]byte{unix.NFPROTO_INET, 0, 0, 0}, attrs...)),
		message(unix.NFNL_MSG_BATCH_END, 0, batch),
	}); err != nil {
		return err
	}
	_, err = nl.Receive()
	return err
}

// rules: TCP to a local address and a port of the set goes to our listener, but for our own
// connections. The output hook is for what the pod says to itself.
func (e *nft) rules(listener uint16) error {
	e.set = &nftables.Set{Name: "ports", Table: e.table, KeyType: nftables.TypeInetService}
	if err := e.conn.AddSet(e.set, nil); err != nil {
		return err
	}
	port := binary.BigEndian.AppendUint16(nil, listener)
	mark := binary.NativeEndian.AppendUint32(nil, nftMark)
	local := binary.NativeEndian.AppendUint32(nil, unix.RTN_LOCAL)
	for _, h := range []struct {
		name string
		hook *nftables.ChainHook
	}{{"in", nftables.ChainHookPrerouting}, {"self", nftables.ChainHookOutput}} {
		priority := nftables.ChainPriority(nftPriority)
		chain := e.conn.AddChain(&nftables.Chain{Name: h.name, Table: e.table, Type: nftables.ChainTypeNAT, Hooknum: h.hook, Priority: &priority})
		e.conn.AddRule(&nftables.Rule{Table: e.table, Chain: chain, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: mark},
			&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: local},
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
			&expr.Lookup{SourceRegister: 1, SetName: e.set.Name, SetID: e.set.ID},
			&expr.Immediate{Register: 1, Data: port},
			&expr.Redir{RegisterProtoMin: 1},
		}})
	}
	return e.conn.Flush()
}

func element(port uint16) []nftables.SetElement {
	return []nftables.SetElement{{Key: binary.BigEndian.AppendUint16(nil, port)}}
}

func (e *nft) add(port uint16) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	err := e.conn.SetAddElements(e.set, element(port))
	if err == nil {
		err = e.conn.Flush()
	}
	if err != nil {
		return fmt.Errorf("steal port %d by nftables: %w", port, err)
	}
	return nil
}

func (e *nft) remove(port uint16) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.conn.SetDeleteElements(e.set, element(port)) == nil {
		_ = e.conn.Flush()
	}
}

// pass connects to the app with the mark that the rules let by.
func (e *nft) pass(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	return e.t.dialFrom(ctx, to, func(fd int, _ uint16) (func(), error) {
		return func() {}, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, nftMark)
	})
}

func (e *nft) close() {
	if e.conn != nil {
		_ = e.conn.CloseLasting() // and with it goes the table
	}
	if e.ln != nil {
		e.ln.Close()
	}
	e.work.Wait()
}

// listenAny opens a TCP listener on every address of the target's, for both families where it has
// both: a redirected connection arrives at the address of the interface.
func (t *target) listenAny() (*net.TCPListener, error) {
	ln, err := t.listenOn(true, inet.Any(true))
	if errors.Is(err, unix.EAFNOSUPPORT) {
		ln, err = t.listenOn(false, inet.Any(false))
	}
	return ln, err
}

// originalDestination asks connection tracking where a redirected connection was going.
func originalDestination(c *net.TCPConn) (to netip.AddrPort, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return to, err
	}
	const soOriginalDst = 80 // SO_ORIGINAL_DST, IP6T_SO_ORIGINAL_DST
	level := unix.SOL_IP
	if c.LocalAddr().(*net.TCPAddr).AddrPort().Addr().Unmap().Is6() {
		level = unix.SOL_IPV6
	}
	var b [unix.SizeofSockaddrInet6]byte
	size := uint32(len(b))
	cerr := raw.Control(func(fd uintptr) {
		_, _, e := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, uintptr(level), soOriginalDst,
			uintptr(unsafe.Pointer(&b[0])), uintptr(unsafe.Pointer(&size)), 0)
		if e != 0 {
			err = e
		}
	})
	if err = errors.Join(cerr, err); err != nil {
		return to, err
	}
	to, ok := inet.Parse(b[:size])
	if !ok {
		return to, unix.EINVAL
	}
	return to, nil
}
