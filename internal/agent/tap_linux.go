package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stead-dev/stead/internal/tunnel"
	"github.com/stead-dev/stead/internal/wire"
)

// tap copies what clients send to some ports of the target's: a packet socket in its network
// namespace sees the packets that come in, those over the loopback included, and assemble.go makes
// streams of them. The kernel never waits for it: what we are too slow for is dropped, which shows
// as a hole in a stream, ends that copy and is told.
type tap struct {
	fd    int
	wake  int
	found func(*flow)  // a connection began
	lost  func(uint32) // the kernel dropped so many packets, which we were too slow for
	over  atomic.Bool  // close was called
	done  chan struct{}
	once  sync.Once
	w     *witness // of run

	mu      sync.Mutex
	asm     assembler
	ports   map[uint16]bool // whose new connections are followed
	left    int             // connections that are followed though their port is given back
	passing []uint16        // ports that the kernel's filter lets pass
}

// tapBuffer is what the kernel holds for us: some 50 ms of a fast link.
const tapBuffer = 32 << 20

func newTap(t *target, found func(*flow), lost func(uint32)) (*tap, error) {
	p := &tap{fd: -1, wake: -1, found: found, lost: lost, done: make(chan struct{}), ports: make(map[uint16]bool)}
	p.asm = assembler{flows: make(map[flowKey]*flow), room: new(room)}
	err := t.net.Do(func() (err error) {
		// No protocol yet: nothing arrives before the filter is set.
		p.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open packet socket in the pod: %w", err)
	}
	p.w = newWitness(t)
	if unix.SetsockoptInt(p.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, tapBuffer) != nil {
		_ = unix.SetsockoptInt(p.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, tapBuffer)
	}
	// What the target sends is not asked for, and a packet over the loopback comes once.
	err = unix.SetsockoptInt(p.fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1)
	if err == nil {
		err = p.filter(nil)
	}
	if err == nil {
		const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8
		err = unix.Bind(p.fd, &unix.SockaddrLinklayer{Protocol: all})
	}
	if err == nil {
		p.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC)
	}
	if err != nil {
		unix.Close(p.fd)
		p.w.close()
		return nil, fmt.Errorf("set up packet socket in the pod: %w", err)
	}
	go p.run()
	return p, nil
}

// watch sets the ports whose new connections are copied. Those that are followed already go on to their
// end, as stolen ones do.
func (p *tap) watch(ports []uint16) {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.ports)
	for _, n := range ports {
		p.ports[n] = true
	}
	p.narrowLocked()
}

// narrowLocked gives up the connections that nobody listens to of ports that nobody has, and makes the
// kernel drop what is of no use.
func (p *tap) narrowLocked() {
	pass := maps.Clone(p.ports)
	p.left = 0
	for k, f := range p.asm.flows {
		if p.ports[k.to.Port()] {
			continue
		}
		if !f.wanted() {
			p.asm.end(f, errReset)
			continue
		}
		pass[k.to.Port()] = true
		p.left++
	}
	if now := slices.Sorted(maps.Keys(pass)); !slices.Equal(now, p.passing) {
		p.passing = now
		_ = p.filter(now)
	}
}

// retire closes a tap of which nobody has a port any more, when its last connection has ended, or with
// ctx.
func (p *tap) retire(ctx context.Context) {
	defer p.close()
	again := time.NewTicker(sweepEvery)
	defer again.Stop()
	for {
		p.mu.Lock()
		p.narrowLocked()
		left := p.left
		p.mu.Unlock()
		if left == 0 {
			return
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return
		}
	}
}

func (p *tap) close() {
	p.once.Do(func() {
		p.over.Store(true)
		unix.Write(p.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
		<-p.done
		unix.Close(p.fd)
		unix.Close(p.wake)
		p.w.close()
	})
}

// filter makes the kernel drop all but clients' TCP to the ports.
func (p *tap) filter(ports []uint16) error {
	// Whoever cannot ask whether a connection stands has to see the segment that makes it so.
	prog := tapProgram(ports, !p.w.sees())
	return unix.SetsockoptSockFprog(p.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]})
}

// maxFiltered bounds the ports that the kernel's filter knows; beyond it user space decides.
const maxFiltered = 100

// tapProgram is the filter. Without empty it drops what neither carries data nor begins or ends a connection:
// of a download that is all that a client sends, and to look at each would cost the download itself.
func tapProgram(ports []uint16, empty bool) []unix.SockFilter {
	st := func(code uint16, k uint32) unix.SockFilter { return unix.SockFilter{Code: code, K: k} }
	jp := func(code uint16, k uint32, jt, jf uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | code | unix.BPF_K, K: k, Jt: jt, Jf: jf}
	}
	drop := st(unix.BPF_RET|unix.BPF_K, 0)
	if len(ports) == 0 {
		return []unix.SockFilter{drop}
	}
	const mark = 0xfffff000 + 20 // SKF_AD_OFF + SKF_AD_MARK (include/uapi/linux/filter.h); it lasts over the loopback
	own := []unix.SockFilter{
		st(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, mark),
		jp(unix.BPF_JEQ, ownMark, 0, 1),
		drop,
	}
	f := append(own, []unix.SockFilter{
		0: st(unix.BPF_LD|unix.BPF_B|unix.BPF_ABS, 0),
		1: st(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, 0xf0),
		2: jp(unix.BPF_JEQ, 0x60, 10-3, 0),
		3: jp(unix.BPF_JEQ, 0x40, 0, 9-4),
		4: st(unix.BPF_LD|unix.BPF_B|unix.BPF_ABS, 9), // IPv4: protocol
		5: jp(unix.BPF_JEQ, unix.IPPROTO_TCP, 0, 9-6),
		6: st(unix.BPF_LDX|unix.BPF_B|unix.BPF_MSH, 0), // X: length of the IP header
		7: st(unix.BPF_LD|unix.BPF_H|unix.BPF_IND, 2),  // destination port
		8: jp(unix.BPF_JA, 14-9, 0, 0),
		9: drop,
		// IPv6 without extension headers in front of TCP, which is all there is in practice.
		10: st(unix.BPF_LD|unix.BPF_B|unix.BPF_ABS, 6),
		11: jp(unix.BPF_JEQ, unix.IPPROTO_TCP, 13-12, 0),
		12: drop,
		13: st(unix.BPF_LD|unix.BPF_H|unix.BPF_ABS, 42),
	}...)
	keep := st(unix.BPF_RET|unix.BPF_K, 0xffffffff)
	if len(ports) > maxFiltered {
		return append(f, keep)
	}
	for i, p := range ports {
		f = append(f, jp(unix.BPF_JEQ, uint32(p), uint8(len(ports)-i), 0))
	}
	f = append(f, drop)
	if empty {
		return append(f, keep)
	}
	const changes, kept = flagFIN | flagSYN | flagRST, 23
	return append(f, []unix.SockFilter{
		0: st(unix.BPF_LD|unix.BPF_B|unix.BPF_ABS, 0),
		1: st(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, 0xf0),
		2: jp(unix.BPF_JEQ, 0x60, 10-3, 0),
		// IPv4: the length of the packet is 0 where it is above 64 KiB (BIG TCP)
		3: st(unix.BPF_LDX|unix.BPF_B|unix.BPF_MSH, 0),
		4: st(unix.BPF_LD|unix.BPF_B|unix.BPF_IND, 13), // flags
		5: jp(unix.BPF_JSET, changes, kept-6, 0),
		6: st(unix.BPF_LD|unix.BPF_H|unix.BPF_ABS, 2),
		7: jp(unix.BPF_JEQ, 0, kept-8, 0),
		8: st(unix.BPF_ALU|unix.BPF_SUB|unix.BPF_X, 0),
		9: jp(unix.BPF_JA, 15-10, 0, 0),
		// IPv6: it is that of what follows the header
		10: st(unix.BPF_LDX|unix.BPF_IMM, 40),
		11: st(unix.BPF_LD|unix.BPF_B|unix.BPF_IND, 13),
		12: jp(unix.BPF_JSET, changes, kept-13, 0),
		13: st(unix.BPF_LD|unix.BPF_H|unix.BPF_ABS, 4),
		14: jp(unix.BPF_JEQ, 0, kept-15, 0),
		// X: length of the IP header, A: of the rest
		15: st(unix.BPF_ST, 0),
		16: st(unix.BPF_LD|unix.BPF_B|unix.BPF_IND, 12),
		17: st(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, 0xf0),
		18: st(unix.BPF_ALU|unix.BPF_RSH|unix.BPF_K, 2),
		19: st(unix.BPF_MISC|unix.BPF_TAX, 0), // X: length of the TCP header
		20: st(unix.BPF_LD|unix.BPF_MEM, 0),
		21: {Code: unix.BPF_JMP | unix.BPF_JGT | unix.BPF_X, Jt: kept - 22},
		22: drop,
		23: keep,
	}...)
}

// gather is how long packets are let come together before they are read, in milliseconds. A copy may
// be that late; the app, whose CPUs we share, is not interrupted for each of its requests.
const gather = 2

// run reads packets until close.
func (p *tap) run() {
	defer close(p.done)
	defer func() {
		p.mu.Lock()
		p.asm.endAll()
		p.mu.Unlock()
	}()
	buf := make([]byte, 640<<10) // the largest packet, merged by GRO (BIG TCP); only what is used is in memory
	fds := []unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}, {Fd: int32(p.wake), Events: unix.POLLIN}}
	swept := time.Now()
	for !p.over.Load() { // it may find something to read each time
		n, from, err := unix.Recvfrom(p.fd, buf, unix.MSG_DONTWAIT)
		if err == unix.EAGAIN {
			fds[0].Revents, fds[1].Revents = 0, 0
			wait := sweepEvery
			if len(p.asm.begun) > 0 { // which only we change
				wait = min(wait, max(time.Until(p.asm.due), 0)+time.Millisecond)
			}
			if _, err := unix.Poll(fds, int(wait.Milliseconds())); err != nil && err != unix.EINTR {
				return
			}
			if fds[0].Revents != 0 {
				_, _ = unix.Poll(fds[1:], gather)
			}
		} else if err != nil && err != unix.EINTR && err != unix.ENETDOWN {
			return
		}
		now := time.Now()
		p.mu.Lock()
		if err == nil {
			if s, ok := parseSegment(buf[:n]); ok && (p.ports[s.key.to.Port()] || p.asm.follows(&s)) {
				if l, ok := from.(*unix.SockaddrLinklayer); ok {
					s.device = l.Ifindex
				}
				if f := p.asm.take(&s, now); f != nil {
					p.begins(f)
				}
			}
		}
		for _, f := range p.asm.silent(now, p.w.ask) {
			p.begins(f)
		}
		if now.Sub(swept) >= sweepEvery {
			p.asm.sweep(now, p.w.ask)
			swept = now
			if p.left > 0 {
				p.narrowLocked()
			}
			if st, err := unix.GetsockoptTpacketStats(p.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil && st.Drops > 0 {
				p.lost(st.Drops)
			}
		}
		p.mu.Unlock()
	}
}

// begins tells of a connection that stands, if it is the target's. Called with mu held.
func (p *tap) begins(f *flow) {
	if !p.w.ours(f) {
		p.asm.end(f, errReset)
		return
	}
	p.found(f)
}

// mirrored offers a connection that began to the sessions that mirror its port. It is called from
// the tap's goroutine and must not wait.
func (p *ports) mirrored(f *flow) {
	// p.mu may be held by somebody who waits for the tap: never take it here.
	go func() {
		p.mu.Lock()
		subs := append([]*subscription(nil), p.mirror[f.key.to.Port()]...)
		if !p.closed {
			p.work.Add(len(subs))
		} else {
			subs = nil
		}
		p.mu.Unlock()
		for _, s := range subs {
			c := f.copy()
			go func() {
				defer p.work.Done()
				p.carry(s, flowKey{from: f.there, to: f.here}, c)
			}()
		}
		f.seal()
	}()
}

// packetsLost tells the sessions that mirror of packets that nobody has seen: a copy that lacks
// them is given up and counted, a connection whose beginning was among them is not copied at all.
// Like mirrored it must not wait; a session that has not read the last such news misses this one.
func (p *ports) packetsLost(n uint32) {
	go func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, subs := range p.mirror {
			for _, s := range subs {
				if p.closed || !s.telling.CompareAndSwap(false, true) {
					continue
				}
				p.work.Go(func() {
					defer s.telling.Store(false)
					_ = wire.Write(s.note, wire.Event{Kind: wire.EventDropped, Count: s.dropped.Load(),
						Text: fmt.Sprintf("port %d: too many packets at once, %d of them were not seen", s.port, n)})
				})
			}
		}
	}()
}

// carry brings one copy of a client's bytes to a session.
func (p *ports) carry(s *subscription, k flowKey, c *copyOf) {
	defer c.abandon()
	st, err := s.x.offer(p.ctx, wire.Incoming{Subscription: s.id, Remote: k.from, Local: k.to})
	if errno := unix.Errno(0); err != nil && !errors.As(err, &errno) { // else the program did not want it
		s.missed.Add(1)
	}
	if err != nil {
		return
	}
	if n := s.missed.Swap(0); n > 0 {
		_ = wire.Write(s.note, wire.Event{Kind: wire.EventDropped, Count: s.dropped.Add(n),
			Text: fmt.Sprintf("port %d: %d connections were not copied while the agent could not reach this session", k.to.Port(), n)})
	}
	stop := context.AfterFunc(p.ctx, func() { st.Reset(0) })
	defer stop()
	go func() { // what the program answers goes nowhere; ends with the stream
		_, _ = io.Copy(io.Discard, st)
		c.abandon()
	}()
	go func() { // a stream that takes nothing must not hide that the copy is lost
		select {
		case <-c.lost:
			_ = st.Reset(uint32(unix.ECONNRESET))
		case <-c.abandoned:
		}
	}()
	err = send(st, c)
	select {
	case <-c.lost:
		_ = wire.Write(s.note, wire.Event{Kind: wire.EventDropped, Count: s.dropped.Add(1),
			Text: fmt.Sprintf("port %d: the copy of a connection was given up, the program or the link is too slow for it", k.to.Port())})
	default:
	}
	if err != nil {
		_ = st.Reset(uint32(unix.ECONNRESET))
		return
	}
	_ = st.CloseWrite()
	<-c.abandoned
	st.Close()
}

// send writes the copy to the stream until its end, which is no error.
func send(st tunnel.Stream, c *copyOf) error {
	for {
		b, err := c.next()
		if len(b) > 0 {
			if _, err := st.Write(b); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// segment is one TCP segment from a client.
type segment struct {
	key                flowKey
	seq                uint32
	syn, ack, fin, rst bool
	data               []byte
	device             int // by which it came
}

// flowKey names a connection in the direction from the client to the target.
type flowKey struct{ from, to netip.AddrPort }

const (
	flagFIN = 1 << iota
	flagSYN
	flagRST
	_
	flagACK
)

// parseSegment reads an IP packet. Fragments are left out: TCP avoids them.
func parseSegment(b []byte) (s segment, ok bool) {
	if len(b) < 20 {
		return s, false
	}
	var src, dst netip.Addr
	switch b[0] >> 4 {
	case 4:
		head, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
		if b[9] != unix.IPPROTO_TCP || binary.BigEndian.Uint16(b[6:])&0x3fff != 0 || head < 20 {
			return s, false
		}
		if total == 0 || total > len(b) { // 0: larger than 64 KiB by BIG TCP
			total = len(b)
		}
		if head > total {
			return s, false
		}
		src, dst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
		b = b[head:total]
	case 6:
		if len(b) < 40 || b[6] != unix.IPPROTO_TCP {
			return s, false
		}
		src, dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
		total := 40 + int(binary.BigEndian.Uint16(b[4:]))
		if total == 40 || total > len(b) {
			total = len(b)
		}
		b = b[40:total]
	default:
		return s, false
	}
	if len(b) < 20 {
		return s, false
	}
	head := int(b[12]>>4) * 4
	if head < 20 || head > len(b) {
		return s, false
	}
	s.key = flowKey{
		netip.AddrPortFrom(src, binary.BigEndian.Uint16(b)),
		netip.AddrPortFrom(dst, binary.BigEndian.Uint16(b[2:])),
	}
	s.seq = binary.BigEndian.Uint32(b[4:])
	fl := b[13]
	s.syn, s.ack, s.fin, s.rst = fl&flagSYN != 0, fl&flagACK != 0, fl&flagFIN != 0, fl&flagRST != 0
	s.data = b[head:]
	return s, true
}
