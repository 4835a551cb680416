package agent

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"net"
	"net/netip"
	"os"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/inet"
)

// newStealer makes the engine for mode: sk_lookup where the kernel gives it, else nftables.
func newStealer(t *target, mode string, caught func(net.Conn, netip.AddrPort)) (stealer, error) {
	var lookup error
	if mode != "nft" {
		e, err := newSKLookup(t, caught)
		if err == nil || mode == "sk_lookup" {
			return e, err
		}
		lookup = err
	}
	e, err := newNFT(t, caught)
	if err != nil {
		return nil, errors.Join(err, lookup)
	}
	return e, nil
}

// skLookup steals by a BPF program of type sk_lookup on the target's network namespace (Linux
// 5.9): at each lookup of a listening socket it hands connections to stolen ports to our listener.
// No packet is changed, so addresses are the real ones, and nothing of iptables, nftables or
// routing is touched. The program is held by a link, a file descriptor: it is gone when we are.
type skLookup struct {
	t     *target
	lns   [2]*net.TCPListener // IPv4, IPv6; the latter nil where the pod has none
	ports *ebpf.Map           // stolen, host byte order
	own   *ebpf.Map           // source ports of our connections to the app, network byte order
	sock  *ebpf.Map           // our listeners
	prog  *ebpf.Program
	link  link.Link
	work  sync.WaitGroup
}

func newSKLookup(t *target, caught func(net.Conn, netip.AddrPort)) (_ stealer, err error) {
	e := &skLookup{t: t}
	defer func() {
		if err != nil {
			e.close()
		}
	}()
	for i := range e.lns {
		e.lns[i], err = t.listen(i == 1)
		if i == 1 && (errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL)) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("listen in the pod: %w", err)
		}
	}
	for _, m := range []struct {
		to   **ebpf.Map
		spec ebpf.MapSpec
	}{
		{&e.ports, ebpf.MapSpec{Name: "stead_ports", Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: 4096}},
		{&e.own, ebpf.MapSpec{Name: "stead_own", Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: 65536}},
		{&e.sock, ebpf.MapSpec{Name: "stead_sock", Type: ebpf.SockMap, KeySize: 4, ValueSize: 8, MaxEntries: 2}},
	} {
		if *m.to, err = ebpf.NewMap(&m.spec); err != nil {
			return nil, fmt.Errorf("make BPF map: %w", err)
		}
	}
	for i, ln := range e.lns {
		if ln == nil {
			continue
		}
		// Not by File: its Fd would make the listener blocking, and its accept deaf to close.
		raw, err := ln.SyscallConn()
		if err != nil {
			return nil, err
		}
		cerr := raw.Control(func(fd uintptr) { err = e.sock.Put(uint32(i), uint64(fd)) })
		err = errors.Join(cerr, err)
		if err != nil {
			return nil, fmt.Errorf("put the listener into a BPF map: %w", err)
		}
	}
	e.prog, err = ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "stead_steal", Type: ebpf.SkLookup, AttachType: ebpf.AttachSkLookup, License: "GPL",
		Instructions: lookupProgram(e.ports.FD(), e.own.FD(), e.sock.FD()),
	})
	if err != nil {
		return nil, fmt.Errorf("load sk_lookup program: %w", err)
	}
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", t.pid))
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	if e.link, err = link.AttachNetNs(int(ns.Fd()), e.prog); err != nil {
		return nil, fmt.Errorf("attach sk_lookup program: %w", err)
	}
	for _, ln := range e.lns {
		if ln != nil {
			e.work.Add(1)
			go func() {
				defer e.work.Done()
				acceptAll(ln, func(c net.Conn) {
					local, _ := addrPortOf(c.LocalAddr()) // as it came: nothing was rewritten
					if local.Port() == uint16(ln.Addr().(*net.TCPAddr).Port) {
						abort(c) // somebody in the pod found our listener itself
						return
					}
					caught(c, local)
				})
			}()
		}
	}
	return e, nil
}

// Offsets in struct bpf_sk_lookup (include/uapi/linux/bpf.h).
const (
	lookupFamily     = 8
	lookupProtocol   = 12
	lookupRemotePort = 36 // network byte order
	lookupLocalPort  = 60 // host byte order
)

// lookupProgram: TCP, local port in ports, remote port not in own -> assign sock[family]. Whatever goes
// wrong, the lookup goes on as if we were not there.
func lookupProgram(ports, own, sock int) asm.Instructions {
	in := func(fd int, field int16, size asm.Size, found bool) asm.Instructions {
		next := asm.JEq.Imm(asm.R0, 0, "pass")
		if !found {
			next = asm.JNE.Imm(asm.R0, 0, "pass")
		}
		return asm.Instructions{
			asm.LoadMem(asm.R2, asm.R6, field, size),
			asm.StoreMem(asm.RFP, -4, asm.R2, asm.Word),
			asm.LoadMapPtr(asm.R1, fd),
			asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -4),
			asm.FnMapLookupElem.Call(),
			next,
		}
	}
	prog := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMem(asm.R2, asm.R6, lookupProtocol, asm.Word),
		asm.JNE.Imm(asm.R2, unix.IPPROTO_TCP, "pass"),
	}
	prog = append(prog, in(ports, lookupLocalPort, asm.Word, true)...)
	prog = append(prog, in(own, lookupRemotePort, asm.Half, false)...)
	return append(prog,
		asm.LoadMem(asm.R2, asm.R6, lookupFamily, asm.Word),
		asm.StoreImm(asm.RFP, -4, 0, asm.Word),
		asm.JEq.Imm(asm.R2, unix.AF_INET, "family"),
		asm.StoreImm(asm.RFP, -4, 1, asm.Word),
		asm.LoadMapPtr(asm.R1, sock).WithSymbol("family"),
		asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -4),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "pass"),
		asm.Mov.Reg(asm.R7, asm.R0),
		asm.Mov.Reg(asm.R1, asm.R6), asm.Mov.Reg(asm.R2, asm.R7), asm.Mov.Imm(asm.R3, 0),
		asm.FnSkAssign.Call(),
		asm.Mov.Reg(asm.R1, asm.R7),
		asm.FnSkRelease.Call(),
		asm.Mov.Imm(asm.R0, 1).WithSymbol("pass"), // SK_PASS
		asm.Return(),
	)
}

func (e *skLookup) add(port uint16) error {
	if err := e.ports.Put(uint32(port), uint32(1)); err != nil {
		return fmt.Errorf("steal port %d: %w", port, err)
	}
	return nil
}

func (e *skLookup) remove(port uint16) { _ = e.ports.Delete(uint32(port)) }

func (e *skLookup) pass(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	return e.t.dialFrom(ctx, to, func(_ int, port uint16) (undo func(), err error) {
		key := uint32(bits.ReverseBytes16(port))
		return func() { _ = e.own.Delete(key) }, e.own.Put(key, uint32(1))
	})
}

func (e *skLookup) close() {
	if e.link != nil {
		e.link.Close()
	}
	for _, ln := range e.lns {
		if ln != nil {
			ln.Close()
		}
	}
	e.work.Wait()
	for _, c := range []*ebpf.Map{e.ports, e.own, e.sock} {
		if c != nil {
			c.Close()
		}
	}
	if e.prog != nil {
		e.prog.Close()
	}
}

// listen opens a TCP listener in the target's network namespace, on the loopback.
func (t *target) listen(ipv6 bool) (*net.TCPListener, error) {
	return t.listenOn(ipv6, inet.Loopback(ipv6))
}

func (t *target) listenOn(ipv6 bool, at netip.Addr) (ln *net.TCPListener, err error) {
	fd, err := t.socket(ipv6, unix.SOCK_STREAM)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "listener in the pod")
	defer f.Close()
	family := unix.AF_INET
	if ipv6 {
		family = unix.AF_INET6
	}
	// Stolen connections carry the app's port: without this on them (they have it from here) an app
	// that is restarted could not bind it while they last.
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if err == nil {
		err = unix.Bind(fd, inet.ToUnix(family, netip.AddrPortFrom(at, 0)))
	}
	if err == nil {
		err = unix.Listen(fd, unix.SOMAXCONN)
	}
	if err != nil {
		return nil, err
	}
	l, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	return l.(*net.TCPListener), nil
}

// acceptAll hands every connection of ln to f until ln is closed.
func acceptAll(ln *net.TCPListener, f func(net.Conn)) {
	for {
		c, err := ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // a client that went away, or no descriptors for a moment
		}
		f(c)
	}
}

// dialFrom connects to the app from a socket that register has made known as ours.
func (t *target) dialFrom(ctx context.Context, to netip.AddrPort, register func(fd int, port uint16) (func(), error)) (net.Conn, error) {
	ipv6 := to.Addr().Is6()
	fd, err := t.socket(ipv6, unix.SOCK_STREAM)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "connection to the app")
	defer f.Close()
	family := unix.AF_INET
	if ipv6 {
		family = unix.AF_INET6
	}
	if err := unix.Bind(fd, inet.ToUnix(family, netip.AddrPortFrom(inet.Any(ipv6), 0))); err != nil {
		return nil, err
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return nil, err
	}
	undo, err := register(fd, inet.FromUnix(sa).Port())
	if err != nil {
		return nil, err
	}
	defer undo() // a connection that stands is looked up no more
	// The app is on this host: connect is done, or refused, within a handshake over the loopback.
	_ = unix.SetNonblock(fd, false)
	for {
		err = unix.Connect(fd, inet.ToUnix(family, to))
		if err == unix.EINTR || err == unix.EALREADY {
			continue
		}
		break
	}
	if err != nil && err != unix.EISCONN {
		return nil, err
	}
	_ = unix.SetNonblock(fd, true)
	return net.FileConn(f)
}
