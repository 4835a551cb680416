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
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/inet"
)

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

func newSKLookup(t *target, caught catcher) (_ stealer, err error) {
	e := &skLookup{t: t}
	defer func() {
		if err != nil {
			e.detach()
			e.close()
		}
	}()
	if e.lns, err = t.listenBoth(false); err != nil {
		return nil, err
	}
	_ = rlimit.RemoveMemlock() // maps were counted as locked memory before Linux 5.11
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
		// Not by ln.File: taking a descriptor out of that makes the listener itself blocking, and an
		// Accept that the kernel holds does not end with Close.
		raw, err := ln.SyscallConn()
		if err != nil {
			return nil, err
		}
		cerr := raw.Control(func(fd uintptr) { err = e.sock.Put(uint32(i), uint64(fd)) })
		if err = errors.Join(cerr, err); err != nil {
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
			go func() { defer e.work.Done(); acceptAll(ln, caught) }()
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
	return e.t.dialApp(ctx, to, func(fd int) (undo func(), err error) {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, ownMark)
		// The source port, known before the connect, is the mark.
		if err := unix.Bind(fd, inet.ToUnix(familyOf(to), netip.AddrPortFrom(inet.Any(to.Addr().Is6()), 0))); err != nil {
			return nil, fmt.Errorf("bind for the app: %w", err)
		}
		sa, err := unix.Getsockname(fd)
		if err != nil {
			return nil, err
		}
		key := uint32(bits.ReverseBytes16(inet.FromUnix(sa).Port()))
		if err := e.own.Put(key, uint32(1)); err != nil {
			return nil, fmt.Errorf("register the connection to the app: %w", err)
		}
		return func() { _ = e.own.Delete(key) }, nil // a connection that stands is looked up no more
	})
}

func (e *skLookup) detach() {
	if e.link != nil {
		e.link.Close()
	}
	if e.prog != nil {
		e.prog.Close()
	}
	for _, ln := range e.lns {
		if ln != nil {
			ln.Close()
		}
	}
	e.work.Wait()
}

func (e *skLookup) close() {
	for _, c := range []*ebpf.Map{e.ports, e.own, e.sock} {
		if c != nil {
			c.Close()
		}
	}
}
